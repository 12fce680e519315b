//! Where a peer serves, what it takes to begin, and when it moves: the planner's rules (`pipeline::plan`), for whole pools.

use skein_pipeline::{
    peer::{EMPTY_FOR, SLOW_FOR},
    plan::moves::{GAIN, MOVES_MAX},
};
use skein_protocol::{Stage, hash::mix};

use super::{Fleet, Standing, calibrated};
use crate::engine::Time;

/// So long after the last move, whoever could move to an empty stage has done so, and fetched what is left of it.
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

    /// Replicas move to the weakest stages, one after the other as long as each gains enough, once the last moves are so long ago
    /// that all see what came of them.
    pub(super) fn move_if_due(&mut self) {
        let Some((mut peer, mut from, mut to)) = self.next_move() else { return };
        let pool = &self.pools[usize::from(to)];
        let patience = if pool.serving + pool.fetching == 0 { EMPTY_FOR } else { SLOW_FOR };
        if self.now < self.moved_at + patience.as_nanos() as Time {
            return;
        }
        for left in (0..MOVES_MAX).rev() {
            self.moved_at = self.now;
            self.stop_serving(self.now, peer, from, false);
            self.books.moved();
            self.fetch(self.now, peer, to);
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
        let Standing::Serves(from) = self.states[peer as usize].standing else { return None };
        let draw = &self.setup.peers[peer as usize];
        let pool = &self.pools[usize::from(from)];
        if from == to || pool.serving < 2 || draw.place.is_some() || !self.load.fits(to, draw) {
            return None;
        }
        let after = (pool.planned() - self.part(peer, from).claim()).min(weakest + self.part(peer, to).claim());
        (weakest < GAIN * after).then_some((after, peer, from))
    }
}

/// Among stages that need help alike peers differ in where they begin.
fn taste(seed: u64, peer: u32, stage: Stage) -> u64 {
    mix(seed ^ (u64::from(peer) << 20) ^ u64::from(stage))
}
