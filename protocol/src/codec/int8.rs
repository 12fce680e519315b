//! int8 by blocks: 64 neighbouring values share one scale, the largest magnitude over 127 as bf16. A value is its byte times its
//! scale.
//!
//! Rounded to bf16 (relative 2^-9), a scale moves the largest of its block by less than a quarter of a step: it is still 127,
//! what is decoded encodes to the same bytes, and every value stays within half a step.

use multiversion::multiversion;

use super::{
    bf16,
    blocks::{self, DecodeBlock, EncodeScaled},
};

/// Values that share a scale.
pub const BLOCK: usize = 64;

/// 1.5 * 2^23: added to a small number, it leaves the nearest whole one (ties to even) in the low bits of the sum.
pub const ROUND: f32 = 12_582_912.0;

/// Bytes of `values`, and the scales of their blocks (two bytes each).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
pub fn encode(values: &[f32], bytes: &mut [u8], scales: &mut [u8]) {
    blocks::encode::<Plain, BLOCK, BLOCK>(values, bytes, scales);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
pub fn decode(bytes: &[u8], scales: &[u8], values: &mut [f32]) {
    blocks::decode::<Plain, BLOCK, BLOCK>(bytes, scales, values);
}

struct Plain;

impl EncodeScaled<BLOCK, BLOCK> for Plain {
    #[inline(always)]
    fn largest(values: &[f32; BLOCK]) -> u32 {
        magnitude(values)
    }

    #[inline(always)]
    fn scale(largest: u32) -> (u16, f32) {
        scale_127(largest)
    }

    #[inline(always)]
    fn encode(values: &[f32; BLOCK], inverse: f32, bytes: &mut [u8; BLOCK]) {
        for (byte, v) in bytes.iter_mut().zip(values) {
            *byte = (v * inverse + ROUND).to_bits() as u8;
        }
    }
}

impl DecodeBlock<BLOCK, BLOCK> for Plain {
    #[inline(always)]
    fn decode(bytes: &[u8; BLOCK], scale: f32, values: &mut [f32; BLOCK]) {
        for (v, byte) in values.iter_mut().zip(bytes) {
            *v = scale * f32::from(*byte as i8);
        }
    }
}

/// Bits of the largest magnitude: those of finite values are ordered as their bits are.
#[inline(always)]
pub fn magnitude(values: &[f32]) -> u32 {
    values.iter().fold(0, |max, v| max.max(v.to_bits() & 0x7fff_ffff))
}

/// The scale, and its inverse, of a block whose largest magnitude has these bits.
#[inline(always)]
pub fn scale_127(largest: u32) -> (u16, f32) {
    scale_of(f32::from_bits(largest) / 127.0)
}

/// A scale as bf16, and its inverse. Values so small that their scale is not a normal number travel as zero. What is not a number
/// stays none, whatever its bits.
#[inline(always)]
pub fn scale_of(step: f32) -> (u16, f32) {
    const NAN: u16 = 0x7fc0;
    let bits = bf16::round(step);
    let scale = bf16::value(bits);
    // Choices rather than branches: the scales of many blocks are one loop.
    let is_normal = scale.abs() >= f32::MIN_POSITIVE;
    let inverse = if is_normal & !step.is_nan() { 1.0 / scale } else { 0.0 };
    let bits = if is_normal { bits } else { 0 };
    (if step.is_nan() { NAN } else { bits }, inverse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::any_finite;

    fn there_and_back(values: &[f32]) -> Vec<f32> {
        let (mut bytes, mut scales) = (vec![0; values.len()], vec![0; 2 * values.len().div_ceil(BLOCK)]);
        encode(values, &mut bytes, &mut scales);
        let mut back = vec![0.0; values.len()];
        decode(&bytes, &scales, &mut back);
        back
    }

    #[test]
    fn the_largest_of_a_block_is_nearly_exact_and_zeros_stay_zero() {
        let mut values = vec![0.0; 130];
        values[3] = -6.35;
        values[70] = 1e-30;
        values[129] = 1e-44;
        let back = there_and_back(&values);
        assert!((back[3] + 6.35).abs() < 6.35 / 500.0);
        assert!((back[70] - 1e-30).abs() < 1e-32);
        assert!(back.iter().enumerate().all(|(i, v)| i == 3 || i == 70 || *v == 0.0));
    }

    #[test]
    fn the_largest_numbers_there_are_stay_finite() {
        assert!(there_and_back(&[f32::MAX, f32::MIN, 1.0]).iter().all(|v| v.is_finite()));
    }

    #[test]
    fn a_scale_is_a_normal_number_or_nothing() {
        assert_eq!(scale_of(-0.5), (0xbf00, -2.0));
        assert_eq!(scale_of(f32::MIN_POSITIVE), (0x0080, 1.0 / f32::MIN_POSITIVE));
        for step in [0.0, -0.0, 1e-39, -1e-45] {
            assert_eq!(scale_of(step), (0, 0.0), "{step}");
        }
        for bits in [0x7fc0_0000, 0x7f80_0001, 0xffff_ffff] {
            assert_eq!(scale_of(f32::from_bits(bits)), (0x7fc0, 0.0), "{bits:x}");
        }
    }

    #[test]
    fn dispatch_changes_no_byte() {
        for n in [0, 1, 63, 64, 65, 1000, 3000] {
            let values = any_finite(n as u64, n);
            let blank = || (vec![0; n], vec![0; 2 * n.div_ceil(BLOCK)], vec![0.0; n]);
            let ((mut a, mut sa, mut va), (mut b, mut sb, mut vb)) = (blank(), blank());
            encode(&values, &mut a, &mut sa);
            blocks::encode::<Plain, BLOCK, BLOCK>(&values, &mut b, &mut sb);
            assert_eq!((&a, &sa), (&b, &sb));
            decode(&a, &sa, &mut va);
            blocks::decode::<Plain, BLOCK, BLOCK>(&a, &sa, &mut vb);
            assert_eq!(va, vb);
        }
    }
}
