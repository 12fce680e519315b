//! Averaging: how rounds ended, and how far apart replicas were after the last of each stage.

use std::collections::BTreeMap;

use skein_protocol::{
    PeerId, Stage,
    event::{Event, RoundOutcome},
};

use super::{Line, Summary};

pub fn check(lines: &[Line], summary: &mut Summary) {
    let mut last: BTreeMap<(Stage, PeerId), (u64, f32)> = BTreeMap::new();
    for line in lines {
        let Event::Round { stage, outcome, disagreement, .. } = &line.record.event else { continue };
        match outcome {
            RoundOutcome::Both | RoundOutcome::OneSided | RoundOutcome::Copied => summary.rounds += 1,
            RoundOutcome::Neither => summary.rounds_rolled_back += 1,
            RoundOutcome::Alone | RoundOutcome::Skipped => {}
        }
        if let Some(disagreement) = disagreement {
            last.insert((*stage, line.record.peer), (line.at, *disagreement));
        }
    }
    summary.disagreement = last.values().map(|(_, disagreement)| *disagreement).reduce(f32::max);
}
