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

    pub fn scale(&self) -> f32 {
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

/// What the tokens of sequences see: themselves and what is before them, as far back as a window reaches and their record begins.
///
/// Positions go on through a sequence, for records as well: scores depend on how far apart two tokens of a record stand, and not
/// on where it does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sight<'a> {
    /// Tokens, itself among them; nothing: all.
    pub window: Option<usize>,
    /// Of each token the place in its sequence at which its record begins; empty: each sequence is one record.
    pub begins: &'a [u32],
}

impl Sight<'_> {
    /// Of the `s`-th sequence of `t` tokens alone.
    fn of(self, s: usize, t: usize) -> Self {
        Sight { begins: self.begins.get(s * t..(s + 1) * t).unwrap_or_default(), ..self }
    }

    /// The first that the token at `position` of a sequence sees. It never falls from one token to the next.
    fn first(self, position: usize) -> usize {
        let window = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        self.begins.get(position).map_or(window, |begin| window.max(*begin as usize))
    }
}

/// Queries of one head, and where keys and values of its group begin, in rows `stride` apart.
pub struct Head<'a> {
    /// `[n, head]`
    pub queries: Matrix<'a>,
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub stride: usize,
}

/// One block of queries, at most [`BLOCK`], which stand at `first` and after in the sequence of `sight`. `p`: their probabilities, a row `p_stride` wide;
/// what lies before the first key that any of them sees is not written. `out`: `[n, head]` in rows `out_stride` wide.
#[allow(clippy::too_many_arguments)]
pub fn attend<P: Product>(
    product: &mut P,
    head: &Head<'_>,
    first: usize,
    sight: Sight<'_>,
    scale: f32,
    p: &mut [f32],
    p_stride: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    let (n, hd) = (head.queries.rows, head.queries.cols);
    let low = sight.first(first);
    let seen = first + n - low;
    let mut from = [0; BLOCK];
    (0..n).for_each(|i| from[i] = (sight.first(first + i) - low) as u32);
    let p = &mut p[low..];
    let keys = Matrix::strided(&head.keys[low * head.stride..], seen, hd, head.stride);
    product.product(p, p_stride, false, head.queries, keys.t(), scale);
    kernel::softmax_causal(p, p_stride, seen, first - low, &from[..n]);
    let values = Matrix::strided(&head.values[low * head.stride..], seen, hd, head.stride);
    product.product(out, out_stride, false, Matrix::strided(p, n, seen, p_stride), values, 1.0);
}

/// `out [rows, heads * head]` and the probabilities, from `qkv [rows, qkv]`.
pub fn forward<P: Product>(
    product: &mut P,
    shape: &Shape,
    sight: Sight<'_>,
    qkv: &[f32],
    p: &mut [f32],
    out: &mut [f32],
) {
    let (dims, t) = (&shape.dims, shape.t);
    let (width, hd, od) = (dims.qkv(), dims.head, dims.q());
    for s in 0..shape.sequences {
        let sight = sight.of(s, t);
        let qkv = &qkv[s * t * width..][..t * width];
        for head in 0..dims.heads {
            let (q, k, v) = columns(dims, head);
            let p = &mut p[(s * dims.heads + head) * t * t..][..t * t];
            for rows in blocks(t) {
                let (first, n) = (rows.start, rows.len());
                let queries = Matrix::strided(&qkv[first * width + q..], n, hd, width);
                let head_of = Head { queries, keys: &qkv[k..], values: &qkv[v..], stride: width };
                let p = &mut p[first * t..rows.end * t];
                let to = &mut out[(s * t + first) * od + head * hd..];
                attend(product, &head_of, first, sight, shape.scale(), p, t, to, od);
            }
        }
    }
}

