//! After a kill: how soon what the dead peer held is finished by others, and how soon anything is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use skein_protocol::{MicroBatchId, PeerId, event::Event};

use super::{Given, Kill, Line, Summary};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Repair {
    pub peer: PeerId,
    /// Open ids that the dead peer had accepted.
    pub held: u64,
    /// To the first completion among them, milliseconds.
    pub held_ms: Option<u64>,
    /// To the first completion of any id.
    pub next_ms: Option<u64>,
}

pub fn check(lines: &[Line], given: &Given, summary: &mut Summary) {
    summary.repairs = given.kills.iter().map(|kill| repair(lines, kill)).collect();
}

fn repair(lines: &[Line], kill: &Kill) -> Repair {
    let mut held: BTreeSet<MicroBatchId> = BTreeSet::new();
    let (before, after) = lines.split_at(lines.partition_point(|line| line.at <= kill.at));
    for line in before {
        match &line.record.event {
            Event::Accepted { id, .. } if line.record.peer == kill.peer => {
                held.insert(*id);
            }
            Event::Completed { id, .. } | Event::Voided { id, .. } => {
                held.remove(id);
            }
            _ => {}
        }
    }
    let first = |wanted: &dyn Fn(&MicroBatchId) -> bool| {
        after.iter().find_map(|line| match &line.record.event {
            Event::Completed { id, .. } if wanted(id) => Some((line.at - kill.at) / 1_000_000),
            _ => None,
        })
    };
    Repair {
        peer: kill.peer,
        held: held.len() as u64,
        held_ms: first(&|id| held.contains(id)),
        next_ms: first(&|_| true),
    }
}
