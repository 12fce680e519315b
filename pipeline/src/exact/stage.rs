//! The engine of a stage over f32 slices: versions of the weights, kept forwards, the lanes of a micro-batch.
//!
//! Generic over the matrix product. A version of the weights lives as long as something refers to it, and its buffer is then
//! used again: steps and adoptions write to a spare one, never in place.

use std::{collections::BTreeMap, sync::Arc};

use skein_protocol::{run::Recompute, wire::Starts};

use super::{
    attention::Shape,
    engine::{Engine, EngineError, Lost, Piece, Settings, StageInput, StageWeights, StepReport, TrainState},
    infer::{Room, Session},
    input::{Input, check_gradient, check_params, check_rate, check_settings, check_targets, check_weights},
    kernel,
    lane::{From, Lane, Plan},
    lanes::{self, Share},
    optimizer::Master,
    product::Product,
    weights::{Panels, Params, Source},
};
use crate::model::{Dims, StageModel, cost, frozen::Frozen};

/// Results that are kept for their memory: one is made while the one before it is encoded.
const RESULTS: usize = 2;

/// One version of the parameters.
pub struct Held {
    number: u64,
    pub params: Arc<Vec<f32>>,
}

impl Held {
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// What one forward left.
struct Kept {
    input: Arc<Input>,
    sequences: usize,
    /// Gone after the backward, when its version is too old, or when memory did not allow it.
    tape: Option<Tape>,
}

struct Tape {
    held: Arc<Held>,
    /// The lanes' tapes, one after the other.
    buffer: Vec<f32>,
}

pub struct StageEngine<P> {
    pub(super) model: StageModel,
    pub(super) dims: Dims,
    settings: Settings,
    pub(super) plan: Plan,
    pub(super) product: P,
    master: Master,
    /// What is not trained, where the parameters are adapters.
    pub(super) frozen: Option<Arc<Frozen>>,
    pub(super) held: Arc<Held>,
    retired: Vec<Arc<Held>>,
    kept: BTreeMap<u64, Kept>,
    lanes: Vec<Lane<P>>,
    /// Whether the weights are packed once a version.
    packed: bool,
    pub(super) panels: Panels,
    /// Of one micro-batch; it changes places with the open sum.
    gradient: Vec<f32>,
    /// Tapes that nobody uses.
    free: Vec<Vec<f32>>,
    /// Results that nobody reads, at most [`RESULTS`].
    results: Vec<Vec<f32>>,
    pub(super) sessions: BTreeMap<u64, Session>,
    pub(super) room: Room,
}

impl<P: Product> StageEngine<P> {
    /// An engine with fresh optimizer state.
    pub fn with_product(
        model: StageModel,
        settings: Settings,
        weights: impl Into<StageWeights>,
        product: P,
    ) -> Result<Self, EngineError> {
        check_settings(&settings)?;
        let StageWeights { params, frozen } = weights.into();
        check_weights(&model, &params, frozen.as_deref())?;
        let (dims, plan) = (model.dims(), Plan::new(&model, settings.sequence));
        Ok(StageEngine {
            dims,
            packed: true,
            panels: Panels::new(&product, plan.matrices(&dims)),
            plan,
            master: Master::new(&model, &settings),
            held: Arc::new(Held { number: 0, params: Arc::new(params) }),
            frozen,
            model,
            settings,
            product,
            retired: Vec::new(),
            kept: BTreeMap::new(),
            lanes: Vec::new(),
            gradient: Vec::new(),
            free: Vec::new(),
            results: Vec::new(),
            sessions: BTreeMap::new(),
            room: Room::default(),
        })
    }

    fn shape(&self, sequences: usize) -> Shape {
        Shape { dims: self.dims, sequences, t: self.settings.sequence }
    }

    /// Sequences of each lane, as ranges.
    fn cut(&mut self, sequences: usize) -> Vec<std::ops::Range<usize>> {
        let n = cost::lanes(sequences, self.settings.sequence);
        while self.lanes.len() < n {
            self.lanes.push(Lane::new(self.product.clone()));
        }
        (0..n).map(|i| i * sequences / n..(i + 1) * sequences / n).collect()
    }

