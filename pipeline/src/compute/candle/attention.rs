//! Causal attention with grouped-query heads, forward and backward.
//!
//! The queries of all heads that share a head of keys are rows of one product: neither keys nor values are repeated. In: q, k
//! and v side by side, `[rows, qkv]`. Kept for backward: the three as operands, rotated, and the probabilities.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::ops;

use super::{
    Result,
    operators::{Angles, Precision, column_sums, product, rms, rms_back, softmax_back},
    weights::Layer,
};
use crate::model::Dims;

/// Low enough that its exponential is 0, without the traps of an infinity.
const MASKED: f32 = -1e30;

/// Sizes, positions and precision of one call.
pub struct Shape {
    pub dims: Dims,
    pub precision: Precision,
    pub sequences: usize,
    /// Tokens of each.
    pub t: usize,
}

impl Shape {
    /// Heads of queries to one of keys.
    fn group(&self) -> usize {
        self.dims.heads / self.dims.kv_heads
    }

    /// Heads `first..first + n` of `x [rows, qkv]`, `[sequences, n, t, head]`.
    fn heads(&self, x: &Tensor, first: usize, n: usize) -> Result<Tensor> {
        let all = self.dims.heads + 2 * self.dims.kv_heads;
        let x = x.reshape((self.sequences, self.t, all, self.dims.head))?;
        Ok(x.narrow(2, first, n)?.transpose(1, 2)?.contiguous()?)
    }

    /// `[sequences, heads, t, head]` as rows of tokens.
    fn rows(&self, x: &Tensor) -> Result<Tensor> {
        let heads = x.elem_count() / (self.sequences * self.t * self.dims.head);
        let x = x.reshape((self.sequences, heads, self.t, self.dims.head))?.transpose(1, 2)?;
        Ok(x.contiguous()?.reshape((self.sequences * self.t, heads * self.dims.head))?)
    }

    /// Queries as products read them: one matrix for each head of keys.
    fn grouped(&self, x: &Tensor) -> Result<Tensor> {
        let (d, rows) = (&self.dims, self.group() * self.t);
        self.precision.operand(&x.reshape((self.sequences * d.kv_heads, rows, d.head))?)
    }

    /// Keys or values as products read them.
    fn keys(&self, x: &Tensor) -> Result<Tensor> {
        self.precision.operand(&x.reshape((self.sequences * self.dims.kv_heads, self.t, self.dims.head))?)
    }
}

/// Where the tokens of a call stand, and what they see.
pub struct Places {
    /// Also scales by `1 / sqrt(head)`.
    queries: Angles,
    keys: Angles,
    /// By window, `[t, seen]`, or `[sequences, 1, t, seen]` of packed ones: what is added to the scores.
    masks: BTreeMap<Option<usize>, Tensor>,
}

impl Places {
    /// `t` tokens from position `first` on, in layers with these windows (nothing: they see everything before them).
    pub fn new(
        dims: &Dims,
        windows: impl Iterator<Item = Option<usize>>,
        first: usize,
        t: usize,
        device: &Device,
    ) -> Result<Self> {
        let keys = Angles::of(dims, first..first + t, device)?;
        let mask = |window: Option<usize>| {
            let reach = window.unwrap_or(first + t);
            let hidden = |i: usize, j: usize| if j > i || j + reach <= i { MASKED } else { 0.0 };
            let mask: Vec<f32> = (first..first + t).flat_map(|i| (0..first + t).map(move |j| hidden(i, j))).collect();
            Ok((window, Tensor::from_vec(mask, (t, first + t), device)?))
        };
        Ok(Places {
            queries: keys.scaled(1.0 / (dims.head as f64).sqrt())?,
            keys,
            masks: windows.map(mask).collect::<Result<_>>()?,
        })
    }

    /// Of packed sequences. `begins`: of each of their tokens the place in its sequence at which its record begins. Positions go
    /// on through a sequence: scores depend on how far apart two tokens of a record stand, and not on where it does.
    pub fn packed(&self, begins: &[u32], t: usize, device: &Device) -> Result<Self> {
        let begins = Tensor::from_slice(begins, (begins.len() / t, 1, t, 1), device)?;
        let keys = Tensor::arange(0, t as u32, device)?.reshape((1, 1, 1, t))?;
        let before = begins.broadcast_gt(&keys)?.to_dtype(DType::F32)?.affine(f64::from(MASKED), 0.0)?;
        let mask = |(window, mask): (&Option<usize>, &Tensor)| Ok((*window, before.broadcast_add(mask)?));
        Ok(Places {
            queries: self.queries.clone(),
            keys: self.keys.clone(),
            masks: self.masks.iter().map(mask).collect::<Result<_>>()?,
        })
    }
}

/// What a forward leaves for its backward, as operands.
pub struct Tape {
    /// `[sequences * kv_heads, group * t, head]`, scaled.
    q: Tensor,
    /// `[sequences * kv_heads, seen, head]`, as `v`.
    k: Tensor,
    v: Tensor,
    /// Probabilities, `[sequences * kv_heads, group * t, seen]`.
    p: Tensor,
    /// The output, `[rows, heads * head]`.
    pub out: Tensor,
    /// q and k before their heads were normalised, `[sequences, heads, t, head]`.
    raw: Option<[Tensor; 2]>,
}

