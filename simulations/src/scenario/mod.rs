//! A scenario: a question, and the world in which it is asked. What a user writes as TOML, and what `--set` changes.
//!
//! This is the document only. Reading it (and saying where it is wrong), finding contradictions, and making
//! peers, links and a course of events of it for one seed are files of their own.

pub mod built_in;
pub mod check;
mod document;
mod draft;
pub mod keys;
pub mod manifest;
mod people;
mod problem;
pub(crate) mod troubles;
pub mod world;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::outcome::Learning;

pub use built_in::built_in;
pub use document::{Document, Files, unchanged};
pub use draft::{Draft, Unread};
pub use people::Person;
pub use problem::{Place, Problem, Refused};
pub use troubles::Trouble;
pub use world::{World, expand};

/// One document. Every key has a default but `question` and `run.model`; unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it answers, in one sentence.
    pub question: String,
    pub run: Run,
    #[serde(default)]
    pub peers: Peers,
    #[serde(default)]
    pub network: Network,
    #[serde(default)]
    pub churn: Churn,
    /// What goes wrong, and when.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
    #[serde(default)]
    pub adversaries: Adversaries,
    #[serde(default)]
    pub learning: Learning,
    #[serde(default)]
    pub cost: Cost,
    #[serde(default)]
    pub simulate: Simulate,
    /// What the author expects: `--check` compares.
    #[serde(default)]
    pub expect: Expect,
}

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    pub model: ModelChoice,
    /// 0: as few as fit the memory of the smallest device that is at least a quarter of all.
    #[serde(default)]
    pub stages: u16,
    /// Tokens of a sequence; 0: the model's context.
    #[serde(default)]
    pub sequence: u32,
    #[serde(default = "default::micro_batch")]
    pub micro_batch: u32,
    #[serde(default = "default::micro_batches_per_step")]
    pub micro_batches_per_step: u32,
    /// 0: as many as the bound of staleness allows, at most 4096.
    #[serde(default)]
    pub in_flight_max: u32,
    #[serde(default = "default::staleness_bound")]
    pub staleness_bound: u32,
    /// Own steps between averaging rounds; 0: none.
    #[serde(default = "default::averaging_every")]
    pub averaging_every: u32,
    /// What activations travel in, what gradients, what differences of averaging: f32, bf16, int8, int4.
    #[serde(default = "default::forward")]
    pub forward: String,
    #[serde(default = "default::backward")]
    pub backward: String,
    #[serde(default = "default::backward")]
    pub averaging: String,
    /// Run steps between checkpoints.
    #[serde(default = "default::checkpoint_every")]
    pub checkpoint_every: u32,
}

/// A named model, or its sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ModelChoice {
    /// demo, 124m, 350m, 1b3, 7b, 13b, 30b
    Named(String),
    Sizes(Sizes),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    pub hidden: u32,
    pub layers: u32,
    pub heads: u32,
    #[serde(default)]
    pub kv_heads: u32,
    pub ffn: u32,
    pub vocab: u32,
    pub context: u32,
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Peers {
    /// Beside the feeders.
    pub count: u32,
    pub feeders: u32,
    /// Device (of the table, or a file of `skein probe`) -> share of the peers.
    pub devices: BTreeMap<String, f64>,
    /// Where they serve: planned (each where it helps most) or even (told beforehand, as many at each stage).
    pub places: Places,
    /// How fast one device is against another of its kind: the standard deviation of its logarithm.
    pub spread: f64,
    /// Part of the time in which owners use their machines, and what a peer then still has of its speed.
    pub owner_busy: f64,
    pub owner_leaves: f64,
    /// All come within this time, at random moments.
    pub arrive_within: String,
    /// Disk that each gives, and the part of its device's memory.
    pub disk: String,
    pub memory_share: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Places {
    #[default]
    Planned,
    Even,
}

/// How they are connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Access (of the table) -> share of the peers.
    pub access: BTreeMap<String, f64>,
    /// Instead of what the access gives, for every peer: rates as `20 Mbit/s`, times as `10 ms`. Empty: not.
    pub up: String,
    pub down: String,
    pub delay: String,
    /// Round trips between regions: one, population, aws, gcp.
    pub regions: String,
    /// Part of the datagrams that are lost by chance, in percent.
    pub loss_percent: f64,
    /// Part of the peers whom others reach through a relay only.
    pub relayed: f64,
}

/// Who comes and goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Churn {
    /// none, spot, volunteer, night, bamboo, or trace:FILE
    pub preset: String,
    /// Of `bamboo`: the part that is taken away every hour.
    pub hourly: f64,
    /// Part of the exits that come with 60 s of warning: these drain.
    pub warned: f64,
    /// All times of the preset are multiplied by this.
    pub slower: f64,
}

