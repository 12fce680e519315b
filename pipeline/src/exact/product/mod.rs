//! The matrix product as the block sees it, and the one whose order is fixed.
//!
//! [`FixedProduct`] defines every element: for each [`DEPTH`] columns of a, a chain of fused multiply-adds
//! `fma(a[i][k], b[k][j], sum)` from zero in the order of k; the chains are scaled and added to the element in their order.
//! A fused multiply-add is rounded once, wherever it is computed, so neither the width of a vector, nor how work is cut into
//! tiles, nor the processor changes a bit.

mod bf16;
mod micro;
mod pack;

use std::ops::Range;

pub use bf16::{Bf16Instructions, Bf16Product, Bf16x3Product};
use micro::Strip;

/// A matrix in a slice, by strides; `t()` is its transpose without a copy.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major, without gaps.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Row-major, the rows `stride` values apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Matrix { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    pub fn t(self) -> Self {
        Matrix {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }

    /// Whether every element lies inside the slice.
    pub fn fits(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.data.len()
    }
}

/// The second operand of a product.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    Matrix(Matrix<'a>),
    /// What [`Product::pack`] made of a matrix of so many rows and columns.
    Packed {
        rows: usize,
        cols: usize,
        panels: &'a [f32],
    },
}

impl<'a> From<Matrix<'a>> for Operand<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        Operand::Matrix(matrix)
    }
}

impl Operand<'_> {
    pub fn rows(&self) -> usize {
        match self {
            Operand::Matrix(matrix) => matrix.rows,
            Operand::Packed { rows, .. } => *rows,
        }
    }

    pub fn cols(&self) -> usize {
        match self {
            Operand::Matrix(matrix) => matrix.cols,
            Operand::Packed { cols, .. } => *cols,
        }
    }

    fn fits(&self) -> bool {
        match self {
            Operand::Matrix(matrix) => matrix.fits(),
            // The product that made them knows their length.
            Operand::Packed { .. } => true,
        }
    }
}

/// Multiplies matrices and runs the lanes of a micro-batch.
pub trait Product: Clone + Send + Sync + 'static {
    /// `c = (add ? c : 0) + scale * a b`, c row-major with rows `stride` values apart. Panics where shapes do not match.
    fn product<'b>(
        &mut self,
        c: &mut [f32],
        stride: usize,
        add: bool,
        a: Matrix<'_>,
        b: impl Into<Operand<'b>>,
        scale: f32,
    );

    /// The columns `cols` of [`product`](Product::product) with scale 1, `c = (a b)[.., cols]` without gaps. `cols` begins at a
    /// multiple of [`COLUMNS`]. The bits are those of the whole product.
    fn columns(&mut self, c: &mut [f32], a: Matrix<'_>, b: Operand<'_>, cols: Range<usize>);

    /// Values of the panels of a second operand of so many rows and columns.
    fn packed_len(&self, rows: usize, cols: usize) -> usize;

    /// Packs a second operand that many products share. `to` holds [`packed_len`](Product::packed_len) values.
    fn pack(&self, b: Matrix<'_>, to: &mut [f32]);

    /// Runs `work` on every item, in any order: no item may depend on another.
    fn each<T: Send>(&self, items: &mut [T], work: impl Fn(&mut T) + Sync) {
        items.iter_mut().for_each(work);
    }
}

/// Checks the shapes of a product, of which the columns `cols` are wanted, and writes that of nothing. False: no sums are left to
/// compute.
fn begun(c: &mut [f32], stride: usize, add: bool, a: &Matrix<'_>, b: &Operand<'_>, cols: &Range<usize>) -> bool {
    assert!(a.cols == b.rows() && a.fits() && b.fits(), "shapes of a product match");
    assert!(cols.start.is_multiple_of(COLUMNS) && cols.end <= b.cols(), "the columns are some of b's");
    if a.rows == 0 || cols.is_empty() {
        return false;
    }
    let width = cols.len();
    assert!((a.rows - 1) * stride + width <= c.len() && stride >= width, "the result holds the product");
    if a.cols == 0 && !add {
        c.chunks_mut(stride).take(a.rows).for_each(|row| row[..width].fill(0.0));
    }
    a.cols > 0
}

