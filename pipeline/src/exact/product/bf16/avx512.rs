//! Blocks of c by AVX512-BF16: a pair of a, in every lane, times the pairs of 16 columns.
//!
//! VDPBF16PS adds the product of the odd values of a pair to the element, then that of the even ones.

use std::arch::x86_64::*;

use super::{
    pack::{LINES, TILE},
    tiled::Block,
};

/// Rows whose sums are in registers.
const ROWS: usize = 8;

pub fn here() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512bw") && has!("avx512bf16")
}

/// Whether VDPBF16PS does more than FMA: twice as much on AMD's processors (Zen 4: iree-org/iree#15089), half as much on Intel's
/// that have AMX (Emerald Rapids: 85 beside 155 GFLOP/s, and libxsmm/tpp-mlir#1025).
pub fn quick() -> bool {
    __cpuid(0).ebx.to_le_bytes() == *b"Auth"
}

/// # Safety
/// The processor has AVX512-BF16. The block lies in its buffers, and its groups hold as many tiles as it has rows and columns.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn block(s: &Block) {
    let mut row = 0;
    while row < s.rows {
        // SAFETY: the caller's promise; rows of a tile that c does not have are zero and are not written.
        unsafe {
            match (s.rows - row == 1, s.width > LINES) {
                (false, true) => sums::<ROWS, 2>(s, row),
                (false, false) => sums::<ROWS, 1>(s, row),
                (true, true) => sums::<1, 2>(s, row),
                (true, false) => sums::<1, 1>(s, row),
            }
        }
        row += ROWS;
    }
}

/// `R` rows from `row` on, all of one tile, by `V` vectors.
///
/// # Safety
/// As [`block`]'s.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn sums<const R: usize, const V: usize>(s: &Block, row: usize) {
    // Tiles of a from one step to the next.
    let apart = s.rows.div_ceil(LINES) * TILE;
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        let mut a = s.a.add(row / LINES * TILE + row % LINES * (TILE / LINES));
        let mut b = s.b;
        for _ in 0..s.steps {
            for pair in 0..LINES {
                let columns: [__m512i; V] =
                    std::array::from_fn(|j| _mm512_loadu_si512(b.add(j * TILE + pair * LINES).cast()));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*a.add(i * (TILE / LINES) + pair) as i32);
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = _mm512_dpbf16_ps(*sum, bf16(x), bf16(column));
                    }
                }
            }
            a = a.wrapping_add(apart);
            b = b.wrapping_add(V * TILE);
        }
        let scale = _mm512_set1_ps(s.scale);
        for (i, sums) in sums.into_iter().enumerate().take(s.rows - row) {
            for (j, sum) in sums.into_iter().enumerate() {
                let to = s.c.wrapping_add((row + i) * s.stride + LINES * j);
                let mask = ((1u32 << (s.width - LINES * j).min(LINES)) - 1) as __mmask16;
                let scaled = _mm512_mul_ps(scale, sum);
                let c = if s.fresh { scaled } else { _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), scaled) };
                _mm512_mask_storeu_ps(to, mask, c);
            }
        }
    }
}

#[inline(always)]
fn bf16(x: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of any value.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
}
