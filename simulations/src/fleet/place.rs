//! Where a peer serves, what it takes to begin, and when it moves: the planner's rules (`pipeline::plan`), for whole pools.

use std::collections::VecDeque;

use skein_pipeline::{
    peer::{EMPTY_FOR, SLOW_FOR},
    plan::{
        assign::HYSTERESIS,
        moves::{GAIN, MOVES_MAX},
    },
};
use skein_protocol::{Stage, hash::mix};

use super::{Fleet, Stages, Standing, State, calibrated, load, pool::Pool};
use crate::engine::{SECOND, Time};

/// So long after the last move, whoever could move to an empty stage has done so, and fetched what is left of it.
pub(super) const MOVES_WITHIN_S: f64 = 180.0;

impl Fleet {
    /// The stages that a newcomer takes, of those that fit its memory together: all without anybody, and of the others those
    /// with the least throughput, counting those who are about to serve, until its share of the work is full. Who came a moment
    /// before is not seen, and spreads over the stages all the same. Equals are told apart by taste.
    pub(super) fn place_for(&self, peer: u32) -> Stages {
        let draw = self.setup.peers[peer as usize];
        if let Some(told) = draw.place {
            let fits = usize::from(told) < self.pools.len() && self.load.fits(told, Stages::NONE, &draw);
            return if fits { Stages::one(told) } else { Stages::NONE };
        }
        let unseen = &self.unseen;
        let others = self.here.saturating_sub(unseen.came.len() as u32);
        // As strong as the mean of the others: nobody knows better yet.
        let share = (self.pools.len() as u32).div_ceil(others + 1);
        let mut stages = Stages::NONE;
        loop {
            let open = |stage: &Stage| !stages.has(*stage) && self.load.fits(*stage, stages, &draw);
            let is_empty =
                |stage: &Stage| self.pools[usize::from(*stage)].expected() <= unseen.by_stage[usize::from(*stage)];
            let weakest = |of: &dyn Fn(&Stage) -> bool| self.weakest(peer, |stage| open(stage) && of(stage));
            let more = stages.len() < share.max(1);
            let next = weakest(&is_empty).or_else(|| weakest(&|_| true).filter(|_| more));
            let Some(stage) = next else { return stages };
            stages = stages.with(stage);
        }
    }

    fn weakest(&self, peer: u32, of: impl Fn(&Stage) -> bool) -> Option<Stage> {
        let need = |stage: &Stage| self.pools[usize::from(*stage)].planned();
        (0..self.pools.len() as Stage).filter(of).min_by(|a, b| {
            let by_need = need(a).total_cmp(&need(b));
            by_need.then_with(|| taste(self.setup.seed, peer, *a).cmp(&taste(self.setup.seed, peer, *b)))
        })
    }

    /// Seconds from coming, or wanting more, to serving: what its downlink takes for all, and donors for the slowest.
    pub(super) fn fetch_seconds(&self, peer: u32, stages: Stages) -> f64 {
        let down = f64::from(self.setup.peers[peer as usize].down).max(1.0);
        let (mut bytes, mut donor_s, mut work_s) = (0.0, 0.0f64, 0.0);
        for stage in stages.iter() {
            work_s += self.load.state_work(stage);
            if !self.is_fetched(stage) {
                continue;
            }
            let (pool, state) = (&self.pools[usize::from(stage)], self.load.stages[usize::from(stage)].state);
            bytes += state;
            if pool.serving > 0 {
                donor_s = donor_s.max(state / self.fetch_rate(usize::from(stage)).max(1.0));
            }
        }
        calibrated::SETTLES_S + donor_s.max(bytes / down) + work_s
    }

    /// Whether weights of a stage come from somebody: at the beginning they come from the seed, and later from who serves or kept
    /// them.
    pub(super) fn is_fetched(&self, stage: Stage) -> bool {
        self.pools[usize::from(stage)].serving > 0 || self.books.has_begun()
    }

    /// Bytes a second that a replica of the stage gives to one who fetches: what training leaves of its uplink, shared by those
    /// who fetch now.
    pub(super) fn fetch_rate(&self, stage: usize) -> f64 {
        let pool = &self.pools[stage];
        if pool.serving == 0 {
            return 0.0;
        }
        let serving = f64::from(pool.serving);
        let sending = self.flow.stages[stage].used * pool.sum.uplink() / serving;
        let free = (1.0 - sending).max(calibrated::FETCH_SHARE);
        pool.sum.up() / serving * free / (f64::from(pool.fetching) / serving).max(1.0)
    }

    /// A stage without anybody is taken by a peer that has room, and by one whose share is larger than what it serves a stage
    /// that is weak.
    pub(super) fn take_more(&mut self) {
        for _ in 0..MOVES_MAX {
            let Some((peer, stage)) = self.next_more() else { return };
            self.fetch(self.now, peer, Stages::one(stage));
        }
    }

    fn next_more(&self) -> Option<(u32, Stage)> {
        let planned = |stage: &Stage| self.pools[usize::from(*stage)].planned();
        let best = self.pools.iter().map(Pool::planned).fold(0.0, f64::max);
        let more = self.share(self.strongest) > 1;
        let mut stages: Vec<Stage> = (0..self.pools.len() as Stage).collect();
        stages.sort_by(|a, b| planned(a).total_cmp(&planned(b)));
        // Nobody may have room for the weakest one.
        stages.into_iter().find_map(|to| {
            let is_empty = self.pools[usize::from(to)].expected() == 0;
            let is_weak = planned(&to) < HYSTERESIS * best;
            if is_empty || is_weak && more { self.who_takes(to, is_empty).map(|peer| (peer, to)) } else { None }
        })
    }

