//! One served stage: accepts micro-batches, has them computed, sends them on, returns their gradients, and steps.
//!
//! In: flow frames for this stage, answers of the worker, losses of peers. It knows no weights, only their counts
//! (`own_step`, `round`, `adoptions`), and decides what is added to the open sum: an id at most once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use skein_protocol::{
    Blob, Incarnation, Instant, Lane, Manifest, MicroBatchId, PeerId, Stage, Version,
    event::{Event, Severity},
    run::StalenessWeight,
    wire::flow::{About, Accepted, Declined, Forward, Frame, Hop, Returned, Void, Why},
};

use super::{
    Desk,
    handoff::Handoff,
    kept::{Kept, Work},
    schedule::{Priority, Purpose},
};
use crate::{
    job::{Coding, Done, Job, Key},
    peer::io::Output,
};

/// Labels that did not come are asked for again.
const LABELS_AGAIN: Duration = Duration::from_secs(2);
/// Lock-step: an id whose turn does not come (its predecessors died with another replica) goes ahead after this.
const TURN_PATIENCE: Duration = Duration::from_secs(10);
/// What is kept of a feeder that is gone is dropped after this.
const KEPT_WITHOUT_FEEDER: Duration = Duration::from_secs(600);

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
        let zstd = manifest.codecs.entropy == skein_protocol::run::Entropy::Zstd;
        let coding = |codecs: &[skein_protocol::run::Codec]| Coding {
            codec: codecs.first().copied().unwrap_or(skein_protocol::run::Codec::F32),
            zstd,
        };
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

    fn lock_step(&self) -> bool {
        self.bound == 0
    }

    /// Weight of a gradient that is `age` steps old; nothing past the bound. In lock-step every gradient is of its own step.
    fn weight_of(&self, age: u32) -> Option<f32> {
        if self.lock_step() {
            return Some(1.0);
        }
        skein_gossip::kernel::staleness::weight(self.weight, self.bound, age)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Serving,
    /// Finishes what it has, accepts nothing new.
    Draining,
}

#[derive(Debug)]
pub struct StageFlow {
    stage: Stage,
    rules: StageRules,
    me: PeerId,
    incarnation: Incarnation,
    pub standing: Standing,
    kept: BTreeMap<MicroBatchId, Kept>,
    /// Ids in the open sum, with the samples their feeder knew.
    open: Vec<(MicroBatchId, u64)>,
    pub own_step: u32,
    pub round: u32,
    /// Adoptions of rounds: each makes older work one staler.
    adoptions: u32,
    steps_asked: u32,
    /// Fences whose sum the worker still has.
    fences: u32,
    next_key: Key,
    turn: Turn,
    /// Speed of this stage, micro-batches a second of busy time.
    pub busy: Busy,
}

/// Lock-step: whose turn it is.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    /// Incarnation and step of the feeder.
    of: (Incarnation, u32),
    forward: u16,
    backward: u16,
    close: Option<u16>,
}

impl Turn {
    fn is_of(&self, id: &MicroBatchId) -> bool {
        (id.incarnation, id.step) == self.of
    }
}

/// Busy time and micro-batches, fading: the claimed speed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Busy {
    pub done: u64,
    weight: f64,
    seconds: f64,
    last: Option<Instant>,
}

impl Busy {
    fn mark(&mut self, now: Instant, waiting: bool) {
        if let Some(last) = self.last {
            let seconds = now.since(last).as_secs_f64();
            let fade = libm::exp2(-seconds / 10.0);
            self.weight = self.weight * fade + 1.0;
            self.seconds = self.seconds * fade + seconds;
        }
        self.done += 1;
        self.last = waiting.then_some(now);
    }

    fn begin(&mut self, now: Instant) {
        self.last.get_or_insert(now);
    }

    /// Micro-batches a second of busy time; 0 while unknown.
    pub fn speed(&self) -> f64 {
        if self.seconds > 0.0 { self.weight / self.seconds } else { 0.0 }
    }
}

