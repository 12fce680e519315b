//! What a codec and zstd do to the tensors of one kind (a stage and a direction): measured on some of them. zstd is used while it
//! makes them more than 5 % smaller.
//!
//! In: the tensors, one after the other. Out: their bytes, and what was measured. What is decided follows from the tensors before
//! alone, so equal tensors give equal bytes everywhere. It knows no link: whether bytes that are saved are worth their time is for
//! whoever asks for zstd to know.

use multiversion::multiversion;

use super::{BadTensor, Coded, Gate, PIECE, encode_into};
use crate::run::Codec;

/// While zstd does not pay, one tensor of so many is tried with it; of as many, one is decoded to see what was lost.
pub const EVERY: u32 = 16;
/// Thousandths of a tensor's bytes that zstd must save.
pub const PERMILLE_MIN: u64 = 50;

/// What was measured on the tensors of one kind in one codec.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Thousandths that zstd saves.
    pub saved: Option<u16>,
    /// Millionths of the tensors' size that the codec loses (root mean squares).
    pub error: Option<u32>,
}

#[derive(Clone, Debug, Default)]
pub struct Gain {
    kinds: [Kind; super::ALL.len()],
}

/// One codec.
#[derive(Clone, Debug, Default)]
struct Kind {
    /// Thousandths saved, smoothed over the last four or so that were measured; nothing before the first.
    saved: Option<u64>,
    /// Tensors since one was measured.
    since: u32,
    /// Tensors encoded.
    encoded: u64,
    error: Option<f64>,
}

impl Gain {
    /// Encodes values as [`encode_into`] does; `zstd`: where it pays, or is to be tried.
    ///
    /// # Errors
    /// As [`encode_into`].
    pub fn encode(&mut self, values: &[f32], codec: Codec, zstd: bool, out: &mut Vec<u8>) -> Result<(), BadTensor> {
        let kind = &mut self.kinds[usize::from(super::tag(codec))];
        let packed = zstd && (kind.pays() || kind.is_due());
        encode_into(values, codec, packed, out)?;
        if packed {
            let plain = super::coded_len(values.len() as u64, codec).unwrap_or(out.len() as u64);
            kind.note(plain, out.len() as u64);
        } else if zstd {
            kind.since += 1;
        }
        if codec != Codec::F32 && kind.encoded.is_multiple_of(u64::from(EVERY)) {
            // Own bytes, just made; where their size is absurd, nothing was measured.
            let coded = Coded::open(out, values.len(), &[codec]);
            if let Ok(error) = coded.and_then(|coded| relative_error(values, &coded)) {
                kind.lost(error);
            }
        }
        kind.encoded += 1;
        Ok(())
    }

    /// What is known of the tensors in this codec.
    pub fn sample(&self, codec: Codec) -> Sample {
        let kind = &self.kinds[usize::from(super::tag(codec))];
        let error = kind.error.map(|error| (error * 1e6).min(f64::from(u32::MAX)) as u32);
        Sample { saved: kind.saved.map(|saved| saved.min(1000) as u16), error }
    }

    /// Whether the last tensors that were measured in this codec became smaller by enough.
    pub fn pays(&self, codec: Codec) -> bool {
        self.kinds[usize::from(super::tag(codec))].pays()
    }
}

impl Kind {
    fn pays(&self) -> bool {
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

    fn lost(&mut self, error: f64) {
        self.error = Some(self.error.map_or(error, |before| 0.75 * before + 0.25 * error));
    }
}

/// |values - decoded| / |values|; 0 of nothing.
///
/// # Errors
/// What is decoded does not pass the [`Gate`].
fn relative_error(values: &[f32], coded: &Coded<'_>) -> Result<f64, BadTensor> {
    let (mut lost, mut size, mut gate) = (0.0, 0.0, Gate::default());
    let mut piece = [0.0; PIECE];
    for (number, values) in values.chunks(PIECE).enumerate() {
        let decoded = &mut piece[..values.len()];
        coded.piece(number * PIECE, decoded)?;
        gate.add(decoded);
        let squares = squares(values, decoded);
        lost += squares.0;
        size += squares.1;
    }
    gate.verdict()?;
    Ok(if size > 0.0 { (lost / size).sqrt() } else { 0.0 })
}

/// The sums of the squares of what was lost, and of the values.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn squares(values: &[f32], decoded: &[f32]) -> (f64, f64) {
    squares_body(values, decoded)
}

