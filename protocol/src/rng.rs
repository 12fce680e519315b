//! Named random streams: each purpose of each peer draws from its own, so that one more draw, or one more peer, shifts nobody else's.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{hash, id::PeerId};

/// What a stream of random numbers is for. A new purpose is a new variant: streams are never shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    Route,
    Spread,
    Pairing,
    Plan,
    Data,
    Sample,
    World,
    Churn,
    Link,
    Kill,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Purpose::Route => "route",
            Purpose::Spread => "spread",
            Purpose::Pairing => "pairing",
            Purpose::Plan => "plan",
            Purpose::Data => "data",
            Purpose::Sample => "sample",
            Purpose::World => "world",
            Purpose::Churn => "churn",
            Purpose::Link => "link",
            Purpose::Kill => "kill",
        }
    }
}

/// The source of all randomness of one peer, derived from a seed and the peer's identity.
#[derive(Clone, Debug)]
pub struct Streams {
    seed: [u8; 32],
}

impl Streams {
    /// `seed` comes from the operating system in a real peer and from the scenario in the simulator.
    pub fn new(seed: u64, peer: PeerId) -> Self {
        Streams { seed: hash::keyed("skein rng streams 1", &[&seed.to_le_bytes(), &peer.0]).0 }
    }

    /// The stream of one purpose; the same one each time it is asked for.
    pub fn stream(&self, purpose: Purpose) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(hash::keyed("skein rng stream 1", &[&self.seed, purpose.name().as_bytes()]).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_are_repeatable_and_apart() {
        let a = Streams::new(1, PeerId([1; 32]));
        let b = Streams::new(1, PeerId([2; 32]));
        let draw = |s: &Streams, p| s.stream(p).next_u64();
        assert_eq!(draw(&a, Purpose::Route), draw(&a, Purpose::Route));
        assert_ne!(draw(&a, Purpose::Route), draw(&a, Purpose::Spread));
        assert_ne!(draw(&a, Purpose::Route), draw(&b, Purpose::Route));
    }
}
