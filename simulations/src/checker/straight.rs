//! Activations go from stage to stage: whoever sends one on has accepted the id at its stage, and it never goes through the
//! feeder unless the feeder serves the next stage itself. What is sent to somebody who does not serve is work that nobody
//! owns (P13).

use std::collections::{BTreeMap, BTreeSet};

use skein_protocol::{MicroBatchId, PeerId, Stage, event::Event};

use super::{Findings, Line, Property, Summary, once::name};

#[derive(Debug, Default)]
pub struct Straight {
    serving: BTreeSet<(PeerId, Stage)>,
    accepted: BTreeMap<MicroBatchId, BTreeSet<(PeerId, Stage)>>,
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
        match &line.record.event {
            Event::Serving { stage, .. } => drop(self.serving.insert((peer, *stage))),
            Event::Accepted { id, stage, .. } => drop(self.accepted.entry(*id).or_default().insert((peer, *stage))),
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