#[inline(always)]
fn squares_body(values: &[f32], decoded: &[f32]) -> (f64, f64) {
    /// Partial sums.
    const LANES: usize = 16;
    let (mut lost, mut size) = ([0.0; LANES], [0.0; LANES]);
    let square = |v: f32| f64::from(v) * f64::from(v);
    let mut add = |values: &[f32], decoded: &[f32]| {
        for (((lost, size), v), decoded) in lost.iter_mut().zip(&mut size).zip(values).zip(decoded) {
            *lost += square(v - decoded);
            *size += square(*v);
        }
    };
    let ((values, rest), (decoded, rest_decoded)) = (values.as_chunks::<LANES>(), decoded.as_chunks::<LANES>());
    values.iter().zip(decoded).for_each(|(values, decoded)| add(values, decoded));
    add(rest, rest_decoded);
    (lost.iter().sum(), size.iter().sum())
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::codec::{
        codec_of, decode,
        tests::{any_finite, normal},
    };

    const N: usize = 4096;

    /// Values of random bits and sizes up to a few thousand: nothing worth the time can be saved.
    fn noise(rng: &mut ChaCha8Rng) -> Vec<f32> {
        (0..N).map(|_| f32::from_bits((rng.random::<u32>() & 0x87ff_ffff) | 0x3800_0000)).collect()
    }

    fn smooth() -> Vec<f32> {
        (0..N).map(|i| (i / 64) as f32).collect()
    }

    fn coded(gain: &mut Gain, values: &[f32], codec: Codec) -> Vec<u8> {
        let mut out = Vec::new();
        gain.encode(values, codec, true, &mut out).unwrap();
        out
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
            let due = gain.kinds[2].is_due();
            // int8 leaves bytes that repeat too little for the frame to pay.
            coded(&mut gain, &normal(rng.random(), N), Codec::Int8);
            assert!(!gain.pays(Codec::Int8));
            tried += u32::from(due);
        }
        assert_eq!(tried, 10);
    }

    #[test]
    fn what_repeats_is_packed_from_the_first_on_and_comes_back() {
        for codec in [Codec::F32, Codec::Bf16, Codec::Int8, Codec::Int4] {
            let mut gain = Gain::default();
            for _ in 0..40 {
                let bytes = coded(&mut gain, &smooth(), codec);
                assert!(is_packed(&bytes) && gain.pays(codec), "{codec:?}");
                assert_eq!(decode(&bytes, N, &[codec]).unwrap().len(), N);
            }
        }
    }

    #[test]
    fn it_follows_tensors_that_change() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut gain = Gain::default();
        coded(&mut gain, &smooth(), Codec::F32);
        let mut packed = 0;
        while gain.pays(Codec::F32) {
            coded(&mut gain, &noise(&mut rng), Codec::F32);
            packed += 1;
        }
        assert!((2..40).contains(&packed), "one odd tensor changes nothing, many do: {packed}");
        let mut plain = 0;
        while !gain.pays(Codec::F32) {
            coded(&mut gain, &smooth(), Codec::F32);
            plain += 1;
        }
        assert!(plain <= EVERY, "{plain}");
    }

    #[test]
    fn a_gain_of_a_twentieth_or_less_is_none() {
        for (packed, pays) in [(1000, false), (950, false), (949, true), (1200, false)] {
            let mut kind = Kind::default();
            kind.note(1000, packed);
            assert_eq!(kind.pays(), pays, "{packed} of 1000");
        }
    }

    #[test]
    fn what_a_codec_loses_is_measured_apart_for_each() {
        let mut gain = Gain::default();
        let mut out = Vec::new();
        for codec in [Codec::Bf16, Codec::Int8, Codec::Int4] {
            assert_eq!(gain.sample(codec), Sample::default());
            gain.encode(&normal(7, N), codec, false, &mut out).unwrap();
        }
        let error = |codec| f64::from(gain.sample(codec).error.unwrap()) / 1e6;
        for codec in [Codec::Bf16, Codec::Int8, Codec::Int4] {
            let nominal = crate::codec::nominal_error(codec);
            assert!((error(codec) / nominal - 1.0).abs() < 0.1, "{codec:?} {}", error(codec));
            assert_eq!(gain.sample(codec).saved, None, "nobody asked for zstd");
        }
    }

    #[test]
    fn dispatch_changes_no_bit() {
        for n in [0, 1, 15, 16, 17, 1000] {
            let (values, decoded) = (any_finite(n as u64, n), any_finite(7, n));
            assert_eq!(squares(&values, &decoded), squares_body(&values, &decoded));
        }
    }
}
