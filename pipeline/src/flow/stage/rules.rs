//! What a stage must know of the manifest.

use skein_protocol::{
    Manifest, Stage,
    run::{Codec, Entropy, StalenessWeight},
};

use crate::job::Coding;

/// Facts of the run that a stage needs.
#[derive(Clone, Debug)]
pub struct StageRules {
    pub last: Stage,
    pub micro_batches_per_step: u32,
    pub in_flight_max: u32,
    pub bound: u32,
    pub weight: StalenessWeight,
    pub forward: Coding,
    pub backward: Coding,
}

impl StageRules {
    pub fn of(manifest: &Manifest) -> Self {
        let zstd = manifest.codecs.entropy == Entropy::Zstd;
        let coding = |codecs: &[Codec]| Coding { codec: codecs.first().copied().unwrap_or(Codec::F32), zstd };
        StageRules {
            last: manifest.last_stage(),
            micro_batches_per_step: manifest.train.micro_batches_per_step,
            in_flight_max: manifest.train.in_flight_max,
            bound: manifest.staleness.bound,
            weight: manifest.staleness.weight,
            forward: coding(&manifest.codecs.forward),
            backward: coding(&manifest.codecs.backward),
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
