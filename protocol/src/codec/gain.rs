//! Whether zstd pays for the tensors of one kind (a stage and a direction): measured on some of them, and used while it makes
//! them more than 5 % smaller.
//!
//! In: the tensors, one after the other. Out: their bytes. What is decided follows from the lengths of those before alone, so
//! equal tensors give equal bytes everywhere. It knows no link: the bytes that are saved are saved on each.

use super::encode;
use crate::run::Codec;

/// While zstd does not pay, one tensor of so many is tried with it.
pub const EVERY: u32 = 16;
/// Thousandths of a tensor's bytes that zstd must save.
pub const PERMILLE_MIN: u64 = 50;

#[derive(Clone, Debug, Default)]
pub struct Gain {
    /// Thousandths saved, smoothed over the last four or so that were measured; nothing before the first.
    saved: Option<u64>,
    /// Tensors since one was measured.
    since: u32,
}

impl Gain {
    /// Encodes finite values as [`encode`] does, with zstd where it pays or is to be tried.
    pub fn encode(&mut self, values: &[f32], codec: Codec) -> Vec<u8> {
        if !self.pays() && !self.is_due() {
            self.since += 1;
            return encode(values, codec, false);
        }
        let coded = encode(values, codec, true);
        let plain = super::coded_len(values.len() as u64, codec).unwrap_or(coded.len() as u64);
        self.note(plain, coded.len() as u64);
        coded
    }

    /// Whether the last tensors that were measured became smaller by enough.
    pub fn pays(&self) -> bool {
        self.saved.is_some_and(|saved| saved > PERMILLE_MIN)
    }

    fn is_due(&self) -> bool {
        self.saved.is_none() || self.since + 1 >= EVERY
    }

    fn note(&mut self, plain: u64, packed: u64) {
        let saved = plain.saturating_sub(packed).saturating_mul(1000) / plain.max(1);
        self.saved = Some(self.saved.map_or(saved, |before| (3 * before + saved) / 4));
        self.since = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::codec::{codec_of, decode};

    const N: usize = 4096;

    /// Finite values of random bits: all but one bit of the exponent is news, so nothing worth the time can be saved.
    fn noise(rng: &mut ChaCha8Rng) -> Vec<f32> {
        (0..N).map(|_| f32::from_bits(rng.random::<u32>() & 0xbfff_ffff)).collect()
    }

    fn smooth() -> Vec<f32> {
        (0..N).map(|i| (i / 64) as f32).collect()
    }

    fn is_packed(bytes: &[u8]) -> bool {
        codec_of(bytes).unwrap().1
    }

    #[test]
    fn noise_is_tried_once_in_sixteen_and_travels_as_it_is() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut gain = Gain::default();
        let mut tried = 0;
        for _ in 0..160 {
            let values = noise(&mut rng);
            let due = gain.is_due();
            assert!(!is_packed(&gain.encode(&values, Codec::F32)));
            assert!(!gain.pays());
            tried += u32::from(due);
        }
        assert_eq!(tried, 10);
    }

    #[test]
    fn what_repeats_is_packed_from_the_first_on_and_comes_back() {
        for codec in [Codec::F32, Codec::Bf16, Codec::Int8] {
            let mut gain = Gain::default();
            for _ in 0..40 {
                let bytes = gain.encode(&smooth(), codec);
                assert!(is_packed(&bytes) && gain.pays(), "{codec:?}");
                assert_eq!(decode(&bytes, N, &[codec]).unwrap().len(), N);
            }
        }
    }

    #[test]
    fn it_follows_tensors_that_change() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut gain = Gain::default();
        gain.encode(&smooth(), Codec::F32);
        let mut packed = 0;
        while gain.pays() {
            gain.encode(&noise(&mut rng), Codec::F32);
            packed += 1;
        }
        assert!((2..30).contains(&packed), "one odd tensor changes nothing, many do: {packed}");
        let mut plain = 0;
        while !gain.pays() {
            gain.encode(&smooth(), Codec::F32);
            plain += 1;
        }
        assert!(plain <= EVERY, "{plain}");
    }

    #[test]
    fn a_gain_of_a_twentieth_or_less_is_none() {
        for (packed, pays) in [(1000, false), (950, false), (949, true), (1200, false)] {
            let mut gain = Gain::default();
            gain.note(1000, packed);
            assert_eq!(gain.pays(), pays, "{packed} of 1000");
        }
    }
}
