//! One replica's averaging rounds: when due, with whom, and how a round ends.
//!
//! In: own steps, frames, losses, answers of the worker. Out: frames, and requests to freeze, combine, adopt or roll back. Two
//! acknowledged phases: both exchange tensors and compute the result; a side adopts when it is ready and the other said so too.
//! Nobody waits for a round: serving goes on, and what is trained meanwhile is added on adoption.

use std::{collections::VecDeque, time::Duration};

use skein_protocol::{
    Blob, Instant, Outbox, PeerId, RunId, Stage,
    event::RoundOutcome,
    hash,
    wire::{
        average::{Frame, Name, Terms},
        limits::RATE_MIN,
    },
};

/// Candidates that are asked before a round is skipped.
const CANDIDATES: usize = 3;
/// Proposals that wait for an answer at one time: more are told at once that I am busy.
const SUITORS: usize = 8;
/// A proposal without an answer is over after this.
const PROPOSAL: Duration = Duration::from_secs(2);
/// A proposal waits so long for mine to be answered: its sender must hear of it before it gives up.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest a phase of the exchange takes before it is rolled back, beside what its tensors need on the slowest link. A partner
/// that is gone is noticed long before; this only ends an exchange with one that stays and never sends.
const PHASE: Duration = Duration::from_secs(60);
/// How long the last word of the partner is waited for.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Replicas further apart than this many rounds copy rather than average: a mean with slow weights that old pulls back.
pub const ROUNDS_APART: u32 = 4;

#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    Send {
        to: PeerId,
        frame: Frame,
        body: Option<Blob>,
    },
    /// Freeze theta and phi, encode d and phi; answered by `on_snapshot`.
    Snapshot {
        round: u32,
    },
    /// Compute the new slow weights; answered by `on_prepared`. The partner's blob stays mine.
    Prepare {
        round: u32,
        theirs: Blob,
        my_samples: u64,
        their_samples: u64,
        first: bool,
        copy: bool,
    },
    /// Adopt what was prepared.
    Adopt {
        round: u32,
    },
    /// Forget what was frozen.
    RollBack {
        round: u32,
    },
    /// phi <- theta, m <- 0.
    Alone,
    Release(Blob),
    Ended(Ended),
}

/// How a round ended, for the event.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub round: u32,
    pub partner: Option<PeerId>,
    pub outcome: RoundOutcome,
    pub disagreement: Option<f32>,
    pub samples: u64,
    pub began: Instant,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Idle,
    Proposed {
        to: PeerId,
        session: u64,
        until: Instant,
        others: VecDeque<PeerId>,
        began: Instant,
        /// Proposals of others that are answered when mine is.
        suitors: VecDeque<Suitor>,
    },
    Exchanging(Exchange),
    /// I adopted; the partner's last word is awaited.
    Adopted {
        exchange: Exchange,
        until: Instant,
    },
}

/// A proposal that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Suitor {
    from: PeerId,
    terms: Terms,
    until: Instant,
}

#[derive(Clone, Debug, PartialEq)]
struct Exchange {
    with: PeerId,
    name: Name,
    round: u32,
    their_round: u32,
    /// One of us copies the other.
    far_apart: bool,
    /// Samples in my difference when the round began.
    samples: u64,
    mine: Option<Blob>,
    theirs: Option<(Blob, u64)>,
    asked: bool,
    prepared: Option<f32>,
    they_are_ready: bool,
    until: Instant,
    began: Instant,
}

#[derive(Debug)]
pub struct Average {
    me: PeerId,
    run: RunId,
    stage: Stage,
    /// Own steps between rounds; 0 = averaging is off.
    every: u32,
    /// The longest that a phase of an exchange takes.
    phase: Duration,
    state: State,
    round: u32,
    steps: u32,
    samples: u64,
    /// Steps since the last round or copy, for `is_stale`.
    due: bool,
    members: Vec<PeerId>,
    /// Replicas that leave: a last round is done with them if they ask.
    leavers: Vec<PeerId>,
    sessions: u64,
    pub rounds: u64,
    pub rolled_back: u64,
}

