//! One served stage: accepts micro-batches, has them computed, sends them on, returns their gradients, and steps.
//!
//! In: flow frames for this stage, answers of the worker, losses of peers. It knows no weights, only their counts
//! (`own_step`, `round`, `adoptions`), and decides what is added to the open sum: an id at most once.
//!
//! Here: what a stage holds, and the frames about it. `compute`: what it asks of the worker. `sum`: how a step closes the
//! open sum, and how a fence drops it. `turn`: lock-step.

mod compute;
mod rules;
mod sum;
mod turn;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use skein_protocol::{
    Attempt, Blob, Incarnation, Instant, Lane, MicroBatchId, PeerId, Stage, Version,
    event::{Event, Severity},
    wire::flow::{About, Accepted, Declined, Forward, Frame, Hop, Returned, Void, Why},
};

pub use self::{compute::Busy, rules::StageRules};
use self::{compute::Orphan, turn::Turn};
use super::{
    Desk,
    coding::Chooser,
    handoff::Handoff,
    kept::{Kept, Work},
    schedule::{Priority, Purpose},
};
use crate::{
    job::{Done, Job, Key},
    peer::io::Output,
};

/// Labels that did not come are asked for again.
const LABELS_AGAIN: Duration = Duration::from_secs(2);
/// Lock-step: an id whose turn does not come (its predecessors died with another replica) goes ahead after this.
const TURN_PATIENCE: Duration = Duration::from_secs(10);
/// What is kept of a feeder that is not seen for this long is dropped.
const KEPT_WITHOUT_FEEDER: Duration = Duration::from_secs(600);

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
    /// Ids that were forgotten while the worker had their backward: what it adds is said nevertheless.
    orphans: BTreeMap<MicroBatchId, Orphan>,
    pub own_step: u32,
    pub round: u32,
    /// Adoptions of rounds: each makes older work one staler.
    adoptions: u32,
    steps_asked: u32,
    /// Fences whose sum the worker still has.
    fences: u32,
    next_key: Key,
    turn: Turn,
    /// Replicas of the next stage that may have ids which are sent here without a hint.
    heard: BTreeMap<MicroBatchId, PeerId>,
    /// When the feeders of what is kept were last connected.
    feeders_seen: BTreeMap<PeerId, Instant>,
    /// Speed of this stage, micro-batches a second of the worker's time.
    pub busy: Busy,
    /// How activations and gradients travel.
    forward: Chooser,
    backward: Chooser,
}

