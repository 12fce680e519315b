//! Fleet fidelity: ten thousand to a hundred thousand peers as flows and ticks. In: a [`Setup`]. Out: an
//! [`Outcome`] as protocol fidelity gives it.
//!
//! No frame is sent here. A stage is a pool of replicas, kept as sums; a pipeline completes what the [`law`] of queues gives for
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
mod of;
mod place;
pub mod pool;
mod setup;

use std::time::Duration;

use skein_protocol::{Stage, hash::Digest};

use crate::{
    cost::Use,
    engine::{SECOND, Time},
    outcome::{Came, Ended, Outcome},
};
use books::Books;
use course::{Change, Course, What};
use load::Load;
use pool::{Part, Pool};

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
    Fetches(Stage),
    Serves(Stage),
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
    /// The last stage that it served; counted from 1, and 0 is none.
    last: u16,
    /// What its pool had done, for a replica of rate 1, when it was last settled, and when it began to serve.
    settled: f64,
    began: f64,
    /// When it came, and when it began to serve.
    came: Time,
    serves: Time,
    alive_s: f32,
    serving_s: f32,
    busy_s: f32,
    sending_s: f32,
    /// Millions of bytes.
    sent_mb: f32,
    received_mb: f32,
}

/// A fleet that runs.
pub struct Fleet {
    setup: Setup,
    load: Load,
    course: Course,
    states: Vec<State>,
    pools: Vec<Pool>,
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
            pools,
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
        self.move_if_due();
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
        let standing = self.states[peer as usize].standing;
        match (what, standing) {
            (What::Comes, Standing::Away) => self.on_comes(at, peer),
            (What::Serves, Standing::Fetches(stage)) => self.on_serves(at, peer, stage),
            (What::Leaves, there) if there != Standing::Away => self.on_goes(at, peer, false),
            (What::Dies, there) if there != Standing::Away => self.on_goes(at, peer, true),
            (What::Sits, there) if there != Standing::Away => self.on_owner(at, peer, true),
            (What::Rises, there) if there != Standing::Away => self.on_owner(at, peer, false),
            (What::Runs { permille }, _) => self.on_runs(peer, permille),
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
        let place = self.place_for(peer);
        let state = &mut self.states[peer as usize];
        state.came = at;
        state.joined = state.joined.saturating_add(1);
        state.sat = false;
        match place {
            // It changes nothing, and is counted nowhere but in its own row.
            None => state.standing = Standing::Idle,
            Some(stage) => {
                self.books.came(at, peer, Came::Joined);
                self.fetch(at, peer, stage);
            }
        }
    }

    fn fetch(&mut self, at: Time, peer: u32, stage: Stage) {
        let part = self.part(peer, stage);
        let seconds = self.fetch_seconds(peer, stage);
        self.states[peer as usize].standing = Standing::Fetches(stage);
        self.pools[usize::from(stage)].expect(&part);
        self.course.fetches(at.saturating_add((seconds * SECOND as f64) as Time), peer);
    }

    fn on_serves(&mut self, at: Time, peer: u32, stage: Stage) {
        let part = self.part(peer, stage);
        let region = self.setup.peers[peer as usize].region;
        let pool = &mut self.pools[usize::from(stage)];
        pool.expect_no_more(&part);
        let is_copy = pool.serving > 0;
        pool.add(&part, region);
        self.books.claims(part.claim());
        let state = &mut self.states[peer as usize];
        state.standing = Standing::Serves(stage);
        (state.settled, state.began) = (pool.done_at_rate_1, pool.done_at_rate_1);
        (state.serves, state.last) = (at, stage + 1);
        if is_copy {
            self.books.fetched(self.load.stages[usize::from(stage)].state);
        }
    }

