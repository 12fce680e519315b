//! A stage's loss and gradients by candle's automatic differentiation, in composed operators: arithmetic that shares nothing
//! with either engine. Slow, on the CPU, and only as much as a comparison needs.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::ops;
use skein_pipeline::{
    exact::{IGNORE, StageInput},
    model::{Dims, EMBEDDING, FINAL_NORM, HEAD, StageModel},
};
use skein_protocol::run::RopeScaling;

/// Where the backward starts.
#[derive(Clone, Copy)]
pub enum From<'a> {
    Gradient(&'a [f32]),
    Targets(&'a [u32]),
}

pub struct Oracle {
    /// Hidden states after the last layer.
    pub output: Vec<f32>,
    /// Sum over the counted tokens; 0 from a gradient.
    pub loss: f64,
    /// Of the input; empty where tokens came in.
    pub input: Vec<f32>,
    /// The flat buffer. Of the *mean* loss where there is one.
    pub params: Vec<f32>,
}

pub fn oracle(model: &StageModel, params: &[f32], t: usize, input: StageInput<'_>, from: From<'_>) -> Oracle {
    computed(model, params, t, input, from).unwrap()
}

fn computed(model: &StageModel, params: &[f32], t: usize, input: StageInput<'_>, from: From<'_>) -> Result<Oracle> {
    let dims = model.dims();
    let var = |p: &skein_pipeline::model::Param| Var::from_slice(&params[p.range()], p.shape.clone(), &Device::Cpu);
    let vars = model.params().iter().map(var).collect::<Result<Vec<_>>>()?;
    let named = |name| vars[model.params().iter().position(|p| p.name == name).unwrap()].as_tensor();
    let (received, mut x) = match input {
        StageInput::Tokens(tokens) => (None, vars[0].index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?),
        StageInput::Hidden(x) => {
            let x = Var::from_slice(x, (x.len() / dims.hidden, dims.hidden), &Device::Cpu)?;
            (Some(x.clone()), x.as_tensor().clone())
        }
    };
    for n in 0..model.layers {
        let prefix = format!("model.layers.{}.", model.first_layer + n);
        let of_layer = model.params().iter().zip(&vars).filter_map(|(p, v)| Some((p.name.strip_prefix(&prefix)?, v)));
        x = block(&dims, &of_layer.collect(), model.layer_offsets(n as usize).window, &x, t)?;
    }
    let (loss, seed) = match from {
        From::Gradient(g) => (0.0, (&x * Tensor::from_slice(g, x.shape(), &Device::Cpu)?)?.sum_all()?),
        From::Targets(targets) => {
            let matrix = named(if model.tied() { EMBEDDING } else { HEAD });
            let logits = rms(&x, named(FINAL_NORM), dims.eps)?.matmul(&matrix.t()?)?;
            let shape = (targets.len(), 1);
            let counted: Vec<f32> = targets.iter().map(|&t| f32::from(t != IGNORE)).collect();
            let mean = f64::from(counted.iter().sum::<f32>().max(1.0));
            let ids: Vec<u32> = targets.iter().map(|&t| if t == IGNORE { 0 } else { t }).collect();
            let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
            let counted = Tensor::from_vec(counted, shape, &Device::Cpu)?;
            let loss = (ops::log_softmax(&logits, D::Minus1)?.gather(&ids, 1)? * counted)?.neg()?.sum_all()?;
            (f64::from(loss.to_scalar::<f32>()?), (loss / mean)?)
        }
    };
    let gradients = seed.backward()?;
    let of = |t: &Tensor| match gradients.get(t) {
        Some(g) => g.flatten_all()?.to_vec1::<f32>(),
        None => Ok(vec![0.0; t.elem_count()]),
    };
    Ok(Oracle {
        output: x.flatten_all()?.to_vec1()?,
        loss,
        input: received.map(|x| of(&x)).transpose()?.unwrap_or_default(),
        params: vars.iter().map(|v| of(v)).collect::<Result<Vec<_>>>()?.concat(),
    })
}

fn rms(x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
    let norm = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    x.broadcast_div(&norm)?.broadcast_mul(w)
}

/// Rotates `x [b, heads, t, head]`: pairs `(i, i + head / 2)` by `position * theta^(-2i / head)`, scaled.
fn rope(x: &Tensor, dims: &Dims) -> Result<Tensor> {
    let (t, head) = (x.dim(2)?, x.dim(3)?);
    let half = head / 2;
    let factor = match dims.scaling {
        None => 1.0,
        Some(RopeScaling::Linear { factor }) => factor,
        Some(other) => panic!("{other:?} is compared with `transformers`"),
    };
    let angle = |i: usize| (i / half) as f64 * dims.theta.powf(-2.0 * (i % half) as f64 / head as f64) / factor;
    let table = |f: fn(f64) -> f64| {
        Tensor::from_vec((0..t * half).map(|i| f(angle(i)) as f32).collect(), (t, half), &Device::Cpu)
    };
    let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
    let (a, b) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 3)
}

/// One layer over `x [b * t, hidden]`, its tensors by name; keys and values repeated for each head.
fn block(dims: &Dims, w: &BTreeMap<&str, &Var>, window: Option<usize>, x: &Tensor, t: usize) -> Result<Tensor> {
    let rows = x.dim(0)?;
    let b = rows / t;
    let linear = |name: &str, x: &Tensor| {
        let y = x.matmul(&w[&*format!("{name}.weight")].t()?)?;
        match w.get(&*format!("{name}.bias")) {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    };
    let heads = |x: Tensor, n: usize| x.reshape((b, t, n, dims.head))?.transpose(1, 2)?.contiguous();
    let normed = |x: Tensor, name: &str| match w.get(name) {
        Some(norm) => rms(&x, norm, dims.eps),
        None => Ok(x),
    };
    let h = rms(x, w["input_layernorm.weight"], dims.eps)?;
    let q = heads(linear("self_attn.q_proj", &h)?, dims.heads)?;
    let k = heads(linear("self_attn.k_proj", &h)?, dims.kv_heads)?;
    let v = heads(linear("self_attn.v_proj", &h)?, dims.kv_heads)?;
    let q = rope(&normed(q, "self_attn.q_norm.weight")?, dims)?;
    let k = rope(&normed(k, "self_attn.k_norm.weight")?, dims)?;
    let group = dims.heads / dims.kv_heads;
    let repeat = |x: Tensor| {
        let x = x.unsqueeze(2)?.broadcast_as((b, dims.kv_heads, group, t, dims.head))?;
        x.contiguous()?.reshape((b, dims.heads, t, dims.head))
    };
    let (k, v) = (repeat(k)?, repeat(v)?);
    let sees = |i: usize, j: usize| j <= i && window.is_none_or(|window| i - j < window);
    let mask = (0..t * t).map(|at| if sees(at / t, at % t) { 0.0 } else { f32::NEG_INFINITY }).collect();
    let mask = Tensor::from_vec(mask, (t, t), &Device::Cpu)?;
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? / (dims.head as f64).sqrt())?.broadcast_add(&mask)?;
    let out = ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
    let out = out.transpose(1, 2)?.contiguous()?.reshape((rows, dims.heads * dims.head))?;
    let mid = (x + linear("self_attn.o_proj", &out)?)?;
    let h = rms(&mid, w["post_attention_layernorm.weight"], dims.eps)?;
    let act = (linear("mlp.gate_proj", &h)?.silu()? * linear("mlp.up_proj", &h)?)?;
    &mid + linear("mlp.down_proj", &act)?
}
