//! Feeds data and takes the loss: mints ids, hands them to stage 0, accepts the first complete path of each.
//!
//! In: records from the driver, flow frames, losses of peers. Out: forwards, labels, and the progress that lets every stage
//! drop what it kept. It is the only door for work: with no room in the window nothing is minted, anywhere.

use std::{collections::BTreeMap, time::Duration};

use skein_protocol::{
    Blob, Incarnation, Instant, Lane, Manifest, MicroBatchId, PeerId, Stage,
    event::{Event, Severity},
    wire::{
        Starts,
        flow::{About, Accepted, Declined, Frame, Hop, Returned, Void},
    },
};

use super::{
    Desk,
    handoff::{Cargo, Handoff},
    held_out::HeldOut,
    window::Window,
};
use crate::peer::io::Output;

/// An id is given up after this many losses of the replica of stage 0 that held it.
const LOSSES_MAX: u8 = 5;
/// Micro-batches of records that are asked for ahead.
const PREFETCH: usize = 2;
/// Records that did not come are asked for again.
const RECORDS_AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Open {
    ready: Ready,
    samples: u64,
    minted: Instant,
    handoff: Handoff,
}

/// One micro-batch of data.
#[derive(Clone, Debug)]
struct Ready {
    tokens: Blob,
    labels: Blob,
    /// Where its records begin.
    starts: Starts,
}

impl Ready {
    fn blobs(&self) -> [Blob; 2] {
        [self.tokens, self.labels]
    }
}

/// What the feeder tells the run: all below `low` is over, and so are the set bits above it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Position of the first id that is not over; ids count on through steps.
    pub low: u64,
    /// Bit i: position `low + i` is over.
    pub above: Vec<u8>,
}

#[derive(Debug)]
pub struct Source {
    me: PeerId,
    incarnation: Incarnation,
    last: Stage,
    per_step: u64,
    samples_each: u64,
    tokens_each: u64,
    in_flight_max: u64,
    /// How far it mints from the first that is not over.
    reach_max: u64,
    /// How many ids are to be open, within `in_flight_max`.
    pub window: Window,
    lock_step: bool,
    /// Feeding, as opposed to finishing what is open.
    pub feeding: bool,
    pub ended: bool,
    /// The data has an end, and all of it was read.
    pub exhausted: bool,
    open: BTreeMap<u64, Open>,
    ready: BTreeMap<u64, Ready>,
    asked: BTreeMap<u64, (u64, Instant)>,
    next_request: u64,
    /// Position of the next id to mint, and of the first that is not over.
    next: u64,
    low: u64,
    over: BTreeMap<u64, ()>,
    /// Data index of position 0 of this incarnation.
    feed_from: u64,
    held_out: HeldOut,
    /// Samples completed by this feeder, former starts included: it only grows.
    samples: u64,
    pub completed: u64,
    pub tokens: u64,
    pub voided: u64,
    pub loss: Option<f32>,
    /// Of data that is held out.
    pub held_out_loss: Option<f32>,
    /// Something is over that was not told yet.
    pub news: bool,
}

impl Source {
    pub fn new(me: PeerId, incarnation: Incarnation, manifest: &Manifest, feed_from: u64, held_out: HeldOut) -> Self {
        Source {
            me,
            incarnation,
            last: manifest.last_stage(),
            per_step: u64::from(manifest.train.micro_batches_per_step).max(1),
            samples_each: u64::from(manifest.train.micro_batch),
            tokens_each: manifest.tokens_per_micro_batch(),
            in_flight_max: u64::from(manifest.train.in_flight_max).max(1),
            reach_max: manifest.reach_max(),
            window: Window::new(manifest.stages.count, u64::from(manifest.train.in_flight_max)),
            lock_step: manifest.lock_step(),
            feeding: false,
            ended: false,
            exhausted: false,
            open: BTreeMap::new(),
            ready: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_request: 0,
            next: 0,
            low: 0,
            over: BTreeMap::new(),
            feed_from,
            held_out,
            samples: held_out.learned_before(feed_from) * u64::from(manifest.train.micro_batch),
            completed: 0,
            tokens: 0,
            voided: 0,
            loss: None,
            held_out_loss: None,
            news: false,
        }
    }

