//! One stage at one worker: its engine, and the slow weights and outer momentum of averaging beside it. In: jobs of this
//! stage. Out: what came of each.

use std::collections::BTreeSet;

use bytes::Bytes;
use skein_protocol::{
    Blob, Manifest, Stage, Version,
    codec::{self, Gain},
    hash::Digest,
    run::{Codec, Recompute, Weights},
};

use super::{Blobs, Engines, Saves, bad, failed, round::Rounds};
use crate::{
    exact::{Engine, EngineError, StageInput},
    job::{Coding, Done, Job, Key},
    model::{StageModel, cost, init, schedule, state::StageState},
};

pub struct Hosted {
    engine: Box<dyn Engine>,
    rounds: Rounds,
    /// Samples of the whole run that the last step knew of.
    samples: u64,
    /// Gradients in the open sum, and in the one before it.
    summed: u32,
    stepped_with: u32,
    /// What codecs and zstd do to what goes to the next stage, and to what goes back to the one before.
    forward_gain: Gain,
    backward_gain: Gain,
    /// Memory that activations and gradients are decoded into.
    decoded: Vec<f32>,
    /// Bytes that kept forwards may take beyond their inputs.
    kept_bytes_max: u64,
    /// What a device that ran out of memory is still trusted with.
    ceiling: u64,
    /// Whether the weights are held once more, packed.
    packed: bool,
    /// Forwards whose backward is still to come, and the most that ever were.
    ahead: BTreeSet<Key>,
    ahead_most: u64,
}

impl Hosted {
    /// Version 0: from the manifest's seed.
    pub fn create(manifest: &Manifest, engines: &mut impl Engines, stage: Stage) -> Result<Self, Done> {
        let model = StageModel::of(manifest, stage).map_err(|error| failed(error.to_string()))?;
        let Weights::Seed { init_seed } = manifest.model.weights else {
            return Err(failed("this build starts from a seed, not from a file of weights"));
        };
        let params = init::initial(&model, init_seed);
        let rounds = Rounds::fresh(params.clone());
        let engine = engines.make(manifest, model, params)?;
        Ok(Hosted::of(engine, rounds, 0))
    }

    /// From a state whose bytes lie in `parts`, in order.
    pub fn load(
        manifest: &Manifest,
        engines: &mut impl Engines,
        stage: Stage,
        parts: &[Blob],
        root: Digest,
        blobs: &dyn Blobs,
    ) -> Result<(Self, Version), Done> {
        let model = StageModel::of(manifest, stage).map_err(|error| failed(error.to_string()))?;
        let bytes = joined(parts, blobs)?;
        if StageState::claimed_root(&bytes) != Some(root) {
            return Err(bad("the state is another than the one that was announced"));
        }
        let state = StageState::decode(&bytes).map_err(bad)?;
        state.check(model.values()).map_err(bad)?;
        let StageState { version, samples, train, slow, momentum } = state;
        let values = model.values();
        if version.stage != stage || train.params.is_empty() {
            return Err(bad("the state is not one of this stage"));
        }
        for tensor in [&train.params, &train.m, &train.v, &slow, &momentum] {
            codec::gate(tensor).map_err(bad)?;
        }
        let phi = if slow.is_empty() { train.params.clone() } else { slow };
        let momentum = if momentum.is_empty() { vec![0.0; values] } else { momentum };
        let mut engine = engines.make(manifest, model, train.params.clone())?;
        engine.load(train)?;
        let rounds = Rounds::new(phi, momentum);
        Ok((Hosted::of(engine, rounds, samples), version))
    }

    fn of(engine: Box<dyn Engine>, rounds: Rounds, samples: u64) -> Self {
        let (forward_gain, backward_gain) = (Gain::default(), Gain::default());
        let kept_bytes_max = engine.settings().kept_bytes_max;
        Hosted {
            engine,
            rounds,
            samples,
            summed: 0,
            stepped_with: 0,
            forward_gain,
            backward_gain,
            decoded: Vec::new(),
            kept_bytes_max,
            ceiling: u64::MAX,
            packed: false,
            ahead: BTreeSet::new(),
            ahead_most: 0,
        }
    }

    pub fn engine(&self) -> &dyn Engine {
        self.engine.as_ref()
    }

    pub fn set_packed(&mut self, packed: bool) {
        self.packed = packed;
        self.engine.set_packed(packed);
    }

    pub fn set_kept_bytes_max(&mut self, bytes: u64) {
        self.kept_bytes_max = bytes.min(self.ceiling);
        self.engine.set_kept_bytes_max(self.kept_bytes_max);
    }

