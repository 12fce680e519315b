//! After a kill: how soon what the dead peer held is finished by others, and how soon anything is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use skein_protocol::{MicroBatchId, PeerId, event::Event};

use super::{Kill, Line, Summary};

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

#[derive(Debug)]
struct Watched {
    at: u64,
    held: BTreeSet<MicroBatchId>,
    repair: Repair,
}

#[derive(Debug, Default)]
pub struct Repairs {
    /// Who accepted each id that is not over.
    open: BTreeMap<MicroBatchId, BTreeSet<PeerId>>,
    /// Kills of which an end is still to be seen.
    watched: Vec<Watched>,
    done: Vec<(u64, Repair)>,
}

impl Repairs {
    pub fn on_line(&mut self, line: &Line) {
        match &line.record.event {
            Event::Accepted { id, .. } => {
                self.open.entry(*id).or_default().insert(line.record.peer);
            }
            Event::Completed { id, .. } => {
                self.open.remove(id);
                for watched in &mut self.watched {
                    let after = Some((line.at - watched.at) / 1_000_000);
                    watched.repair.next_ms = watched.repair.next_ms.or(after);
                    if watched.repair.held_ms.is_none() && watched.held.contains(id) {
                        watched.repair.held_ms = after;
                    }
                }
                let is_over = |watched: &mut Watched| {
                    watched.repair.next_ms.is_some() && (watched.held.is_empty() || watched.repair.held_ms.is_some())
                };
                self.done.extend(self.watched.extract_if(.., is_over).map(|watched| (watched.at, watched.repair)));
            }
            Event::Voided { id, .. } => drop(self.open.remove(id)),
            _ => {}
        }
    }

    pub fn on_kill(&mut self, kill: Kill) {
        let held = self.open.iter().filter(|(_, by)| by.contains(&kill.peer)).map(|(id, _)| *id);
        let held: BTreeSet<MicroBatchId> = held.collect();
        let repair = Repair { peer: kill.peer, held: held.len() as u64, held_ms: None, next_ms: None };
        self.watched.push(Watched { at: kill.at, held, repair });
    }

    pub fn finish(mut self, summary: &mut Summary) {
        self.done.extend(self.watched.into_iter().map(|watched| (watched.at, watched.repair)));
        self.done.sort_by_key(|(at, _)| *at);
        summary.repairs = self.done.into_iter().map(|(_, repair)| repair).collect();
    }
}
