//! One layer, forward and backward: `mid = x + attention(norm(x))`, `out = mid + mlp(norm(mid))`.
//!
//! In: the layer's slice of weights, the input, what was kept. Out: the output, or the gradients. What a norm or SwiGLU gave
//! is not kept but computed again in backward, which reads its operands anyway.

use super::{
    attention::{self, Shape, Sight},
    kernel::{self, Heads, NormBack},
    product::{Matrix, Product},
    weights::{Params, Weight},
};
use crate::model::{
    Dims, LayerOffsets,
    lora::{Adapter, Site},
};

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
    pub heads: HeadTape<'a>,
    /// What the A's of each site gave, `[rows, ranks]`.
    pub low: [&'a mut [f32]; 4],
}

/// What the norms of the heads of q and k leave; empty where there are none.
#[derive(Default)]
pub struct HeadTape<'a> {
    /// `[rows, heads, head]`, what came in.
    q: &'a mut [f32],
    /// `[rows, kv_heads, head]`
    k: &'a mut [f32],
    /// `[rows, heads]`, factors.
    q_inv: &'a mut [f32],
    k_inv: &'a mut [f32],
}

impl<'a> HeadTape<'a> {
    pub fn values(dims: &Dims, rows: usize) -> usize {
        if dims.qk_norm { rows * (dims.heads + dims.kv_heads) * (dims.head + 1) } else { 0 }
    }

    /// Lays it over its buffer.
    pub fn over(dims: &Dims, rows: usize, buffer: &'a mut [f32]) -> Self {
        if !dims.qk_norm {
            return HeadTape::default();
        }
        let (q, rest) = buffer.split_at_mut(rows * dims.q());
        let (k, rest) = rest.split_at_mut(rows * dims.kv());
        let (q_inv, k_inv) = rest.split_at_mut(rows * dims.heads);
        HeadTape { q, k, q_inv, k_inv }
    }
}

impl<'a> Tape<'a> {
    /// Values of one layer's tape.
    pub fn values(shape: &Shape) -> usize {
        let d = &shape.dims;
        let rows = shape.rows();
        let each = 2 * d.hidden + 2 + d.qkv() + d.q() + 2 * d.ffn + d.ranks.iter().sum::<usize>();
        rows * each + shape.probabilities() + HeadTape::values(d, rows)
    }

    /// The output of the attention, `[rows, heads * head]`, in the buffer of one layer's tape.
    pub fn att_of<'b>(shape: &Shape, buffer: &'b [f32]) -> &'b [f32] {
        let (d, rows) = (&shape.dims, shape.rows());
        &buffer[rows * (d.hidden + 1 + d.qkv()) + shape.probabilities()..][..rows * d.q()]
    }

    /// What the A's of a site gave, `[rows, ranks]`, in the buffer of one layer's tape, where they lie last.
    pub fn low_of<'b>(shape: &Shape, site: Site, buffer: &'b [f32]) -> &'b [f32] {
        let (ranks, rows) = (&shape.dims.ranks, shape.rows());
        let from_end = rows * ranks[site as usize..].iter().sum::<usize>();
        &buffer[Self::values(shape) - from_end..][..rows * ranks[site as usize]]
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
            att: take(rows * dims.q()),
            mid: take(rows * dims.hidden),
            inv2: take(rows),
            gu: take(rows * 2 * dims.ffn),
            heads: HeadTape::over(dims, rows, take(HeadTape::values(dims, rows))),
            low: dims.ranks.map(|ranks| take(rows * ranks)),
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
    /// Gradients of what the A's gave, one site after the other.
    dlow: Vec<f32>,
    /// Of a frozen matrix.
    tile: Vec<f32>,
    /// Gradients of the two norms' weights, and of those of q's and k's heads, of this lane's rows.
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
            grow(&mut self.wide, rows * d.ffn.max(d.q()));
            for buffer in [&mut self.dh, &mut self.dout, &mut self.dmid, &mut self.dx] {
                grow(buffer, rows * d.hidden);
            }
            grow(&mut self.dqkv, rows * d.qkv());
            grow(&mut self.dlow, rows * d.ranks.iter().sum::<usize>());
            grow(&mut self.dgu, rows * 2 * d.ffn);
            grow(&mut self.ds, shape.t.min(attention::BLOCK) * shape.t);
            grow(&mut self.norms, 2 * d.hidden + 2 * d.head);
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
    pub qkv_bias: Option<&'a [f32]>,
    /// Of q's heads, then of k's.
    pub qk_norm: Option<&'a [f32]>,
    /// How many tokens each sees, itself among them; nothing: all.
    pub window: Option<usize>,
    pub output: Weight<'a>,
    pub mlp_norm: &'a [f32],
    pub gate_up: Weight<'a>,
    pub down: Weight<'a>,
    adapters: Option<&'a [Option<Adapter>; 4]>,
    /// The buffer in which they lie.
    adapter_params: &'a [f32],
}

