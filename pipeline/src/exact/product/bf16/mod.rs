//! The product in bf16: operands are rounded when they are packed, sums are f32.
//!
//! [`Bf16Product`] rounds every value of both operands to the nearest bf16, ties to even; the product of two bf16 is exact in
//! f32, and an element is an f32 sum of them. The order of that sum, and whether subnormal numbers count in it, is that of the
//! instructions: VDPBF16PS adds one product after the other, TDPBF16PS sums the even and the odd ones of 32 apart, and both take
//! subnormal numbers as zero. Bits are equal from run to run and for any number of threads, not from one processor to another.
//!
//! Both operands are packed into [tiles](pack) of 16 lines (rows of a, columns of b) by 32 values.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod pack;
mod rounded;
#[cfg(target_arch = "x86_64")]
mod tiled;

use std::ops::Range;

use super::{FixedProduct, Instructions, Matrix, Operand, Product};
use rounded::Rounded;
#[cfg(target_arch = "x86_64")]
use tiled::{Kernel, Tiled};

/// Which instructions multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16Instructions {
    /// Tiles (AMX-BF16), on Linux, which must permit them.
    Amx,
    /// AVX512-BF16.
    Avx512,
    /// Any: operands rounded, then the fixed order in f32. It is slower than f32 itself.
    Portable,
}

impl Bf16Instructions {
    /// The fastest of this processor.
    pub fn fastest() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if Self::Amx.here() {
                return Self::Amx;
            }
            if Self::Avx512.here() && avx512::quick() {
                return Self::Avx512;
            }
        }
        Self::Portable
    }

    /// Whether this processor has them and the system permits them.
    pub fn here(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => avx512::here() && amx::here(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::here(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Amx | Self::Avx512 => false,
            Self::Portable => true,
        }
    }
}

/// Rounds operands to bf16 and sums in f32.
#[derive(Clone, Debug)]
pub struct Bf16Product(Kind<Rounded>);

/// Tiles, or what computes without them.
#[derive(Clone, Debug)]
enum Kind<P> {
    #[cfg(target_arch = "x86_64")]
    Tiled(Tiled),
    Other(P),
}

/// Multiplies f32 of whose values at least 16 of the 24 bits count, as fast as this processor can.
///
/// Where it has [AMX](Bf16Instructions::Amx), every value is the sum of two bf16, and three of their four products are summed in
/// f32 (Henry, Tang and Heinecke, arXiv:1904.06376): an element is off by up to a part in 2^16 of the sum of its terms' sizes.
/// Elsewhere all bits count: nothing is quicker there than f32.
#[derive(Clone, Debug)]
pub struct Bf16x3Product(Kind<FixedProduct>);

impl Default for Bf16x3Product {
    fn default() -> Self {
        #[cfg(target_arch = "x86_64")]
        if Bf16Instructions::Amx.here() {
            return Bf16x3Product(Kind::Tiled(Tiled::new(Kernel::AmxSplit)));
        }
        Bf16x3Product(Kind::Other(FixedProduct::with(Instructions::fastest())))
    }
}

impl Default for Bf16Product {
    fn default() -> Self {
        Self::with(Bf16Instructions::fastest())
    }
}

impl Bf16Product {
    /// Panics where this processor lacks the instructions.
    pub fn with(instructions: Bf16Instructions) -> Self {
        assert!(instructions.here(), "this processor computes with {instructions:?}");
        Bf16Product(match instructions {
            #[cfg(target_arch = "x86_64")]
            Bf16Instructions::Amx => Kind::Tiled(Tiled::new(Kernel::Amx)),
            #[cfg(target_arch = "x86_64")]
            Bf16Instructions::Avx512 => Kind::Tiled(Tiled::new(Kernel::Avx512)),
            _ => Kind::Other(Rounded::default()),
        })
    }
}

/// Passes a product's methods on to what computes it.
macro_rules! passed_on {
    ($product:ty) => {
        impl Product for $product {
            fn product<'b>(
                &mut self,
                c: &mut [f32],
                stride: usize,
                add: bool,
                a: Matrix<'_>,
                b: impl Into<Operand<'b>>,
                scale: f32,
            ) {
                match &mut self.0 {
                    #[cfg(target_arch = "x86_64")]
                    Kind::Tiled(tiled) => tiled.product(c, stride, add, a, b, scale),
                    Kind::Other(other) => other.product(c, stride, add, a, b, scale),
                }
            }

            fn columns(&mut self, c: &mut [f32], a: Matrix<'_>, b: Operand<'_>, cols: Range<usize>) {
                match &mut self.0 {
                    #[cfg(target_arch = "x86_64")]
                    Kind::Tiled(tiled) => tiled.columns(c, a, b, cols),
                    Kind::Other(other) => other.columns(c, a, b, cols),
                }
            }

            fn packed_len(&self, rows: usize, cols: usize) -> usize {
                match &self.0 {
                    #[cfg(target_arch = "x86_64")]
                    Kind::Tiled(tiled) => tiled.packed_len(rows, cols),
                    Kind::Other(other) => other.packed_len(rows, cols),
                }
            }

            fn pack(&self, b: Matrix<'_>, to: &mut [f32]) {
                match &self.0 {
                    #[cfg(target_arch = "x86_64")]
                    Kind::Tiled(tiled) => tiled.pack(b, to),
                    Kind::Other(other) => other.pack(b, to),
                }
            }
        }
    };
}

