//! P5: versions of a stage only grow within one process, and no version ever has two roots.

use std::collections::BTreeMap;

use skein_protocol::{PeerId, Stage, Version, event::Event, hash::Digest};

use super::{Findings, Line, Property};

#[derive(Debug, Default)]
pub struct Versions {
    at: BTreeMap<(PeerId, Stage), (u32, u32)>,
    roots: BTreeMap<Version, Digest>,
}

impl Versions {
    pub fn on_line(&mut self, line: &Line, found: &mut Findings) {
        let peer = line.record.peer;
        match &line.record.event {
            // Another process, or other weights: it begins where they are.
            Event::Serving { stage, version } => {
                self.at.insert((peer, *stage), (version.round, version.own_step));
            }
            Event::Stepped { stage, own_step, .. } => {
                let (round, before) = self.at.entry((peer, *stage)).or_default();
                let (round, before) = (*round, std::mem::replace(before, *own_step));
                if *own_step <= before {
                    let who = peer.short();
                    let what = format!("stage {stage} of {who}, round {round}: step {own_step} after {before}");
                    found.add(Property::P5, what);
                }
            }
            Event::Round { stage, round, .. } => {
                let (before, _) = self.at.entry((peer, *stage)).or_default();
                let before = std::mem::replace(before, (*before).max(*round));
                if *round < before {
                    let what = format!("stage {stage} of {}: round {round} after {before}", peer.short());
                    found.add(Property::P5, what);
                }
            }
            Event::Saved { version, root, .. }
            | Event::Held { version, root, .. }
            | Event::Fetched { version, root, .. } => {
                let first = *self.roots.entry(*version).or_insert(*root);
                if first != *root {
                    found.add(Property::P5, format!("two roots of version {version:?}"));
                }
            }
            _ => {}
        }
    }
}
