//! Which micro-batches of a feeder are of data that is held out: they go the way of all others, tell their loss, and enter no sum.

/// One micro-batch in `every` is held out; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldOut {
    pub every: u64,
}

impl HeldOut {
    /// Of the `index`-th micro-batch that a feeder ever feeds.
    pub fn is(self, index: u64) -> bool {
        self.every > 0 && index % self.every == self.every - 1
    }

    /// Of the first `index` micro-batches.
    pub fn before(self, index: u64) -> u64 {
        index.checked_div(self.every).unwrap_or(0)
    }

    /// Of the first `index` micro-batches those that are learned from.
    pub fn learned_before(self, index: u64) -> u64 {
        index - self.before(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_either_held_out_or_learned_and_both_count_without_gaps() {
        for every in [0, 2, 3, 20] {
            let held_out = HeldOut { every };
            let (mut held, mut learned) = (0, 0);
            for index in 0..100 {
                assert_eq!(
                    (held_out.before(index), held_out.learned_before(index)),
                    (held, learned),
                    "{every} {index}"
                );
                match held_out.is(index) {
                    true => held += 1,
                    false => learned += 1,
                }
            }
            assert_eq!(held, 100u64.checked_div(every).unwrap_or(0));
        }
    }
}
