//! The gate before a stranger's numbers are used: all finite, and of a size that training knows. In: values, piece by piece, as
//! they are encoded or decoded, while they lie in the nearest cache. Out: a verdict.

use multiversion::multiversion;

use super::BadTensor;

/// An activation or gradient whose root mean square is above this is absurd: no training makes it.
pub const RMS_MAX: f64 = 1e5;

/// Partial sums.
const LANES: usize = 64;

/// The sum of the squares so far, and of how many values.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gate {
    squares: f64,
    values: u64,
}

impl Gate {
    pub fn add(&mut self, values: &[f32]) {
        self.squares += squares(values);
        self.values += values.len() as u64;
    }

    /// # Errors
    /// [`BadTensor::NotFinite`] or [`BadTensor::Absurd`].
    pub fn verdict(&self) -> Result<(), BadTensor> {
        if !self.squares.is_finite() {
            return Err(BadTensor::NotFinite);
        }
        match self.values == 0 || (self.squares / self.values as f64).sqrt() <= RMS_MAX {
            true => Ok(()),
            false => Err(BadTensor::Absurd),
        }
    }
}

/// Whether no value of a tensor with these scales (bf16) is above [`RMS_MAX`], whatever its bytes are.
pub fn are_small(scales: &[u8]) -> bool {
    /// bf16 of the largest that 127 or 128 of stay below.
    const MOST: u16 = 0x4443;
    let max = scales.as_chunks::<2>().0.iter().map(|scale| u16::from_le_bytes(*scale) & 0x7fff).fold(0, u16::max);
    max <= MOST
}

/// The sum of squares; not finite exactly if one of the values is not.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn squares(values: &[f32]) -> f64 {
    body(values)
}

#[inline(always)]
fn body(values: &[f32]) -> f64 {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += v * v;
        }
    }
    for (sum, v) in sums.iter_mut().zip(rest) {
        *sum += v * v;
    }
    let sum: f64 = sums.iter().map(|sum| f64::from(*sum)).sum();
    if sum.is_finite() {
        return sum;
    }
    // Squares of finite f32 may be too large for f32, never for f64.
    values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(values: &[f32]) -> Result<(), BadTensor> {
        let mut gate = Gate::default();
        values.chunks(1000).for_each(|piece| gate.add(piece));
        gate.verdict()
    }

    #[test]
    fn one_value_that_is_not_finite_is_found_wherever_it_stands() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 63, 64, 2_999, 3_016] {
                let mut values = vec![0.5; 3017];
                values[at] = bad;
                assert_eq!(judge(&values), Err(BadTensor::NotFinite), "{bad} at {at}");
            }
        }
    }

    #[test]
    fn what_is_finite_is_judged_by_its_size_alone() {
        assert_eq!(judge(&[]), Ok(()));
        assert_eq!(judge(&[9e4; 200]), Ok(()));
        assert_eq!(judge(&[-1.1e5; 200]), Err(BadTensor::Absurd));
        assert_eq!(judge(&[f32::MAX; 200]), Err(BadTensor::Absurd));
    }

    #[test]
    fn scales_are_small_where_128_of_them_are() {
        for (scale, small) in
            [(0.0, true), (-1.0, true), (780.0, true), (784.0, false), (f32::INFINITY, false), (f32::NAN, false)]
        {
            let bits = (scale.to_bits() >> 16) as u16;
            assert_eq!(are_small(&[0, 0, bits.to_le_bytes()[0], bits.to_le_bytes()[1]]), small, "{scale}");
            assert!(!small || 128.0 * f64::from(scale).abs() <= RMS_MAX);
        }
    }

    #[test]
    fn dispatch_changes_no_bit() {
        let values: Vec<f32> = (0..5001u32).map(|i| (i.wrapping_mul(2_654_435_761) as f32 - 2e9) / 1e9).collect();
        for n in [0, 1, 63, 64, 65, 5001] {
            assert_eq!(squares(&values[..n]).to_bits(), body(&values[..n]).to_bits());
        }
    }
}
