//! A worker that computes nothing: its jobs take the time that their arithmetic would, its blobs have the right lengths, and
//! its loss falls with the steps it made.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use skein_pipeline::{
    job::{Coding, Done, Job, Key, Piece},
    model::cost,
};
use skein_protocol::{
    Blob, Manifest, Stage, Version,
    codec::{self, Sample, coded_len},
    hash,
    run::Codec,
};

use super::Work;
use crate::{
    engine::{MILLISECOND, Time},
    world::{Content, Disk, Payload, Store},
};

/// Every job costs this much to begin and end.
const OVERHEAD: Time = 100_000;
/// Bytes a second of walking over parameters: steps, snapshots, adoptions.
const MEMORY: f64 = 5e9;

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Device {
    /// Floating-point operations a second, sustained.
    pub flops: f64,
    /// Relative spread of the time of a job.
    pub noise: f64,
}

impl Device {
    /// One core of a server: 2,590 tokens/s of a model of 6.46 M parameters.
    pub const CORE: Device = Device { flops: 1e11, noise: 0.05 };
}

/// Nanoseconds of one job on a device, for both workers.
pub struct Clockwork {
    manifest: Arc<Manifest>,
    pub device: Device,
    rng: ChaCha8Rng,
}

impl Clockwork {
    pub fn new(manifest: Arc<Manifest>, device: Device, rng: ChaCha8Rng) -> Self {
        Clockwork { manifest, device, rng }
    }

    pub fn cost(&mut self, job: &Job) -> Time {
        let stage = job.stage();
        let flops = cost::stage_flops(&self.manifest, stage) as f64 / self.device.flops;
        let walk = cost::stage_parameters(&self.manifest, stage) as f64 / MEMORY;
        let seconds = match job {
            Job::Forward { .. } => flops / 3.0,
            Job::Infer { pieces, .. } => pieces.len() as f64 * flops / 3.0,
            Job::Backward { .. } => flops * 2.0 / 3.0,
            Job::Loss { .. } => flops,
            Job::Step { .. } => 28.0 * walk,
            Job::Create { .. } => 40.0 * walk,
            Job::Load { .. } | Job::State { .. } | Job::Save { .. } => 60.0 * walk,
            Job::RoundSnapshot { .. } | Job::RoundPrepare { .. } => 24.0 * walk,
            Job::RoundAdopt { .. } => 16.0 * walk,
            Job::RoundAlone { .. } => 12.0 * walk,
            Job::DropSum { .. } => 4.0 * walk,
            Job::Drop { .. } | Job::RoundRollBack { .. } | Job::InferClose { .. } | Job::Remove { .. } => 0.0,
        };
        let spread = 1.0 + self.device.noise * self.rng.random_range(-1.0f64..1.0);
        OVERHEAD + (seconds * spread * 1e9) as Time
    }
}

/// One stage of a modelled worker.
#[derive(Debug, Default)]
struct Model {
    /// Steps that its weights have behind them, its donor's included.
    steps: u32,
    kept: BTreeSet<Key>,
    sum: u32,
    last_sum: u32,
    frozen: Option<u32>,
    prepared: bool,
}

pub struct Modelled {
    manifest: Arc<Manifest>,
    clockwork: Clockwork,
    stages: BTreeMap<Stage, Model>,
    wrongs: Vec<String>,
}

impl Modelled {
    pub fn new(manifest: Arc<Manifest>, clockwork: Clockwork) -> Self {
        Modelled { manifest, clockwork, stages: BTreeMap::new(), wrongs: Vec::new() }
    }

    fn activation(&self, coding: Coding) -> (u64, u64) {
        let values = self.manifest.tokens_per_micro_batch() * u64::from(self.manifest.model.config.hidden);
        (encoded(values, coding.codec), values * 4)
    }

    fn loss(&self, steps: u32) -> f32 {
        1.0 + 4.5 / (1.0 + steps as f32 / 40.0)
    }

