//! Where a peer serves, and what it takes to begin: the planner's rules (`pipeline::plan::assign`), for whole pools.

use skein_protocol::{Stage, hash::mix};

use super::{Fleet, Standing, calibrated};
use crate::engine::{SECOND, Time};

/// A stage must be weaker than this part of what it becomes before somebody moves to it; as the planner has it.
const HYSTERESIS: f64 = 0.8;
/// A stage must be in need for so long before somebody moves to it, and between two moves there is so much.
const MOVE_EVERY: Time = 30 * SECOND;
/// Whoever could move to an empty stage has done so by then, and fetched what is left of it.
pub(super) const MOVES_WITHIN_S: f64 = 180.0;

impl Fleet {
    /// The stage that a newcomer takes: the one with the least throughput, counting those who are about to serve, among those
    /// that fit its memory. Equals are told apart by taste.
    pub(super) fn place_for(&self, peer: u32) -> Option<Stage> {
        let draw = &self.setup.peers[peer as usize];
        if let Some(told) = draw.place {
            return (usize::from(told) < self.pools.len() && self.load.fits(told, draw)).then_some(told);
        }
        let need = |stage: &Stage| self.pools[usize::from(*stage)].planned();
        (0..self.pools.len() as Stage).filter(|stage| self.load.fits(*stage, draw)).min_by(|a, b| {
            let by_need = need(a).total_cmp(&need(b));
            by_need.then_with(|| taste(self.setup.seed, peer, *a).cmp(&taste(self.setup.seed, peer, *b)))
        })
    }

    /// Seconds from coming to serving.
    pub(super) fn fetch_seconds(&self, peer: u32, stage: Stage) -> f64 {
        let load = &self.load.stages[usize::from(stage)];
        let down = f64::from(self.setup.peers[peer as usize].down).max(1.0);
        let rate = match self.pools[usize::from(stage)].serving {
            // At the beginning weights come from the seed, and later from whoever kept them.
            0 if !self.books.has_begun() => f64::INFINITY,
            0 => down,
            _ => self.fetch_rate(usize::from(stage)).min(down),
        };
        calibrated::SETTLES_S + load.state / rate.max(1.0) + self.load.state_work(stage)
    }

    /// Bytes a second that a replica of the stage gives to one who fetches: what training leaves of its uplink, shared by those
    /// who fetch now.
    pub(super) fn fetch_rate(&self, stage: usize) -> f64 {
        let pool = &self.pools[stage];
        if pool.serving == 0 {
            return 0.0;
        }
        let serving = f64::from(pool.serving);
        let sending = self.flow.stages[stage].used * pool.sum.sends() / serving;
        let free = (1.0 - sending).max(calibrated::FETCH_SHARE);
        pool.sum.up() / serving * free / (f64::from(pool.fetching) / serving).max(1.0)
    }

    /// One replica moves to the weakest stage if that gains by more than the hysteresis; at most one a period.
    pub(super) fn move_if_due(&mut self) {
        if self.now < self.moved_at + MOVE_EVERY {
            return;
        }
        let stages = 0..self.pools.len() as Stage;
        let planned = |stage: Stage| self.pools[usize::from(stage)].planned();
        let Some(to) = stages.clone().min_by(|a, b| planned(*a).total_cmp(&planned(*b))) else { return };
        let weakest = planned(to);
        // Who could help: only looked for where one replica's help can be enough.
        let best = (0..self.states.len() as u32)
            .filter(|_| weakest < HYSTERESIS * (weakest + self.books.fastest_claim()))
            .filter_map(|peer| self.would_move(peer, to, weakest))
            .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let Some((_, peer, from)) = best else { return };
        self.moved_at = self.now;
        self.stop_serving(self.now, peer, from, false);
        self.books.moved();
        self.fetch(self.now, peer, to);
    }

    /// The weaker of the two stages after the move, if it is enough better than the weakest is now.
    fn would_move(&self, peer: u32, to: Stage, weakest: f64) -> Option<(f64, u32, Stage)> {
        let Standing::Serves(from) = self.states[peer as usize].standing else { return None };
        let draw = &self.setup.peers[peer as usize];
        let pool = &self.pools[usize::from(from)];
        if from == to || pool.serving < 2 || draw.place.is_some() || !self.load.fits(to, draw) {
            return None;
        }
        let after = (pool.planned() - self.part(peer, from).claim()).min(weakest + self.part(peer, to).claim());
        (weakest < HYSTERESIS * after).then_some((after, peer, from))
    }
}

/// Among stages that need help alike peers differ in where they begin.
fn taste(seed: u64, peer: u32, stage: Stage) -> u64 {
    mix(seed ^ (u64::from(peer) << 20) ^ u64::from(stage))
}