    /// Has the version in use packed, where memory was given for that.
    pub(super) fn prepare(&mut self, held: &Held) {
        match &self.frozen {
            Some(frozen) if self.packed && !frozen.in_blocks() => {
                self.panels.fill(&self.product, Source::Frozen(frozen), FROZEN);
            }
            None if self.packed && held.number == self.held.number => {
                self.panels.fill(&self.product, Source::Flat(&held.params), held.number);
            }
            _ => {}
        }
    }

    /// Runs the layers of `held` over `input` into a tape, and returns the tape.
    fn run(&mut self, held: &Arc<Held>, input: &Input, sequences: usize) -> Tape {
        self.prepare(held);
        let cut = self.cut(sequences);
        let len = cut.iter().map(|range| self.plan.tape(&self.shape(range.len()))).sum();
        let mut buffer = self.free.pop().unwrap_or_default();
        buffer.resize(len, 0.0);
        let mut shares =
            shares(&mut self.lanes, &self.plan, &cut, self.dims, self.settings.sequence, input, &mut buffer);
        let params = params(held, self.frozen.as_deref(), &self.panels);
        lanes::forward(&self.product, &self.plan, params, &mut shares);
        Tape { held: held.clone(), buffer }
    }

    /// The output of a tape: the lanes' outputs, one after the other.
    fn output(&mut self, tape: &Tape, sequences: usize) -> Vec<f32> {
        let mut out = self.results.pop().unwrap_or_default();
        out.clear();
        out.reserve_exact(sequences * self.settings.sequence * self.dims.hidden);
        let mut end = 0;
        for range in self.cut(sequences) {
            let shape = self.shape(range.len());
            end += self.plan.tape(&shape);
            out.extend_from_slice(&tape.buffer[end - shape.rows() * self.dims.hidden..end]);
        }
        out
    }

    fn kept_bytes(&self) -> u64 {
        self.kept.values().filter_map(|k| k.tape.as_ref()).map(|t| 4 * t.buffer.len() as u64).sum()
    }

    /// Backward of a kept forward, from a gradient or from targets.
    fn back(&mut self, key: u64, from: From<'_>, weight: f32, recompute: bool) -> Result<(f64, Vec<f32>), EngineError> {
        if !weight.is_finite() {
            return Err(EngineError::BadInput("the weight of a gradient is not finite".into()));
        }
        let kept = self.kept.get_mut(&key).ok_or(EngineError::NotKept(key))?;
        let (input, sequences) = (kept.input.clone(), kept.sequences);
        let mut tape = match (kept.tape.take(), recompute) {
            (Some(tape), false) => tape,
            (old, _) => {
                self.free.extend(old.map(|t| t.buffer));
                let held = self.held.clone();
                self.run(&held, &input, sequences)
            }
        };
        let cut = self.cut(sequences);
        let (t, hidden, wanted) = (self.settings.sequence, self.dims.hidden, weight != 0.0);
        let mut gradient = Vec::new();
        if !self.model.embedding {
            // All of it is written.
            gradient = self.results.pop().unwrap_or_default();
            gradient.resize(sequences * t * hidden, 0.0);
        }
        let from: Vec<From<'_>> = (cut.iter().map(|range| range.start * t..range.end * t))
            .map(|rows| match from {
                From::Gradient(g) => From::Gradient(&g[rows.start * hidden..rows.end * hidden]),
                From::Targets(targets, scale) => From::Targets(&targets[rows], scale),
            })
            .collect();
        self.prepare(&tape.held);
        if wanted {
            self.gradient.resize(self.model.values(), 0.0);
        }
        let mut shares = shares(&mut self.lanes, &self.plan, &cut, self.dims, t, &input, &mut tape.buffer);
        let grad = wanted.then_some(&mut self.gradient[..]);
        let params = params(&tape.held, self.frozen.as_deref(), &self.panels);
        let loss = lanes::backward(&self.product, &self.plan, params, &mut shares, &from, grad, &mut gradient);
        self.free.push(tape.buffer);
        self.retire(tape.held);
        if !loss.is_finite() {
            return Err(EngineError::NotFinite("the loss"));
        }
        if !kernel::finite(&gradient) {
            return Err(EngineError::NotFinite("the gradient of the input"));
        }
        if wanted {
            self.master.add(&self.product, &mut self.gradient, weight)?;
        }
        Ok((loss, gradient))
    }

    /// Remembers a version that may be the last reference to its buffer.
    fn retire(&mut self, held: Arc<Held>) {
        if held.number != self.held.number && !self.retired.iter().any(|r| r.number == held.number) {
            self.retired.push(held);
        }
    }

