//! Collects the weights of a run for a reader: of each stage what its living replicas hold.
//!
//! In: answers of the peer, one a replica. Out: all of them together, or which stages nobody serves. It knows no tensor.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use skein_protocol::{Stage, hash::Digest};
use tokio::sync::{mpsc, oneshot};

/// Weights of one replica of a stage, in pieces.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    pub parts: Vec<Bytes>,
    /// Of the parts together, as the replica says.
    pub root: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// SK702.
    #[error("stages {0:?} have no serving replica")]
    NoReplica(Vec<Stage>),
    #[error("the peer stopped")]
    Stopped,
}

/// By stage, at least one replica each.
pub type Collected = Vec<Vec<Weights>>;
pub type Reply = oneshot::Sender<Result<Collected, ExportError>>;

struct Collect {
    stages: BTreeMap<Stage, Vec<Weights>>,
    ended: BTreeSet<Stage>,
    notes: mpsc::UnboundedSender<u16>,
    reply: Reply,
}

/// Exports that are under way.
pub struct Exports {
    open: BTreeMap<u64, Collect>,
    next: u64,
    count: Stage,
}

impl Exports {
    /// `count`: stages of the run.
    pub fn new(count: Stage) -> Self {
        Exports { open: BTreeMap::new(), next: 0, count }
    }

    /// A number for the peer's `Export`. `notes` hears the number of complete stages each time it grows.
    pub fn ask(&mut self, notes: mpsc::UnboundedSender<u16>, reply: Reply) -> u64 {
        self.next += 1;
        self.open.insert(self.next, Collect { stages: BTreeMap::new(), ended: BTreeSet::new(), notes, reply });
        self.next
    }

    /// One replica's answer; `last` of its stage.
    pub fn on_exported(&mut self, request: u64, stage: Stage, weights: Option<Weights>, last: bool) {
        let Some(collect) = self.open.get_mut(&request) else { return };
        collect.stages.entry(stage).or_default().extend(weights);
        if last && collect.ended.insert(stage) {
            // Whoever asked may not care.
            let _ = collect.notes.send(collect.ended.len() as u16);
        }
        if collect.ended.len() < usize::from(self.count) {
            return;
        }
        let Some(Collect { stages, reply, .. }) = self.open.remove(&request) else { return };
        let empty: Vec<Stage> = stages.iter().filter(|(_, all)| all.is_empty()).map(|(stage, _)| *stage).collect();
        let answer =
            if empty.is_empty() { Ok(stages.into_values().collect()) } else { Err(ExportError::NoReplica(empty)) };
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(byte: u8) -> Option<Weights> {
        Some(Weights { parts: vec![Bytes::from(vec![byte])], root: Digest([byte; 32]) })
    }

    #[test]
    fn every_stage_comes_with_all_replicas_that_answered() {
        let mut exports = Exports::new(2);
        let (reply, mut answer) = oneshot::channel();
        let (notes, mut noted) = mpsc::unbounded_channel();
        let request = exports.ask(notes, reply);
        exports.on_exported(request, 1, weights(3), true);
        assert_eq!(noted.try_recv(), Ok(1));
        exports.on_exported(request, 0, weights(1), false);
        assert!(noted.try_recv().is_err(), "another replica of stage 0 is to come");
        exports.on_exported(request, 0, None, true);
        assert_eq!(noted.try_recv(), Ok(2));
        let collected = answer.try_recv().unwrap().unwrap();
        assert_eq!(collected, [vec![weights(1).unwrap()], vec![weights(3).unwrap()]]);
        assert!(exports.open.is_empty());
    }

    #[test]
    fn a_stage_that_nobody_has_is_named() {
        let mut exports = Exports::new(2);
        let (reply, mut answer) = oneshot::channel();
        let request = exports.ask(mpsc::unbounded_channel().0, reply);
        exports.on_exported(request, 0, weights(1), true);
        exports.on_exported(request, 1, None, true);
        assert_eq!(answer.try_recv().unwrap(), Err(ExportError::NoReplica(vec![1])));
    }
}
