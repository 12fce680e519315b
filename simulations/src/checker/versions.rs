//! Versions of a stage only grow within one process, and no version ever has two roots.

use std::collections::BTreeMap;

use skein_protocol::{PeerId, Stage, Version, event::Event, hash::Digest};

use super::{Line, Summary};

pub fn check(lines: &[Line], summary: &mut Summary) {
    let mut at: BTreeMap<(PeerId, Stage), (u32, u32)> = BTreeMap::new();
    let mut roots: BTreeMap<Version, Digest> = BTreeMap::new();
    for line in lines {
        let peer = line.record.peer;
        match &line.record.event {
            // Another process, or other weights: it begins where they are.
            Event::Serving { stage, version } => {
                at.insert((peer, *stage), (version.round, version.own_step));
            }
            Event::Stepped { stage, own_step, .. } => {
                let (round, before) = at.entry((peer, *stage)).or_default();
                let (round, before) = (*round, std::mem::replace(before, *own_step));
                if *own_step <= before {
                    let who = peer.short();
                    summary.broken(format!("stage {stage} of {who}, round {round}: step {own_step} after {before}"));
                }
            }
            Event::Round { stage, round, .. } => {
                let (before, _) = at.entry((peer, *stage)).or_default();
                let before = std::mem::replace(before, (*before).max(*round));
                if *round < before {
                    summary.broken(format!("stage {stage} of {}: round {round} after {before}", peer.short()));
                }
            }
            Event::Saved { version, root, .. }
            | Event::Held { version, root, .. }
            | Event::Fetched { version, root, .. } => {
                let first = *roots.entry(*version).or_insert(*root);
                if first != *root {
                    summary.broken(format!("two roots of version {version:?}"));
                }
            }
            _ => {}
        }
    }
}