    fn state(&self, version: Version, full: bool) -> Payload {
        let parameters = cost::stage_parameters(&self.manifest, version.stage);
        Payload::of(Content::State(version), if full { 20 * parameters + 64 } else { 4 * parameters + 64 })
    }

    fn wrong(&mut self, what: String) -> Done {
        if self.wrongs.len() < 20 {
            self.wrongs.push(what.clone());
        }
        Done::Failed { why: what, disk_full: false }
    }

    fn load(&mut self, stage: Stage, parts: &[Blob], root: hash::Digest, store: &Store) -> Done {
        let parts: Vec<Payload> = parts.iter().filter_map(|blob| store.payload(*blob).cloned()).collect();
        match Payload::joined(&parts) {
            Some((Content::State(version), len))
                if version.stage == stage && len == self.state(version, true).len() && root == root_of(version) =>
            {
                self.stages.insert(stage, Model { steps: version.own_step, ..Model::default() });
                Done::Loaded { version }
            }
            _ => Done::BadInput { why: "the parts are not a state with this root".into() },
        }
    }
}

/// Bytes of `values` numbers under a codec.
fn encoded(values: u64, codec: Codec) -> u64 {
    coded_len(values, codec).unwrap_or(4 * values)
}

fn root_of(version: Version) -> hash::Digest {
    let Version { stage, peer, incarnation, round, own_step } = version;
    let numbers = [u32::from(stage), incarnation, round, own_step].map(u32::to_le_bytes).concat();
    hash::keyed("skein modelled state 1", &[&peer.0, &numbers])
}

impl Work for Modelled {
    fn cost(&mut self, job: &Job) -> Time {
        self.clockwork.cost(job).max(MILLISECOND / 20)
    }

