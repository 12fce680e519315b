//! The end of the demo in numbers. In: the event logs of all its peers, the dead one's included, and who was killed when. Out:
//! one object, and whether the demo did what it promises.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use skein_pipeline::model::cost;
use skein_protocol::{
    Lane, Manifest, PeerId, Stage,
    event::{Event, Record, RoundOutcome},
    run::AveragingRule,
};
use skein_simulations::checker::{self, Given, Kill, Line, Summary};

/// Replicas may differ by so much after their last round.
const AGREE: f32 = 0.02;
/// The loss of the default length, or a longer one, must fall below this share of the first.
const FALL: f32 = 0.5;
/// Replicas that made as many intervals between rounds side by side must have had a round.
const INTERVALS: u64 = 2;

/// Text of the swarm, from one prompt and one seed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Samples {
    pub before: String,
    pub after: String,
    /// Share of the sampled words that are words of the corpus, 0 to 1; null where no whole word was sampled.
    pub known_words_before: Option<f64>,
    pub known_words_after: Option<f64>,
}

/// What `--json` ends with. Counts of ids (`completed`) are per micro-batch; what became of gradients (`applied`, `perished`,
/// `refused`, `lost`, `doubled`, `overlapped`) is summed over the stages, each of which has one gradient of each micro-batch.
#[derive(Clone, Debug, Serialize)]
pub struct DemoDone {
    /// Serving peers that the demo began with.
    pub peers: u16,
    pub stages: u16,
    pub killed: Vec<PeerId>,
    /// Late peers that computed at least one backward.
    pub joined: Vec<PeerId>,
    /// Run steps.
    pub steps: u64,
    /// Of completed micro-batches, and the same a second of training.
    pub tokens: u64,
    pub tokens_per_s: f64,
    /// Nats a byte: mean of the first 8 completed micro-batches, and of the last tenth.
    pub loss_first: f32,
    pub loss_last: f32,
    /// Micro-batches that came back to the feeder.
    pub completed: u64,
    /// Gradients that are in a step of the replica that computed them.
    pub applied: u64,
    /// Gradients whose replica died before anybody else had them.
    pub perished: u64,
    /// Gradients too old to be added.
    pub refused: u64,
    /// Gradients of which no log says what became of them: must be 0.
    pub lost: u64,
    /// Gradients that one replica added twice: must be 0.
    pub doubled: u64,
    /// Gradients that two living replicas of a stage hold.
    pub overlapped: u64,
    /// From the kill to the first completion among the micro-batches that the dead peer had accepted and that were open; null
    /// if there was none.
    pub repair_ms_max: Option<u64>,
    /// From the start of the late joiner's process to its first gradient in a sum; null if it came to none.
    pub joiner_ms: Option<u64>,
    /// Rounds that at least one side adopted; a round of two replicas is one.
    pub rounds: u64,
    /// Rounds that came to nothing on both sides.
    pub rounds_rolled_back: u64,
    /// The largest |phi_i - mean phi| / |mean phi| of the living replicas of all stages, each right after its last round.
    pub disagreement: Option<f32>,
    /// Bodies as they travelled.
    pub bytes_activations: u64,
    pub bytes_gradients: u64,
    /// All that was sent on the lane of averaging. Peers count it every few seconds: what a dead peer sent since its last count
    /// is one body for each round that it ended since.
    pub bytes_averaging: u64,
    /// The tensors of `bytes_activations` as f32.
    pub bytes_if_f32: u64,
    /// From the start of the command until everybody had left.
    pub wall_s: f64,
    pub samples: Samples,
    /// Sentences about what must not be.
    pub broken: Vec<String>,
    /// Why the demo did not do what it promises; empty if it did, and then the exit code is 0.
    pub shortfalls: Vec<String>,
}

/// What no log says.
pub struct Known {
    pub peers: u16,
    pub kills: Vec<Kill>,
    /// The late joiner and when it was started, milliseconds since 1970.
    pub joiner: Option<(PeerId, u64)>,
    pub training_s: f64,
    pub wall_s: f64,
    pub samples: Samples,
    /// Whether it ran as long as the default, so that the loss must have halved.
    pub whole: bool,
}

