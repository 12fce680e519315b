//! Ids that ended not long ago: what was on its way when they did is still said of them. In: ends. Out: whether an id is one,
//! and which are so old that nothing more comes.

use std::collections::{BTreeSet, VecDeque};

use skein_protocol::MicroBatchId;

/// Nanoseconds: peers keep what they know of an id no longer than 10 minutes, and clocks are 90 s apart at most.
const KEPT: u64 = 720 * 1_000_000_000;

#[derive(Debug, Default)]
pub struct Over {
    since: VecDeque<(u64, MicroBatchId)>,
    ids: BTreeSet<MicroBatchId>,
}

impl Over {
    pub fn end(&mut self, at: u64, id: MicroBatchId) {
        if self.ids.insert(id) {
            self.since.push_back((at, id));
        }
    }

    pub fn contains(&self, id: &MicroBatchId) -> bool {
        self.ids.contains(id)
    }

    /// The next id that is to be forgotten by now.
    pub fn forget(&mut self, now: u64) -> Option<MicroBatchId> {
        let (_, id) = self.since.pop_front_if(|(at, _)| now.saturating_sub(*at) > KEPT)?;
        self.ids.remove(&id);
        Some(id)
    }
}
