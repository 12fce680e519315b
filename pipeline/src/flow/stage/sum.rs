//! The open sum of a stage: what is in it, how a step closes it, and how a fence drops it.

use skein_protocol::{Incarnation, MicroBatchId, event::Event};

use super::{StageFlow, release_done, turn::Turn};
use crate::{
    flow::{
        Desk,
        schedule::{Priority, Purpose},
    },
    job::{Done, Job},
};

impl StageFlow {
    pub(super) fn step_if_due(&mut self, desk: &mut Desk<'_>) {
        if self.steps_asked > 0 || self.open.is_empty() {
            return;
        }
        let due = if self.rules.lock_step() {
            self.turn.is_over() && !self.kept.iter().any(|(id, kept)| self.turn.is_of(id) && kept.is_open())
        } else {
            self.open.len() >= self.rules.micro_batches_per_step as usize
        };
        if due {
            self.step(desk);
        }
    }

    /// Steps with what is in the open sum, however little (a drain, the end of a run).
    pub fn step(&mut self, desk: &mut Desk<'_>) {
        if self.open.is_empty() || self.steps_asked > 0 || self.fences > 0 {
            return;
        }
        self.steps_asked += 1;
        let samples = self.open.iter().map(|(_, samples)| *samples).max().unwrap_or(0);
        let stage = self.stage;
        desk.jobs.push(Priority::Weights, Job::Step { stage, samples }, Purpose::Step { stage });
    }

    pub fn is_stepping(&self) -> bool {
        self.steps_asked > 0
    }

    /// The worker stepped with everything that it had added by then. Returns how many ids that were.
    pub fn on_step_done(&mut self, desk: &mut Desk<'_>, done: Done) -> u32 {
        self.steps_asked = self.steps_asked.saturating_sub(1);
        let ids: Vec<MicroBatchId> = self.open.drain(..).map(|(id, _)| id).collect();
        let count = ids.len() as u32;
        match done {
            Done::Stepped { lr, gradient_norm, run_step } => {
                self.own_step += 1;
                let (stage, own_step) = (self.stage, self.own_step);
                desk.emit(Event::Stepped { stage, own_step, run_step, lr, gradient_norm, micro_batches: count, ids });
                count
            }
            Done::NotFinite { why } | Done::Failed { why, .. } | Done::BadInput { why } => {
                desk.emit(Event::Perished { stage: self.stage, ids, why });
                0
            }
            other => {
                release_done(desk, other);
                0
            }
        }
    }

    pub fn set_incarnation(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
    }

    /// A round was adopted: what was forwarded before is one older.
    pub fn on_adopted(&mut self, round: u32) {
        self.round = round;
        self.adoptions += 1;
    }

    /// A fence: the open sum and everything unfinished is gone. What was done stays, to answer from: it may be in the weights
    /// by now, and who sends it again must not have it added twice. The worker ends what it already has.
    pub fn on_fenced(&mut self, desk: &mut Desk<'_>, incarnation: Incarnation) {
        let stage = self.stage;
        let forward = |purpose: &Purpose| matches!(purpose, Purpose::Forward { stage: s, .. } if *s == stage);
        let backward = |purpose: &Purpose| matches!(purpose, Purpose::Backward { stage: s, .. } if *s == stage);
        desk.jobs.cancel(|purpose| forward(purpose) || backward(purpose));
        desk.jobs.disown(forward);
        let waiting = desk.jobs.cancel(|purpose| *purpose == Purpose::Step { stage });
        self.steps_asked -= (waiting.len() as u32).min(self.steps_asked);
        let mut keys = Vec::new();
        for (id, mut kept) in std::mem::take(&mut self.kept) {
            if desk.jobs.has(|purpose| *purpose == Purpose::Backward { stage, id }) {
                // Nobody waits for its gradient any more.
                kept.upstream = self.me;
                self.kept.insert(id, kept);
                continue;
            }
            if kept.is_done() {
                // What waited for the uplink was of the incarnation that ends.
                kept.returns = None;
                self.kept.insert(id, kept);
                continue;
            }
            if let Some(handoff) = &mut kept.handoff {
                handoff.abandon(desk);
            }
            desk.release_all(kept.blobs());
            keys.push(kept.key);
        }
        self.fences += 1;
        desk.jobs.push(Priority::Weights, Job::DropSum { stage }, Purpose::DropSum { stage });
        desk.jobs.push(Priority::Weights, Job::Drop { stage, keys }, Purpose::Forget);
        self.turn = Turn::default();
        self.incarnation = incarnation;
    }

    /// The worker dropped the sum of a fence: what was in it can be sent here again.
    pub fn on_sum_dropped(&mut self, desk: &mut Desk<'_>) {
        self.fences = self.fences.saturating_sub(1);
        let ids: Vec<MicroBatchId> = self.open.drain(..).map(|(id, _)| id).collect();
        for id in &ids {
            self.forget(desk, *id);
        }
        if !ids.is_empty() {
            let why = "the open sum of a fenced replica".into();
            desk.emit(Event::Perished { stage: self.stage, ids, why });
        }
    }
}
