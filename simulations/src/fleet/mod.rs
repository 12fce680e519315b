//! Fleet fidelity: ten thousand to a hundred thousand peers as flows and ticks. In: a [`Setup`]. Out: an
//! [`Outcome`] as protocol fidelity gives it.
//!
//! No frame is sent here. A stage is a pool of replicas, kept as sums; a peer has a replica of each stage that it serves, and its
//! device, its links and its memory are there for all of them. A pipeline completes what the [`law`] of queues gives for
//! its pools, the delays between them and the feeders' window; who comes and goes is an event, and everything else is
//! arithmetic once a tick. What the product's peers decide is followed as a rule (where a newcomer serves, what a death costs),
//! and where a rule has a number that only a measurement can give, it stands in [`calibrated`]. It does not know single
//! micro-batches: their counts are flows that are rounded at the end.
//!
//! Equal seeds give equal digests on every platform: sums of pools are integers, and everything else is computed in one order.

mod books;
pub mod calibrated;
pub mod course;
mod flow;
pub mod law;
pub mod load;
mod near;
mod of;
mod place;
pub mod pool;
mod setup;
mod stages;

use std::{collections::BTreeMap, time::Duration};

use skein_protocol::{Stage, hash::Digest};

use crate::{
    cost::Use,
    engine::{SECOND, Time},
    outcome::{Came, Ended, Outcome},
};
use books::Books;
use course::{Change, Course, What};
use load::{Load, Takes};
use place::Unseen;
use pool::{Claim, Part, Pool, Whole};
use stages::Stages;

pub use setup::{Feeders, Names, Owner, Peer, Setup};

/// Thousandths.
const WHOLE: u16 = 1000;

/// Where a peer stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Away,
    /// It is there, and no stage fits it.
    Idle,
    /// It serves something, or fetches it.
    Here,
}

/// What is kept of one peer while it runs, beside its draw.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    standing: Standing,
    /// Its owner sits at it.
    sat: bool,
    /// Thousandths of its speed that it lacks.
    slow: u16,
    joined: u16,
    died: u16,
    /// The last stage that it began to serve; counted from 1, and 0 is none.
    last: u16,
    serves: Stages,
    fetches: Stages,
    /// What the pool of its stage had done, for a replica of rate 1, when it was last settled; of several stages the fleet has it.
    settled: f64,
    /// When it came, and when it began to serve.
    came: Time,
    since: Time,
    /// Micro-batches at each of its stages since then.
    done: f32,
    alive_s: f32,
    serving_s: f32,
    busy_s: f32,
    sending_s: f32,
    /// Millions of bytes.
    sent_mb: f32,
    received_mb: f32,
}

impl State {
    fn is_serving(&self) -> bool {
        !self.serves.is_empty()
    }
}

/// A fleet that runs.
pub struct Fleet {
    setup: Setup,
    load: Load,
    course: Course,
    states: Vec<State>,
    /// Of peers of several stages: what their pools had done when they were last settled, in the order of the stages.
    settled: BTreeMap<u32, Vec<f64>>,
    /// What a peer had done of each stage when it began to serve one more, for that one.
    began: BTreeMap<(u32, Stage), f32>,
    pools: Vec<Pool>,
    /// Peers that serve or fetch something, and those of them that serve.
    here: u32,
    serving: u32,
    /// Millions of operations a second of all of them, and of the strongest peer, whether it is there or not.
    power: u64,
    strongest: u64,
    unseen: Unseen,
    /// By stage: part of what goes on to the next one that stays at its peer, where that serves it too.
    stays: Vec<f64>,
    now: Time,
    tick: Time,
    until: Time,
    flow: flow::Flow,
    /// Micro-batches of each stage, since the last tick, that died replicas had under way.
    orphans: Vec<f64>,
    moved_at: Time,
    books: Books,
    hasher: blake3::Hasher,
    events: u64,
    stuck: Option<Ended>,
}