    /// A peer that has room for one more stage, and for one that is merely weak a share that is not full.
    fn who_takes(&self, to: Stage, is_empty: bool) -> Option<u32> {
        let may = |peer: &u32| {
            let (serves, draw) = (self.states[*peer as usize].serves, &self.setup.peers[*peer as usize]);
            let is_full = || serves.len() >= self.share(load::power(draw, self.speed(*peer)));
            self.is_free(*peer) && !serves.has(to) && self.load.fits(to, serves, draw) && (is_empty || !is_full())
        };
        let who = (0..self.states.len() as u32).filter(may);
        who.min_by_key(|peer| taste(self.setup.seed, *peer, to))
    }

    /// Stages that a peer of so much power is to serve.
    fn share(&self, power: u64) -> u32 {
        (self.pools.len() as u64 * power).div_ceil(self.power.max(1)) as u32
    }

    /// Whether it serves, fetches nothing, and was not told where.
    fn is_free(&self, peer: u32) -> bool {
        let State { standing, serves, fetches, .. } = &self.states[peer as usize];
        let untold = self.setup.peers[peer as usize].place.is_none();
        *standing == Standing::Here && !serves.is_empty() && fetches.is_empty() && untold
    }

    /// Replicas move to the weakest stages, one after the other as long as each gains enough, once the last moves are so long ago
    /// that all see what came of them.
    pub(super) fn move_if_due(&mut self) {
        let Some((mut peer, mut from, mut to)) = self.next_move() else { return };
        let patience = if self.pools[usize::from(to)].expected() == 0 { EMPTY_FOR } else { SLOW_FOR };
        if self.now < self.moved_at + patience.as_nanos() as Time {
            return;
        }
        for left in (0..MOVES_MAX).rev() {
            self.moved_at = self.now;
            self.stop_serving(self.now, peer, Stages::one(from), false);
            self.books.moved();
            self.fetch(self.now, peer, Stages::one(to));
            match self.next_move().filter(|_| left > 0) {
                Some(next) => (peer, from, to) = next,
                None => return,
            }
        }
    }

    /// The replica that helps the weakest stage most, the stage that it leaves and this one.
    fn next_move(&self) -> Option<(u32, Stage, Stage)> {
        let planned = |stage: Stage| self.pools[usize::from(stage)].planned();
        let to = (0..self.pools.len() as Stage).min_by(|a, b| planned(*a).total_cmp(&planned(*b)))?;
        let weakest = planned(to);
        // Who could help: only looked for where one replica's help can be enough.
        if weakest >= GAIN * (weakest + self.books.fastest_claim()) {
            return None;
        }
        let best = (0..self.states.len() as u32)
            .filter_map(|peer| self.would_move(peer, to, weakest))
            .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        best.map(|(_, peer, from)| (peer, from, to))
    }

    /// The weaker of the two stages after the move, if it is enough better than the weakest is now.
    fn would_move(&self, peer: u32, to: Stage, weakest: f64) -> Option<(f64, u32, Stage)> {
        let (serves, draw) = (self.states[peer as usize].serves, &self.setup.peers[peer as usize]);
        if !self.is_free(peer) || serves.has(to) {
            return None;
        }
        let claim = |stage: Stage| self.claim(peer, stage).number();
        let may = |from: &Stage| {
            self.pools[usize::from(*from)].serving > 1 && self.load.fits(to, serves.without(*from), draw)
        };
        let after = |from: Stage| {
            let after = (self.pools[usize::from(from)].planned() - claim(from)).min(weakest + claim(to));
            (weakest < GAIN * after).then_some((after, peer, from))
        };
        serves.iter().filter(may).filter_map(after).max_by(|a, b| a.0.total_cmp(&b.0).then(b.2.cmp(&a.2)))
    }
}

/// Who came so lately that the next to come does not know of it.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    /// When, and what it is about to serve.
    came: VecDeque<(Time, Stages)>,
    /// How many are about to serve each.
    by_stage: Vec<u32>,
}

impl Unseen {
    pub fn new(stages: usize) -> Self {
        Unseen { by_stage: vec![0; stages], ..Unseen::default() }
    }

    pub fn push(&mut self, at: Time, stages: Stages) {
        self.came.push_back((at, stages));
        stages.iter().for_each(|stage| self.by_stage[usize::from(stage)] += 1);
    }

    /// By now those who came earlier are known.
    pub(super) fn forget(&mut self, now: Time) {
        let known = |came: Time| came + (calibrated::UNSEEN_S * SECOND as f64) as Time <= now;
        while let Some((_, stages)) = self.came.front().copied().filter(|(came, _)| known(*came)) {
            self.came.pop_front();
            stages.iter().for_each(|stage| self.by_stage[usize::from(stage)] -= 1);
        }
    }
}

/// Among stages that need help alike peers differ in where they begin.
fn taste(seed: u64, peer: u32, stage: Stage) -> u64 {
    mix(seed ^ (u64::from(peer) << 20) ^ u64::from(stage))
}
