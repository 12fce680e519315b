//! Codecs: how a tensor travels. In: f32 values, a codec, whether to try zstd ([`Gain`] says where). Out: bytes that say what they
//! are, and back, with every length checked before anything is allocated.
//!
//! A coded tensor is one format byte and its planes, the planes compressed as one zstd frame where the byte says so:
//!
//! | codec | byte | planes, for `n` values |
//! |---|---|---|
//! | f32 | 0 | `4 n` bytes, little-endian |
//! | bf16 | 1 | `2 n` bytes: with zstd all low bytes, then all high bytes (signs and exponents repeat); else little-endian |
//! | int8 | 2 | `n` bytes, then `ceil(n / 64)` scales: a value is its byte times its scale |
//! | int4 | 3 | 16 bytes for each 32 values, then `ceil(n / 32)` scales: a value is (nibble - 8) times its scale |
//! | sparse | 4 | 64 bytes for each 256 values: a bitmap of those that travel, 32 bytes; then `ceil(n / 256)` scales |
//! | int16 | 5 | `2 n` bytes, little-endian, then `ceil(n / 64)` scales: a value is its number times its scale |
//!
//! Bit 4 (16) set: zstd. Scales are bf16. The number of values is never in the bytes: the receiver knows it from the manifest and
//! the lane.
//!
//! Work goes by pieces that fit the nearest cache, each passing the [`Gate`] while it is there. The kernels are plain loops,
//! compiled for several instruction sets and chosen at run time; every choice gives the same bytes.

mod bf16;
mod blocks;
mod gain;
mod gate;
mod int16;
mod int4;
mod int8;
mod sparse;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use self::{
    gain::{Gain, Sample},
    gate::{Gate, RMS_MAX},
    int8::BLOCK,
};

use std::borrow::Cow;

use crate::run::Codec;

/// All of them, in the order of their format bytes.
pub const ALL: [Codec; 6] = [Codec::F32, Codec::Bf16, Codec::Int8, Codec::Int4, Codec::Sparse, Codec::Int16];

/// Bit of the format byte that says zstd.
const ZSTD: u8 = 0x10;

/// Level of zstd: higher ones win little on activations and cost several times the time.
const LEVEL: i32 = 1;

/// Values that are worked on at a time, 16 KiB of them: a multiple of every codec's block.
pub const PIECE: usize = 4096;

/// Why bytes are not the tensor that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTensor {
    #[error("the tensor is empty")]
    Empty,
    #[error("the tensor has format {0}, which this build does not know")]
    Format(u8),
    #[error("the run does not allow {0:?} here")]
    NotAllowed(Codec),
    #[error("the tensor has {got} bytes, {wanted} are expected")]
    Length { got: u64, wanted: u64 },
    #[error("the tensor's compression is damaged")]
    Compression,
    #[error("a block of the sparse tensor marks another number of values than it carries")]
    Bitmap,
    #[error("the tensor holds values that are not finite")]
    NotFinite,
    #[error("the tensor's values are absurdly large (root mean square above {RMS_MAX:.0e})")]
    Absurd,
}

/// Bytes of `values` numbers in `codec` without zstd, the format byte included; nothing where that is no number.
pub fn coded_len(values: u64, codec: Codec) -> Option<u64> {
    planes_len(values, codec)?.checked_add(1)
}

/// The most bytes that `values` numbers may take in any form that [`decode`] accepts.
pub fn coded_len_max(values: u64) -> u64 {
    let raw = values.saturating_mul(4);
    raw.saturating_add(raw / 128).saturating_add(80)
}

fn planes_len(values: u64, codec: Codec) -> Option<u64> {
    body_len(values, codec)?.checked_add(tail_len(values, codec, false))
}

/// Bytes before the scales.
fn body_len(values: u64, codec: Codec) -> Option<u64> {
    match codec {
        Codec::F32 => values.checked_mul(4),
        Codec::Bf16 | Codec::Int16 => values.checked_mul(2),
        Codec::Int8 => Some(values),
        Codec::Int4 => values.div_ceil(int4::BLOCK as u64).checked_mul(int4::BLOCK as u64 / 2),
        Codec::Sparse => values.div_ceil(sparse::BLOCK as u64).checked_mul(sparse::RECORD as u64),
    }
}