/// What came of a fleet, and what a cost needs beside it.
pub struct Run {
    pub outcome: Outcome,
    /// By device, in the order of the setup's names; the power is to be filled in.
    pub uses: Vec<Use>,
}

impl Fleet {
    pub fn new(mut setup: Setup) -> Self {
        let load = Load::of(&setup.manifest, setup.memory_window);
        let stages = load.stages.len();
        let given = std::mem::take(&mut setup.changes);
        let course = Course::new(setup.seed, setup.peers.len(), setup.life, given);
        let pools = vec![Pool::new(setup.between_us.len()); stages];
        let (tick, until) = (setup.tick().as_nanos() as Time, setup.duration.as_nanos() as Time);
        Fleet {
            course,
            states: vec![State::default(); setup.peers.len()],
            settled: BTreeMap::new(),
            began: BTreeMap::new(),
            pools,
            here: 0,
            serving: 0,
            power: 0,
            strongest: setup.peers.iter().map(|peer| load::power(peer, 1.0)).max().unwrap_or(0),
            unseen: Unseen::new(stages),
            stays: vec![0.0; stages],
            now: 0,
            tick,
            until,
            flow: flow::Flow::still(stages),
            orphans: vec![0.0; stages],
            moved_at: 0,
            books: Books::new(stages, until, tick, setup.rows_max),
            hasher: blake3::Hasher::new_derive_key("skein fleet history 1"),
            events: 0,
            stuck: None,
            load,
            setup,
        }
    }

    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// Peers times ticks so far, as if each were looked at in each.
    pub fn peer_updates(&self) -> u64 {
        self.setup.peers.len() as u64 * (self.now / self.tick.max(1))
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    /// Tokens, and peers that are there.
    pub fn so_far(&self) -> (u64, u32) {
        self.books.so_far()
    }

    /// Of everything that happened, up to the last tick.
    pub fn digest(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }

    /// Bytes that are held for the peers: draws, states, and what comes next for each.
    pub fn bytes(&self) -> usize {
        self.setup.peers.capacity() * size_of::<Peer>()
            + self.states.capacity() * size_of::<State>()
            + self
                .settled
                .values()
                .map(|of| of.capacity() * size_of::<f64>() + size_of::<(u32, Vec<f64>)>())
                .sum::<usize>()
            + self.began.len() * size_of::<((u32, Stage), f32)>()
            + self.course.bytes()
            + self.books.bytes()
    }

    /// One tick: what was to happen by now happens, then time passes. False when it is over.
    pub fn step(&mut self) -> bool {
        if self.now >= self.until || self.stuck.is_some() {
            return false;
        }
        while let Some(change) = self.course.next(self.now) {
            self.on_change(change);
        }
        self.take_more();
        self.move_if_due();
        self.keep_near();
        let span = self.tick.min(self.until - self.now);
        self.flow = self.flow_for(span);
        self.mend();
        self.pass(span);
        self.stuck = self.is_stuck();
        self.sign();
        true
    }

    /// Runs to the end.
    pub fn run(mut self) -> Run {
        while self.step() {}
        self.finish()
    }

    fn on_change(&mut self, change: Change) {
        let Change { at, peer, what } = change;
        let State { standing, fetches, .. } = self.states[peer as usize];
        match (what, standing) {
            (What::Comes, Standing::Away) => self.on_comes(at, peer),
            (What::Serves, Standing::Here) if !fetches.is_empty() => self.on_serves(at, peer),
            (What::Leaves, there) if there != Standing::Away => self.on_goes(at, peer, false),
            (What::Dies, there) if there != Standing::Away => self.on_goes(at, peer, true),
            (What::Sits, there) if there != Standing::Away => self.on_owner(at, peer, true),
            (What::Rises, there) if there != Standing::Away => self.on_owner(at, peer, false),
            (What::Runs { permille }, _) => {
                self.change(peer, |state| state.slow = WHOLE.saturating_sub(permille));
            }
            (What::Comes | What::Serves | What::Leaves | What::Dies | What::Sits | What::Rises, _) => return,
        }
        self.events += 1;
        let kind = match what {
            What::Comes => 0,
            What::Serves => 1,
            What::Leaves => 2,
            What::Dies => 3,
            What::Sits => 4,
            What::Rises => 5,
            What::Runs { permille } => 8 + u32::from(permille),
        };
        self.hasher.update(&at.to_le_bytes());
        self.hasher.update(&peer.to_le_bytes());
        self.hasher.update(&kind.to_le_bytes());
    }

    fn on_comes(&mut self, at: Time, peer: u32) {
        self.course.came(at, peer);
        self.unseen.forget(at);
        let stages = self.place_for(peer);
        let state = &mut self.states[peer as usize];
        state.came = at;
        state.joined = state.joined.saturating_add(1);
        state.sat = false;
        if stages.is_empty() {
            // It changes nothing, and is counted nowhere but in its own row.
            state.standing = Standing::Idle;
            return;
        }
        state.standing = Standing::Here;
        self.here += 1;
        self.unseen.push(at, stages);
        self.books.came(at, peer, Came::Joined);
        self.fetch(at, peer, stages);
    }

    fn fetch(&mut self, at: Time, peer: u32, stages: Stages) {
        let seconds = self.fetch_seconds(peer, stages);
        for stage in stages.iter().filter(|stage| self.is_fetched(*stage)).map(usize::from).collect::<Vec<_>>() {
            self.books.fetched(self.load.stages[stage].state);
        }
        self.change(peer, |state| state.fetches = stages);
        self.course.fetches(at.saturating_add((seconds * SECOND as f64) as Time), peer);
    }

    fn on_serves(&mut self, at: Time, peer: u32) {
        let before = self.states[peer as usize];
        let fetched = before.fetches;
        self.change(peer, |state| {
            if !state.is_serving() {
                (state.since, state.done) = (at, 0.0);
            }
            (state.serves, state.fetches) = (state.serves.and(fetched), Stages::NONE);
            state.last = fetched.iter().last().map_or(0, |stage| stage + 1);
        });
        if before.is_serving() {
            let done = self.states[peer as usize].done;
            self.began.extend(fetched.iter().map(|stage| ((peer, stage), done)));
        }
        for stage in fetched.iter() {
            self.books.claims(self.claim(peer, stage).number());
        }
    }

    fn on_goes(&mut self, at: Time, peer: u32, dies: bool) {
        self.course.went(at, peer);
        let State { standing, serves, .. } = self.states[peer as usize];
        if standing == Standing::Here {
            self.stop_serving(at, peer, serves, dies);
            self.change(peer, |state| state.fetches = Stages::NONE);
            self.here -= 1;
            self.books.came(at, peer, if dies { Came::Died } else { Came::Left });
        }
        let state = &mut self.states[peer as usize];
        state.alive_s += seconds(at - state.came) as f32;
        state.died = state.died.saturating_add(u16::from(dies));
        (state.standing, state.sat) = (Standing::Away, false);
    }

    /// What a peer did is settled, and its replicas of some stages are taken out of their pools. One that dies takes with it what
    /// is not safe.
    fn stop_serving(&mut self, at: Time, peer: u32, stages: Stages, dies: bool) {
        self.settle(peer);
        let state = self.states[peer as usize];
        for stage in stages.iter().filter(|_| dies) {
            let at_stage = usize::from(stage);
            let before = self.began.get(&(peer, stage)).copied().unwrap_or_default();
            self.books.perish(at_stage, self.unsafe_of(f64::from(state.done - before)));
            self.orphans[at_stage] +=
                self.flow.at_rate_1(at_stage) * pool::rate(self.takes(peer, stage), state.serves.len());
        }
        for stage in stages.iter() {
            self.began.remove(&(peer, stage));
        }
        self.change(peer, |state| {
            let before = state.is_serving();
            state.serves = stages.iter().fold(state.serves, Stages::without);
            if before && !state.is_serving() {
                state.serving_s += seconds(at - state.since.min(at)) as f32;
            }
        });
    }

    /// Micro-batches of a replica that are lost if it dies now: those since the last round with a partner, or since it was copied.
    fn unsafe_of(&self, since_began: f64) -> f64 {
        let period = match self.load.every {
            Some(every) => calibrated::AGE_OF_A_ROUND * every * self.load.per_step,
            None => f64::INFINITY,
        };
        since_began.min(period + self.load.per_step / 2.0)
    }

    fn on_owner(&mut self, at: Time, peer: u32, sits: bool) {
        if sits {
            self.course.sat(at, peer)
        } else {
            self.course.rose(at, peer)
        }
        self.change(peer, |state| state.sat = sits);
    }

    /// A peer goes on with another speed, or other stages.
    fn change(&mut self, peer: u32, change: impl FnOnce(&mut State)) {
        self.leave_pools(peer);
        change(&mut self.states[peer as usize]);
        self.join_pools(peer);
    }

    fn leave_pools(&mut self, peer: u32) {
        self.settle(peer);
        let (State { serves, fetches, .. }, region) = (self.states[peer as usize], self.region(peer));
        self.serving -= u32::from(!serves.is_empty());
        self.power -= self.power_of(peer);
        let whole = self.whole(peer);
        for stage in serves.iter() {
            let (part, claim) = (self.part(peer, stage, &whole), self.claim(peer, stage));
            self.pools[usize::from(stage)].take(&part, claim, region);
        }
        for stage in fetches.iter() {
            let claim = self.claim(peer, stage);
            self.pools[usize::from(stage)].expect_no_more(claim);
        }
    }

    fn join_pools(&mut self, peer: u32) {
        let (State { serves, fetches, .. }, region) = (self.states[peer as usize], self.region(peer));
        self.serving += u32::from(!serves.is_empty());
        self.power += self.power_of(peer);
        let whole = self.whole(peer);
        for stage in serves.iter() {
            let (part, claim) = (self.part(peer, stage, &whole), self.claim(peer, stage));
            self.pools[usize::from(stage)].add(&part, claim, region);
        }
        for stage in fetches.iter() {
            let claim = self.claim(peer, stage);
            self.pools[usize::from(stage)].expect(claim);
        }
        self.mark(peer);
    }

    fn region(&self, peer: u32) -> u8 {
        self.setup.peers[peer as usize].region
    }

    /// Part of a peer's speed that it has as it stands now.
    fn speed(&self, peer: u32) -> f64 {
        let state = &self.states[peer as usize];
        let owner = if state.sat { self.setup.owner.leaves } else { 1.0 };
        owner * f64::from(WHOLE - state.slow.min(WHOLE)) / f64::from(WHOLE)
    }

    fn power_of(&self, peer: u32) -> u64 {
        let State { serves, fetches, .. } = self.states[peer as usize];
        if serves.and(fetches).is_empty() { 0 } else { load::power(&self.setup.peers[peer as usize], self.speed(peer)) }
    }

    /// What a micro-batch takes of a peer at one stage that it serves.
    fn takes(&self, peer: u32, stage: Stage) -> Takes {
        let stays = self.stays_of(self.states[peer as usize].serves, stage);
        self.load.takes(stage, &self.setup.peers[peer as usize], self.speed(peer), stays)
    }

    fn whole(&self, peer: u32) -> Whole {
        Whole::of(self.states[peer as usize].serves.iter().map(|stage| self.takes(peer, stage)))
    }

    /// What a peer adds to the pool of a stage that it serves, as it stands now.
    fn part(&self, peer: u32, stage: Stage, whole: &Whole) -> Part {
        let onward = self.states[peer as usize].serves.has_after(stage);
        Part::of(&self.setup.peers[peer as usize], self.takes(peer, stage), whole, onward)
    }

    /// What it claims of a stage that it serves, or fetches, or would serve instead of one of these.
    fn claim(&self, peer: u32, stage: Stage) -> Claim {
        let State { serves, fetches, .. } = self.states[peer as usize];
        Claim::of(self.takes(peer, stage).compute, serves.and(fetches).len())
    }

    /// From here on is counted what a peer does.
    fn mark(&mut self, peer: u32) {
        let serves = self.states[peer as usize].serves;
        let mut done = serves.iter().map(|stage| self.pools[usize::from(stage)].done_at_rate_1);
        if serves.len() > 1 {
            let done: Vec<f64> = done.collect();
            self.settled.insert(peer, done);
        } else {
            self.states[peer as usize].settled = done.next().unwrap_or_default();
            self.settled.remove(&peer);
        }
    }

    /// Books what a peer did since it was last settled into its own row.
    fn settle(&mut self, peer: u32) {
        let State { serves, settled: of_one, .. } = self.states[peer as usize];
        for (nth, stage) in serves.iter().enumerate() {
            let settled = self.settled.get(&peer).map_or(of_one, |settled| settled[nth]);
            self.settle_stage(peer, stage, serves, settled);
        }
        self.mark(peer);
    }

    fn settle_stage(&mut self, peer: u32, stage: Stage, serves: Stages, settled: f64) {
        let (takes, stays) = (self.takes(peer, stage), self.stays_of(serves, stage));
        let load = &self.load.stages[usize::from(stage)];
        // At full rate for so many seconds.
        let full = self.pools[usize::from(stage)].done_at_rate_1 - settled;
        let micro_batches = full * pool::rate(takes, serves.len());
        let averaging = self.load.rounds * load.round;
        let (on, back) = (1.0 - stays.on, 1.0 - stays.back);
        let sent = load.sends[0] * on + load.sends[1] * back + averaging;
        let received = load.receives[0] * back + load.receives[1] * on + averaging;
        let state = &mut self.states[peer as usize];
        state.done += (micro_batches / f64::from(serves.len())) as f32;
        state.busy_s += (micro_batches * takes.compute) as f32;
        state.sending_s += (micro_batches * takes.up) as f32;
        state.sent_mb += (micro_batches * sent / 1e6) as f32;
        state.received_mb += (micro_batches * received / 1e6) as f32;
    }

    /// What died replicas had under way is at work elsewhere.
    fn mend(&mut self) {
        for (stage, orphans) in self.orphans.iter_mut().enumerate() {
            let again = std::mem::take(orphans);
            self.books.again(again, self.load.stages[stage].flops, self.pools[stage].compute());
        }
    }

    /// Nothing is completed, and nobody is to come who could change it.
    fn is_stuck(&self) -> Option<Ended> {
        let since_s = self.books.still_since()?;
        let stage = self.pools.iter().position(|pool| pool.serving == 0);
        // A replica too many elsewhere may still move.
        let may_change_until = since_s.max(seconds(self.moved_at)) + place::MOVES_WITHIN_S;
        let may_change = self.now < self.until && seconds(self.now) < may_change_until;
        if self.now >= self.until || may_change || self.course.brings() {
            return None;
        }
        let why = match stage {
            Some(stage) => format!("nobody serves stage {stage}, and nobody is to come"),
            None => "nothing is completed".into(),
        };
        Some(Ended::Stuck { stage: stage.map(|stage| stage as u16), since_s, why })
    }

    /// The state of a tick goes into the digest.
    fn sign(&mut self) {
        self.hasher.update(&self.now.to_le_bytes());
        self.hasher.update(&self.flow.rate.to_bits().to_le_bytes());
        for pool in &self.pools {
            pool.sign(&mut self.hasher);
        }
        self.books.sign(&mut self.hasher);
    }
}

fn seconds(time: Time) -> f64 {
    time as f64 / SECOND as f64
}