impl StageFlow {
    pub fn new(me: PeerId, incarnation: Incarnation, version: Version, rules: StageRules) -> Self {
        StageFlow {
            stage: version.stage,
            forward: rules.forward.clone(),
            backward: rules.backward.clone(),
            rules,
            me,
            incarnation,
            standing: Standing::Serving,
            kept: BTreeMap::new(),
            open: Vec::new(),
            orphans: BTreeMap::new(),
            own_step: version.own_step,
            round: version.round,
            adoptions: 0,
            steps_asked: 0,
            fences: 0,
            next_key: 0,
            turn: Turn::default(),
            heard: BTreeMap::new(),
            feeders_seen: BTreeMap::new(),
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

    /// Nobody needs anything from here, and the worker has nothing of it.
    pub fn is_idle(&self) -> bool {
        self.kept.is_empty()
            && self.orphans.is_empty()
            && self.open.is_empty()
            && !self.is_stepping()
            && self.fences == 0
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
                if let Some(handoff) = &mut kept.handoff {
                    handoff.prefer(forward.hint);
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
        // A feeder's ids reach no farther, and those that are over are kept until its progress arrives.
        let of_feeder = self.kept.keys().filter(|id| id.feeder == forward.id.feeder).count();
        if of_feeder as u64 >= 2 * self.rules.reach_max + 16 {
            desk.release(body);
            return self.decline(desk, from, &forward, Why::Busy);
        }
        let id = forward.id;
        self.next_key += 1;
        let mut handoff = (!self.is_last()).then(|| Handoff::new(self.stage + 1, true));
        let hint = forward.hint.or(self.heard.remove(&id));
        handoff.iter_mut().for_each(|handoff| handoff.prefer(hint));
        self.kept.insert(
            id,
            Kept {
                key: self.next_key,
                upstream: from,
                attempt: forward.attempt,
                samples: forward.samples,
                close: forward.close,
                held_out: forward.held_out,
                starts: forward.starts,
                work: Work::Queued { input: body },
                confirmed: false,
                labels: None,
                labels_asked: None,
                handoff,
                forward_at: (self.own_step, self.adoptions),
                path: Vec::new(),
                loss: 0.0,
                tokens: 0,
                asked: desk.now,
                waited: Duration::ZERO,
                staleness: 0,
                added: false,
                returning_asked: false,
                returns: None,
            },
        );
        if self.rules.lock_step() {
            self.turn.on_new(desk.now, &id, forward.close);
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
            Work::Done { .. } if kept.returns.is_some_and(|returns| returns.comes_to(kept.upstream)) => {}
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
            self.busy.sends(bytes);
            desk.emit(Event::SentForward { id, stage, to, codec, bytes, raw });
        }
    }

    pub fn on_delivered(&mut self, desk: &mut Desk<'_>, to: PeerId, about: &About) {
        if let Some(handoff) = self.kept.get_mut(&about.id).and_then(|kept| kept.handoff.as_mut()) {
            handoff.on_delivered(desk, to, about);
        }
    }

    /// The gradient of an id lies at `to`.
    pub fn on_returned(&mut self, now: Instant, to: PeerId, about: &About) {
        let kept = self.kept.get_mut(&about.id);
        if let Some(returns) = kept.and_then(|kept| kept.returns.as_mut()).filter(|returns| returns.to == to) {
            returns.since.get_or_insert(now);
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
        if kept.handoff.as_ref().is_some_and(Handoff::is_spent) {
            // Two attempts of one number could not be told apart: upstream gives it a new one.
            let (upstream, attempt) = (kept.upstream, kept.attempt.clone());
            decline(desk, upstream, id, &attempt, self.stage, Why::NotServing);
            return self.forget(desk, id);
        }
        if kept.handoff.as_mut().is_some_and(|handoff| handoff.choose(desk)) {
            self.answer(desk, id);
        }
    }

    /// Gives ids back to whoever sent them, which goes on with another replica as after a death: those that nobody at the next
    /// stage can take and, with `stuck`, those that wait at somebody there. Tells who has them beyond that stage; without
    /// `next`, who would not be told keeps them.
    pub fn hand_back(&mut self, desk: &mut Desk<'_>, next: bool, stuck: bool) -> BTreeMap<MicroBatchId, PeerId> {
        let may_go = |kept: &Kept| {
            let waits = matches!(kept.work, Work::Queued { .. } | Work::Running { .. } | Work::Forwarded { .. });
            let handoff = kept.handoff.as_ref().filter(|_| waits);
            handoff.is_some_and(|h| h.is_stranded() && (next || h.onward().is_none()) || stuck && h.held_by().is_some())
        };
        let ids: Vec<MicroBatchId> = self.kept.iter().filter(|(_, kept)| may_go(kept)).map(|(id, _)| *id).collect();
        let mut beyond = BTreeMap::new();
        for id in ids {
            let Some(kept) = self.kept.get(&id) else { continue };
            beyond.extend(kept.handoff.as_ref().and_then(Handoff::onward).map(|peer| (id, peer)));
            let (upstream, attempt) = (kept.upstream, kept.attempt.clone());
            decline(desk, upstream, id, &attempt, self.stage, Why::NotServing);
            self.forget(desk, id);
        }
        beyond
    }

    /// Who may have ids that come to this stage, as the stage before knew it.
    pub fn hear(&mut self, beyond: BTreeMap<MicroBatchId, PeerId>) {
        self.heard = beyond;
    }

    pub fn on_cancel(&mut self, desk: &mut Desk<'_>, from: PeerId, about: &About) {
        let Some(kept) = self.kept.get(&about.id) else { return };
        // Once it was confirmed it is not upstream's to take back.
        let unsent = match &kept.handoff {
            Some(handoff) => handoff.is_unsent(),
            None => matches!(kept.work, Work::Queued { .. }),
        };
        if kept.upstream == from && kept.attempt == about.attempt && unsent && kept.is_open() {
            self.forget(desk, about.id);
        }
    }

    pub fn on_ask(&mut self, desk: &mut Desk<'_>, from: PeerId, about: &About) {
        match self.kept.get(&about.id) {
            Some(kept) if kept.upstream == from && kept.attempt == about.attempt => {
                if !kept.returns.is_some_and(|returns| returns.crossed(from, desk.now)) {
                    self.answer(desk, about.id);
                }
            }
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
        // Who is blamed for a gradient is who sent it, whatever its path says.
        let complete =
            self.path_is_complete(&returned.path) && returned.path.last().is_some_and(|hop| hop.peer == from);
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
        kept.waited = kept.waited.saturating_add(Duration::from_micros(returned.waited_us));
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

    // ---- what ends -------------------------------------------------------------------------------------------------------

    /// The feeder says that these ids are over. Answers are no longer needed.
    pub fn on_over(&mut self, desk: &mut Desk<'_>, over: impl Fn(&MicroBatchId) -> bool) {
        let ids: Vec<MicroBatchId> = self.kept.keys().filter(|id| over(id)).copied().collect();
        for id in ids {
            self.forget(desk, id);
        }
        self.heard.retain(|id, _| !over(id));
    }

    /// Drops everything of an id. A backward that the worker already has will still be added, and said.
    fn forget(&mut self, desk: &mut Desk<'_>, id: MicroBatchId) {
        let stage = self.stage;
        let running = desk.jobs.has(|purpose| is_of(purpose, stage, id))
            && desk.jobs.cancel(|purpose| is_of(purpose, stage, id)).is_empty();
        let Some(mut kept) = self.kept.remove(&id) else { return };
        if running {
            // The blobs of a job that runs are the driver's to hold for that long.
            desk.jobs.disown(|purpose| *purpose == Purpose::Forward { stage, id });
        }
        if desk.jobs.has(|purpose| *purpose == Purpose::Backward { stage, id }) {
            self.orphans.insert(id, Orphan::of(&kept));
        }
        if let Some(handoff) = &mut kept.handoff {
            handoff.abandon(desk);
        }
        desk.release_all(kept.blobs());
        let key = kept.key;
        desk.jobs.push(Priority::Weights, Job::Drop { stage, keys: vec![key] }, Purpose::Forget);
    }

    pub fn on_lost(&mut self, desk: &mut Desk<'_>, peer: PeerId, why: &str) -> usize {
        self.forward.forget(peer);
        self.backward.forget(peer);
        let mut moved = 0;
        let ids: Vec<MicroBatchId> = self.kept.keys().copied().collect();
        for id in ids {
            let Some(kept) = self.kept.get_mut(&id) else { continue };
            kept.returns.take_if(|returns| returns.to == peer);
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

    /// `is_up`: who is connected, and me.
    pub fn on_tick(&mut self, desk: &mut Desk<'_>, is_up: impl Fn(PeerId) -> bool) {
        let feeders = self.feeders();
        self.feeders_seen.retain(|feeder, _| feeders.contains(feeder));
        for feeder in feeders {
            let seen = self.feeders_seen.entry(feeder).or_insert(desk.now);
            if is_up(feeder) {
                *seen = desk.now;
            }
        }
        let ids: Vec<MicroBatchId> = self.kept.keys().copied().collect();
        let mut open_in_turn = false;
        for id in ids {
            let Some(kept) = self.kept.get_mut(&id) else { continue };
            open_in_turn |= self.turn.is_of(&id) && kept.is_open();
            if desk.now.since(self.feeders_seen[&id.feeder]) > KEPT_WITHOUT_FEEDER {
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
            if let Some(handoff) = &mut kept.handoff {
                handoff.on_tick(desk);
            }
            if wants_labels {
                self.ask_labels(desk, id);
            }
            self.reroute(desk, id);
        }
        if self.rules.lock_step() && open_in_turn && self.turn.stands_since(desk.now) > TURN_PATIENCE {
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

pub fn decline(desk: &mut Desk<'_>, to: PeerId, id: MicroBatchId, attempt: &Attempt, stage: Stage, why: Why) {
    let declined = Declined { id, attempt: attempt.clone(), stage, why };
    desk.send(to, Lane::Control, Frame::Declined(declined), None);
}

/// Releases whatever handles an unwanted answer carries.
pub fn release_done(desk: &mut Desk<'_>, done: Done) {
    match done {
        Done::Forwarded { output, .. } => desk.release(output),
        Done::Inferred { outputs } => desk.release_all(outputs.into_iter().filter_map(|(_, output)| output.ok())),
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
