//! Runs jobs over engines, one engine a stage. Both drivers use this interpreter: the process on its worker thread, the
//! simulator when it learns for real.
//!
//! In: a `Job` and the driver's blobs. Out: a `Done`, in two parts: a [`Worker`] runs the job, an [`Encoder`] makes bytes of its
//! result, which a driver may do beside the next job. Neither knows a clock, a thread or a disk: durable writes go through
//! [`Saves`]. Nothing from the network is trusted here: lengths are checked before anything is allocated, and values that
//! are not finite are the sender's fault (`Done::BadInput`).

mod body;
mod encode;
mod fitted;
mod hosted;
mod round;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use skein_protocol::{Blob, Manifest, Stage, Version, hash::Digest};

use self::hosted::Hosted;
pub use self::{
    body::read_round,
    encode::{Encoder, Left, Spare, Unencoded},
};
use crate::{
    exact::{Engine, EngineError, StageWeights},
    job::{Done, Job},
    model::{StageModel, cost, init},
};

/// The driver's store of bytes, as a worker sees it.
pub trait Blobs {
    /// The bytes behind a handle; nothing if the handle is unknown.
    fn get(&self, blob: Blob) -> Option<Bytes>;

    /// Stores bytes under a new handle with one reference, which the peer owes a release.
    fn put(&mut self, bytes: Bytes) -> Blob;
}

/// Where whole states of stages are kept durably. One state a stage: the newest replaces the one before it, atomically.
pub trait Saves {
    /// # Errors
    /// The state is not on the disk; the one before it still is.
    fn save(&mut self, version: Version, root: Digest, state: &[u8]) -> Result<(), SaveError>;
}

/// Why a state could not be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct SaveError {
    pub why: String,
    pub disk_full: bool,
}

/// Makes engines: which device, how many threads. One engine a stage.
pub trait Engines {
    /// The parameters that a stage begins with: what is trained.
    ///
    /// # Errors
    /// They are not drawn from a seed, and lie elsewhere: a replica must give them.
    fn initial(&mut self, manifest: &Manifest, model: &StageModel) -> Result<Vec<f32>, EngineError> {
        init::of_manifest(manifest, model)
            .ok_or_else(|| EngineError::Device("the first weights of this run are not here".into()))
    }

    /// The engine of `stage` with these weights, in the order of `model`.
    ///
    /// # Errors
    /// The device has no room, or does not compute as the manifest wants.
    fn make(
        &mut self,
        manifest: &Manifest,
        model: StageModel,
        weights: StageWeights,
    ) -> Result<Box<dyn Engine>, EngineError>;
}

/// All stages that one peer serves.
pub struct Worker<M: Engines> {
    manifest: Arc<Manifest>,
    engines: M,
    stages: BTreeMap<Stage, Hosted>,
    memory: u64,
    /// Somebody has asked for a text.
    answers: bool,
}

impl<M: Engines> Worker<M> {
    pub fn new(manifest: Arc<Manifest>, engines: M) -> Self {
        Worker { manifest, engines, stages: BTreeMap::new(), memory: u64::MAX, answers: false }
    }

    /// Bytes of memory that all stages may take together. What they do not need lets more forwards keep what their backward
    /// needs; without a bound all of them do.
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Shares out the memory among the stages that are here.
    fn share_memory(&mut self) {
        let need = |stage: &Stage| cost::memory(&self.manifest, *stage);
        let needed = self.stages.keys().map(|stage| need(stage).peak()).fold(0, u64::saturating_add);
        // Nobody may ever ask.
        let caches = match self.answers {
            true => cost::caches_max(&self.manifest, self.stages.keys().copied(), self.memory),
            false => 0,
        };
        let spare = self.memory.saturating_sub(needed).saturating_sub(caches) / (self.stages.len() as u64).max(1);
        for (stage, hosted) in &mut self.stages {
            // What is spare makes products faster first, then saves recomputing.
            let packed = hosted.engine().packed_bytes();
            let left = spare.checked_sub(packed);
            hosted.set_packed(left.is_some());
            let bytes = need(stage).tapes.saturating_add(left.unwrap_or(spare));
            hosted.set_kept_bytes_max(if self.memory == u64::MAX { u64::MAX } else { bytes });
        }
    }

    /// Runs one job until its stage is free for the next; what is left is for [`Encoder::finish`], in the order of the jobs.
    /// Handles in the job stay the caller's; handles in the answer are new.
    pub fn run(&mut self, job: Job, blobs: &mut dyn Blobs, saves: &mut dyn Saves) -> Left {
        self.try_run(job, blobs, saves).unwrap_or_else(Left::Nothing)
    }

