//! The product from tiles of bf16, by one of two kernels.
//!
//! For each [`DEPTH`] values of the sum, [`LINES_MAX`] rows of a and as many columns of b (unless those were before, see
//! [`Product::pack`]) are packed, then multiplied group by group.

use super::{
    amx, avx512,
    pack::{self, Form, GROUP},
};
use crate::exact::product::{Matrix, Operand, Product, begun};

/// Values of the sum that are computed before they are added to c.
const DEPTH: usize = 512;

/// Rows of a, and columns of b, that are packed at a time: so many and so deep of both stay in the second cache.
const LINES_MAX: usize = 256;

/// A part of c: up to 32 by 32 of it, from `steps` tiles of a group of a and of a group of b.
#[derive(Clone, Copy)]
pub struct Block {
    pub c: *mut f32,
    pub stride: usize,
    pub rows: usize,
    pub width: usize,
    pub a: *const u32,
    pub b: *const u32,
    pub steps: usize,
    pub scale: f32,
    /// C is written, not added to.
    pub fresh: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    Amx,
    Avx512,
}

/// Packed lines of an operand, which are `deep` values long with the zeros at their end.
#[derive(Clone, Copy)]
struct Packed<'a> {
    words: &'a [u32],
    lines: usize,
    deep: usize,
}

impl<'a> Packed<'a> {
    /// Its groups: the first line of each, how many it has, their tiles.
    fn groups(self) -> impl Iterator<Item = (usize, usize, &'a [u32])> {
        parts(self.lines, GROUP).map(move |(first, lines)| {
            (first, lines, &self.words[pack::words(first, self.deep)..][..pack::words(lines, self.deep)])
        })
    }
}

impl Kernel {
    /// `c = (fresh ? 0 : c) + scale * a b`.
    ///
    /// # Safety
    /// The processor has the kernel's instructions, and tiles are configured where they need them.
    unsafe fn multiply(self, c: &mut [f32], stride: usize, a: Packed<'_>, b: Packed<'_>, scale: f32, fresh: bool) {
        assert!(a.deep == b.deep && (a.lines - 1) * stride + b.lines <= c.len(), "c holds the product of the parts");
        // Along the rows of c: what is written next then lies beside what was, and in the same pages.
        for (row, rows, of_a) in a.groups() {
            for (col, width, of_b) in b.groups() {
                let block = Block {
                    c: c[row * stride + col..].as_mut_ptr(),
                    stride,
                    rows,
                    width,
                    a: of_a.as_ptr(),
                    b: of_b.as_ptr(),
                    steps: a.deep / pack::DEEP,
                    scale,
                    fresh,
                };
                // SAFETY: the caller's promise about instructions and tiles; the block lies inside c, which nothing else refers
                // to, and its groups hold whole tiles so deep.
                unsafe {
                    match self {
                        Kernel::Amx => amx::block(&block),
                        Kernel::Avx512 => avx512::block(&block),
                    }
                }
            }
        }
    }
}

#[derive(Debug)]
pub struct Tiled {
    kernel: Kernel,
    /// A group of b, then groups of a.
    work: Vec<u32>,
}

impl Clone for Tiled {
    /// With no work space yet.
    fn clone(&self) -> Self {
        Self::new(self.kernel)
    }
}

impl Tiled {
    /// The caller knows that the processor has the kernel's instructions, and that the system permits them.
    pub fn new(kernel: Kernel) -> Self {
        Tiled { kernel, work: Vec::new() }
    }
}

impl Product for Tiled {
    fn product<'b>(
        &mut self,
        c: &mut [f32],
        stride: usize,
        add: bool,
        a: Matrix<'_>,
        b: impl Into<Operand<'b>>,
        scale: f32,
    ) {
        let Operand { matrix: b, panels } = b.into();
        if !begun(c, stride, add, &a, &b) {
            return;
        }
        let panels = panels.map(words);
        assert!(panels.is_none_or(|panels| panels.len() == pack::words(b.cols, b.rows)), "the panels are those of b");
        let of_b = if panels.is_none() { pack::words(LINES_MAX.min(b.cols), DEPTH.min(b.rows)) } else { 0 };
        let needed = of_b + pack::words(LINES_MAX.min(a.rows), DEPTH.min(a.cols));
        if self.work.len() < needed {
            self.work.resize(needed, 0);
        }
        let (columns, rows) = self.work.split_at_mut(of_b);
        let _tiles = (self.kernel == Kernel::Amx).then(amx::Tiles::configured);
        for k in (0..a.cols).step_by(DEPTH) {
            let depth = DEPTH.min(a.cols - k);
            let deep = depth.next_multiple_of(pack::DEEP);
            for (row, high) in parts(a.rows, LINES_MAX) {
                // SAFETY: the instructions are here; the rows and values are those of a, which fits.
                unsafe { pack::groups(&a, row, high, k, depth, Form::Lines, rows) };
                for (col, wide) in parts(b.cols, LINES_MAX) {
                    let columns = match panels {
                        Some(panels) => &panels[pack::words(b.cols, k) + pack::words(col, deep)..],
                        None => {
                            // SAFETY: as above, of b.
                            unsafe { pack::groups(&b.t(), col, wide, k, depth, Form::Pairs, columns) };
                            &columns[..]
                        }
                    };
                    let c = &mut c[row * stride + col..];
                    let (of_a, of_b) =
                        (Packed { words: rows, lines: high, deep }, Packed { words: columns, lines: wide, deep });
                    // SAFETY: see `new`; tiles are configured.
                    unsafe { self.kernel.multiply(c, stride, of_a, of_b, scale, !add && k == 0) };
                }
            }
        }
    }

    fn packed_len(&self, rows: usize, cols: usize) -> usize {
        pack::words(cols, rows)
    }

    fn pack(&self, b: Matrix<'_>, to: &mut [f32]) {
        assert!(b.fits() && to.len() == self.packed_len(b.rows, b.cols), "the panels hold b");
        let mut rest = words_mut(to);
        for k in (0..b.rows).step_by(DEPTH) {
            let depth = DEPTH.min(b.rows - k);
            let (here, left) = rest.split_at_mut(pack::words(b.cols, depth));
            // SAFETY: the instructions are here; the columns and values are those of b, which fits.
            unsafe { pack::groups(&b.t(), 0, b.cols, k, depth, Form::Pairs, here) };
            rest = left;
        }
    }
}

/// `0..n` in parts of at most `most`: where each begins, and its length.
fn parts(n: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).step_by(most).map(move |first| (first, most.min(n - first)))
}

/// Panels lie in buffers of f32: a word takes the place of one.
fn words(panels: &[f32]) -> &[u32] {
    // SAFETY: both are four bytes, aligned alike, and any bits are a value of either.
    unsafe { std::slice::from_raw_parts(panels.as_ptr().cast(), panels.len()) }
}

fn words_mut(panels: &mut [f32]) -> &mut [u32] {
    // SAFETY: as in `words`; the slice is borrowed for as long.
    unsafe { std::slice::from_raw_parts_mut(panels.as_mut_ptr().cast(), panels.len()) }
}
