//! Blocks: neighbouring values that share a scale, and what codecs do with them. In: values, or bytes and scales, and a codec's
//! view of one block. Out: the others, the last block filled up with zeros. It knows no format.
//!
//! Views are traits, not closures, so that each is compiled for the instruction set of the kernel that it is used in.

/// The most blocks that are encoded together: the divisions of as many are one of the widest registers.
const GROUP: usize = 16;

/// How a codec encodes blocks of `VALUES` values, each in `BYTES` bytes and a scale (bf16, little-endian).
pub trait EncodeBlocks<const VALUES: usize, const BYTES: usize> {
    /// At most [`GROUP`] of them.
    fn encode(blocks: &[[f32; VALUES]], bytes: &mut [[u8; BYTES]], scales: &mut [[u8; 2]]);
}

/// A codec whose scales follow from the largest value alone. Those of a group are computed as one loop: one by one, two divisions
/// that wait for each other would take as long as all else.
pub trait EncodeScaled<const VALUES: usize, const BYTES: usize> {
    /// What the scale follows from.
    fn largest(values: &[f32; VALUES]) -> u32;

    /// The scale, and what values are multiplied by.
    fn scale(largest: u32) -> (u16, f32);

    fn encode(values: &[f32; VALUES], inverse: f32, bytes: &mut [u8; BYTES]);
}

impl<B: EncodeScaled<VALUES, BYTES>, const VALUES: usize, const BYTES: usize> EncodeBlocks<VALUES, BYTES> for B {
    #[inline(always)]
    fn encode(blocks: &[[f32; VALUES]], bytes: &mut [[u8; BYTES]], scales: &mut [[u8; 2]]) {
        let mut largest = [0; GROUP];
        for (largest, block) in largest.iter_mut().zip(blocks) {
            *largest = B::largest(block);
        }
        let (mut bits, mut inverses) = ([0; GROUP], [0.0; GROUP]);
        for ((bits, inverse), largest) in bits.iter_mut().zip(&mut inverses).zip(largest) {
            (*bits, *inverse) = B::scale(largest);
        }
        for (scale, bits) in scales.iter_mut().zip(bits) {
            *scale = bits.to_le_bytes();
        }
        for ((block, bytes), inverse) in blocks.iter().zip(bytes).zip(inverses) {
            B::encode(block, inverse, bytes);
        }
    }
}

/// How a codec decodes what [`EncodeBlocks`] makes.
pub trait DecodeBlock<const VALUES: usize, const BYTES: usize> {
    fn decode(bytes: &[u8; BYTES], scale: f32, values: &mut [f32; VALUES]);
}

/// Of the last block as many bytes are kept as there is room for.
#[inline(always)]
pub fn encode<B: EncodeBlocks<VALUES, BYTES>, const VALUES: usize, const BYTES: usize>(
    values: &[f32],
    bytes: &mut [u8],
    scales: &mut [u8],
) {
    let (blocks, rest) = values.as_chunks::<VALUES>();
    let (whole, last) = bytes.split_at_mut(blocks.len() * BYTES);
    let (scales, last_scale) = scales.as_chunks_mut::<2>().0.split_at_mut(blocks.len());
    let groups = whole.as_chunks_mut::<BYTES>().0.chunks_mut(GROUP).zip(scales.chunks_mut(GROUP));
    for (blocks, (bytes, scales)) in blocks.chunks(GROUP).zip(groups) {
        B::encode(blocks, bytes, scales);
    }
    if !rest.is_empty() {
        let (mut block, mut bytes) = ([[0.0; VALUES]], [[0; BYTES]]);
        block[0][..rest.len()].copy_from_slice(rest);
        B::encode(&block, &mut bytes, last_scale);
        last.copy_from_slice(&bytes[0][..last.len()]);
    }
}

/// As many values as there is room for.
#[inline(always)]
pub fn decode<B: DecodeBlock<VALUES, BYTES>, const VALUES: usize, const BYTES: usize>(
    bytes: &[u8],
    scales: &[u8],
    values: &mut [f32],
) {
    let (blocks, rest) = values.as_chunks_mut::<VALUES>();
    let scales = scales.as_chunks::<2>().0;
    let value = |scale: &[u8; 2]| super::bf16::value(u16::from_le_bytes(*scale));
    let (whole, last) = bytes.split_at(blocks.len() * BYTES);
    for ((block, bytes), scale) in blocks.iter_mut().zip(whole.as_chunks::<BYTES>().0).zip(scales) {
        B::decode(bytes, value(scale), block);
    }
    if let (false, Some(scale)) = (rest.is_empty(), scales.last()) {
        let (mut block, mut filled) = ([0.0; VALUES], [0; BYTES]);
        filled[..last.len()].copy_from_slice(last);
        B::decode(&filled, value(scale), &mut block);
        rest.copy_from_slice(&block[..rest.len()]);
    }
}
