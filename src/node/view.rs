//! What a node shows of itself: a snapshot, made a few times a second, that `status`, `peers` and dashboards read.

use serde::Serialize;
use skein_pipeline::peer::view::View;
use skein_protocol::{Incarnation, PeerId, RunId};

use super::memory::Account;
use crate::net::{NetStats, Reachability};

/// Totals are since the start of this process.
#[derive(Clone, Debug, Serialize)]
pub struct State {
    pub run: RunId,
    pub name: String,
    pub me: PeerId,
    pub incarnation: Incarnation,
    pub uptime_ms: u64,
    /// Milliseconds since 1970.
    pub utc: u64,
    pub peer: View,
    pub net: NetStats,
    pub addresses: Vec<String>,
    #[serde(serialize_with = "in_words")]
    pub reachability: Reachability,
    pub work: Work,
    pub blobs: BlobState,
    pub memory: Account,
    /// What this peer waits for, if that was said lately.
    pub waiting: Option<String>,
    /// Answers that are being generated for somebody here.
    pub generating: usize,
}

/// What the worker did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Work {
    pub jobs: u64,
    pub busy_ms: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlobState {
    pub handles: usize,
    pub bytes: u64,
    pub budget: u64,
    /// Uses of handles that are not held: 0 in a correct peer.
    pub wrongs: u64,
}

impl State {
    pub fn reachability_in_words(&self) -> &'static str {
        words(self.reachability)
    }
}

fn words(reachability: Reachability) -> &'static str {
    match reachability {
        Reachability::Unknown => "unknown",
        Reachability::Public => "public",
        Reachability::Punchable => "punchable",
        Reachability::Relayed => "relayed",
    }
}

fn in_words<S: serde::Serializer>(reachability: &Reachability, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(words(*reachability))
}
