//! P1 and P2, exactly once: what became of every completed id at every stage.
//!
//! A *process* is one start of a peer; a fence changes its incarnation and keeps its weights. An id counts for the process that
//! its path names. `lost = completed - applied - perished - refused - pending`: it must be 0.
//!
//! A log is complete up to the last frame of its process, and an answer leaves after the line that says what became of the id.
//! So an id whose path names a process that never mentioned it is lost, be that process dead or not; unless the beginning of
//! its log is gone, as rotation leaves it: then what the log does not say perished.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use serde::{Deserialize, Serialize};
use skein_protocol::{Incarnation, MicroBatchId, PeerId, Stage, event::Event, wire::flow::Hop};

use super::{Findings, Line, Property, Summary};

/// One stage's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub completed: u64,
    /// In a step of the replica on the path.
    pub applied: u64,
    /// That replica died, was fenced or rolled back before the step was safe.
    pub perished: u64,
    /// Too stale, or not finite.
    pub refused: u64,
    /// In an open sum.
    pub pending: u64,
    pub lost: u64,
    /// One replica added an id twice, or applied it in two steps.
    pub doubled: u64,
    /// An id that two living replicas of the stage hold in their weights.
    pub overlapped: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Refused,
    Added,
    Stepped,
    /// In a step that survives the replica's death.
    Safe,
    Perished,
}

#[derive(Debug, Default)]
struct Process {
    dead: bool,
    /// What it said first is not in the log.
    cut: bool,
    incarnations: BTreeSet<Incarnation>,
    fates: BTreeMap<(Stage, MicroBatchId), Fate>,
    /// What the steps of each stage added that are not safe yet, in their order.
    unsafe_steps: BTreeMap<Stage, Vec<(u32, Vec<MicroBatchId>)>>,
}

impl Process {
    fn on_safe(&mut self, stage: Stage, own_step: u32) {
        let Some(steps) = self.unsafe_steps.get_mut(&stage) else { return };
        for (_, ids) in steps.extract_if(.., |(step, _)| *step <= own_step) {
            for id in ids {
                if let Some(fate) = self.fates.get_mut(&(stage, id)).filter(|fate| **fate == Fate::Stepped) {
                    *fate = Fate::Safe;
                }
            }
        }
    }
}

/// Books of one peer: its processes in the order of their starts.
#[derive(Debug, Default)]
struct Books {
    processes: Vec<Process>,
    /// Incarnation that a fence announced: its start is no new process.
    fenced: Option<Incarnation>,
}

impl Books {
    /// Of a log that does not begin with a start, the beginning is gone.
    fn current(&mut self) -> &mut Process {
        if self.processes.is_empty() {
            self.processes.push(Process { cut: true, ..Process::default() });
        }
        self.processes.last_mut().expect("one was just made")
    }

    /// A process whose start is not in the log may have been any incarnation that no other was.
    fn of(&self, incarnation: Incarnation) -> Option<&Process> {
        let named = self.processes.iter().find(|process| process.incarnations.contains(&incarnation));
        named.or_else(|| self.processes.first().filter(|process| process.cut))
    }

    fn on_started(&mut self, incarnation: Incarnation) {
        let fence = self.fenced.take() == Some(incarnation);
        if !fence {
            if let Some(former) = self.processes.last_mut() {
                former.dead = true;
            }
            self.processes.push(Process::default());
        }
        self.current().incarnations.insert(incarnation);
    }
}

#[derive(Debug)]
pub struct Once {
    accounts: Vec<Account>,
    peers: BTreeMap<PeerId, Books>,
    completed: BTreeMap<MicroBatchId, Vec<Hop>>,
    partial: bool,
}

impl Once {
    pub fn new(stages: Stage, partial: bool) -> Self {
        let accounts = vec![Account::default(); usize::from(stages)];
        Once { accounts, peers: BTreeMap::new(), completed: BTreeMap::new(), partial }
    }

    pub fn on_kill(&mut self, peer: PeerId) {
        self.peers.entry(peer).or_default().current().dead = true;
    }

    pub fn on_line(&mut self, line: &Line, found: &mut Findings) {
        let books = self.peers.entry(line.record.peer).or_default();
        let mut doubled = |stage: Stage, id: &MicroBatchId, twice: bool| {
            if twice && let Some(account) = self.accounts.get_mut(usize::from(stage)) {
                account.doubled += 1;
                found.add(Property::P1, format!("{} counts twice at stage {stage}", name(id)));
            }
        };
        match &line.record.event {
            Event::Started { incarnation, .. } => books.on_started(*incarnation),
            Event::Fenced { new, .. } => {
                books.fenced = Some(*new);
                books.current().incarnations.insert(*new);
            }
            Event::Added { id, stage, .. } => {
                let before = books.current().fates.insert((*stage, *id), Fate::Added);
                doubled(*stage, id, matches!(before, Some(Fate::Added | Fate::Stepped | Fate::Safe)));
            }
            Event::Refused { id, stage, .. } => {
                books.current().fates.entry((*stage, *id)).or_insert(Fate::Refused);
            }
            Event::Stepped { stage, own_step, ids, .. } => {
                let process = books.current();
                for id in ids {
                    let before = process.fates.insert((*stage, *id), Fate::Stepped);
                    doubled(*stage, id, matches!(before, Some(Fate::Stepped | Fate::Safe)));
                }
                process.unsafe_steps.entry(*stage).or_default().push((*own_step, ids.clone()));
            }
            Event::Safe { stage, own_step, .. } => books.current().on_safe(*stage, *own_step),
            Event::Perished { stage, ids, .. } => {
                for id in ids {
                    books.current().fates.insert((*stage, *id), Fate::Perished);
                }
            }
            Event::Drained => books.current().dead = true,
            Event::Completed { id, path, .. } => match self.completed.entry(*id) {
                Entry::Vacant(entry) => drop(entry.insert(path.clone())),
                Entry::Occupied(_) => found.add(Property::P1, format!("{} completed twice", name(id))),
            },
            _ => {}
        }
    }

