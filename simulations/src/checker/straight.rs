//! Activations go from stage to stage: whoever sends one on has accepted the id at its stage, and it never goes through the
//! feeder unless the feeder serves the next stage itself. What is sent to somebody who never served the stage is work that
//! nobody owns (P13); who served it once may have left it while the activation was on its way.

use std::collections::{BTreeMap, BTreeSet};

use skein_protocol::{MicroBatchId, PeerId, Stage, event::Event};

use super::{Findings, Line, Property, Summary, once::name, over::Over};

#[derive(Debug, Default)]
pub struct Straight {
    serving: BTreeSet<(PeerId, Stage)>,
    accepted: BTreeMap<MicroBatchId, BTreeSet<(PeerId, Stage)>>,
    over: Over,
    /// Sent to somebody of whom it was not known yet that it serves: logs of different clocks may say so later.
    early: BTreeMap<(PeerId, Stage), MicroBatchId>,
    hops: u64,
    partial: bool,
    speak: BTreeSet<PeerId>,
}

impl Straight {
    pub fn new(partial: bool) -> Self {
        Straight { partial, ..Straight::default() }
    }

    pub fn on_line(&mut self, line: &Line, found: &mut Findings) {
        let peer = line.record.peer;
        self.speak.insert(peer);
        while let Some(id) = self.over.forget(line.at) {
            self.accepted.remove(&id);
        }
        match &line.record.event {
            Event::Serving { stage, .. } => drop(self.serving.insert((peer, *stage))),
            Event::Accepted { id, stage, .. } => drop(self.accepted.entry(*id).or_default().insert((peer, *stage))),
            Event::Completed { id, .. } | Event::Measured { id, .. } | Event::Voided { id, .. } => {
                self.over.end(line.at, *id)
            }
            Event::SentForward { id, stage, to, .. } => {
                self.hops += 1;
                if !self.accepted.get(id).is_some_and(|by| by.contains(&(peer, *stage))) {
                    let what = format!("{} was sent on from stage {stage} by a peer that never held it", name(id));
                    found.add(Property::P13, what);
                }
                if !self.serving.contains(&(*to, stage + 1)) {
                    self.early.entry((*to, stage + 1)).or_insert(*id);
                }
            }
            _ => {}
        }
    }

    pub fn finish(self, summary: &mut Summary, found: &mut Findings) {
        summary.hops = self.hops;
        for ((peer, stage), id) in self.early {
            let known = !self.partial || self.speak.contains(&peer);
            if known && !self.serving.contains(&(peer, stage)) {
                let what = format!("{} went to {}, which does not serve stage {stage}", name(&id), peer.short());
                found.add(Property::P13, what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SECOND;
    use skein_protocol::event::Record;

    #[test]
    fn what_is_known_of_an_id_is_forgotten_when_it_is_over_for_long() {
        let (mut straight, mut found) = (Straight::new(false), Findings::default());
        let peer = PeerId([1; 32]);
        let id = |index| MicroBatchId { feeder: peer, incarnation: 1, step: 0, index };
        let mut say = |at: u64, event: Event| {
            straight.on_line(&Line { at, record: Record { at, utc: 0, peer, seq: at, event } }, &mut found);
            straight.accepted.len()
        };
        for index in 0..100 {
            let at = u64::from(index) * SECOND;
            say(at, Event::Accepted { id: id(index), stage: 0, from: peer });
            say(at, Event::Completed { id: id(index), path: Vec::new(), loss: 1.0, tokens: 1 });
        }
        assert_eq!(say(700 * SECOND, Event::PeerUp { peer }), 100);
        assert_eq!(say(1000 * SECOND, Event::PeerUp { peer }), 0);
    }
}
