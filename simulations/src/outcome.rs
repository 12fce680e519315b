//! What came of one simulation: the same at either fidelity, so that reports, sweeps and explanations read one thing.
//!
//! Times are seconds of the simulated world, amounts are totals over all peers unless a name says otherwise. Nothing here
//! depends on how long the simulation took, or on how many cores it had.

use serde::{Deserialize, Serialize};

use crate::world::adversary::Lie;

/// Number of the form of `summary.json`: a reader of another one refuses.
pub const SCHEMA: u32 = 1;

/// How closely peers were followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fidelity {
    /// Every frame and timer of the product's own peers.
    Protocol,
    /// Flows and ticks, calibrated against `Protocol`.
    Fleet,
}

/// Where the loss comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Learning {
    #[default]
    None,
    /// A published law of loss over parameters and tokens: an estimate, and always called so.
    Curve,
    /// A tiny model that is really trained by the product's own worker.
    Real,
}

/// Why a simulation is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Ended {
    /// The time that was asked for is over, or the work.
    Finished,
    /// Somebody stopped it.
    Interrupted,
    /// Nothing is completed any more, and nothing that is planned can change it.
    Stuck { stage: Option<u16>, since_s: f64, why: String },
}

/// Where the time of the devices that were there went; the shares sum to 1. Time is that of a worker, weighted by nothing: a slow
/// device's second counts like a fast one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// At work that is in the weights or in an open sum at the end.
    pub computing: f64,
    /// Waiting while an uplink was full: its own, or that of who sent to it.
    pub upload: f64,
    /// Waiting while a downlink was full: its own, or that of whom it sent to.
    pub download: f64,
    /// Waiting, with no link full, since another stage is slower.
    pub imbalance: f64,
    /// Waiting, with no link full and no stage at its limit: for round trips, and for the window of what may be in flight.
    pub latency: f64,
    /// Not serving yet: joining, fetching weights; and at work that perished or was done again.
    pub churn: f64,
    /// At work that was refused as too old.
    pub staleness: f64,
}

/// What a bottleneck can be, with the words that users read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    Compute,
    Upload,
    Download,
    Latency,
    Imbalance,
    Churn,
    Staleness,
}

impl Shares {
    pub fn of(&self, cause: Cause) -> f64 {
        match cause {
            Cause::Compute => self.computing,
            Cause::Upload => self.upload,
            Cause::Download => self.download,
            Cause::Latency => self.latency,
            Cause::Imbalance => self.imbalance,
            Cause::Churn => self.churn,
            Cause::Staleness => self.staleness,
        }
    }

    /// Everything but computing, the largest first: cause and share of the lost time (0 to 1).
    pub fn lost(&self) -> Vec<(Cause, f64)> {
        let lost: f64 = Cause::LOSSES.iter().map(|cause| self.of(*cause)).sum();
        let mut causes: Vec<(Cause, f64)> =
            Cause::LOSSES.iter().map(|cause| (*cause, if lost > 0.0 { self.of(*cause) / lost } else { 0.0 })).collect();
        causes.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        causes
    }

    /// What binds: computing where most of the time is spent on it, otherwise the largest loss.
    pub fn bottleneck(&self) -> Cause {
        if self.computing >= 0.5 { Cause::Compute } else { self.lost()[0].0 }
    }
}

impl Cause {
    pub const LOSSES: [Cause; 6] =
        [Cause::Upload, Cause::Download, Cause::Latency, Cause::Imbalance, Cause::Churn, Cause::Staleness];

    pub fn name(self) -> &'static str {
        match self {
            Cause::Compute => "compute",
            Cause::Upload => "upload",
            Cause::Download => "download",
            Cause::Latency => "latency",
            Cause::Imbalance => "stage imbalance",
            Cause::Churn => "churn",
            Cause::Staleness => "staleness",
        }
    }
}

/// Bytes that were given to the network, by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub activations: u64,
    pub gradients: u64,
    pub averaging: u64,
    /// Weights and snapshots that peers fetch and keep for each other.
    pub weights: u64,
    /// Frames without a body, tokens and labels.
    pub control: u64,
}

impl Traffic {
    pub fn all(&self) -> u64 {
        self.activations + self.gradients + self.averaging + self.weights + self.control
    }
}

/// Counts over the whole simulation. Those of stages (applied to overlapped) are sums over the stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    pub tokens: u64,
    pub completed: u64,
    pub voided: u64,
    pub applied: u64,
    pub perished: u64,
    pub refused: u64,
    pub pending: u64,
    pub lost: u64,
    pub doubled: u64,
    pub overlapped: u64,
    /// Sent again since somebody was lost or silent.
    pub resent: u64,
    /// Run steps.
    pub steps: u64,
    /// A round of two replicas is one.
    pub rounds: u64,
    pub rounds_rolled_back: u64,
    /// Own steps between a forward and its gradient's step.
    pub staleness_p50: u32,
    pub staleness_p99: u32,
    pub loss_first: Option<f64>,
    pub loss_last: Option<f64>,
    /// Of the same training without churn, delay and staleness, where that was asked for.
    pub loss_reference: Option<f64>,
    pub traffic: Traffic,
    /// Floating-point operations that are in the weights, and all that were done.
    pub flops_useful: f64,
    pub flops_done: f64,
    /// Time that peers were there, summed.
    pub peer_s: f64,
    /// Joins, polite leavings, and deaths.
    pub joined: u64,
    pub left: u64,
    pub died: u64,
    #[serde(default)]
    pub lies: Lies,
}