/// Bytes of the scales; of the upper halves of bf16, where they stand `apart`.
fn tail_len(values: u64, codec: Codec, apart: bool) -> u64 {
    match codec {
        Codec::F32 => 0,
        Codec::Bf16 => u64::from(apart) * values,
        Codec::Int8 | Codec::Int16 => 2 * values.div_ceil(BLOCK as u64),
        Codec::Int4 => 2 * values.div_ceil(int4::BLOCK as u64),
        Codec::Sparse => 2 * values.div_ceil(sparse::BLOCK as u64),
    }
}

/// The format byte of a codec: its place in [`ALL`].
pub fn tag(codec: Codec) -> u8 {
    match codec {
        Codec::F32 => 0,
        Codec::Bf16 => 1,
        Codec::Int8 => 2,
        Codec::Int4 => 3,
        Codec::Sparse => 4,
        Codec::Int16 => 5,
    }
}

/// How slow weights travel in a round whose differences travel in `codec`: exactly where these do, else with a part in 30,000 of
/// their size lost, a fiftieth of what bf16 would lose.
pub fn slow_weights(codec: Codec) -> Codec {
    if codec == Codec::F32 { Codec::F32 } else { Codec::Int16 }
}

/// The part of a tensor's size that a codec loses on values of a normal distribution (root mean square of the error over that
/// of the values). What it loses on the tensors of a run is measured: [`Gain`].
pub fn nominal_error(codec: Codec) -> f64 {
    match codec {
        Codec::F32 => 0.0,
        Codec::Bf16 => 0.0017,
        Codec::Int16 => 3.5e-5,
        Codec::Int8 => 0.006,
        Codec::Int4 => 0.086,
        Codec::Sparse => 0.71,
    }
}

/// Encodes finite values.
pub fn encode(values: &[f32], codec: Codec, zstd: bool) -> Vec<u8> {
    let mut out = Vec::new();
    // Whether they are finite is the caller's affair.
    let _ = append(values, codec, zstd, &mut out);
    out
}

/// Encodes values into a buffer, whose contents are replaced and whose memory is used again.
///
/// # Errors
/// [`BadTensor::NotFinite`] or [`BadTensor::Absurd`]: these are not to be sent.
pub fn encode_into(values: &[f32], codec: Codec, zstd: bool, out: &mut Vec<u8>) -> Result<(), BadTensor> {
    out.clear();
    append(values, codec, zstd, out)
}

/// Appends a coded tensor to what a buffer holds.
///
/// # Errors
/// As [`encode_into`].
pub fn append(values: &[f32], codec: Codec, zstd: bool, out: &mut Vec<u8>) -> Result<(), BadTensor> {
    let begin = out.len();
    out.push(tag(codec));
    let verdict = write_planes(values, codec, zstd, out);
    if zstd {
        // A tensor that zstd cannot make smaller travels as it is.
        if let Ok(packed) = zstd::bulk::compress(&out[begin + 1..], LEVEL)
            && begin + packed.len() + 1 < out.len()
        {
            out.truncate(begin + 1);
            out[begin] |= ZSTD;
            out.extend_from_slice(&packed);
        } else if codec == Codec::Bf16 {
            out.truncate(begin + 1);
            return write_planes(values, codec, false, out);
        }
    }
    verdict
}

/// Appends a coded tensor of `count` values, without zstd, that are made piece by piece while they are encoded: `make` fills the
/// values from the one whose number it is given.
///
/// # Errors
/// As [`encode_into`].
pub fn append_made(
    count: usize,
    codec: Codec,
    out: &mut Vec<u8>,
    mut make: impl FnMut(usize, &mut [f32]),
) -> Result<(), BadTensor> {
    out.push(tag(codec));
    let mut planes = Planes::new(count as u64, codec, false, out);
    let mut piece = [0.0; PIECE];
    for at in (0..count).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(count - at)];
        make(at, piece);
        planes.push(piece);
    }
    planes.end()
}

