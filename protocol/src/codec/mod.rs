//! Codecs: how a tensor travels. In: f32 values, a codec, whether to try zstd ([`Gain`] says where). Out: bytes that say what they
//! are, and back, with every length checked before anything is allocated.
//!
//! A coded tensor is one format byte and its planes, the planes compressed as one zstd frame where the byte says so:
//!
//! | codec | byte | planes, for `n` values |
//! |---|---|---|
//! | f32 | 0 | `4 n` bytes, little-endian |
//! | bf16 | 1 | `2 n` bytes: with zstd all low bytes, then all high bytes (signs and exponents repeat); else little-endian |
//! | int8 | 2 | `ceil(n / 64)` scales (f32), then `n` bytes: a value is its scale times its byte |
//!
//! Bit 4 (16) set: zstd. The number of values is never in the bytes: the receiver knows it from the manifest and the lane.

mod bf16;
mod gain;
mod int8;

pub use self::{gain::Gain, int8::BLOCK};

use crate::run::Codec;

/// Bit of the format byte that says zstd.
const ZSTD: u8 = 0x10;

/// Level of zstd: higher ones win little on activations and cost several times the time.
const LEVEL: i32 = 1;

/// An activation or gradient whose root mean square is above this is absurd: no training makes it.
pub const RMS_MAX: f64 = 1e5;

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
    #[error("the tensor holds values that are not finite")]
    NotFinite,
    #[error("the tensor's values are absurdly large (root mean square above {RMS_MAX:.0e})")]
    Absurd,
}

/// Bytes of `values` numbers in `codec` without zstd, the format byte included; nothing for a codec this build lacks.
pub fn coded_len(values: u64, codec: Codec) -> Option<u64> {
    planes_len(values, codec)?.checked_add(1)
}

/// The most bytes that `values` numbers may take in any form that [`decode`] accepts.
pub fn coded_len_max(values: u64) -> u64 {
    let raw = values.saturating_mul(4);
    raw.saturating_add(raw / 128).saturating_add(64)
}

fn planes_len(values: u64, codec: Codec) -> Option<u64> {
    match codec {
        Codec::F32 => values.checked_mul(4),
        Codec::Bf16 => values.checked_mul(2),
        Codec::Int8 => values.div_ceil(BLOCK as u64).checked_mul(4)?.checked_add(values),
        Codec::Int4 | Codec::Sparse => None,
    }
}

fn tag(codec: Codec) -> u8 {
    match codec {
        Codec::F32 => 0,
        Codec::Bf16 => 1,
        Codec::Int8 => 2,
        Codec::Int4 => 3,
        Codec::Sparse => 4,
    }
}

/// Encodes finite values. A codec that this build lacks falls back to f32, which every peer reads.
pub fn encode(values: &[f32], codec: Codec, zstd: bool) -> Vec<u8> {
    let codec = if coded_len(0, codec).is_some() { codec } else { Codec::F32 };
    let wanted = coded_len(values.len() as u64, codec).unwrap_or(0) as usize;
    let mut out = Vec::with_capacity(wanted);
    out.push(tag(codec));
    match codec {
        Codec::Bf16 => bf16::encode(values, zstd, &mut out),
        Codec::Int8 => int8::encode(values, &mut out),
        _ => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
    }
    if zstd {
        // A tensor that zstd cannot make smaller travels as it is.
        if let Ok(packed) = zstd::bulk::compress(&out[1..], LEVEL)
            && packed.len() + 1 < out.len()
        {
            out.truncate(1);
            out[0] |= ZSTD;
            out.extend_from_slice(&packed);
        } else if codec == Codec::Bf16 {
            out.truncate(1);
            bf16::encode(values, false, &mut out);
        }
    }
    out
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
        _ => return Err(BadTensor::Format(format)),
    };
    Ok((codec, format & ZSTD != 0))
}

