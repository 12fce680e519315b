//! Copies of operands in the order in which the micro-kernel reads them: panels of B, tiles of A.

use multiversion::multiversion;

use super::Matrix;

/// Rows that are asked for ahead: they lie too far apart for the processor to foresee them.
const AHEAD: usize = 12;

/// Rows `k..k + n` of the columns `col..col + width` of B, each row `wide` values apart; what is missing is zero.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn panel(b: &Matrix<'_>, k: usize, n: usize, col: usize, width: usize, wide: usize, to: &mut [f32]) {
    let to = &mut to[..n * wide];
    if b.col_stride == 1 {
        let rows = || {
            (k..k + n).map(|i| {
                ask(b.data, (i + AHEAD) * b.row_stride + col, width);
                &b.data[i * b.row_stride + col..][..width]
            })
        };
        match (width, wide) {
            (32, 32) => rows().zip(to.as_chunks_mut::<32>().0).for_each(|(from, to)| copy(from, to)),
            (16, 16) => rows().zip(to.as_chunks_mut::<16>().0).for_each(|(from, to)| copy(from, to)),
            (8, 8) => rows().zip(to.as_chunks_mut::<8>().0).for_each(|(from, to)| copy(from, to)),
            _ => rows().zip(to.chunks_exact_mut(wide)).for_each(|(from, to)| {
                to[..width].copy_from_slice(from);
                to[width..].fill(0.0);
            }),
        }
    } else {
        if width < wide {
            to.fill(0.0);
        }
        transposed(b, k, n, col, width, wide, to);
    }
}

/// Has the lines of `width` values from `at` on brought near, where there are such.
#[inline(always)]
fn ask(data: &[f32], at: usize, width: usize) {
    #[cfg(target_arch = "x86_64")]
    for i in (0..width).step_by(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is in every x86-64, and a prefetch reads nothing that the program sees.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(data.as_ptr().wrapping_add(at + i).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, at, width);
}

/// A copy of a known length is a few moves rather than a call.
#[inline(always)]
fn copy<const N: usize>(from: &[f32], to: &mut [f32; N]) {
    if let Some(from) = from.first_chunk() {
        *to = *from;
    }
}

/// As [`panel`] of a matrix whose rows are not contiguous, into a panel whose missing columns are zero already.
fn transposed(b: &Matrix<'_>, k: usize, n: usize, col: usize, width: usize, wide: usize, to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if b.row_stride == 1 && width.is_multiple_of(8) && std::arch::is_x86_feature_detected!("avx") {
        let whole = n / 8 * 8;
        for j in (0..width).step_by(8) {
            for i in (0..whole).step_by(8) {
                let from = &b.data[(col + j) * b.col_stride + k + i..][..7 * b.col_stride + 8];
                let to = &mut to[i * wide + j..][..7 * wide + 8];
                // SAFETY: AVX was detected; both slices hold eight rows of eight values.
                unsafe { x86::transpose(from.as_ptr(), b.col_stride, to.as_mut_ptr(), wide) };
            }
        }
        return scattered(b, k, whole..n, col, width, wide, to);
    }
    scattered(b, k, 0..n, col, width, wide, to);
}

fn scattered(
    b: &Matrix<'_>,
    k: usize,
    rows: std::ops::Range<usize>,
    col: usize,
    width: usize,
    wide: usize,
    to: &mut [f32],
) {
    for j in 0..width {
        let first = (col + j) * b.col_stride;
        for i in rows.clone() {
            to[i * wide + j] = b.data[first + (k + i) * b.row_stride];
        }
    }
}

/// Columns `k..k + n` of the rows `row..row + rows` of A, in tiles of `high` rows: `[tile][n][high]`. Rows that are missing
/// from the last tile are not written.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn tiles(a: &Matrix<'_>, row: usize, rows: usize, k: usize, n: usize, high: usize, to: &mut [f32]) {
    // Four tiles at a time use a line of A while it is in the first cache.
    for first in (0..rows).step_by(4 * high) {
        let here = (rows - first).min(4 * high);
        for i in 0..n {
            let at = (k + i) * a.col_stride + (row + first) * a.row_stride;
            let tiles = to[first * n..].chunks_mut(n * high);
            if a.row_stride == 1 {
                let from = &a.data[at..at + here];
                ask(a.data, at + AHEAD * a.col_stride, here);
                match high {
                    12 => split::<12>(from, tiles, i),
                    6 => split::<6>(from, tiles, i),
                    _ => tiles.zip(from.chunks(high)).for_each(|(to, from)| {
                        to[i * high..][..from.len()].copy_from_slice(from);
                    }),
                }
            } else {
                for (tile, to) in tiles.take(here.div_ceil(high)).enumerate() {
                    for (j, to) in to[i * high..][..high.min(here - tile * high)].iter_mut().enumerate() {
                        *to = a.data[at + (tile * high + j) * a.row_stride];
                    }
                }
            }
        }
    }
}

/// One column of A into the tiles of `H` rows that it crosses.
#[inline(always)]
fn split<'a, const H: usize>(from: &[f32], tiles: impl Iterator<Item = &'a mut [f32]>, column: usize) {
    let (whole, rest) = from.as_chunks::<H>();
    let mut tiles = tiles;
    for (from, to) in whole.iter().zip(&mut tiles) {
        if let Some(to) = to[column * H..].first_chunk_mut() {
            *to = *from;
        }
    }
    if let (false, Some(to)) = (rest.is_empty(), tiles.next()) {
        to[column * H..][..rest.len()].copy_from_slice(rest);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// The processor has AVX; eight rows of eight values, `stride` and `wide` apart, are there to read and to write.
    #[target_feature(enable = "avx")]
    pub unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, wide: usize) {
        // SAFETY: the caller's promise.
        let r: [__m256; 8] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(from.add(i * stride)) });
        let pairs = |a: usize| (_mm256_unpacklo_ps(r[a], r[a + 1]), _mm256_unpackhi_ps(r[a], r[a + 1]));
        let quads = |a: usize| {
            let ((al, ah), (bl, bh)) = (pairs(a), pairs(a + 2));
            [
                _mm256_shuffle_ps::<0x44>(al, bl),
                _mm256_shuffle_ps::<0xee>(al, bl),
                _mm256_shuffle_ps::<0x44>(ah, bh),
                _mm256_shuffle_ps::<0xee>(ah, bh),
            ]
        };
        let (upper, lower) = (quads(0), quads(4));
        for i in 0..4 {
            // SAFETY: the caller's promise.
            unsafe {
                _mm256_storeu_ps(to.add(i * wide), _mm256_permute2f128_ps::<0x20>(upper[i], lower[i]));
                _mm256_storeu_ps(to.add((i + 4) * wide), _mm256_permute2f128_ps::<0x31>(upper[i], lower[i]));
            }
        }
    }
}
