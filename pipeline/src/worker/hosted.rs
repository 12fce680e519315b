//! One stage at one worker: its engine, and the slow weights and outer momentum of averaging beside it. In: jobs of this
//! stage. Out: what came of each, results for the next hop as numbers.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use skein_protocol::{
    Blob, Manifest, Stage, Version,
    codec::{self, Sample},
    hash::Digest,
    run::{Codec, Recompute},
    wire::Starts,
};

use super::{
    Blobs, Engines, Saves, bad,
    encode::{Left, Unencoded, What},
    failed,
    fitted::Fitted,
    round::Rounds,
};
use crate::{
    exact::{self, Engine, Lost, StageInput, StageWeights},
    job::{Coding, Done, Job, Key, Piece},
    model::{StageModel, cost, frozen::Frozen, schedule, state::StageState},
};

pub struct Hosted {
    engine: Fitted,
    rounds: Rounds,
    /// Samples of the whole run that the last step knew of.
    samples: u64,
    /// Gradients in the open sum, and in the one before it.
    summed: u32,
    stepped_with: u32,
    /// Memory that activations and gradients are decoded into.
    decoded: Vec<f32>,
    /// Whether the weights are held once more, packed.
    packed: bool,
    /// Forwards whose backward is still to come, and the most that ever were.
    ahead: BTreeSet<Key>,
    ahead_most: u64,
}

impl Hosted {
    /// Version 0.
    pub fn create(
        manifest: &Manifest,
        engines: &mut impl Engines,
        stage: Stage,
        frozen: &[Blob],
        blobs: &dyn Blobs,
    ) -> Result<Self, Done> {
        let model = StageModel::of(manifest, stage).map_err(|error| failed(error.to_string()))?;
        let frozen = unfrozen(manifest, stage, &model, frozen, blobs)?;
        let params = engines.initial(manifest, &model)?;
        let rounds = Rounds::fresh(params.clone());
        let engine = engines.make(manifest, model, StageWeights { params, frozen })?;
        Ok(Hosted::of(engine, rounds, 0))
    }

    /// From a state whose bytes lie in `parts`, in order.
    pub fn load(
        manifest: &Manifest,
        engines: &mut impl Engines,
        stage: Stage,
        parts: &[Blob],
        root: Digest,
        frozen: &[Blob],
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
        let frozen = unfrozen(manifest, stage, &model, frozen, blobs)?;
        let mut engine = engines.make(manifest, model, StageWeights { params: train.params.clone(), frozen })?;
        engine.load(train)?;
        let rounds = Rounds::new(phi, momentum);
        Ok((Hosted::of(engine, rounds, samples), version))
    }

    fn of(engine: Box<dyn Engine>, rounds: Rounds, samples: u64) -> Self {
        Hosted {
            engine: Fitted::new(engine),
            rounds,
            samples,
            summed: 0,
            stepped_with: 0,
            decoded: Vec::new(),
            packed: false,
            ahead: BTreeSet::new(),
            ahead_most: 0,
        }
    }

    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    pub fn set_packed(&mut self, packed: bool) {
        self.packed = packed;
        self.engine.set_packed(packed);
    }

    pub fn set_kept_bytes_max(&mut self, bytes: u64) {
        self.engine.allow(bytes);
    }

    /// Bytes of kept forwards: their inputs, and the tapes of those whose backward is to come. The buffers of tapes stay for the
    /// next ones, so the most that ever were count. Packed weights, which take their place where memory is short, count here.
    pub fn kept_bytes(&self, manifest: &Manifest, stage: Stage) -> u64 {
        let inputs = cost::input_bytes(manifest, stage).saturating_mul(self.engine.kept_whole() as u64);
        let tape = match manifest.train.recompute {
            Recompute::WhenNeeded if !self.engine.model().head => cost::tape_bytes(manifest, stage),
            _ => 0,
        };
        let packed = if self.packed { self.engine.packed_bytes() } else { 0 };
        inputs
            .saturating_add(packed)
            .saturating_add(tape.saturating_mul(self.ahead_most).min(self.engine.kept_bytes_max()))
    }

    /// Bytes of the round in the air.
    pub fn round_bytes(&self) -> u64 {
        self.rounds.open_bytes()
    }

    /// Forwards that are kept.
    pub fn kept(&self) -> usize {
        self.engine.kept_whole()
    }