/// Something that goes wrong at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub at: String,
    pub what: What,
    /// Whom it befalls: a number of peers, or a share below 1, drawn by the seed.
    #[serde(default = "default::some")]
    pub peers: f64,
    /// Only those that serve this stage.
    #[serde(default)]
    pub stage: Option<u16>,
    /// How long it lasts, where it ends by itself.
    #[serde(default = "default::minute")]
    pub lasts: String,
    /// Of `slow`: what is left of the speed. Of `skew`: hours. Of `latency`: times the delay.
    #[serde(default = "default::factor")]
    pub factor: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// They die, and do not come back.
    Die,
    /// They die, and start again after `lasts`.
    Restart,
    /// They leave politely.
    Leave,
    /// They come: newcomers beside `peers.count`.
    Crowd,
    /// They and the others no longer hear each other.
    Partition,
    /// They are heard no longer, and hear.
    Mute,
    /// Connections of theirs are clogged one by one, and let free in another order.
    Swizzle,
    Slow,
    /// Suspended.
    Pause,
    /// Their clocks jump.
    Skew,
    DiskFull,
    /// The last write before a crash is lost, or torn.
    DiskTorn,
    Latency,
}

impl What {
    /// As a scenario writes it.
    pub fn name(self) -> String {
        toml::Value::try_from(self).ok().and_then(|name| Some(name.as_str()?.to_string())).unwrap_or_default()
    }
}

/// Peers that lie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Adversaries {
    pub share: f64,
    /// nan, sign, zero, noise, silent
    pub kind: String,
}

/// Prices and powers; what is not given comes from the table of prices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cost {
    /// Nothing: as the table of prices has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd_per_kwh: Option<f64>,
    /// What a peer is paid an hour, USD.
    pub usd_per_peer_hour: f64,
    pub usd_per_gb_up: f64,
    /// A machine of the table of prices.
    pub reference: String,
    /// Part of the reference's peak that it reaches.
    pub reference_mfu: f64,
    /// A file with another table.
    pub prices: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Simulate {
    pub duration: String,
    pub fidelity: FidelityChoice,
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FidelityChoice {
    /// Protocol up to 2,000 peers.
    #[default]
    Auto,
    Protocol,
    Fleet,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    pub tokens_per_s_min: Option<f64>,
    pub goodput_min: Option<f64>,
    pub lost_max: Option<u64>,
    pub bottleneck: Option<String>,
    /// Throughput of the last third of the time, over that of the first.
    pub recovers_min: Option<f64>,
    /// All of these together answer the question: with Yes where they are met.
    pub answers: bool,
}

mod default {
    pub fn micro_batch() -> u32 {
        1
    }
    pub fn micro_batches_per_step() -> u32 {
        32
    }
    pub fn staleness_bound() -> u32 {
        4
    }
    pub fn averaging_every() -> u32 {
        20
    }
    pub fn forward() -> String {
        "int8".into()
    }
    pub fn backward() -> String {
        "bf16".into()
    }
    pub fn checkpoint_every() -> u32 {
        200
    }
    pub fn some() -> f64 {
        1.0
    }
    pub fn minute() -> String {
        "60 s".into()
    }
    pub fn factor() -> f64 {
        0.1
    }
}

impl Default for Scenario {
    /// No question: what a reader fills.
    fn default() -> Self {
        Scenario {
            question: String::new(),
            run: Run {
                model: ModelChoice::Named("demo".into()),
                stages: 0,
                sequence: 0,
                micro_batch: default::micro_batch(),
                micro_batches_per_step: default::micro_batches_per_step(),
                in_flight_max: 0,
                staleness_bound: default::staleness_bound(),
                averaging_every: default::averaging_every(),
                forward: default::forward(),
                backward: default::backward(),
                averaging: default::backward(),
                checkpoint_every: default::checkpoint_every(),
            },
            peers: Peers::default(),
            network: Network::default(),
            churn: Churn::default(),
            faults: Vec::new(),
            adversaries: Adversaries::default(),
            learning: Learning::None,
            cost: Cost::default(),
            simulate: Simulate::default(),
            expect: Expect::default(),
        }
    }
}

impl Default for Peers {
    fn default() -> Self {
        Peers {
            count: 8,
            feeders: 1,
            devices: [("core".into(), 1.0)].into(),
            places: Places::Planned,
            spread: 0.1,
            owner_busy: 0.0,
            owner_leaves: 0.2,
            arrive_within: "0 s".into(),
            disk: "20 GiB".into(),
            memory_share: 0.8,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Network {
            access: [("home".into(), 1.0)].into(),
            up: String::new(),
            down: String::new(),
            delay: String::new(),
            regions: "one".into(),
            loss_percent: 0.0,
            relayed: 0.0,
        }
    }
}

impl Default for Churn {
    fn default() -> Self {
        Churn { preset: "none".into(), hourly: 0.1, warned: 0.0, slower: 1.0 }
    }
}

impl Default for Adversaries {
    fn default() -> Self {
        Adversaries { share: 0.0, kind: "nan".into() }
    }
}

impl Default for Cost {
    fn default() -> Self {
        Cost {
            usd_per_kwh: None,
            usd_per_peer_hour: 0.0,
            usd_per_gb_up: 0.0,
            reference: "8xa100".into(),
            reference_mfu: 0.4,
            prices: String::new(),
        }
    }
}

impl Default for Simulate {
    fn default() -> Self {
        Simulate { duration: "10 min".into(), fidelity: FidelityChoice::Auto, seed: 1 }
    }
}
