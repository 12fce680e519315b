//! A set of stages, as small as a peer's state can hold it.

use skein_protocol::{Stage, wire::limits::STAGES_MAX};

const BITS: usize = u64::BITS as usize;

/// In words of bits, the first stage in the lowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages([u64; STAGES_MAX / BITS]);

impl Stages {
    pub const NONE: Stages = Stages([0; STAGES_MAX / BITS]);

    pub fn one(stage: Stage) -> Self {
        Stages::NONE.with(stage)
    }

    /// Ascending.
    pub fn iter(self) -> impl Iterator<Item = Stage> {
        let of_word = |(at, word): (usize, u64)| {
            let left = std::iter::successors(Some(word), |word| Some(word & word.wrapping_sub(1)));
            let bits = left.take_while(|word| *word > 0).map(u64::trailing_zeros);
            bits.map(move |bit| (at * BITS) as Stage + bit as Stage)
        };
        self.0.into_iter().enumerate().flat_map(of_word)
    }

    pub fn has(self, stage: Stage) -> bool {
        self.0[usize::from(stage) / BITS] >> (usize::from(stage) % BITS) & 1 == 1
    }

    /// Whether it has the stage after this one.
    pub fn has_after(self, stage: Stage) -> bool {
        usize::from(stage) + 1 < STAGES_MAX && self.has(stage + 1)
    }

    pub fn with(mut self, stage: Stage) -> Self {
        self.0[usize::from(stage) / BITS] |= 1 << (usize::from(stage) % BITS);
        self
    }

    pub fn without(mut self, stage: Stage) -> Self {
        self.0[usize::from(stage) / BITS] &= !(1 << (usize::from(stage) % BITS));
        self
    }

    pub fn and(self, other: Stages) -> Self {
        other.iter().fold(self, Stages::with)
    }

    pub fn len(self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub fn is_empty(self) -> bool {
        self == Stages::NONE
    }
}

impl FromIterator<Stage> for Stages {
    fn from_iter<I: IntoIterator<Item = Stage>>(stages: I) -> Self {
        stages.into_iter().fold(Stages::NONE, Stages::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_into_it() {
        let stages = [0, 63, 64, 130, 255];
        let set: Stages = stages.into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), stages);
        assert!(set.has(130) && !set.has(131) && set.has_after(63) && !set.has_after(255) && set.len() == 5);
        assert_eq!(stages.into_iter().fold(set, Stages::without), Stages::NONE);
        assert_eq!(Stages::one(63).and(Stages::one(0)).iter().collect::<Vec<_>>(), [0, 63]);
    }
}