/// Appends the planes; those of bf16 `apart` byte by byte.
fn write_planes(values: &[f32], codec: Codec, apart: bool, out: &mut Vec<u8>) -> Result<(), BadTensor> {
    let mut planes = Planes::new(values.len() as u64, codec, apart, out);
    values.chunks(PIECE).for_each(|piece| planes.push(piece));
    planes.end()
}

/// The planes of a tensor that is encoded piece by piece.
struct Planes<'a> {
    codec: Codec,
    /// Those of bf16 stand byte by byte.
    apart: bool,
    out: &'a mut Vec<u8>,
    tail: Vec<u8>,
    gate: Gate,
}

impl<'a> Planes<'a> {
    fn new(values: u64, codec: Codec, apart: bool, out: &'a mut Vec<u8>) -> Self {
        out.reserve(planes_len(values, codec).unwrap_or(0) as usize);
        let tail = Vec::with_capacity(tail_len(values, codec, apart) as usize);
        Planes { codec, apart, out, tail, gate: Gate::default() }
    }

    /// All pieces but the last are [`PIECE`] long.
    fn push(&mut self, piece: &[f32]) {
        let n = piece.len() as u64;
        let ends = tail_len(n, self.codec, self.apart) as usize;
        let body = body_len(n, self.codec).unwrap_or(0) as usize - if self.codec == Codec::Bf16 { ends } else { 0 };
        let (bytes, ends) = (grown(self.out, body), grown(&mut self.tail, ends));
        match self.codec {
            Codec::F32 => {
                let words = bytes.as_chunks_mut::<4>().0;
                words.iter_mut().zip(piece).for_each(|(word, v)| *word = v.to_le_bytes());
            }
            Codec::Bf16 if self.apart => bf16::encode_apart(piece, bytes, ends),
            Codec::Bf16 => bf16::encode(piece, bytes),
            Codec::Int16 => int16::encode(piece, bytes, ends),
            Codec::Int8 => int8::encode(piece, bytes, ends),
            Codec::Int4 => int4::encode(piece, bytes, ends),
            Codec::Sparse => sparse::encode(piece, bytes, ends),
        }
        // Where all scales are small, so is every value. A piece that is left out makes the verdict on the others no milder.
        if !(tells_size(self.codec) && gate::are_small(ends)) {
            self.gate.add(piece);
        }
    }

    fn end(self) -> Result<(), BadTensor> {
        self.out.extend_from_slice(&self.tail);
        self.gate.verdict()
    }
}

/// `more` bytes at the end of a buffer, to be written. Zeros first are no waste: a fill takes memory into the cache without
/// reading it, which plain stores do not.
fn grown(buffer: &mut Vec<u8>, more: usize) -> &mut [u8] {
    let at = buffer.len();
    buffer.resize(at + more, 0);
    &mut buffer[at..]
}

/// Whether scales bound every value, as [`gate::are_small`] reads them.
fn tells_size(codec: Codec) -> bool {
    matches!(codec, Codec::Int8 | Codec::Int4 | Codec::Sparse)
}

/// What a coded tensor says it is, without reading it.
///
/// # Errors
/// Nothing there, or a format that this build does not know.
pub fn codec_of(bytes: &[u8]) -> Result<(Codec, bool), BadTensor> {
    let format = *bytes.first().ok_or(BadTensor::Empty)?;
    let codec = match format & !ZSTD {
        0 => Codec::F32,
        1 => Codec::Bf16,
        2 => Codec::Int8,
        3 => Codec::Int4,
        4 => Codec::Sparse,
        5 => Codec::Int16,
        _ => return Err(BadTensor::Format(format)),
    };
    Ok((codec, format & ZSTD != 0))
}

/// Decodes exactly `values` numbers that were coded with one of `allowed` (f32 always is), and that pass the gate.
///
/// # Errors
/// Anything but that. At most `values` numbers and their planes are allocated, whatever the bytes say.
pub fn decode(bytes: &[u8], values: usize, allowed: &[Codec]) -> Result<Vec<f32>, BadTensor> {
    Coded::open(bytes, values, allowed)?.decode()
}