    fn is_ahead(&mut self, key: Key) {
        self.ahead.insert(key);
        self.ahead_most = self.ahead_most.max(self.ahead.len() as u64);
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
    ) -> Result<Left, Done> {
        let done = match job {
            Job::Forward { stage, key, input, starts, coding } => {
                let values = self.forward(manifest, key, input, &starts, blobs)?;
                return Ok(Left::Encoding(Unencoded { stage, values, coding, what: What::Output }));
            }
            Job::Loss { stage, key, input, starts, labels, weight, coding } => {
                let lost = self.loss(manifest, key, (input, &starts), labels, weight, blobs)?;
                return Ok(self.gradient(stage, coding, lost));
            }
            Job::Backward { stage, key, gradient, weight, coding } => {
                let gradient = self.backward(manifest, key, gradient, weight, blobs)?;
                return Ok(self.gradient(stage, coding, Lost { loss: 0.0, tokens: 0, gradient }));
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
                let (bytes, root) = self.state(version, full)?.encode();
                Ok(Done::Encoded { blob: blobs.put(bytes.into()), root })
            }
            Job::Save { version, .. } => {
                let (state, root) = self.state(version, true)?.encode();
                let bytes = state.len() as u64;
                let saved = saves.save(version, root, &state);
                saved.map_err(|error| Done::Failed { why: error.why, disk_full: error.disk_full })?;
                Ok(Done::Saved { root, bytes })
            }
            Job::RoundSnapshot { codec, .. } => {
                self.engine.readable()?;
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
                self.engine.readable()?;
                let theta = self.rounds.adopted(&self.engine.shared(), manifest.codecs.error_feedback)?;
                self.engine.set_params(theta)?;
                self.rounds.taken();
                Ok(Done::Ok)
            }
            Job::RoundRollBack { .. } => {
                self.rounds.roll_back();
                Ok(Done::Ok)
            }
            Job::RoundAlone { .. } => {
                self.engine.readable()?;
                self.rounds.alone(self.engine.params());
                Ok(Done::Ok)
            }
            Job::Infer { pieces, .. } => Ok(self.infer(&pieces, blobs)),
            Job::InferClose { session, .. } => {
                self.engine.drop_session(session);
                Ok(Done::Ok)
            }
            Job::Create { .. } | Job::Load { .. } | Job::Remove { .. } => {
                Err(failed("a job that makes or removes a stage is not one of the stage"))
            }
        };
        done.map(Left::Nothing)
    }

    fn forward(
        &mut self,
        manifest: &Manifest,
        key: Key,
        input: Blob,
        starts: &Starts,
        blobs: &dyn Blobs,
    ) -> Result<Vec<f32>, Done> {
        check_starts(manifest, starts)?;
        let input = self.input(manifest, input, blobs)?;
        let output = self.engine.forward(key, input.as_input(), starts)?;
        self.used(input);
        self.is_ahead(key);
        Ok(output)
    }

    fn loss(
        &mut self,
        manifest: &Manifest,
        key: Key,
        (input, starts): (Blob, &Starts),
        labels: Blob,
        weight: f32,
        blobs: &dyn Blobs,
    ) -> Result<Lost, Done> {
        check_starts(manifest, starts)?;
        let targets = ids(&bytes_of(labels, blobs)?, manifest.tokens_per_micro_batch())?;
        let input = self.input(manifest, input, blobs)?;
        let lost = self.engine.loss(key, input.as_input(), starts, &targets, weight)?;
        self.used(input);
        self.summed += u32::from(weight > 0.0);
        Ok(lost)
    }

    fn backward(
        &mut self,
        manifest: &Manifest,
        key: Key,
        gradient: Blob,
        weight: f32,
        blobs: &dyn Blobs,
    ) -> Result<Vec<f32>, Done> {
        let mut values = std::mem::take(&mut self.decoded);
        hidden(&bytes_of(gradient, blobs)?, manifest, &manifest.codecs.backward, &mut values)?;
        let gradient = self.engine.backward(key, &values, weight)?;
        self.decoded = values;
        self.ahead.remove(&key);
        self.summed += u32::from(weight > 0.0);
        Ok(gradient)
    }

    /// Gradients of token ids go nowhere.
    fn gradient(&self, stage: Stage, coding: Coding, Lost { loss, tokens, gradient: values }: Lost) -> Left {
        let loss = loss as f32;
        match self.engine.model().embedding {
            true => {
                Left::Nothing(Done::Backed { gradient: None, coding, raw: 0, sample: Sample::default(), loss, tokens })
            }
            false => Left::Encoding(Unencoded { stage, values, coding, what: What::Gradient { loss, tokens } }),
        }
    }

