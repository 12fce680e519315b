//! The product for every processor: both operands rounded to bf16, then multiplied in the fixed order of f32.

use std::ops::Range;

use multiversion::multiversion;

use crate::exact::product::{FixedProduct, Matrix, Operand, Product};

/// Each product rounds its operands into copies.
#[derive(Clone, Debug, Default)]
pub struct Rounded {
    fixed: FixedProduct,
}

impl Product for Rounded {
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
        let (a, rows, cols) = (rounded(&a), a.rows, a.cols);
        let a = Matrix::new(&a, rows, cols);
        match b {
            Operand::Matrix(b) => {
                self.fixed.product(c, stride, add, a, Matrix::new(&rounded(&b), b.rows, b.cols), scale);
            }
            // Panels hold rounded values.
            Operand::Packed { .. } => self.fixed.product(c, stride, add, a, b, scale),
        }
    }

    fn columns(&mut self, c: &mut [f32], a: Matrix<'_>, b: Operand<'_>, cols: Range<usize>) {
        let (a, rows, deep) = (rounded(&a), a.rows, a.cols);
        let a = Matrix::new(&a, rows, deep);
        match b {
            Operand::Matrix(b) => {
                let part = Matrix { data: &b.data[cols.start * b.col_stride..], cols: cols.len(), ..b };
                self.fixed.product(c, part.cols, false, a, Matrix::new(&rounded(&part), part.rows, part.cols), 1.0);
            }
            Operand::Packed { .. } => self.fixed.columns(c, a, b, cols),
        }
    }

    fn packed_len(&self, rows: usize, cols: usize) -> usize {
        self.fixed.packed_len(rows, cols)
    }

    fn pack(&self, b: Matrix<'_>, to: &mut [f32]) {
        self.fixed.pack(Matrix::new(&rounded(&b), b.rows, b.cols), to);
    }
}

/// The nearest bf16, ties to even. What is beyond the largest becomes infinite, and NaN stays NaN: neither hides.
#[inline(always)]
pub fn round(x: f32) -> f32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    f32::from_bits(if x.is_nan() { bits } else { nearest })
}

/// A row-major copy.
fn rounded(matrix: &Matrix<'_>) -> Vec<f32> {
    assert!(matrix.fits(), "the matrix lies in its slice");
    let mut copy = Vec::with_capacity(matrix.rows * matrix.cols);
    for row in 0..matrix.rows {
        let first = row * matrix.row_stride;
        copy.extend((0..matrix.cols).map(|col| matrix.data[first + col * matrix.col_stride]));
    }
    round_all(&mut copy);
    copy
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
fn round_all(values: &mut [f32]) {
    values.iter_mut().for_each(|x| *x = round(*x));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even_and_what_is_not_finite_stays_so() {
        let at = |bits: u32| round(f32::from_bits(bits)).to_bits();
        assert_eq!((at(0x3f80_8000), at(0x3f81_8000), at(0x3f80_8001)), (0x3f80_0000, 0x3f82_0000, 0x3f81_0000));
        assert_eq!((round(f32::MAX), round(f32::MIN)), (f32::INFINITY, f32::NEG_INFINITY));
        assert!(round(f32::NAN).is_nan() && round(-f32::NAN).is_nan() && round(f32::INFINITY) == f32::INFINITY);
    }
}
