//! sparse: of 256 neighbouring values the 32 of largest magnitude, as int8 of one scale; the others are zero.
//!
//! Magnitudes are compared as their upper 15 bits are (sign off), so that 32 of them fit a register; of equal ones the first are
//! kept. Which are kept is a bitmap: at one of eight it takes what a byte of index each would take, cannot name a value twice
//! and needs no order. A block is 32 bytes of bitmap (bit `i` of byte `j` is value `8 j + i`) and 32 bytes of values in order.

use multiversion::multiversion;

#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{
    bf16,
    blocks::{self, EncodeBlocks},
    int8::{ROUND, scale_127},
};

/// Values of a block, how many of them travel, and the bytes of those without their scale.
pub const BLOCK: usize = 256;
pub const KEPT: usize = 32;
pub const RECORD: usize = BLOCK / 8 + KEPT;

/// Records of `values`, the last block filled up with zeros, and the scales of the blocks (two bytes each).
pub fn encode(values: &[f32], records: &mut [u8], scales: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if x86::encode_sparse(values, records, scales) {
        return;
    }
    encode_plain(values, records, scales);
}

#[multiversion(targets("x86_64+avx2+popcnt+bmi1", "x86_64+sse4.1", "aarch64+neon"))]
fn encode_plain(values: &[f32], records: &mut [u8], scales: &mut [u8]) {
    blocks::encode::<Plain, BLOCK, RECORD>(values, records, scales);
}

struct Plain;

impl EncodeBlocks<BLOCK, RECORD> for Plain {
    #[inline(always)]
    fn encode(blocks: &[[f32; BLOCK]], records: &mut [[u8; RECORD]], scales: &mut [[u8; 2]]) {
        for ((block, record), scale) in blocks.iter().zip(records).zip(scales) {
            *scale = encode_block(block, record);
        }
    }
}

#[inline(always)]
fn encode_block(block: &[f32; BLOCK], record: &mut [u8; RECORD]) -> [u8; 2] {
    let mut keys = [0u16; BLOCK];
    let mut max = 0u32;
    for (key, v) in keys.iter_mut().zip(block) {
        let magnitude = v.to_bits() & 0x7fff_ffff;
        max = max.max(magnitude);
        *key = (magnitude >> 16) as u16;
    }
    let words = kept(&keys);
    let mut chosen = [0f32; KEPT];
    let mut at = 0;
    for (w, word) in words.iter().enumerate() {
        let mut left = *word;
        while left != 0 {
            chosen[at % KEPT] = block[64 * w + left.trailing_zeros() as usize];
            left &= left - 1;
            at += 1;
        }
    }
    write(words, &chosen, max, record)
}

/// A record, of what is marked and chosen; the scale, by the bits of the largest magnitude.
#[inline(always)]
pub fn write(words: [u64; 4], chosen: &[f32; KEPT], max: u32, record: &mut [u8; RECORD]) -> [u8; 2] {
    let (scale, inverse) = scale_127(max);
    let (bitmap, bytes) = record.split_at_mut(BLOCK / 8);
    for (bytes, word) in bitmap.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    for (byte, v) in bytes.iter_mut().zip(chosen) {
        *byte = (v * inverse + ROUND).to_bits() as u8;
    }
    scale.to_le_bytes()
}

/// Marks the `KEPT` largest keys, of equal ones the first.
#[inline(always)]
fn kept(keys: &[u16; BLOCK]) -> [u64; 4] {
    let bound = bound(|least| keys.iter().map(|key| u16::from(*key >= least)).sum::<u16>().into());
    let words = marks(keys, |key| key >= bound);
    without_surplus(words, || marks(keys, |key| key == bound))
}

/// The largest bound that at least `KEPT` keys reach, bit by bit; a smaller one if exactly so many reach it.
#[inline(always)]
pub fn bound(reach: impl Fn(u16) -> usize) -> u16 {
    let mut bound = 0;
    for bit in (0..15).rev() {
        let higher = bound | 1 << bit;
        let count = reach(higher);
        if count >= KEPT {
            bound = higher;
            if count == KEPT {
                break;
            }
        }
    }
    bound
}

/// Takes the last of those that only just reached the bound, as many as there are too many.
#[inline(always)]
pub fn without_surplus(mut words: [u64; 4], equal: impl Fn() -> [u64; 4]) -> [u64; 4] {
    let mut surplus = words.iter().map(|word| word.count_ones()).sum::<u32>().saturating_sub(KEPT as u32);
    if surplus == 0 {
        return words;
    }
    for (word, mut equal) in words.iter_mut().zip(equal()).rev() {
        while surplus > 0 && equal != 0 {
            let taken = if equal.count_ones() <= surplus { equal } else { 1 << (63 - equal.leading_zeros()) };
            *word &= !taken;
            equal &= !taken;
            surplus -= taken.count_ones();
        }
    }
    words
}