    /// Memory of a result of this stage.
    pub fn reuse(&mut self, values: Vec<f32>) {
        self.engine.reuse(values);
    }

    fn step(&mut self, manifest: &Manifest, samples: u64) -> Result<Done, Done> {
        let run_step = samples / manifest.samples_per_step().max(1);
        let lr = schedule::rate(&manifest.optimizer, schedule::steps(manifest), run_step);
        // A step that cannot be made ends the sum: what was in it perishes, and must not be in the next.
        let report = self.engine.step(lr).inspect_err(|_| {
            self.engine.drop_sum();
            self.summed = 0;
        })?;
        self.samples = self.samples.max(samples);
        self.stepped_with = std::mem::take(&mut self.summed);
        match report.finite {
            true => Ok(Done::Stepped { lr, gradient_norm: report.norm() as f32, run_step }),
            false => Err(Done::NotFinite { why: "the norm of the summed gradients".into() }),
        }
    }

    fn state(&self, version: Version, full: bool) -> Result<StageState, Done> {
        if !full {
            self.engine.readable()?;
            let train = exact::TrainState { params: self.engine.params().to_vec(), ..Default::default() };
            return Ok(StageState { version, samples: self.samples, train, ..StageState::default() });
        }
        let train = self.engine.state()?;
        let (slow, momentum) = self.rounds.tensors();
        Ok(StageState { version, samples: self.samples, train, slow: slow.to_vec(), momentum: momentum.to_vec() })
    }

    /// A piece that is none does not keep the others from being computed.
    fn infer(&mut self, pieces: &[Piece], blobs: &mut dyn Blobs) -> Done {
        let inputs: Vec<_> = pieces.iter().map(|piece| (piece, self.piece(piece.input, blobs))).collect();
        let readable: Vec<exact::Piece<'_>> = inputs
            .iter()
            .filter_map(|(piece, input)| {
                let (session, position) = (piece.session, piece.position as usize);
                Some(exact::Piece { session, position, input: input.as_ref().ok()?.as_input() })
            })
            .collect();
        let mut answers = self.engine.infer_all(&readable).into_iter();
        let mut output = |input: &Result<Input, String>| {
            input.as_ref().map_err(String::clone)?;
            let values = answers.next().ok_or("it was not computed")?.map_err(|error| error.to_string())?;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            Ok(blobs.put(bytes.into()))
        };
        let outputs = inputs.iter().map(|(piece, input)| (piece.session, output(input))).collect();
        Done::Inferred { outputs }
    }

    fn piece(&self, input: Blob, blobs: &dyn Blobs) -> Result<Input, String> {
        let bytes = blobs.get(input).ok_or("its bytes are gone")?;
        let config = &self.engine.model().config;
        let (words, rest) = bytes.as_chunks::<4>();
        let width = if self.engine.model().embedding { 1 } else { config.hidden as usize };
        let tokens = words.len() / width.max(1);
        if !rest.is_empty() || words.is_empty() || words.len() % width.max(1) != 0 || tokens > config.context as usize {
            return Err(format!("{} bytes are no piece of a generation", bytes.len()));
        }
        if self.engine.model().embedding {
            return Ok(Input::Tokens(words.iter().map(|&word| u32::from_le_bytes(word)).collect()));
        }
        let hidden: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
        codec::gate(&hidden).map_err(|error| error.to_string())?;
        Ok(Input::Hidden(hidden))
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

/// What stands beside the adapters of a stage, where such are trained. Its bytes are those that the run was signed with, or somebody
/// gave others.
fn unfrozen(
    manifest: &Manifest,
    stage: Stage,
    model: &StageModel,
    parts: &[Blob],
    blobs: &dyn Blobs,
) -> Result<Option<Arc<Frozen>>, Done> {
    let (Some(of), Some(lora)) = (model.frozen(), manifest.lora()) else { return Ok(None) };
    let hash = manifest.frozen(stage).ok_or_else(|| failed("the run does not name the weights of the stage"))?;
    let pieces = parts.iter().map(|part| bytes_of(*part, blobs)).collect::<Result<Vec<_>, _>>()?;
    Frozen::open(of, lora.base, pieces, hash).map(|weights| Some(Arc::new(weights))).map_err(bad)
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

/// Before anything is cut by them: a micro-batch in pieces is refused for what the whole is refused for.
fn check_starts(manifest: &Manifest, starts: &Starts) -> Result<(), Done> {
    let tokens = usize::try_from(manifest.tokens_per_micro_batch()).map_err(bad)?;
    starts.check(tokens, manifest.train.sequence as usize).map_err(bad)
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
