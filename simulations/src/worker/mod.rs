//! What does the jobs of a simulated peer: a model of a worker, or the product's own interpreter over a real engine. Both take
//! virtual time.

pub mod learning;
pub mod modelled;

use skein_pipeline::job::{Done, Job};
use skein_protocol::Stage;

use crate::{
    engine::Time,
    world::{Disk, Store},
};

/// One peer's worker. Jobs come one at a time, in the order of asking.
pub trait Work {
    /// Virtual nanoseconds that the job takes.
    fn cost(&mut self, job: &Job) -> Time;

    /// What comes of it, at its end.
    fn run(&mut self, job: Job, store: &mut Store, disk: &mut Disk) -> Done;

    /// Forwards that are kept for their backward.
    fn kept(&self) -> usize;

    /// Gradients that the last step of a stage took the mean of: what the peer says of it must agree.
    fn stepped_with(&self, stage: Stage) -> Option<u32>;

    /// The weights of a stage, where there are any.
    fn params(&self, stage: Stage) -> Option<&[f32]> {
        let _ = stage;
        None
    }

    /// What a correct peer never asks.
    fn wrongs(&self) -> Vec<String> {
        Vec::new()
    }
}