impl<'a> Weights<'a> {
    pub fn new(dims: &Dims, at: &LayerOffsets, adapters: Option<&'a [Option<Adapter>; 4]>, params: Params<'a>) -> Self {
        Weights {
            adapters,
            adapter_params: params.adapters,
            input_norm: params.vector(at.input_norm, dims.hidden),
            qkv: params.weight(at.qkv, dims.qkv(), dims.hidden),
            qkv_bias: at.qkv_bias.map(|at| params.vector(at, dims.qkv())),
            qk_norm: at.qk_norm.map(|at| params.vector(at, 2 * dims.head)),
            window: at.window,
            output: params.weight(at.output, dims.hidden, dims.q()),
            mlp_norm: params.vector(at.mlp_norm, dims.hidden),
            gate_up: params.weight(at.gate_up, 2 * dims.ffn, dims.hidden),
            down: params.weight(at.down, dims.hidden, dims.ffn),
        }
    }

    fn adapter(&self, site: Site) -> Option<&'a Adapter> {
        self.adapters.and_then(|sites| sites[site as usize].as_ref())
    }

    /// Adds to `y`, rows `width` wide, what the adapters of a site make of `x [rows, input]`. `low`: [`Tape::low`].
    pub fn adapt<P: Product>(
        &self,
        product: &mut P,
        site: Site,
        x: &[f32],
        low: &mut [f32],
        y: &mut [f32],
        width: usize,
    ) {
        let Some(adapter) = self.adapter(site) else { return };
        let (rows, ranks, rank) = (x.len() / adapter.input, adapter.ranks(), adapter.rank);
        let a = Matrix::new(&self.adapter_params[adapter.a..], ranks, adapter.input);
        product.product(low, ranks, false, Matrix::new(x, rows, adapter.input), a.t(), 1.0);
        for (i, part) in adapter.parts.iter().enumerate() {
            let b = Matrix::new(&self.adapter_params[part.b..], part.width, rank);
            let low = Matrix::strided(&low[i * rank..], rows, rank, ranks);
            product.product(&mut y[part.first..], width, true, low, b.t(), adapter.scale);
        }
    }

    /// Backward of [`adapt`](Weights::adapt) from the gradient of `y`: adds to that of `x`, and leaves that of `low`.
    fn adapt_back<P: Product>(
        &self,
        product: &mut P,
        site: Site,
        dy: &[f32],
        width: usize,
        dlow: &mut [f32],
        dx: &mut [f32],
    ) {
        let Some(adapter) = self.adapter(site) else { return };
        let (rows, ranks, rank) = (dy.len() / width, adapter.ranks(), adapter.rank);
        for (i, part) in adapter.parts.iter().enumerate() {
            let b = Matrix::new(&self.adapter_params[part.b..], part.width, rank);
            let dy = Matrix::strided(&dy[part.first..], rows, part.width, width);
            product.product(&mut dlow[i * rank..], ranks, false, dy, b, adapter.scale);
        }
        let a = Matrix::new(&self.adapter_params[adapter.a..], ranks, adapter.input);
        product.product(dx, adapter.input, true, Matrix::new(dlow, rows, ranks), a, 1.0);
    }
}