impl StageFlow {
    pub fn new(me: PeerId, incarnation: Incarnation, version: Version, rules: StageRules) -> Self {
        StageFlow {
            stage: version.stage,
            rules,
            me,
            incarnation,
            standing: Standing::Serving,
            kept: BTreeMap::new(),
            open: Vec::new(),
            own_step: version.own_step,
            round: version.round,
            adoptions: 0,
            steps_asked: 0,
            fences: 0,
            next_key: 0,
            turn: Turn::default(),
            busy: Busy::default(),
        }
    }

    pub fn version(&self) -> Version {
        Version {
            stage: self.stage,
            peer: self.me,
            incarnation: self.incarnation,
            round: self.round,
            own_step: self.own_step,
        }
    }

    fn is_last(&self) -> bool {
        self.stage == self.rules.last
    }

    /// Ids whose gradient somebody still waits for.
    pub fn open_ids(&self) -> usize {
        self.kept.values().filter(|kept| kept.is_open()).count()
    }

    /// Ids that somebody may still need from here: open ones, and those of living feeders that are not over. Their gradients
    /// may be on the way; who left now would have them computed, and added, once more elsewhere.
    pub fn needed_ids(&self, is_up: impl Fn(PeerId) -> bool) -> usize {
        self.kept.iter().filter(|(id, kept)| kept.is_open() || is_up(id.feeder)).count()
    }

    pub fn kept_len(&self) -> usize {
        self.kept.len()
    }

    pub fn sum_len(&self) -> usize {
        self.open.len()
    }

    /// Feeders whose labels or progress this stage needs.
    pub fn feeders(&self) -> BTreeSet<PeerId> {
        self.kept.keys().map(|id| id.feeder).collect()
    }

    /// Peers with whom an id of this stage is shared now.
    pub fn partners(&self) -> BTreeSet<PeerId> {
        let mut peers = BTreeSet::new();
        for kept in self.kept.values().filter(|kept| kept.is_open()) {
            peers.insert(kept.upstream);
            peers.extend(kept.handoff.as_ref().and_then(Handoff::to));
        }
        peers
    }

    // ---- frames ----------------------------------------------------------------------------------------------------------

    pub fn on_forward(&mut self, desk: &mut Desk<'_>, from: PeerId, forward: Forward, body: Blob) {
        let Forward { id, attempt, .. } = &forward;
        match self.kept.get_mut(id) {
            Some(kept) if *attempt > kept.attempt => {
                kept.attempt = attempt.clone();
                kept.upstream = from;
                kept.confirmed = false;
                if let Some(handoff) = kept.handoff.take() {
                    kept.handoff = Some(handoff.with_hint(forward.hint));
                }
                desk.release(body);
                self.answer(desk, *id);
            }
            Some(kept) if *attempt == kept.attempt && from == kept.upstream => {
                desk.release(body);
                self.answer(desk, *id);
            }
            Some(_) => {
                desk.release(body);
                self.decline(desk, from, &forward, Why::Superseded);
            }
            None => self.on_new(desk, from, forward, body),
        }
    }

    fn on_new(&mut self, desk: &mut Desk<'_>, from: PeerId, forward: Forward, body: Blob) {
        if self.standing != Standing::Serving {
            desk.release(body);
            return self.decline(desk, from, &forward, Why::NotServing);
        }
        // A feeder has at most `in_flight_max` ids open; completed ones are kept until its progress arrives.
        let of_feeder = self.kept.keys().filter(|id| id.feeder == forward.id.feeder).count();
        if of_feeder >= 4 * self.rules.in_flight_max as usize + 16 {
            desk.release(body);
            return self.decline(desk, from, &forward, Why::Busy);
        }
        let id = forward.id;
        self.next_key += 1;
        let handoff = (!self.is_last()).then(|| Handoff::new(self.stage + 1, true).with_hint(forward.hint));
        self.kept.insert(
            id,
            Kept {
                key: self.next_key,
                upstream: from,
                attempt: forward.attempt,
                samples: forward.samples,
                close: forward.close,
                since: desk.now,
                work: Work::Queued { input: body },
                confirmed: false,
                labels: None,
                labels_asked: None,
                handoff,
                forward_at: (self.own_step, self.adoptions),
                path: Vec::new(),
                loss: 0.0,
                tokens: 0,
                staleness: 0,
                added: false,
                returning_asked: false,
            },
        );
        self.busy.begin(desk.now);
        if self.rules.lock_step() {
            if (id.incarnation, id.step) > self.turn.of {
                self.turn = Turn { of: (id.incarnation, id.step), ..Turn::default() };
            }
            if forward.close {
                self.turn.close = Some(id.index);
            }
        }
        desk.emit(Event::Accepted { id, stage: self.stage, from });
        if self.is_last() {
            self.ask_labels(desk, id);
        }
        self.answer(desk, id);
        self.advance(desk);
    }

