//! NoLoCo's outer step between two replicas (arXiv 2506.10911), for weights that moved at different speeds.
//!
//! d = theta - phi;  m <- alpha m + beta mean(d) + gamma (mean(phi) - phi_i);  phi <- phi + m;  theta <- phi.
//! With zero differences the disagreement of two replicas falls by a factor 0.50 in variance a round at alpha 0.5, gamma 0.7
//! (lambda^2 - (1 + alpha - gamma) lambda + alpha = 0, |lambda|^2 = alpha).

use multiversion::multiversion;

use super::sum;

/// alpha, beta, gamma of the rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    pub alpha: f32,
    pub beta: f32,
    pub gamma: f32,
}

/// What one side brings to a round: its slow weights, its difference, and the samples that are in it.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    pub phi: &'a [f32],
    pub d: &'a [f32],
    pub samples: u64,
}

/// Relative distance to the mean, before and after the round.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Disagreement {
    pub before: f32,
    pub after: f32,
}

/// Weights of two differences by the samples in them, each side capped at twice the other's.
pub fn shares(mine: u64, theirs: u64) -> (f32, f32) {
    let (a, b) = (mine.min(theirs.saturating_mul(2)), theirs.min(mine.saturating_mul(2)));
    match a + b {
        0 => (0.5, 0.5),
        sum => (a as f32 / sum as f32, b as f32 / sum as f32),
    }
}

/// One side's outer step: its slow weights `phi` and its momentum `m` become the new ones.
///
/// `first` and `second` are both sides in the order of their peer ids, as both know them, so that both compute the same means and
/// what gamma takes from one it gives to the other; `i_am_first` says whose `m` and `phi` are. My own `phi` may be known here
/// more exactly than in my `Side`, which is what the other has of it.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2", "aarch64+neon"))]
pub fn step(rule: Rule, first: Side<'_>, second: Side<'_>, i_am_first: bool, m: &mut [f32], phi: &mut [f32]) {
    let (a, b) = shares(first.samples, second.samples);
    let n = phi.len();
    // Slices of one known length, so that the loop is checked once and not at each value.
    let (first_phi, first_d, second_phi, second_d) = (&first.phi[..n], &first.d[..n], &second.phi[..n], &second.d[..n]);
    let (mine, m) = (if i_am_first { first_phi } else { second_phi }, &mut m[..n]);
    for i in 0..n {
        let mean_d = a * first_d[i] + b * second_d[i];
        let mean_phi = 0.5 * (first_phi[i] + second_phi[i]);
        m[i] = rule.alpha * m[i] + rule.beta * mean_d + rule.gamma * (mean_phi - mine[i]);
        phi[i] += m[i];
    }
}

/// |a - mean| / |mean| of two vectors: the same for both sides.
pub fn disagreement(a: &[f32], b: &[f32]) -> f32 {
    // The distance of each to the mean is half of the difference.
    let (difference, size) = (0.25 * sum::squared_difference(a, b), sum::squared_mean(a, b));
    if size > 0.0 { libm::sqrt(difference / size) as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, seq::SliceRandom};
    use rand_chacha::ChaCha8Rng;

    const RULE: Rule = Rule { alpha: 0.5, beta: 0.7, gamma: 0.7 };

    /// Mean factor by which the variance of the disagreement falls from one round to the next, differences being zero.
    fn contraction(replicas: usize, from: usize, to: usize) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let width = 2000;
        let mut phi: Vec<Vec<f32>> =
            (0..replicas).map(|_| (0..width).map(|_| rng.random_range(-1.0f32..1.0)).collect()).collect();
        let mut m = vec![vec![0f32; width]; replicas];
        let zero = vec![0f32; width];
        let variance = |phi: &[Vec<f32>]| -> f64 {
            (0..width)
                .map(|i| {
                    let mean = phi.iter().map(|p| f64::from(p[i])).sum::<f64>() / replicas as f64;
                    phi.iter().map(|p| (f64::from(p[i]) - mean).powi(2)).sum::<f64>()
                })
                .sum()
        };
        let (mut first, mut last) = (0.0, 0.0);
        for round in 0..=to {
            let mut order: Vec<usize> = (0..replicas).collect();
            order.shuffle(&mut rng);
            for pair in order.chunks_exact(2) {
                let (a, b) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
                let (old_a, old_b) = (phi[a].clone(), phi[b].clone());
                let first = Side { phi: &old_a, d: &zero, samples: 1 };
                let second = Side { phi: &old_b, d: &zero, samples: 1 };
                step(RULE, first, second, true, &mut m[a], &mut phi[a]);
                step(RULE, first, second, false, &mut m[b], &mut phi[b]);
            }
            if round == from {
                first = variance(&phi);
            }
            last = variance(&phi);
        }
        (last / first).powf(1.0 / (to - from) as f64)
    }

    #[test]
    fn disagreement_contracts_as_the_closed_form_says() {
        // Two replicas swing (the roots are complex, 55.5 degrees a round): 13 rounds are two full swings.
        let two = contraction(2, 2, 15);
        assert!((two - 0.50).abs() < 0.02, "two replicas: {two}");
        let eight = contraction(8, 10, 60);
        assert!((eight - 0.67).abs() < 0.03, "eight replicas: {eight}");
    }

    #[test]
    fn both_sides_compute_the_same_mean() {
        let (pa, pb, da, db) = ([1.0f32, 2.0], [3.0f32, 5.0], [0.1f32, 0.2], [0.3f32, -0.2]);
        let first = Side { phi: &pa, d: &da, samples: 10 };
        let second = Side { phi: &pb, d: &db, samples: 30 };
        let (mut ma, mut mb, mut na, mut nb) = ([0.0; 2], [0.0; 2], pa, pb);
        step(Rule { gamma: 1.0, ..RULE }, first, second, true, &mut ma, &mut na);
        step(Rule { gamma: 1.0, ..RULE }, first, second, false, &mut mb, &mut nb);
        for i in 0..2 {
            assert!((na[i] - nb[i]).abs() < 1e-6, "gamma 1 without momentum brings both to one point");
        }
    }

    #[test]
    fn a_side_counts_at_most_twice_the_other() {
        assert_eq!(shares(10, 1000), (10.0 / 30.0, 20.0 / 30.0));
        assert_eq!(shares(0, 0), (0.5, 0.5));
        assert_eq!(shares(5, 5), (0.5, 0.5));
    }
}
