//! The typed form of `run.toml`, protocol 1. Every value is part of the run's identity: names are settled for good.
//!
//! Optional `[verify]` and later sections come with a new protocol number.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::{hash::Digest, id::PeerId, unset, wire::membership::BITMAP_MAX};

/// The wire and manifest protocol of this build.
pub const PROTOCOL: u16 = 1;

/// Windows that a feeder mints from an id that is stuck: as many are fed again after a crash, though they may be over.
const REACH: u64 = 2;

#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Manifest {
    #[n(0)]
    pub run: Run,
    #[n(1)]
    pub model: Model,
    #[n(2)]
    pub stages: Stages,
    #[n(3)]
    pub train: Train,
    #[n(4)]
    pub optimizer: Optimizer,
    #[n(5)]
    pub staleness: Staleness,
    #[n(6)]
    pub averaging: Averaging,
    #[n(7)]
    pub codecs: Codecs,
    #[n(8)]
    pub data: Data,
    #[n(9)]
    pub admission: Admission,
    #[n(10)]
    pub privacy: Privacy,
    #[n(11)]
    pub checkpoint: Checkpoint,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Run {
    /// `[a-z0-9-]{1,32}`; a label, the identity is the hash.
    #[n(0)]
    pub name: String,
    /// At most 280 bytes.
    #[n(1)]
    #[serde(default)]
    pub about: String,
    #[n(2)]
    pub protocol: u16,
    #[n(3)]
    #[serde(default)]
    pub revision: u32,
    /// Hash of the revision before, if `revision` is above 0.
    #[n(4)]
    #[serde(default)]
    pub parent: Option<Digest>,
    #[n(5)]
    pub owner: PeerId,
    /// Peers that may feed data for the owner.
    #[n(6)]
    #[serde(default)]
    pub delegates: Vec<PeerId>,
    /// `now` or RFC 3339.
    #[n(7)]
    #[serde(default = "now")]
    pub starts: String,
    #[n(8)]
    #[serde(default)]
    pub ends: Ends,
}

fn now() -> String {
    "now".into()
}

/// The run ends at whichever is reached first; all absent: never.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Ends {
    #[n(0)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    #[n(1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// RFC 3339.
    #[n(2)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    #[n(3)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Model {
    #[n(0)]
    pub family: Family,
    #[n(1)]
    pub config: ModelConfig,
    #[n(2)]
    pub weights: Weights,
    #[n(3)]
    #[serde(default = "byte")]
    pub tokenizer: Tokenizer,
    /// Blob of a chat template, if any.
    #[n(4)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<Digest>,
}

fn byte() -> Tokenizer {
    Tokenizer::Byte
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum Family {
    #[n(0)]
    Llama,
    #[n(1)]
    Mistral,
    #[n(2)]
    Qwen2,
    #[n(3)]
    Qwen3,
}

/// Shape of a Llama-like decoder.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct ModelConfig {
    #[n(0)]
    pub hidden: u32,
    #[n(1)]
    pub layers: u32,
    #[n(2)]
    pub heads: u32,
    #[n(3)]
    pub kv_heads: u32,
    #[n(4)]
    pub ffn: u32,
    #[n(5)]
    pub vocab: u32,
    /// Largest position, tokens.
    #[n(6)]
    pub context: u32,
    #[n(7)]
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
    #[n(8)]
    #[serde(default)]
    pub tie_embeddings: bool,
    #[n(9)]
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    /// Width of a head where it is not hidden / heads: see [`ModelConfig::head`].
    #[n(10)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<u32>,
    /// Absent: positions turn as `rope_theta` says.
    #[n(11)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Absent: a token sees everything before it.
    #[n(12)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// q, k and v have a bias.
    #[n(13)]
    #[cbor(with = "unset", has_nil)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub qkv_bias: bool,
    /// Each head of q and of k goes through an RMSNorm before it is turned.
    #[n(14)]
    #[cbor(with = "unset", has_nil)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub qk_norm: bool,
}

impl ModelConfig {
    /// Width of a head.
    pub fn head(&self) -> u32 {
        self.head.unwrap_or(self.hidden / self.heads.max(1))
    }
}

