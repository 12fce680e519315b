//! One layer, forward and backward: `mid = x + attention(norm(x))`, `out = mid + mlp(norm(mid))`.
//!
//! In: the layer's slice of weights, the input, what was kept. Out: the output, or the gradients. What a norm or SwiGLU gave
//! is not kept but computed again in backward, which reads its operands anyway.

use super::{
    attention::{self, Shape},
    kernel,
    product::{Matrix, Product},
};
use crate::model::LayerOffsets;

/// What a forward leaves for its backward: slices of one buffer.
pub struct Tape<'a> {
    /// `[rows, hidden]`, the input.
    pub x: &'a mut [f32],
    /// Factors of the first norm, one a row.
    pub inv1: &'a mut [f32],
    /// `[rows, qkv]`, rotated.
    pub qkv: &'a mut [f32],
    pub p: &'a mut [f32],
    /// `[rows, heads * head]`
    pub att: &'a mut [f32],
    /// `[rows, hidden]`, between attention and MLP.
    pub mid: &'a mut [f32],
    pub inv2: &'a mut [f32],
    /// `[rows, 2 ffn]`
    pub gu: &'a mut [f32],
}

impl<'a> Tape<'a> {
    /// Values of one layer's tape.
    pub fn values(shape: &Shape) -> usize {
        let d = &shape.dims;
        shape.rows() * (2 * d.hidden + 2 + d.qkv() + d.heads * d.head + 2 * d.ffn) + shape.probabilities()
    }

    /// Lays the tape of one layer over its buffer. `x` comes first.
    pub fn over(shape: &Shape, buffer: &'a mut [f32]) -> Self {
        let (dims, rows) = (&shape.dims, shape.rows());
        let mut rest = buffer;
        let mut take = |n: usize| {
            let (taken, left) = std::mem::take(&mut rest).split_at_mut(n);
            rest = left;
            taken
        };
        Tape {
            x: take(rows * dims.hidden),
            inv1: take(rows),
            qkv: take(rows * dims.qkv()),
            p: take(shape.probabilities()),
            att: take(rows * dims.heads * dims.head),
            mid: take(rows * dims.hidden),
            inv2: take(rows),
            gu: take(rows * 2 * dims.ffn),
        }
    }
}

/// Buffers that no call leaves anything in.
#[derive(Default)]
pub struct Scratch {
    h: Vec<f32>,
    act: Vec<f32>,
    wide: Vec<f32>,
    dh: Vec<f32>,
    dqkv: Vec<f32>,
    dgu: Vec<f32>,
    ds: Vec<f32>,
}

impl Scratch {
    /// Makes room for `shape`. A buffer only grows.
    pub fn reserve(&mut self, shape: &Shape, backward: bool) {
        let (d, rows) = (&shape.dims, shape.rows());
        grow(&mut self.h, rows * d.hidden);
        grow(&mut self.act, rows * d.ffn);
        if backward {
            grow(&mut self.wide, rows * d.ffn.max(d.heads * d.head));
            grow(&mut self.dh, rows * d.hidden);
            grow(&mut self.dqkv, rows * d.qkv());
            grow(&mut self.dgu, rows * 2 * d.ffn);
            grow(&mut self.ds, shape.t.min(64) * shape.t);
        }
    }
}

pub fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

/// The weights of one layer, as matrices `[out, in]`.
pub struct Weights<'a> {
    pub input_norm: &'a [f32],
    pub qkv: Matrix<'a>,
    pub output: Matrix<'a>,
    pub mlp_norm: &'a [f32],
    pub gate_up: Matrix<'a>,
    pub down: Matrix<'a>,
}

impl<'a> Weights<'a> {
    pub fn new(shape: &Shape, at: &LayerOffsets, params: &'a [f32]) -> Self {
        let d = &shape.dims;
        let att = d.heads * d.head;
        Weights {
            input_norm: &params[at.input_norm..][..d.hidden],
            qkv: Matrix::new(&params[at.qkv..], d.qkv(), d.hidden),
            output: Matrix::new(&params[at.output..], d.hidden, att),
            mlp_norm: &params[at.mlp_norm..][..d.hidden],
            gate_up: Matrix::new(&params[at.gate_up..], 2 * d.ffn, d.hidden),
            down: Matrix::new(&params[at.down..], d.hidden, d.ffn),
        }
    }
}

