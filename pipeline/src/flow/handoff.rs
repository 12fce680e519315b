//! One id on its way from its holder to a replica of the next stage.
//!
//! The holder chooses a replica, names it upstream and waits to be confirmed (the feeder has nobody above it), sends, is
//! accepted, confirms. While the other's choice is unconfirmed it sends nothing on, so an offer can be taken back freely; once
//! confirmed, only the other's death moves the id, and then its successor is told whom the dead one had named.

use std::{collections::BTreeSet, time::Duration};

use skein_protocol::{
    Attempt, Blob, Instant, Lane, MicroBatchId, PeerId, Stage,
    event::Event,
    wire::{
        Starts,
        flow::{About, Accepted, Forward, Frame, Why},
    },
};

use super::Desk;

/// A replica that had no room is asked again after this.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// A replica that does not serve (yet) is asked again after this.
const ABSENT_PAUSE: Duration = Duration::from_secs(1);
/// An offer that is not there by then, its waiting for the uplink included, goes elsewhere. A dead connection ends long before.
const TRANSIT_MAX: Duration = Duration::from_secs(120);
/// A replica to which it did not get is asked again after this.
const STUCK_PAUSE: Duration = Duration::from_secs(30);
/// With nobody to send to, the directory is looked at again after this.
const RETRY: Duration = Duration::from_millis(100);
/// A replica that holds an id this long without a word is asked whether it still does.
pub const ASK_AFTER: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nobody serves the stage, or everybody is busy.
    Unrouted { retry: Instant },
    /// Named upstream, not confirmed.
    Named,
    /// To be sent as soon as there is something to send.
    Ready,
    Sent {
        /// Since when it lies at the other; nothing: it is on its way.
        delivered: Option<Instant>,
        /// Taken back then; nothing: only when the other is lost.
        deadline: Option<Instant>,
    },
    /// Accepted and confirmed; `next` is where it goes from there.
    Held { next: Option<PeerId>, asked: Instant },
    /// Answered, or given up: nothing more is asked of anybody.
    Over,
}

/// Constant facts of the id that every send repeats.
#[derive(Clone, Debug)]
pub struct Cargo {
    pub id: MicroBatchId,
    pub samples: u64,
    pub close: bool,
    /// Where its records begin.
    pub starts: Starts,
    /// Nothing is learned from it.
    pub held_out: bool,
    /// Attempt under which the holder has it; nothing for the feeder.
    pub attempt: Option<Attempt>,
}

impl Cargo {
    fn attempt_with(&self, counter: u8) -> Attempt {
        self.attempt.as_ref().map_or(Attempt::first(counter), |attempt| attempt.hop(counter))
    }
}

#[derive(Clone, Debug)]
pub struct Handoff {
    /// The receiver's stage.
    stage: Stage,
    to: Option<PeerId>,
    counter: u8,
    phase: Phase,
    /// Id and attempt under which it was sent last: the receiver knows it by these.
    sent: Option<(MicroBatchId, Attempt)>,
    /// Replica of `stage` that may have the id already: the first choice.
    prefer: Option<PeerId>,
    /// Replica of the stage after, named by a receiver that is gone or no longer has it: its successor is told.
    onward: Option<PeerId>,
    needs_confirmation: bool,
    /// Everybody it was sent to: a gradient from any of them is welcome.
    offered: BTreeSet<PeerId>,
    pauses: Vec<(PeerId, Instant)>,
    /// Sends that were taken back since no answer came in time: counter, to whom, since when it lies there.
    taken_back: Vec<(u8, PeerId, Instant)>,
    /// Who was lost with it, and why: said when it is sent again.
    lost: Option<(PeerId, String)>,
    /// Losses after an acceptance.
    pub losses: u8,
}

impl Handoff {
    pub fn new(stage: Stage, needs_confirmation: bool) -> Self {
        Handoff {
            stage,
            to: None,
            counter: 0,
            phase: Phase::Unrouted { retry: Instant::ZERO },
            sent: None,
            prefer: None,
            onward: None,
            needs_confirmation,
            offered: BTreeSet::new(),
            pauses: Vec::new(),
            taken_back: Vec::new(),
            lost: None,
            losses: 0,
        }
    }

