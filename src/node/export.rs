//! Collects the weights of a run for a reader: of each stage the mean of what its living replicas hold.
//!
//! In: answers of the peer, one a replica, and the next when this one is added. Out: one sum a stage, or which stages nobody
//! gave. A replica's bytes are let go as soon as they are in the sum, so an export takes about one model and one replica.

use std::{collections::VecDeque, sync::Arc, sync::Weak};

use bytes::Bytes;
use skein_pipeline::model::{StageModel, state::StageState};
use skein_protocol::{Manifest, PeerId, Stage, hash::Digest, run::Family};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, spawn_blocking},
};

/// Weights of one replica of a stage, in pieces.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    pub parts: Vec<Bytes>,
    /// Of the parts together, as the replica says.
    pub root: Digest,
}

/// What became of one replica of a stage.
#[derive(Debug)]
pub enum Arrived {
    Weights {
        from: PeerId,
        weights: Weights,
    },
    Missed {
        from: PeerId,
        why: String,
    },
    /// No replica of the stage is known.
    Nobody,
}

/// A replica that serves a stage and is not in the mean.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stage {stage} is exported without the replica of {}: {why}", from.short())]
pub struct Missed {
    pub stage: Stage,
    pub from: PeerId,
    pub why: String,
}

/// News of an export on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// So many stages are complete.
    Complete(u16),
    Missed(Missed),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// SK702.
    #[error("stages {0:?} have no serving replica")]
    NoReplica(Vec<Stage>),
    /// The last of those that were asked for the stage.
    #[error("no replica of stage {} gave its weights, the last of them not because: {}", .0.stage, .0.why)]
    NoneGiven(Missed),
    #[error("the peer stopped")]
    Stopped,
}

/// The weights of every stage.
#[derive(Debug)]
pub struct Collected {
    pub family: Family,
    pub stages: Vec<(StageModel, Vec<f32>)>,
    /// While this lives no other export begins: two models may not fit this machine.
    _turn: Arc<()>,
}

impl Collected {
    pub fn new(family: Family, stages: Vec<(StageModel, Vec<f32>)>) -> Self {
        Collected { family, stages, _turn: Arc::default() }
    }
}

pub type Reply = oneshot::Sender<Result<Collected, ExportError>>;

/// One export: who asked for it, and what is here.
struct Collect {
    request: u64,
    stages: Vec<(StageModel, Vec<f32>)>,
    /// Of the stage that is collected now.
    sum: Option<Sum>,
    missed: Option<Missed>,
    empty: Vec<Stage>,
    failed: Option<Missed>,
    notes: mpsc::UnboundedSender<Note>,
    reply: Reply,
}

/// The weights of replicas of one stage, added up.
struct Sum {
    model: StageModel,
    values: Vec<f32>,
    replicas: u32,
}

/// A replica that is being added by another thread.
struct Adding {
    stage: Stage,
    from: PeerId,
    last: bool,
    thread: JoinHandle<(Option<Sum>, Result<(), String>)>,
}

/// Exports of this peer: one at a time, the others wait.
pub struct Exports {
    manifest: Arc<Manifest>,
    open: Option<Collect>,
    adding: Option<Adding>,
    waiting: VecDeque<(mpsc::UnboundedSender<Note>, Reply)>,
    /// Of the last export that was handed over.
    turn: Weak<()>,
    next: u64,
}

impl Exports {
    pub fn new(manifest: Arc<Manifest>) -> Self {
        Exports { manifest, open: None, adding: None, waiting: VecDeque::new(), turn: Weak::new(), next: 0 }
    }

    /// `notes` hears how it goes on. It begins with [`Exports::begin`].
    pub fn ask(&mut self, notes: mpsc::UnboundedSender<Note>, reply: Reply) {
        self.waiting.push_back((notes, reply));
    }

    /// The number of an export that begins now, for the peer's `Export`; nothing while another is collected or written.
    pub fn begin(&mut self) -> Option<u64> {
        if self.open.is_some() || self.adding.is_some() || self.turn.strong_count() > 0 {
            return None;
        }
        self.waiting.retain(|(_, reply)| !reply.is_closed());
        let (notes, reply) = self.waiting.pop_front()?;
        self.next += 1;
        self.open = Some(Collect {
            request: self.next,
            stages: Vec::new(),
            sum: None,
            missed: None,
            empty: Vec::new(),
            failed: None,
            notes,
            reply,
        });
        Some(self.next)
    }

    /// The number of an export whose reader is gone, for the peer's `ExportEnd`.
    pub fn abandoned(&mut self) -> Option<u64> {
        self.open.take_if(|open| open.reply.is_closed()).map(|open| open.request)
    }