/// Rows of a site in a buffer that holds all of them, one after the other.
fn at_site(ranks: &[usize; 4], rows: usize, site: Site) -> std::ops::Range<usize> {
    let start = rows * ranks[..site as usize].iter().sum::<usize>();
    start..start + rows * ranks[site as usize]
}

/// Makes of the product of the normalised input `h` with the weights of q, k and v what the attention reads: adapters, biases,
/// norms of heads, positions.
#[allow(clippy::too_many_arguments)]
pub fn turn<P: Product>(
    product: &mut P,
    d: &Dims,
    w: &Weights<'_>,
    rope: &[f32],
    h: &[f32],
    qkv: &mut [f32],
    heads: &mut HeadTape<'_>,
    low: &mut [f32],
) {
    w.adapt(product, Site::Qkv, h, low, qkv, d.qkv());
    if let Some(bias) = w.qkv_bias {
        kernel::add_rows(qkv, bias);
    }
    if let Some((q, k)) = w.qk_norm.map(|norm| norm.split_at(d.head)) {
        let [of_q, of_k] = heads_of(d);
        kernel::rms_heads(qkv, of_q, q, d.eps, heads.q, heads.q_inv);
        kernel::rms_heads(qkv, of_k, k, d.eps, heads.k, heads.k_inv);
    }
    kernel::rope(qkv, d.qkv(), d.heads + d.kv_heads, d.head / 2, rope, 1.0);
}

/// Heads of q and of k in rows of q, k and v.
fn heads_of(d: &Dims) -> [Heads; 2] {
    let width = d.qkv();
    [Heads { width, first: 0, count: d.heads }, Heads { width, first: d.q(), count: d.kv_heads }]
}

/// `out [rows, hidden]` from the input that lies in `tape.x`. `rope`: the angles of positions `0..t`. `begins`: [`Sight::begins`].
#[allow(clippy::too_many_arguments)]
pub fn forward<P: Product>(
    product: &mut P,
    shape: &Shape,
    w: &Weights<'_>,
    rope: &[f32],
    begins: &[u32],
    tape: &mut Tape<'_>,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let (d, rows) = (&shape.dims, shape.rows());
    let (hidden, f) = (d.hidden, d.ffn);
    let h = &mut scratch.h1[..rows * hidden];
    let act = &mut scratch.act[..rows * f];
    let tile = &mut scratch.tile;

    kernel::rms(tape.x, w.input_norm, d.eps, h, tape.inv1);
    let [low_qkv, low_output, low_gate_up, low_down] = &mut tape.low;
    w.qkv.forward(product, tape.qkv, false, h, tile);
    turn(product, d, w, rope, h, tape.qkv, &mut tape.heads, low_qkv);
    attention::forward(product, shape, Sight { window: w.window, begins }, tape.qkv, tape.p, tape.att);
    tape.mid.copy_from_slice(tape.x);
    w.output.forward(product, tape.mid, true, tape.att, tile);
    w.adapt(product, Site::Output, tape.att, low_output, tape.mid, hidden);

    kernel::rms(tape.mid, w.mlp_norm, d.eps, h, tape.inv2);
    w.gate_up.forward(product, tape.gu, false, h, tile);
    w.adapt(product, Site::GateUp, h, low_gate_up, tape.gu, 2 * f);
    kernel::swiglu(tape.gu, f, act);
    out.copy_from_slice(tape.mid);
    w.down.forward(product, out, true, act, tile);
    w.adapt(product, Site::Down, act, low_down, out, hidden);
}