    /// A buffer for new parameters: that of a version nobody refers to, or a new one.
    fn spare(&mut self) -> Vec<f32> {
        let mut spare = self.reclaim();
        spare.resize(self.model.values(), 0.0);
        spare
    }

    /// The buffer of a version nobody refers to; an empty one where there is none. Forwards that are older than the version
    /// in use lose their tapes here, so that two versions are held once a new one is in use.
    fn reclaim(&mut self) -> Vec<f32> {
        let current = self.held.number;
        for kept in self.kept.values_mut() {
            if kept.tape.as_ref().is_some_and(|t| t.held.number != current) {
                self.free.extend(kept.tape.take().map(|t| t.buffer));
            }
        }
        let mut spare = Vec::new();
        for held in std::mem::take(&mut self.retired) {
            match Arc::try_unwrap(held) {
                // Who else holds the parameters lets them go when it is done.
                Ok(held) => spare = Arc::try_unwrap(held.params).unwrap_or(spare),
                Err(held) => self.retired.push(held),
            }
        }
        spare
    }

    fn publish(&mut self, params: Vec<f32>) {
        let number = self.held.number + 1;
        let old = std::mem::replace(&mut self.held, Arc::new(Held { number, params: Arc::new(params) }));
        self.retire(old);
    }
}

/// The version of panels of what is never changed.
const FROZEN: u64 = u64::MAX;

pub(super) fn params<'a>(held: &'a Held, frozen: Option<&'a Frozen>, panels: &'a Panels) -> Params<'a> {
    let (source, adapters, version) = match frozen {
        Some(frozen) => (Source::Frozen(frozen), &held.params[..], FROZEN),
        None => (Source::Flat(&held.params), &[][..], held.number),
    };
    Params { source, panels: Some(panels).filter(|panels| panels.holds(version)), adapters }
}

/// Each lane with its sequences of the input and its part of the tape.
fn shares<'a, P: Product>(
    lanes: &'a mut [Lane<P>],
    plan: &Plan,
    cut: &[std::ops::Range<usize>],
    dims: Dims,
    t: usize,
    input: &'a Input,
    tape: &'a mut [f32],
) -> Vec<Share<'a, P>> {
    let mut rest = tape;
    let share = |(lane, range): (&'a mut Lane<P>, &std::ops::Range<usize>)| {
        let shape = Shape { dims, sequences: range.len(), t };
        let (tape, left) = std::mem::take(&mut rest).split_at_mut(plan.tape(&shape));
        rest = left;
        Share::new(lane, shape, input.part(range.clone(), t, dims.hidden), input.begins(range.clone(), t), tape)
    };
    lanes.iter_mut().zip(cut).map(share).collect()
}

impl StageEngine<super::FixedProduct> {
    pub fn new(model: StageModel, settings: Settings, weights: impl Into<StageWeights>) -> Result<Self, EngineError> {
        Self::with_product(model, settings, weights, super::FixedProduct::default())
    }
}

