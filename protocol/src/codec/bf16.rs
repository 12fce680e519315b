//! bf16: the upper half of an f32, rounded to nearest, ties to even.

use multiversion::multiversion;

/// The sixteen bits of a finite value.
#[inline(always)]
pub fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // A finite value near the largest would round to infinity: it stays the largest.
    let most = (bits >> 16) & 0x8000 | 0x7f7f;
    (if rounded > most { most } else { rounded }) as u16
}

#[inline(always)]
pub fn value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Two little-endian bytes a value.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
pub fn encode(values: &[f32], bytes: &mut [u8]) {
    encode_body(values, bytes);
}

#[inline(always)]
fn encode_body(values: &[f32], bytes: &mut [u8]) {
    for (pair, v) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *pair = round(*v).to_le_bytes();
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
pub fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_body(bytes, values);
}

#[inline(always)]
fn decode_body(bytes: &[u8], values: &mut [f32]) {
    for (v, pair) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *v = value(u16::from_le_bytes(*pair));
    }
}

/// The lower and the upper byte of each value apart: signs and exponents repeat, which zstd sees only where they stand together.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
pub fn encode_apart(values: &[f32], low: &mut [u8], high: &mut [u8]) {
    encode_apart_body(values, low, high);
}

#[inline(always)]
fn encode_apart_body(values: &[f32], low: &mut [u8], high: &mut [u8]) {
    for ((v, low), high) in values.iter().zip(low).zip(high) {
        [*low, *high] = round(*v).to_le_bytes();
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
pub fn decode_apart(low: &[u8], high: &[u8], values: &mut [f32]) {
    decode_apart_body(low, high, values);
}

#[inline(always)]
fn decode_apart_body(low: &[u8], high: &[u8], values: &mut [f32]) {
    for ((v, low), high) in values.iter_mut().zip(low).zip(high) {
        *v = value(u16::from_le_bytes([*low, *high]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::any_finite;

    #[test]
    fn ties_go_to_even_and_the_largest_stays_finite() {
        assert_eq!(round(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(round(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(round(f32::MAX), 0x7f7f);
        assert_eq!(round(f32::MIN), 0xff7f);
        assert_eq!(round(-0.0), 0x8000);
    }

    #[test]
    fn dispatch_changes_no_byte() {
        for n in [0, 1, 31, 64, 777] {
            let values = any_finite(n as u64, n);
            let (mut a, mut b) = (vec![0; 2 * n], vec![0; 2 * n]);
            encode(&values, &mut a);
            encode_body(&values, &mut b);
            assert_eq!(a, b);
            let (mut x, mut y) = (vec![0.0; n], vec![0.0; n]);
            decode(&a, &mut x);
            decode_body(&b, &mut y);
            assert_eq!(x, y);

            let (low, high) = a.split_at_mut(n);
            encode_apart(&values, low, high);
            let (other_low, other_high) = b.split_at_mut(n);
            encode_apart_body(&values, other_low, other_high);
            assert_eq!((&low, &high), (&other_low, &other_high));
            decode_apart(low, high, &mut y);
            assert_eq!(x, y);
            decode_apart_body(low, high, &mut y);
            assert_eq!(x, y);
        }
    }
}
