//! Properties of a run, over the events of all its peers: one file a property. In: lines in the order of time. Out: numbers.
//!
//! Pure: it reads what peers said, the dead included, and nothing else, so that it judges the simulator and real processes
//! alike.

pub mod log;
pub mod once;
pub mod progress;
pub mod repair;
pub mod rounds;
pub mod staleness;
pub mod straight;
pub mod versions;
pub mod window;

use serde::{Deserialize, Serialize};
use skein_protocol::{Manifest, PeerId, Stage, event::Record};

/// One event, with a time that all peers share: nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub at: u64,
    pub record: Record,
}

/// A process that was ended from outside, without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    pub peer: PeerId,
    pub at: u64,
}

/// What the checker needs to know that no event says.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub stages: Stage,
    /// Own steps that a gradient may be old.
    pub staleness_bound: u32,
    pub in_flight_max: u32,
    pub kills: Vec<Kill>,
}

impl Given {
    pub fn of(manifest: &Manifest, kills: Vec<Kill>) -> Self {
        Given {
            stages: manifest.stages.count,
            staleness_bound: manifest.staleness.bound,
            in_flight_max: manifest.train.in_flight_max,
            kills,
        }
    }
}

/// All that is found. Counts of stages are sums over the stages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub minted: u64,
    pub completed: u64,
    pub voided: u64,
    pub tokens: u64,
    /// Mean of the first 8 completed micro-batches, and of the last tenth.
    pub loss_first: f32,
    pub loss_last: f32,
    pub stages: Vec<once::Account>,
    pub applied: u64,
    pub perished: u64,
    pub refused: u64,
    pub pending: u64,
    pub lost: u64,
    pub doubled: u64,
    pub overlapped: u64,
    pub steps: u64,
    /// Run steps, by the latest that any replica's step said.
    pub run_steps: u64,
    /// A round of two replicas is one.
    pub rounds: u64,
    pub rounds_rolled_back: u64,
    /// Living replicas after their last round.
    pub agreements: Vec<rounds::Agreement>,
    pub repairs: Vec<repair::Repair>,
    pub bytes_activations: u64,
    pub bytes_gradients: u64,
    pub bytes_if_f32: u64,
    /// Activations that went from stage to stage.
    pub hops: u64,
    /// Sentences about what must not be: a version that went back, a gradient past the bound, a detour, a window overrun.
    pub broken: Vec<String>,
}

/// Looks at everything.
pub fn check(lines: &[Line], given: &Given) -> Summary {
    let mut summary = Summary::default();
    progress::check(lines, &mut summary);
    once::check(lines, given, &mut summary);
    rounds::check(lines, given, &mut summary);
    repair::check(lines, given, &mut summary);
    versions::check(lines, &mut summary);
    staleness::check(lines, given, &mut summary);
    straight::check(lines, &mut summary);
    window::check(lines, given, &mut summary);
    summary
}

impl Summary {
    fn broken(&mut self, what: String) {
        if self.broken.len() < 50 {
            self.broken.push(what);
        }
    }

    /// Longest time from a kill to the first completion among the ids that the dead peer held, milliseconds.
    pub fn repair_ms_max(&self) -> Option<u64> {
        self.repairs.iter().filter_map(|repair| repair.held_ms).max()
    }

    /// The largest among the living; not a number if one of them is none.
    pub fn disagreement(&self) -> Option<f32> {
        let larger = |a: f32, b: f32| if a.is_nan() || a > b { a } else { b };
        self.agreements.iter().map(|agreement| agreement.apart).reduce(larger)
    }
}
