//! Averaging: how many rounds there were, how they ended, and how far apart living replicas were after their last one.
//!
//! A round of two replicas is one round, though both sides say how it ended. It counts as done where at least one side adopted,
//! and as rolled back where neither did. P3: what one side takes for done by both, the other has not rolled back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use skein_protocol::{
    PeerId, Stage,
    event::{Event, RoundOutcome},
};

use super::{Findings, Line, Property, Summary};

/// How far a living replica was from the mean right after its last round, as a share of the mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    pub stage: Stage,
    pub peer: PeerId,
    pub apart: f32,
}

/// All that two replicas of a stage did together.
#[derive(Debug, Default)]
struct Pair {
    /// Numbers of the rounds that a side adopted.
    adopted: BTreeSet<u32>,
    /// Rounds of which a side said the end, whatever it was.
    ended: BTreeMap<PeerId, u64>,
}

impl Pair {
    /// A side that died says less than the other: the one that said more knows how many there were.
    fn rolled_back(&self) -> u64 {
        let all = self.ended.values().copied().max().unwrap_or(0);
        all.saturating_sub(self.adopted.len() as u64)
    }
}

/// What a replica said after its last round with each partner, and the line that said it.
type Last = BTreeMap<(Stage, PeerId, Option<PeerId>), (usize, f32)>;

#[derive(Debug, Default)]
pub struct Rounds {
    pairs: BTreeMap<(Stage, PeerId, PeerId), Pair>,
    last: Last,
    dead: BTreeSet<PeerId>,
    /// The latest round of a replica of which its partner heard that it was adopted.
    heard: BTreeMap<(Stage, PeerId), u32>,
    lines: usize,
}

impl Rounds {
    pub fn on_line(&mut self, line: &Line, found: &mut Findings) {
        self.lines += 1;
        let me = line.record.peer;
        match &line.record.event {
            Event::Started { .. } => {
                self.dead.remove(&me);
                self.heard.retain(|(_, peer), _| *peer != me);
            }
            // Other weights: their rounds are those of whoever had them.
            Event::Serving { stage, .. } => drop(self.heard.remove(&(*stage, me))),
            Event::Round { stage, round, partner, outcome, disagreement, .. } => {
                if let Some(heard) = self.heard.get(&(*stage, me)).filter(|heard| round < *heard) {
                    let what = format!("stage {stage} of {}: round {round}, though its partner", me.short());
                    found.add(Property::P3, format!("{what} heard that it had adopted round {heard}"));
                }
                if let (Some(partner), RoundOutcome::Both) = (partner, outcome) {
                    let heard = self.heard.entry((*stage, *partner)).or_default();
                    *heard = (*heard).max(*round);
                }
                if let Some(partner) = partner {
                    let pair = self.pairs.entry((*stage, me.min(*partner), me.max(*partner))).or_default();
                    count(pair, me, *round, *outcome);
                }
                let living = partner.is_none_or(|partner| !self.dead.contains(&partner));
                if let Some(disagreement) = disagreement.filter(|_| living) {
                    self.last.insert((*stage, me, *partner), (self.lines, disagreement));
                }
            }
            _ => {}
        }
    }

    pub fn on_kill(&mut self, peer: PeerId) {
        self.dead.insert(peer);
        forget(&mut self.last, peer);
    }

    pub fn finish(self, summary: &mut Summary) {
        summary.rounds = self.pairs.values().map(|pair| pair.adopted.len() as u64).sum();
        summary.rounds_rolled_back = self.pairs.values().map(Pair::rolled_back).sum();
        summary.agreements = agreements(&self.last);
    }
}

/// Of each replica the last round with somebody who lives.
fn agreements(last: &Last) -> Vec<Agreement> {
    let mut latest: BTreeMap<(Stage, PeerId), (usize, f32)> = BTreeMap::new();
    for ((stage, peer, _), said) in last {
        let best = latest.entry((*stage, *peer)).or_insert(*said);
        if said.0 > best.0 {
            *best = *said;
        }
    }
    latest.into_iter().map(|((stage, peer), (_, apart))| Agreement { stage, peer, apart }).collect()
}

fn count(pair: &mut Pair, side: PeerId, round: u32, outcome: RoundOutcome) {
    match outcome {
        RoundOutcome::Both | RoundOutcome::OneSided | RoundOutcome::Copied => drop(pair.adopted.insert(round)),
        RoundOutcome::Neither => {}
        RoundOutcome::Alone | RoundOutcome::Skipped => return,
    }
    *pair.ended.entry(side).or_default() += 1;
}

