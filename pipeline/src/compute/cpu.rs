//! The matrix product of the CPU engine, and threads over the lanes of a micro-batch.
//!
//! The product is the `gemm` crate's, one thread a call; its bits depend on the CPU. Which thread runs a lane changes
//! nothing, since lanes are cut by the shape of the micro-batch alone and summed in their order.

use gemm::{Parallelism, gemm};

use crate::exact::{Matrix, Product};

#[derive(Clone, Copy, Debug, Default)]
pub struct FastProduct;

impl Product for FastProduct {
    fn product(&mut self, c: &mut [f32], stride: usize, add: bool, a: Matrix<'_>, b: Matrix<'_>, scale: f32) {
        assert!(a.cols == b.rows && a.fits() && b.fits(), "shapes of a product match");
        if a.rows == 0 || b.cols == 0 {
            return;
        }
        assert!((a.rows - 1) * stride + b.cols <= c.len() && stride >= b.cols, "the result holds the product");
        let size = |n: usize| isize::try_from(n).expect("a stride is inside a slice");
        // SAFETY: every element that these shapes and strides reach lies inside the three slices (checked above), and `c` is
        // borrowed exclusively.
        unsafe {
            gemm(
                a.rows,
                b.cols,
                a.cols,
                c.as_mut_ptr(),
                1,
                size(stride),
                add,
                a.data.as_ptr(),
                size(a.col_stride),
                size(a.row_stride),
                b.data.as_ptr(),
                size(b.col_stride),
                size(b.row_stride),
                1.0,
                scale,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// A product whose lanes run on up to `threads` threads.
#[derive(Clone, Debug)]
pub struct Threads<P> {
    product: P,
    threads: usize,
}

impl<P> Threads<P> {
    pub fn new(product: P, threads: usize) -> Self {
        Threads { product, threads: threads.max(1) }
    }
}

impl<P: Product> Product for Threads<P> {
    fn product(&mut self, c: &mut [f32], stride: usize, add: bool, a: Matrix<'_>, b: Matrix<'_>, scale: f32) {
        self.product.product(c, stride, add, a, b, scale);
    }

    fn each<T: Send>(&self, items: &mut [T], work: impl Fn(&mut T) + Sync) {
        let threads = self.threads.min(items.len());
        if threads <= 1 {
            return items.iter_mut().for_each(work);
        }
        let group = items.len().div_ceil(threads);
        let work = &work;
        std::thread::scope(|scope| {
            let mut groups = items.chunks_mut(group);
            let first = groups.next();
            for items in groups {
                scope.spawn(move || items.iter_mut().for_each(work));
            }
            first.into_iter().flatten().for_each(work);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exact::FixedProduct;

    #[test]
    fn the_fast_product_agrees_with_the_fixed_one() {
        let values = |n: usize| (0..n).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect::<Vec<_>>();
        for (m, k, n) in [(1, 8, 9), (70, 33, 40), (5, 1, 3)] {
            let (x, y) = (values(m * k), values(k * n));
            let (a, b) = (Matrix::new(&x, k, m).t(), Matrix::new(&y, n, k).t());
            for add in [false, true] {
                let (mut fast, mut fixed) = (values(m * (n + 2)), values(m * (n + 2)));
                FastProduct.product(&mut fast, n + 2, add, a, b, 0.3);
                FixedProduct::default().product(&mut fixed, n + 2, add, a, b, 0.3);
                let far = fast.iter().zip(&fixed).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(far < 1e-5, "{m} {k} {n}: {far}");
            }
        }
    }

    #[test]
    fn every_item_is_worked_on_once_by_any_number_of_threads() {
        for threads in 1..7 {
            let mut items = vec![0; 5];
            Threads::new(FixedProduct::default(), threads).each(&mut items, |i| *i += 1);
            assert_eq!(items, [1; 5]);
        }
    }
}
