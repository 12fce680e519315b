//! int16 by blocks: 64 neighbouring values share one scale, a power of two as bf16. A value is its number times its scale.
//!
//! The scale is the largest at which the largest magnitude of the block still has a number of 15 bits, so a step is at most 2^-14
//! of that magnitude: the error is a fiftieth of what bf16 loses in the same two bytes. A power of two is multiplied without
//! rounding, so that what is decoded encodes to the same bytes.

use multiversion::multiversion;

use super::{
    blocks::{self, DecodeBlock, EncodeScaled},
    int8::{BLOCK, ROUND, magnitude},
};

/// Bytes of a block.
const BYTES: usize = 2 * BLOCK;
/// The exponent, as an f32 has it, of the smallest scale: a normal number whose inverse is one, too.
const EXPONENT_MIN: u32 = 1;
/// Bits of the number of a block's largest value.
const BITS: u32 = 15;

/// Numbers of `values`, and the scales of their blocks (two bytes each).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
pub fn encode(values: &[f32], numbers: &mut [u8], scales: &mut [u8]) {
    blocks::encode::<Plain, BLOCK, BYTES>(values, numbers, scales);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
pub fn decode(numbers: &[u8], scales: &[u8], values: &mut [f32]) {
    blocks::decode::<Plain, BLOCK, BYTES>(numbers, scales, values);
}

struct Plain;

impl EncodeScaled<BLOCK, BYTES> for Plain {
    #[inline(always)]
    fn largest(values: &[f32; BLOCK]) -> u32 {
        magnitude(values)
    }

    #[inline(always)]
    fn scale(largest: u32) -> (u16, f32) {
        let exponent = (largest >> 23).saturating_sub(BITS - 1).max(EXPONENT_MIN);
        ((exponent << 7) as u16, f32::from_bits((254 - exponent) << 23))
    }

    #[inline(always)]
    fn encode(values: &[f32; BLOCK], inverse: f32, numbers: &mut [u8; BYTES]) {
        for (number, v) in numbers.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            let x = v * inverse;
            // What rounds to 2^15 is held below it.
            let x = if x < 32767.0 { x } else { 32767.0 };
            let x = if x > -32767.0 { x } else { -32767.0 };
            *number = ((x + ROUND).to_bits() as u16).to_le_bytes();
        }
    }
}

impl DecodeBlock<BLOCK, BYTES> for Plain {
    #[inline(always)]
    fn decode(numbers: &[u8; BYTES], scale: f32, values: &mut [f32; BLOCK]) {
        for (v, number) in values.iter_mut().zip(numbers.as_chunks::<2>().0) {
            *v = scale * f32::from(i16::from_le_bytes(*number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::any_finite;

    fn there_and_back(values: &[f32]) -> Vec<f32> {
        let (mut numbers, mut scales) = (vec![0; 2 * values.len()], vec![0; 2 * values.len().div_ceil(BLOCK)]);
        encode(values, &mut numbers, &mut scales);
        let mut back = vec![0.0; values.len()];
        decode(&numbers, &scales, &mut back);
        back
    }

    #[test]
    fn no_value_is_further_off_than_half_a_step_of_its_block() {
        let values: Vec<f32> = any_finite(3, 5000).iter().map(|v| v % 1e6).collect();
        for (block, back) in values.chunks(BLOCK).zip(there_and_back(&values).chunks(BLOCK)) {
            let max = block.iter().fold(0f32, |max, v| max.max(v.abs()));
            for (v, back) in block.iter().zip(back) {
                assert!((v - back).abs() <= max / 32768.0 + f32::MIN_POSITIVE, "{v} {back} of {max}");
            }
        }
    }

    #[test]
    fn the_largest_of_a_block_stays_below_the_next_power_and_zeros_stay_zero() {
        let mut values = vec![0.0; 130];
        (values[0], values[64], values[129]) = (-1.999_999, f32::MAX, 1e-42);
        let back = there_and_back(&values);
        assert!((back[0] + 1.999_999).abs() < 2.0 / 16384.0 && back[0] > -2.0);
        assert!((back[64] / f32::MAX - 1.0).abs() < 1e-4);
        assert!(back.iter().enumerate().all(|(i, v)| i == 0 || i == 64 || *v == 0.0));
    }

    #[test]
    fn dispatch_changes_no_byte() {
        for n in [0, 1, 63, 64, 65, 1000, 3000] {
            let values = any_finite(n as u64, n);
            let blank = || (vec![0; 2 * n], vec![0; 2 * n.div_ceil(BLOCK)], vec![0.0; n]);
            let ((mut a, mut sa, mut va), (mut b, mut sb, mut vb)) = (blank(), blank());
            encode(&values, &mut a, &mut sa);
            blocks::encode::<Plain, BLOCK, BYTES>(&values, &mut b, &mut sb);
            assert_eq!((&a, &sa), (&b, &sb));
            decode(&a, &sa, &mut va);
            blocks::decode::<Plain, BLOCK, BYTES>(&a, &sa, &mut vb);
            assert_eq!(va, vb);
        }
    }
}