passed_on!(Bf16x3Product);
passed_on!(Bf16Product);

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{columns_have_the_bits_of_the_whole, values},
        rounded::round,
        *,
    };

    /// Every set of instructions that is here; says which are not.
    fn sets() -> impl Iterator<Item = Bf16Instructions> {
        let all = [Bf16Instructions::Amx, Bf16Instructions::Avx512, Bf16Instructions::Portable];
        let (here, missing): (Vec<_>, Vec<_>) = all.into_iter().partition(|set| set.here());
        println!("not on this processor, so not tested: {missing:?}");
        here.into_iter()
    }

    /// Each element against its sum in f64, to what `k` roundings of f32 can do.
    fn near(got: &[f32], before: &[f32], stride: usize, add: bool, a: Matrix<'_>, b: Matrix<'_>, scale: f32) {
        for (i, j) in (0..a.rows).flat_map(|i| (0..stride).map(move |j| (i, j))) {
            let (got, before) = (got[i * stride + j], before[i * stride + j]);
            if j >= b.cols {
                assert_eq!(got, before, "nothing is written beside the product");
                continue;
            }
            let product = |k: usize| {
                let x = round(a.data[i * a.row_stride + k * a.col_stride]);
                f64::from(x) * f64::from(round(b.data[k * b.row_stride + j * b.col_stride]))
            };
            let before = if add { f64::from(before) } else { 0.0 };
            let wanted = before + f64::from(scale) * (0..a.cols).map(product).sum::<f64>();
            let size = before.abs() + f64::from(scale) * (0..a.cols).map(|k| product(k).abs()).sum::<f64>();
            let bound = f64::from(f32::EPSILON) * (a.cols + 4) as f64 * size;
            assert!((f64::from(got) - wanted).abs() <= bound, "{i} {j}: {got}, not {wanted}");
        }
    }

    #[test]
    fn every_orientation_and_remainder_is_the_sum_of_rounded_operands() {
        let shapes = [(1, 1, 1), (16, 32, 16), (32, 64, 32), (17, 31, 33), (7, 5, 17), (48, 33, 16), (2, 600, 3)];
        let large = [(33, 512, 40), (290, 40, 20), (18, 1100, 20), (3, 40, 290), (64, 32, 130)];
        for (set, (m, k, n)) in sets().flat_map(|set| shapes.into_iter().chain(large).map(move |s| (set, s))) {
            // Their low bits are not zero: they are rounded indeed.
            let (x, y) = (values(m * k, 1), values(k * n, 2));
            let (wide_x, wide_y) = (values(2 * m * k, 3), values(2 * k * n, 4));
            let gaps = |data, rows, cols| Matrix { data, rows, cols, row_stride: 2 * cols, col_stride: 2 };
            let a = [Matrix::new(&x, m, k), Matrix::new(&x, k, m).t(), gaps(&wide_x, m, k)];
            let b = [Matrix::new(&y, k, n), Matrix::new(&y, n, k).t(), gaps(&wide_y, k, n)];
            for (a, b) in a.into_iter().flat_map(|a| b.into_iter().map(move |b| (a, b))) {
                for (add, scale) in [(false, 1.0), (true, 1.0), (true, 0.3)] {
                    let stride = n + 3;
                    let before = values(m * stride, 5);
                    let mut got = before.clone();
                    let mut product = Bf16Product::with(set);
                    product.product(&mut got, stride, add, a, b, scale);
                    near(&got, &before, stride, add, a, b, scale);
                    let mut panels = vec![f32::NAN; product.packed_len(k, n)];
                    product.pack(b, &mut panels);
                    let mut packed = before.clone();
                    let panels = Operand::Packed { rows: k, cols: n, panels: &panels };
                    product.product(&mut packed, stride, add, a, panels, scale);
                    assert!(packed == got, "{set:?} {m} {k} {n} {add}: packed before or now, the bits are the same");
                }
            }
        }
    }

    #[test]
    fn columns_apart_have_the_bits_of_the_whole() {
        for (set, shape) in sets().flat_map(|set| [[1, 600, 200], [3, 40, 64], [14, 270, 129]].map(|s| (set, s))) {
            println!("{set:?}");
            columns_have_the_bits_of_the_whole(Bf16Product::with(set), shape);
        }
    }

    #[test]
    fn what_is_not_finite_shows_in_its_row_alone() {
        for (set, bad) in sets().flat_map(|set| [f32::NAN, f32::INFINITY, f32::MAX].map(|bad| (set, bad))) {
            let (mut x, y) = (vec![1.0; 20 * 40], vec![0.5; 40 * 24]);
            x[7 * 40 + 33] = bad;
            let mut c = vec![0.0; 20 * 24];
            Bf16Product::with(set).product(&mut c, 24, false, Matrix::new(&x, 20, 40), Matrix::new(&y, 40, 24), 1.0);
            for (row, c) in c.chunks(24).enumerate() {
                assert!(c.iter().all(|v| v.is_finite() != (row == 7)), "{set:?} {bad} {row}: {c:?}");
            }
        }
    }
}
