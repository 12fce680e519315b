//! What a stage costs: parameters, bytes, operations. Whoever plans, admits, shows or models a stage asks here.

use skein_protocol::{
    Manifest, Stage, codec,
    run::{AveragingRule, BasePrecision, Codec, ModelConfig, OptimizerKind, Recompute},
};

use super::frozen::form_of;
use crate::exact::TILE_VALUES;

/// f32.
const VALUE: u64 = 4;

/// Fewer tokens than this make a lane's matrix products slow.
const LANE_TOKENS_MIN: u64 = 256;

/// What is lost at the end of a layer's backward, where all lanes wait for the last, grows with their number.
const LANES_MAX: u64 = 16;

/// Values of a lane's packed operands: groups of 1024 columns and of 256 rows, 256 deep, where products are made of tiles.
const PACKED: u64 = 256 * (1024 + 256) + 16;

/// Forwards of a stage that keep what their backward needs, however little memory there is: one is computed, one waits for
/// the worker, two are on their way. Beyond that a forward keeps its input, and is computed again.
const TAPES_MIN: u64 = 4;

/// Into how many fixed groups of sequences a micro-batch is cut: the largest power of two that leaves each lane enough tokens.
/// It depends on the micro-batch alone, never on threads or on the split into stages, since the order of sums (so their bits)
/// follows from it.
pub fn lanes(sequences: usize, sequence: usize) -> usize {
    let (sequences, tokens) = (sequences as u64, (sequences as u64).saturating_mul(sequence as u64));
    let most = LANES_MAX.min(sequences).min(tokens / LANE_TOKENS_MIN);
    1 << most.max(1).ilog2()
}

/// Columns of q, and of k (or v).
fn columns(config: &ModelConfig) -> (u64, u64) {
    let head = u64::from(config.head());
    (u64::from(config.heads) * head, u64::from(config.kv_heads) * head)
}

/// Parameters of one layer: q, k, v, o, gate, up, down, two norms, and what only some families have.
pub fn layer_values(config: &ModelConfig) -> u64 {
    let (d, f, (q, kv)) = (u64::from(config.hidden), u64::from(config.ffn), columns(config));
    let bias = if config.qkv_bias { q + 2 * kv } else { 0 };
    let norms = if config.qk_norm { 2 * u64::from(config.head()) } else { 0 };
    d.saturating_mul(2 * q + 2 * kv + 3 * f + 2).saturating_add(bias + norms)
}

/// What is trained of a stage: all of its weights, or the adapters beside them.
pub fn stage_parameters(manifest: &Manifest, stage: Stage) -> u64 {
    match manifest.lora() {
        Some(lora) => lora.layer_values(&manifest.model.config).saturating_mul(manifest.layers_of(stage).1.into()),
        None => stage_weights(manifest, stage),
    }
}

/// Of the weights of a stage those that stay as they are, beside adapters.
pub fn frozen_parameters(manifest: &Manifest, stage: Stage) -> u64 {
    manifest.lora().map_or(0, |_| stage_weights(manifest, stage))
}

/// Bytes of these at most, as they travel and are held.
pub fn frozen_bytes(manifest: &Manifest, stage: Stage) -> u64 {
    let Some(lora) = manifest.lora() else { return 0 };
    let config = &manifest.model.config;
    let (d, f, (q, kv)) = (u64::from(config.hidden), u64::from(config.ffn), columns(config));
    let bytes = |values: u64, width: u64, is_table| form_of(lora.base, width as usize, is_table).bytes(values);
    let matrix = |values: u64, width: u64| bytes(values, width, false);
    let matrices = [matrix(d.saturating_mul(q + 2 * kv + 2 * f), d), matrix(d * q, q), matrix(d * f, f)];
    let small = match lora.base {
        BasePrecision::Bf16 => 2,
        _ => VALUE,
    };
    let vectors = small * layer_values(config).saturating_sub(d.saturating_mul(2 * q + 2 * kv + 3 * f));
    let layer = matrices.into_iter().fold(vectors, u64::saturating_add);
    let layers = u64::from(manifest.layers_of(stage).1).saturating_mul(layer);
    let norm = if stage == manifest.last_stage() { d } else { 0 };
    let tables = stage_weights(manifest, stage)
        .saturating_sub(u64::from(manifest.layers_of(stage).1).saturating_mul(layer_values(config)))
        .saturating_sub(norm);
    layers.saturating_add(small * norm).saturating_add(bytes(tables, d, true))
}