/// Turns the gradient of the layer's output, in [`Scratch::gradient`], into that of its input. `train`: the parameters'
/// gradients will be asked for.
#[allow(clippy::too_many_arguments)]
pub fn backward<P: Product>(
    product: &mut P,
    shape: &Shape,
    w: &Weights<'_>,
    rope: &[f32],
    begins: &[u32],
    tape: &Tape<'_>,
    train: bool,
    scratch: &mut Scratch,
) {
    let (d, rows) = (&shape.dims, shape.rows());
    let (hidden, att, f) = (d.hidden, d.q(), d.ffn);
    std::mem::swap(&mut scratch.dout, &mut scratch.dx);
    let dout = &scratch.dout[..rows * hidden];
    let dmid = &mut scratch.dmid[..rows * hidden];
    let dh = &mut scratch.dh[..rows * hidden];
    let dgu = &mut scratch.dgu[..rows * 2 * f];
    let dqkv = &mut scratch.dqkv[..rows * d.qkv()];
    let (norm1, norms) = scratch.norms.split_at_mut(hidden);
    let (norm2, norm_heads) = norms.split_at_mut(hidden);
    let (h1, h2) = (&mut scratch.h1[..rows * hidden], &mut scratch.h2[..rows * hidden]);
    let dlow = |site| at_site(&d.ranks, rows, site);
    let tile = &mut scratch.tile;

    let da = &mut scratch.wide[..rows * f];
    w.down.backward(product, da, dout, tile);
    w.adapt_back(product, Site::Down, dout, hidden, &mut scratch.dlow[dlow(Site::Down)], da);
    kernel::swiglu_back(tape.gu, f, da, dgu, &mut scratch.act[..rows * f]);
    w.gate_up.backward(product, dh, dgu, tile);
    w.adapt_back(product, Site::GateUp, dgu, 2 * f, &mut scratch.dlow[dlow(Site::GateUp)], dh);
    let trained = train.then_some(NormBack { out: h2, weight: &mut norm2[..hidden] });
    kernel::rms_back(tape.mid, w.mlp_norm, tape.inv2, dh, dout, dmid, trained);

    let da = &mut scratch.wide[..rows * att];
    w.output.backward(product, da, dmid, tile);
    w.adapt_back(product, Site::Output, dmid, hidden, &mut scratch.dlow[dlow(Site::Output)], da);
    let sight = Sight { window: w.window, begins };
    attention::backward(product, shape, sight, tape.qkv, tape.p, da, dqkv, &mut scratch.ds);
    kernel::rope(dqkv, d.qkv(), d.heads + d.kv_heads, d.head / 2, rope, -1.0);
    if let Some((q, k)) = w.qk_norm.map(|norm| norm.split_at(d.head)) {
        let [of_q, of_k] = heads_of(d);
        let (dq, dk) = norm_heads[..2 * d.head].split_at_mut(d.head);
        kernel::rms_heads_back(dqkv, of_q, q, tape.heads.q, tape.heads.q_inv, train.then_some(dq));
        kernel::rms_heads_back(dqkv, of_k, k, tape.heads.k, tape.heads.k_inv, train.then_some(dk));
    }
    w.qkv.backward(product, dh, dqkv, tile);
    w.adapt_back(product, Site::Qkv, dqkv, d.qkv(), &mut scratch.dlow[dlow(Site::Qkv)], dh);
    let trained = train.then_some(NormBack { out: h1, weight: norm1 });
    kernel::rms_back(tape.x, w.input_norm, tape.inv1, dh, dmid, &mut scratch.dx[..rows * hidden], trained);
}

/// A tensor of a layer whose gradient is made from all lanes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tensor {
    /// The A's of a site.
    A(Site),
    /// One of its B's: which, its rank and scale, and the first of its columns.
    B {
        site: Site,
        part: usize,
        rank: usize,
        scale: f32,
        first: usize,
    },
    InputNorm,
    Qkv,
    QkvBias,
    QkNorm,
    Output,
    MlpNorm,
    GateUp,
    Down,
}

impl Tensor {
    /// Every tensor with its place in the flat buffer, its rows and columns; in the order of their places.
    pub fn all(dims: &Dims, at: &LayerOffsets) -> Vec<(Tensor, usize, usize, usize)> {
        let (d, f) = (dims.hidden, dims.ffn);
        let all = [
            Some((Tensor::InputNorm, at.input_norm, 1, d)),
            Some((Tensor::Qkv, at.qkv, dims.qkv(), d)),
            at.qkv_bias.map(|at| (Tensor::QkvBias, at, 1, dims.qkv())),
            at.qk_norm.map(|at| (Tensor::QkNorm, at, 1, 2 * dims.head)),
            Some((Tensor::Output, at.output, d, dims.q())),
            Some((Tensor::MlpNorm, at.mlp_norm, 1, d)),
            Some((Tensor::GateUp, at.gate_up, 2 * f, d)),
            Some((Tensor::Down, at.down, d, f)),
        ];
        all.into_iter().flatten().collect()
    }

