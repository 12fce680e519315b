//! Final norm, head and loss of the last stage, in one pass over chunks of rows: no logits of a whole micro-batch at once.

use super::{
    block::grow,
    engine::IGNORE,
    kernel,
    product::{Matrix, Product},
};
use crate::model::Dims;

/// Logits computed at a time.
const LOGITS_MAX: usize = 1 << 20;

/// Rows of a chunk: as many as the bound allows, at least 16.
pub fn chunk_rows(vocab: usize, rows: usize) -> usize {
    (LOGITS_MAX / vocab).max(16).min(rows)
}

#[derive(Default)]
pub struct Scratch {
    h: Vec<f32>,
    inv: Vec<f32>,
    dh: Vec<f32>,
    logits: Vec<f32>,
}

impl Scratch {
    pub fn reserve(&mut self, dims: &Dims, rows: usize) {
        let n = chunk_rows(dims.vocab, rows);
        grow(&mut self.h, n * dims.hidden);
        grow(&mut self.inv, n);
        grow(&mut self.dh, n * dims.hidden);
        grow(&mut self.logits, n * dims.vocab);
    }
}

/// Where norm and matrix of the head lie in the flat buffer, and whether something else adds to the matrix' gradient too.
#[derive(Clone, Copy)]
pub struct Offsets {
    pub norm: usize,
    pub matrix: usize,
    pub tied: bool,
}

/// Sum of the losses of `x [rows, hidden]` against `targets`; `dx` becomes `scale` times its gradient. `grad` as in
/// [`super::block::backward`]; the gradient of a tied matrix is added to what is there.
#[allow(clippy::too_many_arguments)]
pub fn loss<P: Product>(
    product: &mut P,
    dims: &Dims,
    at: Offsets,
    params: &[f32],
    x: &[f32],
    targets: &[u32],
    scale: f32,
    dx: &mut [f32],
    mut grad: Option<&mut [f32]>,
    scratch: &mut Scratch,
) -> f64 {
    let (d, v) = (dims.hidden, dims.vocab);
    let norm = &params[at.norm..][..d];
    let matrix = Matrix::new(&params[at.matrix..], v, d);
    let n = chunk_rows(v, targets.len());
    let mut dnorm = vec![0.0; d];
    let mut loss = 0.0;
    if let Some(grad) = grad.as_deref_mut() {
        grad[at.norm..][..d].fill(0.0);
    }
    for (i, targets) in targets.chunks(n).enumerate() {
        let rows = targets.len();
        let x = &x[i * n * d..][..rows * d];
        let dx = &mut dx[i * n * d..][..rows * d];
        let h = &mut scratch.h[..rows * d];
        let inv = &mut scratch.inv[..rows];
        let dh = &mut scratch.dh[..rows * d];
        let logits = &mut scratch.logits[..rows * v];
        kernel::rms(x, norm, dims.eps, h, inv);
        product.product(logits, v, false, Matrix::new(h, rows, d), matrix.t(), 1.0);
        for (row, &target) in logits.chunks_exact_mut(v).zip(targets) {
            match target {
                IGNORE => row.fill(0.0),
                target => loss += kernel::cross_entropy(row, target as usize, scale),
            }
        }
        product.product(dh, d, false, Matrix::new(logits, rows, v), matrix, 1.0);
        if let Some(grad) = grad.as_deref_mut() {
            let add = at.tied || i > 0;
            let dlogits = Matrix::new(logits, rows, v).t();
            product.product(&mut grad[at.matrix..], d, add, dlogits, Matrix::new(h, rows, d), 1.0);
            kernel::rms_back_weight(x, inv, dh, &mut dnorm);
            kernel::add(&mut grad[at.norm..][..d], &dnorm);
        }
        dx.fill(0.0);
        kernel::rms_back(x, norm, inv, dh, dx);
    }
    loss
}

/// Logits `[vocab]` of one row.
pub fn logits<P: Product>(product: &mut P, dims: &Dims, at: Offsets, params: &[f32], x: &[f32]) -> Vec<f32> {
    let mut h = vec![0.0; dims.hidden];
    kernel::rms(x, &params[at.norm..][..dims.hidden], dims.eps, &mut h, &mut [0.0]);
    let matrix = Matrix::new(&params[at.matrix..], dims.vocab, dims.hidden);
    let mut out = vec![0.0; dims.vocab];
    product.product(&mut out, dims.vocab, false, Matrix::new(&h, 1, dims.hidden), matrix.t(), 1.0);
    out
}