impl Average {
    /// `every`: own steps between rounds, 0 = never. `body_max`: bytes that one side sends in a round, at most.
    pub fn new(me: PeerId, run: RunId, stage: Stage, every: u32, body_max: u64) -> Self {
        Average {
            me,
            run,
            stage,
            every,
            phase: PHASE + Duration::from_secs(body_max / RATE_MIN),
            state: State::Idle,
            round: 0,
            steps: 0,
            samples: 0,
            due: false,
            members: Vec::new(),
            leavers: Vec::new(),
            sessions: 0,
            rounds: 0,
            rolled_back: 0,
        }
    }

    pub fn round(&self) -> u32 {
        self.round
    }

    pub fn set_round(&mut self, round: u32) {
        self.round = round;
    }

    /// Round that is being exchanged.
    pub fn in_air(&self) -> Option<u32> {
        match &self.state {
            State::Exchanging(exchange) => Some(exchange.round),
            _ => None,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    pub fn partner(&self) -> Option<PeerId> {
        match &self.state {
            State::Idle => None,
            State::Proposed { to, .. } => Some(*to),
            State::Exchanging(exchange) | State::Adopted { exchange, .. } => Some(exchange.with),
        }
    }

    /// Living replicas of the stage without me.
    pub fn set_members(&mut self, members: Vec<PeerId>, leavers: Vec<PeerId>) {
        self.members = members;
        self.leavers = leavers;
    }

    /// The last round lies more than two intervals back: phi must not be given to anybody as it is.
    pub fn is_stale(&self) -> bool {
        self.every > 0 && self.steps > 2 * self.every
    }

    /// One own step was made, with this many samples.
    pub fn on_step(&mut self, now: Instant, samples: u64, out: &mut Outbox<Act>) {
        self.steps += 1;
        self.samples += samples;
        if self.every > 0 && self.steps >= self.every && self.state == State::Idle {
            self.due = true;
            self.begin(now, out);
        }
    }

    /// A last round before leaving, however few steps it is since the last one.
    pub fn last_round(&mut self, now: Instant, out: &mut Outbox<Act>) {
        if self.every > 0 && self.steps > 0 && self.state == State::Idle && !self.members.is_empty() {
            self.due = true;
            self.begin(now, out);
        }
    }

    fn begin(&mut self, now: Instant, out: &mut Outbox<Act>) {
        if !self.due {
            return;
        }
        self.due = false;
        if self.members.is_empty() {
            return self.alone(now, out);
        }
        let rank = |peer: &PeerId| {
            let (stage, round) = (self.stage.to_le_bytes(), self.round.to_le_bytes());
            hash::keyed("skein pairing 1", &[&self.run.0, &stage, &round, &self.me.0, &peer.0])
        };
        let mut others: Vec<PeerId> = self.members.clone();
        others.sort_by_key(rank);
        others.truncate(CANDIDATES);
        self.propose(now, others.into(), VecDeque::new(), now, out);
    }

    /// Asks the next of `others`; but whoever waits for my answer is a partner at once.
    fn propose(
        &mut self,
        now: Instant,
        mut others: VecDeque<PeerId>,
        mut suitors: VecDeque<Suitor>,
        began: Instant,
        out: &mut Outbox<Act>,
    ) {
        too_late(&mut suitors, now, out);
        suitors.retain(|suitor| self.members.contains(&suitor.from) || self.leavers.contains(&suitor.from));
        if let Some(suitor) = suitors.pop_front() {
            turn_away(&mut suitors, out);
            return self.accept(now, suitor.from, suitor.terms, began, out);
        }
        let Some(to) = others.pop_front() else {
            self.state = State::Idle;
            // Asked again after as many steps as a fifth of the interval.
            self.steps = self.steps.saturating_sub(self.every.div_ceil(5));
            return self.end(None, RoundOutcome::Skipped, None, 0, began, out);
        };
        self.sessions += 1;
        // Two replicas that propose to each other never use one number, so that a late frame of one session is none of another.
        let session = 2 * self.sessions + u64::from(self.me > to);
        self.state = State::Proposed { to, session, until: now + PROPOSAL, others, began, suitors };
        let terms = self.terms(Name { stage: self.stage, session }, self.round);
        out.push(Act::Send { to, frame: Frame::Propose(terms), body: None });
    }

    fn terms(&self, name: Name, round: u32) -> Terms {
        Terms { name, round, samples: self.samples, own_round: self.round }
    }

    /// Nobody else serves the stage: slow weights follow the fast ones, so that the first joiner does not throw it back.
    pub fn alone(&mut self, now: Instant, out: &mut Outbox<Act>) {
        if self.state != State::Idle {
            return;
        }
        self.round += 1;
        let samples = self.samples;
        (self.steps, self.samples) = (0, 0);
        out.push(Act::Alone);
        self.end(None, RoundOutcome::Alone, None, samples, now, out);
    }

    fn end(
        &mut self,
        partner: Option<PeerId>,
        outcome: RoundOutcome,
        disagreement: Option<f32>,
        samples: u64,
        began: Instant,
        out: &mut Outbox<Act>,
    ) {
        out.push(Act::Ended(Ended { round: self.round, partner, outcome, disagreement, samples, began }));
    }

    // ---- frames ----------------------------------------------------------------------------------------------------------

    pub fn on_frame(&mut self, now: Instant, from: PeerId, frame: Frame, body: Option<Blob>, out: &mut Outbox<Act>) {
        if let (Frame::Tensors(terms), Some(body)) = (&frame, body) {
            return self.on_tensors(now, from, *terms, body, out);
        }
        if let Some(body) = body {
            out.push(Act::Release(body));
        }
        match frame {
            Frame::Propose(terms) => self.on_propose(now, from, terms, out),
            Frame::Agree(terms) => self.on_agree(now, from, terms, out),
            Frame::Busy(name) => self.on_busy(now, from, name, out),
            Frame::Tensors(_) => {}
            Frame::Ready(name) => self.on_ready(now, from, name, out),
            Frame::Adopted(name) => self.on_adopted_there(now, from, name, out),
            Frame::Abort(name) => self.on_abort(from, name, out),
        }
    }

    fn on_propose(&mut self, now: Instant, from: PeerId, terms: Terms, out: &mut Outbox<Act>) {
        let me = self.me;
        let member = self.every > 0 && (self.members.contains(&from) || self.leavers.contains(&from));
        let free = match &mut self.state {
            State::Idle => true,
            // We propose to each other: the smaller id's proposal counts.
            State::Proposed { to, .. } if *to == from => {
                if from > me {
                    return;
                }
                true
            }
            // It is answered when I am, so that replicas that are due at one moment do not pass each other by. Only smaller ids
            // wait, or a ring of replicas could wait for each other.
            State::Proposed { suitors, .. } if member && from < me => {
                suitors.retain(|suitor| suitor.from != from);
                if suitors.len() < SUITORS {
                    return suitors.push_back(Suitor { from, terms, until: now + PATIENCE });
                }
                false
            }
            State::Proposed { .. } => false,
            State::Exchanging(_) => false,
            // The partner began the next round before its last word arrived: it has adopted.
            State::Adopted { exchange, .. } => exchange.with == from,
        };
        if !free || !member {
            return out.push(busy(from, terms));
        }
        if let State::Adopted { .. } = &self.state {
            self.finish_adopted(RoundOutcome::Both, out);
        }
        self.accept(now, from, terms, now, out);
    }

    fn accept(&mut self, now: Instant, from: PeerId, terms: Terms, began: Instant, out: &mut Outbox<Act>) {
        let round = self.round.max(terms.own_round) + 1;
        out.push(Act::Send { to: from, frame: Frame::Agree(self.terms(terms.name, round)), body: None });
        self.exchange(now, from, terms.name, round, terms.own_round, began, out);
    }

    fn on_agree(&mut self, now: Instant, from: PeerId, terms: Terms, out: &mut Outbox<Act>) {
        let State::Proposed { to, session, began, .. } = &self.state else {
            return out.push(Act::Send { to: from, frame: Frame::Abort(terms.name), body: None });
        };
        if *to != from || *session != terms.name.session {
            return out.push(Act::Send { to: from, frame: Frame::Abort(terms.name), body: None });
        }
        let began = *began;
        let round = self.round.max(terms.own_round) + 1;
        self.exchange(now, from, terms.name, round, terms.own_round, began, out);
    }

    #[allow(clippy::too_many_arguments)]
    fn exchange(
        &mut self,
        now: Instant,
        with: PeerId,
        name: Name,
        round: u32,
        their_round: u32,
        began: Instant,
        out: &mut Outbox<Act>,
    ) {
        if let State::Proposed { suitors, .. } = &mut self.state {
            turn_away(suitors, out);
        }
        self.state = State::Exchanging(Exchange {
            with,
            name,
            round,
            their_round,
            far_apart: self.round.abs_diff(their_round) > ROUNDS_APART,
            samples: self.samples,
            mine: None,
            theirs: None,
            asked: false,
            prepared: None,
            they_are_ready: false,
            until: now + self.phase,
            began,
        });
        out.push(Act::Snapshot { round });
    }

    fn on_busy(&mut self, now: Instant, from: PeerId, name: Name, out: &mut Outbox<Act>) {
        if let State::Proposed { to, session, .. } = &self.state
            && *to == from
            && *session == name.session
        {
            self.passed_over(now, out);
        }
    }

    /// Nothing comes of my proposal.
    fn passed_over(&mut self, now: Instant, out: &mut Outbox<Act>) {
        if let State::Proposed { others, suitors, began, .. } = &mut self.state {
            let (others, suitors, began) = (std::mem::take(others), std::mem::take(suitors), *began);
            self.propose(now, others, suitors, began, out);
        }
    }

    fn exchanging(&mut self, from: PeerId, name: Name) -> Option<&mut Exchange> {
        match &mut self.state {
            State::Exchanging(exchange) if exchange.with == from && exchange.name == name => Some(exchange),
            _ => None,
        }
    }

    fn on_tensors(&mut self, now: Instant, from: PeerId, terms: Terms, body: Blob, out: &mut Outbox<Act>) {
        let phase = self.phase;
        match self.exchanging(from, terms.name) {
            Some(exchange) if exchange.theirs.is_none() => {
                exchange.theirs = Some((body, terms.samples));
                exchange.until = now + phase;
                self.prepare_if_complete(out);
            }
            _ => out.push(Act::Release(body)),
        }
    }

    fn prepare_if_complete(&mut self, out: &mut Outbox<Act>) {
        let (me, round_now) = (self.me, self.round);
        let State::Exchanging(exchange) = &mut self.state else { return };
        let (Some(_), Some((theirs, their_samples)), false) = (exchange.mine, exchange.theirs, exchange.asked) else {
            return;
        };
        exchange.asked = true;
        let behind = round_now + ROUNDS_APART < exchange.their_round;
        out.push(Act::Prepare {
            round: exchange.round,
            theirs,
            my_samples: exchange.samples,
            their_samples,
            first: me < exchange.with,
            copy: behind,
        });
    }

    fn on_ready(&mut self, now: Instant, from: PeerId, name: Name, out: &mut Outbox<Act>) {
        let phase = self.phase;
        if let Some(exchange) = self.exchanging(from, name) {
            exchange.they_are_ready = true;
            exchange.until = now + phase;
            self.adopt_if_both_ready(now, out);
        }
    }

    fn adopt_if_both_ready(&mut self, now: Instant, out: &mut Outbox<Act>) {
        let State::Exchanging(exchange) = &self.state else { return };
        if exchange.prepared.is_none() || !exchange.they_are_ready {
            return;
        }
        let exchange = exchange.clone();
        let ahead = exchange.their_round + ROUNDS_APART < self.round;
        if ahead {
            // The other copies me; I keep what I have.
            out.push(Act::RollBack { round: exchange.round });
        } else {
            out.push(Act::Adopt { round: exchange.round });
        }
        out.push(Act::Send { to: exchange.with, frame: Frame::Adopted(exchange.name), body: None });
        self.round = exchange.round;
        self.steps = 0;
        // What was trained while the round was in the air belongs to the next difference.
        self.samples = self.samples.saturating_sub(exchange.samples);
        self.rounds += 1;
        release(&exchange, out);
        self.state = State::Adopted { exchange, until: now + LAST_WORD };
    }

    fn on_adopted_there(&mut self, now: Instant, from: PeerId, name: Name, out: &mut Outbox<Act>) {
        match &mut self.state {
            State::Adopted { exchange, .. } if exchange.with == from && exchange.name == name => {
                self.finish_adopted(RoundOutcome::Both, out);
            }
            // It had my word that I am ready before I had its: its adoption says as much.
            State::Exchanging(exchange) if exchange.with == from && exchange.name == name => {
                exchange.they_are_ready = true;
                self.adopt_if_both_ready(now, out);
                self.finish_adopted(RoundOutcome::Both, out);
            }
            _ => {}
        }
    }

    fn finish_adopted(&mut self, outcome: RoundOutcome, out: &mut Outbox<Act>) {
        let State::Adopted { .. } = &self.state else { return };
        let State::Adopted { exchange, .. } = std::mem::replace(&mut self.state, State::Idle) else { return };
        let copied = exchange.far_apart && outcome == RoundOutcome::Both;
        let outcome = if copied { RoundOutcome::Copied } else { outcome };
        self.end(Some(exchange.with), outcome, exchange.prepared, exchange.samples, exchange.began, out);
    }

    fn on_abort(&mut self, from: PeerId, name: Name, out: &mut Outbox<Act>) {
        match &self.state {
            State::Exchanging(exchange) if exchange.with == from && exchange.name == name => self.roll_back(out),
            State::Adopted { exchange, .. } if exchange.with == from && exchange.name == name => {
                self.finish_adopted(RoundOutcome::OneSided, out);
            }
            _ => {}
        }
    }

    /// The round comes to nothing: the difference stays for the next one.
    fn roll_back(&mut self, out: &mut Outbox<Act>) {
        let State::Exchanging(exchange) = std::mem::replace(&mut self.state, State::Idle) else { return };
        out.push(Act::RollBack { round: exchange.round });
        release(&exchange, out);
        self.rolled_back += 1;
        self.steps = self.steps.saturating_sub(self.every.div_ceil(5));
        self.end(Some(exchange.with), RoundOutcome::Neither, None, exchange.samples, exchange.began, out);
    }

    // ---- the worker ------------------------------------------------------------------------------------------------------

    /// My tensors are encoded; nothing when that failed.
    pub fn on_snapshot(&mut self, round: u32, blob: Option<Blob>, out: &mut Outbox<Act>) {
        let me_round = self.round;
        let State::Exchanging(exchange) = &mut self.state else { return out.extend_release(blob) };
        if exchange.round != round || exchange.mine.is_some() {
            return out.extend_release(blob);
        }
        match blob {
            None => self.abort(out),
            Some(blob) => {
                exchange.mine = Some(blob);
                let terms = Terms { name: exchange.name, round, samples: exchange.samples, own_round: me_round };
                out.push(Act::Send { to: exchange.with, frame: Frame::Tensors(terms), body: Some(blob) });
                self.prepare_if_complete(out);
            }
        }
    }

    /// The result is computed, with the disagreement after it; nothing when it is not finite or the tensors did not fit.
    pub fn on_prepared(&mut self, now: Instant, round: u32, disagreement: Option<f32>, out: &mut Outbox<Act>) {
        let phase = self.phase;
        let State::Exchanging(exchange) = &mut self.state else { return };
        if exchange.round != round {
            return;
        }
        match disagreement {
            None => self.abort(out),
            Some(disagreement) => {
                exchange.prepared = Some(disagreement);
                exchange.until = now + phase;
                out.push(Act::Send { to: exchange.with, frame: Frame::Ready(exchange.name), body: None });
                self.adopt_if_both_ready(now, out);
            }
        }
    }

    fn abort(&mut self, out: &mut Outbox<Act>) {
        if let State::Exchanging(exchange) = &self.state {
            out.push(Act::Send { to: exchange.with, frame: Frame::Abort(exchange.name), body: None });
            self.roll_back(out);
        }
    }

    // ---- losses and time -------------------------------------------------------------------------------------------------

    pub fn on_lost(&mut self, now: Instant, peer: PeerId, out: &mut Outbox<Act>) {
        self.members.retain(|member| *member != peer);
        self.leavers.retain(|leaver| *leaver != peer);
        match &mut self.state {
            State::Proposed { to, suitors, .. } => {
                suitors.retain(|suitor| suitor.from != peer);
                if *to == peer {
                    self.passed_over(now, out);
                }
            }
            State::Exchanging(exchange) if exchange.with == peer => self.roll_back(out),
            State::Adopted { exchange, .. } if exchange.with == peer => {
                self.finish_adopted(RoundOutcome::OneSided, out);
            }
            _ => {}
        }
    }

    /// What was sent to `peer` did not leave: a round with it comes to nothing, and it is told.
    pub fn on_congested(&mut self, peer: PeerId, out: &mut Outbox<Act>) {
        if self.in_air().is_some() && self.partner() == Some(peer) {
            self.abort(out);
        }
    }

    /// A fence: whatever is in the air is over.
    pub fn on_fenced(&mut self, out: &mut Outbox<Act>) {
        match &mut self.state {
            State::Exchanging(_) => self.roll_back(out),
            State::Adopted { .. } => self.finish_adopted(RoundOutcome::OneSided, out),
            State::Proposed { suitors, .. } => {
                turn_away(suitors, out);
                self.state = State::Idle;
            }
            State::Idle => {}
        }
    }

    pub fn on_tick(&mut self, now: Instant, out: &mut Outbox<Act>) {
        match &mut self.state {
            State::Proposed { until, .. } if *until <= now => self.passed_over(now, out),
            State::Proposed { suitors, .. } => too_late(suitors, now, out),
            State::Exchanging(exchange) if exchange.until <= now => self.abort(out),
            State::Adopted { until, .. } if *until <= now => self.finish_adopted(RoundOutcome::OneSided, out),
            _ => {}
        }
    }
}

fn busy(to: PeerId, terms: Terms) -> Act {
    Act::Send { to, frame: Frame::Busy(terms.name), body: None }
}

/// Those who have waited for long learn that I have no answer, while they still have the time to ask another.
fn too_late(suitors: &mut VecDeque<Suitor>, now: Instant, out: &mut Outbox<Act>) {
    suitors.retain(|suitor| {
        let waits = suitor.until > now;
        if !waits {
            out.push(busy(suitor.from, suitor.terms));
        }
        waits
    });
}

/// Those who wait learn that I have another partner.
fn turn_away(suitors: &mut VecDeque<Suitor>, out: &mut Outbox<Act>) {
    suitors.drain(..).for_each(|suitor| out.push(busy(suitor.from, suitor.terms)));
}

fn release(exchange: &Exchange, out: &mut Outbox<Act>) {
    for blob in [exchange.mine, exchange.theirs.map(|(blob, _)| blob)].into_iter().flatten() {
        out.push(Act::Release(blob));
    }
}

/// Releasing what arrives when nobody wants it.
trait ExtendRelease {
    fn extend_release(&mut self, blob: Option<Blob>);
}

impl ExtendRelease for Outbox<Act> {
    fn extend_release(&mut self, blob: Option<Blob>) {
        if let Some(blob) = blob {
            self.push(Act::Release(blob));
        }
    }
}
