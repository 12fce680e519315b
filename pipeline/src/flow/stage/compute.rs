//! What a stage asks of the worker, and what it makes of the answers.
//!
//! In: ids whose turn it is, answers of the worker. Out: jobs, outputs on their way to the next stage, gradients to the one before.

use std::time::Duration;

use skein_protocol::{
    Blob, Instant, Lane, MicroBatchId,
    event::{Event, Severity},
    run::Codec,
    wire::flow::{Frame, Returned, Void, Why},
};

use super::{StageFlow, decline, release_done};
use crate::{
    flow::{
        Desk,
        coding::{Change, Facts},
        faded,
        handoff::Handoff,
        kept::{Kept, Returns, Work},
        schedule::{Priority, Purpose},
    },
    job::{Coding, Done, Job},
    peer::io::Output,
};

/// Replicas of a stage at which the result of an id may be not finite before it is voided.
const NOT_FINITE_MAX: u8 = 2;

/// What was known of an id when the worker was told how to add it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Orphan {
    samples: u64,
    staleness: u32,
    added: bool,
    held_out: bool,
}

impl Orphan {
    pub(super) fn of(kept: &Kept) -> Self {
        let Kept { samples, staleness, added, held_out, .. } = *kept;
        Orphan { samples, staleness, added, held_out }
    }
}

/// Time that [`Busy`] goes by, of the worker at work.
const BUSY_HALF_LIFE: Duration = Duration::from_secs(10);

/// Time of the worker, micro-batches and what was sent of them, fading by half in 10 s of it: the claimed speed. What a
/// micro-batch waits for other stages does not count, so that speeds of different stages can be compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Busy {
    pub done: u64,
    weight: f64,
    seconds: f64,
    bytes: f64,
}

impl Busy {
    /// The worker was at a forward, a backward or a step of this stage for so long.
    pub fn worked(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let fade = faded(seconds, BUSY_HALF_LIFE);
        self.weight *= fade;
        self.bytes *= fade;
        self.seconds = self.seconds * fade + seconds;
    }

    pub(super) fn finished(&mut self) {
        self.done += 1;
        self.weight += 1.0;
    }

    /// Micro-batches a second that the worker could do if it did nothing else; 0 while unknown.
    pub fn speed(&self) -> f64 {
        if self.seconds > 0.0 { self.weight / self.seconds } else { 0.0 }
    }

    /// A body of so many bytes goes to somebody else.
    pub(super) fn sends(&mut self, bytes: u64) {
        self.bytes += bytes as f64;
    }

    /// Micro-batches a second that an uplink of so many bytes a second carries if it carries nothing else, if that is known.
    pub fn carried(&self, bytes_per_s: Option<f64>) -> Option<f64> {
        bytes_per_s.filter(|_| self.bytes > 0.0).map(|rate| rate * self.weight / self.bytes)
    }