impl DemoDone {
    pub fn of(manifest: &Manifest, logs: Vec<Vec<Record>>, known: &Known) -> DemoDone {
        let bytes_averaging = logs.iter().map(|log| averaging(manifest, log)).sum();
        let joiner = known.joiner.and_then(|(peer, started)| {
            let log = logs.iter().find(|log| log.first().is_some_and(|record| record.peer == peer))?;
            let first = log.iter().find(|record| matches!(record.event, Event::Added { .. }))?;
            Some((peer, first.utc.saturating_sub(started)))
        });
        let lines = checker::log::merge(logs);
        let summary = checker::check(&lines, &Given::of(manifest, known.kills.clone()));
        let apart = strangers(manifest, &lines, known, &summary);
        let (repair_ms_max, disagreement) = (summary.repair_ms_max(), summary.disagreement());
        let Summary { completed, applied, perished, refused, lost, doubled, overlapped, .. } = summary;
        let mut done = DemoDone {
            peers: known.peers,
            stages: manifest.stages.count,
            killed: known.kills.iter().map(|kill| kill.peer).collect(),
            joined: joiner.iter().map(|(peer, _)| *peer).collect(),
            steps: summary.run_steps,
            tokens: summary.tokens,
            tokens_per_s: if known.training_s > 0.0 { summary.tokens as f64 / known.training_s } else { 0.0 },
            loss_first: summary.loss_first,
            loss_last: summary.loss_last,
            completed,
            applied,
            perished,
            refused,
            lost,
            doubled,
            overlapped,
            repair_ms_max,
            joiner_ms: joiner.map(|(_, took)| took),
            rounds: summary.rounds,
            rounds_rolled_back: summary.rounds_rolled_back,
            disagreement,
            bytes_activations: summary.bytes_activations,
            bytes_gradients: summary.bytes_gradients,
            bytes_averaging,
            bytes_if_f32: summary.bytes_if_f32,
            wall_s: known.wall_s,
            samples: known.samples.clone(),
            broken: summary.broken.iter().map(ToString::to_string).collect(),
            shortfalls: Vec::new(),
        };
        done.shortfalls = done.judge(known.whole, &apart);
        done
    }

    /// `strangers`: stages whose replicas had no round together, though there was time for one.
    fn judge(&self, whole: bool, strangers: &BTreeSet<Stage>) -> Vec<String> {
        let mut all = Vec::new();
        let wanted = if whole { FALL * self.loss_first } else { self.loss_first };
        // Also when a loss is not a number.
        if !matches!(self.loss_last.partial_cmp(&wanted), Some(std::cmp::Ordering::Less)) {
            all.push(format!("the loss ended at {:.3}, not below {wanted:.3}", self.loss_last));
        }
        if self.lost > 0 {
            all.push(format!("{} gradients were lost", self.lost));
        }
        if self.doubled > 0 {
            all.push(format!("{} gradients were counted twice", self.doubled));
        }
        match self.disagreement {
            Some(apart) if apart.is_nan() => all.push("how far the replicas differ is no number".into()),
            Some(apart) if apart >= AGREE => all.push(format!("the replicas differ by {:.1} %", 100.0 * apart)),
            _ => {}
        }
        let never = |stage| format!("replicas of stage {stage} never averaged: nobody knows how far they differ");
        all.extend(strangers.iter().map(never));
        all.extend(self.broken.iter().cloned());
        all
    }
}

/// Stages with a living replica of which no round says how far it is from the others, though it made steps beside one of them for
/// long enough.
fn strangers(manifest: &Manifest, lines: &[Line], known: &Known, summary: &Summary) -> BTreeSet<Stage> {
    let every = u64::from(manifest.averaging.every);
    if manifest.averaging.rule == AveragingRule::None || every == 0 || manifest.lock_step() {
        return BTreeSet::new();
    }
    let mut steps: BTreeMap<(Stage, PeerId), u64> = BTreeMap::new();
    for line in lines {
        match &line.record.event {
            Event::Serving { stage, .. } => drop(steps.insert((*stage, line.record.peer), 0)),
            Event::Stepped { stage, .. } => *steps.entry((*stage, line.record.peer)).or_default() += 1,
            _ => {}
        }
    }
    let killed: BTreeSet<PeerId> = known.kills.iter().map(|kill| kill.peer).collect();
    steps.retain(|(_, peer), steps| !killed.contains(peer) && *steps >= INTERVALS * every);
    let beside = |stage: Stage| steps.keys().filter(|(of, _)| *of == stage).count() > 1;
    let agreed =
        |key: &(Stage, PeerId)| summary.agreements.iter().any(|agreement| (agreement.stage, agreement.peer) == *key);
    steps.keys().filter(|key| beside(key.0) && !agreed(key)).map(|(stage, _)| *stage).collect()
}