/// Columns of a that one chain covers: a panel of b so deep stays in the first cache.
pub const DEPTH: usize = 256;

/// Columns of b after which its panels may be parted: a multiple of every panel's width.
pub const COLUMNS: usize = 64;

/// Rows of a that are packed at a time, where they are.
const PACKED_ROWS: usize = 480;

/// Which instructions compute. All but `Plain` give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// 512-bit vectors.
    Avx512,
    /// 256-bit vectors and FMA.
    Avx2,
    /// What every build of this architecture has. Without FMA in hardware it is very slow.
    Portable,
    /// Multiplication and addition apart: not the order's bits, and only for processors without FMA.
    Plain,
}

impl Instructions {
    /// The fastest that keep the bits.
    pub fn fixed() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("fma") {
                return Instructions::Avx512;
            }
            if has!("avx2") && has!("fma") {
                return Instructions::Avx2;
            }
        }
        Instructions::Portable
    }

    /// The fastest, whatever their bits.
    pub fn fastest() -> Self {
        match Self::fixed() {
            Instructions::Portable if cfg!(target_arch = "x86_64") => Instructions::Plain,
            fixed => fixed,
        }
    }

    /// Whether this processor has them.
    pub fn here(self) -> bool {
        match (self, Self::fixed()) {
            (Instructions::Avx512, have) => have == Instructions::Avx512,
            (Instructions::Avx2, have) => matches!(have, Instructions::Avx512 | Instructions::Avx2),
            (Instructions::Portable | Instructions::Plain, _) => true,
        }
    }

    /// Rows of a tile, and values of a vector.
    fn tile(self) -> (usize, usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => (micro::avx512::ROWS, micro::avx512::WIDTH),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => (micro::avx2::ROWS, micro::avx2::WIDTH),
            Instructions::Plain => (micro::plain::ROWS, micro::plain::WIDTH),
            _ => (micro::portable::ROWS, micro::portable::WIDTH),
        }
    }

    /// # Safety
    /// The processor has these instructions; the rest as [`micro`]'s.
    unsafe fn strip(self, strip: &Strip) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 => micro::avx512::strip(strip),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => micro::avx2::strip(strip),
                Instructions::Plain => micro::plain::strip(strip),
                _ => micro::portable::strip(strip),
            }
        }
    }
}

/// One order of summation on every CPU.
#[derive(Debug)]
pub struct FixedProduct {
    instructions: Instructions,
    /// A panel of b, then tiles of a.
    work: Vec<f32>,
}

impl Clone for FixedProduct {
    /// With no work space yet.
    fn clone(&self) -> Self {
        FixedProduct { instructions: self.instructions, work: Vec::new() }
    }
}

impl Default for FixedProduct {
    fn default() -> Self {
        Self::with(Instructions::fixed())
    }
}

impl FixedProduct {
    /// Panics where this processor lacks the instructions.
    pub fn with(instructions: Instructions) -> Self {
        assert!(instructions.here(), "this processor computes with {instructions:?}");
        FixedProduct { instructions, work: Vec::new() }
    }
}

impl Product for FixedProduct {
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
        rows * padded(cols, self.instructions.tile().1)
    }

    fn pack(&self, b: Matrix<'_>, to: &mut [f32]) {
        assert!(b.fits() && to.len() == self.packed_len(b.rows, b.cols), "the panels hold b");
        let (_, wide) = self.instructions.tile();
        let padded = padded(b.cols, wide);
        for k in (0..b.rows).step_by(DEPTH) {
            let depth = DEPTH.min(b.rows - k);
            for col in (0..b.cols).step_by(2 * wide) {
                let width = (2 * wide).min(b.cols - col);
                let across = if width <= wide { wide } else { 2 * wide };
                pack::panel(&b, k, depth, col, width, across, &mut to[k * padded + col * depth..][..across * depth]);
            }
        }
    }
}

