//! Operands as tiles of bf16: 16 lines by 32 values, which are 16 pairs, which are 32-bit words.
//!
//! The lines of a are its rows, those of b its columns, and values follow each other in the order of the summation. A tile of a
//! holds line after line, one of b pair after pair; the rest of a tile at an edge is zero. Two tiles that lie beside each other
//! make a group: for each 32 values the tile of the first 16 lines, then that of the others where there are more than 16; where
//! values are split in two, these of what was rounded away come next. Groups follow each other.

use std::arch::x86_64::*;

use crate::exact::product::Matrix;

/// Lines of a tile.
pub const LINES: usize = 16;
/// Values of a line of a tile.
pub const DEEP: usize = 32;
/// Words of a tile.
pub const TILE: usize = LINES * DEEP / 2;
/// Lines of a group.
pub const GROUP: usize = 2 * LINES;

/// Words of `lines` lines of `deep` values.
pub fn words(lines: usize, deep: usize) -> usize {
    lines.div_ceil(LINES) * deep.div_ceil(DEEP) * TILE
}

/// What follows what in a tile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Line after line, as tiles of a.
    Lines,
    /// Pair after pair, as tiles of b.
    Pairs,
}

/// Values `k..k + n` of the lines `line..line + lines`, which are rows of `matrix`.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub matrix: Matrix<'a>,
    pub line: usize,
    pub lines: usize,
    pub k: usize,
    pub n: usize,
}

/// Packs lines into groups. `split`: in two.
///
/// # Safety
/// The processor has AVX512-BF16, and all of the part lies in its matrix, which fits.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn groups(part: &Part<'_>, form: Form, split: bool, to: &mut [u32]) {
    let tiles = to.as_chunks_mut::<TILE>().0;
    let (steps, copies) = (part.n.div_ceil(DEEP), 1 + usize::from(split));
    for first in (0..part.lines).step_by(LINES) {
        // Tiles of a group before this one's, and from one step of this one to the next.
        let group = first / GROUP * GROUP;
        let apart = (part.lines - group).min(GROUP).div_ceil(LINES);
        let start = group / LINES * steps * copies + (first - group) / LINES;
        for step in 0..steps {
            let at = step * DEEP;
            let here = Part {
                line: part.line + first,
                lines: LINES.min(part.lines - first),
                k: part.k + at,
                n: DEEP.min(part.n - at),
                ..*part
            };
            let start = start + step * apart * copies;
            // SAFETY: the caller's promise.
            unsafe {
                tile::<false>(&here, form, &mut tiles[start]);
                if split {
                    tile::<true>(&here, form, &mut tiles[start + apart]);
                }
            }
        }
    }
}

/// `REST`: of what rounding took away.
///
/// # Safety
/// As [`groups`], of at most 16 lines and 32 values.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const REST: bool>(part: &Part<'_>, form: Form, to: &mut [u32; TILE]) {
    let Part { matrix: m, line, lines, k, n } = *part;
    let from = m.data.as_ptr().wrapping_add(line * m.row_stride + k * m.col_stride);
    // SAFETY: the caller's promise; the buffer holds 16 lines of 32 values.
    let (vectors, are) = unsafe {
        if m.col_stride == 1 {
            (by_lines::<REST>(from, m.row_stride, lines, n), Form::Lines)
        } else if m.row_stride == 1 {
            (by_pairs::<REST>(from, m.col_stride, lines, n), Form::Pairs)
        } else {
            let mut buffer = [0.0; LINES * DEEP];
            for (i, j) in (0..lines).flat_map(|i| (0..n).map(move |j| (i, j))) {
                buffer[i * DEEP + j] = *from.add(i * m.row_stride + j * m.col_stride);
            }
            (by_lines::<REST>(buffer.as_ptr(), DEEP, LINES, DEEP), Form::Lines)
        }
    };
    let vectors = if are == form { vectors } else { transposed(vectors) };
    for (to, vector) in to.as_chunks_mut::<16>().0.iter_mut().zip(vectors) {
        // SAFETY: sixteen words.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), vector) };
    }
}

/// Lanes below `n`.
#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