    fn on_goes(&mut self, at: Time, peer: u32, dies: bool) {
        self.course.went(at, peer);
        let standing = self.states[peer as usize].standing;
        match standing {
            Standing::Serves(stage) => self.stop_serving(at, peer, stage, dies),
            Standing::Fetches(stage) => {
                let part = self.part(peer, stage);
                self.pools[usize::from(stage)].expect_no_more(&part);
            }
            Standing::Away | Standing::Idle => {}
        }
        if standing != Standing::Idle {
            self.books.came(at, peer, if dies { Came::Died } else { Came::Left });
        }
        let state = &mut self.states[peer as usize];
        state.alive_s += seconds(at - state.came) as f32;
        state.died = state.died.saturating_add(u16::from(dies));
        (state.standing, state.sat) = (Standing::Away, false);
    }

    /// What a replica did is settled, and it is taken out of its pool. One that dies takes with it what is not safe.
    fn stop_serving(&mut self, at: Time, peer: u32, stage: Stage, dies: bool) {
        self.settle(peer, stage);
        let part = self.part(peer, stage);
        let at_stage = usize::from(stage);
        let state = &mut self.states[peer as usize];
        state.serving_s += seconds(at - state.serves.min(at)) as f32;
        let since_began = part.rate() * (self.pools[at_stage].done_at_rate_1 - state.began);
        if dies {
            self.books.perish(at_stage, self.unsafe_of(since_began));
            self.orphans[at_stage] += part.rate() * self.flow.at_rate_1(at_stage);
        }
        self.pools[at_stage].take(&part, self.setup.peers[peer as usize].region);
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
        self.change_speed(peer, |state| state.sat = sits);
    }

    fn on_runs(&mut self, peer: u32, permille: u16) {
        self.change_speed(peer, |state| state.slow = WHOLE.saturating_sub(permille));
    }

    /// A peer goes on with another speed.
    fn change_speed(&mut self, peer: u32, change: impl FnOnce(&mut State)) {
        let standing = self.states[peer as usize].standing;
        let region = self.setup.peers[peer as usize].region;
        let before = match standing {
            Standing::Serves(stage) | Standing::Fetches(stage) => Some((stage, self.part(peer, stage))),
            Standing::Away | Standing::Idle => None,
        };
        if let Standing::Serves(stage) = standing {
            self.settle(peer, stage);
        }
        change(&mut self.states[peer as usize]);
        let Some((stage, before)) = before else { return };
        let after = self.part(peer, stage);
        let pool = &mut self.pools[usize::from(stage)];
        if matches!(standing, Standing::Serves(_)) {
            pool.take(&before, region);
            pool.add(&after, region);
        } else {
            pool.expect_no_more(&before);
            pool.expect(&after);
        }
    }

    /// What a peer adds to the pool of a stage as it stands now.
    fn part(&self, peer: u32, stage: Stage) -> Part {
        let state = &self.states[peer as usize];
        let owner = if state.sat { self.setup.owner.leaves } else { 1.0 };
        let speed = owner * f64::from(WHOLE - state.slow.min(WHOLE)) / f64::from(WHOLE);
        Part::of(&self.load, stage, &self.setup.peers[peer as usize], speed)
    }

    /// Books what a replica did since it was last settled into its own row.
    fn settle(&mut self, peer: u32, stage: Stage) {
        let part = self.part(peer, stage);
        let load = &self.load.stages[usize::from(stage)];
        let done = self.pools[usize::from(stage)].done_at_rate_1;
        let state = &mut self.states[peer as usize];
        // At full rate for so many seconds.
        let full = done - state.settled;
        let micro_batches = part.rate() * full;
        let averaging = self.load.rounds * load.round;
        state.settled = done;
        state.busy_s += (part.computes() * full) as f32;
        state.sending_s += (part.sends() * full) as f32;
        state.sent_mb += (micro_batches * (load.sends[0] + load.sends[1] + averaging) / 1e6) as f32;
        state.received_mb += (micro_batches * (load.receives[0] + load.receives[1] + averaging) / 1e6) as f32;
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