    /// Who had the id before its present holder sent it to `peer`. Nothing is no news.
    pub fn prefer(&mut self, peer: Option<PeerId>) {
        self.prefer = peer.or(self.prefer);
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    pub fn to(&self) -> Option<PeerId> {
        self.to
    }

    /// Not sent, and not about to be: it may still be taken from who holds it.
    pub fn is_unsent(&self) -> bool {
        matches!(self.phase, Phase::Unrouted { .. } | Phase::Named)
    }

    /// Nobody can take it.
    pub fn is_stranded(&self) -> bool {
        matches!(self.phase, Phase::Unrouted { .. })
    }

    /// Who has it at the stage after the receiver's, as far as a lost receiver had said.
    pub fn onward(&self) -> Option<PeerId> {
        self.onward
    }

    /// The other side has it and may have sent it on.
    pub fn held_by(&self) -> Option<PeerId> {
        matches!(self.phase, Phase::Held { .. }).then_some(self.to).flatten()
    }

    /// Whether it is with the other side at all.
    pub fn is_out(&self) -> bool {
        matches!(self.phase, Phase::Sent { .. } | Phase::Held { .. })
    }

    /// Every attempt has its number: there are no more.
    pub fn is_spent(&self) -> bool {
        self.counter == u8::MAX
    }

    pub fn welcome(&self, from: PeerId) -> bool {
        self.offered.contains(&from)
    }

    /// Chooses somebody if nobody is chosen. True when the choice is new (and wants to be named upstream).
    pub fn choose(&mut self, desk: &mut Desk<'_>) -> bool {
        if !matches!(self.phase, Phase::Unrouted { .. }) {
            return false;
        }
        let now = desk.now;
        self.pauses.retain(|(_, until)| *until > now);
        let without: Vec<PeerId> = self.pauses.iter().map(|(peer, _)| *peer).collect();
        self.to = desk.route.choose(self.stage, self.prefer, &without);
        self.phase = match self.to {
            None => Phase::Unrouted { retry: now + RETRY },
            Some(_) if self.needs_confirmation => Phase::Named,
            Some(_) => Phase::Ready,
        };
        if let Some(to) = self.to {
            desk.route.named(self.stage, to);
        }
        self.to.is_some()
    }

    /// Upstream knows that it goes to `next`.
    pub fn confirmed(&mut self, next: Option<PeerId>) {
        if self.phase == Phase::Named && self.to == next {
            self.phase = Phase::Ready;
        }
    }

    /// Sends it, when that is the next thing to do. `body` stays the holder's.
    pub fn send(&mut self, desk: &mut Desk<'_>, cargo: &Cargo, body: Blob) -> bool {
        let (Phase::Ready, Some(to)) = (self.phase, self.to) else { return false };
        // Who may have added the id keeps it while it lives.
        let patient = to == desk.me || self.prefer == Some(to);
        self.phase = Phase::Sent { delivered: None, deadline: (!patient).then(|| desk.now + TRANSIT_MAX) };
        self.offered.insert(to);
        if let Some((from, why)) = self.lost.take() {
            desk.emit(Event::Resent { id: cargo.id, stage: self.stage, from, to, why });
        }
        desk.route.sent(desk.now, self.stage, to);
        let attempt = cargo.attempt_with(self.counter);
        self.sent = Some((cargo.id, attempt.clone()));
        let Cargo { id, samples, close, held_out, .. } = *cargo;
        let (stage, hint, starts) = (self.stage, self.onward, cargo.starts.clone());
        let forward = Forward { id, attempt, stage, samples, close, hint, starts, held_out };
        desk.send(to, Lane::Activation, Frame::Forward(forward), Some(body));
        true
    }

    /// What was sent has arrived at `to`: only from now on it is the other that is waited for, not the link.
    pub fn on_delivered(&mut self, desk: &mut Desk<'_>, to: PeerId, about: &About) {
        if let Phase::Sent { delivered: None, deadline } = self.phase
            && self.to == Some(to)
            && about.attempt.hops().last() == Some(&self.counter)
        {
            let deadline = deadline.map(|_| desk.now + desk.route.patience(self.stage, to));
            self.phase = Phase::Sent { delivered: Some(desk.now), deadline };
        }
    }

    /// `from` holds it, and says where it will go.
    pub fn on_accepted(&mut self, desk: &mut Desk<'_>, from: PeerId, accepted: &Accepted) {
        if self.to != Some(from) || accepted.attempt.hops().last() != Some(&self.counter) {
            // It crossed the word that took it back. How long it really takes is worth knowing.
            let counter = accepted.attempt.hops().last();
            let late = self.taken_back.extract_if(.., |(of, to, _)| *to == from && counter == Some(of)).next();
            if let Some((_, _, at)) = late {
                desk.route.accepted(self.stage, from, desk.now.since(at));
            }
            let Accepted { id, attempt, stage, .. } = accepted.clone();
            return desk.send(from, Lane::Control, Frame::Cancel(About { id, attempt, stage }), None);
        }
        if let Phase::Sent { delivered, .. } = self.phase {
            desk.route.accepted(self.stage, from, delivered.map_or(Duration::ZERO, |at| desk.now.since(at)));
        }
        if !self.is_out() {
            return;
        }
        self.phase = Phase::Held { next: accepted.next, asked: desk.now };
        desk.send(from, Lane::Control, Frame::Confirmed(accepted.clone()), None);
    }

    /// `from` did not take it, or no longer has it.
    pub fn on_declined(&mut self, desk: &mut Desk<'_>, from: PeerId, attempt: &Attempt, why: Why) {
        if self.to != Some(from) || !self.is_out() || attempt.hops().last() != Some(&self.counter) {
            return;
        }
        let pause = match why {
            Why::Busy => Some(BUSY_PAUSE),
            Why::NotServing => Some(ABSENT_PAUSE),
            // Who has just been sent it and says so would be asked again at once.
            Why::Unknown if matches!(self.phase, Phase::Sent { .. }) => Some(ABSENT_PAUSE),
            Why::Unknown => None,
            // Somebody else brought it further, or it is over: the feeder's progress will end it here too.
            Why::Superseded | Why::Over | Why::NotFinite => {
                let next = self.next();
                self.phase = Phase::Held { next, asked: desk.now };
                return;
            }
        };
        if let Some(pause) = pause {
            self.pauses.push((from, desk.now + pause));
        }
        // Who had it may have added it already.
        self.onward = self.next().or(self.onward);
        self.again(desk, from, None);
    }

    /// The connection to `peer` is gone. True when the id was there.
    pub fn on_lost(&mut self, desk: &mut Desk<'_>, peer: PeerId, why: &str) -> bool {
        for named in [&mut self.prefer, &mut self.onward] {
            named.take_if(|named| *named == peer);
        }
        if self.to != Some(peer) || self.phase == Phase::Over {
            return false;
        }
        if let Phase::Held { next, .. } = self.phase {
            self.onward = next;
            self.losses = self.losses.saturating_add(1);
        }
        self.again(desk, peer, Some(why));
        true
    }

    fn again(&mut self, desk: &mut Desk<'_>, from: PeerId, lost: Option<&str>) {
        self.take_back(desk);
        if self.is_out() {
            self.counter = self.counter.saturating_add(1);
            if let Some(why) = lost {
                self.lost = Some((from, why.to_string()));
            }
        }
        self.to = None;
        self.phase = Phase::Unrouted { retry: desk.now };
    }

    /// A gradient came back from `from`.
    pub fn on_answered(&mut self, desk: &mut Desk<'_>, from: PeerId) {
        if self.is_out() && self.to == Some(from) {
            desk.route.answered(desk.now, self.stage, from);
        } else {
            self.take_back(desk);
        }
        self.phase = Phase::Over;
    }

    /// It is over: what is still out counts no longer.
    pub fn abandon(&mut self, desk: &mut Desk<'_>) {
        self.take_back(desk);
        self.phase = Phase::Over;
    }

    /// Where the other side said that it goes.
    fn next(&self) -> Option<PeerId> {
        match self.phase {
            Phase::Held { next, .. } => next,
            _ => None,
        }
    }

    /// The route no longer counts it, and what still waits for the uplink does not leave.
    fn take_back(&self, desk: &mut Desk<'_>) {
        let Some(to) = self.to else { return };
        match self.phase {
            Phase::Named | Phase::Ready => desk.route.unnamed(self.stage, to),
            Phase::Sent { .. } | Phase::Held { .. } => {
                desk.route.withdrawn(desk.now, self.stage, to);
                if let Some((id, attempt)) = self.sent.clone() {
                    desk.uplink.take_back(to, &About { id, attempt, stage: self.stage });
                }
            }
            Phase::Unrouted { .. } | Phase::Over => {}
        }
    }

    pub fn on_tick(&mut self, desk: &mut Desk<'_>) {
        let Some(to) = self.to else { return };
        let Some((id, attempt)) = self.sent.clone() else { return };
        let about = About { id, attempt, stage: self.stage };
        match self.phase {
            Phase::Sent { delivered, deadline: Some(deadline) } if desk.now >= deadline => {
                if let Some(at) = delivered {
                    desk.route.was_late(desk.now, self.stage, to, at);
                    self.taken_back.push((self.counter, to, at));
                }
                // Not confirmed, so it went nowhere from there: it may be taken back.
                desk.send(to, Lane::Control, Frame::Cancel(about), None);
                let pause = if delivered.is_some() { ABSENT_PAUSE } else { STUCK_PAUSE };
                self.pauses.push((to, desk.now + pause));
                self.again(desk, to, Some("no answer"));
            }
            Phase::Held { next, asked } if desk.now.since(asked) >= ASK_AFTER => {
                desk.send(to, Lane::Control, Frame::Ask(about), None);
                self.phase = Phase::Held { next, asked: desk.now };
            }
            _ => {}
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Unrouted { retry } => Some(retry),
            Phase::Sent { deadline, .. } => deadline,
            Phase::Held { asked, .. } => Some(asked + ASK_AFTER),
            Phase::Named | Phase::Ready | Phase::Over => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use skein_protocol::{Incarnation, Outbox, rng::Streams};

    use super::*;
    use crate::flow::{route::Route, schedule::Schedule, uplink::Uplink};

    #[test]
    fn what_is_out_counts_until_it_is_answered_and_once() {
        let (me, to) = (PeerId([1; 32]), PeerId([2; 32]));
        let mut route = Route::new(me, &Streams::new(1, me), false);
        route.set_serving(BTreeMap::from([(1, BTreeMap::from([(to, 0.0)]))]), BTreeSet::new());
        let (mut out, mut jobs) = (Outbox::new(), Schedule::default());
        let mut desk = Desk {
            now: Instant::ZERO,
            me,
            out: &mut out,
            jobs: &mut jobs,
            route: &mut route,
            uplink: &mut Uplink::default(),
        };
        let incarnation: Incarnation = 1;
        let cargo = |index| Cargo {
            id: MicroBatchId { feeder: me, incarnation, step: 0, index },
            samples: 0,
            close: false,
            held_out: false,
            starts: Starts::default(),
            attempt: None,
        };
        let mut handoffs: Vec<Handoff> = (0..3).map(|_| Handoff::new(1, false)).collect();
        for (index, handoff) in (0u16..).zip(&mut handoffs) {
            assert!(handoff.choose(&mut desk));
            if index < 2 {
                assert!(handoff.send(&mut desk, &cargo(index), Blob { id: 1, len: 1 }));
            }
        }
        assert_eq!(desk.route.load(1, to), 3, "named counts as well");
        handoffs[0].on_answered(&mut desk, to);
        assert_eq!(desk.route.load(1, to), 2);
        handoffs[0].abandon(&mut desk);
        assert_eq!(desk.route.load(1, to), 2, "it was answered already");
        handoffs[2].abandon(&mut desk);
        handoffs[2].abandon(&mut desk);
        assert_eq!(desk.route.load(1, to), 1);
        assert!(!handoffs[0].on_lost(&mut desk, to, "gone"), "nothing of it is out");
    }

    #[test]
    fn nobody_is_late_with_what_is_still_on_its_way() {
        let (me, to) = (PeerId([1; 32]), PeerId([2; 32]));
        let mut route = Route::new(me, &Streams::new(1, me), false);
        route.set_serving(BTreeMap::from([(1, BTreeMap::from([(to, 0.0)]))]), BTreeSet::new());
        let (mut out, mut jobs, mut uplink) = (Outbox::new(), Schedule::default(), Uplink::default());
        let mut at = |seconds: u64, act: &mut dyn FnMut(&mut Desk<'_>)| {
            let now = Instant::ZERO + Duration::from_secs(seconds);
            act(&mut Desk { now, me, out: &mut out, jobs: &mut jobs, route: &mut route, uplink: &mut uplink });
        };
        let id = MicroBatchId { feeder: me, incarnation: 1, step: 0, index: 0 };
        let cargo = Cargo { id, samples: 0, close: false, held_out: false, starts: Starts::default(), attempt: None };
        let mut handoff = Handoff::new(1, false);
        at(0, &mut |desk| assert!(handoff.choose(desk) && handoff.send(desk, &cargo, Blob { id: 1, len: 1 })));
        at(50, &mut |desk| handoff.on_tick(desk));
        assert!(handoff.is_out(), "the link is slow");
        let about = About { id, attempt: Attempt::first(0), stage: 1 };
        at(50, &mut |desk| handoff.on_delivered(desk, to, &about));
        at(51, &mut |desk| handoff.on_tick(desk));
        assert!(handoff.is_out(), "it has had a second");
        at(52, &mut |desk| handoff.on_tick(desk));
        assert!(!handoff.is_out() && handoff.is_stranded(), "it lay there for two");
    }
}
