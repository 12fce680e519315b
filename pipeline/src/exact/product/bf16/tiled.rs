//! The product from tiles of bf16, by one of three kernels.
//!
//! For some hundred values of the sum, up to [`COLS_MAX`] columns of b are packed (unless those were before, see
//! [`Product::pack`]), then [`LINES_MAX`] rows of a, which are multiplied by as many columns at a time, group by group.

use std::ops::Range;

use super::{
    amx, avx512,
    pack::{self, Form, GROUP, Part},
};
use crate::exact::product::{Matrix, Operand, Product, begun};

/// Rows of a, and columns of b, that meet at a time: so many and so deep of both stay in the second cache.
const LINES_MAX: usize = 256;

/// Columns of b that are packed at a time.
const COLS_MAX: usize = 1024;

/// Words of a line of the caches.
const LINE: usize = 16;

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
    /// Of values in two parts: each part of a with each of b, but for the two smaller ones.
    AmxSplit,
    Avx512,
}

/// Packed lines of an operand, which are `deep` values long with the zeros at their end.
#[derive(Clone, Copy)]
struct Packed<'a> {
    kernel: Kernel,
    words: &'a [u32],
    lines: usize,
    deep: usize,
}

impl<'a> Packed<'a> {
    /// Its groups: the first line of each, how many it has, their tiles.
    fn groups(self) -> impl Iterator<Item = (usize, usize, &'a [u32])> {
        parts(self.lines, GROUP).map(move |(first, lines)| {
            let words = |lines| self.kernel.words(lines, self.deep);
            (first, lines, &self.words[words(first)..][..words(lines)])
        })
    }
}

impl Kernel {
    fn split(self) -> bool {
        self == Kernel::AmxSplit
    }

    /// Values of the sum that are computed before they are added to c.
    fn depth(self) -> usize {
        if self.split() { 256 } else { 512 }
    }

    /// Words of `lines` packed lines of `deep` values.
    fn words(self, lines: usize, deep: usize) -> usize {
        pack::words(lines, deep) << u32::from(self.split())
    }

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
                        Kernel::Amx => amx::block::<false>(&block),
                        Kernel::AmxSplit => amx::block::<true>(&block),
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
    /// Groups of b, then groups of a.
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
        let b = b.into();
        self.over(c, stride, add, a, b, scale, 0..b.cols());
    }

    fn columns(&mut self, c: &mut [f32], a: Matrix<'_>, b: Operand<'_>, cols: Range<usize>) {
        self.over(c, cols.len(), false, a, b, 1.0, cols);
    }

    fn packed_len(&self, rows: usize, cols: usize) -> usize {
        self.kernel.words(cols, rows)
    }

    fn pack(&self, b: Matrix<'_>, to: &mut [f32]) {
        assert!(b.fits() && to.len() == self.packed_len(b.rows, b.cols), "the panels hold b");
        let mut rest = words_mut(to);
        for (k, depth) in parts(b.rows, self.kernel.depth()) {
            let (here, left) = rest.split_at_mut(self.kernel.words(b.cols, depth));
            let part = Part { matrix: b.t(), line: 0, lines: b.cols, k, n: depth };
            // SAFETY: the instructions are here; the columns and values are those of b, which fits.
            unsafe { pack::groups(&part, Form::Pairs, self.kernel.split(), here) };
            rest = left;
        }
    }
}

impl Tiled {
    /// The columns `cols` of the product; c holds them alone. They begin where a group does.
    #[allow(clippy::too_many_arguments)]
    fn over(
        &mut self,
        c: &mut [f32],
        stride: usize,
        add: bool,
        a: Matrix<'_>,
        b: Operand<'_>,
        scale: f32,
        cols: Range<usize>,
    ) {
        if !begun(c, stride, add, &a, &b, &cols) {
            return;
        }
        let (kernel, depth_max) = (self.kernel, self.kernel.depth());
        let (of_b, cols_max) = match b {
            Operand::Matrix(b) => (kernel.words(COLS_MAX.min(cols.len()), depth_max.min(b.rows)), COLS_MAX),
            // Columns that were packed before are there all at once.
            Operand::Packed { rows, cols: all, panels } => {
                assert!(panels.len() == kernel.words(all, rows), "the panels are those of b");
                (0, cols.len())
            }
        };
        let needed = LINE + of_b + kernel.words(LINES_MAX.min(a.rows), depth_max.min(a.cols));
        if self.work.len() < needed {
            self.work.resize(needed, 0);
        }
        // A line of a tile that lies across two of the caches costs as much as two.
        let begin = self.work.as_ptr().align_offset(4 * LINE).min(LINE);
        let (columns, rows) = self.work[begin..].split_at_mut(of_b);
        let _tiles = (kernel != Kernel::Avx512).then(amx::Tiles::configured);
        for (k, depth) in parts(a.cols, depth_max) {
            let deep = depth.next_multiple_of(pack::DEEP);
            for (col, wide) in parts(cols.len(), cols_max) {
                let columns = match b {
                    Operand::Packed { cols: all, panels, .. } => {
                        &words(panels)[kernel.words(all, k)..][kernel.words(cols.start, deep)..]
                    }
                    Operand::Matrix(b) => {
                        let part = Part { matrix: b.t(), line: cols.start + col, lines: wide, k, n: depth };
                        // SAFETY: the instructions are here; the columns and values are those of b, which fits.
                        unsafe { pack::groups(&part, Form::Pairs, kernel.split(), columns) };
                        &columns[..]
                    }
                };
                for (row, high) in parts(a.rows, LINES_MAX) {
                    let part = Part { matrix: a, line: row, lines: high, k, n: depth };
                    // SAFETY: as above, of a.
                    unsafe { pack::groups(&part, Form::Lines, kernel.split(), rows) };
                    let of_a = Packed { kernel, words: rows, lines: high, deep };
                    for (first, lines) in parts(wide, LINES_MAX) {
                        let of_b = Packed { kernel, words: &columns[kernel.words(first, deep)..], lines, deep };
                        let c = &mut c[row * stride + col + first..];
                        // SAFETY: see `new`; tiles are configured.
                        unsafe { kernel.multiply(c, stride, of_a, of_b, scale, !add && k == 0) };
                    }
                }
            }
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