impl Tape {
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.q, &self.k, &self.v, &self.p, &self.out].into_iter().chain(self.raw.iter().flatten())
    }

    /// What the next tokens of the sequence see.
    pub fn cache(&self) -> Cache {
        Cache { keys: self.k.clone(), values: self.v.clone() }
    }
}

/// Keys and values of what a session has seen, as operands `[kv_heads, position, head]`.
pub struct Cache {
    keys: Tensor,
    values: Tensor,
}

impl Cache {
    /// What lies before `position`.
    pub fn before(&self, position: usize) -> Result<Self> {
        Ok(Cache { keys: self.keys.narrow(1, 0, position)?, values: self.values.narrow(1, 0, position)? })
    }
}

/// Attention over `qkv [rows, qkv]`, to which the layer's bias was not added yet. `seen`: of one sequence, what comes before its
/// tokens.
pub fn forward(shape: &Shape, places: &Places, w: &Layer<'_>, qkv: Tensor, seen: Option<&Cache>) -> Result<Tape> {
    let (d, b, t) = (&shape.dims, shape.sequences, shape.t);
    let qkv = match w.qkv_bias {
        Some(bias) => qkv.broadcast_add(bias)?,
        None => qkv,
    };
    let (mut q, mut k) = (shape.heads(&qkv, 0, d.heads)?, shape.heads(&qkv, d.heads, d.kv_heads)?);
    let mut raw = None;
    if let Some([of_q, of_k]) = head_norms(d, w)? {
        let normed = [rms(&q, &of_q, d.eps)?, rms(&k, &of_k, d.eps)?];
        raw = Some([q, k]);
        [q, k] = normed;
    }
    let q = shape.grouped(&places.queries.turn(&q)?)?;
    let mut k = shape.keys(&places.keys.turn(&k)?)?;
    let mut v = shape.keys(&shape.heads(&qkv, d.heads + d.kv_heads, d.kv_heads)?)?;
    if let Some(seen) = seen {
        (k, v) = (Tensor::cat(&[&seen.keys, &k], 1)?, Tensor::cat(&[&seen.values, &v], 1)?);
    }
    let width = k.dim(1)?;
    let mask = places.masks.get(&w.places.window).expect("there is a mask for the window of every layer");
    let scores = product(&q, &k.t()?)?;
    // No more dimensions than the mask has use for: a device finds its way through each of them for every score.
    let scores = match mask.rank() {
        2 => scores.reshape((b * d.heads, t, width))?,
        _ => scores.reshape((b, d.heads, t, width))?,
    };
    let scores = scores.broadcast_add(mask)?;
    let p = ops::softmax_last_dim(&scores)?.reshape((b * d.kv_heads, shape.group() * t, width))?;
    let p = shape.precision.operand(&p)?;
    let out = shape.precision.operand(&shape.rows(&p.matmul(&v)?)?)?;
    Ok(Tape { q, k, v, p, out, raw })
}

/// Weights of the norms of q's and k's heads, where there are such.
fn head_norms(d: &Dims, w: &Layer<'_>) -> Result<Option<[Tensor; 2]>> {
    let Some(norm) = w.qk_norm else { return Ok(None) };
    Ok(Some([norm.narrow(0, 0, d.head)?, norm.narrow(0, d.head, d.head)?]))
}

/// What a backward gives.
pub struct Back {
    /// Gradient of the product that gave q, k and v, `[rows, qkv]`.
    pub qkv: Tensor,
    /// Gradients of bias and norms, where they are asked for and there are such.
    pub bias: Option<Tensor>,
    pub norms: Option<Tensor>,
}

/// From the gradient of the output, `[rows, heads * head]`.
pub fn backward(
    shape: &Shape,
    places: &Places,
    w: &Layer<'_>,
    tape: &Tape,
    dout: &Tensor,
    train: bool,
) -> Result<Back> {
    let (d, b, t) = (&shape.dims, shape.sequences, shape.t);
    let dout = dout.reshape((b, t, d.heads, d.head))?.transpose(1, 2)?.contiguous()?;
    let dout = shape.grouped(&dout)?;
    let dv = product(&tape.p.t()?, &dout)?;
    let dp = product(&dout, &tape.v.t()?)?;
    let ds = softmax_back(&tape.p.to_dtype(dp.dtype())?, &dp)?;
    let ds = shape.precision.operand(&ds)?;
    let dq = product(&ds, &tape.k)?.reshape((b, d.heads, t, d.head))?;
    let dk = product(&ds.t()?, &tape.q)?.reshape((b, d.kv_heads, t, d.head))?;
    let dv = dv.reshape((b, d.kv_heads, t, d.head))?;
    let (mut dq, mut dk, mut norms) = (places.queries.turn_back(&dq)?, places.keys.turn_back(&dk)?, None);
    if let (Some([of_q, of_k]), Some([q, k])) = (head_norms(d, w)?, &tape.raw) {
        let (back_q, back_k) = (rms_back(q, &of_q, d.eps, &dq, train)?, rms_back(k, &of_k, d.eps, &dk, train)?);
        (dq, dk) = (back_q.x, back_k.x);
        if let (Some((_, of_q)), Some((_, of_k))) = (back_q.trained, back_k.trained) {
            norms = Some(Tensor::cat(&[of_q, of_k], 0)?);
        }
    }
    let qkv = shape.rows(&Tensor::cat(&[dq, dk, dv], 1)?)?;
    let bias = match train && w.qkv_bias.is_some() {
        true => Some(column_sums(&qkv)?),
        false => None,
    };
    Ok(Back { qkv, bias, norms })
}