impl<P: Product> Engine for StageEngine<P> {
    fn model(&self) -> &StageModel {
        &self.model
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn set_kept_bytes_max(&mut self, bytes: u64) {
        if bytes < self.settings.kept_bytes_max {
            self.free.clear();
            // What does not fit any more is computed again.
            let mut room = bytes;
            for kept in self.kept.values_mut() {
                let takes = kept.tape.as_ref().map_or(0, |tape| 4 * tape.buffer.len() as u64);
                match room.checked_sub(takes) {
                    Some(left) => room = left,
                    None => kept.tape = None,
                }
            }
        }
        self.settings.kept_bytes_max = bytes;
    }

    fn set_packed(&mut self, packed: bool) {
        self.packed = packed;
        if !packed {
            self.panels.clear();
        }
    }

    /// Nothing where the weights are in blocks: whoever chose that has no memory for them in f32.
    fn packed_bytes(&self) -> u64 {
        match &self.frozen {
            Some(frozen) if frozen.in_blocks() => 0,
            _ => 4 * self.panels.values() as u64,
        }
    }

    fn forward_packed(&mut self, key: u64, input: StageInput<'_>, starts: &Starts) -> Result<Vec<f32>, EngineError> {
        let (input, sequences) = Input::checked(&self.model, &self.settings, input, starts)?;
        self.drop_kept(key);
        let held = self.held.clone();
        let tape = self.run(&held, &input, sequences);
        let output = self.output(&tape, sequences);
        if !kernel::finite(&output) {
            self.free.push(tape.buffer);
            return Err(EngineError::NotFinite("the output of the stage"));
        }
        let room = self.kept_bytes() + 4 * tape.buffer.len() as u64 <= self.settings.kept_bytes_max;
        let tape = match room && self.settings.recompute == Recompute::WhenNeeded {
            true => Some(tape),
            false => {
                self.free.push(tape.buffer);
                None
            }
        };
        self.kept.insert(key, Kept { input: Arc::new(input), sequences, tape });
        if self.model.head {
            self.reuse(output);
            return Ok(Vec::new());
        }
        Ok(output)
    }

    fn loss_backward(&mut self, key: u64, targets: &[u32], weight: f32) -> Result<Lost, EngineError> {
        if !self.model.head {
            return Err(EngineError::BadInput("only the last stage has a loss".into()));
        }
        let kept = self.kept.get(&key).ok_or(EngineError::NotKept(key))?;
        let tokens = check_targets(targets, kept.sequences * self.settings.sequence, self.dims.vocab)?;
        let from = From::Targets(targets, 1.0 / tokens.max(1) as f32);
        let (loss, gradient) = self.back(key, from, weight, false)?;
        Ok(Lost { loss, tokens, gradient })
    }

    fn backward(&mut self, key: u64, gradient: &[f32], weight: f32, recompute: bool) -> Result<Vec<f32>, EngineError> {
        if self.model.head {
            return Err(EngineError::BadInput("the last stage's gradient comes from its loss".into()));
        }
        let kept = self.kept.get(&key).ok_or(EngineError::NotKept(key))?;
        check_gradient(gradient, kept.sequences * self.settings.sequence * self.dims.hidden)?;
        let (_, gradient) = self.back(key, From::Gradient(gradient), weight, recompute)?;
        Ok(gradient)
    }

    fn drop_kept(&mut self, key: u64) {
        if let Some(Kept { tape: Some(tape), .. }) = self.kept.remove(&key) {
            self.free.push(tape.buffer);
            self.retire(tape.held);
        }
    }

    fn reuse(&mut self, result: Vec<f32>) {
        if self.results.len() < RESULTS && !result.is_empty() {
            self.results.push(result);
        }
    }

    fn kept(&self) -> Vec<u64> {
        self.kept.keys().copied().collect()
    }

    fn drop_sum(&mut self) {
        self.master.drop_sum();
    }

    fn sum_weight(&self) -> f64 {
        self.master.weight()
    }

    fn step(&mut self, lr: f64) -> Result<StepReport, EngineError> {
        check_rate(lr)?;
        if self.master.weight() == 0.0 {
            let norms = vec![0.0; self.model.blocks().len()];
            return Ok(StepReport { norms, weight: 0.0, finite: true });
        }
        let mut new = self.spare();
        let report = self.master.step(&self.product, &self.held.params, &mut new, lr);
        match report.finite {
            true => self.publish(new),
            false => self.retired.push(Arc::new(Held { number: u64::MAX, params: Arc::new(new) })),
        }
        Ok(report)
    }

    fn params(&self) -> &[f32] {
        &self.held.params
    }

    fn shared(&self) -> Arc<Vec<f32>> {
        self.held.params.clone()
    }

    fn set_params(&mut self, params: Vec<f32>) -> Result<(), EngineError> {
        check_params(&self.model, &params)?;
        drop(self.reclaim());
        self.publish(params);
        Ok(())
    }

    fn state(&self) -> Result<TrainState, EngineError> {
        Ok(self.master.state(&self.held.params))
    }

    fn load(&mut self, state: TrainState) -> Result<(), EngineError> {
        let params = self.master.load(state)?;
        drop(self.reclaim());
        self.publish(params);
        Ok(())
    }

    fn infer(&mut self, session: u64, position: usize, input: StageInput<'_>) -> Result<Vec<f32>, EngineError> {
        self.infer_together(&[Piece { session, position, input }]).swap_remove(0)
    }

    fn infer_all(&mut self, pieces: &[Piece<'_>]) -> Vec<Result<Vec<f32>, EngineError>> {
        self.infer_together(pieces)
    }

    fn drop_session(&mut self, session: u64) {
        if let Some(session) = self.sessions.remove(&session) {
            self.retire(session.held);
        }
    }
}
