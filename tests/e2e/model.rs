//! Sizes of the small models that these tests make.

use skein_protocol::run::ModelConfig;

/// A Llama that a test changes as it needs.
pub fn small(vocab: usize) -> ModelConfig {
    ModelConfig {
        hidden: 32,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        ffn: 64,
        vocab: vocab as u32,
        context: 64,
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
