//! One layer, forward and backward: `mid = x + attention(norm(x))`, `out = mid + mlp(norm(mid))`.
//!
//! In: the layer's slice of weights, the input, what was kept. Out: the output, or the gradients. What a norm or SwiGLU gave
//! is not kept but computed again in backward, which reads its operands anyway.

use super::{
    attention::{self, Shape},
    kernel::{self, NormBack},
    product::{Matrix, Product},
    weights::{Params, Weight},
};
use crate::model::{Dims, LayerOffsets};

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

    /// The output of the attention, `[rows, heads * head]`, in the buffer of one layer's tape.
    pub fn att_of<'b>(shape: &Shape, buffer: &'b [f32]) -> &'b [f32] {
        let (d, rows) = (&shape.dims, shape.rows());
        &buffer[rows * (d.hidden + 1 + d.qkv()) + shape.probabilities()..][..rows * d.heads * d.head]
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

/// Work space of a lane. A backward leaves in it what the gradients of the weights are made from, until the next layer's.
#[derive(Default)]
pub struct Scratch {
    /// Outputs of the two norms.
    h1: Vec<f32>,
    h2: Vec<f32>,
    act: Vec<f32>,
    wide: Vec<f32>,
    dh: Vec<f32>,
    /// Gradients of the layer's output, of `mid`, and of the layer's input.
    dout: Vec<f32>,
    dmid: Vec<f32>,
    dx: Vec<f32>,
    dqkv: Vec<f32>,
    dgu: Vec<f32>,
    ds: Vec<f32>,
    /// Gradients of the two norms' weights, of this lane's rows.
    norms: Vec<f32>,
}

impl Scratch {
    /// Makes room for `shape`. A buffer only grows.
    pub fn reserve(&mut self, shape: &Shape, backward: bool) {
        let (d, rows) = (&shape.dims, shape.rows());
        grow(&mut self.h1, rows * d.hidden);
        grow(&mut self.act, rows * d.ffn);
        if backward {
            grow(&mut self.h2, rows * d.hidden);
            grow(&mut self.wide, rows * d.ffn.max(d.heads * d.head));
            for buffer in [&mut self.dh, &mut self.dout, &mut self.dmid, &mut self.dx] {
                grow(buffer, rows * d.hidden);
            }
            grow(&mut self.dqkv, rows * d.qkv());
            grow(&mut self.dgu, rows * 2 * d.ffn);
            grow(&mut self.ds, shape.t.min(attention::BLOCK) * shape.t);
            grow(&mut self.norms, 2 * d.hidden);
        }
    }

    /// Where the backward begins: the gradient of the last layer's output.
    pub fn gradient(&mut self) -> &mut [f32] {
        &mut self.dx
    }
}

pub fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

/// The weights of one layer.
pub struct Weights<'a> {
    pub input_norm: &'a [f32],
    pub qkv: Weight<'a>,
    pub output: Weight<'a>,
    pub mlp_norm: &'a [f32],
    pub gate_up: Weight<'a>,
    pub down: Weight<'a>,
}