    pub fn finish(mut self, summary: &mut Summary, found: &mut Findings) {
        self.peers.values_mut().for_each(bury);
        if self.partial {
            let peers = &self.peers;
            // Of whoever has no log nothing is known.
            self.completed.retain(|_, path| path.iter().all(|hop| peers.contains_key(&hop.peer)));
        }
        settle(&self.completed, &self.peers, &mut self.accounts, found);
        count_overlaps(&self.peers, &mut self.accounts);
        for account in &self.accounts {
            summary.applied += account.applied;
            summary.perished += account.perished;
            summary.refused += account.refused;
            summary.pending += account.pending;
            summary.lost += account.lost;
            summary.doubled += account.doubled;
            summary.overlapped += account.overlapped;
        }
        summary.stages = self.accounts;
    }
}

/// What the dead had that was not safe is gone with them.
fn bury(books: &mut Books) {
    for process in books.processes.iter_mut().filter(|process| process.dead) {
        for fate in process.fates.values_mut() {
            if matches!(fate, Fate::Added | Fate::Stepped) {
                *fate = Fate::Perished;
            }
        }
    }
}

fn settle(
    completed: &BTreeMap<MicroBatchId, Vec<Hop>>,
    peers: &BTreeMap<PeerId, Books>,
    accounts: &mut [Account],
    found: &mut Findings,
) {
    for (id, path) in completed {
        for (stage, account) in accounts.iter_mut().enumerate() {
            account.completed += 1;
            let stage = stage as Stage;
            let Some(hop) = path.iter().find(|hop| hop.stage == stage) else {
                account.lost += 1;
                found.add(Property::P2, format!("the path of {} does not name stage {stage}", name(id)));
                continue;
            };
            let process = peers.get(&hop.peer).and_then(|books| books.of(hop.incarnation));
            match process.map(|process| (process.fates.get(&(stage, *id)), process.cut)) {
                Some((Some(Fate::Stepped | Fate::Safe), _)) => account.applied += 1,
                Some((Some(Fate::Perished), _)) | Some((None, true)) => account.perished += 1,
                Some((Some(Fate::Refused), _)) => account.refused += 1,
                Some((Some(Fate::Added), _)) => account.pending += 1,
                Some((None, false)) | None => {
                    account.lost += 1;
                    let who = hop.peer.short();
                    found.add(Property::P2, format!("{} of stage {stage} is lost at {who}", name(id)));
                }
            }
        }
    }
}

fn count_overlaps(peers: &BTreeMap<PeerId, Books>, accounts: &mut [Account]) {
    let mut holders: BTreeMap<(Stage, MicroBatchId), u64> = BTreeMap::new();
    for process in peers.values().flat_map(|books| &books.processes) {
        for (key, fate) in &process.fates {
            if matches!(fate, Fate::Added | Fate::Stepped | Fate::Safe) {
                *holders.entry(*key).or_default() += 1;
            }
        }
    }
    for ((stage, _), count) in holders {
        if let Some(account) = accounts.get_mut(usize::from(stage)) {
            account.overlapped += count - 1;
        }
    }
}

