//! Manifests for simulations: small models, every value in one place.

use skein_protocol::{Manifest, run::*};

/// Shape of a small run; the rest has defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Small {
    pub stages: u16,
    pub layers: u32,
    pub hidden: u32,
    pub ffn: u32,
    pub vocab: u32,
    pub sequence: u32,
    pub micro_batch: u32,
    pub micro_batches_per_step: u32,
    pub in_flight_max: u32,
    pub staleness_bound: u32,
    /// Own steps between rounds; 0: none.
    pub round_every: u32,
    pub codec: Codec,
}

impl Small {
    /// The demo's model: 0.92 M parameters in bytes.
    pub fn demo(stages: u16) -> Self {
        Small {
            stages,
            layers: u32::from(stages.max(4)),
            hidden: 128,
            ffn: 384,
            vocab: 256,
            sequence: 128,
            micro_batch: 4,
            micro_batches_per_step: 4,
            in_flight_max: 12,
            staleness_bound: 4,
            round_every: 5,
            codec: Codec::Bf16,
        }
    }

    /// Small enough to learn in a test.
    pub fn tiny(stages: u16) -> Self {
        Small {
            stages,
            layers: 3,
            hidden: 16,
            ffn: 32,
            vocab: 17,
            sequence: 8,
            micro_batch: 2,
            micro_batches_per_step: 4,
            in_flight_max: 8,
            staleness_bound: 4,
            round_every: 5,
            codec: Codec::F32,
        }
    }

    /// One replica a stage serves, everything in the order of the indices.
    pub fn lock_step(self) -> Self {
        Small { staleness_bound: 0, codec: Codec::F32, round_every: 0, ..self }
    }

    pub fn manifest(&self) -> Manifest {
        let stages = u32::from(self.stages.max(1));
        let split = (0..stages).map(|i| self.layers * (i + 1) / stages - self.layers * i / stages).collect();
        let rule = if self.round_every == 0 { AveragingRule::None } else { AveragingRule::Noloco };
        Manifest {
            run: Run {
                name: "simulated".into(),
                about: String::new(),
                protocol: PROTOCOL,
                revision: 0,
                parent: None,
                owner: Default::default(),
                delegates: Vec::new(),
                starts: "now".into(),
                ends: Ends::default(),
            },
            model: Model {
                family: Family::Llama,
                config: ModelConfig {
                    hidden: self.hidden,
                    layers: self.layers,
                    heads: 4,
                    kv_heads: 2,
                    ffn: self.ffn,
                    vocab: self.vocab,
                    context: self.sequence,
                    rope_theta: 10_000.0,
                    tie_embeddings: false,
                    norm_eps: 1e-5,
                    head: None,
                    rope_scaling: None,
                    window: None,
                    qkv_bias: false,
                    qk_norm: false,
                },
                weights: Weights::Seed { init_seed: 7 },
                tokenizer: Tokenizer::Byte,
                chat_template: None,
            },
            stages: Stages { count: self.stages, split, pin_ends: false },
            train: Train {
                method: Method::Full,
                lora: None,
                sequence: self.sequence,
                micro_batch: self.micro_batch,
                micro_batches_per_step: self.micro_batches_per_step,
                in_flight_max: self.in_flight_max,
                loss: Loss::NextToken,
                clip: 1.0,
                arithmetic: vec![Arithmetic::Repeatable],
                recompute: Recompute::WhenNeeded,
                seed: 3,
            },
            optimizer: Optimizer {
                kind: OptimizerKind::Adamw,
                lr: 3e-3,
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-8,
                decay: 0.0,
                schedule: Schedule::default(),
            },
            staleness: Staleness { bound: self.staleness_bound, weight: StalenessWeight::InverseSqrt },
            averaging: Averaging {
                rule,
                group: 2,
                every: self.round_every,
                alpha: 0.5,
                beta: 0.7,
                gamma: 0.7,
                codec: Codec::Bf16,
                robust: Robust::Clip,
            },
            codecs: Codecs {
                error_max: 0.02,
                forward: vec![self.codec],
                backward: vec![self.codec],
                error_feedback: false,
                entropy: Entropy::None,
            },
            data: Data::default(),
            admission: Admission {
                open: true,
                members: Vec::new(),
                peers_max: 1000,
                per_subnet_max: 16,
                memory_min: Size(0),
            },
            privacy: Privacy::default(),
            checkpoint: Checkpoint { every: 10, copies_min: 3 },
        }
    }
}