impl<'a> Weights<'a> {
    pub fn new(dims: &Dims, at: &LayerOffsets, params: Params<'a>) -> Self {
        let att = dims.heads * dims.head;
        Weights {
            input_norm: &params.flat[at.input_norm..][..dims.hidden],
            qkv: params.weight(at.qkv, dims.qkv(), dims.hidden),
            output: params.weight(at.output, dims.hidden, att),
            mlp_norm: &params.flat[at.mlp_norm..][..dims.hidden],
            gate_up: params.weight(at.gate_up, 2 * dims.ffn, dims.hidden),
            down: params.weight(at.down, dims.hidden, dims.ffn),
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
    let h = &mut scratch.h1[..rows * hidden];
    let act = &mut scratch.act[..rows * f];

    kernel::rms(tape.x, w.input_norm, d.eps, h, tape.inv1);
    product.product(tape.qkv, d.qkv(), false, Matrix::new(h, rows, hidden), w.qkv.forward(), 1.0);
    kernel::rope(tape.qkv, d.qkv(), d.heads + d.kv_heads, d.head / 2, rope, 1.0);
    attention::forward(product, shape, tape.qkv, tape.p, tape.att);
    tape.mid.copy_from_slice(tape.x);
    product.product(tape.mid, hidden, true, Matrix::new(tape.att, rows, att), w.output.forward(), 1.0);

    kernel::rms(tape.mid, w.mlp_norm, d.eps, h, tape.inv2);
    product.product(tape.gu, 2 * f, false, Matrix::new(h, rows, hidden), w.gate_up.forward(), 1.0);
    kernel::swiglu(tape.gu, f, act);
    out.copy_from_slice(tape.mid);
    product.product(out, hidden, true, Matrix::new(act, rows, f), w.down.forward(), 1.0);
}

/// Turns the gradient of the layer's output, in [`Scratch::gradient`], into that of its input. `train`: the parameters'
/// gradients will be asked for.
#[allow(clippy::too_many_arguments)]
pub fn backward<P: Product>(
    product: &mut P,
    shape: &Shape,
    w: &Weights<'_>,
    rope: &[f32],
    tape: &Tape<'_>,
    train: bool,
    scratch: &mut Scratch,
) {
    let (d, rows) = (&shape.dims, shape.rows());
    let (hidden, att, f) = (d.hidden, d.heads * d.head, d.ffn);
    std::mem::swap(&mut scratch.dout, &mut scratch.dx);
    let dout = &scratch.dout[..rows * hidden];
    let dmid = &mut scratch.dmid[..rows * hidden];
    let dh = &mut scratch.dh[..rows * hidden];
    let dgu = &mut scratch.dgu[..rows * 2 * f];
    let dqkv = &mut scratch.dqkv[..rows * d.qkv()];
    let (norm1, norm2) = scratch.norms.split_at_mut(hidden);
    let (h1, h2) = (&mut scratch.h1[..rows * hidden], &mut scratch.h2[..rows * hidden]);

    let da = &mut scratch.wide[..rows * f];
    product.product(da, f, false, Matrix::new(dout, rows, hidden), w.down.backward(), 1.0);
    kernel::swiglu_back(tape.gu, f, da, dgu, &mut scratch.act[..rows * f]);
    product.product(dh, hidden, false, Matrix::new(dgu, rows, 2 * f), w.gate_up.backward(), 1.0);
    let trained = train.then_some(NormBack { out: h2, weight: &mut norm2[..hidden] });
    kernel::rms_back(tape.mid, w.mlp_norm, tape.inv2, dh, dout, dmid, trained);

    let da = &mut scratch.wide[..rows * att];
    product.product(da, att, false, Matrix::new(dmid, rows, hidden), w.output.backward(), 1.0);
    attention::backward(product, shape, tape.qkv, tape.p, da, dqkv, &mut scratch.ds);
    kernel::rope(dqkv, d.qkv(), d.heads + d.kv_heads, d.head / 2, rope, -1.0);
    product.product(dh, hidden, false, Matrix::new(dqkv, rows, d.qkv()), w.qkv.backward(), 1.0);
    let trained = train.then_some(NormBack { out: h1, weight: norm1 });
    kernel::rms_back(tape.x, w.input_norm, tape.inv1, dh, dmid, &mut scratch.dx[..rows * hidden], trained);
}

/// A tensor of a layer whose gradient is made from all lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tensor {
    InputNorm,
    Qkv,
    Output,
    MlpNorm,
    GateUp,
    Down,
}

impl Tensor {
    /// Every tensor with its place in the flat buffer, its rows and columns; in the order of their places.
    pub fn all(dims: &Dims, at: &LayerOffsets) -> [(Tensor, usize, usize, usize); 6] {
        let (d, att, f) = (dims.hidden, dims.heads * dims.head, dims.ffn);
        [
            (Tensor::InputNorm, at.input_norm, 1, d),
            (Tensor::Qkv, at.qkv, dims.qkv(), d),
            (Tensor::Output, at.output, d, att),
            (Tensor::MlpNorm, at.mlp_norm, 1, d),
            (Tensor::GateUp, at.gate_up, 2 * f, d),
            (Tensor::Down, at.down, d, f),
        ]
    }

    pub fn is_matrix(self) -> bool {
        !matches!(self, Tensor::InputNorm | Tensor::MlpNorm)
    }

    /// Adds (the first lane writes) what one lane's last [`backward`] left to the rows from `first` on of the gradient. `att`:
    /// that of the lane's tape.
    #[allow(clippy::too_many_arguments)]
    pub fn gradient<P: Product>(
        self,
        product: &mut P,
        shape: &Shape,
        att: &[f32],
        scratch: &Scratch,
        first: usize,
        add: bool,
        to: &mut [f32],
    ) {
        let (d, rows) = (&shape.dims, shape.rows());
        let hidden = d.hidden;
        let (dy, wide, x, cols) = match self {
            Tensor::InputNorm | Tensor::MlpNorm => {
                let at = if self == Tensor::InputNorm { 0 } else { hidden };
                let norm = &scratch.norms[at..][..hidden];
                return if add { kernel::add(to, norm) } else { to.copy_from_slice(norm) };
            }
            Tensor::Qkv => (&scratch.dqkv, d.qkv(), &scratch.h1[..], hidden),
            Tensor::Output => (&scratch.dmid, hidden, att, d.heads * d.head),
            Tensor::GateUp => (&scratch.dgu, 2 * d.ffn, &scratch.h2[..], hidden),
            Tensor::Down => (&scratch.dout, hidden, &scratch.act[..], d.ffn),
        };
        let dy = Matrix::strided(&dy[first..rows * wide], rows, to.len() / cols, wide);
        product.product(to, cols, add, dy.t(), Matrix::new(&x[..rows * cols], rows, cols), 1.0);
    }
}