    /// As [`all`](Tensor::all), of adapters.
    pub fn adapters(sites: &[Option<Adapter>; 4]) -> Vec<(Tensor, usize, usize, usize)> {
        let mut all = Vec::new();
        for &Adapter { site, a, input, rank, scale, ref parts } in sites.iter().flatten() {
            all.push((Tensor::A(site), a, rank * parts.len(), input));
            for (part, p) in parts.iter().enumerate() {
                all.push((Tensor::B { site, part, rank, scale, first: p.first }, p.b, p.width, rank));
            }
        }
        all
    }

    pub fn is_matrix(self) -> bool {
        matches!(self, Tensor::Qkv | Tensor::Output | Tensor::GateUp | Tensor::Down)
    }

    /// Adds (the first lane writes) what one lane's last [`backward`] left to the rows from `first` on of the gradient. `tape`:
    /// the layer's part of the lane's.
    #[allow(clippy::too_many_arguments)]
    pub fn gradient<P: Product>(
        self,
        product: &mut P,
        shape: &Shape,
        tape: &[f32],
        scratch: &Scratch,
        first: usize,
        add: bool,
        to: &mut [f32],
    ) {
        let (d, rows) = (&shape.dims, shape.rows());
        let hidden = d.hidden;
        let norm = |at: usize, to: &mut [f32]| {
            let norm = &scratch.norms[at..][..to.len()];
            if add { kernel::add(to, norm) } else { to.copy_from_slice(norm) }
        };
        // Gradient and width of what a site gave, and what went into it.
        let of_site = |site| match site {
            Site::Qkv => (&scratch.dqkv[..], d.qkv(), &scratch.h1[..], hidden),
            Site::Output => (&scratch.dmid[..], hidden, Tape::att_of(shape, tape), d.q()),
            Site::GateUp => (&scratch.dgu[..], 2 * d.ffn, &scratch.h2[..], hidden),
            Site::Down => (&scratch.dout[..], hidden, &scratch.act[..], d.ffn),
        };
        let (dy, wide, x, cols) = match self {
            Tensor::A(site) => {
                let (.., x, cols) = of_site(site);
                (&scratch.dlow[at_site(&d.ranks, rows, site)], d.ranks[site as usize], x, cols)
            }
            Tensor::B { site, part, rank, scale, first: column } => {
                let ((dy, wide, ..), ranks) = (of_site(site), d.ranks[site as usize]);
                let dy = Matrix::strided(&dy[column + first..rows * wide], rows, to.len() / rank, wide);
                let low = Matrix::strided(&Tape::low_of(shape, site, tape)[part * rank..], rows, rank, ranks);
                return product.product(to, rank, add, dy.t(), low, scale);
            }
            Tensor::InputNorm => return norm(0, to),
            Tensor::MlpNorm => return norm(hidden, to),
            Tensor::QkNorm => return norm(2 * hidden, to),
            Tensor::QkvBias => {
                if !add {
                    to.fill(0.0);
                }
                return scratch.dqkv[..rows * d.qkv()].chunks_exact(d.qkv()).for_each(|row| kernel::add(to, row));
            }
            Tensor::Qkv => of_site(Site::Qkv),
            Tensor::Output => of_site(Site::Output),
            Tensor::GateUp => of_site(Site::GateUp),
            Tensor::Down => of_site(Site::Down),
        };
        let dy = Matrix::strided(&dy[first..rows * wide], rows, to.len() / cols, wide);
        product.product(to, cols, add, dy.t(), Matrix::new(&x[..rows * cols], rows, cols), 1.0);
    }
}