    /// One replica's answer; `last` of its stage. True: it is worked up, and the next may come. False: [`Exports::added`] tells.
    pub fn on_arrived(&mut self, request: u64, stage: Stage, arrived: Arrived, last: bool) -> bool {
        let Some(open) = self.open.as_mut().filter(|open| open.request == request) else { return false };
        match arrived {
            Arrived::Weights { from, weights } => {
                let (sum, manifest) = (open.sum.take(), self.manifest.clone());
                let thread = spawn_blocking(move || add(sum, &manifest, stage, weights));
                self.adding = Some(Adding { stage, from, last, thread });
                false
            }
            Arrived::Missed { from, why } => {
                open.miss(Missed { stage, from, why });
                self.end_stage(stage, last);
                true
            }
            Arrived::Nobody => {
                self.end_stage(stage, last);
                true
            }
        }
    }

    /// Waits until a replica is added: the number of the export, whose next may come. Forever while none is.
    pub async fn added(&mut self) -> Option<u64> {
        let Some(adding) = &mut self.adding else { return std::future::pending().await };
        let ended = (&mut adding.thread).await;
        let Adding { stage, from, last, .. } = self.adding.take()?;
        let open = self.open.as_mut()?;
        let request = open.request;
        let (sum, added) = ended.unwrap_or_else(|bug| (None, Err(bug.to_string())));
        open.sum = sum;
        if let Err(why) = added {
            open.miss(Missed { stage, from, why });
        }
        self.end_stage(stage, last);
        Some(request)
    }

    /// Takes the mean of a stage whose last replica has answered. After the last stage whoever asked gets all of them.
    fn end_stage(&mut self, stage: Stage, last: bool) {
        let Some(open) = self.open.as_mut().filter(|_| last) else { return };
        match (open.sum.take(), open.missed.take()) {
            (Some(sum), _) => open.stages.push(sum.mean()),
            (None, Some(missed)) => open.failed = Some(missed),
            (None, None) => open.empty.push(stage),
        }
        // Whoever asked may not care.
        let _ = open.notes.send(Note::Complete(stage + 1));
        if stage + 1 < self.manifest.stages.count {
            return;
        }
        let Some(Collect { stages, empty, failed, reply, .. }) = self.open.take() else { return };
        let answer = match failed {
            _ if !empty.is_empty() => Err(ExportError::NoReplica(empty)),
            Some(missed) => Err(ExportError::NoneGiven(missed)),
            None => {
                let collected = Collected::new(self.manifest.model.family, stages);
                self.turn = Arc::downgrade(&collected._turn);
                Ok(collected)
            }
        };
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }
}

impl Collect {
    fn miss(&mut self, missed: Missed) {
        let _ = self.notes.send(Note::Missed(missed.clone()));
        self.missed = Some(missed);
    }
}

impl Sum {
    fn mean(mut self) -> (StageModel, Vec<f32>) {
        if self.replicas > 1 {
            self.values.iter_mut().for_each(|value| *value /= self.replicas as f32);
        }
        (self.model, self.values)
    }
}