impl FixedProduct {
    /// The columns `cols` of the product; c holds them alone.
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
        let (high, wide) = self.instructions.tile();
        let padded = padded(b.cols(), wide);
        // Rows of a that lie apart are read where they are; columns are packed once for all panels.
        let packed = a.col_stride != 1 && (b.cols() > 2 * wide || a.row_stride != 1);
        let rows_max = if packed { PACKED_ROWS / high * high } else { a.rows };
        let of_panel = match b {
            Operand::Matrix(_) => DEPTH * 2 * wide,
            Operand::Packed { panels, .. } => {
                assert!(panels.len() == padded * b.rows(), "the panels are those of b");
                0
            }
        };
        let needed = of_panel + if packed { DEPTH * rows_max } else { 0 };
        if self.work.len() < needed {
            self.work.resize(needed, 0.0);
        }
        let (panel, tiles) = self.work.split_at_mut(of_panel);
        for k in (0..a.cols).step_by(DEPTH) {
            let depth = DEPTH.min(a.cols - k);
            for row in (0..a.rows).step_by(rows_max) {
                let rows = rows_max.min(a.rows - row);
                if packed {
                    pack::tiles(&a, row, rows, k, depth, high, tiles);
                }
                for col in cols.clone().step_by(2 * wide) {
                    let width = (2 * wide).min(cols.end - col);
                    // The panel may be wider than what is asked of it.
                    let across = if b.cols() - col <= wide { wide } else { 2 * wide };
                    let panel = match &b {
                        Operand::Packed { panels, .. } => &panels[k * padded + col * depth..][..across * depth],
                        Operand::Matrix(b) => {
                            pack::panel(b, k, depth, col, width, across, panel);
                            &panel[..across * depth]
                        }
                    };
                    let strip = Strip {
                        c: c[row * stride + col - cols.start..].as_mut_ptr(),
                        c_stride: stride,
                        a: a.data[row * a.row_stride + k * a.col_stride..].as_ptr(),
                        a_row: a.row_stride,
                        a_col: a.col_stride,
                        rows,
                        width,
                        depth,
                        panel: panel.as_ptr(),
                        followed: of_panel == 0 && (col + 2 * wide < cols.end || k + DEPTH < a.cols),
                        scale,
                        fresh: !add && k == 0,
                    };
                    if !packed {
                        // SAFETY: the instructions are here (see `with`); the shapes were checked above: rows and columns of
                        // the strip lie inside a and c, which nothing else refers to, and the panel was packed so wide.
                        unsafe { self.instructions.strip(&strip) };
                        continue;
                    }
                    for (i, tile) in tiles.chunks(depth * high).take(rows.div_ceil(high)).enumerate() {
                        let rows = high.min(rows - i * high);
                        let c = c[(row + i * high) * stride + col - cols.start..].as_mut_ptr();
                        // SAFETY: as above; a tile holds `depth` columns of `high` rows.
                        unsafe {
                            self.instructions.strip(&Strip {
                                c,
                                rows,
                                a: tile.as_ptr(),
                                a_row: 1,
                                a_col: high,
                                followed: false,
                                ..strip
                            });
                        }
                    }
                }
            }
        }
    }
}

