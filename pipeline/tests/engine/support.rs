//! Small models, their engines and their data.

use skein_pipeline::{
    exact::{Engine, Exact, Settings, StageInput},
    model::{StageModel, init},
};
use skein_protocol::run::{ModelConfig, Optimizer, OptimizerKind, Recompute, Schedule};

pub const SEED: u64 = 7;

/// Three layers with grouped-query heads.
pub fn config() -> ModelConfig {
    ModelConfig {
        hidden: 16,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        ffn: 24,
        vocab: 13,
        context: 256,
        rope_theta: 10_000.0,
        tie_embeddings: false,
        norm_eps: 1e-5,
        head: None,
        rope_scaling: None,
        window: None,
        qkv_bias: false,
        qk_norm: false,
    }
}

pub fn settings(sequence: usize, micro_batch: usize, kind: OptimizerKind) -> Settings {
    Settings {
        sequence,
        micro_batch,
        clip: 1.0,
        optimizer: Optimizer {
            kind,
            lr: 3e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            decay: 0.1,
            schedule: Schedule::default(),
        },
        recompute: Recompute::WhenNeeded,
        kept_bytes_max: u64::MAX,
    }
}

/// Gradients are readable: they are the first moment after a step.
pub fn plain(sequence: usize, micro_batch: usize) -> Settings {
    let mut settings = settings(sequence, micro_batch, OptimizerKind::Sgd);
    settings.clip = 0.0;
    (settings.optimizer.beta1, settings.optimizer.decay) = (0.0, 0.0);
    settings
}

pub fn stage(config: &ModelConfig, first: u32, layers: u32) -> StageModel {
    StageModel::new(config.clone(), first, layers, first == 0, first + layers == config.layers).unwrap()
}

pub fn exact(model: StageModel, settings: Settings) -> Exact {
    let params = init::initial(&model, SEED);
    Exact::new(model, settings, params).unwrap()
}

pub fn whole(config: &ModelConfig, settings: Settings) -> Exact {
    exact(StageModel::whole(config.clone()).unwrap(), settings)
}

/// Tokens and their targets, equal for an equal `seed`: every token of the vocabulary once, then a scatter of them.
pub fn batch(config: &ModelConfig, tokens: usize, seed: u32) -> (Vec<u32>, Vec<u32>) {
    let token = |i: usize| match i as u32 {
        i if i < config.vocab => (4 * i + seed) % config.vocab,
        i => (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 11) % config.vocab,
    };
    ((0..tokens).map(token).collect(), (1..=tokens).map(token).collect())
}

/// One micro-batch through a whole model. Returns the loss a token.
pub fn train(engine: &mut dyn Engine, key: u64, batch: &(Vec<u32>, Vec<u32>), weight: f32) -> f64 {
    engine.forward(key, StageInput::Tokens(&batch.0)).unwrap();
    let lost = engine.loss_backward(key, &batch.1, weight).unwrap();
    engine.drop_kept(key);
    lost.loss / f64::from(lost.tokens)
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