    pub fn open_len(&self) -> usize {
        self.open.len()
    }

    /// The data has an end, and all of it is over.
    pub fn is_done(&self) -> bool {
        self.exhausted && self.open.is_empty() && self.ready.is_empty()
    }

    /// Ids that may be open now.
    pub fn open_max(&self) -> u64 {
        if self.lock_step { self.in_flight_max.min(self.per_step) } else { self.window.open_max() }
    }

    /// Data index of the first micro-batch that is not over: where a restart goes on.
    pub fn feed_next(&self) -> u64 {
        self.feed_from + self.low
    }

    pub fn samples(&self) -> u64 {
        self.samples
    }

    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Data index 0 of a new incarnation is where the former one stopped.
    pub fn set_incarnation(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
        self.news = true;
    }

    fn id(&self, position: u64) -> MicroBatchId {
        MicroBatchId {
            feeder: self.me,
            incarnation: self.incarnation,
            step: (position / self.per_step) as u32,
            index: (position % self.per_step) as u16,
        }
    }

    fn position(&self, id: &MicroBatchId) -> Option<u64> {
        (id.feeder == self.me && id.incarnation == self.incarnation && u64::from(id.index) < self.per_step)
            .then(|| u64::from(id.step) * self.per_step + u64::from(id.index))
    }

    pub fn done(&self) -> Done {
        let bits = self.over.keys().next_back().map_or(0, |last| (last - self.low) as usize + 1);
        let mut above = vec![0u8; bits.div_ceil(8)];
        for position in self.over.keys() {
            let bit = (position - self.low) as usize;
            above[bit / 8] |= 1 << (bit % 8);
        }
        Done { low: self.low, above }
    }

    /// Whether another id may be minted.
    fn may_mint(&self) -> bool {
        let near = self.next < self.low + self.reach_max;
        // In lock-step the step is the window: n+1 begins when all of n is over.
        let window = self.lock_step || (self.open.len() as u64) < self.open_max();
        let step = !self.lock_step || self.next / self.per_step <= self.low / self.per_step;
        self.feeding && !self.ended && near && window && step
    }

    /// Asks for records, mints, sends. `run_samples` is what all feeders completed.
    pub fn advance(&mut self, desk: &mut Desk<'_>, run_samples: u64) {
        while self.may_mint() && desk.route.replicas(0).next().is_some() {
            let Some(ready) = self.ready.remove(&self.next) else { break };
            let position = self.next;
            self.next += 1;
            let handoff = Handoff::new(0, false);
            self.open.insert(position, Open { ready, samples: run_samples, minted: desk.now, handoff });
            desk.emit(Event::Minted { id: self.id(position), samples: run_samples });
            self.push(desk, position);
        }
        self.ask_records(desk);
    }

    fn ask_records(&mut self, desk: &mut Desk<'_>) {
        if !self.feeding || self.ended || self.exhausted {
            return;
        }
        for position in self.next..self.next + PREFETCH as u64 {
            let asked = self.asked.values().any(|(p, _)| *p == position);
            if asked || self.ready.contains_key(&position) {
                continue;
            }
            self.next_request += 1;
            self.asked.insert(self.next_request, (position, desk.now));
            desk.out.push(Output::Records { request: self.next_request, index: self.feed_from + position });
        }
    }

    pub fn on_records(&mut self, desk: &mut Desk<'_>, request: u64, tokens: Blob, labels: Blob, starts: Starts) {
        match self.asked.remove(&request) {
            Some((position, _)) if position >= self.next && !self.ready.contains_key(&position) => {
                self.ready.insert(position, Ready { tokens, labels, starts });
            }
            _ => desk.release_all([tokens, labels]),
        }
    }