    /// Runs one job to its end, one thing after the other.
    pub fn run_whole(&mut self, encoder: &mut Encoder, job: Job, blobs: &mut dyn Blobs, saves: &mut dyn Saves) -> Done {
        let (done, spare) = encoder.finish(self.run(job, blobs, saves), blobs);
        if let Some(spare) = spare {
            self.reuse(spare);
        }
        done
    }

    /// Takes memory back that a result was in.
    pub fn reuse(&mut self, Spare { stage, values }: Spare) {
        if let Some(hosted) = self.stages.get_mut(&stage) {
            hosted.reuse(values);
        }
    }

    /// Forwards that are kept for their backward, over all stages.
    pub fn kept(&self) -> usize {
        self.stages.values().map(|hosted| hosted.kept()).sum()
    }

    /// Bytes of those forwards, over all stages: inputs, and what their backward needs.
    pub fn kept_bytes(&self) -> u64 {
        let each = self.stages.iter().map(|(stage, hosted)| hosted.kept_bytes(&self.manifest, *stage));
        each.fold(0, u64::saturating_add)
    }

    /// Bytes of rounds in the air, over all stages: what they began with, and what they would leave.
    pub fn round_bytes(&self) -> u64 {
        self.stages.values().map(Hosted::round_bytes).fold(0, u64::saturating_add)
    }

    /// Gradients that the last step of a stage took the mean of.
    pub fn stepped_with(&self, stage: Stage) -> Option<u32> {
        self.stages.get(&stage).map(Hosted::stepped_with)
    }

    /// The weights of a stage as they are now.
    pub fn params(&self, stage: Stage) -> Option<&[f32]> {
        self.stages.get(&stage).map(|hosted| hosted.engine().params())
    }

    fn try_run(&mut self, job: Job, blobs: &mut dyn Blobs, saves: &mut dyn Saves) -> Result<Left, Done> {
        let stage = job.stage();
        match &job {
            Job::Create { frozen, .. } => {
                let fresh = Hosted::create(&self.manifest, &mut self.engines, stage, frozen, blobs)?;
                self.stages.insert(stage, fresh);
                self.share_memory();
                return Ok(Left::Nothing(Done::Ok));
            }
            Job::Load { parts, root, frozen, .. } => {
                let (manifest, engines) = (&self.manifest, &mut self.engines);
                let (loaded, version) = Hosted::load(manifest, engines, stage, parts, *root, frozen, blobs)?;
                self.stages.insert(stage, loaded);
                self.share_memory();
                return Ok(Left::Nothing(Done::Loaded { version }));
            }
            Job::Remove { .. } => {
                self.stages.remove(&stage);
                self.share_memory();
                return Ok(Left::Nothing(Done::Ok));
            }
            Job::Infer { .. } if !self.answers => {
                self.answers = true;
                self.share_memory();
            }
            _ => {}
        }
        match self.stages.get_mut(&stage) {
            Some(hosted) => hosted.run(&self.manifest, job, blobs, saves),
            None => Err(failed(format!("stage {stage} is not here"))),
        }
    }
}

/// Bytes that a job takes while it runs, beyond what its stage holds before.
pub fn passing_bytes(manifest: &Manifest, job: &Job) -> u64 {
    let stage = job.stage();
    let values = cost::stage_parameters(manifest, stage);
    let bytes = |each: u64| values.saturating_mul(each);
    match job {
        // Collected, then encoded.
        Job::State { full: true, .. } | Job::Save { .. } => bytes(20 + 20),
        Job::State { full: false, .. } => bytes(12 + 4),
        // The parts in one piece; what is read from them becomes the stage.
        Job::Load { .. } => bytes(20 + 4),
        // The body; it is made in pieces.
        Job::RoundSnapshot { .. } => cost::round_bytes(manifest, stage),
        // The result: slow weights and momentum. A copy decodes the partner's difference besides.
        Job::RoundPrepare { partner, .. } => bytes(if partner.copy { 12 } else { 8 }),
        Job::RoundAdopt { .. } => bytes(4),
        Job::Create { .. }
        | Job::Forward { .. }
        | Job::Loss { .. }
        | Job::Backward { .. }
        | Job::Drop { .. }
        | Job::DropSum { .. }
        | Job::Step { .. }
        | Job::RoundRollBack { .. }
        | Job::RoundAlone { .. }
        | Job::Infer { .. }
        | Job::InferClose { .. }
        | Job::Remove { .. } => 0,
    }
}

fn failed(why: impl Into<String>) -> Done {
    Done::Failed { why: why.into(), disk_full: false }
}

fn bad(why: impl ToString) -> Done {
    Done::BadInput { why: why.to_string() }
}

impl From<EngineError> for Done {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::BadInput(why) => Done::BadInput { why },
            EngineError::NotFinite(_) => Done::NotFinite { why: error.to_string() },
            EngineError::NotKept(_) | EngineError::Device(_) => failed(error.to_string()),
        }
    }
}
