//! Three small models for the comparison with `transformers`: separate and tied head, and a tied one over two stages, whose
//! export undoes the tie. Weights are large enough that logits are not all near zero.

use skein_pipeline::model::{StageModel, init};
use skein_protocol::run::ModelConfig;

pub const TOKENS: [u32; 8] = [83, 107, 101, 105, 110, 0, 255, 32];

/// Stages of a model, and their weights.
///
/// # Panics
/// At any other name than `untied`, `tied` or `split`.
pub fn stages(name: &str) -> Vec<(StageModel, Vec<f32>)> {
    let config = ModelConfig {
        hidden: 32,
        layers: 2,
        heads: 4,
        kv_heads: if name == "tied" { 4 } else { 2 },
        ffn: 48,
        vocab: 256,
        context: 64,
        rope_theta: if name == "tied" { 10_000.0 } else { 500_000.0 },
        tie_embeddings: name != "untied",
        norm_eps: 1e-5,
        head: None,
        rope_scaling: None,
        window: None,
        qkv_bias: false,
        qk_norm: false,
    };
    let models = match name {
        "untied" | "tied" => vec![StageModel::whole(config)],
        "split" => vec![StageModel::new(config.clone(), 0, 1, true, false), StageModel::new(config, 1, 1, false, true)],
        other => panic!("{other} is no reference model"),
    };
    models.into_iter().map(|model| model.expect("a model that fits together")).map(with_weights).collect()
}

fn with_weights(model: StageModel) -> (StageModel, Vec<f32>) {
    let mut weights = init::initial(&model, 11);
    for param in model.params() {
        let values = &mut weights[param.range()];
        match param.shape.len() {
            // Norms are all one at first, and would hide that one is left out.
            1 => values.iter_mut().enumerate().for_each(|(i, v)| *v += 0.25 * ((i % 7) as f32 - 3.0) / 3.0),
            _ => values.iter_mut().for_each(|v| *v *= 6.0),
        }
    }
    (model, weights)
}
