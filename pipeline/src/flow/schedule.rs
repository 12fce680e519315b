//! Orders the jobs of the one worker: what frees memory and unblocks others first. Keeps at most two in the driver's hands, so
//! that the worker never waits and the order is still ours.

use std::collections::BTreeMap;

use skein_protocol::{JobId, MicroBatchId, Outbox, Stage};

use crate::{job::Job, peer::io::Output};

/// Jobs in the driver's hands at a time.
const DEPTH: usize = 2;

/// Urgency, the first is done first. Within one, the order of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Drops, steps, adoptions: what changes the weights, or frees memory.
    Weights,
    /// Gradients before activations: one-forward-one-backward.
    Backward,
    Forward,
    Infer,
    /// Rounds and snapshots: nobody waits for them.
    Bulk,
}

/// What an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    Forward {
        stage: Stage,
        id: MicroBatchId,
    },
    Backward {
        stage: Stage,
        id: MicroBatchId,
    },
    Step {
        stage: Stage,
    },
    /// The open sum of a fence.
    DropSum {
        stage: Stage,
    },
    Create {
        stage: Stage,
    },
    Round {
        stage: Stage,
        ticket: u64,
    },
    State {
        stage: Stage,
        ticket: u64,
    },
    Save {
        stage: Stage,
    },
    Infer {
        stage: Stage,
        session: u64,
    },
    /// Nobody waits for the answer.
    Forget,
}

#[derive(Debug, Default)]
pub struct Schedule {
    waiting: BTreeMap<(Priority, u64), (JobId, Job, Purpose)>,
    running: BTreeMap<JobId, Purpose>,
    next: u64,
}

impl Schedule {
    pub fn push(&mut self, priority: Priority, job: Job, purpose: Purpose) {
        self.next += 1;
        self.waiting.insert((priority, self.next), (JobId(self.next), job, purpose));
    }

    /// Hands jobs to the driver while it has fewer than two. `last_look` may still change a job (its weight by age).
    pub fn dispatch(&mut self, out: &mut Outbox<Output>, mut last_look: impl FnMut(&mut Job, Purpose)) {
        while self.running.len() < DEPTH {
            let Some((_, (id, mut job, purpose))) = self.waiting.pop_first() else { return };
            last_look(&mut job, purpose);
            self.running.insert(id, purpose);
            out.push(Output::Compute { job: id, job_spec: job });
        }
    }

    /// What the finished job was for; `None` when it was disowned meanwhile.
    pub fn done(&mut self, id: JobId) -> Option<Purpose> {
        self.running.remove(&id)
    }

    /// Takes back jobs that were not handed over yet.
    pub fn cancel(&mut self, mut unwanted: impl FnMut(&Purpose) -> bool) -> Vec<Job> {
        let keys: Vec<_> = self.waiting.iter().filter(|(_, (_, _, p))| unwanted(p)).map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| self.waiting.remove(key)).map(|(_, job, _)| job).collect()
    }

    /// Jobs in the driver's hands whose answer nobody wants any more.
    pub fn disown(&mut self, mut unwanted: impl FnMut(&Purpose) -> bool) {
        for purpose in self.running.values_mut() {
            if unwanted(purpose) {
                *purpose = Purpose::Forget;
            }
        }
    }

    pub fn len(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether any job of this kind waits or runs.
    pub fn has(&self, mut wanted: impl FnMut(&Purpose) -> bool) -> bool {
        self.waiting.values().any(|(_, _, p)| wanted(p)) || self.running.values().any(wanted)
    }
}
