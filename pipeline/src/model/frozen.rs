//! The weights of a stage that stay as they are, beside adapters, as bytes: what a manifest names by their hash, peers give to each
//! other and disks keep. In: the flat buffer of [`StageModel::frozen`](super::StageModel::frozen). Out: bytes in the smallest
//! precision that holds every value as it is, and back.
//!
//! Sixteen bytes of a head (magic, a byte for the precision, nothing), then the values in canonical order, little endian.

use skein_protocol::{
    codec,
    hash::{self, Digest},
};

const MAGIC: &[u8; 8] = b"skein-fr";
const HEAD: usize = 16;

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
    F16,
}

impl Precision {
    const ALL: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::F16];

    /// The smallest that loses nothing of these values.
    pub fn of(values: &[f32]) -> Self {
        let is_bf16 = |v: &f32| v.to_bits() & 0xffff == 0;
        let is_f16 = |v: &f32| half::f16::from_f32(*v).to_f32().to_bits() == v.to_bits();
        match values {
            _ if values.iter().all(is_bf16) => Precision::Bf16,
            _ if values.iter().all(is_f16) => Precision::F16,
            _ => Precision::F32,
        }
    }

    pub fn width(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 | Precision::F16 => 2,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrozen {
    #[error("they do not begin as the frozen weights of a stage do")]
    Head,
    #[error("there are {got} bytes of them, {wanted} are expected")]
    Length { got: u64, wanted: u64 },
    #[error("their bytes do not give the hash that the run was signed with")]
    Hash,
    #[error("{0}")]
    Values(String),
}

/// Most bytes that so many values take.
pub fn bytes_max(values: u64) -> u64 {
    values.saturating_mul(4).saturating_add(HEAD as u64)
}

pub fn encode(values: &[f32]) -> Vec<u8> {
    let precision = Precision::of(values);
    let mut out = Vec::with_capacity(HEAD + precision.width() * values.len());
    out.extend_from_slice(MAGIC);
    out.push(precision as u8);
    out.resize(HEAD, 0);
    match precision {
        Precision::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Precision::Bf16 => out.extend(values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes())),
        Precision::F16 => out.extend(values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes())),
    }
    out
}

/// The `values` that lie in `pieces`, in order.
///
/// # Errors
/// Another hash, another length, a head that this build does not know, values that no model has. Nothing is allocated before
/// lengths and hash were compared.
pub fn decode(pieces: &[&[u8]], values: usize, hash: Digest) -> Result<Vec<f32>, BadFrozen> {
    let got = pieces.iter().map(|piece| piece.len() as u64).sum();
    let first = pieces.first().copied().unwrap_or_default();
    let head = first.get(..HEAD).filter(|head| head[..MAGIC.len()] == *MAGIC).ok_or(BadFrozen::Head)?;
    let precision = Precision::ALL.into_iter().find(|p| *p as u8 == head[MAGIC.len()]).ok_or(BadFrozen::Head)?;
    let width = precision.width();
    let wanted = (values as u64).saturating_mul(width as u64).saturating_add(HEAD as u64);
    // A value never lies in two pieces: chunks of the network are longer than one by far.
    if got != wanted || pieces.iter().any(|piece| piece.len() % width != 0) {
        return Err(BadFrozen::Length { got, wanted });
    }
    if hash::blob(pieces) != hash {
        return Err(BadFrozen::Hash);
    }
    let mut out = Vec::with_capacity(values);
    for (i, piece) in pieces.iter().enumerate() {
        let data = if i == 0 { &piece[HEAD..] } else { piece };
        match precision {
            Precision::F32 => out.extend(data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
            Precision::Bf16 => out.extend(
                data.as_chunks().0.iter().map(|bytes| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16)),
            ),
            Precision::F16 => {
                out.extend(data.as_chunks().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()));
            }
        }
    }
    codec::gate(&out).map_err(|error| BadFrozen::Values(error.to_string()))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(values: &[f32]) -> (Precision, usize) {
        let bytes = encode(values);
        let hash = hash::blob(&[&bytes]);
        for cut in [HEAD, HEAD + 8, bytes.len() / 4 * 4] {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(decode(&[a, b], values.len(), hash).unwrap(), values);
        }
        (Precision::of(values), bytes.len() - HEAD)
    }

    #[test]
    fn values_come_back_bit_for_bit_in_as_few_bytes_as_hold_them() {
        let bf16: Vec<f32> = (0..400).map(|i| f32::from_bits(0x3c00_0000 + (i << 16))).collect();
        let f16: Vec<f32> = (1..400).map(|i| half::f16::from_f32(i as f32 * 0.001).to_f32()).chain([-0.0]).collect();
        let f32: Vec<f32> = (0..400).map(|i| 1.0 / (i as f32 + 3.0)).collect();
        assert_eq!(back(&bf16), (Precision::Bf16, 800));
        assert_eq!(back(&f16), (Precision::F16, 800));
        assert_eq!(back(&f32), (Precision::F32, 1600));
    }

    #[test]
    fn other_bytes_than_were_signed_are_refused() {
        let values = [0.5, 0.1, 0.25];
        let bytes = encode(&values);
        let hash = hash::blob(&[&bytes]);
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 1 << (i % 8);
            assert!(decode(&[&bad], 3, hash).is_err(), "byte {i}");
            assert!(decode(&[&bytes[..i]], 3, hash).is_err(), "cut at {i}");
        }
        assert_eq!(decode(&[&bytes], 4, hash), Err(BadFrozen::Length { got: 28, wanted: 32 }));
        assert_eq!(decode(&[], 0, hash), Err(BadFrozen::Head));
        let infinite = encode(&[f32::INFINITY; 3]);
        assert!(matches!(decode(&[&infinite], 3, hash::blob(&[&infinite])), Err(BadFrozen::Values(_))));
    }
}
