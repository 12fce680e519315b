//! P13: every id that is begun comes to an end: it is completed, or given up in words. Ids of an incarnation of their feeder
//! that is over are nobody's.

use std::collections::BTreeMap;

use skein_protocol::{MicroBatchId, event::Event};

use super::{Line, once::name};

#[derive(Debug, Default)]
pub struct Open {
    since: BTreeMap<MicroBatchId, u64>,
}

impl Open {
    pub fn on_line(&mut self, line: &Line) {
        match &line.record.event {
            Event::Minted { id, .. } => drop(self.since.insert(*id, line.at)),
            Event::Completed { id, .. } | Event::Measured { id, .. } | Event::Voided { id, .. } => {
                _ = self.since.remove(id)
            }
            Event::Started { incarnation, .. } => {
                let me = line.record.peer;
                self.since.retain(|id, _| id.feeder != me || id.incarnation >= *incarnation);
            }
            _ => {}
        }
    }

    /// The oldest first.
    pub fn all(&self) -> Vec<(u64, String)> {
        let mut all: Vec<_> = self.since.iter().map(|(id, at)| (*at, name(id))).collect();
        all.sort();
        all
    }
}