/// Columns of all panels: the last may hold one vector, what is missing in it is zero.
fn padded(cols: usize, wide: usize) -> usize {
    cols.next_multiple_of(wide)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    /// The definition, element by element.
    fn plain(c: &mut [f32], stride: usize, add: bool, a: Matrix<'_>, b: Matrix<'_>, scale: f32) {
        for i in 0..a.rows {
            for j in 0..b.cols {
                let c = &mut c[i * stride + j];
                for first in (0..a.cols).step_by(DEPTH) {
                    let mut sum = 0f32;
                    for k in first..a.cols.min(first + DEPTH) {
                        let x = a.data[i * a.row_stride + k * a.col_stride];
                        sum = x.mul_add(b.data[k * b.row_stride + j * b.col_stride], sum);
                    }
                    *c = if add || first > 0 { *c + scale * sum } else { scale * sum };
                }
            }
        }
    }

    #[test]
    fn every_orientation_and_remainder_has_the_bits_of_the_definition() {
        let sets = [Instructions::Avx512, Instructions::Avx2, Instructions::Portable];
        let shapes = [(1, 1, 1), (7, 5, 17), (6, 16, 16), (13, 33, 40), (2, 600, 3), (27, 257, 96), (500, 20, 50)];
        for ((m, k, n), set) in shapes.into_iter().flat_map(|s| sets.map(|set| (s, set))) {
            if !set.here() {
                continue;
            }
            let (x, y) = (values(m * k, 1), values(k * n, 2));
            let a = [Matrix::new(&x, m, k), Matrix::new(&x, k, m).t()];
            let b = [Matrix::new(&y, k, n), Matrix::new(&y, n, k).t()];
            for (a, b, add) in
                a.iter().flat_map(|a| b.iter().map(move |b| (a, b))).flat_map(|(a, b)| [(a, b, false), (a, b, true)])
            {
                let stride = n + 3;
                let mut got = values(m * stride, 3);
                let before = got.clone();
                let mut wanted = got.clone();
                FixedProduct::with(set).product(&mut got, stride, add, *a, *b, 0.5);
                plain(&mut wanted, stride, add, *a, *b, 0.5);
                assert!(got == wanted, "{set:?} {m} {k} {n} {add}");
                let mut product = FixedProduct::with(set);
                let mut panels = vec![f32::NAN; product.packed_len(k, n)];
                product.pack(*b, &mut panels);
                let mut packed = before.clone();
                let panels = Operand::Packed { rows: k, cols: n, panels: &panels };
                product.product(&mut packed, stride, add, *a, panels, 0.5);
                assert!(packed == wanted, "{set:?} {m} {k} {n} {add}, packed before");
            }
        }
    }

    /// Columns that are computed apart have the bits of the whole product, whether b was packed before or is now.
    pub fn columns_have_the_bits_of_the_whole(mut product: impl Product, [m, k, n]: [usize; 3]) {
        let (x, y) = (values(m * k, 1), values(k * n, 2));
        let (a, b) = (Matrix::new(&x, m, k), Matrix::new(&y, n, k).t());
        let mut panels = vec![f32::NAN; product.packed_len(k, n)];
        product.pack(b, &mut panels);
        let mut whole = vec![f32::NAN; m * n];
        product.product(&mut whole, n, false, a, b, 1.0);
        for b in [b.into(), Operand::Packed { rows: k, cols: n, panels: &panels }] {
            for start in (0..n).step_by(COLUMNS) {
                let cols = start..n.min(start + 2 * COLUMNS);
                let mut part = vec![f32::NAN; m * cols.len()];
                product.columns(&mut part, a, b, cols.clone());
                for (row, part) in whole.chunks(n).zip(part.chunks(cols.len())) {
                    assert_eq!(row[cols.clone()], *part, "{m} {k} {n} {start}");
                }
            }
        }
    }

    #[test]
    fn columns_apart_have_the_bits_of_the_whole() {
        for shape in [[1, 300, 200], [3, 40, 64], [14, 270, 129], [2, 5, 330]] {
            columns_have_the_bits_of_the_whole(FixedProduct::default(), shape);
        }
    }

    #[test]
    fn strided_rows_are_read_and_written_where_they_lie() {
        let x = values(40, 1);
        let a = Matrix::strided(&x[2..], 4, 3, 10);
        let y = values(12, 2);
        let mut c = [9.0; 4 * 6];
        FixedProduct::default().product(&mut c[1..], 6, false, a, Matrix::new(&y, 3, 4), 1.0);
        assert_eq!((c[0], c[5], c[6]), (9.0, 9.0, 9.0));
        assert_eq!(c[1], x[4].mul_add(y[8], x[3].mul_add(y[4], x[2].mul_add(y[0], 0.0))));
    }

    /// What a processor without FMA computes is near, and a product of nothing is zero.
    #[test]
    fn multiplication_and_addition_apart_are_near() {
        let (x, y) = (values(30 * 300, 1), values(300 * 21, 2));
        let (a, b) = (Matrix::new(&x, 30, 300), Matrix::new(&y, 21, 300).t());
        let (mut plain, mut fixed) = (vec![1.0; 30 * 21], vec![1.0; 30 * 21]);
        FixedProduct::with(Instructions::Plain).product(&mut plain, 21, true, a, b, 0.1);
        FixedProduct::default().product(&mut fixed, 21, true, a, b, 0.1);
        assert!(plain.iter().zip(&fixed).all(|(a, b)| (a - b).abs() < 1e-4));
        FixedProduct::default().product(&mut plain, 21, false, Matrix::new(&[], 30, 0), Matrix::new(&[], 0, 21), 1.0);
        assert!(plain.iter().all(|&v| v == 0.0));
    }
}
