//! What a peer's machine keeps when its process dies.

use std::collections::BTreeMap;

use bytes::Bytes;
use skein_pipeline::worker::{SaveError, Saves};
use skein_protocol::{Incarnation, Stage, Version, hash::Digest};

use super::payload::Payload;

/// A durable state of a stage.
#[derive(Clone, Debug)]
pub struct Saved {
    pub version: Version,
    pub root: Digest,
    pub payload: Payload,
}

#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// Of the last process that started.
    pub incarnation: Incarnation,
    /// Index of the first micro-batch that a restarted feeder feeds.
    pub feed_from: u64,
    pub saved: BTreeMap<Stage, Saved>,
    /// What the manifest names by its hash.
    pub shelf: BTreeMap<Digest, Payload>,
    /// No room: saving fails.
    pub full: bool,
    /// What is written last does not survive a crash.
    pub torn: bool,
    /// The stage that was written last, and what was there before.
    last: Option<(Stage, Option<Saved>)>,
}

impl Disk {
    pub fn with_shelf(shelf: BTreeMap<Digest, Payload>) -> Self {
        Disk { shelf, ..Disk::default() }
    }

    pub fn keep(&mut self, version: Version, root: Digest, payload: Payload) -> Result<(), SaveError> {
        if self.full {
            return Err(SaveError { why: "no space left on the disk".into(), disk_full: true });
        }
        let before = self.saved.insert(version.stage, Saved { version, root, payload });
        self.last = Some((version.stage, before));
        Ok(())
    }

    /// The machine dies. A state is written beside the one before it and then takes its name: one that was torn is not there, and
    /// the one before still is.
    pub fn crash(&mut self) {
        let Some((stage, before)) = self.last.take().filter(|_| self.torn) else { return };
        match before {
            Some(before) => drop(self.saved.insert(stage, before)),
            None => drop(self.saved.remove(&stage)),
        }
    }
}

impl Saves for Disk {
    fn save(&mut self, version: Version, root: Digest, state: &[u8]) -> Result<(), SaveError> {
        self.keep(version, root, Payload::Real(Bytes::copy_from_slice(state)))
    }
}
