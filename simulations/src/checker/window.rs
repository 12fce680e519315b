//! What is open is bounded by the window: a feeder has at most `in_flight_max` ids between the first that is not over and the
//! last it minted, so no replica ever keeps more of it.

use std::collections::{BTreeMap, BTreeSet};

use skein_protocol::{Incarnation, MicroBatchId, PeerId, event::Event};

use super::{Given, Line, Summary};

pub fn check(lines: &[Line], given: &Given, summary: &mut Summary) {
    let mut open: BTreeMap<(PeerId, Incarnation), BTreeSet<MicroBatchId>> = BTreeMap::new();
    for line in lines {
        match &line.record.event {
            Event::Minted { id, .. } => {
                let ids = open.entry((id.feeder, id.incarnation)).or_default();
                ids.insert(*id);
                if ids.len() > given.in_flight_max as usize {
                    summary.broken(format!("{} ids of one feeder are open", ids.len()));
                }
            }
            Event::Completed { id, .. } | Event::Voided { id, .. } => {
                if let Some(ids) = open.get_mut(&(id.feeder, id.incarnation)) {
                    ids.remove(id);
                }
            }
            _ => {}
        }
    }
}