/// An id for people: incarnation, step, index.
pub fn name(id: &MicroBatchId) -> String {
    format!("{}:{}.{}", id.incarnation, id.step, id.index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Given, Kill, check};
    use skein_protocol::event::{Record, Safety};

    const FEEDER: PeerId = PeerId([1; 32]);
    const A: PeerId = PeerId([2; 32]);
    const B: PeerId = PeerId([3; 32]);

    fn id(index: u16) -> MicroBatchId {
        MicroBatchId { feeder: FEEDER, incarnation: 1, step: 0, index }
    }

    fn lines(events: Vec<(PeerId, Event)>) -> Vec<Line> {
        events
            .into_iter()
            .enumerate()
            .map(|(i, (peer, event))| {
                let at = i as u64 + 1;
                Line { at, record: Record { at, utc: 0, peer, seq: at, event } }
            })
            .collect()
    }

    fn started(peer: PeerId, incarnation: u32) -> (PeerId, Event) {
        (peer, Event::Started { peer, incarnation })
    }

    fn added(peer: PeerId, index: u16) -> (PeerId, Event) {
        (peer, Event::Added { id: id(index), stage: 0, own_step: 0, staleness: 0 })
    }

    fn stepped(peer: PeerId, own_step: u32, indices: &[u16]) -> (PeerId, Event) {
        let ids = indices.iter().map(|index| id(*index)).collect();
        let event =
            Event::Stepped { stage: 0, own_step, run_step: 0, lr: 0.1, gradient_norm: 1.0, micro_batches: 1, ids };
        (peer, event)
    }

    fn completed(peer: PeerId, incarnation: u32, index: u16) -> (PeerId, Event) {
        let path = vec![Hop { stage: 0, peer, incarnation }];
        (FEEDER, Event::Completed { id: id(index), path, loss: 1.0, tokens: 1 })
    }

    fn account(events: Vec<(PeerId, Event)>, kills: Vec<Kill>) -> Account {
        let given = Given { stages: 1, in_flight_max: 8, reach_max: 32, staleness_bound: 4, kills, partial: false };
        check(&lines(events), &given).stages[0]
    }

    #[test]
    fn each_fate_is_counted_once() {
        let refused = (A, Event::Refused { id: id(3), stage: 0, staleness: 9, why: String::new() });
        let events = vec![
            started(A, 1),
            added(A, 1),
            stepped(A, 1, &[1]),
            added(A, 2),
            refused,
            completed(A, 1, 1),
            completed(A, 1, 2),
            completed(A, 1, 3),
            completed(A, 1, 4),
        ];
        let account = account(events, vec![]);
        assert_eq!((account.applied, account.pending, account.refused, account.lost), (1, 1, 1, 1));
    }

    #[test]
    fn what_a_dead_replica_had_not_made_safe_perished() {
        let safe = (A, Event::Safe { stage: 0, own_step: 1, how: Safety::Averaged });
        let events = vec![
            started(A, 1),
            added(A, 1),
            stepped(A, 1, &[1]),
            safe,
            added(A, 2),
            stepped(A, 2, &[2]),
            added(A, 3),
            completed(A, 1, 1),
            completed(A, 1, 2),
            completed(A, 1, 3),
        ];
        let account = account(events, vec![Kill { peer: A, at: 100 }]);
        assert_eq!((account.applied, account.perished, account.lost), (1, 2, 0));
    }

    #[test]
    fn what_a_dead_replica_never_mentioned_is_lost() {
        let events = vec![started(A, 1), added(A, 1), completed(A, 1, 1), completed(A, 1, 2)];
        let account = account(events, vec![Kill { peer: A, at: 100 }]);
        assert_eq!((account.perished, account.lost), (1, 1));
    }

    #[test]
    fn a_log_without_its_beginning_is_believed_in_what_it_says() {
        let events = vec![
            added(A, 1),
            stepped(A, 1, &[1]),
            started(A, 2),
            added(A, 3),
            stepped(A, 2, &[3]),
            completed(A, 1, 1),
            completed(A, 1, 2),
            completed(A, 2, 3),
            completed(A, 2, 4),
        ];
        let account = account(events, vec![]);
        assert_eq!((account.applied, account.perished, account.lost), (1, 2, 1));
    }

    #[test]
    fn the_same_id_twice_in_one_replica_is_doubled_and_in_two_living_ones_overlapped() {
        let events = vec![
            started(A, 1),
            started(B, 1),
            added(A, 1),
            stepped(A, 1, &[1]),
            added(A, 1),
            added(B, 1),
            completed(A, 1, 1),
        ];
        let account = account(events, vec![]);
        assert_eq!((account.doubled, account.overlapped), (1, 1));
    }

    #[test]
    fn an_id_that_is_completed_twice_is_told() {
        let events = vec![started(A, 1), added(A, 1), completed(A, 1, 1), completed(A, 1, 1)];
        let given = Given { stages: 1, in_flight_max: 8, reach_max: 32, staleness_bound: 4, ..Given::default() };
        let broken = check(&lines(events), &given).broken;
        assert!(broken.iter().any(|broken| broken.property == Property::P1), "{broken:?}");
    }

    #[test]
    fn a_dead_replica_overlaps_nobody() {
        let events = vec![started(A, 1), started(B, 1), added(A, 1), stepped(A, 1, &[1]), added(B, 1)];
        assert_eq!(account(events.clone(), vec![Kill { peer: A, at: 4 }]).overlapped, 0);
        assert_eq!(account(events, vec![]).overlapped, 1);
    }

    #[test]
    fn a_fence_keeps_the_weights_and_loses_the_open_sum() {
        let events = vec![
            started(A, 1),
            added(A, 1),
            stepped(A, 1, &[1]),
            added(A, 2),
            (A, Event::Fenced { old: 1, new: 2, why: String::new() }),
            (A, Event::Perished { stage: 0, ids: vec![id(2)], why: String::new() }),
            started(A, 2),
            added(A, 2),
            stepped(A, 2, &[2]),
            completed(A, 1, 1),
            completed(A, 2, 2),
        ];
        let account = account(events, vec![]);
        assert_eq!((account.applied, account.doubled, account.lost), (2, 0, 0));
    }
}
