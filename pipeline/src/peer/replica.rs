//! One stage that this peer serves, or is about to: where its weights come from, its flow, its rounds.
//!
//! Weights come, in this order, from a living replica, from the newest snapshot that anybody holds, from the seed (version 0).

use std::collections::BTreeSet;

use skein_protocol::{Blob, Instant, PeerId, Stage, Version, hash::Digest};

use crate::flow::stage::StageFlow;

/// Where a replica stands on its way to serving.
#[derive(Debug)]
pub enum Phase {
    /// Looking for a donor since then.
    Looking {
        since: Instant,
    },
    Fetching {
        ticket: u64,
    },
    /// The worker makes its engine.
    Loading {
        origin: Origin,
        parts: Vec<Blob>,
    },
    Serving(Box<StageFlow>),
}

/// Where the weights came from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    Replica { from: PeerId, version: Version, root: Digest, len: u64 },
    Snapshot { from: Option<PeerId>, version: Version, root: Digest, len: u64 },
    Seed,
}

#[derive(Debug)]
pub struct Replica {
    pub stage: Stage,
    pub phase: Phase,
    /// No snapshot is taken before this: a replica leaves and its last one is awaited, or a fetch has just failed.
    pub wait_until: Instant,
    /// Fetches that failed since it last served.
    pub failures: u32,
    /// How often all living donors had failed, and were asked again.
    pub passes: u32,
    /// Donors that failed.
    pub tried: BTreeSet<PeerId>,
    /// The planner may not move it.
    pub pinned: bool,
    pub average: skein_gossip::average::Average,
    /// Number of the latest exchange of a round, for the answers of the worker.
    pub exchange: u64,
    /// Run step at which a snapshot was last pushed.
    pub pushed_at: Option<u64>,
    /// Peers that were asked to hold one and refused: only they know what else lies on their disk.
    pub refused_by: BTreeSet<PeerId>,
}

impl Replica {
    pub fn flow(&self) -> Option<&StageFlow> {
        match &self.phase {
            Phase::Serving(flow) => Some(flow),
            _ => None,
        }
    }

    pub fn flow_mut(&mut self) -> Option<&mut StageFlow> {
        match &mut self.phase {
            Phase::Serving(flow) => Some(flow),
            _ => None,
        }
    }

    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving(_))
    }
}
