//! Bytes and operations of a stage: one place for the formulas that admission, the planner and the simulator use.

use skein_protocol::run::{ModelConfig, Optimizer, OptimizerKind, Recompute, Train};

use super::StageModel;

/// f32.
const VALUE: u64 = 4;

/// Fewer tokens than this make a lane's matrix products slow.
const LANE_TOKENS_MIN: u64 = 256;

/// Lanes of a model whose layer has at most so many parameters: a lane costs 4 bytes a parameter of gradient buffer.
const LANES_MAX: [(u64, u64); 3] = [(1 << 20, 8), (1 << 22, 4), (u64::MAX, 2)];

/// Into how many fixed groups of sequences a micro-batch is cut, each with its own gradient buffer: the largest power of two
/// that leaves each lane enough tokens, within a bound that falls with the size of a layer. It depends on the model and the
/// micro-batch alone, never on threads or on the split into stages, since the order of sums (so their bits) follows from it.
pub fn lanes(config: &ModelConfig, sequences: usize, sequence: usize) -> usize {
    let (sequences, tokens) = (sequences as u64, (sequences as u64).saturating_mul(sequence as u64));
    let layer = layer_values(config);
    let max = LANES_MAX.iter().find(|(values, _)| layer <= *values).map_or(1, |&(_, lanes)| lanes);
    let fits = |n: u64| n <= max.min(sequences) && n * LANE_TOKENS_MIN <= tokens;
    [8, 4, 2].into_iter().find(|&n| fits(n)).unwrap_or(1) as usize
}

/// Parameters of one layer.
pub fn layer_values(config: &ModelConfig) -> u64 {
    let (d, f) = (u64::from(config.hidden), u64::from(config.ffn));
    let kv = u64::from(config.kv_heads) * (d / u64::from(config.heads).max(1));
    d.saturating_mul(2 * d + 2 * kv + 3 * f + 2)
}

/// Values kept for the backward of one layer and one sequence of `t` tokens: x, q k v, attention, its sum with x (4 of
/// `hidden`-like width), gate and up, two norms' factors, and the probabilities.
pub fn kept_layer(config: &ModelConfig, t: u64) -> u64 {
    let (d, f, h) = (u64::from(config.hidden), u64::from(config.ffn), u64::from(config.heads));
    let head = d / h.max(1);
    let qkv = d + 2 * u64::from(config.kv_heads) * head;
    t * (3 * d + qkv + 2 * f + 2 + h * t)
}

/// Bytes of a stage's engine and of what averaging holds beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Parameters, the open sum and one gradient buffer a lane.
    pub weights: u64,
    /// Moments of the optimizer.
    pub optimizer: u64,
    /// Slow weights and outer momentum.
    pub averaging: u64,
    /// What the open micro-batches keep for their backward.
    pub kept: u64,
    /// Work space of one forward or backward.
    pub scratch: u64,
    /// Beyond the steady state: an older version of the parameters, a round's snapshots, a snapshot served.
    pub passing: u64,
}

impl Memory {
    pub fn steady(&self) -> u64 {
        self.weights + self.optimizer + self.averaging + self.kept + self.scratch
    }

    pub fn peak(&self) -> u64 {
        self.steady() + self.passing
    }
}

/// Memory of a stage with `open` micro-batches between their forward and their backward.
pub fn memory(model: &StageModel, train: &Train, optimizer: &Optimizer, open: u64) -> Memory {
    let config = &model.config;
    let values = model.values() as u64;
    let (b, t) = (u64::from(train.micro_batch), u64::from(train.sequence));
    let (d, f, v) = (u64::from(config.hidden), u64::from(config.ffn), u64::from(config.vocab));
    let lanes = lanes(config, train.micro_batch as usize, train.sequence as usize) as u64;
    let moments = match optimizer.kind {
        OptimizerKind::Adamw | OptimizerKind::Nadamw => 2,
        OptimizerKind::Sgd => 1,
    };
    let tokens = b * t;
    let input = if model.embedding { tokens } else { tokens * d };
    let tape = b * u64::from(model.layers) * kept_layer(config, t) + tokens * d;
    let (held, working) = match train.recompute {
        Recompute::WhenNeeded => (open * (input + tape), 0),
        Recompute::Always => (open * input, tape),
    };
    let logits = if model.head { lanes * (1 << 20).max(16 * v) } else { 0 };
    Memory {
        weights: VALUE * values * (2 + lanes),
        optimizer: VALUE * values * moments,
        averaging: VALUE * values * 2,
        kept: VALUE * held,
        scratch: VALUE * (working + tokens * (6 * d + 3 * f) + lanes * t * t + logits),
        passing: 12 * values,
    }
}

/// Multiplications and additions of one forward, a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flops {
    pub layer: u64,
    /// Final norm and head (without the loss).
    pub head: u64,
}

/// Operations of a forward a token, in sequences of `t` tokens. A backward takes twice as many, three times with recomputing.
/// The embedding is a copy.
pub fn flops(config: &ModelConfig, t: u64) -> Flops {
    let (d, f, v) = (u64::from(config.hidden), u64::from(config.ffn), u64::from(config.vocab));
    let kv = u64::from(config.kv_heads) * (d / u64::from(config.heads).max(1));
    let products = 2 * (d * (2 * d + 2 * kv) + 3 * d * f);
    // Scores and their sum over the keys before a token: (t + 1) / 2 of them on average.
    let attention = 2 * d * (t + 1);
    Flops { layer: products + attention, head: 2 * d * v }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::tiny;

    #[test]
    fn lanes_follow_from_shapes() {
        let of = |hidden, sequences, sequence| {
            lanes(&ModelConfig { hidden, ffn: 3 * hidden, kv_heads: 4, ..tiny() }, sequences, sequence)
        };
        assert_eq!(of(128, 4, 128), 2);
        assert_eq!(of(128, 1, 4096), 1);
        assert_eq!(of(128, 8, 512), 8);
        assert_eq!(of(512, 8, 512), 4);
        assert_eq!(of(2048, 8, 512), 2);
        assert_eq!(of(128, 4, 8), 1);
    }

    #[test]
    fn a_layer_counts_what_the_canonical_order_holds() {
        let layer = StageModel::new(tiny(), 1, 1, false, false).unwrap();
        assert_eq!(layer_values(&tiny()), layer.values() as u64);
    }

    #[test]
    fn operations_are_six_times_the_matrix_weights_a_token() {
        let config = ModelConfig { kv_heads: 4, ..tiny() };
        let flops = flops(&config, 1);
        assert_eq!(flops.layer, 2 * (4 * 16 * 16 + 3 * 16 * 24) + 2 * 16 * 2);
        assert_eq!(flops.head, 2 * 16 * 11);
    }
}
