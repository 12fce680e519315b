//! One layer, forward and backward: `mid = x + attention(norm(x))`, `out = mid + mlp(norm(mid))`.
//!
//! In: the layer's weights, the input, what was kept. Out: the output, or the gradients. What a norm or SwiGLU gave is not kept
//! but computed again in backward, as `exact::block` does.

use candle_core::Tensor;

use super::{
    Result, adapters,
    attention::{self, Cache, Places, Shape},
    operators::{product, rms, rms_back, swiglu, swiglu_back, weight_gradient},
    sum::Gradients,
    weights::Layer,
};
use crate::model::lora::Site;

/// What a forward leaves for its backward.
pub struct Tape {
    /// `[rows, hidden]`, the input.
    x: Tensor,
    attention: attention::Tape,
    /// `[rows, hidden]`, between attention and MLP.
    mid: Tensor,
    /// `[rows, 2 ffn]`
    gu: Tensor,
}

impl Tape {
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        let all = [&self.x, &self.mid, &self.gu].into_iter().chain(self.attention.tensors());
        all.map(|t| (t.elem_count() * t.dtype().size_in_bytes()) as u64).sum()
    }

    /// What the next tokens of the sequence see.
    pub fn cache(&self) -> Cache {
        self.attention.cache()
    }
}

/// The output of a layer over `x [rows, hidden]`, and its tape. `seen`: of one sequence, what comes before its tokens.
pub fn forward(
    shape: &Shape,
    places: &Places,
    w: &Layer<'_>,
    x: Tensor,
    seen: Option<&Cache>,
) -> Result<(Tensor, Tape)> {
    let (eps, precision) = (shape.dims.eps, shape.precision);
    let h = precision.operand(&rms(&x, w.input_norm, eps)?)?;
    let qkv = adapters::add(w.site(Site::Qkv), product(&h, &w.qkv.read()?.t()?)?, &h)?;
    let attention = attention::forward(shape, places, w, qkv, seen)?;
    let attended = product(&attention.out, &w.output.read()?.t()?)?;
    let mid = (&x + adapters::add(w.site(Site::Output), attended, &attention.out)?)?;
    let h = precision.operand(&rms(&mid, w.mlp_norm, eps)?)?;
    let gu = adapters::add(w.site(Site::GateUp), product(&h, &w.gate_up.read()?.t()?)?, &h)?;
    let act = precision.operand(&swiglu(&gu)?)?;
    let out = (&mid + adapters::add(w.site(Site::Down), product(&act, &w.down.read()?.t()?)?, &act)?)?;
    Ok((out, Tape { x, attention, mid, gu }))
}

/// The gradient of the layer's input, from that of its output. `gradients`: where those of the weights are added, or of the
/// adapters beside them.
pub fn backward(
    shape: &Shape,
    places: &Places,
    w: &Layer<'_>,
    tape: &Tape,
    dout: &Tensor,
    gradients: Option<&mut Gradients<'_>>,
) -> Result<Tensor> {
    let (eps, precision, train) = (shape.dims.eps, shape.precision, gradients.is_some());
    let dout_ = precision.operand(dout)?;
    let (dact, down) = adapters::pull(w.site(Site::Down), product(&dout_, &w.down.read()?)?, &dout_)?;
    let (dgu, act) = swiglu_back(&tape.gu, &dact)?;
    let dgu = precision.operand(&dgu)?;
    let (dh, gate_up) = adapters::pull(w.site(Site::GateUp), product(&dgu, &w.gate_up.read()?)?, &dgu)?;
    let mlp = rms_back(&tape.mid, w.mlp_norm, eps, &dh, train)?;
    let dmid = (dout + mlp.x)?;
    let dmid_ = precision.operand(&dmid)?;
    let (dheads, output) = adapters::pull(w.site(Site::Output), product(&dmid_, &w.output.read()?)?, &dmid_)?;
    let heads = attention::backward(shape, places, w, &tape.attention, &dheads, train)?;
    let dqkv = precision.operand(&heads.qkv)?;
    let (dh, qkv) = adapters::pull(w.site(Site::Qkv), product(&dqkv, &w.qkv.read()?)?, &dqkv)?;
    let input = rms_back(&tape.x, w.input_norm, eps, &dh, train)?;
    let dx = (dmid + input.x)?;
    let (Some(to), Some((h1, input_norm)), Some((h2, mlp_norm))) = (gradients, input.trained, mlp.trained) else {
        return Ok(dx);
    };
    let (h1, h2, act) = (precision.operand(&h1)?, precision.operand(&h2)?, precision.operand(&act)?);
    if !w.is_trained() {
        for (site, pulled, dy, x) in [
            (Site::Qkv, qkv, &dqkv, &h1),
            (Site::Output, output, &dmid_, &tape.attention.out),
            (Site::GateUp, gate_up, &dgu, &h2),
            (Site::Down, down, &dout_, &act),
        ] {
            adapters::train(w.site(site), &pulled, to, dy, x)?;
        }
        return Ok(dx);
    }
    let places = &w.places;
    to.add(places.input_norm, input_norm)?;
    to.add(places.qkv, weight_gradient(&dqkv, &h1)?)?;
    for (place, gradient) in [(places.qkv_bias, heads.bias), (places.qk_norm, heads.norms)] {
        if let (Some(place), Some(gradient)) = (place, gradient) {
            to.add(place, gradient)?;
        }
    }
    to.add(places.output, weight_gradient(&dmid_, &tape.attention.out)?)?;
    to.add(places.mlp_norm, mlp_norm)?;
    to.add(places.gate_up, weight_gradient(&dgu, &h2)?)?;
    to.add(places.down, weight_gradient(&dout_, &act)?)?;
    Ok(dx)
}
