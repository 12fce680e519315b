//! Draws of the world, each keyed by (seed, what it is for, number): one more peer, or one more draw, shifts nobody else's.
//!
//! Transcendental functions come from `libm`, so that draws have the same bits on every platform.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skein_protocol::hash;

use crate::engine::Time;

/// What a draw of a scenario is for. A new purpose is a new variant: streams are never shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    Device,
    Speed,
    Access,
    Region,
    Relayed,
    Liar,
    Arrival,
    Owner,
    Session,
    Zone,
    Warned,
    Hour,
    Target(u32),
}

impl Draw {
    fn key(self) -> (u64, u64) {
        match self {
            Draw::Device => (0, 0),
            Draw::Speed => (1, 0),
            Draw::Access => (2, 0),
            Draw::Region => (3, 0),
            Draw::Relayed => (4, 0),
            Draw::Liar => (5, 0),
            Draw::Arrival => (6, 0),
            Draw::Owner => (7, 0),
            Draw::Session => (8, 0),
            Draw::Zone => (9, 0),
            Draw::Warned => (10, 0),
            Draw::Hour => (11, 0),
            Draw::Target(fault) => (12, u64::from(fault)),
        }
    }

    fn seed(self, seed: u64, number: u64) -> [u8; 32] {
        let (kind, part) = self.key();
        hash::keyed(
            "skein scenario draw 1",
            &[seed, kind, part, number].map(u64::to_le_bytes).each_ref().map(|b| &b[..]),
        )
        .0
    }

    /// The stream of one peer (or zone, or hour).
    pub fn stream(self, seed: u64, number: u64) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.seed(seed, number))
    }

    /// A number that orders peers for this purpose.
    pub fn rank(self, seed: u64, number: u64) -> u64 {
        let bytes = self.seed(seed, number);
        u64::from_le_bytes(bytes[..8].try_into().expect("a digest is longer than 8 bytes"))
    }

    /// 0 to 1, such that the first peers, however many, are spread evenly over it: of 12 peers a share of a quarter are 3, or
    /// nearly. A rotation by an irrational number, another one for each purpose, from a beginning that the seed says.
    pub fn even(self, seed: u64, number: u64) -> f64 {
        // Fractional parts of the square roots of 2, 3, 5, 7, ..., times 2^64.
        const TURNS: [u64; 6] = [
            0x6a09_e667_f3bc_c908,
            0xbb67_ae85_84ca_a73b,
            0x3c6e_f372_fe94_f82b,
            0xa54f_f53a_5f1d_36f1,
            0x510e_527f_ade6_82d1,
            0x9b05_688c_2b3e_6c1f,
        ];
        let turn = TURNS[self.key().0 as usize % TURNS.len()];
        let at = self.rank(seed, u64::MAX).wrapping_add(turn.wrapping_mul(number));
        (at >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Which of some shares `at` (0 to 1) falls into.
pub fn pick<T>(shares: &[(T, f64)], at: f64) -> &T {
    let sum: f64 = shares.iter().map(|(_, share)| share).sum();
    let mut left = at * sum;
    for (what, share) in shares {
        if left < *share {
            return what;
        }
        left -= share;
    }
    // The last that is not empty: rounding may leave a little.
    &shares.iter().rev().find(|(_, share)| *share > 0.0).unwrap_or(&shares[shares.len() - 1]).0
}

/// Above 0, at most 1.
fn open(rng: &mut ChaCha8Rng) -> f64 {
    1.0 - rng.random::<f64>()
}

/// Standard normal, by Box and Muller.
pub fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (radius, angle) = (open(rng), rng.random::<f64>());
    (-2.0 * libm::log(radius)).sqrt() * libm::cos(2.0 * core::f64::consts::PI * angle)
}

pub fn exponential(rng: &mut ChaCha8Rng, mean: f64) -> f64 {
    -libm::log(open(rng)) * mean
}

/// Of distribution function 1 - exp(-(x / scale)^shape).
pub fn weibull(rng: &mut ChaCha8Rng, shape: f64, scale: f64) -> f64 {
    libm::pow(-libm::log(open(rng)), 1.0 / shape) * scale
}

pub fn lognormal(rng: &mut ChaCha8Rng, median: f64, sigma: f64) -> f64 {
    median * libm::exp(sigma * normal(rng))
}

/// Nanoseconds of a number of them, none below 0.
pub fn time(ns: f64) -> Time {
    ns.clamp(0.0, 9e18) as Time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_met_by_few_peers_already() {
        for seed in 0..50 {
            let quarter = (0..12).filter(|peer| Draw::Device.even(seed, *peer) < 0.25).count();
            assert!((2..=4).contains(&quarter), "{quarter} of 12 with seed {seed}");
        }
        let shares = [("a", 0.2), ("b", 0.0), ("c", 0.8)];
        assert_eq!([0.0, 0.1999, 0.2, 1.0].map(|at| *pick(&shares, at)), ["a", "a", "c", "c"]);
    }

    #[test]
    fn two_purposes_are_spread_over_each_others_shares() {
        let both = |peer: &u64| Draw::Device.even(1, *peer) < 0.5 && Draw::Access.even(1, *peer) < 0.5;
        let count = (0..400).filter(both).count();
        assert!((90..=110).contains(&count), "{count} of 400");
    }

    #[test]
    fn distributions_have_their_moments() {
        let mut rng = Draw::Session.stream(1, 1);
        let n = 20_000;
        let mean = |draw: &mut dyn FnMut() -> f64| (0..n).map(|_| draw()).sum::<f64>() / f64::from(n);
        let exponential = mean(&mut || exponential(&mut rng, 2.0));
        assert!((exponential - 2.0).abs() < 0.05, "{exponential}");
        let normal_square = mean(&mut || normal(&mut rng).powi(2));
        assert!((normal_square - 1.0).abs() < 0.03, "{normal_square}");
        let median = (0..n).filter(|_| lognormal(&mut rng, 3.0, 1.0) < 3.0).count() as f64 / f64::from(n);
        assert!((median - 0.5).abs() < 0.02, "{median}");
    }
}
