//! P4: who leaves politely has stepped with everything that it added: nothing is in an open sum when it says that it is gone.

use std::collections::{BTreeMap, BTreeSet};

use skein_protocol::{MicroBatchId, PeerId, Stage, event::Event};

use super::{Findings, Line, Property, once::name};

#[derive(Debug, Default)]
pub struct Leaving {
    /// In the open sum of each peer.
    open: BTreeMap<PeerId, BTreeSet<(Stage, MicroBatchId)>>,
}

impl Leaving {
    pub fn on_line(&mut self, line: &Line, found: &mut Findings) {
        let open = self.open.entry(line.record.peer).or_default();
        match &line.record.event {
            Event::Added { id, stage, .. } => {
                open.insert((*stage, *id));
            }
            Event::Stepped { stage, ids, .. } | Event::Perished { stage, ids, .. } => {
                for id in ids {
                    open.remove(&(*stage, *id));
                }
            }
            Event::Started { .. } => open.clear(),
            Event::Drained => {
                if let Some((stage, id)) = open.first() {
                    let rest = open.len() - 1;
                    let what = format!("{} (and {rest} more) was left in the open sum of stage {stage}", name(id));
                    found.add(Property::P4, what);
                }
                open.clear();
            }
            _ => {}
        }
    }

    pub fn on_kill(&mut self, peer: PeerId) {
        self.open.remove(&peer);
    }
}
