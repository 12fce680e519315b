//! int4 by blocks: 32 neighbouring values share one scale, minus the value of largest magnitude over 8, as bf16; a value is
//! (nibble - 8) times its scale.
//!
//! A scale with a sign gives the largest value the level -8, so that all sixteen levels are used: a step is an eighth of the
//! largest magnitude, not a seventh. What lies on the other side above 7.5 steps is held at 7. Blocks of 32 with a scale in two
//! bytes take what blocks of 64 take with one in four, at three quarters of the error.
//!
//! Byte `i` of a block holds value `i` in its low half and value `16 + i` in its high half.

use multiversion::multiversion;

#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{
    blocks::{self, DecodeBlock, EncodeScaled},
    int8::{ROUND, scale_of},
};

/// Values that share a scale.
pub const BLOCK: usize = 32;
/// Their bytes.
pub const HALF: usize = BLOCK / 2;

/// Bytes of `values`, the last block filled up with zeros, and the scales of the blocks (two bytes each).
pub fn encode(values: &[f32], bytes: &mut [u8], scales: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if x86::encode_int4(values, bytes, scales) {
        return;
    }
    encode_plain(values, bytes, scales);
}

#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn encode_plain(values: &[f32], bytes: &mut [u8], scales: &mut [u8]) {
    blocks::encode::<Plain, BLOCK, HALF>(values, bytes, scales);
}

pub fn decode(bytes: &[u8], scales: &[u8], values: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if x86::decode_int4(bytes, scales, values) {
        return;
    }
    decode_plain(bytes, scales, values);
}

#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn decode_plain(bytes: &[u8], scales: &[u8], values: &mut [f32]) {
    blocks::decode::<Plain, BLOCK, HALF>(bytes, scales, values);
}

struct Plain;

impl EncodeScaled<BLOCK, HALF> for Plain {
    #[inline(always)]
    fn largest(values: &[f32; BLOCK]) -> u32 {
        // Turned by one bit, finite values are ordered by magnitude, and of two equal ones the negative comes first.
        values.iter().fold(0, |max, v| max.max(v.to_bits().rotate_left(1)))
    }

    #[inline(always)]
    fn scale(largest: u32) -> (u16, f32) {
        scale_below(largest)
    }

    #[inline(always)]
    fn encode(values: &[f32; BLOCK], inverse: f32, bytes: &mut [u8; HALF]) {
        let level = |v: f32| {
            let x = v * inverse;
            let x = if x < 7.0 { x } else { 7.0 };
            (x + LEVEL_ZERO).to_bits()
        };
        let (low, high) = values.split_at(HALF);
        for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
            *byte = (level(*low) & 15 | level(*high) << 4) as u8;
        }
    }
}

impl DecodeBlock<BLOCK, HALF> for Plain {
    #[inline(always)]
    fn decode(bytes: &[u8; HALF], scale: f32, values: &mut [f32; BLOCK]) {
        let mut levels = [0u8; BLOCK];
        let (low, high) = levels.split_at_mut(HALF);
        for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
            *low = byte & 15;
            *high = byte >> 4;
        }
        for (v, level) in values.iter_mut().zip(levels) {
            *v = scale * (f32::from(level) - 8.0);
        }
    }
}

/// Added to a value in steps, it leaves the level in the low bits.
pub const LEVEL_ZERO: f32 = ROUND + 8.0;

/// The scale, and its inverse, of a block whose largest value, turned by one bit, is `max`.
#[inline(always)]
pub fn scale_below(max: u32) -> (u16, f32) {
    scale_of(f32::from_bits(max.rotate_right(1)) / -8.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::any_finite;

    fn there_and_back(values: &[f32]) -> Vec<f32> {
        let blocks = values.len().div_ceil(BLOCK);
        let (mut bytes, mut scales) = (vec![0; HALF * blocks], vec![0; 2 * blocks]);
        encode(values, &mut bytes, &mut scales);
        let mut back = vec![0.0; values.len()];
        decode(&bytes, &scales, &mut back);
        back
    }

    #[test]
    fn levels_are_eighths_of_the_largest_to_its_side_and_sevenths_to_the_other() {
        let mut values: Vec<f32> = (-7..=8).map(|level| level as f32 / 4.0).collect();
        assert_eq!(there_and_back(&values), values);
        values.iter_mut().for_each(|v| *v = -*v);
        assert_eq!(there_and_back(&values), values);
        assert_eq!(there_and_back(&[8.0, -8.0, 0.0, 3.4]), [7.0, -8.0, 0.0, 3.0]);
    }

    #[test]
    fn a_block_of_zeros_or_of_almost_nothing_is_zero_and_the_largest_stays_finite() {
        assert_eq!(there_and_back(&[0.0; 40]), [0.0; 40]);
        assert_eq!(there_and_back(&[1e-44; 40]), [0.0; 40]);
        assert!(there_and_back(&[3e38, -3e38, 1.0]).iter().all(|v| v.is_finite()));
    }

    #[test]
    fn dispatch_changes_no_byte() {
        for n in [0, 1, 31, 32, 33, 1000] {
            let values = any_finite(n as u64, n);
            let blocks = n.div_ceil(BLOCK);
            let blank = || (vec![0; HALF * blocks], vec![0; 2 * blocks], vec![0.0; n]);
            let ((mut a, mut sa, mut va), (mut b, mut sb, mut vb)) = (blank(), blank());
            encode(&values, &mut a, &mut sa);
            blocks::encode::<Plain, BLOCK, HALF>(&values, &mut b, &mut sb);
            assert_eq!((&a, &sa), (&b, &sb));
            encode_plain(&values, &mut b, &mut sb);
            assert_eq!((&a, &sa), (&b, &sb));
            decode(&a, &sa, &mut va);
            blocks::decode::<Plain, BLOCK, HALF>(&a, &sa, &mut vb);
            assert_eq!(va, vb);
            decode_plain(&a, &sa, &mut vb);
            assert_eq!(va, vb);
        }
    }
}
