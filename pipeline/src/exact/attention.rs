//! Causal attention with grouped-query heads over the sequences of a lane, forward and backward.
//!
//! Queries go in blocks of 64 rows against the keys up to the block's end, so about half of the square is never computed.
//! In: q, k, v side by side, already rotated. Kept for backward: the probabilities, `[sequence, head, t, t]`.

use super::{
    kernel,
    product::{Matrix, Product},
};
use crate::model::Dims;

/// Rows of queries in one product.
pub const BLOCK: usize = 64;

/// Sizes of one call: `t` tokens in each of `sequences`.
#[derive(Clone, Copy)]
pub struct Shape {
    pub dims: Dims,
    pub sequences: usize,
    pub t: usize,
}

impl Shape {
    pub fn rows(&self) -> usize {
        self.sequences * self.t
    }

    /// Values of all probabilities.
    pub fn probabilities(&self) -> usize {
        self.sequences * self.dims.heads * self.t * self.t
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dims.head as f32).sqrt()
    }
}

/// First columns of one head's q, k and v in a row of `qkv`.
fn columns(dims: &Dims, head: usize) -> (usize, usize, usize) {
    let group = head / (dims.heads / dims.kv_heads);
    let k = (dims.heads + group) * dims.head;
    (head * dims.head, k, k + dims.kv())
}

/// Blocks of query rows, the last first.
fn blocks(t: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..t.div_ceil(BLOCK)).rev().map(move |i| i * BLOCK..t.min((i + 1) * BLOCK))
}

/// `out [rows, heads * head]` and the probabilities, from `qkv [rows, qkv]`.
pub fn forward<P: Product>(product: &mut P, shape: &Shape, qkv: &[f32], p: &mut [f32], out: &mut [f32]) {
    let (dims, t) = (&shape.dims, shape.t);
    let (width, hd, od) = (dims.qkv(), dims.head, dims.heads * dims.head);
    for s in 0..shape.sequences {
        let qkv = &qkv[s * t * width..][..t * width];
        for head in 0..dims.heads {
            let (q, k, v) = columns(dims, head);
            let p = &mut p[(s * dims.heads + head) * t * t..][..t * t];
            for rows in blocks(t) {
                let (first, n, seen) = (rows.start, rows.len(), rows.end);
                let p = &mut p[first * t..rows.end * t];
                let q = Matrix::strided(&qkv[first * width + q..], n, hd, width);
                let keys = Matrix::strided(&qkv[k..], seen, hd, width);
                product.product(p, t, false, q, keys.t(), shape.scale());
                kernel::softmax_causal(p, t, seen, first);
                let values = Matrix::strided(&qkv[v..], seen, hd, width);
                let to = &mut out[(s * t + first) * od + head * hd..];
                product.product(to, od, false, Matrix::strided(p, n, seen, t), values, 1.0);
            }
        }
    }
}

/// `dqkv` from the gradient of the output. `work` holds at least `min(t, 64) * t` values.
pub fn backward<P: Product>(
    product: &mut P,
    shape: &Shape,
    qkv: &[f32],
    p: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
    work: &mut [f32],
) {
    let (dims, t) = (&shape.dims, shape.t);
    let (width, hd, od) = (dims.qkv(), dims.head, dims.heads * dims.head);
    for s in 0..shape.sequences {
        let qkv = &qkv[s * t * width..][..t * width];
        let dqkv = &mut dqkv[s * t * width..][..t * width];
        for head in 0..dims.heads {
            let (q, k, v) = columns(dims, head);
            let p = &p[(s * dims.heads + head) * t * t..][..t * t];
            let first_of_group = head % (dims.heads / dims.kv_heads) == 0;
            for rows in blocks(t) {
                let (first, n, seen) = (rows.start, rows.len(), rows.end);
                // The last block covers every key: the first head of a group writes with it, all else adds.
                let add = !(first_of_group && seen == t);
                let p = Matrix::strided(&p[first * t..], n, seen, t);
                let dout = Matrix::strided(&dout[(s * t + first) * od + head * hd..], n, hd, od);
                let values = Matrix::strided(&qkv[v..], seen, hd, width);
                product.product(work, seen, false, dout, values.t(), 1.0);
                product.product(&mut dqkv[v..], width, add, p.t(), dout, 1.0);
                kernel::softmax_back(&p.data[..(n - 1) * t + seen], t, &mut work[..n * seen], seen, seen);
                let ds = Matrix::new(work, n, seen);
                let keys = Matrix::strided(&qkv[k..], seen, hd, width);
                product.product(&mut dqkv[first * width + q..], width, false, ds, keys, shape.scale());
                let queries = Matrix::strided(&qkv[first * width + q..], n, hd, width);
                product.product(&mut dqkv[k..], width, add, ds.t(), queries, shape.scale());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{exact::FixedProduct, model::StageModel};

    /// Attention by its definition, one element at a time.
    #[test]
    fn blocks_of_queries_give_what_the_full_square_gives() {
        let dims = StageModel::whole(crate::model::tests::tiny()).unwrap().dims();
        let shape = Shape { dims, sequences: 2, t: 130 };
        let width = dims.qkv();
        let qkv: Vec<f32> = (0..shape.rows() * width).map(|i| ((i * 7919) % 1000) as f32 / 400.0 - 1.2).collect();
        let mut p = vec![f32::NAN; shape.probabilities()];
        let mut out = vec![f32::NAN; shape.rows() * 16];
        forward(&mut FixedProduct::default(), &shape, &qkv, &mut p, &mut out);
        for (s, head, i) in [(0, 0, 0), (0, 3, 64), (1, 1, 129), (1, 2, 63)] {
            let (q, k, v) = columns(&dims, head);
            let row = |t: usize, c: usize| &qkv[(s * 130 + t) * width + c..][..4];
            let scores: Vec<f64> = (0..=i)
                .map(|j| row(i, q).iter().zip(row(j, k)).map(|(a, b)| f64::from(a * b)).sum::<f64>() / 2.0)
                .map(f64::exp)
                .collect();
            let sum: f64 = scores.iter().sum();
            for c in 0..4 {
                let wanted: f64 = (0..=i).map(|j| scores[j] / sum * f64::from(row(j, v)[c])).sum();
                let got = f64::from(out[(s * 130 + i) * 16 + head * 4 + c]);
                assert!((got - wanted).abs() < 1e-5, "{s} {head} {i} {c}: {got} {wanted}");
            }
        }
    }
}