/// `out [rows, hidden]` from the input that lies in `tape.x`. `rope`: the angles of positions `0..t`.
pub fn forward<P: Product>(
    product: &mut P,
    shape: &Shape,
    w: &Weights<'_>,
    rope: &[f32],
    tape: &mut Tape<'_>,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let (d, rows) = (&shape.dims, shape.rows());
    let (hidden, att, f) = (d.hidden, d.heads * d.head, d.ffn);
    let h = &mut scratch.h[..rows * hidden];
    let act = &mut scratch.act[..rows * f];

    kernel::rms(tape.x, w.input_norm, d.eps, h, tape.inv1);
    product.product(tape.qkv, d.qkv(), false, Matrix::new(h, rows, hidden), w.qkv.t(), 1.0);
    kernel::rope(tape.qkv, d.qkv(), d.heads + d.kv_heads, d.head / 2, rope, 1.0);
    attention::forward(product, shape, tape.qkv, tape.p, tape.att);
    tape.mid.copy_from_slice(tape.x);
    product.product(tape.mid, hidden, true, Matrix::new(tape.att, rows, att), w.output.t(), 1.0);

    kernel::rms(tape.mid, w.mlp_norm, d.eps, h, tape.inv2);
    product.product(tape.gu, 2 * f, false, Matrix::new(h, rows, hidden), w.gate_up.t(), 1.0);
    kernel::swiglu(tape.gu, f, act);
    out.copy_from_slice(tape.mid);
    product.product(out, hidden, true, Matrix::new(act, rows, f), w.down.t(), 1.0);
}

/// Turns `dx`, the gradient of the output, into that of the input. `grad` is laid out as the parameters and this layer's
/// part of it is overwritten; without it the parameters' gradients are not computed.
#[allow(clippy::too_many_arguments)]
pub fn backward<P: Product>(
    product: &mut P,
    shape: &Shape,
    at: &LayerOffsets,
    w: &Weights<'_>,
    rope: &[f32],
    tape: &Tape<'_>,
    dx: &mut [f32],
    mut grad: Option<&mut [f32]>,
    scratch: &mut Scratch,
) {
    let (d, rows) = (&shape.dims, shape.rows());
    let (hidden, att, f) = (d.hidden, d.heads * d.head, d.ffn);
    let h = &mut scratch.h[..rows * hidden];
    let act = &mut scratch.act[..rows * f];
    let dh = &mut scratch.dh[..rows * hidden];
    let dgu = &mut scratch.dgu[..rows * 2 * f];
    let dqkv = &mut scratch.dqkv[..rows * d.qkv()];

    let da = &mut scratch.wide[..rows * f];
    product.product(da, f, false, Matrix::new(dx, rows, hidden), w.down, 1.0);
    kernel::swiglu_back(tape.gu, f, da, dgu, act);
    product.product(dh, hidden, false, Matrix::new(dgu, rows, 2 * f), w.gate_up, 1.0);
    if let Some(grad) = grad.as_deref_mut() {
        product.product(
            &mut grad[at.down..],
            f,
            false,
            Matrix::new(dx, rows, hidden).t(),
            Matrix::new(act, rows, f),
            1.0,
        );
        kernel::rms_again(tape.mid, w.mlp_norm, tape.inv2, h);
        product.product(
            &mut grad[at.gate_up..],
            hidden,
            false,
            Matrix::new(dgu, rows, 2 * f).t(),
            Matrix::new(h, rows, hidden),
            1.0,
        );
        kernel::rms_back_weight(tape.mid, tape.inv2, dh, &mut grad[at.mlp_norm..][..hidden]);
    }
    kernel::rms_back(tape.mid, w.mlp_norm, tape.inv2, dh, dx);

    let da = &mut scratch.wide[..rows * att];
    product.product(da, att, false, Matrix::new(dx, rows, hidden), w.output, 1.0);
    attention::backward(product, shape, tape.qkv, tape.p, da, dqkv, &mut scratch.ds);
    kernel::rope(dqkv, d.qkv(), d.heads + d.kv_heads, d.head / 2, rope, -1.0);
    product.product(dh, hidden, false, Matrix::new(dqkv, rows, d.qkv()), w.qkv, 1.0);
    if let Some(grad) = grad {
        product.product(
            &mut grad[at.output..],
            att,
            false,
            Matrix::new(dx, rows, hidden).t(),
            Matrix::new(tape.att, rows, att),
            1.0,
        );
        kernel::rms_again(tape.x, w.input_norm, tape.inv1, h);
        product.product(
            &mut grad[at.qkv..],
            hidden,
            false,
            Matrix::new(dqkv, rows, d.qkv()).t(),
            Matrix::new(h, rows, hidden),
            1.0,
        );
        kernel::rms_back_weight(tape.x, tape.inv1, dh, &mut grad[at.input_norm..][..hidden]);
    }
    kernel::rms_back(tape.x, w.input_norm, tape.inv1, dh, dx);
}
