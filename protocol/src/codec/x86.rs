//! int4 and sparse by hand for AVX-512: compilers make neither the halves of a byte nor a choice of the largest of a loop. The
//! plain loops beside them say what the bytes are; these give the same.

use std::arch::x86_64::*;

use super::{
    blocks::{self, DecodeBlock, EncodeBlocks, EncodeScaled},
    int4, sparse,
};

fn is_here() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl")
}

/// False, with nothing done, where the CPU lacks the instructions.
pub fn encode_int4(values: &[f32], bytes: &mut [u8], scales: &mut [u8]) -> bool {
    // SAFETY: the instructions are here.
    is_here() && unsafe { int4_encode(values, bytes, scales) }
}

/// As [`encode_int4`].
pub fn decode_int4(bytes: &[u8], scales: &[u8], values: &mut [f32]) -> bool {
    // SAFETY: the instructions are here.
    is_here() && unsafe { int4_decode(bytes, scales, values) }
}

/// As [`encode_int4`].
pub fn encode_sparse(values: &[f32], records: &mut [u8], scales: &mut [u8]) -> bool {
    // SAFETY: the instructions are here.
    is_here() && is_x86_feature_detected!("popcnt") && unsafe { sparse_encode(values, records, scales) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn int4_encode(values: &[f32], bytes: &mut [u8], scales: &mut [u8]) -> bool {
    blocks::encode::<Int4, { int4::BLOCK }, { int4::HALF }>(values, bytes, scales);
    true
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn int4_decode(bytes: &[u8], scales: &[u8], values: &mut [f32]) -> bool {
    blocks::decode::<Int4, { int4::BLOCK }, { int4::HALF }>(bytes, scales, values);
    true
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn sparse_encode(values: &[f32], records: &mut [u8], scales: &mut [u8]) -> bool {
    blocks::encode::<Sparse, { sparse::BLOCK }, { sparse::RECORD }>(values, records, scales);
    true
}

/// Used by the functions above alone, which have the instructions.
struct Int4;

impl EncodeScaled<{ int4::BLOCK }, { int4::HALF }> for Int4 {
    #[inline(always)]
    fn largest(values: &[f32; int4::BLOCK]) -> u32 {
        // SAFETY: the instructions are here.
        unsafe { int4_turned_max(values) }
    }

    #[inline(always)]
    fn scale(largest: u32) -> (u16, f32) {
        int4::scale_below(largest)
    }

    #[inline(always)]
    fn encode(values: &[f32; int4::BLOCK], inverse: f32, bytes: &mut [u8; int4::HALF]) {
        // SAFETY: the instructions are here.
        unsafe { int4_encode_block(values, inverse, bytes) }
    }
}

impl DecodeBlock<{ int4::BLOCK }, { int4::HALF }> for Int4 {
    #[inline(always)]
    fn decode(bytes: &[u8; int4::HALF], scale: f32, values: &mut [f32; int4::BLOCK]) {
        // SAFETY: the instructions are here.
        unsafe { int4_decode_block(bytes, scale, values) }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn int4_turned_max(values: &[f32; int4::BLOCK]) -> u32 {
    // SAFETY: a block is two vectors.
    let halves = unsafe { [_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16))] };
    let [low, high] = halves.map(|half| _mm512_rol_epi32::<1>(_mm512_castps_si512(half)));
    _mm512_reduce_max_epu32(_mm512_max_epu32(low, high))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn int4_encode_block(values: &[f32; int4::BLOCK], inverse: f32, bytes: &mut [u8; int4::HALF]) {
    // SAFETY: a block is two vectors.
    let halves = unsafe { [_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16))] };
    let [low, high] = halves.map(|half| {
        let x = _mm512_min_ps(_mm512_mul_ps(half, _mm512_set1_ps(inverse)), _mm512_set1_ps(7.0));
        _mm512_castps_si512(_mm512_add_ps(x, _mm512_set1_ps(int4::LEVEL_ZERO)))
    });
    let low = _mm512_and_si512(low, _mm512_set1_epi32(15));
    let both = _mm512_cvtepi32_epi8(_mm512_or_si512(low, _mm512_slli_epi32::<4>(high)));
    // SAFETY: the bytes of a block are one vector.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), both) };
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn int4_decode_block(bytes: &[u8; int4::HALF], scale: f32, values: &mut [f32; int4::BLOCK]) {
    // SAFETY: the bytes of a block are one vector.
    let both = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    let low = _mm_and_si128(both, _mm_set1_epi8(15));
    let high = _mm_and_si128(_mm_srli_epi16::<4>(both), _mm_set1_epi8(15));
    for (half, values) in [low, high].into_iter().zip(values.as_chunks_mut::<16>().0) {
        let level = _mm512_sub_epi32(_mm512_cvtepu8_epi32(half), _mm512_set1_epi32(8));
        let v = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_cvtepi32_ps(level));
        // SAFETY: half a block is one vector.
        unsafe { _mm512_storeu_ps(values.as_mut_ptr(), v) };
    }
}

/// As [`Int4`].
struct Sparse;

impl EncodeBlocks<{ sparse::BLOCK }, { sparse::RECORD }> for Sparse {
    #[inline(always)]
    fn encode(blocks: &[[f32; sparse::BLOCK]], records: &mut [[u8; sparse::RECORD]], scales: &mut [[u8; 2]]) {
        for ((block, record), scale) in blocks.iter().zip(records).zip(scales) {
            // SAFETY: the instructions are here.
            *scale = unsafe { sparse_encode_block(block, record) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn sparse_encode_block(block: &[f32; sparse::BLOCK], record: &mut [u8; sparse::RECORD]) -> [u8; 2] {
    let parts = block.as_chunks::<16>().0;
    // SAFETY: a part is one vector.
    let part = |at: usize| unsafe { _mm512_loadu_ps(parts[at].as_ptr()) };
    let mut max = _mm512_setzero_si512();
    let mut keys = [max; 8];
    for (at, key) in keys.iter_mut().enumerate() {
        let magnitude = |v| _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fff_ffff));
        let (low, high) = (magnitude(part(2 * at)), magnitude(part(2 * at + 1)));
        max = _mm512_max_epu32(max, _mm512_max_epu32(low, high));
        let upper = |v| _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(v));
        *key = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(upper(low)), upper(high));
    }
    let bound = sparse::bound(|least| {
        let least = _mm512_set1_epi16(least as i16);
        // No iterator's sum: that would be compiled without the instructions, and call the closure for each key.
        let mut reached = 0;
        for key in &keys {
            reached += _mm512_cmpge_epu16_mask(*key, least).count_ones();
        }
        reached as usize
    });
    let bound = _mm512_set1_epi16(bound as i16);
    let words = |mask: fn(__m512i, __m512i) -> u32| -> [u64; 4] {
        std::array::from_fn(|at| u64::from(mask(keys[2 * at], bound)) | u64::from(mask(keys[2 * at + 1], bound)) << 32)
    };
    let reached = words(|key, bound| _mm512_cmpge_epu16_mask(key, bound));
    let kept = sparse::without_surplus(reached, || words(|key, bound| _mm512_cmpeq_epu16_mask(key, bound)));
    // The last part may be written behind the last value that is kept.
    let mut chosen = [0f32; sparse::KEPT + 16];
    let mut to = 0;
    for at in 0..16 {
        let mask = (kept[at / 4] >> (16 * (at % 4))) as u16;
        // SAFETY: `to` is at most KEPT, and 16 values lie behind it.
        unsafe { _mm512_storeu_ps(chosen.as_mut_ptr().add(to), _mm512_maskz_compress_ps(mask, part(at))) };
        to = (to + mask.count_ones() as usize).min(sparse::KEPT);
    }
    let (chosen, _) = chosen.split_first_chunk().expect("it is longer");
    sparse::write(kept, chosen, _mm512_reduce_max_epu32(max), record)
}