/// What peers did that lie. Whoever simulates knows who they are; the peers do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lies {
    /// How many lie, and how; nothing where nobody does, or at fleet fidelity, which does not follow them.
    pub peers: u64,
    pub kind: Option<Lie>,
    /// Micro-batches that were completed with a liar's result in them.
    pub passed: u64,
    /// Micro-batches that were given up, since a value was not finite.
    pub refused: u64,
    /// Results that were computed and never sent.
    pub withheld: u64,
}

/// One interval of the time series: what happened in it, and how things stood at its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Its end, and its length.
    pub at_s: f64,
    pub for_s: f64,
    pub alive: u32,
    pub serving: u32,
    pub tokens: u64,
    pub completed: u64,
    /// Part of the work done in it that had not to be done again: 0 to 1.
    pub goodput: f64,
    pub traffic: Traffic,
    pub staleness_p50: u32,
    pub staleness_p99: u32,
    /// Mean loss of what was completed in it.
    pub loss: Option<f64>,
    /// Largest relative distance of a replica from the mean of its stage, by the rounds in it.
    pub disagreement: Option<f64>,
    /// Of each stage: replicas that serve, and the part of their time that their workers were busy.
    pub replicas: Vec<u32>,
    pub busy: Vec<f32>,
}

/// Somebody comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub at_s: f64,
    pub peer: u32,
    pub what: Came,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Came {
    Joined,
    /// Politely: it drained.
    Left,
    Died,
}

/// Something that was planned to go wrong, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    pub at_s: f64,
    /// Equal to `at_s` where it is the matter of a moment.
    pub until_s: f64,
    /// One word: `partition`.
    pub what: String,
    /// How many it befalls.
    pub peers: u32,
}

/// One peer over the whole simulation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerRow {
    pub peer: u32,
    pub device: String,
    pub access: String,
    pub region: String,
    /// The last stage that it served.
    pub stage: Option<u16>,
    pub alive_s: f64,
    pub serving_s: f64,
    pub busy_s: f64,
    /// Its uplink was sending.
    pub sending_s: f64,
    pub sent: u64,
    pub received: u64,
    pub joined: u32,
    pub died: u32,
}

/// One stage over the whole simulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageRow {
    pub stage: u16,
    /// Mean number of replicas that serve, and the fewest.
    pub replicas: f64,
    pub replicas_min: u32,
    /// Part of the serving time in which workers of its replicas were busy, and their uplinks and downlinks full.
    pub busy: f64,
    pub sending: f64,
    pub receiving: f64,
    pub completed: u64,
    /// Time with nobody serving.
    pub empty_s: f64,
}

/// A property that did not hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Violation {
    /// P1 to P18.
    pub property: String,
    pub at_s: f64,
    pub peer: Option<u32>,
    pub what: String,
}

/// Money and energy of what was trained, always beside what they assume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub kwh: f64,
    pub usd: f64,
    pub kwh_per_billion_tokens: f64,
    pub usd_per_billion_tokens: f64,
    /// Of the named rented machines doing the same work.
    pub reference: String,
    pub reference_usd_per_billion_tokens: f64,
    pub reference_kwh_per_billion_tokens: f64,
    /// Sentences with the numbers in them, the one that matters most first.
    pub assumptions: Vec<String>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub schema: u32,
    pub skein: String,
    /// Name and question of the scenario, and its text as it ran.
    pub scenario: String,
    pub question: String,
    pub text: String,
    pub seed: u64,
    pub fidelity: Fidelity,
    pub learning: Learning,
    /// Of the scenario as it ran, and of everything that happened: `b3:...`.
    pub config: String,
    pub digest: String,
    pub peers: u32,
    pub stages: u16,
    pub parameters: u64,
    /// How far it came, and how far it was to go.
    pub simulated_s: f64,
    pub duration_s: f64,
    pub events: u64,
    pub ended: Ended,
    pub totals: Totals,
    pub shares: Shares,
    pub series: Vec<Sample>,
    pub changes: Vec<Change>,
    /// The faults of the scenario that began before the end.
    pub planned: Vec<Planned>,
    pub rows: Vec<PeerRow>,
    pub by_stage: Vec<StageRow>,
    pub cost: Option<Cost>,
    /// Properties that were looked at, by name, and those that did not hold.
    pub properties: Vec<String>,
    pub violations: Vec<Violation>,
    /// What about this run is not as it looks: modelled parts, relays, estimates. Sentences.
    pub remarks: Vec<String>,
}

impl Outcome {
    pub fn tokens_per_s(&self) -> f64 {
        if self.simulated_s > 0.0 { self.totals.tokens as f64 / self.simulated_s } else { 0.0 }
    }

    /// Part of the work done that is in the weights or still open: the rest perished, was refused or done again.
    pub fn goodput(&self) -> f64 {
        if self.totals.flops_done > 0.0 { (self.totals.flops_useful / self.totals.flops_done).min(1.0) } else { 1.0 }
    }

    /// Throughput of the last third of what was simulated, over that of the first; nothing where the first has none.
    pub fn recovers(&self) -> Option<f64> {
        let third = self.simulated_s / 3.0;
        let rate = |wanted: &dyn Fn(f64) -> bool| {
            let of = |sample: &&Sample| wanted(sample.at_s - sample.for_s / 2.0);
            let (tokens, long) = self
                .series
                .iter()
                .filter(of)
                .fold((0, 0.0), |(tokens, long), sample| (tokens + sample.tokens, long + sample.for_s));
            if long > 0.0 { tokens as f64 / long } else { 0.0 }
        };
        let (first, last) = (rate(&|at| at < third), rate(&|at| at > 2.0 * third));
        (first > 0.0).then(|| last / first)
    }

    pub fn bytes_per_peer(&self) -> f64 {
        self.totals.traffic.all() as f64 / f64::from(self.peers.max(1))
    }
}
