//! What a stage costs: parameters, memory, arithmetic. The planner, admission and the simulator ask here and nowhere else.

use skein_protocol::{Manifest, Stage, run::ModelConfig};

/// Bytes of device memory of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Parameters, gradients, optimizer state, slow weights and outer momentum: 4 + 4 + 8 + 8 bytes a parameter; and what is
    /// kept for the ids that may be open.
    pub steady: u64,
    /// Steady, and a round's frozen tensors, an older version for backward, a served snapshot: at most 12 bytes a parameter.
    pub peak: u64,
}

/// Parameters of one transformer layer: q, k, v, o, gate, up, down, two norms.
pub fn layer_parameters(model: &ModelConfig) -> u64 {
    let (d, f) = (u64::from(model.hidden), u64::from(model.ffn));
    let kv = d / u64::from(model.heads.max(1)) * u64::from(model.kv_heads);
    2 * d * d + 2 * d * kv + 3 * d * f + 2 * d
}

/// Parameters of a stage, the embedding and the final norm with head included where they are.
pub fn stage_parameters(manifest: &Manifest, stage: Stage) -> u64 {
    let model = &manifest.model.config;
    let table = u64::from(model.vocab) * u64::from(model.hidden);
    let (first, last) = (stage == 0, stage == manifest.last_stage());
    let layers = u64::from(manifest.layers_of(stage).1) * layer_parameters(model);
    let shared = first && last && model.tie_embeddings;
    let head = if last { u64::from(model.hidden) + if shared { 0 } else { table } } else { 0 };
    layers + if first { table } else { 0 } + head
}

/// Bytes that one micro-batch keeps in a stage until its backward: (8 d + 3 f + h T) f32 a token and layer.
pub fn kept_bytes(manifest: &Manifest, stage: Stage) -> u64 {
    let model = &manifest.model.config;
    let (d, f, h) = (u64::from(model.hidden), u64::from(model.ffn), u64::from(model.heads));
    let sequence = u64::from(manifest.train.sequence);
    let a_token = (8 * d + 3 * f + h * sequence) * 4;
    let layers = u64::from(manifest.layers_of(stage).1);
    let head = if stage == manifest.last_stage() { u64::from(model.vocab) * 4 } else { 0 };
    manifest.tokens_per_micro_batch() * (a_token * layers + head + d * 4)
}

pub fn memory(manifest: &Manifest, stage: Stage) -> Memory {
    /// Forwards that wait for their gradient at one replica: the window, spread over the pipeline.
    fn open(manifest: &Manifest) -> u64 {
        u64::from(manifest.train.in_flight_max).min(2 * u64::from(manifest.stages.count) + 2)
    }
    let parameters = stage_parameters(manifest, stage);
    let steady = 24 * parameters + kept_bytes(manifest, stage) * open(manifest);
    Memory { steady, peak: steady + 12 * parameters }
}

/// Floating-point operations of forward and backward of one micro-batch: 6 a parameter and token, and the attention.
pub fn flops(manifest: &Manifest, stage: Stage) -> u64 {
    let model = &manifest.model.config;
    let tokens = manifest.tokens_per_micro_batch();
    let layers = u64::from(manifest.layers_of(stage).1);
    let lookup = if stage == 0 { u64::from(model.vocab) * u64::from(model.hidden) } else { 0 };
    let products = stage_parameters(manifest, stage).saturating_sub(lookup);
    let attention = layers * u64::from(model.hidden) * u64::from(manifest.train.sequence);
    6 * tokens * (products + attention)
}