/// Decodes exactly `values` numbers that were coded with one of `allowed`; f32 is always allowed.
///
/// # Errors
/// Anything but that. At most `values` numbers and their planes are allocated, whatever the bytes say.
pub fn decode(bytes: &[u8], values: usize, allowed: &[Codec]) -> Result<Vec<f32>, BadTensor> {
    let (codec, packed) = codec_of(bytes)?;
    if codec != Codec::F32 && !allowed.contains(&codec) {
        return Err(BadTensor::NotAllowed(codec));
    }
    let wanted = planes_len(values as u64, codec).ok_or(BadTensor::Format(bytes[0]))?;
    let body = &bytes[1..];
    let length = |got: usize| match got as u64 == wanted {
        true => Ok(()),
        false => Err(BadTensor::Length { got: got as u64, wanted }),
    };
    let unpacked;
    let planes = if packed {
        if body.len() as u64 > coded_len_max(values as u64) {
            return Err(BadTensor::Length { got: body.len() as u64, wanted });
        }
        unpacked = unpack(body, wanted)?;
        &unpacked[..]
    } else {
        body
    };
    length(planes.len())?;
    Ok(match codec {
        Codec::Bf16 => bf16::decode(planes, packed),
        Codec::Int8 => int8::decode(planes, values),
        _ => planes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
    })
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

/// The gate before a stranger's numbers are used: all finite, and of a size that training knows.
///
/// # Errors
/// [`BadTensor::NotFinite`] or [`BadTensor::Absurd`].
pub fn gate(values: &[f32]) -> Result<(), BadTensor> {
    // Squares of f32 fit f64, and lanes of eight keep the sum fast; a value that is not finite makes the sum so.
    let mut lanes = [0.0f64; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*v) * f64::from(*v);
        }
    }
    let sum = lanes.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
    if !sum.is_finite() {
        return Err(BadTensor::NotFinite);
    }
    match values.is_empty() || (sum / values.len() as f64).sqrt() <= RMS_MAX {
        true => Ok(()),
        false => Err(BadTensor::Absurd),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Codec; 3] = [Codec::F32, Codec::Bf16, Codec::Int8];

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * (1.0 + (i / 64) as f32)).collect()
    }

    #[test]
    fn every_codec_comes_back_within_its_error() {
        for n in [1, 63, 64, 65, 1000, 4096] {
            let values = wave(n);
            for codec in ALL {
                for zstd in [false, true] {
                    let bytes = encode(&values, codec, zstd);
                    let back = decode(&bytes, n, &ALL).unwrap();
                    for (block, (a, b)) in values.chunks(BLOCK).zip(back.chunks(BLOCK)).enumerate() {
                        let max = a.iter().fold(0f32, |m, v| m.max(v.abs()));
                        for (a, b) in a.iter().zip(b) {
                            let bound = match codec {
                                Codec::F32 => 0.0,
                                Codec::Bf16 => a.abs() / 256.0,
                                _ => max / 254.0 * 1.0001,
                            };
                            assert!((a - b).abs() <= bound, "{codec:?} zstd {zstd} block {block}: {a} became {b}");
                        }
                    }
                }
                let plain = encode(&values, codec, false);
                assert_eq!(Some(plain.len() as u64), coded_len(n as u64, codec));
            }
        }
    }

    #[test]
    fn what_is_decoded_encodes_to_the_same_bytes() {
        let values = wave(300);
        for codec in ALL {
            let once = encode(&values, codec, false);
            let twice = encode(&decode(&once, 300, &ALL).unwrap(), codec, false);
            assert_eq!(once, twice, "{codec:?}");
        }
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
    fn another_length_or_codec_is_refused() {
        let bytes = encode(&wave(128), Codec::Int8, false);
        assert!(matches!(decode(&bytes, 127, &ALL), Err(BadTensor::Length { .. })));
        assert!(matches!(decode(&bytes, 1 << 40, &ALL), Err(BadTensor::Length { .. })));
        assert_eq!(decode(&bytes, 128, &[Codec::Bf16]), Err(BadTensor::NotAllowed(Codec::Int8)));
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
    fn the_gate_stops_what_no_training_makes() {
        assert_eq!(gate(&[]), Ok(()));
        assert_eq!(gate(&wave(1000)), Ok(()));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = wave(100);
            values[77] = bad;
            assert_eq!(gate(&values), Err(BadTensor::NotFinite));
        }
        assert_eq!(gate(&[1e30; 20]), Err(BadTensor::Absurd));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600), n in 0usize..300) {
            if let Ok(values) = decode(&bytes, n, &ALL) {
                prop_assert_eq!(values.len(), n);
            }
        }

        #[test]
        fn a_flipped_bit_never_panics(n in 1usize..300, at in any::<prop::sample::Index>(), bit in 0u8..8, codec in 0usize..3) {
            let mut bytes = encode(&wave(n), ALL[codec], true);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let _ = decode(&bytes, n, &ALL).map(|values| gate(&values));
        }
    }
}
