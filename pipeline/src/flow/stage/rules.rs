//! What a stage must know of the manifest, and of the machine it runs on.

use skein_protocol::{Manifest, Stage, run::StalenessWeight};

use crate::flow::coding::{Chooser, Costs};

/// Facts of the run that a stage needs.
#[derive(Clone, Debug)]
pub struct StageRules {
    pub last: Stage,
    pub micro_batches_per_step: u32,
    /// From a feeder's first id that is not over to its last.
    pub reach_max: u64,
    pub bound: u32,
    pub weight: StalenessWeight,
    /// Numbers in an activation, and in its gradient.
    pub values: u64,
    /// How activations and gradients travel; nothing is decided in these.
    pub forward: Chooser,
    pub backward: Chooser,
    pub costs: Costs,
}

impl StageRules {
    pub fn of(manifest: &Manifest, costs: Costs) -> Self {
        let codecs = &manifest.codecs;
        StageRules {
            last: manifest.last_stage(),
            micro_batches_per_step: manifest.train.micro_batches_per_step,
            reach_max: manifest.reach_max(),
            bound: manifest.staleness.bound,
            weight: manifest.staleness.weight,
            values: manifest.tokens_per_micro_batch().saturating_mul(u64::from(manifest.model.config.hidden)),
            forward: Chooser::new(&codecs.forward, codecs, manifest.lock_step()),
            backward: Chooser::new(&codecs.backward, codecs, manifest.lock_step()),
            costs,
        }
    }

    pub(super) fn lock_step(&self) -> bool {
        self.bound == 0
    }

    /// Weight of a gradient that is `age` steps old; nothing past the bound. In lock-step every gradient is of its own step.
    pub(super) fn weight_of(&self, age: u32) -> Option<f32> {
        if self.lock_step() {
            return Some(1.0);
        }
        skein_gossip::kernel::staleness::weight(self.weight, self.bound, age)
    }
}
