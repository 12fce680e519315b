//! The end of the demo in numbers. In: the event logs of all its peers, the dead one's included, and who was killed when. Out:
//! one object, and whether the demo did what it promises.

use std::collections::BTreeMap;

use serde::Serialize;
use skein_protocol::{
    Lane, Manifest, PeerId,
    event::{Event, Record},
};
use skein_simulations::checker::{self, Given, Kill, Summary};

/// Replicas may differ by so much after their last round.
const AGREE: f32 = 0.02;
/// The loss of the default length, or a longer one, must fall below this share of the first.
const FALL: f32 = 0.5;

#[derive(Clone, Debug, Serialize)]
pub struct Samples {
    pub before: String,
    pub after: String,
}

/// What `--json` ends with.
#[derive(Clone, Debug, Serialize)]
pub struct DemoDone {
    pub peers: u16,
    pub stages: u16,
    pub killed: Vec<PeerId>,
    pub joined: Vec<PeerId>,
    pub steps: u64,
    pub tokens: u64,
    pub tokens_per_s: f64,
    pub loss_first: f32,
    pub loss_last: f32,
    pub completed: u64,
    pub applied: u64,
    pub perished: u64,
    pub refused: u64,
    pub lost: u64,
    pub doubled: u64,
    pub overlapped: u64,
    pub repair_ms_max: Option<u64>,
    /// From its start to its first micro-batch.
    pub joiner_ms: Option<u64>,
    pub rounds: u64,
    pub rounds_rolled_back: u64,
    pub disagreement: Option<f32>,
    pub bytes_activations: u64,
    pub bytes_gradients: u64,
    pub bytes_averaging: u64,
    pub bytes_if_f32: u64,
    pub wall_s: f64,
    pub samples: Samples,
    /// Sentences about what must not be.
    pub broken: Vec<String>,
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
        let bytes_averaging = logs.iter().map(|log| sent(log, Lane::Average)).sum();
        let joiner_ms = known.joiner.and_then(|(peer, started)| {
            let log = logs.iter().find(|log| log.first().is_some_and(|record| record.peer == peer))?;
            let first = log.iter().find(|record| matches!(record.event, Event::Accepted { .. }))?;
            Some(first.utc.saturating_sub(started))
        });
        let lines = checker::log::merge(logs);
        let summary = checker::check(&lines, &Given::of(manifest, known.kills.clone()));
        let Summary { completed, applied, perished, refused, lost, doubled, overlapped, .. } = summary;
        DemoDone {
            peers: known.peers,
            stages: manifest.stages.count,
            killed: known.kills.iter().map(|kill| kill.peer).collect(),
            joined: known.joiner.iter().map(|(peer, _)| *peer).collect(),
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
            repair_ms_max: summary.repair_ms_max(),
            joiner_ms,
            rounds: summary.rounds,
            rounds_rolled_back: summary.rounds_rolled_back,
            disagreement: summary.disagreement,
            bytes_activations: summary.bytes_activations,
            bytes_gradients: summary.bytes_gradients,
            bytes_averaging,
            bytes_if_f32: summary.bytes_if_f32,
            wall_s: known.wall_s,
            samples: known.samples.clone(),
            broken: summary.broken.clone(),
        }
    }

    /// Why the demo did not do what it promises; nothing if it did.
    pub fn shortfalls(&self, known: &Known) -> Vec<String> {
        let mut all = Vec::new();
        let wanted = if known.whole { FALL * self.loss_first } else { self.loss_first };
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
        if let Some(apart) = self.disagreement.filter(|apart| *apart >= AGREE) {
            all.push(format!("the replicas differ by {:.1} %", 100.0 * apart));
        }
        all.extend(self.broken.iter().cloned());
        all
    }
}

/// Bytes that a peer sent on a lane: its last total of each life.
fn sent(log: &[Record], lane: Lane) -> u64 {
    let mut lives = BTreeMap::new();
    let mut life = 0;
    for record in log {
        match &record.event {
            Event::Started { .. } => life += 1,
            Event::Traffic { lane: of, sent, .. } if *of == lane => {
                lives.insert(life, *sent);
            }
            _ => {}
        }
    }
    lives.values().sum()
}