/// Bytes that a peer sent on the lane of averaging: its last count of each life, and what its rounds since then took.
fn averaging(manifest: &Manifest, log: &[Record]) -> u64 {
    let (mut before, mut counted, mut since) = (0, 0, 0);
    let mut fenced = None;
    for record in log {
        match &record.event {
            // The same process goes on counting.
            Event::Fenced { new, .. } => fenced = Some(*new),
            Event::Started { incarnation, .. } if fenced == Some(*incarnation) => {}
            // Another process counts anew.
            Event::Started { .. } => (before, counted, since) = (before + counted + since, 0, 0),
            Event::Traffic { lane: Lane::Average, sent, .. } => (counted, since) = (*sent, 0),
            Event::Round {
                stage, outcome: RoundOutcome::Both | RoundOutcome::OneSided | RoundOutcome::Copied, ..
            } => since += cost::round_bytes(manifest, *stage),
            _ => {}
        }
    }
    before + counted + since
}

#[cfg(test)]
mod tests {
    use skein_protocol::{
        Incarnation, MicroBatchId, Version,
        event::Safety,
        run::{Codec, preset::preset},
        wire::flow::Hop,
    };

    use super::*;

    const FEEDER: PeerId = PeerId([1; 32]);
    const A: PeerId = PeerId([2; 32]);
    const B: PeerId = PeerId([3; 32]);
    const LATE: PeerId = PeerId([4; 32]);

    /// The demo's manifest as one stage.
    fn manifest() -> Manifest {
        let mut manifest = preset("demo").unwrap();
        manifest.stages.count = 1;
        manifest.stages.split = vec![3];
        manifest
    }

    fn id(index: u16) -> MicroBatchId {
        MicroBatchId { feeder: FEEDER, incarnation: 1, step: 0, index }
    }

    /// The log of one peer: what it said and when, milliseconds.
    struct Log(PeerId, Vec<Record>);

    impl Log {
        fn of(peer: PeerId, incarnation: Incarnation) -> Log {
            Log(peer, Vec::new()).say(0, Event::Started { peer, incarnation })
        }

        fn say(mut self, utc: u64, event: Event) -> Log {
            let seq = self.1.len() as u64 + 1;
            self.1.push(Record { at: 0, utc, peer: self.0, seq, event });
            self
        }

        fn added(self, utc: u64, index: u16) -> Log {
            self.say(utc, Event::Added { id: id(index), stage: 0, own_step: 0, staleness: 0 })
        }

        fn stepped(self, utc: u64, own_step: u32, indices: &[u16]) -> Log {
            let ids = indices.iter().map(|index| id(*index)).collect();
            let (run_step, micro_batches) = (u64::from(own_step), indices.len() as u32);
            self.say(
                utc,
                Event::Stepped { stage: 0, own_step, run_step, lr: 0.1, gradient_norm: 1.0, micro_batches, ids },
            )
        }

        /// Steps from `from` on, so many that a round was due twice.
        fn steps(self, from: u32) -> Log {
            (from..from + 12).fold(self, |log, own_step| log.stepped(50, own_step, &[]))
        }

        fn serving(self, stage: Stage) -> Log {
            let version = Version { stage, peer: self.0, incarnation: 1, round: 0, own_step: 0 };
            self.say(1, Event::Serving { stage, version })
        }

        fn round(self, utc: u64, round: u32, partner: PeerId, apart: f32) -> Log {
            let (partner, outcome, disagreement) = (Some(partner), RoundOutcome::Both, Some(apart));
            self.say(utc, Event::Round { stage: 0, round, partner, outcome, disagreement, samples: 6, duration_ms: 9 })
        }

        fn sent(self, utc: u64, lane: Lane, sent: u64) -> Log {
            self.say(utc, Event::Traffic { lane, sent, received: 1 })
        }

