//! A local defence in a pairwise round: what the partner brings is scaled down to a few times what I bring myself.
//!
//! For each block of the stage (the blocks of the gradient clip), with s the samples in a difference, s_j counted as 2 s_i at
//! most, and |.| the Euclidean norm:
//!
//! r = |d_i| / s_i;  d_j <- d_j min(1, F r s_j / |d_j|);  phi_j <- phi_i + (phi_j - phi_i) min(1, F r max(s_i, s_j) / |phi_j - phi_i|).
//!
//! It is the norm bound of centred clipping (Karimireddy, He, Jaggi, arXiv 2012.10333) with my own difference as centre's radius: no
//! state, nothing to tune, and a partner cannot move my reference. Two sides within the factor of each other are left as they are,
//! bit for bit, so that both still compute the same mean. A side that has learned nothing since its last round has no
//! reference; it takes what comes, as a copy would.

use super::{noloco::Side, sum};

/// How many times my own size a sample the partner's may have. Honest replicas of one stage see the same data: theirs lie
/// within a factor of two.
pub const FACTOR: f64 = 4.0;

/// Squared sizes of both sides in one block, measured piece by piece.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sizes {
    mine: f64,
    theirs: f64,
    apart: f64,
}

impl Sizes {
    /// The next piece of the block at both sides.
    pub fn add(&mut self, mine: Side<'_>, theirs: Side<'_>) {
        self.mine += sum::squares(mine.d);
        self.theirs += sum::squares(theirs.d);
        self.apart += sum::squared_difference(theirs.phi, mine.phi);
    }

    /// What a side that brings `mine` samples accepts of one that says it brings `theirs`.
    pub fn accepted(&self, mine: u64, theirs: u64) -> Accepted {
        let reference = libm::sqrt(self.mine);
        if mine == 0 || reference == 0.0 {
            return Accepted::default();
        }
        let a_sample = FACTOR * reference / mine as f64;
        // Samples are the partner's own claim; `noloco` counts them no higher either.
        let theirs = theirs.min(mine.saturating_mul(2));
        Accepted {
            d: scale(libm::sqrt(self.theirs), a_sample * theirs as f64),
            phi: scale(libm::sqrt(self.apart), a_sample * mine.max(theirs) as f64),
        }
    }
}

/// Factors by which what a partner brings is scaled down; nothing where all of it is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Accepted {
    d: Option<f64>,
    phi: Option<f64>,
}

impl Accepted {
    /// Scales a piece of the partner's tensors; `mine`: the same piece of my slow weights.
    pub fn apply(&self, mine: &[f32], phi: &mut [f32], d: &mut [f32]) {
        if let Some(scale) = self.d {
            d.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
        }
        if let Some(scale) = self.phi {
            for (phi, mine) in phi.iter_mut().zip(mine) {
                let apart = f64::from(*phi) - f64::from(*mine);
                *phi = (f64::from(*mine) + apart * scale) as f32;
            }
        }
    }
}

/// The factor that brings `size` down to `most`; nothing where it is small enough.
fn scale(size: f64, most: f64) -> Option<f64> {
    (size > most).then(|| most / size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn side<'a>(phi: &'a [f32], d: &'a [f32], samples: u64) -> Side<'a> {
        Side { phi, d, samples }
    }

    fn accepted(mine: Side<'_>, theirs: Side<'_>) -> Accepted {
        let mut sizes = Sizes::default();
        sizes.add(mine, theirs);
        sizes.accepted(mine.samples, theirs.samples)
    }

    fn length(values: &[f32]) -> f64 {
        libm::sqrt(sum::squares(values))
    }

    #[test]
    fn sides_within_the_factor_are_left_as_they_are() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut draw = |size: f32| -> Vec<f32> { (0..100).map(|_| rng.random_range(-size..size)).collect() };
        for _ in 0..200 {
            let (d, other_d, phi) = (draw(1.0), draw(1.5), draw(10.0));
            let other_phi: Vec<f32> = phi.iter().zip(draw(1.5)).map(|(phi, by)| phi + by).collect();
            let (a, b) = (side(&phi, &d, 40), side(&other_phi, &other_d, 50));
            assert_eq!((accepted(a, b), accepted(b, a)), (Accepted::default(), Accepted::default()));
            let (mut same_phi, mut same_d) = (other_phi.clone(), other_d.clone());
            accepted(a, b).apply(&phi, &mut same_phi, &mut same_d);
            assert_eq!((&same_phi, &same_d), (&other_phi, &other_d));
        }
    }

    #[test]
    fn a_partner_moves_me_by_a_few_of_my_own_steps_however_much_it_brings() {
        let (phi, d) = ([1.0f32; 8], [0.5f32; 8]);
        let (huge_phi, huge_d) = ([3e38f32; 8], [-3e38f32; 8]);
        let bound = accepted(side(&phi, &d, 10), side(&huge_phi, &huge_d, 20));
        let (mut clipped_phi, mut clipped_d) = (huge_phi, huge_d);
        bound.apply(&phi, &mut clipped_phi, &mut clipped_d);
        let own = length(&d);
        assert!((length(&clipped_d) / (FACTOR * own * 2.0) - 1.0).abs() < 1e-5);
        let by: Vec<f32> = clipped_phi.iter().zip(&phi).map(|(there, here)| there - here).collect();
        assert!((length(&by) / (FACTOR * own * 2.0) - 1.0).abs() < 1e-5);
        assert!(clipped_d.iter().all(|v| *v < 0.0), "its direction stays");
        // A claim of many samples is no way around.
        assert_eq!(accepted(side(&phi, &d, 10), side(&huge_phi, &huge_d, u64::MAX)), bound);
    }

    #[test]
    fn a_block_that_is_measured_in_pieces_is_one_block() {
        let (phi, d) = ([0.0f32; 4], [1.0f32; 4]);
        let theirs = [1.0f32, 1.0, 100.0, 100.0];
        let mut sizes = Sizes::default();
        for piece in [0..2, 2..4] {
            sizes.add(side(&phi[piece.clone()], &d[piece.clone()], 1), side(&phi[piece.clone()], &theirs[piece], 1));
        }
        let mut clipped = theirs;
        sizes.accepted(1, 1).apply(&phi, &mut phi.clone(), &mut clipped);
        assert!((length(&clipped) / (FACTOR * 2.0) - 1.0).abs() < 1e-5);
        assert!((clipped[0] / clipped[2] - 0.01).abs() < 1e-6, "one factor for all of it");
    }

    #[test]
    fn without_a_difference_of_my_own_there_is_nothing_to_measure_by() {
        let (phi, none, theirs) = ([0.0f32; 2], [0.0f32; 2], [9.0f32; 2]);
        assert_eq!(accepted(side(&phi, &none, 0), side(&phi, &theirs, 5)), Accepted::default());
        assert_eq!(accepted(side(&phi, &none, 5), side(&phi, &theirs, 5)), Accepted::default());
    }
}