/// Vectors of a line's pairs each, from lines whose values are contiguous.
///
/// # Safety
/// As [`tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn by_lines<const REST: bool>(from: *const f32, stride: usize, lines: usize, n: usize) -> [__m512i; LINES] {
    let (low, high) = (mask(n), mask(n.saturating_sub(16)));
    let mut vectors = [_mm512_setzero_si512(); LINES];
    for (i, vector) in vectors.iter_mut().enumerate().take(lines) {
        let at = from.wrapping_add(i * stride);
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(DEEP).cast());
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(DEEP + 16).cast());
        // SAFETY: a masked load reads the lanes of its mask alone, and those lie in the line.
        *vector = unsafe {
            let (low, high) = (_mm512_maskz_loadu_ps(low, at), _mm512_maskz_loadu_ps(high, at.wrapping_add(16)));
            rounded::<REST>(high, low)
        };
    }
    vectors
}

/// Vectors of one pair of every line each, from lines that lie next to each other value for value.
///
/// # Safety
/// As [`tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn by_pairs<const REST: bool>(from: *const f32, stride: usize, lines: usize, n: usize) -> [__m512i; LINES] {
    // Word i is value i of the first half and value i of the second.
    let order: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
    let mut vectors = [_mm512_setzero_si512(); LINES];
    for (i, vector) in vectors.iter_mut().enumerate().take(n.div_ceil(2)) {
        let at = from.wrapping_add(2 * i * stride);
        // Rows lie in other pages than their neighbours: nobody else would fetch those of the next tile.
        for ahead in [DEEP, DEEP + 1] {
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ahead * stride).cast());
        }
        let (first, second) = (mask(lines), if 2 * i + 1 < n { mask(lines) } else { 0 });
        // SAFETY: a masked load reads the lanes of its mask alone, and those lie in the row; the order has 32 values.
        *vector = unsafe {
            let order = _mm512_loadu_si512(order.as_ptr().cast());
            let (first, second) =
                (_mm512_maskz_loadu_ps(first, at), _mm512_maskz_loadu_ps(second, at.wrapping_add(stride)));
            _mm512_permutexvar_epi16(order, rounded::<REST>(second, first))
        };
    }
    vectors
}

/// The nearest bf16 of both, the low in the first half; or of what is left of them then.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn rounded<const REST: bool>(high: __m512, low: __m512) -> __m512i {
    if !REST {
        return bits(_mm512_cvtne2ps_pbh(high, low));
    }
    let rest = |x: __m512| _mm512_sub_ps(x, _mm512_cvtpbh_ps(_mm512_cvtneps_pbh(x)));
    bits(_mm512_cvtne2ps_pbh(rest(high), rest(low)))
}

#[inline(always)]
fn bits(x: __m512bh) -> __m512i {
    // SAFETY: both are 512 bits of any value.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(x) }
}

/// Word j of vector i becomes word i of vector j.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(v: [__m512i; 16]) -> [__m512i; 16] {
    // Squares of 4 words in each quarter of a vector, then the quarters.
    let mut w = v;
    for i in (0..16).step_by(4) {
        let (a, b) = (_mm512_unpacklo_epi32(v[i], v[i + 1]), _mm512_unpackhi_epi32(v[i], v[i + 1]));
        let (c, d) = (_mm512_unpacklo_epi32(v[i + 2], v[i + 3]), _mm512_unpackhi_epi32(v[i + 2], v[i + 3]));
        w[i] = _mm512_unpacklo_epi64(a, c);
        w[i + 1] = _mm512_unpackhi_epi64(a, c);
        w[i + 2] = _mm512_unpacklo_epi64(b, d);
        w[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    let mut out = v;
    for i in 0..4 {
        let (a, b) = (_mm512_shuffle_i32x4::<0x88>(w[i], w[i + 4]), _mm512_shuffle_i32x4::<0xdd>(w[i], w[i + 4]));
        let (c, d) =
            (_mm512_shuffle_i32x4::<0x88>(w[i + 8], w[i + 12]), _mm512_shuffle_i32x4::<0xdd>(w[i + 8], w[i + 12]));
        out[i] = _mm512_shuffle_i32x4::<0x88>(a, c);
        out[i + 4] = _mm512_shuffle_i32x4::<0x88>(b, d);
        out[i + 8] = _mm512_shuffle_i32x4::<0xdd>(a, c);
        out[i + 12] = _mm512_shuffle_i32x4::<0xdd>(b, d);
    }
    out
}