/// Adds one replica. A damaged one leaves the sum as it was.
fn add(sum: Option<Sum>, manifest: &Manifest, stage: Stage, weights: Weights) -> (Option<Sum>, Result<(), String>) {
    let Weights { parts, root } = weights;
    let mut bytes = Vec::with_capacity(parts.iter().map(Bytes::len).sum());
    // Each part is let go as soon as it is copied.
    parts.into_iter().for_each(|part| bytes.extend_from_slice(&part));
    if StageState::claimed_root(&bytes) != Some(root) {
        return (sum, Err("they are others than were announced".into()));
    }
    match sum {
        None => match StageModel::of(manifest, stage) {
            Err(error) => (None, Err(error.to_string())),
            Ok(model) => {
                let mut values = vec![0.0; model.values()];
                match StageState::add_params(&bytes, &mut values) {
                    Ok(()) => (Some(Sum { model, values, replicas: 1 }), Ok(())),
                    Err(error) => (None, Err(error.to_string())),
                }
            }
        },
        Some(mut sum) => {
            let added = StageState::add_params(&bytes, &mut sum.values).map_err(|error| error.to_string());
            sum.replicas += u32::from(added.is_ok());
            (Some(sum), added)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_pipeline::exact::TrainState;
    use skein_protocol::Version;

    const FROM: PeerId = PeerId([7; 32]);

    fn exports(stages: u16) -> Exports {
        Exports::new(Arc::new(super::super::sample_manifest(stages)))
    }

    fn weights(exports: &Exports, stage: Stage, value: f32) -> Weights {
        let model = StageModel::of(&exports.manifest, stage).unwrap();
        let train = TrainState { params: vec![value; model.values()], ..TrainState::default() };
        let version = Version { stage, ..Version::default() };
        let (bytes, root) = StageState { version, train, ..StageState::default() }.encode();
        let (a, b) = bytes.split_at(bytes.len() / 2);
        Weights { parts: vec![Bytes::copy_from_slice(a), Bytes::copy_from_slice(b)], root }
    }

    async fn give(exports: &mut Exports, request: u64, stage: Stage, weights: Weights, last: bool) {
        assert!(!exports.on_arrived(request, stage, Arrived::Weights { from: FROM, weights }, last));
        assert_eq!(exports.added().await, Some(request));
    }

    #[tokio::test]
    async fn each_stage_is_the_mean_of_the_replicas_that_came_whole_and_the_others_are_named() {
        let mut exports = exports(2);
        let (reply, mut answer) = oneshot::channel();
        let (notes, mut noted) = mpsc::unbounded_channel();
        exports.ask(notes, reply);
        let request = exports.begin().unwrap();
        let first = weights(&exports, 0, 1.0);
        give(&mut exports, request, 0, first, false).await;
        let mut damaged = weights(&exports, 0, 100.0);
        let mut bytes = damaged.parts[0].to_vec();
        let at = bytes.len() - 1;
        bytes[at] ^= 1;
        damaged.parts[0] = bytes.into();
        give(&mut exports, request, 0, damaged, false).await;
        let missed = Missed { stage: 0, from: FROM, why: StageState::decode(&[0; 64]).unwrap_err().to_string() };
        assert!(matches!(noted.try_recv(), Ok(Note::Missed(Missed { stage: 0, from: FROM, .. }))), "not {missed}");
        let third = weights(&exports, 0, 3.0);
        give(&mut exports, request, 0, third, false).await;
        assert!(noted.try_recv().is_err(), "another replica of stage 0 is to come");
        let away = Arrived::Missed { from: FROM, why: "it left".into() };
        assert!(exports.on_arrived(request, 0, away, true));
        assert!(matches!(noted.try_recv(), Ok(Note::Missed(Missed { why, .. })) if why == "it left"));
        assert_eq!(noted.try_recv(), Ok(Note::Complete(1)));
        let only = weights(&exports, 1, 0.1);
        give(&mut exports, request, 1, only, true).await;
        let collected = answer.try_recv().unwrap().unwrap();
        let all = |stage: usize, wanted: f32| collected.stages[stage].1.iter().all(|value| *value == wanted);
        assert!(all(0, 2.0) && all(1, 0.1));
    }

    #[tokio::test]
    async fn stages_that_nobody_has_are_told_from_those_that_nobody_gave() {
        let answer_of = |second: Arrived| async {
            let mut exports = exports(2);
            let (reply, mut answer) = oneshot::channel();
            exports.ask(mpsc::unbounded_channel().0, reply);
            let request = exports.begin().unwrap();
            let first = weights(&exports, 0, 1.0);
            give(&mut exports, request, 0, first, true).await;
            assert!(exports.on_arrived(request, 1, second, true));
            answer.try_recv().unwrap().unwrap_err()
        };
        assert_eq!(answer_of(Arrived::Nobody).await, ExportError::NoReplica(vec![1]));
        let missed = Missed { stage: 1, from: FROM, why: "it left".into() };
        let away = Arrived::Missed { from: FROM, why: "it left".into() };
        assert_eq!(answer_of(away).await, ExportError::NoneGiven(missed));
    }

    #[tokio::test]
    async fn a_second_export_waits_until_the_first_is_written_and_a_reader_that_left_ends_its_own() {
        let mut exports = exports(1);
        let ask = |exports: &mut Exports| {
            let (reply, answer) = oneshot::channel();
            exports.ask(mpsc::unbounded_channel().0, reply);
            answer
        };
        let mut first = ask(&mut exports);
        let (second, mut third) = (ask(&mut exports), ask(&mut exports));
        let request = exports.begin().unwrap();
        assert_eq!(exports.begin(), None);
        let only = weights(&exports, 0, 1.0);
        give(&mut exports, request, 0, only, true).await;
        let written = first.try_recv().unwrap().unwrap();
        assert_eq!(exports.begin(), None, "the first is being written");
        drop(written);
        drop(second);
        let request = exports.begin().expect("the one whose reader is there");
        assert_eq!(exports.abandoned(), None);
        assert!(third.try_recv().is_err());
        drop(third);
        assert_eq!(exports.abandoned(), Some(request));
        assert_eq!((exports.abandoned(), exports.begin()), (None, None));
    }
}
