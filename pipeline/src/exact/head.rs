//! Final norm, head and loss of the last stage, over chunks of rows: no logits of a whole micro-batch at once.

use super::{
    block::grow,
    engine::IGNORE,
    kernel::{self, NormBack},
    product::{Matrix, Product},
    weights::Params,
};
use crate::model::Dims;

/// Logits computed at a time.
const LOGITS_MAX: usize = 1 << 20;

/// Rows of a chunk: as many as the bound allows, at least 16.
pub fn chunk_rows(vocab: usize, rows: usize) -> usize {
    (LOGITS_MAX / vocab).max(16).min(rows)
}

/// Work space of a lane. A chunk leaves in it what the gradients of norm and matrix are made from.
#[derive(Default)]
pub struct Scratch {
    h: Vec<f32>,
    inv: Vec<f32>,
    dh: Vec<f32>,
    logits: Vec<f32>,
    zeros: Vec<f32>,
    /// Of a frozen matrix.
    tile: Vec<f32>,
    norm: Vec<f32>,
    /// Of the last chunk.
    rows: usize,
}

impl Scratch {
    pub fn reserve(&mut self, dims: &Dims, rows: usize) {
        let n = chunk_rows(dims.vocab, rows);
        for buffer in [&mut self.h, &mut self.dh, &mut self.zeros] {
            grow(buffer, n * dims.hidden);
        }
        grow(&mut self.inv, n);
        grow(&mut self.logits, n * dims.vocab);
        grow(&mut self.norm, dims.hidden);
    }
}

/// Where norm and matrix of the head lie in the flat buffer, and whether something else adds to the matrix' gradient too.
#[derive(Clone, Copy)]
pub struct Offsets {
    pub norm: usize,
    pub matrix: usize,
    pub tied: bool,
}

/// Sum of the losses of chunk `chunk` of `x [rows, hidden]` against `targets`; that part of `dx` becomes `scale` times its
/// gradient. `train`: the parameters' gradients will be asked for.
#[allow(clippy::too_many_arguments)]
pub fn loss<P: Product>(
    product: &mut P,
    dims: &Dims,
    at: Offsets,
    params: Params<'_>,
    x: &[f32],
    targets: &[u32],
    chunk: usize,
    scale: f32,
    dx: &mut [f32],
    train: bool,
    scratch: &mut Scratch,
) -> f64 {
    let (d, v) = (dims.hidden, dims.vocab);
    let norm = params.vector(at.norm, d);
    let matrix = params.weight(at.matrix, v, d);
    let n = chunk_rows(v, targets.len());
    let Some(targets) = targets.chunks(n).nth(chunk) else {
        scratch.rows = 0;
        return 0.0;
    };
    let rows = targets.len();
    scratch.rows = rows;
    let x = &x[chunk * n * d..][..rows * d];
    let dx = &mut dx[chunk * n * d..][..rows * d];
    let (h, dh) = (&mut scratch.h[..rows * d], &mut scratch.dh[..rows * d]);
    let inv = &mut scratch.inv[..rows];
    let logits = &mut scratch.logits[..rows * v];
    kernel::rms(x, norm, dims.eps, h, inv);
    matrix.forward(product, logits, false, h, &mut scratch.tile);
    let mut loss = 0.0;
    for (row, &target) in logits.chunks_exact_mut(v).zip(targets) {
        match target {
            IGNORE => row.fill(0.0),
            target => loss += kernel::cross_entropy(row, target as usize, scale),
        }
    }
    matrix.backward(product, dh, logits, &mut scratch.tile);
    let trained = train.then_some(NormBack { out: h, weight: &mut scratch.norm[..d] });
    kernel::rms_back(x, norm, inv, dh, &scratch.zeros[..rows * d], dx, trained);
    loss
}

/// Adds what one lane's last chunk left to the gradient of the norm.
pub fn norm_gradient(scratch: &Scratch, to: &mut [f32]) {
    if scratch.rows > 0 {
        kernel::add(to, &scratch.norm[..to.len()]);
    }
}

/// Adds (or writes) what one lane's last chunk left to the rows of the matrix' gradient from `first` on.
pub fn matrix_gradient<P: Product>(
    product: &mut P,
    dims: &Dims,
    scratch: &Scratch,
    first: usize,
    add: bool,
    to: &mut [f32],
) {
    let (d, v, rows) = (dims.hidden, dims.vocab, scratch.rows);
    if rows == 0 {
        return;
    }
    let dlogits = Matrix::strided(&scratch.logits[first..rows * v], rows, to.len() / d, v);
    product.product(to, d, add, dlogits.t(), Matrix::new(&scratch.h[..rows * d], rows, d), 1.0);
}
