//! Every observable event. Users, checkers and dashboards read these; logs are for developers.
//!
//! Written one JSON object a line: a log can be read by anything, and the same lines feed `--json`, the checker and the
//! simulator's digest.

use serde::{Deserialize, Serialize};

use crate::{
    hash::Digest,
    id::{Incarnation, Lane, MicroBatchId, PeerId, Stage, Version},
    run::Codec,
    wire::flow::Hop,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Event {
    /// This process speaks as this incarnation from now on.
    Started {
        peer: PeerId,
        incarnation: Incarnation,
    },
    PeerUp {
        peer: PeerId,
    },
    PeerLost {
        peer: PeerId,
        incarnation: Incarnation,
        why: String,
    },

    // one micro-batch, at its feeder
    Minted {
        id: MicroBatchId,
        samples: u64,
    },
    /// The feeder accepted the first complete path. `loss` is the mean over its tokens, nats.
    Completed {
        id: MicroBatchId,
        path: Vec<Hop>,
        loss: f32,
        tokens: u32,
    },
    /// The same of held-out data: nothing was learned from it.
    Measured {
        id: MicroBatchId,
        path: Vec<Hop>,
        loss: f32,
        tokens: u32,
    },
    /// Given up after too many attempts, or voided by a value that is not finite.
    Voided {
        id: MicroBatchId,
        stage: Stage,
        why: String,
    },

    // one micro-batch, at a holder
    /// Sent again, since `from` was lost or silent. `hint` is the replica of the stage after that may hold it.
    Resent {
        id: MicroBatchId,
        stage: Stage,
        from: PeerId,
        to: PeerId,
        why: String,
    },
    /// `bytes` of activations go to `to` as soon as the uplink is theirs; `raw` is their size as f32.
    SentForward {
        id: MicroBatchId,
        stage: Stage,
        to: PeerId,
        codec: Codec,
        bytes: u64,
        raw: u64,
    },
    SentBackward {
        id: MicroBatchId,
        stage: Stage,
        to: PeerId,
        codec: Codec,
        bytes: u64,
        raw: u64,
    },

    /// What this stage sends to `to` travels in another codec from now on: a tensor is expected to take `takes_us` rather than
    /// `took_us`, by what was measured of the link.
    Recoded {
        stage: Stage,
        to: PeerId,
        lane: Lane,
        codec: Codec,
        zstd: bool,
        bytes_per_s: u64,
        round_trip_us: u64,
        takes_us: u64,
        took_us: u64,
    },

    // one micro-batch, at a replica
    Accepted {
        id: MicroBatchId,
        stage: Stage,
        from: PeerId,
    },
    Added {
        id: MicroBatchId,
        stage: Stage,
        own_step: u32,
        staleness: u32,
    },
    /// Not added: too stale, or not finite.
    Refused {
        id: MicroBatchId,
        stage: Stage,
        staleness: u32,
        why: String,
    },
    /// A forward that came again was answered from what is kept.
    Answered {
        id: MicroBatchId,
        stage: Stage,
        to: PeerId,
    },

    // weights
    Stepped {
        stage: Stage,
        own_step: u32,
        run_step: u64,
        lr: f64,
        gradient_norm: f32,
        micro_batches: u32,
        ids: Vec<MicroBatchId>,
    },
    /// Steps up to this one survive my death: saved, averaged with a partner, or copied by a joiner.
    Safe {
        stage: Stage,
        own_step: u32,
        how: Safety,
    },
    /// What was in the open sum is gone.
    Perished {
        stage: Stage,
        ids: Vec<MicroBatchId>,
        why: String,
    },
    /// I dropped my open work and speak as a new incarnation.
    Fenced {
        old: Incarnation,
        new: Incarnation,
        why: String,
    },

    // rounds
    Round {
        stage: Stage,
        round: u32,
        partner: Option<PeerId>,
        outcome: RoundOutcome,
        /// |phi_i - mean phi| / |mean phi| after the round, where known.
        disagreement: Option<f32>,
        samples: u64,
        duration_ms: u64,
    },

    // membership and placement
    Joining {
        stage: Stage,
        why: String,
    },
    Fetched {
        version: Version,
        from: Option<PeerId>,
        bytes: u64,
        root: Digest,
    },
    /// What the manifest names by this hash is here.
    Shelved {
        blob: Digest,
        from: PeerId,
        bytes: u64,
    },
    Serving {
        stage: Stage,
        version: Version,
    },
    Suspected {
        peer: PeerId,
        why: String,
    },
    /// I serve it no longer, and somebody else does.
    StageLeft {
        stage: Stage,
    },
    StageEmpty {
        stage: Stage,
    },
    StageBack {
        stage: Stage,
        peer: PeerId,
    },
    /// The stage was adopted from a snapshot: at most the work since it is lost.
    Restored {
        stage: Stage,
        version: Version,
        from_seed: bool,
    },
    Draining,
    Drained,

    // snapshots
    Saved {
        version: Version,
        root: Digest,
        bytes: u64,
    },
    Held {
        version: Version,
        root: Digest,
        by: PeerId,
    },

    Waiting {
        what: String,
    },
    /// Another peer's time of day is so far from mine that neither takes the other's items.
    ClocksApart {
        peer: PeerId,
        apart_ms: u64,
    },
    Penalised {
        peer: PeerId,
        severity: Severity,
        why: String,
    },
    /// Totals since the start.
    Traffic {
        lane: Lane,
        sent: u64,
        received: u64,
    },
    RunEnded {
        why: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Safety {
    Saved,
    Averaged,
    Copied,
}

/// How an averaging round ended for this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoundOutcome {
    /// Both sides adopted.
    Both,
    /// Rolled back on both sides.
    Neither,
    /// I adopted; the last acknowledgement of the other side is unknown.
    OneSided,
    /// Nobody else serves the stage.
    Alone,
    /// Every candidate was busy.
    Skipped,
    /// Too far apart to average: copied.
    Copied,
}

/// How bad an input was; `net/gate` says what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Odd, but honest peers do it: late, unknown, out of order.
    Odd,
    /// A correct peer does not do it.
    Wrong,
    /// Not decodable, too large, wrongly signed.
    Hostile,
}

/// One line of an event log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Nanoseconds since the peer started.
    pub at: u64,
    /// Milliseconds since 1970, by the peer's clock.
    pub utc: u64,
    /// Who writes. Events have fields named `peer`, and a line is one flat object.
    #[serde(rename = "me")]
    pub peer: PeerId,
    pub seq: u64,
    #[serde(flatten)]
    pub event: Event,
}