/// Decodes exactly `out.len()` numbers, as [`decode`] does, into memory of the caller.
///
/// # Errors
/// As [`decode`]; what is then in `out` means nothing.
pub fn decode_into(bytes: &[u8], out: &mut [f32], allowed: &[Codec]) -> Result<(), BadTensor> {
    Coded::open(bytes, out.len(), allowed)?.read(out)
}

/// A coded tensor whose planes are as long as they must be.
#[derive(Clone, Debug)]
pub struct Coded<'a> {
    codec: Codec,
    /// The planes of bf16 stand byte by byte.
    apart: bool,
    values: u64,
    planes: Cow<'a, [u8]>,
}

impl<'a> Coded<'a> {
    /// A tensor of exactly `values` numbers, coded with one of `allowed` (f32 always is).
    ///
    /// # Errors
    /// Anything but that. No more is allocated than the planes take, whatever the bytes say.
    pub fn open(bytes: &'a [u8], values: usize, allowed: &[Codec]) -> Result<Self, BadTensor> {
        let (codec, packed) = codec_of(bytes)?;
        if codec != Codec::F32 && !allowed.contains(&codec) {
            return Err(BadTensor::NotAllowed(codec));
        }
        let values = values as u64;
        let wanted =
            planes_len(values, codec).ok_or(BadTensor::Length { got: bytes.len() as u64, wanted: u64::MAX })?;
        let body = &bytes[1..];
        let most = if packed { coded_len_max(values) } else { wanted };
        if body.len() as u64 > most {
            return Err(BadTensor::Length { got: body.len() as u64, wanted });
        }
        let planes: Cow<'a, [u8]> = if packed { unpack(body, wanted)?.into() } else { body.into() };
        match planes.len() as u64 == wanted {
            true => Ok(Coded { codec, apart: packed && codec == Codec::Bf16, values, planes }),
            false => Err(BadTensor::Length { got: planes.len() as u64, wanted }),
        }
    }

    /// Decodes the values from number `at`, a multiple of [`PIECE`], as many as `out` holds: `PIECE` at most, and none beyond the
    /// tensor's end. Whether they pass the [`Gate`] is the caller's affair.
    ///
    /// # Errors
    /// [`BadTensor::Bitmap`]; what is then in `out` means nothing.
    pub fn piece(&self, at: usize, out: &mut [f32]) -> Result<(), BadTensor> {
        let (body, ends) = self.split();
        let (begin, end) = (at as u64, (at + out.len()) as u64);
        let tail = |values| tail_len(values, self.codec, self.apart) as usize;
        let head =
            |values| body_len(values, self.codec).unwrap_or(0) as usize - if self.apart { tail(values) } else { 0 };
        let (bytes, ends) = (&body[head(begin)..head(end)], &ends[tail(begin)..tail(end)]);
        match self.codec {
            Codec::F32 => {
                let words = bytes.as_chunks::<4>().0;
                out.iter_mut().zip(words).for_each(|(v, word)| *v = f32::from_le_bytes(*word));
            }
            Codec::Bf16 if self.apart => bf16::decode_apart(bytes, ends, out),
            Codec::Bf16 => bf16::decode(bytes, out),
            Codec::Int16 => int16::decode(bytes, ends, out),
            Codec::Int8 => int8::decode(bytes, ends, out),
            Codec::Int4 => int4::decode(bytes, ends, out),
            Codec::Sparse if !sparse::decode(bytes, ends, out) => return Err(BadTensor::Bitmap),
            Codec::Sparse => {}
        }
        Ok(())
    }

    /// The planes before the scales (of bf16 apart: the lower bytes), and the rest.
    fn split(&self) -> (&[u8], &[u8]) {
        self.planes.split_at(self.planes.len() - tail_len(self.values, self.codec, self.apart) as usize)
    }

