//! One peer of a run: its machines, and the one table that wires them.
//!
//! In: facts from the driver. Out: requests to it. It knows no clock, socket, thread, disk or tensor.

pub mod io;

use std::sync::Arc;

use skein_protocol::{Incarnation, Manifest, PeerId, RunId, key::Key};

/// What a peer is born with.
#[derive(Clone)]
pub struct PeerConfig {
    pub key: Key,
    pub run: RunId,
    pub manifest: Arc<Manifest>,
    /// The signed manifest as it travels, for those who only hold an invite.
    pub manifest_bytes: Vec<u8>,
    /// Durable before the peer says its first word.
    pub incarnation: Incarnation,
    /// Of all its random streams: from the operating system, or the scenario.
    pub seed: u64,
    /// Bytes of device memory given: how many stages fit.
    pub memory: u64,
    /// Bytes of disk given to snapshots of others.
    pub disk: u64,
    /// Where others reach me (multiaddr text), as far as known at the start.
    pub addresses: Vec<String>,
    /// Index of the first micro-batch to feed, after a restart.
    pub feed_from: u64,
    /// Stages whose saved state the driver found at the start, with their version: loaded before anything is fetched.
    pub saved: Vec<skein_protocol::Version>,
}

impl PeerConfig {
    pub fn me(&self) -> PeerId {
        self.key.peer()
    }
}
