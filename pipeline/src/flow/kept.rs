//! One micro-batch at one replica of a stage: from its acceptance until its feeder says that it is over.

use std::time::Duration;

use skein_protocol::{
    Attempt, Blob, Instant, MicroBatchId, PeerId, Stage,
    wire::{Starts, flow::Hop},
};

use super::handoff::{Cargo, Handoff};
use crate::job::{Coding, Key};

/// What the replica is doing with it.
#[derive(Clone, Debug)]
pub enum Work {
    /// Waiting for its turn, for labels, or for the worker.
    Queued { input: Blob },
    /// The worker has it: a forward, or at the last stage forward, loss and backward.
    Running { input: Blob },
    /// The output is here, its gradient not yet.
    Forwarded { output: Blob, coding: Coding, raw: u64 },
    /// The gradient came, and waits for its turn or for the worker.
    Returning { gradient: Blob, output: Blob },
    /// Done: the gradient is in the sum (or was refused), and the input's gradient is kept to answer from.
    Done { gradient: Option<Blob>, coding: Coding, raw: u64 },
    /// Its values are not finite: kept as a name until the feeder has voided it.
    Void,
}

#[derive(Clone, Debug)]
pub struct Kept {
    pub key: Key,
    /// To whom its gradient goes.
    pub upstream: PeerId,
    pub attempt: Attempt,
    pub samples: u64,
    pub close: bool,
    /// Its loss is told, and nothing is learned from it.
    pub held_out: bool,
    /// Where its records begin: for my forward, and for whoever it is sent to.
    pub starts: Starts,
    pub work: Work,
    /// Last stage: upstream has heard that it is here, and will not take it back.
    pub confirmed: bool,
    /// Last stage only.
    pub labels: Option<Blob>,
    pub labels_asked: Option<Instant>,
    /// On its way to the next stage; nothing at the last.
    pub handoff: Option<Handoff>,
    /// (own step, adoptions) of the weights that its forward used.
    pub forward_at: (u32, u32),
    /// Who computed it after this stage, from the last stage on.
    pub path: Vec<Hop>,
    pub loss: f32,
    pub tokens: u32,
    /// When the worker was last asked for something of it.
    pub asked: Instant,
    /// How long it has waited for workers, here and at the stages that it has been through.
    pub waited: Duration,
    /// Staleness that the worker was told, for the event.
    pub staleness: u32,
    pub added: bool,
    /// Order of asking the worker for its backward was reached (lock-step).
    pub returning_asked: bool,
    /// Where its gradient was sent.
    pub returns: Option<Returns>,
}

/// A gradient that was sent.
#[derive(Clone, Copy, Debug)]
pub struct Returns {
    pub to: PeerId,
    /// It has lain there since then, as far as the connection tells.
    pub since: Option<Instant>,
}

/// Whoever asked before it had a gradient is heard after that: a word takes so long at most.
const CROSSES: Duration = Duration::from_secs(2);

impl Returns {
    /// Whether it is on its way to `peer`.
    pub fn comes_to(&self, peer: PeerId) -> bool {
        self.to == peer && self.since.is_none()
    }

    /// Whether `peer` asked for it, as far as is known, before it was there.
    pub fn crossed(&self, peer: PeerId, now: Instant) -> bool {
        self.to == peer && self.since.is_some_and(|since| now.since(since) < CROSSES)
    }
}

impl Kept {
    pub fn cargo(&self, id: MicroBatchId) -> Cargo {
        let (starts, attempt) = (self.starts.clone(), Some(self.attempt.clone()));
        Cargo { id, samples: self.samples, close: self.close, starts, held_out: self.held_out, attempt }
    }

    /// Handles that it owns.
    pub fn blobs(&self) -> impl Iterator<Item = Blob> {
        let (a, b) = match &self.work {
            Work::Queued { input } | Work::Running { input } => (Some(*input), None),
            Work::Forwarded { output, .. } => (Some(*output), None),
            Work::Returning { gradient, output } => (Some(*gradient), Some(*output)),
            Work::Done { gradient, .. } => (*gradient, None),
            Work::Void => (None, None),
        };
        [a, b, self.labels].into_iter().flatten()
    }

    pub fn is_done(&self) -> bool {
        matches!(self.work, Work::Done { .. })
    }

    /// Neither done nor void: somebody still waits for it.
    pub fn is_open(&self) -> bool {
        !matches!(self.work, Work::Done { .. } | Work::Void)
    }

    pub fn path_with(&self, stage: Stage, peer: PeerId, incarnation: u32) -> Vec<Hop> {
        let mut path = self.path.clone();
        path.push(Hop { stage, peer, incarnation });
        path
    }
}