    /// Routes and sends one id if that is the next thing to do with it.
    fn push(&mut self, desk: &mut Desk<'_>, position: u64) {
        let Some(cargo) = self.cargo(position) else { return };
        let Some(open) = self.open.get_mut(&position) else { return };
        if open.handoff.is_spent() {
            return self.void(desk, position, 0, "given up after 255 attempts");
        }
        open.handoff.choose(desk);
        open.handoff.send(desk, &cargo, open.ready.tokens);
    }

    fn cargo(&self, position: u64) -> Option<Cargo> {
        let Open { ready, samples, .. } = self.open.get(&position)?;
        let close = position % self.per_step == self.per_step - 1;
        let starts = ready.starts.clone();
        let held_out = self.is_held_out(position);
        Some(Cargo { id: self.id(position), samples: *samples, close, starts, held_out, attempt: None })
    }

    fn is_held_out(&self, position: u64) -> bool {
        self.held_out.is(self.feed_from + position)
    }

    pub fn on_delivered(&mut self, desk: &mut Desk<'_>, to: PeerId, about: &About) {
        if let Some(open) = self.position(&about.id).and_then(|p| self.open.get_mut(&p)) {
            open.handoff.on_delivered(desk, to, about);
        }
    }

    pub fn on_accepted(&mut self, desk: &mut Desk<'_>, from: PeerId, accepted: &Accepted) {
        if let Some(open) = self.position(&accepted.id).and_then(|p| self.open.get_mut(&p)) {
            open.handoff.on_accepted(desk, from, accepted);
        }
    }

    pub fn on_declined(&mut self, desk: &mut Desk<'_>, from: PeerId, declined: &Declined) {
        let Some(position) = self.position(&declined.id) else { return };
        if let Some(open) = self.open.get_mut(&position) {
            open.handoff.on_declined(desk, from, &declined.attempt, declined.why);
            self.push(desk, position);
        }
    }

    pub fn on_want_labels(&mut self, desk: &mut Desk<'_>, from: PeerId, id: MicroBatchId) {
        let Some(open) = self.position(&id).and_then(|p| self.open.get(&p)) else { return };
        desk.send(from, Lane::Activation, Frame::Labels(id), Some(open.ready.labels));
    }

    /// Stage 0 says that an id is through. The first complete path is accepted.
    pub fn on_finished(&mut self, desk: &mut Desk<'_>, from: PeerId, returned: Returned) {
        let Some(position) = self.position(&returned.id) else { return };
        let complete = path_is_complete(&returned.path, self.last)
            && returned.path.last().is_some_and(|hop| hop.peer == from)
            && u64::from(returned.tokens) <= self.tokens_each;
        let Some(open) = self.open.get_mut(&position) else { return };
        if !open.handoff.welcome(from) || !complete || !returned.loss.is_finite() || returned.tokens == 0 {
            let why = "an id finished without a complete path".to_string();
            return desk.out.push(Output::Blame { peer: from, severity: Severity::Odd, why });
        }
        open.handoff.on_answered(desk, from);
        self.window.on_back(desk.now.since(open.minted), Duration::from_micros(returned.waited_us));
        let Returned { id, path, tokens, .. } = returned;
        let loss = returned.loss / tokens as f32;
        let smoothed = |before: Option<f32>, part: f32| before.map_or(loss, |before| before + part * (loss - before));
        if self.is_held_out(position) {
            self.held_out_loss = Some(smoothed(self.held_out_loss, 0.25));
            desk.emit(Event::Measured { id, path, loss, tokens });
        } else {
            self.loss = Some(smoothed(self.loss, 0.05));
            self.completed += 1;
            self.tokens += u64::from(tokens);
            self.samples += self.samples_each;
            desk.emit(Event::Completed { id, path, loss, tokens });
        }
        self.end(desk, position);
    }

    /// Somebody, who `serves` the stage or does not, found a value that is not finite.
    pub fn on_void(&mut self, desk: &mut Desk<'_>, from: PeerId, void: &Void, serves: bool) {
        let Some(position) = self.position(&void.id).filter(|position| self.open.contains_key(position)) else {
            return;
        };
        if serves {
            self.void(desk, position, void.stage, "a value is not finite");
        } else {
            let why = "a micro-batch voided by a peer that does not serve the stage".to_string();
            desk.out.push(Output::Blame { peer: from, severity: Severity::Odd, why });
        }
    }

