//! Sums of squares in f64, where no finite f32 overflows when it is squared: eight running sums side by side, which a processor
//! adds at once, then those in order. One order of summation on every machine, whatever instructions it has.

use multiversion::multiversion;

const LANES: usize = 8;

/// Of one vector.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2", "aarch64+neon"))]
pub fn squares(values: &[f32]) -> f64 {
    over(values, values, |v, _| v * v)
}

/// Of the difference of two vectors of one length.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2", "aarch64+neon"))]
pub fn squared_difference(a: &[f32], b: &[f32]) -> f64 {
    over(a, b, |a, b| (a - b) * (a - b))
}

/// Of the mean of two vectors of one length.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2", "aarch64+neon"))]
pub fn squared_mean(a: &[f32], b: &[f32]) -> f64 {
    over(a, b, |a, b| (0.5 * (a + b)) * (0.5 * (a + b)))
}

#[inline(always)]
fn over(a: &[f32], b: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(f64::from(*a), f64::from(*b));
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| term(f64::from(*a), f64::from(*b))).sum();
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_values_count_whatever_their_number() {
        for n in [0, 1, 7, 8, 9, 64, 100] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let b: Vec<f32> = (0..n).map(|i| 3.0 * i as f32).collect();
            let sum: f64 = (0..n).map(|i| f64::from(i * i)).sum();
            assert_eq!(squares(&a), sum);
            assert_eq!(squared_difference(&a, &b), 4.0 * sum);
            assert_eq!(squared_mean(&a, &b), 4.0 * sum);
        }
    }

    #[test]
    fn the_largest_values_do_not_overflow() {
        assert!(squares(&[f32::MAX; 9]).is_finite());
    }
}