        fn accepted(self, utc: u64, index: u16) -> Log {
            self.say(utc, Event::Accepted { id: id(index), stage: 0, from: FEEDER })
        }

        fn minted(self, utc: u64, index: u16) -> Log {
            self.say(utc, Event::Minted { id: id(index), samples: 2 })
        }

        fn completed(self, utc: u64, index: u16, peer: PeerId, loss: f32) -> Log {
            let path = vec![Hop { stage: 0, peer, incarnation: 1 }];
            self.say(utc, Event::Completed { id: id(index), path, loss, tokens: 256 })
        }
    }

    /// A dies at 100 ms with a step that nobody else has, and with micro-batch 3, which B finishes; a late joiner adds one.
    fn logs() -> Vec<Vec<Record>> {
        let sent = Event::SentForward { id: id(3), stage: 0, to: B, codec: Codec::Int8, bytes: 10, raw: 40 };
        let back = Event::SentBackward { id: id(3), stage: 0, to: FEEDER, codec: Codec::Bf16, bytes: 20, raw: 40 };
        let refused = Event::Refused { id: id(5), stage: 0, staleness: 9, why: "too stale".into() };
        let feeder = (1..=4).fold(Log::of(FEEDER, 1), |log, index| log.minted(5, index));
        let feeder = feeder
            .completed(20, 1, A, 6.0)
            .completed(60, 2, A, 4.0)
            .minted(65, 5)
            .completed(140, 3, B, 3.0)
            .completed(150, 5, B, 2.0)
            .completed(400, 4, LATE, 1.0);
        let safe = Event::Safe { stage: 0, own_step: 1, how: Safety::Averaged };
        let a = Log::of(A, 1)
            .serving(0)
            .accepted(10, 1)
            .added(11, 1)
            .stepped(12, 1, &[1])
            .round(30, 1, B, 0.5)
            .say(30, safe)
            .sent(31, Lane::Average, 1_000)
            .accepted(40, 2)
            .added(41, 2)
            .stepped(42, 2, &[2])
            .round(43, 2, B, 0.7)
            .accepted(90, 3);
        // Whoever is sent an activation serves the next stage.
        let b = Log::of(B, 1)
            .serving(0)
            .serving(1)
            .round(30, 1, A, 0.5)
            .round(43, 2, A, 0.7)
            .accepted(110, 3)
            .added(120, 3)
            .stepped(121, 3, &[3])
            .say(122, sent)
            .say(123, back)
            .say(124, refused)
            .steps(4)
            .round(500, 3, LATE, 0.01)
            .sent(501, Lane::Average, 3_000)
            .sent(501, Lane::Activation, 77);
        let late = Log::of(LATE, 1)
            .serving(0)
            .accepted(310, 4)
            .added(330, 4)
            .stepped(340, 1, &[4])
            .steps(2)
            .round(500, 3, B, 0.015)
            .sent(501, Lane::Average, 200);
        [feeder, a, b, late].map(|log| log.1).into()
    }

    fn known(whole: bool) -> Known {
        Known {
            peers: 2,
            kills: vec![Kill { peer: A, at: 100_000_000 }],
            joiner: Some((LATE, 300)),
            training_s: 2.0,
            wall_s: 3.0,
            samples: Samples { before: "x".into(), after: "the fox".into(), ..Samples::default() },
            whole,
        }
    }

    fn done(change: impl FnOnce(&mut Vec<Vec<Record>>)) -> DemoDone {
        let mut logs = logs();
        change(&mut logs);
        DemoDone::of(&manifest(), logs, &known(true))
    }