    fn void(&mut self, desk: &mut Desk<'_>, position: u64, stage: Stage, why: &str) {
        self.voided += 1;
        desk.emit(Event::Voided { id: self.id(position), stage, why: why.into() });
        if let Some(open) = self.open.get_mut(&position) {
            open.handoff.abandon(desk);
        }
        self.end(desk, position);
    }

    fn end(&mut self, desk: &mut Desk<'_>, position: u64) {
        let Some(open) = self.open.remove(&position) else { return };
        desk.release_all(open.ready.blobs());
        self.over.insert(position, ());
        while self.over.remove(&self.low).is_some() {
            self.low += 1;
        }
        self.news = true;
    }

    pub fn on_lost(&mut self, desk: &mut Desk<'_>, peer: PeerId, why: &str) -> usize {
        let positions: Vec<u64> = self.open.keys().copied().collect();
        let mut moved = 0;
        for position in positions {
            let Some(open) = self.open.get_mut(&position) else { continue };
            let held = open.handoff.held_by() == Some(peer);
            if !open.handoff.on_lost(desk, peer, why) {
                continue;
            }
            moved += usize::from(held);
            if open.handoff.losses >= LOSSES_MAX {
                self.void(desk, position, 0, "given up after five losses");
            } else {
                self.push(desk, position);
            }
        }
        moved
    }

    pub fn on_tick(&mut self, desk: &mut Desk<'_>) {
        let now = desk.now;
        self.asked.retain(|_, (_, at)| now.since(*at) < RECORDS_AGAIN);
        let positions: Vec<u64> = self.open.keys().copied().collect();
        for position in positions {
            if let Some(open) = self.open.get_mut(&position) {
                open.handoff.on_tick(desk);
            }
            self.push(desk, position);
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.open.values().filter_map(|open| open.handoff.deadline()).min()
    }

    /// A new incarnation: what is open is fed again under new ids.
    pub fn on_fenced(&mut self, desk: &mut Desk<'_>, incarnation: Incarnation) {
        for (_, mut open) in std::mem::take(&mut self.open) {
            open.handoff.abandon(desk);
            desk.release_all(open.ready.blobs());
        }
        for (_, ready) in std::mem::take(&mut self.ready) {
            desk.release_all(ready.blobs());
        }
        self.feed_from = self.feed_next();
        self.incarnation = incarnation;
        self.asked.clear();
        self.over.clear();
        (self.next, self.low) = (0, 0);
        self.news = true;
    }

    pub fn replicas_in_use(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.open.values().filter_map(|open| open.handoff.to())
    }
}

fn path_is_complete(path: &[Hop], last: Stage) -> bool {
    path.len() == usize::from(last) + 1 && path.iter().zip((0..=last).rev()).all(|(hop, stage)| hop.stage == stage)
}

impl Done {
    /// Whether the id at `position` is over.
    pub fn covers(&self, position: u64) -> bool {
        let Some(bit) = position.checked_sub(self.low) else { return true };
        let byte = usize::try_from(bit / 8).ok().and_then(|i| self.above.get(i)).copied().unwrap_or(0);
        byte >> (bit % 8) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_covers_what_is_below_the_mark_and_set_above() {
        let done = Done { low: 10, above: vec![0b101, 0b1] };
        for (position, over) in [(0, true), (9, true), (10, true), (11, false), (12, true), (18, true), (19, false)] {
            assert_eq!(done.covers(position), over, "{position}");
        }
        assert!(!done.covers(u64::MAX));
    }

    #[test]
    fn a_path_names_every_stage_from_the_last() {
        let hop = |stage| Hop { stage, peer: PeerId([1; 32]), incarnation: 1 };
        assert!(path_is_complete(&[hop(2), hop(1), hop(0)], 2));
        assert!(!path_is_complete(&[hop(2), hop(0)], 2));
        assert!(!path_is_complete(&[hop(0), hop(1), hop(2)], 2));
    }
}