/// Weights of a stage, the embedding and the final norm with head included where they are.
fn stage_weights(manifest: &Manifest, stage: Stage) -> u64 {
    let config = &manifest.model.config;
    let hidden = u64::from(config.hidden);
    let table = u64::from(config.vocab) * hidden;
    let (first, last) = (stage == 0, stage == manifest.last_stage());
    let layers = u64::from(manifest.layers_of(stage).1).saturating_mul(layer_values(config));
    let shared = first && last && config.tie_embeddings;
    let head = if last { hidden + if shared { 0 } else { table } } else { 0 };
    layers.saturating_add(if first { table } else { 0 }).saturating_add(head)
}

/// Values kept for the backward of one layer and one sequence of `t` tokens: x and its sum with the attention, q k v, what the
/// attention gave, gate and up, two norms' factors, and the probabilities. Where heads are normalised, q and k as they were
/// before that, with a factor a head.
pub fn kept_layer(config: &ModelConfig, t: u64) -> u64 {
    let (d, f, h, (q, kv)) =
        (u64::from(config.hidden), u64::from(config.ffn), u64::from(config.heads), columns(config));
    let heads = if config.qk_norm { q + kv + h + u64::from(config.kv_heads) } else { 0 };
    t * (2 * d + 2 * q + 2 * kv + 2 * f + 2 + h * t + heads)
}

/// Bytes of what one forward keeps for its backward beyond its input: a tape a layer, and the output.
pub fn tape_bytes(manifest: &Manifest, stage: Stage) -> u64 {
    let config = &manifest.model.config;
    let (layers, t) = (u64::from(manifest.layers_of(stage).1), u64::from(manifest.train.sequence));
    // What each A gave.
    let low = manifest.lora().map_or(0, |lora| u64::from(lora.rank) * lora.targets.len() as u64 * t);
    let each = u64::from(manifest.train.micro_batch).saturating_mul(kept_layer(config, t).saturating_add(low));
    let tape = layers.saturating_mul(each);
    VALUE.saturating_mul(tape.saturating_add(manifest.tokens_per_micro_batch() * u64::from(config.hidden)))
}

/// Bytes of the input of one micro-batch, as an engine keeps it: token ids or hidden states.
pub fn input_bytes(manifest: &Manifest, stage: Stage) -> u64 {
    let each = if stage == 0 { 1 } else { u64::from(manifest.model.config.hidden) };
    VALUE.saturating_mul(manifest.tokens_per_micro_batch()).saturating_mul(each)
}

/// Bytes of a stage at one replica: its engine, what averaging holds beside it, and the bodies of its micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The weights that stay as they are, beside adapters; on a disk, they are shared with other processes that use them.
    pub frozen: u64,
    /// Two versions: the one in use, and the one that a step or an adoption writes or that a backward still uses.
    pub parameters: u64,
    /// The open sum, and the gradient of one micro-batch.
    pub gradients: u64,
    /// Moments of the optimizer.
    pub optimizer: u64,
    /// Slow weights and outer momentum.
    pub averaging: u64,
    /// Inputs, outputs and gradients of the micro-batches of a window, and the tapes of [`tapes`](Memory::tapes).
    pub kept: u64,
    /// Bytes of tapes in `kept`.
    pub tapes: u64,
    /// Work space of one forward or backward.
    pub scratch: u64,
    /// Beyond the steady state: a round, or a state that is made for a joiner, a keeper or the disk, whichever takes more.
    pub passing: u64,
}