    /// Bytes of kept forwards: their inputs, and the tapes of those whose backward is to come. The buffers of tapes stay for the
    /// next ones, so the most that ever were count. Packed weights, which take their place where memory is short, count here.
    pub fn kept_bytes(&self, manifest: &Manifest, stage: Stage) -> u64 {
        let inputs = cost::input_bytes(manifest, stage).saturating_mul(self.engine.kept().len() as u64);
        let tape = match manifest.train.recompute {
            Recompute::WhenNeeded if !self.engine.model().head => cost::tape_bytes(manifest, stage),
            _ => 0,
        };
        let packed = if self.packed { cost::packed_bytes(manifest, stage) } else { 0 };
        inputs.saturating_add(packed).saturating_add(tape.saturating_mul(self.ahead_most).min(self.kept_bytes_max))
    }

    fn is_ahead(&mut self, key: Key) {
        self.ahead.insert(key);
        self.ahead_most = self.ahead_most.max(self.ahead.len() as u64);
    }

    /// A device that fails may be out of memory: it is asked once more with nothing kept but inputs, and keeps half as much from
    /// then on.
    fn smaller<T>(&mut self, mut ask: impl FnMut(&mut dyn Engine) -> Result<T, EngineError>) -> Result<T, EngineError> {
        match ask(self.engine.as_mut()) {
            Err(EngineError::Device(_)) if self.kept_bytes_max > 0 => {}
            answer => return answer,
        }
        self.engine.set_kept_bytes_max(0);
        let again = ask(self.engine.as_mut());
        self.ceiling = self.kept_bytes_max / 2;
        self.set_kept_bytes_max(self.ceiling);
        again
    }

    pub fn stepped_with(&self) -> u32 {
        self.stepped_with
    }

    pub fn run(
        &mut self,
        manifest: &Manifest,
        job: Job,
        blobs: &mut dyn Blobs,
        saves: &mut dyn Saves,
    ) -> Result<Done, Done> {
        match job {
            Job::Forward { key, input, coding, .. } => self.forward(manifest, key, input, coding, blobs),
            Job::Loss { key, input, labels, weight, coding, .. } => {
                self.loss(manifest, key, input, labels, weight, coding, blobs)
            }
            Job::Backward { key, gradient, weight, coding, .. } => {
                self.backward(manifest, key, gradient, weight, coding, blobs)
            }
            Job::Drop { keys, .. } => {
                for key in keys {
                    self.ahead.remove(&key);
                    self.engine.drop_kept(key);
                }
                Ok(Done::Ok)
            }
            Job::DropSum { .. } => {
                self.engine.drop_sum();
                self.summed = 0;
                Ok(Done::Ok)
            }
            Job::Step { samples, .. } => self.step(manifest, samples),
            Job::State { version, full, .. } => {
                let (bytes, root) = self.state(version, full).encode();
                Ok(Done::Encoded { blob: blobs.put(bytes.into()), root })
            }
            Job::Save { version, .. } => {
                let (state, root) = self.state(version, true).encode();
                let bytes = state.len() as u64;
                let saved = saves.save(version, root, &state);
                saved.map_err(|error| Done::Failed { why: error.why, disk_full: error.disk_full })?;
                Ok(Done::Saved { root, bytes })
            }
            Job::RoundSnapshot { codec, .. } => {
                let bytes = self.rounds.freeze(self.engine.shared(), codec)?;
                // Nobody names a round's tensors by their digest, and taking it would cost as much as encoding them.
                Ok(Done::Encoded { blob: blobs.put(bytes), root: Digest::default() })
            }
            Job::RoundPrepare { partner, .. } => {
                let theirs = bytes_of(partner.tensors, blobs)?;
                let blocks: Vec<_> = self.engine.model().blocks().iter().map(|(_, range)| range.clone()).collect();
                self.rounds.prepare(&manifest.averaging, &blocks, &partner, &theirs)
            }
            Job::RoundAdopt { .. } => {
                let theta = self.rounds.adopt(&self.engine.shared(), manifest.codecs.error_feedback)?;
                self.engine.set_params(theta)?;
                Ok(Done::Ok)
            }
            Job::RoundRollBack { .. } => {
                self.rounds.roll_back();
                Ok(Done::Ok)
            }
            Job::RoundAlone { .. } => {
                self.rounds.alone(self.engine.params());
                Ok(Done::Ok)
            }
            Job::Infer { session, position, input, .. } => self.infer(session, position, input, blobs),
            Job::InferClose { session, .. } => {
                self.engine.drop_session(session);
                Ok(Done::Ok)
            }
            Job::Create { .. } | Job::Load { .. } | Job::Remove { .. } => {
                Err(failed("a job that makes or removes a stage is not one of the stage"))
            }
        }
    }

