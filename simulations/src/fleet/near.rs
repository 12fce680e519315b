//! Among whom a peer chooses, and what of its choice is itself: that goes on to the next stage over no link.
//!
//! A peer chooses the next replica among those whom it works with (`pipeline::peer`, `pipeline::flow::route`) and itself. Among
//! few those are everybody; in a crowd they are a circle.

use skein_pipeline::peer::circle::{ALL, NEAR};
use skein_protocol::Stage;

use super::{Fleet, Stages, calibrated, load::Stays};

impl Fleet {
    /// Part of what a replica hands on, and back, that stays at a peer that serves these stages.
    pub(super) fn stays_of(&self, serves: Stages, stage: Stage) -> Stays {
        let at = usize::from(stage);
        let before = at.checked_sub(1).filter(|before| serves.has(*before as Stage));
        Stays {
            on: if serves.has_after(stage) { self.stays[at] } else { 0.0 },
            back: before.map_or(0.0, |before| self.stays[before]),
        }
    }

    /// Part of all that goes on to the next stage that stays at its peer.
    pub(super) fn stays_in_all(&self, stage: usize) -> f64 {
        self.pools[stage].onward() * self.stays[stage]
    }

    /// Somebody may have come or gone: each chooses among others. Everybody's part is another then, and few are there.
    pub(super) fn keep_near(&mut self) {
        let stays: Vec<f64> = (0..self.pools.len()).map(|stage| self.stays_now(stage)).collect();
        if stays == self.stays {
            return;
        }
        let several: Vec<u32> =
            (0..self.states.len() as u32).filter(|peer| self.states[*peer as usize].serves.len() > 1).collect();
        several.iter().for_each(|peer| self.leave_pools(*peer));
        self.stays = stays;
        several.iter().for_each(|peer| self.join_pools(*peer));
    }

    fn stays_now(&self, stage: usize) -> f64 {
        let others = self.pools.get(stage + 1).map_or(0, |next| next.serving).saturating_sub(1);
        if stage + 1 >= self.pools.len() {
            return 0.0;
        }
        let others = if self.is_crowd() { others.min(NEAR as u32) } else { others };
        calibrated::NEARER / (calibrated::NEARER + f64::from(others))
    }

    /// Whether there are more than each of them knows. Feeders are known, too.
    fn is_crowd(&self) -> bool {
        (self.here + self.setup.feeders.count).saturating_sub(1) as usize > ALL
    }

    /// Pairs of somebody who sends to a stage and a replica of it that is among those it chooses from. A feeder knows all.
    pub(super) fn ways(&self, stage: usize) -> f64 {
        let replicas = self.pools[stage].serving;
        let near = if self.is_crowd() { replicas.min(NEAR as u32) } else { replicas };
        match stage.checked_sub(1) {
            None => f64::from(self.setup.feeders.count) * f64::from(replicas),
            Some(before) => f64::from(self.pools[before].serving) * f64::from(near),
        }
    }

    /// By how much what the replicas have together among which a sender chooses differs from one sender to the next, over the
    /// mean: in a crowd each knows so few.
    pub(super) fn uneven(&self, stage: usize) -> f64 {
        if self.is_crowd() { self.pools[stage].uneven() / (NEAR as f64).sqrt() } else { 0.0 }
    }
}