#[inline(always)]
fn marks(keys: &[u16; BLOCK], is_marked: impl Fn(u16) -> bool) -> [u64; 4] {
    let mut flags = [0u8; BLOCK];
    for (flag, key) in flags.iter_mut().zip(keys) {
        *flag = u8::from(is_marked(*key));
    }
    let mut bits = [0u8; BLOCK / 8];
    for (bits, flags) in bits.iter_mut().zip(flags.as_chunks::<8>().0) {
        // Flag i lies at bit 8 i; the product has it at bit 56 + i, and nothing carries into these.
        *bits = (u64::from_le_bytes(*flags).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
    let mut words = [0u64; 4];
    for (word, bytes) in words.iter_mut().zip(bits.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// Whether each block marks as many values as it carries.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+bmi1", "x86_64+avx2+bmi1", "x86_64+sse4.1", "aarch64+neon"))]
pub fn decode(records: &[u8], scales: &[u8], values: &mut [f32]) -> bool {
    decode_body(records, scales, values)
}

#[inline(always)]
fn decode_body(records: &[u8], scales: &[u8], values: &mut [f32]) -> bool {
    let (blocks, rest) = values.as_chunks_mut::<BLOCK>();
    let records = records.as_chunks::<RECORD>().0;
    let scales = scales.as_chunks::<2>().0;
    let mut sound = true;
    for ((block, record), scale) in blocks.iter_mut().zip(records).zip(scales) {
        sound &= decode_block(record, *scale, block);
    }
    if let (false, Some(record), Some(scale)) = (rest.is_empty(), records.last(), scales.last()) {
        let mut block = [0.0; BLOCK];
        sound &= decode_block(record, *scale, &mut block);
        rest.copy_from_slice(&block[..rest.len()]);
    }
    sound
}

#[inline(always)]
fn decode_block(record: &[u8; RECORD], scale: [u8; 2], block: &mut [f32; BLOCK]) -> bool {
    let scale = bf16::value(u16::from_le_bytes(scale));
    let (bitmap, bytes) = record.split_at(BLOCK / 8);
    let mut values = [0f32; KEPT];
    for (v, byte) in values.iter_mut().zip(bytes) {
        *v = scale * f32::from(*byte as i8);
    }
    block.fill(0.0);
    let mut at = 0;
    for (part, word) in block.as_chunks_mut::<64>().0.iter_mut().zip(bitmap.as_chunks::<8>().0) {
        let mut left = u64::from_le_bytes(*word);
        while left != 0 {
            part[left.trailing_zeros() as usize % 64] = values[at % KEPT];
            left &= left - 1;
            at += 1;
        }
    }
    at == KEPT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::any_finite;

    fn coded(values: &[f32]) -> (Vec<u8>, Vec<u8>) {
        let blocks = values.len().div_ceil(BLOCK);
        let (mut records, mut scales) = (vec![0; RECORD * blocks], vec![0; 2 * blocks]);
        encode(values, &mut records, &mut scales);
        (records, scales)
    }

    fn there_and_back(values: &[f32]) -> Vec<f32> {
        let (records, scales) = coded(values);
        let mut back = vec![0.0; values.len()];
        assert!(decode(&records, &scales, &mut back));
        back
    }

    #[test]
    fn the_largest_travel_and_the_others_are_zero() {
        let values: Vec<f32> = (0..256).map(|i| (i * 37 % 256) as f32 * if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        for (v, back) in values.iter().zip(there_and_back(&values)) {
            match v.abs() >= 224.0 {
                // Half a step of 255 / 127, and what bf16 makes of that step.
                true => assert!((v - back).abs() <= 1.01, "{v} became {back}"),
                false => assert_eq!(back, 0.0, "{v}"),
            }
        }
    }

    #[test]
    fn of_equal_values_the_first_are_kept() {
        let mut values = vec![1.0; 256];
        values[200] = 2.0;
        let back = there_and_back(&values);
        assert!(back[..31].iter().chain(&back[200..201]).all(|v| *v > 0.9), "{back:?}");
        assert_eq!(back.iter().filter(|v| **v != 0.0).count(), KEPT);
        assert_eq!(there_and_back(&[0.0; 300]), [0.0; 300]);
    }

    #[test]
    fn a_short_tensor_travels_whole() {
        let values: Vec<f32> = (1..=30).map(|i| i as f32).collect();
        assert!(there_and_back(&values).iter().zip(&values).all(|(back, v)| (v - back).abs() < 0.13));
    }

    #[test]
    fn a_bitmap_of_another_count_is_seen() {
        let (mut records, scales) = coded(&any_finite(3, 512));
        let mut back = vec![0.0; 512];
        records[RECORD] ^= 1;
        assert!(!decode(&records, &scales, &mut back));
        records[..32].fill(0xff);
        assert!(!decode(&records, &scales, &mut back));
    }

    #[test]
    fn dispatch_changes_no_byte() {
        for n in [0, 1, 255, 256, 257, 3000] {
            let mut values = any_finite(n as u64, n);
            // Some blocks of equal values: which of them are kept is part of the format.
            values.iter_mut().take(n / 2).for_each(|v| *v = if *v > 0.0 { 1.5 } else { -0.5 });
            let blocks = n.div_ceil(BLOCK);
            let blank = || (vec![0; RECORD * blocks], vec![0; 2 * blocks], vec![0.0; n]);
            let ((mut a, mut sa, mut va), (mut b, mut sb, mut vb)) = (blank(), blank());
            encode(&values, &mut a, &mut sa);
            blocks::encode::<Plain, BLOCK, RECORD>(&values, &mut b, &mut sb);
            assert_eq!((&a, &sa), (&b, &sb));
            encode_plain(&values, &mut b, &mut sb);
            assert_eq!((&a, &sa), (&b, &sb));
            assert!(decode(&a, &sa, &mut va) && decode_body(&a, &sa, &mut vb));
            assert_eq!(va, vb);
        }
    }
}