    fn forward(
        &mut self,
        manifest: &Manifest,
        key: Key,
        input: Blob,
        coding: Coding,
        blobs: &mut dyn Blobs,
    ) -> Result<Done, Done> {
        let input = self.input(manifest, input, blobs)?;
        let output = self.smaller(|engine| engine.forward(key, input.as_input()))?;
        self.used(input);
        self.is_ahead(key);
        let (output, raw) = coded(&output, coding, &mut self.forward_gain, blobs)?;
        Ok(Done::Forwarded { output, coding, raw, sample: self.forward_gain.sample(coding.codec) })
    }

    #[allow(clippy::too_many_arguments)]
    fn loss(
        &mut self,
        manifest: &Manifest,
        key: Key,
        input: Blob,
        labels: Blob,
        weight: f32,
        coding: Coding,
        blobs: &mut dyn Blobs,
    ) -> Result<Done, Done> {
        let targets = ids(&bytes_of(labels, blobs)?, manifest.tokens_per_micro_batch())?;
        let input = self.input(manifest, input, blobs)?;
        let lost = self.smaller(|engine| {
            engine.forward(key, input.as_input())?;
            engine.loss_backward(key, &targets, weight)
        })?;
        self.used(input);
        self.summed += u32::from(weight > 0.0);
        let (gradient, raw) = self.gradient(&lost.gradient, coding, blobs)?;
        let sample = self.backward_gain.sample(coding.codec);
        Ok(Done::Backed { gradient, coding, raw, sample, loss: lost.loss as f32, tokens: lost.tokens })
    }

    fn backward(
        &mut self,
        manifest: &Manifest,
        key: Key,
        gradient: Blob,
        weight: f32,
        coding: Coding,
        blobs: &mut dyn Blobs,
    ) -> Result<Done, Done> {
        let mut values = std::mem::take(&mut self.decoded);
        hidden(&bytes_of(gradient, blobs)?, manifest, &manifest.codecs.backward, &mut values)?;
        let gradient = self.smaller(|engine| engine.backward(key, &values, weight, false))?;
        self.decoded = values;
        self.ahead.remove(&key);
        self.summed += u32::from(weight > 0.0);
        let (gradient, raw) = self.gradient(&gradient, coding, blobs)?;
        let sample = self.backward_gain.sample(coding.codec);
        Ok(Done::Backed { gradient, coding, raw, sample, loss: 0.0, tokens: 0 })
    }

    fn gradient(&mut self, values: &[f32], coding: Coding, blobs: &mut dyn Blobs) -> Result<(Option<Blob>, u64), Done> {
        if self.engine.model().embedding {
            return Ok((None, 0));
        }
        let (blob, raw) = coded(values, coding, &mut self.backward_gain, blobs)?;
        Ok((Some(blob), raw))
    }

    fn step(&mut self, manifest: &Manifest, samples: u64) -> Result<Done, Done> {
        let run_step = samples / manifest.samples_per_step().max(1);
        let lr = schedule::rate(&manifest.optimizer, schedule::steps(manifest), run_step);
        let report = self.engine.step(lr)?;
        self.samples = self.samples.max(samples);
        self.stepped_with = std::mem::take(&mut self.summed);
        match report.finite {
            true => Ok(Done::Stepped { lr, gradient_norm: report.norm() as f32, run_step }),
            false => Err(Done::NotFinite { why: "the norm of the summed gradients".into() }),
        }
    }

    fn state(&self, version: Version, full: bool) -> StageState {
        let train = self.engine.state();
        if !full {
            let train = crate::exact::TrainState { params: train.params, ..Default::default() };
            return StageState { version, samples: self.samples, train, ..StageState::default() };
        }
        let (slow, momentum) = self.rounds.tensors();
        StageState { version, samples: self.samples, train, slow: slow.to_vec(), momentum: momentum.to_vec() }
    }

    fn infer(&mut self, session: u64, position: u32, input: Blob, blobs: &mut dyn Blobs) -> Result<Done, Done> {
        let bytes = bytes_of(input, blobs)?;
        let config = &self.engine.model().config;
        let (words, rest) = bytes.as_chunks::<4>();
        let width = if self.engine.model().embedding { 1 } else { config.hidden as usize };
        let tokens = words.len() / width.max(1);
        if !rest.is_empty() || words.is_empty() || words.len() % width.max(1) != 0 || tokens > config.context as usize {
            return Err(bad(format!("{} bytes are no piece of a generation", bytes.len())));
        }
        let output = if self.engine.model().embedding {
            let ids: Vec<u32> = words.iter().map(|&word| u32::from_le_bytes(word)).collect();
            self.engine.infer(session, position as usize, StageInput::Tokens(&ids))?
        } else {
            let hidden: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
            codec::gate(&hidden).map_err(bad)?;
            self.engine.infer(session, position as usize, StageInput::Hidden(&hidden))?
        };
        let bytes: Vec<u8> = output.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(Done::Inferred { output: blobs.put(bytes.into()) })
    }

