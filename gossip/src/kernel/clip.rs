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

use std::ops::Range;

use super::{noloco::Side, sum};

/// How many times my own size a sample the partner's may have. Honest replicas of one stage see the same data: theirs lie
/// within a factor of two.
pub const FACTOR: f64 = 4.0;

/// A partner's tensors after the bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Clipped {
    pub phi: Vec<f32>,
    pub d: Vec<f32>,
}

/// What `mine` accepts of `theirs`; nothing where it accepts all of it. `blocks` cover the tensors without overlap.
pub fn partner(mine: Side<'_>, theirs: Side<'_>, blocks: &[Range<usize>]) -> Option<Clipped> {
    let mut clipped: Option<Clipped> = None;
    for block in blocks {
        let (own, phi) = (&mine.d[block.clone()], &mine.phi[block.clone()]);
        let (d, their_phi) = (&theirs.d[block.clone()], &theirs.phi[block.clone()]);
        let reference = libm::sqrt(sum::squares(own));
        if mine.samples == 0 || reference == 0.0 {
            continue;
        }
        let a_sample = FACTOR * reference / mine.samples as f64;
        // Samples are the partner's own claim; `noloco` counts them no higher either.
        let their_samples = theirs.samples.min(mine.samples.saturating_mul(2));
        let of_d = scale(libm::sqrt(sum::squares(d)), a_sample * their_samples as f64);
        let of_phi = scale(
            libm::sqrt(sum::squared_difference(their_phi, phi)),
            a_sample * mine.samples.max(their_samples) as f64,
        );
        if of_d.is_none() && of_phi.is_none() {
            continue;
        }
        let out = clipped.get_or_insert_with(|| Clipped { phi: theirs.phi.to_vec(), d: theirs.d.to_vec() });
        if let Some(scale) = of_d {
            out.d[block.clone()].iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
        }
        if let Some(scale) = of_phi {
            for (out, mine) in out.phi[block.clone()].iter_mut().zip(phi) {
                let apart = f64::from(*out) - f64::from(*mine);
                *out = (f64::from(*mine) + apart * scale) as f32;
            }
        }
    }
    clipped
}

/// The factor that brings `size` down to `most`; nothing where it is small enough.
fn scale(size: f64, most: f64) -> Option<f64> {
    (size > most).then(|| most / size)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a stage may have one block")]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn side<'a>(phi: &'a [f32], d: &'a [f32], samples: u64) -> Side<'a> {
        Side { phi, d, samples }
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
            assert_eq!((partner(a, b, &[0..60, 60..100]), partner(b, a, &[0..60, 60..100])), (None, None));
        }
    }

    #[test]
    fn a_partner_moves_me_by_a_few_of_my_own_steps_however_much_it_brings() {
        let (phi, d) = ([1.0f32; 8], [0.5f32; 8]);
        let (huge_phi, huge_d) = ([3e38f32; 8], [-3e38f32; 8]);
        let clipped = partner(side(&phi, &d, 10), side(&huge_phi, &huge_d, 20), &[0..8]).expect("it is too much");
        let own = length(&d);
        assert!((length(&clipped.d) / (FACTOR * own * 2.0) - 1.0).abs() < 1e-5);
        let by: Vec<f32> = clipped.phi.iter().zip(&phi).map(|(there, here)| there - here).collect();
        assert!((length(&by) / (FACTOR * own * 2.0) - 1.0).abs() < 1e-5);
        assert!(clipped.d.iter().all(|v| *v < 0.0), "its direction stays");
        // A claim of many samples is no way around.
        assert_eq!(partner(side(&phi, &d, 10), side(&huge_phi, &huge_d, u64::MAX), &[0..8]), Some(clipped));
    }

    #[test]
    fn only_the_block_that_is_too_much_is_touched() {
        let (phi, d) = ([0.0f32; 4], [1.0f32; 4]);
        let theirs = [1.0f32, 1.0, 100.0, 100.0];
        let clipped = partner(side(&phi, &d, 1), side(&phi, &theirs, 1), &[0..2, 2..4]).expect("the second is");
        assert_eq!(clipped.d[..2], theirs[..2]);
        assert!((clipped.d[2] - FACTOR as f32).abs() < 1e-5);
        assert_eq!(clipped.phi, phi);
    }

    #[test]
    fn without_a_difference_of_my_own_there_is_nothing_to_measure_by() {
        let (phi, none, theirs) = ([0.0f32; 2], [0.0f32; 2], [9.0f32; 2]);
        assert_eq!(partner(side(&phi, &none, 0), side(&phi, &theirs, 5), &[0..2]), None);
        assert_eq!(partner(side(&phi, &none, 5), side(&phi, &theirs, 5), &[0..2]), None);
    }
}
