//! Activations go from stage to stage: whoever sends one on has accepted the id at its stage, and it never goes through the
//! feeder unless the feeder serves the next stage itself.

use std::collections::BTreeSet;

use skein_protocol::{MicroBatchId, PeerId, Stage, event::Event};

use super::{Line, Summary, once::name};

pub fn check(lines: &[Line], summary: &mut Summary) {
    let serving: BTreeSet<(PeerId, Stage)> = lines
        .iter()
        .filter_map(|line| match &line.record.event {
            Event::Serving { stage, .. } => Some((line.record.peer, *stage)),
            _ => None,
        })
        .collect();
    let mut accepted: BTreeSet<(PeerId, Stage, MicroBatchId)> = BTreeSet::new();
    for line in lines {
        let peer = line.record.peer;
        match &line.record.event {
            Event::Accepted { id, stage, .. } => {
                accepted.insert((peer, *stage, *id));
            }
            Event::SentForward { id, stage, to, .. } => {
                summary.hops += 1;
                if !accepted.contains(&(peer, *stage, *id)) {
                    summary.broken(format!("{} was sent on from stage {stage} by a peer that never held it", name(id)));
                }
                if !serving.contains(&(*to, stage + 1)) {
                    summary
                        .broken(format!("{} went from stage {stage} to a peer that does not serve the next", name(id)));
                }
            }
            _ => {}
        }
    }
}
