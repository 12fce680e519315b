//! P10: a state that is fetched, kept or restored is one that somebody had, whole: it names a version that the replica it names
//! had reached, and nobody restores what nobody fetched, saved or kept. A snapshot survives its maker.

use std::collections::{BTreeMap, BTreeSet};

use skein_protocol::{PeerId, Stage, Version, event::Event};

use super::{Findings, Line, Property};

/// A replica by its name in versions: stage and peer. What it reached: round and own step.
type Reached = BTreeMap<(Stage, PeerId), (u32, u32)>;

#[derive(Debug, Default)]
pub struct Snapshots {
    /// The most that each replica said of itself.
    reached: Reached,
    known: BTreeSet<Version>,
}

impl Snapshots {
    pub fn on_line(&mut self, line: &Line, found: &mut Findings) {
        let peer = line.record.peer;
        match &line.record.event {
            Event::Serving { stage, version } => self.reach(*stage, peer, (version.round, version.own_step)),
            Event::Stepped { stage, own_step, .. } => self.reach(*stage, peer, (0, *own_step)),
            Event::Round { stage, round, .. } => self.reach(*stage, peer, (*round, 0)),
            Event::Saved { version, .. } | Event::Held { version, .. } | Event::Fetched { version, .. } => {
                let most = self.reached.get(&(version.stage, version.peer)).copied();
                // A log may begin later than its peer: nothing is known of it then.
                if most.is_some_and(|(round, step)| version.round > round + 1 || version.own_step > step + 1) {
                    let what = format!("a state of {version:?}, which never came further than {most:?}");
                    found.add(Property::P10, what);
                }
                self.known.insert(*version);
            }
            Event::Restored { version, from_seed: false, stage } if !self.known.contains(version) => {
                found.add(Property::P10, format!("stage {stage} was restored from {version:?}, which nobody kept"));
            }
            _ => {}
        }
    }

    fn reach(&mut self, stage: Stage, peer: PeerId, (round, step): (u32, u32)) {
        let most = self.reached.entry((stage, peer)).or_default();
        *most = (most.0.max(round), most.1.max(step));
    }
}