    fn run(&mut self, job: Job, store: &mut Store, disk: &mut Disk) -> Done {
        let stage = job.stage();
        match &job {
            Job::Create { .. } => {
                self.stages.insert(stage, Model::default());
                return Done::Ok;
            }
            Job::Load { parts, root, .. } => return self.load(stage, parts, *root, store),
            _ => {}
        }
        let (activation, raw) = match &job {
            Job::Forward { coding, .. } | Job::Loss { coding, .. } | Job::Backward { coding, .. } => {
                self.activation(*coding)
            }
            _ => (0, 0),
        };
        let sample = Sample::default();
        let last = stage == self.manifest.last_stage();
        let tokens = self.manifest.tokens_per_micro_batch() as u32;
        let steps = self.stages.get(&stage).map_or(0, |model| model.steps);
        let loss = self.loss(steps) * tokens as f32;
        let vocab = u64::from(self.manifest.model.config.vocab);
        let hidden = u64::from(self.manifest.model.config.hidden);
        let parameters = cost::stage_parameters(&self.manifest, stage);
        let Some(model) = self.stages.get_mut(&stage) else {
            return match job {
                // Forgetting what is not there is no fault.
                Job::Drop { .. } | Job::DropSum { .. } | Job::Remove { .. } | Job::RoundRollBack { .. } => Done::Ok,
                job => self.wrong(format!("no engine of the stage: {job:?}")),
            };
        };
        match job {
            Job::Create { .. } | Job::Load { .. } => unreachable!("handled above"),
            Job::Forward { key, coding, .. } => {
                if !model.kept.insert(key) {
                    return self.wrong(format!("forward {key} of stage {stage} twice"));
                }
                Done::Forwarded { output: store.insert(Payload::plain(activation)), coding, raw, sample }
            }
            Job::Loss { key, weight, coding, .. } => {
                model.sum += u32::from(weight > 0.0);
                if model.kept.contains(&key) {
                    return self.wrong(format!("loss {key} of stage {stage} after a forward"));
                }
                let gradient = (stage > 0).then(|| store.insert(Payload::plain(activation)));
                Done::Backed { gradient, coding, raw, sample, loss, tokens }
            }
            Job::Backward { key, weight, coding, .. } => {
                if !model.kept.remove(&key) {
                    return self.wrong(format!("backward {key} of stage {stage} without its forward"));
                }
                model.sum += u32::from(weight > 0.0);
                let gradient = (stage > 0).then(|| store.insert(Payload::plain(activation)));
                Done::Backed { gradient, coding, raw, sample, loss: 0.0, tokens: 0 }
            }
            Job::Drop { keys, .. } => {
                for key in keys {
                    model.kept.remove(&key);
                }
                Done::Ok
            }
            Job::DropSum { .. } => {
                model.sum = 0;
                Done::Ok
            }
            Job::Step { samples, .. } => {
                if model.sum == 0 {
                    return self.wrong(format!("step of stage {stage} with an empty sum"));
                }
                model.steps += 1;
                model.last_sum = std::mem::take(&mut model.sum);
                let run_step = samples / self.manifest.samples_per_step().max(1);
                Done::Stepped { lr: self.manifest.optimizer.lr, gradient_norm: 1.0, run_step }
            }
            Job::State { version, full, .. } => {
                Done::Encoded { blob: store.insert(self.state(version, full)), root: root_of(version) }
            }
            Job::RoundSnapshot { round, codec, .. } => {
                if let Some(frozen) = model.frozen.replace(round) {
                    return self.wrong(format!("round {round} of stage {stage} frozen while {frozen} is"));
                }
                model.prepared = false;
                let len = encoded(parameters, codec) + encoded(parameters, codec::slow_weights(codec));
                let payload = Payload::of(Content::Tensors { round }, len);
                Done::Encoded { blob: store.insert(payload), root: hash::Digest::default() }
            }
            Job::RoundPrepare { round, partner, .. } => {
                let theirs = match store.payload(partner.tensors) {
                    Some(Payload::Modelled { content: Content::Tensors { round }, .. }) => Some(*round),
                    _ => None,
                };
                if model.frozen != Some(round) {
                    return self.wrong(format!("round {round} of stage {stage} prepared without its snapshot"));
                }
                if theirs != Some(round) {
                    return Done::BadInput { why: format!("tensors of round {theirs:?} in round {round}") };
                }
                model.prepared = true;
                Done::Prepared { before: 0.02, after: 0.01 }
            }
            Job::RoundAdopt { round, .. } => {
                if model.frozen.take() != Some(round) || !std::mem::take(&mut model.prepared) {
                    return self.wrong(format!("round {round} of stage {stage} adopted before it was prepared"));
                }
                Done::Ok
            }
            Job::RoundRollBack { .. } => {
                model.frozen = None;
                model.prepared = false;
                Done::Ok
            }
            Job::RoundAlone { .. } | Job::InferClose { .. } => Done::Ok,
            Job::Infer { pieces, .. } => {
                let values = if last { vocab } else { u64::from(tokens) * hidden };
                let output = |piece: &Piece| (piece.session, Ok(store.insert(Payload::plain(values * 4))));
                Done::Inferred { outputs: pieces.iter().map(output).collect() }
            }
            Job::Save { version, .. } => {
                let payload = self.state(version, true);
                let (root, bytes) = (root_of(version), payload.len());
                match disk.keep(version, root, payload) {
                    Ok(()) => Done::Saved { root, bytes },
                    Err(error) => Done::Failed { why: error.why, disk_full: error.disk_full },
                }
            }
            Job::Remove { .. } => {
                self.stages.remove(&stage);
                Done::Ok
            }
        }
    }

    fn kept(&self) -> usize {
        self.stages.values().map(|model| model.kept.len()).sum()
    }

    fn stepped_with(&self, stage: Stage) -> Option<u32> {
        self.stages.get(&stage).map(|model| model.last_sum)
    }

    fn wrongs(&self) -> Vec<String> {
        self.wrongs.clone()
    }
}
