//! In which order the samples of an epoch come. In: seed, epoch, number of samples. Out: where the `n`-th lies, without a list.
//!
//! A keyed permutation of `0..count`: a Feistel network over the next power of four, walked until it falls inside. Constant
//! memory, and any position can be computed alone.

use skein_protocol::hash;

const ROUNDS: usize = 6;

pub struct Order {
    keys: [u64; ROUNDS],
    offset: u64,
    half_bits: u32,
    count: u64,
}

impl Order {
    pub fn new(seed: u64, epoch: u64, count: u64) -> Self {
        let mut bytes = [0u8; 8 * (ROUNDS + 1)];
        hash::stream("skein sample order 1", &[&seed.to_le_bytes(), &epoch.to_le_bytes()]).fill(&mut bytes);
        let word = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().expect("eight bytes"));
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Order {
            keys: std::array::from_fn(word),
            offset: word(ROUNDS),
            half_bits: bits.div_ceil(2).max(1),
            count: count.max(1),
        }
    }

    /// Where the windows of this epoch begin: below `sequence`.
    pub fn offset(&self, sequence: u64) -> u64 {
        self.offset % sequence.max(1)
    }

    /// A bijection of `0..count`. The domain of the network is at most four times as large, so the walk takes four steps on
    /// average.
    pub fn at(&self, n: u64) -> u64 {
        let mut x = n % self.count;
        loop {
            x = self.feistel(x);
            if x < self.count {
                return x;
            }
        }
    }

    fn feistel(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_gives_a_permutation() {
        for count in [1u64, 2, 3, 4, 5, 17, 64, 1000, 4097] {
            let order = Order::new(9, 1, count);
            let mut seen: Vec<u64> = (0..count).map(|n| order.at(n)).collect();
            if count > 16 {
                assert_ne!(seen, (0..count).collect::<Vec<_>>());
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
    }
}
