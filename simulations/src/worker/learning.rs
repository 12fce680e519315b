//! A worker that really learns: the product's own interpreter of jobs over the exact engine, on the real bytes of the store. Only
//! its time is modelled.

use std::sync::Arc;

use skein_pipeline::{
    exact::{Engine, EngineError, Exact, Settings, StageWeights},
    job::{Done, Job},
    model::StageModel,
    worker::{Encoder, Engines, Worker},
};
use skein_protocol::{Manifest, Stage};

use super::{Work, modelled::Clockwork};
use crate::{
    driver::MakeWorker,
    engine::{MILLISECOND, Time},
    world::{Disk, Store},
};

/// Engines whose bits are equal on every platform.
struct ExactEngines;

impl Engines for ExactEngines {
    fn make(
        &mut self,
        manifest: &Manifest,
        model: StageModel,
        weights: StageWeights,
    ) -> Result<Box<dyn Engine>, EngineError> {
        Ok(Box::new(Exact::new(model, Settings::of(manifest), weights)?))
    }
}

pub struct Learning {
    worker: Worker<ExactEngines>,
    encoder: Encoder,
    clockwork: Clockwork,
    wrongs: Vec<String>,
}

impl Learning {
    pub fn new(manifest: Arc<Manifest>, clockwork: Clockwork) -> Self {
        let (worker, encoder) = (Worker::new(manifest, ExactEngines), Encoder::default());
        Learning { worker, encoder, clockwork, wrongs: Vec::new() }
    }

    /// For `Setup::make_worker`.
    pub fn make() -> MakeWorker {
        Box::new(|manifest, clockwork| Box::new(Learning::new(manifest.clone(), clockwork)))
    }
}

impl Work for Learning {
    fn cost(&mut self, job: &Job) -> Time {
        self.clockwork.cost(job).max(MILLISECOND / 20)
    }

    fn run(&mut self, job: Job, store: &mut Store, disk: &mut Disk) -> Done {
        // Forgetting what is not there is no fault.
        let forgets =
            matches!(job, Job::Drop { .. } | Job::DropSum { .. } | Job::RoundRollBack { .. } | Job::InferClose { .. });
        let done = self.worker.run_whole(&mut self.encoder, job.clone(), store, disk);
        if let Done::Failed { why, disk_full: false } = &done
            && !forgets
            && self.wrongs.len() < 20
        {
            self.wrongs.push(format!("{job:?}: {why}"));
        }
        done
    }

    fn kept(&self) -> usize {
        self.worker.kept()
    }

    fn stepped_with(&self, stage: Stage) -> Option<u32> {
        self.worker.stepped_with(stage)
    }

    fn params(&self, stage: Stage) -> Option<&[f32]> {
        self.worker.params(stage)
    }

    fn wrongs(&self) -> Vec<String> {
        self.wrongs.clone()
    }
}