    fn input(&mut self, manifest: &Manifest, input: Blob, blobs: &dyn Blobs) -> Result<Input, Done> {
        let bytes = bytes_of(input, blobs)?;
        if self.engine.model().embedding {
            return Ok(Input::Tokens(ids(&bytes, manifest.tokens_per_micro_batch())?));
        }
        let mut values = std::mem::take(&mut self.decoded);
        hidden(&bytes, manifest, &manifest.codecs.forward, &mut values)?;
        Ok(Input::Hidden(values))
    }

    /// Its memory is for the next.
    fn used(&mut self, input: Input) {
        if let Input::Hidden(values) = input {
            self.decoded = values;
        }
    }
}

/// What comes into a stage, decoded.
enum Input {
    Tokens(Vec<u32>),
    Hidden(Vec<f32>),
}

impl Input {
    fn as_input(&self) -> StageInput<'_> {
        match self {
            Input::Tokens(ids) => StageInput::Tokens(ids),
            Input::Hidden(values) => StageInput::Hidden(values),
        }
    }
}

fn bytes_of(blob: Blob, blobs: &dyn Blobs) -> Result<Bytes, Done> {
    blobs.get(blob).ok_or_else(|| failed("the bytes of a job are gone"))
}

fn joined(parts: &[Blob], blobs: &dyn Blobs) -> Result<Bytes, Done> {
    if let [one] = parts {
        return bytes_of(*one, blobs);
    }
    let mut all = Vec::with_capacity(parts.iter().map(|part| part.len as usize).sum());
    for part in parts {
        all.extend_from_slice(&bytes_of(*part, blobs)?);
    }
    Ok(all.into())
}

/// Token ids or labels of one micro-batch: `count` little-endian u32.
fn ids(bytes: &[u8], count: u64) -> Result<Vec<u32>, Done> {
    if bytes.len() as u64 != count.saturating_mul(4) {
        return Err(bad(format!("{} bytes of tokens, {} are expected", bytes.len(), count.saturating_mul(4))));
    }
    Ok(bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect())
}

/// Hidden states, or their gradient, of one micro-batch: decoded, finite, of a size that training knows.
fn hidden(bytes: &[u8], manifest: &Manifest, allowed: &[Codec], out: &mut Vec<f32>) -> Result<(), Done> {
    let values = manifest.tokens_per_micro_batch().saturating_mul(u64::from(manifest.model.config.hidden));
    out.resize(usize::try_from(values).map_err(bad)?, 0.0);
    codec::decode_into(bytes, out, allowed).map_err(bad)
}

/// Encodes an own result for its next hop; `u64` is its size as f32.
fn coded(values: &[f32], coding: Coding, gain: &mut Gain, blobs: &mut dyn Blobs) -> Result<(Blob, u64), Done> {
    let mut bytes = Vec::new();
    let encoded = gain.encode(values, coding.codec, coding.zstd, &mut bytes);
    encoded.map_err(|error| Done::NotFinite { why: error.to_string() })?;
    Ok((blobs.put(bytes.into()), 4 * values.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Kept(Vec<Bytes>);

    impl Blobs for Kept {
        fn get(&self, blob: Blob) -> Option<Bytes> {
            self.0.get(blob.id as usize).cloned()
        }

        fn put(&mut self, bytes: Bytes) -> Blob {
            let blob = Blob { id: self.0.len() as u64, len: bytes.len() as u64 };
            self.0.push(bytes);
            blob
        }
    }

    /// How many of 32 tensors travel packed.
    fn packed(values: impl Fn(u32) -> f32, zstd: bool) -> usize {
        let (mut gain, mut kept) = (Gain::default(), Kept::default());
        for n in 0..32 {
            let tensor: Vec<f32> = (0..2048).map(|i| values(n * 2048 + i)).collect();
            let (_, raw) = coded(&tensor, Coding { codec: Codec::Int8, zstd }, &mut gain, &mut kept).unwrap();
            assert_eq!(raw, 4 * 2048);
        }
        kept.0.iter().filter(|bytes| codec::codec_of(bytes).unwrap().1).count()
    }

    #[test]
    fn what_a_stage_sends_is_packed_where_the_run_allows_it_and_it_pays() {
        let random = |i: u32| {
            let i = (i ^ i >> 16).wrapping_mul(0x85eb_ca6b);
            let i = (i ^ i >> 13).wrapping_mul(0xc2b2_ae35);
            ((i ^ i >> 16) >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let structured = |i: u32| (i / 64 % 4) as f32;
        assert!(packed(random, true) <= 2, "none but those that were tried");
        assert_eq!(packed(structured, true), 32);
        assert_eq!(packed(structured, false), 0);
    }
}