/// `dqkv` from the gradient of the output. `work` holds at least `min(t, 64) * t` values.
#[allow(clippy::too_many_arguments)]
pub fn backward<P: Product>(
    product: &mut P,
    shape: &Shape,
    sight: Sight<'_>,
    qkv: &[f32],
    p: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
    work: &mut [f32],
) {
    let (dims, t) = (&shape.dims, shape.t);
    let (width, hd, od) = (dims.qkv(), dims.head, dims.q());
    for s in 0..shape.sequences {
        let sight = sight.of(s, t);
        // Where no block sees every key, nothing is written to all of their gradients.
        let partial = sight.first(t - 1) > 0;
        let qkv = &qkv[s * t * width..][..t * width];
        let dqkv = &mut dqkv[s * t * width..][..t * width];
        if partial {
            dqkv.chunks_exact_mut(width).for_each(|row| row[od..].fill(0.0));
        }
        for head in 0..dims.heads {
            let (q, k, v) = columns(dims, head);
            let p = &p[(s * dims.heads + head) * t * t..][..t * t];
            let first_of_group = head % (dims.heads / dims.kv_heads) == 0;
            for rows in blocks(t) {
                let (first, n, low) = (rows.start, rows.len(), sight.first(rows.start));
                let seen = rows.end - low;
                // The last block covers every key: the first head of a group writes with it, all else adds.
                let add = partial || !(first_of_group && rows.end == t);
                let p = Matrix::strided(&p[first * t + low..], n, seen, t);
                let dout = Matrix::strided(&dout[(s * t + first) * od + head * hd..], n, hd, od);
                let values = Matrix::strided(&qkv[low * width + v..], seen, hd, width);
                product.product(work, seen, false, dout, values.t(), 1.0);
                product.product(&mut dqkv[low * width + v..], width, add, p.t(), dout, 1.0);
                kernel::softmax_back(&p.data[..(n - 1) * t + seen], t, &mut work[..n * seen], seen, seen);
                let ds = Matrix::new(work, n, seen);
                let keys = Matrix::strided(&qkv[low * width + k..], seen, hd, width);
                product.product(&mut dqkv[first * width + q..], width, false, ds, keys, shape.scale());
                let queries = Matrix::strided(&qkv[first * width + q..], n, hd, width);
                product.product(&mut dqkv[low * width + k..], width, add, ds.t(), queries, shape.scale());
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
        // Records that begin within a block, at one, and one after the other.
        let begin = |i: usize| [0, 5, 64, 65, 128].into_iter().rfind(|begin| *begin <= i % 130).unwrap_or(0);
        let records: Vec<u32> = (0..260).map(|i| if i < 130 { begin(i) as u32 } else { 0 }).collect();
        for (window, begins) in [None, Some(1), Some(7), Some(100), Some(130)]
            .into_iter()
            .flat_map(|window| [(window, &[][..]), (window, &records)])
        {
            let mut p = vec![f32::NAN; shape.probabilities()];
            let mut out = vec![f32::NAN; shape.rows() * 16];
            forward(&mut FixedProduct::default(), &shape, Sight { window, begins }, &qkv, &mut p, &mut out);
            for (s, head, i) in [(0, 0, 0), (0, 3, 64), (0, 2, 63), (0, 1, 100), (0, 0, 129), (1, 1, 129), (1, 2, 63)] {
                let (q, k, v) = columns(&dims, head);
                let row = |t: usize, c: usize| &qkv[(s * 130 + t) * width + c..][..4];
                let first = window.map_or(0, |window| (i + 1usize).saturating_sub(window));
                let first = first.max(begins.get(s * 130 + i).map_or(0, |begin| *begin as usize));
                let scores: Vec<f64> = (first..=i)
                    .map(|j| row(i, q).iter().zip(row(j, k)).map(|(a, b)| f64::from(a * b)).sum::<f64>() / 2.0)
                    .map(f64::exp)
                    .collect();
                let sum: f64 = scores.iter().sum();
                for c in 0..4 {
                    let weighted = scores.iter().zip(first..).map(|(score, j)| score / sum * f64::from(row(j, v)[c]));
                    let (wanted, got) = (weighted.sum::<f64>(), f64::from(out[(s * 130 + i) * 16 + head * 4 + c]));
                    assert!(
                        (got - wanted).abs() < 1e-5,
                        "{window:?} {} {s} {head} {i} {c}: {got} {wanted}",
                        begins.len()
                    );
                }
            }
        }
    }
}
