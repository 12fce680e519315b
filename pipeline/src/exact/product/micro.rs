//! The innermost loops of the product, one set an instruction set: a tile of C rows by one or two vectors of columns.
//!
//! Every set computes the same chain of fused multiply-adds for an element, so they agree in every bit; they differ in how
//! many elements they hold in registers. In: a packed panel of B, rows of A where they lie or packed. Out: a strip of C.

/// A strip of the product: `rows x width` of C from `depth` columns of A and one packed panel of B.
#[derive(Clone, Copy)]
pub struct Strip {
    pub c: *mut f32,
    pub c_stride: usize,
    pub a: *const f32,
    pub a_row: usize,
    pub a_col: usize,
    pub rows: usize,
    /// Columns of C that exist; the panel holds whole vectors.
    pub width: usize,
    pub depth: usize,
    pub panel: *const f32,
    /// Another panel lies behind this one and is read next.
    pub followed: bool,
    pub scale: f32,
    /// C is written, not added to.
    pub fresh: bool,
}

/// Rows of the largest tile and values of a vector of any set here.
const ROWS_MAX: usize = 12;
const WIDTH_MAX: usize = 16;

/// Values of a line of the caches.
const LINE: usize = 16;

/// Has a line brought near, wherever it is.
#[inline(always)]
fn near(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is in every x86-64, and a prefetch reads nothing that the program sees.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Has a line brought into the second cache: a panel that was packed long ago lies in memory, and the first tile would wait
/// for all of it.
#[inline(always)]
fn nearer(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as `near`'s.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Writes one set: `$rows` rows by two vectors of `$w` values of type `$v`.
macro_rules! micro_kernel {
    ($name:ident, [$($attr:meta),*], $v:ty, $w:expr, $rows:expr, $zero:expr, $splat:expr, $load:expr, $store:expr,
     $mul:expr, $add:expr, $fma:expr) => {
        pub mod $name {
            #[allow(unused_imports)]
            use super::*;

            /// Values of a vector, and rows of a tile.
            pub const WIDTH: usize = $w;
            pub const ROWS: usize = $rows;

            /// # Safety
            /// The processor has the instructions of this set. All that the strip reaches is inside its buffers, the panel
            /// holds `depth` rows of one vector where `width <= WIDTH`, else of two.
            $(#[$attr])*
            pub unsafe fn strip(s: &Strip) {
                // SAFETY: as this function's.
                unsafe {
                    if s.width == 2 * WIDTH {
                        rows::<2>(s);
                    } else if s.width == WIDTH {
                        rows::<1>(s);
                    } else if s.width < WIDTH {
                        narrow::<1>(s);
                    } else {
                        narrow::<2>(s);
                    }
                }
            }

            /// The width is less than what the vectors hold: tiles go through a buffer.
            $(#[$attr])*
            unsafe fn narrow<const V: usize>(s: &Strip) {
                let mut tile = [0f32; ROWS_MAX * 2 * WIDTH_MAX];
                let wide = V * WIDTH;
                let mut row = 0;
                while row < s.rows {
                    let n = ROWS.min(s.rows - row);
                    // SAFETY: the buffer holds a tile; rows and columns are those of the strip.
                    unsafe {
                        let part = Strip {
                            c: tile.as_mut_ptr(),
                            c_stride: wide,
                            a: s.a.add(row * s.a_row),
                            rows: n,
                            width: wide,
                            fresh: true,
                            ..*s
                        };
                        rows::<V>(&part);
                        for i in 0..n {
                            for j in 0..s.width {
                                let to = s.c.add((row + i) * s.c_stride + j);
                                *to = if s.fresh { tile[i * wide + j] } else { *to + tile[i * wide + j] };
                            }
                        }
                    }
                    row += n;
                }
            }

            $(#[$attr])*
            unsafe fn rows<const V: usize>(s: &Strip) {
                // SAFETY: `row` stays below `rows`.
                unsafe {
                    let mut row = 0;
                    let next = s.depth * V * WIDTH;
                    let each = if s.followed { (next / LINE).div_ceil(s.rows.div_ceil(ROWS)) } else { 0 };
                    let mut ahead = s.panel.wrapping_add(next);
                    while row + ROWS <= s.rows {
                        for _ in 0..each {
                            nearer(ahead);
                            ahead = ahead.wrapping_add(LINE);
                        }
                        tile::<ROWS, V>(s, row);
                        row += ROWS;
                    }
                    if ROWS > 8 && row + 8 <= s.rows {
                        tile::<8, V>(s, row);
                        row += 8;
                    }
                    if row + 4 <= s.rows {
                        tile::<4, V>(s, row);
                        row += 4;
                    }
                    while row < s.rows {
                        tile::<1, V>(s, row);
                        row += 1;
                    }
                }
            }

            $(#[$attr])*
            unsafe fn tile<const R: usize, const V: usize>(s: &Strip, row: usize) {
                // SAFETY: as `strip`'s.
                unsafe {
                    match s.a_col {
                        1 => sums::<R, V, false>(s, row),
                        _ => sums::<R, V, true>(s, row),
                    }
                }
            }

            /// `ALONG`: the rows of A lie next to each other, rather than its columns.
            $(#[$attr])*
            #[inline]
            unsafe fn sums<const R: usize, const V: usize, const ALONG: bool>(s: &Strip, row: usize) {
                let (next, apart) = if ALONG { (s.a_col, 1) } else { (1, s.a_row) };
                // SAFETY: as `strip`'s.
                unsafe {
                    let mut sums = [[$zero; V]; R];
                    let mut b = s.panel;
                    // A base for each four rows: their addresses then need no sum of many strides.
                    let first = s.a.add(row * s.a_row);
                    let mut bases = [first; ROWS_MAX.div_ceil(4)];
                    for (i, base) in bases.iter_mut().enumerate().take(R.div_ceil(4)) {
                        *base = std::hint::black_box(first.wrapping_add(4 * i * apart));
                    }
                    macro_rules! one {
                        ($u:expr) => {
                            let mut columns = [$zero; V];
                            for (j, column) in columns.iter_mut().enumerate() {
                                *column = $load(b.add(WIDTH * (V * $u + j)));
                            }
                            for i in 0..R {
                                let x = match ALONG {
                                    true => *bases[0].add(i + $u * next),
                                    false => *bases[i / 4].add((i % 4) * apart + $u),
                                };
                                let x = $splat(x);
                                for j in 0..V {
                                    sums[i][j] = $fma(x, columns[j], sums[i][j]);
                                }
                            }
                        };
                    }
                    macro_rules! four {
                        () => {
                            one!(0);
                            one!(1);
                            one!(2);
                            one!(3);
                            for base in bases.iter_mut().take(R.div_ceil(4)) {
                                *base = base.wrapping_add(4 * next);
                            }
                            b = b.wrapping_add(4 * V * WIDTH);
                        };
                    }
                    for i in 0..R {
                        for j in 0..V {
                            near(s.c.wrapping_add((row + i) * s.c_stride + WIDTH * j));
                        }
                    }
                    let mut left = s.depth;
                    let mut ahead = first.wrapping_add(R * apart);
                    while !ALONG && left >= 16 {
                        // The rows of the next tile lie in other pages: nobody else would fetch them.
                        for i in 0..R {
                            near(ahead.wrapping_add(i * apart));
                        }
                        ahead = ahead.wrapping_add(16);
                        for _ in 0..4 {
                            four!();
                        }
                        left -= 16;
                    }
                    while left >= 4 {
                        four!();
                        left -= 4;
                    }
                    while left > 0 {
                        one!(0);
                        for base in bases.iter_mut().take(R.div_ceil(4)) {
                            *base = base.wrapping_add(next);
                        }
                        b = b.wrapping_add(V * WIDTH);
                        left -= 1;
                    }
                    let scale = $splat(s.scale);
                    for (i, sums) in sums.iter().enumerate() {
                        for (j, sum) in sums.iter().enumerate() {
                            let to = s.c.add((row + i) * s.c_stride + WIDTH * j);
                            let scaled = $mul(scale, *sum);
                            $store(to, if s.fresh { scaled } else { $add($load(to), scaled) });
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
micro_kernel!(
    avx512,
    [target_feature(enable = "avx512f,fma")],
    __m512,
    16,
    12,
    _mm512_setzero_ps(),
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_mul_ps,
    _mm512_add_ps,
    _mm512_fmadd_ps
);

#[cfg(target_arch = "x86_64")]
micro_kernel!(
    avx2,
    [target_feature(enable = "avx2,fma")],
    __m256,
    8,
    6,
    _mm256_setzero_ps(),
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_mul_ps,
    _mm256_add_ps,
    _mm256_fmadd_ps
);

/// Four values that the compiler may hold in one register.
type Quad = [f32; 4];

#[inline(always)]
fn splat(x: f32) -> Quad {
    [x; 4]
}

#[inline(always)]
unsafe fn load(from: *const f32) -> Quad {
    // SAFETY: the caller's four values.
    unsafe { *from.cast() }
}

#[inline(always)]
unsafe fn store(to: *mut f32, x: Quad) {
    // SAFETY: the caller's four values.
    unsafe { *to.cast() = x }
}

#[inline(always)]
fn mul(a: Quad, b: Quad) -> Quad {
    std::array::from_fn(|i| a[i] * b[i])
}

#[inline(always)]
fn add(a: Quad, b: Quad) -> Quad {
    std::array::from_fn(|i| a[i] + b[i])
}

#[inline(always)]
fn fused(a: Quad, b: Quad, c: Quad) -> Quad {
    std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
}

#[inline(always)]
fn apart(a: Quad, b: Quad, c: Quad) -> Quad {
    add(mul(a, b), c)
}

// On aarch64 these are vector instructions; on an x86-64 without FMA each is a call.
micro_kernel!(portable, [], Quad, 4, 8, splat(0.0), splat, load, store, mul, add, fused);
// Multiplication and addition rounded apart: other bits, for a processor on which a fused one is a call.
micro_kernel!(plain, [], Quad, 4, 4, splat(0.0), splat, load, store, mul, add, apart);