    #[test]
    fn every_figure_comes_from_the_logs() {
        let done = done(|_| {});
        assert_eq!((done.peers, done.stages, done.steps), (2, 1, 15));
        assert_eq!((&done.killed[..], &done.joined[..]), (&[A][..], &[LATE][..]));
        assert_eq!((done.tokens, done.tokens_per_s), (5 * 256, 640.0));
        assert_eq!((done.loss_first, done.loss_last), (3.2, 1.0));
        assert_eq!((done.completed, done.applied, done.perished, done.refused), (5, 3, 1, 1));
        assert_eq!((done.lost, done.doubled, done.overlapped), (0, 0, 0));
        assert_eq!((done.repair_ms_max, done.joiner_ms), (Some(40), Some(30)));
        assert_eq!((done.rounds, done.rounds_rolled_back), (3, 0));
        // Of the last round of those that live.
        assert_eq!(done.disagreement, Some(0.015));
        assert_eq!((done.bytes_activations, done.bytes_gradients, done.bytes_if_f32), (10, 20, 40));
        // The dead peer's last count, and the body of the round that it ended after it.
        assert_eq!(done.bytes_averaging, 1_000 + cost::round_bytes(&manifest(), 0) + 3_000 + 200);
        assert_eq!((done.wall_s, done.samples.after.as_str()), (3.0, "the fox"));
        assert_eq!((done.broken, done.shortfalls), (vec![], Vec::<String>::new()));
    }

    #[test]
    fn a_joiner_that_computed_nothing_did_not_join() {
        let done = done(|logs| {
            logs[3].truncate(3);
            logs[0].pop();
        });
        assert_eq!((done.joined, done.joiner_ms), (vec![], None));
    }

    #[test]
    fn a_fence_counts_on_and_a_restart_counts_anew() {
        let log = Log::of(A, 1).sent(1, Lane::Average, 100);
        let fenced = log.say(2, Event::Fenced { old: 1, new: 2, why: String::new() });
        let fenced = fenced.say(3, Event::Started { peer: A, incarnation: 2 }).sent(4, Lane::Average, 150);
        let restarted = fenced.say(5, Event::Started { peer: A, incarnation: 3 }).sent(6, Lane::Average, 30);
        assert_eq!(averaging(&manifest(), &restarted.1), 180);
    }

    #[test]
    fn each_promise_that_does_not_hold_is_named() {
        let good = done(|_| {});
        let short = |change: &dyn Fn(&mut DemoDone), whole| {
            let mut done = good.clone();
            change(&mut done);
            done.judge(whole, &BTreeSet::new())
        };
        assert_eq!(short(&|_| {}, true), Vec::<String>::new());
        let half = |done: &mut DemoDone| done.loss_last = 0.5 * done.loss_first;
        assert_eq!(short(&half, true), ["the loss ended at 1.600, not below 1.600"]);
        assert_eq!(short(&half, false), Vec::<String>::new());
        assert_eq!(short(&|done| done.loss_last = done.loss_first, false).len(), 1);
        assert_eq!(short(&|done| done.loss_last = f32::NAN, false).len(), 1);
        assert_eq!(short(&|done| done.lost = 2, true), ["2 gradients were lost"]);
        assert_eq!(short(&|done| done.doubled = 3, true), ["3 gradients were counted twice"]);
        assert_eq!(short(&|done| done.disagreement = Some(0.02), true), ["the replicas differ by 2.0 %"]);
        assert_eq!(short(&|done| done.disagreement = Some(f32::NAN), true).len(), 1);
        assert_eq!(short(&|done| done.broken.push("a detour".into()), true), ["a detour"]);
    }

    #[test]
    fn replicas_that_never_averaged_do_not_agree() {
        let no_rounds = |logs: &mut Vec<Vec<Record>>| {
            for log in logs {
                log.retain(|record| !matches!(record.event, Event::Round { .. }));
            }
        };
        let silent = done(no_rounds);
        assert_eq!(silent.disagreement, None);
        assert_eq!(silent.shortfalls, ["replicas of stage 0 never averaged: nobody knows how far they differ"]);
        let one_of_them = done(|logs| logs[3].retain(|record| !matches!(record.event, Event::Round { .. })));
        assert_eq!(one_of_them.shortfalls, silent.shortfalls);
        // Rounds that were not due, or that the manifest does not want, are not missed.
        let too_short = done(|logs| {
            no_rounds(logs);
            logs[3].retain(|record| !matches!(&record.event, Event::Stepped { own_step, .. } if *own_step > 6));
        });
        assert_eq!(too_short.shortfalls, Vec::<String>::new());
        let mut manifest = manifest();
        manifest.averaging.rule = AveragingRule::None;
        let mut logs = logs();
        no_rounds(&mut logs);
        assert_eq!(DemoDone::of(&manifest, logs, &known(true)).shortfalls, Vec::<String>::new());
    }
}
