//! After a kill: how soon what the dead peer held is finished by others, and how soon anything is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use skein_protocol::{MicroBatchId, PeerId, event::Event};

use super::{Kill, Line, Summary, over::Over};

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
    over: Over,
    /// Kills of which an end is still to be seen.
    watched: Vec<Watched>,
    done: Vec<(u64, Repair)>,
}

impl Repairs {
    pub fn on_line(&mut self, line: &Line) {
        while self.over.forget(line.at).is_some() {}
        match &line.record.event {
            // Somebody may accept what others have finished meanwhile.
            Event::Accepted { id, .. } if !self.over.contains(id) => {
                self.open.entry(*id).or_default().insert(line.record.peer);
            }
            Event::Completed { id, .. } | Event::Measured { id, .. } => {
                self.open.remove(id);
                self.over.end(line.at, *id);
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
            Event::Voided { id, .. } => {
                self.open.remove(id);
                self.over.end(line.at, *id);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use skein_protocol::event::Record;

    #[test]
    fn an_id_that_was_finished_elsewhere_is_held_by_nobody() {
        let mut repairs = Repairs::default();
        let peer = PeerId([1; 32]);
        let id = MicroBatchId { feeder: peer, incarnation: 1, step: 0, index: 0 };
        let completed = Event::Completed { id, path: Vec::new(), loss: 1.0, tokens: 1 };
        for event in [completed, Event::Accepted { id, stage: 0, from: peer }] {
            repairs.on_line(&Line { at: 1, record: Record { at: 1, utc: 0, peer, seq: 1, event } });
        }
        repairs.on_kill(Kill { peer, at: 2 });
        let mut summary = Summary::default();
        repairs.finish(&mut summary);
        assert_eq!(summary.repairs[0].held, 0);
    }
}