    /// Micro-batches a second that come and go over such an uplink; 0 while unknown.
    pub fn pace(&self, bytes_per_s: Option<f64>) -> f64 {
        self.carried(bytes_per_s).map_or(self.speed(), |carried| carried.min(self.speed()))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl StageFlow {
    /// Asks the worker for whatever may run now.
    pub(super) fn advance(&mut self, desk: &mut Desk<'_>) {
        if self.rules.lock_step() {
            return self.advance_in_turn(desk, false);
        }
        let ids: Vec<MicroBatchId> = self.kept.keys().copied().collect();
        for id in ids {
            self.run_forward(desk, id);
            self.run_backward(desk, id);
        }
    }

    pub(super) fn run_forward(&mut self, desk: &mut Desk<'_>, id: MicroBatchId) -> bool {
        let (stage, last) = (self.stage, self.is_last());
        let Some(kept) = self.kept.get_mut(&id) else { return false };
        let Work::Queued { input } = kept.work else { return true };
        // The last stage adds the gradient in the same breath: an offer that upstream may still give to somebody else waits, or
        // one id would enter two sums.
        let labels = kept.labels.filter(|_| kept.confirmed);
        if last && labels.is_none() {
            return false;
        }
        let coding = self.coding_for(desk, &id, last);
        let Some(kept) = self.kept.get_mut(&id) else { return false };
        let starts = kept.starts.clone();
        let job = match labels.filter(|_| last) {
            Some(labels) => {
                kept.returning_asked = true;
                Job::Loss { stage, key: kept.key, input, starts, labels, weight: 1.0, coding }
            }
            None => Job::Forward { stage, key: kept.key, input, starts, coding },
        };
        kept.work = Work::Running { input };
        kept.asked = desk.now;
        let (priority, purpose) = if last {
            (Priority::Backward, Purpose::Backward { stage, id })
        } else {
            (Priority::Forward, Purpose::Forward { stage, id })
        };
        desk.jobs.push(priority, job, purpose);
        true
    }

    pub(super) fn run_backward(&mut self, desk: &mut Desk<'_>, id: MicroBatchId) {
        let stage = self.stage;
        let Some(kept) = self.kept.get(&id) else { return };
        let Work::Returning { gradient, .. } = kept.work else { return };
        if kept.returning_asked {
            return;
        }
        let coding = self.coding_for(desk, &id, true);
        let Some(kept) = self.kept.get_mut(&id) else { return };
        kept.returning_asked = true;
        kept.asked = desk.now;
        let job = Job::Backward { stage, key: kept.key, gradient, weight: 1.0, coding };
        desk.jobs.push(Priority::Backward, job, Purpose::Backward { stage, id });
    }

    /// To myself nothing is compressed: a lone peer trains exactly like ordinary training.
    fn coding_for(&mut self, desk: &mut Desk<'_>, id: &MicroBatchId, backward: bool) -> Coding {
        let kept = self.kept.get(id);
        let to = match backward {
            true => kept.map(|kept| kept.upstream),
            false => kept.and_then(|kept| kept.handoff.as_ref()).and_then(Handoff::to),
        };
        let nobody = self.stage == 0 && backward;
        // What goes to nobody yet is encoded as for a link that nobody measured.
        let Some(to) = to.filter(|to| *to != self.me && !nobody) else {
            let plain = Coding { codec: Codec::F32, zstd: false };
            return if to.is_some() { plain } else { self.forward.unmeasured() };
        };
        let speed = self.busy.speed();
        let period = if speed > 0.0 { Duration::from_secs_f64((1.0 / speed).min(3600.0)) } else { Duration::ZERO };
        let facts = Facts { values: self.rules.values, link: desk.route.link(to), period };
        let (chooser, lane) = match backward {
            true => (&mut self.backward, Lane::Gradient),
            false => (&mut self.forward, Lane::Activation),
        };
        let (coding, change) = chooser.choose(to, &facts, &self.rules.costs);
        if let Some(Change { coding: Coding { codec, zstd }, link, takes, took }) = change {
            let stage = self.stage;
            let (bytes_per_s, round_trip_us) = (link.bytes_per_s, micros(link.round_trip));
            let (takes_us, took_us) = (micros(takes), micros(took));
            desk.emit(Event::Recoded { stage, to, lane, codec, zstd, bytes_per_s, round_trip_us, takes_us, took_us });
        }
        coding
    }

    /// Last look at a job before the worker gets it: its weight by the age that the gradient has now.
    pub fn weigh(&mut self, job: &mut Job, purpose: Purpose) {
        let Purpose::Backward { id, .. } = purpose else { return };
        let (own_step, adoptions) = (self.own_step + self.steps_asked, self.adoptions);
        let Some(kept) = self.kept.get_mut(&id) else { return };
        match job {
            Job::Backward { weight, .. } | Job::Loss { weight, .. } if kept.held_out => *weight = 0.0,
            Job::Backward { weight, .. } => {
                let age = own_step.saturating_sub(kept.forward_at.0) + adoptions.saturating_sub(kept.forward_at.1);
                kept.staleness = age;
                *weight = self.rules.weight_of(age).unwrap_or(0.0);
                kept.added = *weight > 0.0;
            }
            Job::Loss { .. } => {
                kept.staleness = 0;
                kept.added = true;
            }
            _ => {}
        }
    }

    /// The worker began with what it was asked for an id.
    pub fn on_begun(&mut self, id: MicroBatchId, began: Instant) {
        if let Some(kept) = self.kept.get_mut(&id) {
            kept.waited = kept.waited.saturating_add(began.since(kept.asked));
        }
    }

    pub fn on_forward_done(&mut self, desk: &mut Desk<'_>, id: MicroBatchId, done: Done) {
        let at = (self.own_step, self.adoptions);
        let Some(kept) = self.kept.get_mut(&id) else { return release_done(desk, done) };
        let Work::Running { input } = kept.work else { return release_done(desk, done) };
        match done {
            Done::Forwarded { output, coding, raw, sample } => {
                self.forward.measured(coding, sample);
                desk.release(input);
                kept.work = Work::Forwarded { output, coding, raw };
                kept.forward_at = at;
                self.send_on(desk, id);
                self.advance(desk);
            }
            other => self.on_bad(desk, id, other),
        }
    }

    pub fn on_backward_done(&mut self, desk: &mut Desk<'_>, id: MicroBatchId, done: Done) {
        let Some(kept) = self.kept.get_mut(&id) else { return self.on_orphan(desk, id, done) };
        let Done::Backed { gradient, coding, raw, sample, loss, tokens } = done else {
            return self.on_bad(desk, id, done);
        };
        self.backward.measured(coding, sample);
        match kept.work {
            Work::Running { input } => {
                desk.release(input);
                kept.loss = loss;
                kept.tokens = tokens;
            }
            Work::Returning { gradient, output } => {
                desk.release(gradient);
                desk.release(output);
            }
            _ => {}
        }
        if let Some(labels) = kept.labels.take() {
            desk.release(labels);
        }
        kept.work = Work::Done { gradient, coding, raw };
        let what = Orphan::of(kept);
        self.busy.finished();
        self.book(desk, id, what);
        self.send_back(desk, id);
        self.advance(desk);
        self.step_if_due(desk);
    }

    /// The worker added an id to its sum, or was told not to.
    fn book(&mut self, desk: &mut Desk<'_>, id: MicroBatchId, what: Orphan) {
        let (stage, own_step) = (self.stage, self.own_step);
        let Orphan { samples, staleness, added, held_out } = what;
        if held_out {
            return;
        }
        if added {
            self.open.push((id, samples));
            desk.emit(Event::Added { id, stage, own_step, staleness });
        } else {
            desk.emit(Event::Refused { id, stage, staleness, why: "too stale".into() });
        }
    }

    /// The id was forgotten while the worker had it: what it added stays added, and is said.
    fn on_orphan(&mut self, desk: &mut Desk<'_>, id: MicroBatchId, done: Done) {
        let orphan = self.orphans.remove(&id);
        if let (Done::Backed { .. }, Some(orphan)) = (&done, orphan) {
            self.book(desk, id, orphan);
            self.step_if_due(desk);
        }
        release_done(desk, done);
    }

    pub(super) fn on_bad(&mut self, desk: &mut Desk<'_>, id: MicroBatchId, done: Done) {
        let Some(kept) = self.kept.get(&id) else { return };
        let (upstream, attempt) = (kept.upstream, kept.attempt.clone());
        match done {
            Done::BadInput { why } => {
                let from = match &kept.work {
                    Work::Returning { .. } => kept.path.last().map(|hop| hop.peer),
                    _ => Some(upstream),
                };
                if let Some(peer) = from.filter(|peer| *peer != desk.me) {
                    desk.out.push(Output::Blame { peer, severity: Severity::Wrong, why: why.clone() });
                }
                decline(desk, upstream, id, &attempt, self.stage, Why::NotFinite);
                self.void(desk, id, &why);
            }
            Done::NotFinite { why }
                if attempt.hops().last().is_some_and(|hop| hop.saturating_add(1) >= NOT_FINITE_MAX) =>
            {
                self.void(desk, id, &why);
            }
            // It may be this device, or the model: another one is asked first.
            Done::NotFinite { .. } | Done::Failed { .. } => {
                decline(desk, upstream, id, &attempt, self.stage, Why::NotServing);
                self.forget(desk, id);
            }
            other => release_done(desk, other),
        }
    }

    /// A value of this id is not finite: it enters no sum, and its feeder is told.
    pub(super) fn void(&mut self, desk: &mut Desk<'_>, id: MicroBatchId, why: &str) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        if matches!(kept.work, Work::Void) {
            return;
        }
        let blobs: Vec<Blob> = kept.blobs().collect();
        kept.labels = None;
        if !kept.is_done() {
            desk.emit(Event::Refused { id, stage: self.stage, staleness: 0, why: why.into() });
        }
        kept.work = Work::Void;
        if let Some(handoff) = &mut kept.handoff {
            handoff.abandon(desk);
        }
        desk.release_all(blobs);
        desk.send(id.feeder, Lane::Control, Frame::Void(Void { id, stage: self.stage }), None);
    }

    pub(super) fn send_back(&mut self, desk: &mut Desk<'_>, id: MicroBatchId) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        let Work::Done { gradient, coding, raw } = kept.work else { return };
        let returned = Returned {
            id,
            attempt: kept.attempt.clone(),
            stage: self.stage.saturating_sub(1),
            path: kept.path_with(self.stage, self.me, self.incarnation),
            loss: kept.loss,
            tokens: kept.tokens,
            waited_us: u64::try_from(kept.waited.as_micros()).unwrap_or(u64::MAX),
        };
        let to = kept.upstream;
        if self.stage == 0 {
            return desk.send(to, Lane::Control, Frame::Finished(returned), None);
        }
        if to != desk.me
            && let Some(gradient) = gradient
        {
            kept.returns = Some(Returns { to, since: None });
            let (stage, codec, bytes) = (self.stage, coding.codec, gradient.len);
            self.busy.sends(bytes);
            desk.emit(Event::SentBackward { id, stage, to, codec, bytes, raw });
        }
        desk.send(to, Lane::Gradient, Frame::Backward(returned), gradient);
    }
}