    /// All of its values.
    ///
    /// # Errors
    /// They do not pass the [`Gate`], or [`BadTensor::Bitmap`].
    pub fn decode(&self) -> Result<Vec<f32>, BadTensor> {
        // As many as there are planes for: `open` has compared both.
        let mut out = vec![0.0; self.values as usize];
        self.read(&mut out)?;
        Ok(out)
    }

    /// All of its values, gated.
    fn read(&self, out: &mut [f32]) -> Result<(), BadTensor> {
        // Where all scales are small, so is every value: there is nothing to sum up.
        let small = tells_size(self.codec) && gate::are_small(self.split().1);
        let mut gate = Gate::default();
        for (number, piece) in out.chunks_mut(PIECE).enumerate() {
            self.piece(number * PIECE, piece)?;
            if !small {
                gate.add(piece);
            }
        }
        gate.verdict()
    }
}

/// One zstd frame into exactly `wanted` bytes. The frame's own claim is compared first: a frame that claims more never
/// allocates.
fn unpack(body: &[u8], wanted: u64) -> Result<Vec<u8>, BadTensor> {
    let claimed = zstd::zstd_safe::get_frame_content_size(body).map_err(|_| BadTensor::Compression)?;
    if claimed != Some(wanted) {
        return Err(BadTensor::Length { got: claimed.unwrap_or(0), wanted });
    }
    let wanted = usize::try_from(wanted).map_err(|_| BadTensor::Compression)?;
    let mut out = Vec::with_capacity(wanted);
    zstd::bulk::Decompressor::new()
        .and_then(|mut z| z.decompress_to_buffer(body, &mut out))
        .map_err(|_| BadTensor::Compression)?;
    Ok(out)
}