/// How far it was from somebody who is no more says nothing about those that are.
fn forget(last: &mut Last, dead: PeerId) {
    last.retain(|(_, peer, partner), _| *peer != dead && *partner != Some(dead));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Given, Kill, check};
    use skein_protocol::event::Record;

    const A: PeerId = PeerId([1; 32]);
    const B: PeerId = PeerId([2; 32]);
    const C: PeerId = PeerId([3; 32]);

    fn round(peer: PeerId, partner: PeerId, round: u32, outcome: RoundOutcome, apart: Option<f32>) -> (PeerId, Event) {
        let (partner, disagreement) = (Some(partner), apart);
        (peer, Event::Round { stage: 0, round, partner, outcome, disagreement, samples: 1, duration_ms: 1 })
    }

    fn summary(events: Vec<(PeerId, Event)>, kills: Vec<Kill>) -> Summary {
        let line = |(i, (peer, event)): (usize, (PeerId, Event))| {
            let at = i as u64 + 1;
            Line { at, record: Record { at, utc: 0, peer, seq: at, event } }
        };
        let lines: Vec<Line> = events.into_iter().enumerate().map(line).collect();
        check(&lines, &Given { stages: 1, kills, ..Given::default() })
    }

    #[test]
    fn a_round_of_two_is_one_however_many_sides_speak() {
        use RoundOutcome::{Both, Neither, OneSided, Skipped};
        let events = vec![
            round(A, B, 1, Both, Some(0.1)),
            round(B, A, 1, Both, Some(0.1)),
            // Rolled back on both sides, whose own numbers differ.
            round(A, B, 1, Neither, None),
            round(B, A, 3, Neither, None),
            // One side adopted: that is a round.
            round(A, B, 4, OneSided, Some(0.1)),
            round(B, A, 4, Neither, None),
            // Another partner, of whom nothing more is heard.
            round(A, C, 4, Neither, None),
            (
                A,
                Event::Round {
                    stage: 0,
                    round: 4,
                    partner: None,
                    outcome: Skipped,
                    disagreement: None,
                    samples: 0,
                    duration_ms: 0,
                },
            ),
        ];
        let summary = summary(events, vec![]);
        assert_eq!((summary.rounds, summary.rounds_rolled_back), (2, 2));
    }

    #[test]
    fn a_replica_that_was_heard_to_adopt_has_not_rolled_back() {
        use RoundOutcome::{Both, Neither};
        let first = round(A, B, 3, Both, None);
        let found = |events| summary(events, vec![]).broken.iter().map(|broken| broken.property).collect::<Vec<_>>();
        assert_eq!(found(vec![first.clone(), round(B, A, 3, Both, None), round(B, C, 3, Neither, None)]), []);
        assert_eq!(found(vec![first.clone(), round(B, A, 2, Neither, None)]), [Property::P3]);
        let again = (B, Event::Started { peer: B, incarnation: 2 });
        assert_eq!(found(vec![first, again, round(B, A, 2, Neither, None)]), []);
    }

    #[test]
    fn only_the_last_rounds_of_the_living_say_how_far_they_are_apart() {
        let both = RoundOutcome::Both;
        let events = vec![
            round(A, B, 1, both, Some(0.5)),
            round(B, A, 1, both, Some(0.5)),
            round(C, A, 2, both, Some(0.4)),
            round(A, C, 2, both, Some(0.4)),
            // Between these two B dies.
            round(B, C, 3, both, Some(0.9)),
            round(C, B, 3, both, Some(0.9)),
        ];
        assert_eq!(summary(events.clone(), vec![]).disagreement(), Some(0.9));
        let summary = summary(events, vec![Kill { peer: B, at: 5 }]);
        assert_eq!(
            summary.agreements,
            [Agreement { stage: 0, peer: A, apart: 0.4 }, Agreement { stage: 0, peer: C, apart: 0.4 }]
        );
        assert_eq!(summary.disagreement(), Some(0.4));
    }

    #[test]
    fn a_disagreement_that_is_no_number_stays_one() {
        let both = RoundOutcome::Both;
        let events = vec![round(A, B, 1, both, Some(f32::NAN)), round(B, A, 1, both, Some(0.1))];
        assert!(summary(events, vec![]).disagreement().is_some_and(f32::is_nan));
    }
}