/// How a model reads positions beyond those that it was first trained on.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// All frequencies divided by the factor.
    #[n(0)]
    Linear {
        #[n(0)]
        factor: f64,
    },
    /// Frequencies of waves longer than `original / low` are divided by the factor, those shorter than `original / high` stay,
    /// and between the two lies a ramp. Llama 3.1.
    #[n(1)]
    Llama3 {
        #[n(0)]
        factor: f64,
        #[n(1)]
        low: f64,
        #[n(2)]
        high: f64,
        /// Positions of the first training.
        #[n(3)]
        original: u32,
    },
}

/// Sliding-window attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Window {
    /// Tokens that a token sees, itself among them.
    #[n(0)]
    pub size: u32,
    /// The first layer that has it; the layers before see everything.
    #[n(1)]
    #[serde(default)]
    pub from: u32,
}

fn rope_theta() -> f64 {
    10_000.0
}

fn norm_eps() -> f64 {
    1e-5
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Weights {
    /// Drawn from this seed and each tensor's name: equal on every peer.
    #[n(0)]
    #[serde(rename_all = "snake_case")]
    Seed {
        #[n(0)]
        init_seed: u64,
    },
    /// Content fixed by the hash; sources are only hints.
    #[n(1)]
    Blob {
        #[n(0)]
        blob: Digest,
        #[n(1)]
        #[serde(default)]
        sources: Vec<String>,
        /// Of each stage's weights as they travel, by [`crate::hash::blob`]; peers give them to each other. Only where they stay
        /// as they are: beside adapters.
        #[n(2)]
        #[cbor(default)]
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        stages: Vec<Digest>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tokenizer {
    #[n(0)]
    Byte,
    #[n(1)]
    #[serde(untagged)]
    File {
        #[n(0)]
        blob: Digest,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Stages {
    #[n(0)]
    pub count: u16,
    /// Layers a stage; sums to the model's layers.
    #[n(1)]
    pub split: Vec<u32>,
    /// First and last stage only on the data owner.
    #[n(2)]
    #[serde(default)]
    pub pin_ends: bool,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Train {
    #[n(0)]
    #[serde(default)]
    pub method: Method,
    #[n(1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// Tokens of one sequence, 8..context.
    #[n(2)]
    pub sequence: u32,
    /// Sequences of one micro-batch.
    #[n(3)]
    pub micro_batch: u32,
    /// What one replica accumulates before it steps its optimizer.
    #[n(4)]
    pub micro_batches_per_step: u32,
    /// Ids that one feeder may have open; a progress tells of at most 8,192.
    #[n(5)]
    pub in_flight_max: u32,
    #[n(6)]
    #[serde(default)]
    pub loss: Loss,
    /// Gradient norm of each block (embedding, each layer, final norm with head); 0 = off.
    #[n(7)]
    #[serde(default = "one")]
    pub clip: f64,
    /// What peers may compute in: each takes the first that its device is quick in.
    #[n(8)]
    #[serde(default = "arithmetic")]
    pub arithmetic: Vec<Arithmetic>,
    #[n(9)]
    #[serde(default)]
    pub recompute: Recompute,
    /// Order of the data.
    #[n(10)]
    #[serde(default)]
    pub seed: u64,
}

fn one() -> f64 {
    1.0
}

fn arithmetic() -> Vec<Arithmetic> {
    vec![Arithmetic::F32]
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum Method {
    #[default]
    #[n(0)]
    Full,
    #[n(1)]
    Lora,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Lora {
    #[n(0)]
    pub rank: u32,
    #[n(1)]
    pub alpha: u32,
    #[n(2)]
    pub targets: Vec<String>,
    #[n(3)]
    #[serde(default)]
    pub dropout_percent: u8,
    /// In what peers give the weights beside the adapters to each other, and compute with.
    #[n(4)]
    #[cbor(with = "unset", has_nil)]
    #[serde(default)]
    pub base: BasePrecision,
}

/// In what the weights beside adapters are held. Sums, adapters and their optimizer are f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum BasePrecision {
    /// In the fewest bits that hold every value: 16 or 32.
    #[default]
    #[n(0)]
    AsIs,
    #[n(1)]
    Bf16,
    /// 8.5 bits a value: blocks of 32 that share a scale.
    #[n(2)]
    Int8,
    /// 4.5 bits; embedding and head as in [`Int8`](BasePrecision::Int8).
    #[n(3)]
    Int4,
}

impl BasePrecision {
    pub const ALL: [BasePrecision; 4] =
        [BasePrecision::AsIs, BasePrecision::Bf16, BasePrecision::Int8, BasePrecision::Int4];

    /// As manifests and people write it.
    pub fn name(self) -> &'static str {
        match self {
            BasePrecision::AsIs => "as-is",
            BasePrecision::Bf16 => "bf16",
            BasePrecision::Int8 => "int8",
            BasePrecision::Int4 => "int4",
        }
    }
}

impl Lora {
    /// What each target reads and what it gives, in numbers a token.
    fn sides<'a>(&'a self, c: &ModelConfig) -> impl Iterator<Item = (u64, u64)> + 'a {
        let width = |heads: u32| u64::from(heads).saturating_mul(u64::from(c.head()));
        let (d, f, q, kv) = (u64::from(c.hidden), u64::from(c.ffn), width(c.heads), width(c.kv_heads));
        self.targets.iter().map(move |target| match target.as_str() {
            "q" => (d, q),
            "k" | "v" => (d, kv),
            "o" => (q, d),
            "gate" | "up" => (d, f),
            "down" => (f, d),
            _ => (0, 0),
        })
    }

    /// Values of the adapters of one layer: A `[rank, in]` and B `[out, rank]` of each target.
    pub fn layer_values(&self, config: &ModelConfig) -> u64 {
        let each =
            self.sides(config).map(|(reads, gives)| reads.saturating_add(gives).saturating_mul(self.rank.into()));
        each.fold(0, u64::saturating_add)
    }

    /// A larger rank says nothing that the smallest of the targets could not say by itself.
    pub fn rank_max(&self, config: &ModelConfig) -> u64 {
        self.sides(config).map(|(reads, gives)| reads.min(gives)).filter(|side| *side > 0).min().unwrap_or(1)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum Loss {
    #[default]
    #[n(0)]
    NextToken,
    #[n(1)]
    CompletionOnly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum Arithmetic {
    /// All values f32.
    #[n(0)]
    F32,
    /// Products of operands rounded to bf16, summed in f32; all else f32, but that a card rounds the results of products, too. Bits
    /// depend on the processor.
    #[n(1)]
    Bf16,
    /// Fixed summation order: equal bits on every CPU and for any number of threads.
    #[n(2)]
    Repeatable,
    /// All values f32, of which products need 16 of 24 bits: from two bf16 each where that is quicker. Bits depend on the
    /// processor.
    #[n(3)]
    Bf16x3,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum Recompute {
    #[default]
    #[n(0)]
    WhenNeeded,
    #[n(1)]
    Always,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Optimizer {
    #[n(0)]
    #[serde(default)]
    pub kind: OptimizerKind,
    #[n(1)]
    pub lr: f64,
    #[n(2)]
    #[serde(default = "beta1")]
    pub beta1: f64,
    #[n(3)]
    #[serde(default = "beta2")]
    pub beta2: f64,
    #[n(4)]
    #[serde(default = "eps")]
    pub eps: f64,
    #[n(5)]
    #[serde(default)]
    pub decay: f64,
    #[n(6)]
    #[serde(default)]
    pub schedule: Schedule,
}

fn beta1() -> f64 {
    0.9
}

fn beta2() -> f64 {
    0.999
}

fn eps() -> f64 {
    1e-8
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum OptimizerKind {
    #[default]
    #[n(0)]
    Adamw,
    #[n(1)]
    Nadamw,
    #[n(2)]
    Sgd,
}

/// Learning rate over run steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Schedule {
    #[n(0)]
    #[serde(default)]
    pub kind: ScheduleKind,
    /// Run steps of linear warm-up.
    #[n(1)]
    #[serde(default)]
    pub warmup: u64,
    /// `wsd`: share of all steps at full rate, warm-up included.
    #[n(2)]
    #[serde(default = "hundred")]
    pub stable_percent: u8,
    /// `linear`, `cosine`, `wsd`: rate at the end, percent of `lr`.
    #[n(3)]
    #[serde(default)]
    pub final_percent: u8,
}

fn hundred() -> u8 {
    100
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum ScheduleKind {
    #[default]
    #[n(0)]
    Constant,
    #[n(1)]
    Linear,
    #[n(2)]
    Cosine,
    #[n(3)]
    Wsd,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Staleness {
    /// Own steps; older gradients are not added. 0 = lock-step, at most 64.
    #[n(0)]
    pub bound: u32,
    #[n(1)]
    #[serde(default)]
    pub weight: StalenessWeight,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum StalenessWeight {
    #[n(0)]
    None,
    #[default]
    #[n(1)]
    InverseSqrt,
    #[n(2)]
    Inverse,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Averaging {
    #[n(0)]
    #[serde(default)]
    pub rule: AveragingRule,
    #[n(1)]
    #[serde(default = "two")]
    pub group: u32,
    /// Own steps between rounds.
    #[n(2)]
    pub every: u32,
    #[n(3)]
    #[serde(default = "half")]
    pub alpha: f64,
    #[n(4)]
    #[serde(default = "seven_tenths")]
    pub beta: f64,
    #[n(5)]
    #[serde(default = "seven_tenths")]
    pub gamma: f64,
    /// Of the differences.
    #[n(6)]
    #[serde(default = "bf16")]
    pub codec: Codec,
    #[n(7)]
    #[serde(default)]
    pub robust: Robust,
}

fn two() -> u32 {
    2
}

fn half() -> f64 {
    0.5
}

fn seven_tenths() -> f64 {
    0.7
}

fn bf16() -> Codec {
    Codec::Bf16
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum AveragingRule {
    #[default]
    #[n(0)]
    Noloco,
    #[n(1)]
    Gossip,
    #[n(2)]
    Groups,
    #[n(3)]
    None,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum Robust {
    #[n(0)]
    None,
    #[default]
    #[n(1)]
    Clip,
    #[n(2)]
    CenteredClip,
    #[n(3)]
    Trimmed,
}

/// How a tensor travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum Codec {
    #[n(0)]
    F32,
    #[n(1)]
    Bf16,
    #[n(2)]
    Int8,
    #[n(3)]
    Int4,
    #[n(4)]
    Sparse,
    #[n(5)]
    Int16,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Codecs {
    /// Allowed for activations. The first is used unless another is faster on a link.
    #[n(0)]
    pub forward: Vec<Codec>,
    /// Allowed for gradients. The first is used unless another is faster on a link.
    #[n(1)]
    pub backward: Vec<Codec>,
    /// What the averaging codec loses of a difference stays in the weights for the next. Activations and gradients carry nothing
    /// over: each belongs to other samples.
    #[n(2)]
    #[serde(default)]
    pub error_feedback: bool,
    #[n(3)]
    #[serde(default)]
    pub entropy: Entropy,
    /// The error budget of activations and gradients: the part of a tensor's size that its codec may lose (root mean square of
    /// the error over that of the values), 0 to 1.
    #[n(4)]
    #[serde(default = "fiftieth")]
    pub error_max: f64,
}

fn fiftieth() -> f64 {
    0.02
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum Entropy {
    #[n(0)]
    None,
    /// zstd where it makes the tensors that one stage sends in one direction more than 5 % smaller (measured on all while it
    /// does, on one of 16 while it does not), and the link is so slow that this saves time.
    #[default]
    #[n(1)]
    Zstd,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Data {
    #[n(0)]
    #[serde(default)]
    pub from: DataFrom,
    #[n(1)]
    #[serde(default)]
    pub listed: Vec<Digest>,
    #[n(2)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<Eval>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum DataFrom {
    #[default]
    #[n(0)]
    Owner,
    #[n(1)]
    Members,
    #[n(2)]
    Listed,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Eval {
    #[n(0)]
    pub every: u64,
    #[n(1)]
    pub blob: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Admission {
    /// `false` is reserved for runs that ask for a token: there are none, and the manifest is refused.
    #[n(0)]
    #[serde(default = "yes")]
    pub open: bool,
    /// Not empty: a closed list.
    #[n(1)]
    #[serde(default)]
    pub members: Vec<PeerId>,
    #[n(2)]
    #[serde(default = "peers_max")]
    pub peers_max: u32,
    #[n(3)]
    #[serde(default = "per_subnet_max")]
    pub per_subnet_max: u32,
    /// Bytes; written as a size in TOML.
    #[n(4)]
    #[serde(default)]
    pub memory_min: Size,
}

fn yes() -> bool {
    true
}

fn peers_max() -> u32 {
    1000
}

fn per_subnet_max() -> u32 {
    16
}

/// A number of bytes, written with its unit (`"1GiB"`, `"500MB"`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Size(#[n(0)] pub u64);

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Privacy {
    #[n(0)]
    #[serde(default)]
    pub noise: Noise,
    #[n(1)]
    #[serde(default)]
    pub masked_average: bool,
    #[n(2)]
    #[serde(default = "group_min")]
    pub group_min: u32,
}

fn group_min() -> u32 {
    4
}

#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Noise {
    /// 0 = off.
    #[n(0)]
    pub sigma: f64,
    #[n(1)]
    pub clip: f64,
    #[n(2)]
    pub delta: f64,
}

impl Default for Noise {
    fn default() -> Self {
        Noise { sigma: 0.0, clip: 1.0, delta: 1e-5 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Checkpoint {
    /// Run steps between signed version announcements and pushed snapshots.
    #[n(0)]
    pub every: u64,
    /// Copies of each stage that the swarm holds; living replicas count.
    #[n(1)]
    #[serde(default = "copies_min")]
    pub copies_min: u32,
}

fn copies_min() -> u32 {
    3
}

/// What `Size` is in TOML: see [`crate::unit`].
impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&crate::unit::bytes(self.0))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        crate::unit::parse_bytes(&text).map(Size).map_err(serde::de::Error::custom)
    }
}

impl Manifest {
    /// Layers of `stage`: `(first, count)`.
    pub fn layers_of(&self, stage: crate::Stage) -> (u32, u32) {
        let before = self.stages.split.iter().take(usize::from(stage)).sum();
        (before, self.stages.split.get(usize::from(stage)).copied().unwrap_or(0))
    }

    pub fn last_stage(&self) -> crate::Stage {
        self.stages.count.saturating_sub(1)
    }

    /// Samples (sequences) of one run step, see `architecture.md` 5.
    pub fn samples_per_step(&self) -> u64 {
        u64::from(self.train.micro_batch) * u64::from(self.train.micro_batches_per_step)
    }

    pub fn tokens_per_micro_batch(&self) -> u64 {
        u64::from(self.train.micro_batch) * u64::from(self.train.sequence)
    }

    /// Whether this peer may serve the stage: the first and the last may be the owner's alone.
    pub fn may_serve(&self, peer: PeerId, stage: crate::Stage) -> bool {
        let is_end = stage == 0 || stage == self.last_stage();
        !(self.stages.pin_ends && is_end) || peer == self.run.owner
    }

    /// The adapters that are trained; nothing: all weights are.
    pub fn lora(&self) -> Option<&Lora> {
        self.train.lora.as_ref().filter(|_| self.train.method == Method::Lora)
    }

    /// Of the weights beside which a stage's adapters are trained, as they travel.
    pub fn frozen(&self, stage: crate::Stage) -> Option<Digest> {
        match &self.model.weights {
            Weights::Blob { stages, .. } if self.lora().is_some() => stages.get(usize::from(stage)).copied(),
            _ => None,
        }
    }

    /// Everything that peers give to each other by its hash.
    pub fn blobs(&self) -> Vec<Digest> {
        let frozen = (0..self.stages.count).filter_map(|stage| self.frozen(stage));
        let files = match &self.model.tokenizer {
            Tokenizer::File { blob } => Some(*blob),
            Tokenizer::Byte => None,
        };
        frozen.chain(files).collect()
    }

    /// Whether the run is in lock-step: one replica a stage serves, in the order of the indices.
    pub fn lock_step(&self) -> bool {
        self.staleness.bound == 0
    }

    /// How far a feeder mints from its first id that is not over. One that is stuck at a slow peer does not stop those behind it
    /// at once; but no more are minted than its staleness allows where one replica steps on all of them, and a progress has a bit
    /// for each.
    pub fn reach_max(&self) -> u64 {
        let (train, open) = (&self.train, u64::from(self.train.in_flight_max).max(1));
        if self.lock_step() {
            return open;
        }
        let oldest = u64::from(self.staleness.bound) * u64::from(train.micro_batches_per_step);
        (open * REACH).min(oldest).min(8 * BITMAP_MAX as u64).max(open)
    }
}