/// [`Gate`] over a whole tensor.
///
/// # Errors
/// [`BadTensor::NotFinite`] or [`BadTensor::Absurd`].
pub fn gate(values: &[f32]) -> Result<(), BadTensor> {
    let mut gate = Gate::default();
    values.chunks(PIECE).for_each(|piece| gate.add(piece));
    gate.verdict()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * (1.0 + (i / 64) as f32)).collect()
    }

    /// Values of a normal distribution.
    pub fn normal(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut one = || {
            let (radius, angle) = (1.0 - rng.random::<f64>(), rng.random::<f64>() * std::f64::consts::TAU);
            ((-2.0 * radius.ln()).sqrt() * angle.cos()) as f32
        };
        (0..n).map(|_| one()).collect()
    }

    /// Finite values of every size, some of them zero, in runs of like sizes.
    pub fn any_finite(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut exponent = 0;
        let mut one = |i: usize| {
            if i.is_multiple_of(50) {
                exponent = rng.random_range(0..=254u32) << 23;
            }
            let bits = rng.random::<u32>() & 0x807f_ffff | exponent.saturating_sub(rng.random_range(0..4) << 23);
            if rng.random_range(0..9) == 0 { 0.0 } else { f32::from_bits(bits) }
        };
        (0..n).map(&mut one).collect()
    }

    /// Relative root mean square of the error.
    pub fn error(values: &[f32], back: &[f32]) -> f64 {
        let square = |v: f32| f64::from(v) * f64::from(v);
        let lost: f64 = values.iter().zip(back).map(|(a, b)| square(a - b)).sum();
        (lost / values.iter().map(|v| square(*v)).sum::<f64>()).sqrt()
    }

    #[test]
    fn every_codec_comes_back_within_its_error() {
        for n in [1, 31, 63, 64, 65, 1000, 4096, 9000] {
            let values = wave(n);
            for codec in [Codec::F32, Codec::Bf16, Codec::Int8, Codec::Int4] {
                for zstd in [false, true] {
                    let bytes = encode(&values, codec, zstd);
                    let back = decode(&bytes, n, &ALL).unwrap();
                    let block = if codec == Codec::Int4 { int4::BLOCK } else { BLOCK };
                    for (at, (a, b)) in values.chunks(block).zip(back.chunks(block)).enumerate() {
                        let max = a.iter().fold(0f32, |m, v| m.max(v.abs()));
                        for (a, b) in a.iter().zip(b) {
                            let bound = match codec {
                                Codec::F32 => 0.0,
                                Codec::Bf16 => a.abs() / 256.0,
                                Codec::Int8 => max / 254.0 * 1.002,
                                _ => max / 8.0 * 1.02,
                            };
                            assert!((a - b).abs() <= bound, "{codec:?} zstd {zstd} block {at}: {a} became {b}");
                        }
                    }
                }
            }
            for codec in ALL {
                let plain = encode(&values, codec, false);
                assert_eq!(Some(plain.len() as u64), coded_len(n as u64, codec));
                assert!(plain.len() as u64 <= coded_len_max(n as u64), "{n} values in {codec:?}");
            }
        }
    }

    #[test]
    fn on_normal_values_the_error_and_the_bytes_are_those_that_are_stated() {
        let values = normal(5, 1 << 16);
        for (codec, most, share) in [
            (Codec::Bf16, 0.0018, 0.5),
            (Codec::Int8, 0.0065, 0.258),
            (Codec::Int4, 0.09, 0.141),
            (Codec::Sparse, 0.72, 0.065),
        ] {
            let bytes = encode(&values, codec, false);
            let error = error(&values, &decode(&bytes, values.len(), &ALL).unwrap());
            assert!(error < most, "{codec:?} {error}");
            assert!((error / nominal_error(codec) - 1.0).abs() < 0.1, "{codec:?} {error}");
            assert!((bytes.len() as f64) < share * 4.0 * values.len() as f64 + 2.0, "{codec:?} {}", bytes.len());
        }
    }

    #[test]
    fn what_is_decoded_encodes_to_the_same_bytes() {
        for values in [wave(300), normal(1, 5000), any_finite(2, 3000)] {
            for codec in [Codec::F32, Codec::Bf16, Codec::Int16, Codec::Int8, Codec::Int4] {
                let once = encode(&values, codec, false);
                let mut back = vec![0.0; values.len()];
                // The sizes of some are absurd; the bytes are still read.
                let _ = decode_into(&once, &mut back, &ALL);
                assert_eq!(once, encode(&back, codec, false), "{codec:?}");
            }
        }
    }

    #[test]
    fn the_bytes_of_a_tensor_are_part_of_the_protocol() {
        let values = any_finite(11, 10_000);
        let hashes = ALL.map(|codec| blake3::hash(&encode(&values, codec, false)).to_hex()[..16].to_string());
        assert_eq!(
            hashes,
            [
                "79642d4ef46967c3",
                "d3bdd4d1a6949c1b",
                "80ad6bbe3fb23ab6",
                "59f29cb00662eae1",
                "c2dbc15906b90187",
                "529d45400f1fe2d7"
            ]
        );
    }

    #[test]
    fn zstd_makes_repeating_tensors_smaller_and_never_larger() {
        let (dull, noisy) = (vec![1.5f32; 4096], wave(4096));
        for codec in ALL {
            assert!(encode(&dull, codec, true).len() < 200, "{codec:?}");
            assert!(encode(&noisy, codec, true).len() <= encode(&noisy, codec, false).len());
        }
    }

    #[test]
    fn a_buffer_is_used_again_and_what_is_not_finite_is_not_encoded() {
        let mut out = vec![7; 100_000];
        let (at, capacity) = (out.as_ptr(), out.capacity());
        for codec in ALL {
            encode_into(&wave(5000), codec, false, &mut out).unwrap();
            assert_eq!(out, encode(&wave(5000), codec, false));
            assert_eq!((out.as_ptr(), out.capacity()), (at, capacity));
            for bits in [f32::NAN.to_bits(), 0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, f32::INFINITY.to_bits()] {
                for at in [1, 299, 4999] {
                    let mut values = wave(5000);
                    values[at] = f32::from_bits(bits);
                    assert_eq!(
                        encode_into(&values, codec, false, &mut out),
                        Err(BadTensor::NotFinite),
                        "{codec:?} {bits:x} {at}"
                    );
                }
            }
            assert_eq!(encode_into(&[1e6; 9], codec, false, &mut out), Err(BadTensor::Absurd));
        }
    }

    #[test]
    fn another_length_or_codec_is_refused() {
        for codec in ALL {
            let bytes = encode(&wave(512), codec, false);
            for other in [0, 255, 513, 768, 1 << 40] {
                // A last block that is not full is filled up, so that some lengths look alike.
                if coded_len(other as u64, codec) != coded_len(512, codec) {
                    assert!(matches!(decode(&bytes, other, &ALL), Err(BadTensor::Length { .. })), "{codec:?} {other}");
                }
            }
        }
        let bytes = encode(&wave(128), Codec::Int8, false);
        assert_eq!(decode(&bytes, 128, &[Codec::Bf16]), Err(BadTensor::NotAllowed(Codec::Int8)));
        assert!(matches!(decode(&bytes, usize::MAX, &ALL), Err(BadTensor::Length { .. })));
        assert_eq!(decode(&[], 0, &ALL), Err(BadTensor::Empty));
        assert_eq!(decode(&[9, 1, 2], 1, &ALL), Err(BadTensor::Format(9)));
        assert!(decode(&encode(&wave(8), Codec::F32, false), 8, &[]).is_ok(), "f32 is always allowed");
    }

    #[test]
    fn a_bomb_is_refused_by_its_claim() {
        let mut bomb = vec![ZSTD];
        bomb.extend(zstd::bulk::compress(&vec![0u8; 1 << 20], 1).unwrap());
        assert!(matches!(decode(&bomb, 16, &ALL), Err(BadTensor::Length { got: 1_048_576, wanted: 64 })));
    }

    #[test]
    fn what_no_training_makes_does_not_pass() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = wave(100);
            values[77] = bad;
            assert_eq!(gate(&values), Err(BadTensor::NotFinite));
            assert_eq!(decode(&encode(&values, Codec::F32, false), 100, &[]), Err(BadTensor::NotFinite));
        }
        let mut huge = encode(&wave(64), Codec::Int8, false);
        huge[65..].copy_from_slice(&0x7f80u16.to_le_bytes());
        assert_eq!(decode(&huge, 64, &ALL), Err(BadTensor::NotFinite), "a scale is a number too");
        assert_eq!(gate(&[1e30; 20]), Err(BadTensor::Absurd));
        assert_eq!((gate(&[]), gate(&wave(1000))), (Ok(()), Ok(())));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600), n in 0usize..300) {
            if let Ok(values) = decode(&bytes, n, &ALL) {
                prop_assert_eq!(values.len(), n);
                prop_assert_eq!(gate(&values), Ok(()));
            }
        }

        #[test]
        fn bytes_of_the_right_length_decode_or_are_refused(seed in any::<u64>(), n in 0usize..900, codec in 0usize..ALL.len()) {
            let mut bytes = vec![0; coded_len(n as u64, ALL[codec]).unwrap() as usize];
            ChaCha8Rng::seed_from_u64(seed).fill(&mut bytes[..]);
            bytes[0] = codec as u8;
            if let Ok(values) = decode(&bytes, n, &ALL) {
                prop_assert_eq!(gate(&values), Ok(()));
            }
        }

        #[test]
        fn values_of_any_size_come_back_near(seed in any::<u64>(), n in 1usize..9000, codec in 0usize..ALL.len(), zstd in any::<bool>()) {
            let values: Vec<f32> = any_finite(seed, n).into_iter().map(|v| v % 1e4).collect();
            let back = decode(&encode(&values, ALL[codec], zstd), n, &ALL).unwrap();
            for (a, b) in values.iter().zip(&back) {
                prop_assert!(b.abs() <= 1.01e4 && (a.abs() < 1e-30 || *b == 0.0 || a.is_sign_negative() == b.is_sign_negative()));
            }
        }

        #[test]
        fn a_flipped_bit_never_panics(n in 1usize..300, at in any::<prop::sample::Index>(), bit in 0u8..8, codec in 0usize..ALL.len()) {
            let mut bytes = encode(&wave(n), ALL[codec], true);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let _ = decode(&bytes, n, &ALL);
        }
    }
}
