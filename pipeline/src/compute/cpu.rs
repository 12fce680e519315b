//! Threads of the CPU engine: one small pool that lives as long as its engine.
//!
//! Which thread runs a lane or a piece of a gradient changes nothing: work is cut by shapes alone and summed in its order.

use std::sync::Arc;

use rayon::iter::{IndexedParallelIterator, IntoParallelRefMutIterator, ParallelIterator};

use crate::exact::{EngineError, Matrix, Operand, Product};

/// A product whose lanes run on the threads of a pool.
#[derive(Clone, Debug)]
pub struct Threads<P> {
    product: P,
    /// None: the caller's thread alone.
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl<P> Threads<P> {
    /// # Errors
    /// The system gives no more threads.
    pub fn new(product: P, threads: usize) -> Result<Self, EngineError> {
        let pool = match threads {
            0 | 1 => None,
            _ => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("compute {i}"));
                let refused = |e| EngineError::Device(format!("the system refuses {threads} compute threads: {e}"));
                Some(Arc::new(pool.build().map_err(refused)?))
            }
        };
        Ok(Threads { product, pool })
    }
}

impl<P: Product> Product for Threads<P> {
    fn product<'b>(
        &mut self,
        c: &mut [f32],
        stride: usize,
        add: bool,
        a: Matrix<'_>,
        b: impl Into<Operand<'b>>,
        scale: f32,
    ) {
        self.product.product(c, stride, add, a, b, scale);
    }

    fn columns(&mut self, c: &mut [f32], a: Matrix<'_>, b: Operand<'_>, cols: std::ops::Range<usize>) {
        self.product.columns(c, a, b, cols);
    }

    fn packed_len(&self, rows: usize, cols: usize) -> usize {
        self.product.packed_len(rows, cols)
    }

    fn pack(&self, b: Matrix<'_>, to: &mut [f32]) {
        self.product.pack(b, to);
    }

    fn each<T: Send>(&self, items: &mut [T], work: impl Fn(&mut T) + Sync) {
        match &self.pool {
            Some(pool) if items.len() > 1 => pool.install(|| items.par_iter_mut().with_max_len(1).for_each(&work)),
            _ => items.iter_mut().for_each(work),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exact::FixedProduct;

    #[test]
    fn every_item_is_worked_on_once_by_any_number_of_threads() {
        for threads in 1..7 {
            let mut items = vec![0; 5];
            Threads::new(FixedProduct::default(), threads).unwrap().each(&mut items, |i| *i += 1);
            assert_eq!(items, [1; 5]);
        }
    }
}
