//! P7: what is open is bounded by the window. A feeder has at most `in_flight_max` ids between the first that is not over and
//! the last it minted, so no replica ever keeps more of it.

use std::collections::{BTreeMap, BTreeSet};

use skein_protocol::{Incarnation, MicroBatchId, PeerId, event::Event};

use super::{Findings, Line, Property};

#[derive(Debug)]
pub struct Window {
    most: usize,
    open: BTreeMap<(PeerId, Incarnation), BTreeSet<MicroBatchId>>,
}

impl Window {
    pub fn new(most: u32) -> Self {
        Window { most: most as usize, open: BTreeMap::new() }
    }

    pub fn on_line(&mut self, line: &Line, found: &mut Findings) {
        match &line.record.event {
            Event::Minted { id, .. } => {
                let ids = self.open.entry((id.feeder, id.incarnation)).or_default();
                ids.insert(*id);
                if ids.len() > self.most {
                    found.add(Property::P7, format!("{} ids of one feeder are open", ids.len()));
                }
            }
            Event::Completed { id, .. } | Event::Voided { id, .. } => {
                if let Some(ids) = self.open.get_mut(&(id.feeder, id.incarnation)) {
                    ids.remove(id);
                }
            }
            _ => {}
        }
    }
}