impl Memory {
    pub fn steady(&self) -> u64 {
        [self.frozen, self.parameters, self.gradients, self.optimizer, self.averaging, self.kept, self.scratch]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    pub fn peak(&self) -> u64 {
        self.steady().saturating_add(self.passing)
    }
}

/// Memory of a stage. All of it is bounded: more micro-batches than a feeder's window are never open, and tapes beyond
/// [`Memory::tapes`] are kept only where more memory was given (see `Worker::with_memory`).
pub fn memory(manifest: &Manifest, stage: Stage) -> Memory {
    let (config, train) = (&manifest.model.config, &manifest.train);
    let values = stage_parameters(manifest, stage);
    let bytes = |each: u64| values.saturating_mul(each);
    let (first, last) = (stage == 0, stage == manifest.last_stage());
    let t = u64::from(train.sequence);
    let (d, f, v) = (u64::from(config.hidden), u64::from(config.ffn), u64::from(config.vocab));
    let tokens = manifest.tokens_per_micro_batch();
    let lanes = lanes(train.micro_batch as usize, train.sequence as usize) as u64;
    let moments = match manifest.optimizer.kind {
        OptimizerKind::Adamw | OptimizerKind::Nadamw => 2,
        OptimizerKind::Sgd => 1,
    };
    let window = u64::from(train.in_flight_max);
    let tape = tape_bytes(manifest, stage);
    // The last stage runs forward and backward in one; elsewhere the tape of a forward is made before it is known to fit.
    let (kept_tapes, made) = match (last, train.recompute) {
        (true, _) | (_, Recompute::Always) => (0, 1),
        (false, Recompute::WhenNeeded) => (TAPES_MIN.min(window), 1),
    };
    let tapes = tape.saturating_mul(kept_tapes);
    // The engine keeps the input until the id is over. Of the bodies the output waits for its gradient, and the gradient until
    // the id is over.
    let input = input_bytes(manifest, stage);
    // Which of its codecs a link takes is decided by its speed: the longest counts.
    let coded = |codecs: &[Codec]| {
        let each = codecs.iter().map(|codec| coded_bytes(tokens * d, *codec));
        each.max().unwrap_or(coded_bytes(tokens * d, Codec::F32))
    };
    let output = if last { VALUE * tokens } else { coded(&manifest.codecs.forward) };
    let gradient = if first { 0 } else { coded(&manifest.codecs.backward) };
    let open = window.saturating_mul(input + output + gradient);
    // Every lane's h1, h2, dh, dout, dmid, dx, act, wide, dqkv and dgu; the attention's scores, packed operands; chunks of
    // logits; a decoded input, and three results: one that is computed, one that waits and one that is encoded.
    let (q, kv) = columns(config);
    let norms = 2 * d + 2 * u64::from(config.head());
    let rows = tokens * (6 * d + f + f.max(q) + q + 2 * kv + 2 * f) + lanes * (64 * t + norms + PACKED);
    let chunk = ((1 << 20) / v.max(1)).max(16).min(tokens.div_ceil(lanes));
    let logits = if last { lanes * (chunk * (v + 3 * d + 1) + d) } else { 0 };
    // Frozen matrices that are not packed are read by tiles: a lane's layers have one, and its head.
    let tiles = if manifest.lora().is_some() { lanes * (1 + u64::from(last)) * TILE_VALUES as u64 } else { 0 };
    let scratch = VALUE * (rows + logits + tiles + 4 * tokens * d);
    // A state is collected (20 bytes a parameter), then encoded (20 more).
    let state = bytes(40);
    // The body of a round (d, phi, a sample of the momentum, all coded) is here twice, mine and the partner's. The theta that
    // it was
    // made of is held until its end, when there may be two newer versions. What it leaves here is two tensors, and the new theta.
    let round = match manifest.averaging.rule {
        AveragingRule::None => 0,
        _ => bytes(4 * VALUE).saturating_add(round_bytes(manifest, stage).saturating_mul(2)),
    };
    Memory {
        frozen: frozen_bytes(manifest, stage),
        parameters: bytes(VALUE * 2),
        gradients: bytes(VALUE * 2),
        optimizer: bytes(VALUE * moments),
        averaging: bytes(VALUE * 2),
        kept: tapes.saturating_add(open),
        tapes,
        scratch: scratch.saturating_add(tape * made),
        passing: state.max(round),
    }
}

/// Bytes of what the cache of a generation holds of one token, at a stage.
pub fn cache_token_bytes(manifest: &Manifest, stage: Stage) -> u64 {
    let (_, kv) = columns(&manifest.model.config);
    2 * VALUE * kv.saturating_mul(manifest.layers_of(stage).1.into())
}

/// Tokens of a text that caches have room for in any case.
const CACHED_MIN: u64 = 1024;

/// Bytes that caches of generations may take at a peer that serves `stages` and gives `memory`: an eighth of that, as far as the stages
/// leave as much, and in any case one short text.
pub fn caches_max(manifest: &Manifest, stages: impl Iterator<Item = Stage>, memory: u64) -> u64 {
    let (mut left, mut one) = (memory, 0u64);
    for stage in stages {
        left = left.saturating_sub(self::memory(manifest, stage).peak());
        one = one.saturating_add(cache_token_bytes(manifest, stage));
    }
    (memory / 8).min(left).max(one.saturating_mul(CACHED_MIN.min(manifest.model.config.context.into())))
}

/// Bytes of the state of a stage on its way: five tensors at most, the header and the root.
pub fn state_bytes_max(manifest: &Manifest, stage: Stage) -> u64 {
    const REST: u64 = 8 << 10;
    stage_parameters(manifest, stage).saturating_mul(5 * VALUE).saturating_add(REST)
}

/// Bytes that one side of an averaging round sends: the difference in its codec, phi in its own, a sample of the momentum in
/// bytes.
pub fn round_bytes(manifest: &Manifest, stage: Stage) -> u64 {
    let (values, of_d) = (stage_parameters(manifest, stage), manifest.averaging.codec);
    let sample = values.min(70 << 10);
    coded_bytes(values, of_d).saturating_add(coded_bytes(values, codec::slow_weights(of_d))).saturating_add(sample)
}

fn coded_bytes(values: u64, codec: Codec) -> u64 {
    codec::coded_len(values, codec).unwrap_or(u64::MAX)
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
    let (q, kv) = columns(config);
    let products = 2 * (d * (2 * q + 2 * kv) + 3 * d * f);
    // Scores and their sum over the keys before a token: (t + 1) / 2 of them on average, a window's at most.
    let attention = match config.window {
        None => 2 * q * (t + 1),
        Some(window) => {
            let w = u64::from(window.size).min(t).max(1);
            let (layers, full) = (u64::from(config.layers).max(1), u64::from(window.from.min(config.layers)));
            // In all: w (w + 1) / 2 of the first w tokens, then w each.
            let windowed = 2 * q * (w * (w + 1) + 2 * (t - w) * w) / t.max(1);
            (2 * q * (t + 1) * full + windowed * (layers - full)) / layers
        }
    };
    Flops { layer: products + attention, head: 2 * d * v }
}

/// Operations of forward and backward of one micro-batch at a stage.
pub fn stage_flops(manifest: &Manifest, stage: Stage) -> u64 {
    let Flops { layer, head } = flops(&manifest.model.config, u64::from(manifest.train.sequence));
    let head = if stage == manifest.last_stage() { head } else { 0 };
    // Weights that stay as they are have no gradient.
    let passes = if manifest.lora().is_some() { 2 } else { 3 };
    passes * manifest.tokens_per_micro_batch() * (u64::from(manifest.layers_of(stage).1) * layer + head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{StageModel, frozen, init, tests::tiny};
    use skein_protocol::run::{
        Lora, Method,
        preset::{PRESETS, preset},
    };

    #[test]
    fn lanes_follow_from_shapes() {
        assert_eq!(lanes(4, 128), 2);
        assert_eq!(lanes(1, 4096), 1);
        assert_eq!(lanes(8, 512), 8);
        assert_eq!(lanes(7, 512), 4);
        assert_eq!(lanes(100, 4096), 16);
        assert_eq!(lanes(4, 8), 1);
    }

    #[test]
    fn a_stage_counts_what_the_canonical_order_holds() {
        for name in PRESETS {
            let manifest = preset(name).unwrap();
            for stage in 0..manifest.stages.count {
                let model = StageModel::of(&manifest, stage).unwrap();
                assert_eq!(stage_parameters(&manifest, stage), model.values() as u64, "{name} {stage}");
            }
        }
    }

    #[test]
    fn adapters_are_what_is_trained_and_all_else_is_frozen() {
        let mut manifest = preset("demo").unwrap();
        let whole = (0..3).map(|stage| stage_parameters(&manifest, stage)).collect::<Vec<_>>();
        let targets = ["q", "k", "v", "o", "gate", "up", "down"].map(str::to_string).to_vec();
        manifest.train.method = Method::Lora;
        for base in BasePrecision::ALL {
            manifest.train.lora = Some(Lora { rank: 3, alpha: 6, targets: targets.clone(), dropout_percent: 0, base });
            for (stage, whole) in (0..3).zip(&whole) {
                let model = StageModel::of(&manifest, stage).unwrap();
                assert_eq!(stage_parameters(&manifest, stage), model.values() as u64);
                let (frozen, held) = (model.frozen().unwrap(), memory(&manifest, stage).frozen);
                assert_eq!((frozen_parameters(&manifest, stage), *whole), (frozen.values() as u64, *whole));
                let travels = frozen::encode(frozen, &init::initial(frozen, 3), base).unwrap().len() as u64;
                assert_eq!(travels, frozen::bytes_max(held), "{base:?}");
            }
        }
    }

    #[test]
    fn what_only_some_families_have_is_counted() {
        let window = Some(skein_protocol::run::Window { size: 4, from: 1 });
        let config = ModelConfig { head: Some(6), qkv_bias: true, qk_norm: true, window, ..tiny() };
        let mut manifest = preset("demo").unwrap();
        manifest.stages.count = 1;
        manifest.stages.split = vec![config.layers];
        manifest.model.config = config.clone();
        let model = StageModel::of(&manifest, 0).unwrap();
        assert_eq!(stage_parameters(&manifest, 0), model.values() as u64);
        // A window as long as the sequence is none; a shorter one leaves less to do in two of three layers.
        let with = |window| flops(&ModelConfig { window, ..config.clone() }, 32).layer;
        let sized = |size| with(Some(skein_protocol::run::Window { size, from: 1 }));
        assert_eq!(with(None), sized(32));
        let less = 2 * 4 * 6 * (33 * 32 - (4 * 5 + 2 * 28 * 4)) / 32 * 2 / 3;
        assert_eq!(with(None) - sized(4), less);
    }

    #[test]
    fn operations_are_six_times_the_matrix_weights_a_token() {
        let config = ModelConfig { kv_heads: 4, ..tiny() };
        let flops = flops(&config, 1);
        assert_eq!(flops.layer, 2 * (4 * 16 * 16 + 3 * 16 * 24) + 2 * 16 * 2);
        assert_eq!(flops.head, 2 * 16 * 11);
    }

    #[test]
    fn the_memory_of_a_known_stage_by_hand() {
        // small-124m, a middle stage: 2 layers of 4 * 768^2 + 3 * 768 * 1984 + 2 * 768 parameters, 4 x 512 tokens, in 8 lanes.
        let memory = memory(&preset("small-124m").unwrap(), 4);
        let n = 2 * (4 * 768 * 768 + 3 * 768 * 1984 + 2 * 768);
        assert_eq!((memory.parameters, memory.gradients), (4 * 2 * n, 4 * 2 * n));
        assert_eq!((memory.optimizer, memory.averaging), (4 * 2 * n, 4 * 2 * n));
        let tape = 4 * (4 * 2 * 512 * (3 * 768 + 3 * 768 + 2 * 1984 + 2 + 12 * 512) + 2048 * 768);
        assert_eq!(memory.tapes, 4 * tape);
        // A state takes more than a round: 16 for theta and what is made of it, 2 * (2 + 2 + 1/32) for the bodies.
        assert_eq!(memory.passing, 40 * n);
        assert_eq!(round_bytes(&preset("small-124m").unwrap(), 4), (2 + 2) * n + n / 32 + 2 + (70 << 10));
        assert!(memory.peak() < 3 << 30, "{memory:?}");
    }
}