    /// Tells upstream where an id stands: its gradient if it is here, else that it is held, and where it goes next.
    fn answer(&mut self, desk: &mut Desk<'_>, id: MicroBatchId) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        match kept.work {
            Work::Done { .. } => {
                desk.emit(Event::Answered { id, stage: self.stage, to: kept.upstream });
                self.send_back(desk, id);
            }
            Work::Void => {
                let void = Void { id, stage: self.stage };
                desk.send(id.feeder, Lane::Control, Frame::Void(void), None);
            }
            _ => {
                if let Some(handoff) = &mut kept.handoff {
                    handoff.choose(desk);
                }
                let next = kept.handoff.as_ref().and_then(Handoff::to);
                let accepted = Accepted { id, attempt: kept.attempt.clone(), stage: self.stage, next };
                desk.send(kept.upstream, Lane::Control, Frame::Accepted(accepted), None);
            }
        }
    }

    fn decline(&mut self, desk: &mut Desk<'_>, to: PeerId, forward: &Forward, why: Why) {
        decline(desk, to, forward.id, &forward.attempt, forward.stage, why);
    }

    pub fn on_confirmed(&mut self, desk: &mut Desk<'_>, from: PeerId, confirmed: &Accepted) {
        let Some(kept) = self.kept.get_mut(&confirmed.id) else { return };
        if kept.upstream != from || kept.attempt != confirmed.attempt {
            return;
        }
        match &mut kept.handoff {
            Some(handoff) => handoff.confirmed(confirmed.next),
            None => {
                kept.confirmed = true;
                return self.advance(desk);
            }
        }
        self.send_on(desk, confirmed.id);
    }

    /// Sends an id on when its output is here and upstream knows where it goes.
    fn send_on(&mut self, desk: &mut Desk<'_>, id: MicroBatchId) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        let Work::Forwarded { output, coding, raw } = kept.work else { return };
        let cargo = kept.cargo(id);
        let Some(handoff) = &mut kept.handoff else { return };
        let to = handoff.to();
        if handoff.send(desk, &cargo, output)
            && let Some(to) = to
            && to != desk.me
        {
            let (stage, codec, bytes) = (self.stage, coding.codec, output.len);
            desk.emit(Event::SentForward { id, stage, to, codec, bytes, raw });
        }
    }

    pub fn on_accepted(&mut self, desk: &mut Desk<'_>, from: PeerId, accepted: &Accepted) {
        if let Some(handoff) = self.kept.get_mut(&accepted.id).and_then(|kept| kept.handoff.as_mut()) {
            handoff.on_accepted(desk, from, accepted);
        }
    }

    pub fn on_declined(&mut self, desk: &mut Desk<'_>, from: PeerId, declined: &Declined) {
        let Some(kept) = self.kept.get_mut(&declined.id) else { return };
        let Some(handoff) = &mut kept.handoff else { return };
        if declined.why == Why::NotFinite && handoff.to() == Some(from) {
            return self.void(desk, declined.id, "the next stage refused its activations");
        }
        handoff.on_declined(desk, from, &declined.attempt, declined.why);
        self.reroute(desk, declined.id);
    }

    /// An id without a next hop gets one, and upstream is told.
    fn reroute(&mut self, desk: &mut Desk<'_>, id: MicroBatchId) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        if matches!(kept.work, Work::Done { .. } | Work::Void | Work::Returning { .. }) {
            return;
        }
        if kept.handoff.as_mut().is_some_and(|handoff| handoff.choose(desk)) {
            self.answer(desk, id);
        }
    }

    pub fn on_cancel(&mut self, desk: &mut Desk<'_>, from: PeerId, about: &About) {
        let Some(kept) = self.kept.get(&about.id) else { return };
        // Once it was confirmed it is not upstream's to take back.
        let unsent = match &kept.handoff {
            Some(handoff) => !handoff.is_out() && !handoff.is_ready(),
            None => matches!(kept.work, Work::Queued { .. }),
        };
        if kept.upstream == from && kept.attempt == about.attempt && unsent && kept.is_open() {
            self.forget(desk, about.id);
        }
    }

    pub fn on_ask(&mut self, desk: &mut Desk<'_>, from: PeerId, about: &About) {
        match self.kept.get(&about.id) {
            Some(kept) if kept.upstream == from && kept.attempt == about.attempt => self.answer(desk, about.id),
            Some(_) => decline(desk, from, about.id, &about.attempt, about.stage, Why::Superseded),
            None => decline(desk, from, about.id, &about.attempt, about.stage, Why::Unknown),
        }
    }

    fn ask_labels(&mut self, desk: &mut Desk<'_>, id: MicroBatchId) {
        if let Some(kept) = self.kept.get_mut(&id) {
            kept.labels_asked = Some(desk.now);
            desk.send(id.feeder, Lane::Control, Frame::WantLabels(id), None);
        }
    }

    pub fn on_labels(&mut self, desk: &mut Desk<'_>, from: PeerId, id: MicroBatchId, body: Blob) {
        match self.kept.get_mut(&id) {
            Some(kept) if from == id.feeder && kept.labels.is_none() && matches!(kept.work, Work::Queued { .. }) => {
                kept.labels = Some(body);
                self.advance(desk);
            }
            _ => desk.release(body),
        }
    }

    pub fn on_backward(&mut self, desk: &mut Desk<'_>, from: PeerId, returned: Returned, body: Blob) {
        let complete = self.path_is_complete(&returned.path);
        let Some(kept) = self.kept.get_mut(&returned.id) else { return desk.release(body) };
        let welcome = kept.handoff.as_ref().is_some_and(|handoff| handoff.welcome(from));
        let Work::Forwarded { output, .. } = kept.work else { return desk.release(body) };
        if !welcome || !complete || !returned.loss.is_finite() {
            desk.release(body);
            let why = "a gradient that was not asked for".to_string();
            return desk.out.push(Output::Blame { peer: from, severity: Severity::Odd, why });
        }
        kept.path = returned.path;
        kept.loss = returned.loss;
        kept.tokens = returned.tokens;
        kept.work = Work::Returning { gradient: body, output };
        if let Some(handoff) = &mut kept.handoff {
            handoff.on_answered(desk, from);
        }
        self.advance(desk);
    }

    /// A path names every stage after mine once, from the last.
    fn path_is_complete(&self, path: &[Hop]) -> bool {
        path.len() == usize::from(self.rules.last - self.stage)
            && path.iter().zip((self.stage + 1..=self.rules.last).rev()).all(|(hop, stage)| hop.stage == stage)
    }

    // ---- the worker ------------------------------------------------------------------------------------------------------

    /// Asks the worker for whatever may run now.
    fn advance(&mut self, desk: &mut Desk<'_>) {
        if self.rules.lock_step() {
            return self.advance_in_turn(desk, false);
        }
        let ids: Vec<MicroBatchId> = self.kept.keys().copied().collect();
        for id in ids {
            self.run_forward(desk, id);
            self.run_backward(desk, id);
        }
    }

    /// Lock-step: forwards and backwards in the order of the index, so that every sum is built in the same order. `overdue`
    /// lets the next one go whose predecessors never came here.
    fn advance_in_turn(&mut self, desk: &mut Desk<'_>, overdue: bool) {
        let of_step: Vec<MicroBatchId> = self.kept.keys().copied().filter(|id| self.turn.is_of(id)).collect();
        let mut skip = overdue;
        for &id in &of_step {
            if id.index == self.turn.forward || (skip && id.index > self.turn.forward) {
                if !self.run_forward(desk, id) {
                    break;
                }
                self.turn.forward = id.index + 1;
                skip = false;
            }
        }
        let mut skip = overdue;
        for &id in &of_step {
            let due = id.index == self.turn.backward || (skip && id.index > self.turn.backward);
            if due && self.has_returned(id) {
                self.run_backward(desk, id);
                self.turn.backward = id.index + 1;
                skip = false;
            }
        }
    }

    /// Whether the backward of an id can run, or was asked for with its forward (last stage).
    fn has_returned(&self, id: MicroBatchId) -> bool {
        self.kept.get(&id).is_some_and(|kept| match kept.work {
            Work::Returning { .. } => true,
            Work::Running { .. } | Work::Done { .. } => self.is_last(),
            _ => false,
        })
    }

    fn run_forward(&mut self, desk: &mut Desk<'_>, id: MicroBatchId) -> bool {
        let (stage, last) = (self.stage, self.is_last());
        let Some(kept) = self.kept.get_mut(&id) else { return false };
        let Work::Queued { input } = kept.work else { return true };
        let coding = self.coding_for(&id, last);
        let Some(kept) = self.kept.get_mut(&id) else { return false };
        let job = if last {
            // The last stage adds the gradient in the same breath: an offer that upstream may still give to somebody else
            // waits, or one id would enter two sums.
            let (Some(labels), true) = (kept.labels, kept.confirmed) else { return false };
            kept.returning_asked = true;
            Job::Loss { stage, key: kept.key, input, labels, weight: 1.0, coding }
        } else {
            Job::Forward { stage, key: kept.key, input, coding }
        };
        kept.work = Work::Running { input };
        let (priority, purpose) = if last {
            (Priority::Backward, Purpose::Backward { stage, id })
        } else {
            (Priority::Forward, Purpose::Forward { stage, id })
        };
        desk.jobs.push(priority, job, purpose);
        true
    }

    fn run_backward(&mut self, desk: &mut Desk<'_>, id: MicroBatchId) {
        let stage = self.stage;
        let coding = self.coding_for(&id, true);
        let Some(kept) = self.kept.get_mut(&id) else { return };
        let Work::Returning { gradient, .. } = kept.work else { return };
        if kept.returning_asked {
            return;
        }
        kept.returning_asked = true;
        let job = Job::Backward { stage, key: kept.key, gradient, weight: 1.0, coding };
        desk.jobs.push(Priority::Backward, job, Purpose::Backward { stage, id });
    }

    /// To myself nothing is compressed: a lone peer trains exactly like ordinary training.
    fn coding_for(&self, id: &MicroBatchId, backward: bool) -> Coding {
        let kept = self.kept.get(id);
        let to = match backward {
            true => kept.map(|kept| kept.upstream),
            false => kept.and_then(|kept| kept.handoff.as_ref()).and_then(Handoff::to),
        };
        match (to == Some(self.me), backward) {
            (true, _) => Coding { codec: skein_protocol::run::Codec::F32, zstd: false },
            (false, true) => self.rules.backward,
            (false, false) => self.rules.forward,
        }
    }

    /// Last look at a job before the worker gets it: its weight by the age that the gradient has now.
    pub fn weigh(&mut self, job: &mut Job, purpose: Purpose) {
        let Purpose::Backward { id, .. } = purpose else { return };
        let (own_step, adoptions) = (self.own_step + self.steps_asked, self.adoptions);
        let Some(kept) = self.kept.get_mut(&id) else { return };
        match job {
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

    pub fn on_forward_done(&mut self, desk: &mut Desk<'_>, id: MicroBatchId, done: Done) {
        let at = (self.own_step, self.adoptions);
        let Some(kept) = self.kept.get_mut(&id) else { return release_done(desk, done) };
        let Work::Running { input } = kept.work else { return release_done(desk, done) };
        match done {
            Done::Forwarded { output, coding, raw } => {
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
        let Done::Backed { gradient, coding, raw, loss, tokens } = done else { return self.on_bad(desk, id, done) };
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
        let (staleness, added, samples) = (kept.staleness, kept.added, kept.samples);
        self.busy.mark(desk.now, self.kept.values().any(Kept::is_open));
        if added {
            self.open.push((id, samples));
            desk.emit(Event::Added { id, stage: self.stage, own_step: self.own_step, staleness });
        } else {
            desk.emit(Event::Refused { id, stage: self.stage, staleness, why: "too stale".into() });
        }
        self.send_back(desk, id);
        self.advance(desk);
        self.step_if_due(desk);
    }

    /// The id was forgotten while the worker had it: what it added stays added, and is said.
    fn on_orphan(&mut self, desk: &mut Desk<'_>, id: MicroBatchId, done: Done) {
        if let Done::Backed { gradient, .. } = done {
            desk.release_all(gradient);
            self.open.push((id, 0));
            desk.emit(Event::Added { id, stage: self.stage, own_step: self.own_step, staleness: 0 });
            self.step_if_due(desk);
        }
    }

    fn on_bad(&mut self, desk: &mut Desk<'_>, id: MicroBatchId, done: Done) {
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
            Done::NotFinite { why } => self.void(desk, id, &why),
            Done::Failed { .. } => {
                decline(desk, upstream, id, &attempt, self.stage, Why::NotServing);
                self.forget(desk, id);
            }
            other => release_done(desk, other),
        }
    }

    /// A value of this id is not finite: it enters no sum, and its feeder is told.
    fn void(&mut self, desk: &mut Desk<'_>, id: MicroBatchId, why: &str) {
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

    fn send_back(&mut self, desk: &mut Desk<'_>, id: MicroBatchId) {
        let Some(kept) = self.kept.get(&id) else { return };
        let Work::Done { gradient, coding, raw } = kept.work else { return };
        let returned = Returned {
            id,
            attempt: kept.attempt.clone(),
            stage: self.stage.saturating_sub(1),
            path: kept.path_with(self.stage, self.me, self.incarnation),
            loss: kept.loss,
            tokens: kept.tokens,
        };
        let to = kept.upstream;
        if self.stage == 0 {
            return desk.send(to, Lane::Control, Frame::Finished(returned), None);
        }
        if to != desk.me
            && let Some(gradient) = gradient
        {
            let (stage, codec, bytes) = (self.stage, coding.codec, gradient.len);
            desk.emit(Event::SentBackward { id, stage, to, codec, bytes, raw });
        }
        desk.send(to, Lane::Gradient, Frame::Backward(returned), gradient);
    }

    // ---- steps -----------------------------------------------------------------------------------------------------------

    fn step_if_due(&mut self, desk: &mut Desk<'_>) {
        if self.steps_asked > 0 || self.open.is_empty() {
            return;
        }
        let due = if self.rules.lock_step() {
            self.turn.close.is_some_and(|close| self.turn.backward > close)
                && !self.kept.iter().any(|(id, kept)| self.turn.is_of(id) && kept.is_open())
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

    // ---- what ends -------------------------------------------------------------------------------------------------------

    /// The feeder says that these ids are over. Answers are no longer needed.
    pub fn on_over(&mut self, desk: &mut Desk<'_>, over: impl Fn(&MicroBatchId) -> bool) {
        let ids: Vec<MicroBatchId> = self.kept.keys().filter(|id| over(id)).copied().collect();
        for id in ids {
            self.forget(desk, id);
        }
    }

    /// Drops everything of an id. A backward that the worker already has will still be added, and said.
    fn forget(&mut self, desk: &mut Desk<'_>, id: MicroBatchId) {
        let stage = self.stage;
        let running = desk.jobs.has(|purpose| is_of(purpose, stage, id))
            && desk.jobs.cancel(|purpose| is_of(purpose, stage, id)).is_empty();
        let Some(mut kept) = self.kept.remove(&id) else { return };
        if running && matches!(kept.work, Work::Running { .. } | Work::Returning { .. }) {
            // The worker reads the blobs of a running job when it starts it; the driver holds them for that long.
            desk.jobs.disown(|purpose| *purpose == Purpose::Forward { stage, id });
        }
        if let Some(handoff) = &mut kept.handoff {
            handoff.abandon(desk);
        }
        desk.release_all(kept.blobs());
        let key = kept.key;
        desk.jobs.push(Priority::Weights, Job::Drop { stage, keys: vec![key] }, Purpose::Forget);
    }

    pub fn on_lost(&mut self, desk: &mut Desk<'_>, peer: PeerId, why: &str) -> usize {
        let mut moved = 0;
        let ids: Vec<MicroBatchId> = self.kept.keys().copied().collect();
        for id in ids {
            let Some(kept) = self.kept.get_mut(&id) else { continue };
            if !matches!(kept.work, Work::Queued { .. } | Work::Running { .. } | Work::Forwarded { .. }) {
                continue;
            }
            let Some(handoff) = &mut kept.handoff else { continue };
            let held = handoff.held_by() == Some(peer);
            if handoff.on_lost(desk, peer, why) {
                moved += usize::from(held);
                self.reroute(desk, id);
            }
        }
        moved
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

    pub fn on_tick(&mut self, desk: &mut Desk<'_>) {
        let ids: Vec<MicroBatchId> = self.kept.keys().copied().collect();
        let mut overdue = false;
        for id in ids {
            let Some(kept) = self.kept.get_mut(&id) else { continue };
            let age = desk.now.since(kept.since);
            overdue |= self.turn.is_of(&id) && age > TURN_PATIENCE && kept.is_open();
            if age > KEPT_WITHOUT_FEEDER {
                self.forget(desk, id);
                continue;
            }
            if !kept.is_open() {
                continue;
            }
            let wants_labels = self.rules.last == self.stage
                && kept.labels.is_none()
                && kept.labels_asked.is_some_and(|at| desk.now.since(at) > LABELS_AGAIN)
                && matches!(kept.work, Work::Queued { .. });
            let cargo = kept.cargo(id);
            if let Some(handoff) = &mut kept.handoff {
                handoff.on_tick(desk, &cargo);
            }
            if wants_labels {
                self.ask_labels(desk, id);
            }
            self.reroute(desk, id);
        }
        if self.rules.lock_step() && overdue {
            self.advance_in_turn(desk, true);
            self.step_if_due(desk);
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.kept
            .values()
            .filter(|kept| kept.is_open())
            .filter_map(|kept| kept.handoff.as_ref().and_then(Handoff::deadline))
            .min()
    }
}

fn is_of(purpose: &Purpose, stage: Stage, id: MicroBatchId) -> bool {
    *purpose == Purpose::Forward { stage, id } || *purpose == Purpose::Backward { stage, id }
}

pub fn decline(
    desk: &mut Desk<'_>,
    to: PeerId,
    id: MicroBatchId,
    attempt: &skein_protocol::Attempt,
    stage: Stage,
    why: Why,
) {
    let declined = Declined { id, attempt: attempt.clone(), stage, why };
    desk.send(to, Lane::Control, Frame::Declined(declined), None);
}

/// Releases whatever handles an unwanted answer carries.
pub fn release_done(desk: &mut Desk<'_>, done: Done) {
    match done {
        Done::Forwarded { output, .. } | Done::Inferred { output } => desk.release(output),
        Done::Backed { gradient, .. } => desk.release_all(gradient),
        Done::Encoded { blob, .. } => desk.release(blob),
        Done::Ok
        | Done::Loaded { .. }
        | Done::Stepped { .. }
        | Done::Prepared { .. }
        | Done::Saved { .. }
        | Done::BadInput { .. }
        | Done::NotFinite { .. }
        | Done::Failed { .. } => {}
    }
}
