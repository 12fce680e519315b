//! The matrix product as the block sees it, and the one whose order is fixed.
//!
//! [`FixedProduct`] adds `a[i][0] b[0][j] + a[i][1] b[1][j] + ...` one after the other for every element, multiplication and
//! addition rounded apart. Vectors run over columns, so their width changes speed but no bit.

use multiversion::multiversion;

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

/// Multiplies matrices and runs the lanes of a micro-batch.
pub trait Product: Clone + Send + 'static {
    /// `c = (add ? c : 0) + scale * a b`, c row-major with rows `stride` values apart. Panics where shapes do not match.
    fn product(&mut self, c: &mut [f32], stride: usize, add: bool, a: Matrix<'_>, b: Matrix<'_>, scale: f32);

    /// Runs `work` on every item, in any order: no item may depend on another.
    fn each<T: Send>(&self, items: &mut [T], work: impl Fn(&mut T) + Sync) {
        items.iter_mut().for_each(work);
    }
}

/// Columns of a panel and rows of a tile: 6 x 16 sums fill the registers of the common vector units.
const NR: usize = 16;
const MR: usize = 6;

/// One order of summation on every CPU.
#[derive(Clone, Debug, Default)]
pub struct FixedProduct {
    /// Columns of b, next to each other.
    panel: Vec<f32>,
}

impl Product for FixedProduct {
    fn product(&mut self, c: &mut [f32], stride: usize, add: bool, a: Matrix<'_>, b: Matrix<'_>, scale: f32) {
        assert!(a.cols == b.rows && a.fits() && b.fits(), "shapes of a product match");
        if a.rows == 0 || b.cols == 0 {
            return;
        }
        assert!((a.rows - 1) * stride + b.cols <= c.len(), "the result holds the product");
        self.panel.resize(b.rows * NR, 0.0);
        for col in (0..b.cols).step_by(NR) {
            let width = NR.min(b.cols - col);
            pack(&b, col, width, &mut self.panel);
            panel(&mut c[col..], stride, width, add, &a, &self.panel, scale);
        }
    }
}

/// Copies columns `col..col + width` of b row by row; the rest of the panel is zero.
fn pack(b: &Matrix<'_>, col: usize, width: usize, panel: &mut [f32]) {
    if b.col_stride == 1 && width == NR {
        for (k, to) in panel.chunks_exact_mut(NR).enumerate() {
            let at = k * b.row_stride + col;
            to.copy_from_slice(&b.data[at..at + NR]);
        }
    } else if b.row_stride == 1 {
        if width < NR {
            panel.fill(0.0);
        }
        for j in 0..width {
            let from = &b.data[(col + j) * b.col_stride..][..b.rows];
            for (to, &v) in panel.chunks_exact_mut(NR).zip(from) {
                to[j] = v;
            }
        }
    } else {
        for (k, to) in panel.chunks_exact_mut(NR).enumerate() {
            to.fill(0.0);
            for (j, to) in to[..width].iter_mut().enumerate() {
                *to = b.data[k * b.row_stride + (col + j) * b.col_stride];
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
fn panel(c: &mut [f32], stride: usize, width: usize, add: bool, a: &Matrix<'_>, panel: &[f32], scale: f32) {
    let mut row = 0;
    while row + MR <= a.rows {
        tile::<MR>(&mut c[row * stride..], stride, width, add, a, row, panel, scale);
        row += MR;
    }
    while row < a.rows {
        tile::<1>(&mut c[row * stride..], stride, width, add, a, row, panel, scale);
        row += 1;
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn tile<const R: usize>(
    c: &mut [f32],
    stride: usize,
    width: usize,
    add: bool,
    a: &Matrix<'_>,
    row: usize,
    panel: &[f32],
    scale: f32,
) {
    let mut sums = [[0f32; NR]; R];
    let start = row * a.row_stride;
    for (k, b) in panel.chunks_exact(NR).enumerate() {
        let at = start + k * a.col_stride;
        for (i, sums) in sums.iter_mut().enumerate() {
            let x = a.data[at + i * a.row_stride];
            for j in 0..NR {
                sums[j] += x * b[j];
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        let to = &mut c[i * stride..][..width];
        match add {
            true => to.iter_mut().zip(sums).for_each(|(c, s)| *c += scale * s),
            false => to.iter_mut().zip(sums).for_each(|(c, s)| *c = scale * s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    /// The definition, element by element.
    fn plain(c: &mut [f32], stride: usize, add: bool, a: Matrix<'_>, b: Matrix<'_>, scale: f32) {
        for i in 0..a.rows {
            for j in 0..b.cols {
                let mut sum = 0.0;
                for k in 0..a.cols {
                    sum += a.data[i * a.row_stride + k * a.col_stride] * b.data[k * b.row_stride + j * b.col_stride];
                }
                let c = &mut c[i * stride + j];
                *c = if add { *c } else { 0.0 } + scale * sum;
            }
        }
    }

    #[test]
    fn every_orientation_and_remainder_has_the_bits_of_the_definition() {
        for (m, k, n) in [(1, 1, 1), (7, 5, 17), (6, 16, 16), (13, 33, 40), (2, 100, 3)] {
            let (x, y) = (values(m * k, 1), values(k * n, 2));
            let a = [Matrix::new(&x, m, k), Matrix::new(&x, k, m).t()];
            let b = [Matrix::new(&y, k, n), Matrix::new(&y, n, k).t()];
            for (a, b, add) in
                a.iter().flat_map(|a| b.iter().map(move |b| (a, b))).flat_map(|(a, b)| [(a, b, false), (a, b, true)])
            {
                let stride = n + 3;
                let mut got = values(m * stride, 3);
                let mut wanted = got.clone();
                FixedProduct::default().product(&mut got, stride, add, *a, *b, 0.5);
                plain(&mut wanted, stride, add, *a, *b, 0.5);
                assert_eq!(got, wanted, "{m} {k} {n} {add}");
            }
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
        let wanted = x[2] * y[0] + x[3] * y[4] + x[4] * y[8];
        assert_eq!(c[1], wanted);
    }
}
