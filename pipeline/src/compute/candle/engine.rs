//! The engine: versions of the weights, kept forwards, the open sum and sessions, on one device.
//!
//! A version lives as long as something refers to it. What a backward needs of its forward lies on the device as far as memory
//! was given for it; the input lies on the host, from which a forward is computed again.

use std::{cell::OnceCell, collections::BTreeMap, sync::Arc};

use candle_core::{Device, Tensor};
use skein_protocol::{run::Recompute, wire::Starts};

use super::{
    Result,
    attention::{Cache, Places, Shape},
    block,
    frozen::Frozen,
    head::Head,
    operators::Precision,
    optimizer::Optimizer,
    read::ReadBack,
    sum::Gradients,
    weights::{Layout, Reading, Weights},
};
use crate::{
    exact::{
        Engine, EngineError, Lost, Settings, StageInput, StageWeights, StepReport, TrainState,
        infer::pinned,
        input::{
            Input, Rows, check_gradient, check_params, check_rate, check_settings, check_targets, check_tokens,
            check_weights,
        },
        kernel,
    },
    model::{Dims, StageModel},
};

struct Kept {
    input: Arc<Input>,
    sequences: usize,
    /// Gone after the backward, when its version is too old, or when memory did not allow it.
    tape: Option<Tape>,
}

/// What one forward left on the device.
struct Tape {
    weights: Arc<Weights>,
    layers: Vec<block::Tape>,
    /// Output of the layers, `[rows, hidden]`.
    y: Tensor,
}

impl Tape {
    fn bytes(&self) -> u64 {
        4 * self.y.elem_count() as u64 + self.layers.iter().map(block::Tape::bytes).sum::<u64>()
    }
}

/// Where a backward starts.
enum From<'a, G> {
    Gradient(G),
    /// Targets, and 1 / counted tokens.
    Targets(&'a [u32], f32),
}

/// What a backward gave, on the host.
struct Backed {
    losses: Vec<f32>,
    /// Gradient of the input; empty where tokens came in.
    gradient: Vec<f32>,
}

struct Session {
    weights: Arc<Weights>,
    len: usize,
    /// Of each layer.
    cache: Vec<Cache>,
}

pub struct Candle {
    model: StageModel,
    dims: Dims,
    settings: Settings,
    precision: Precision,
    device: Device,
    layout: Layout,
    /// What stays as it is, where adapters are trained.
    frozen: Option<Frozen>,
    /// Of a training sequence.
    places: Places,
    weights: Arc<Weights>,
    /// The weights in use, once somebody asked for them.
    on_host: OnceCell<Arc<Vec<f32>>>,
    /// An older version of them: what is left of a device that can be read no more.
    last_on_host: Arc<Vec<f32>>,
    optimizer: Optimizer,
    /// Weighted sum of gradients; empty or stale while its weight is 0.
    sum: Vec<Tensor>,
    sum_weight: f64,
    kept: BTreeMap<u64, Kept>,
    sessions: BTreeMap<u64, Session>,
    reader: ReadBack,
}

impl Candle {
    /// An engine with fresh optimizer state.
    ///
    /// # Errors
    /// The parameters are not those of `model`, or the device has no room for them.
    pub fn new(
        model: StageModel,
        settings: Settings,
        weights: impl Into<StageWeights>,
        precision: Precision,
        device: &Device,
    ) -> Result<Self> {
        check_settings(&settings)?;
        let StageWeights { params, frozen } = weights.into();
        check_weights(&model, &params, frozen.as_deref())?;
        let (dims, layout) = (model.dims(), Layout::of(&model));
        let frozen = match (model.frozen(), &frozen) {
            (Some(of), Some(weights)) => Some(Frozen::upload(Layout::of(of), weights, precision, device)?),
            _ => None,
        };
        let base = frozen.as_ref().map_or(&layout, |frozen| &frozen.layout);
        Ok(Candle {
            places: Places::new(&dims, base.windows(), 0, settings.sequence, device)?,
            frozen,
            weights: Arc::new(Weights::upload(&layout, 0, &params, precision, device)?),
            optimizer: Optimizer::new(&settings, &layout, device)?,
            on_host: Arc::new(params).into(),
            last_on_host: Arc::default(),
            model,
            dims,
            settings,
            precision,
            device: device.clone(),
            layout,
            sum: Vec::new(),
            sum_weight: 0.0,
            kept: BTreeMap::new(),
            sessions: BTreeMap::new(),
            reader: ReadBack::default(),
        })
    }

    fn shape(&self, sequences: usize, t: usize) -> Shape {
        Shape { dims: self.dims, precision: self.precision, sequences, t }
    }

    fn reading<'a>(&'a self, weights: &'a Weights) -> Reading<'a> {
        Reading { layout: &self.layout, weights, frozen: self.frozen.as_ref(), precision: self.precision }
    }

    fn head<'a>(&'a self, weights: &'a Weights) -> Option<Head<'a>> {
        let reading = self.reading(weights);
        let places = reading.base().head?;
        let (norm, matrix) = (reading.vector(places.0), reading.matrix(places.1));
        Some(Head { norm, matrix, places, eps: self.dims.eps, precision: self.precision })
    }

    /// What comes into the first layer, `[rows, hidden]`.
    fn enter(&self, weights: &Weights, input: StageInput<'_>) -> Result<Tensor> {
        match input {
            StageInput::Tokens(tokens) => {
                let ids = Tensor::new(tokens, &self.device)?;
                self.reading(weights).embed(&ids)
            }
            StageInput::Hidden(x) => {
                Ok(Tensor::from_slice(x, (x.len() / self.dims.hidden, self.dims.hidden), &self.device)?)
            }
        }
    }

    /// Runs all layers over `input`, at the weights in use.
    fn run(&self, input: &Input, sequences: usize) -> Result<Tape> {
        let shape = self.shape(sequences, self.settings.sequence);
        let weights = self.weights.clone();
        let packed;
        let places = match input.begins.is_empty() {
            true => &self.places,
            false => {
                packed = self.places.packed(&input.begins, shape.t, &self.device)?;
                &packed
            }
        };
        let mut y = self.enter(&weights, kept_input(input))?;
        let mut layers = Vec::with_capacity(self.model.layers as usize);
        for n in 0..self.model.layers as usize {
            let (out, tape) = block::forward(&shape, places, &self.reading(&weights).layer(n), y, None)?;
            layers.push(tape);
            y = out;
        }
        Ok(Tape { weights, layers, y })
    }

    fn kept_bytes(&self) -> u64 {
        self.kept.values().filter_map(|k| k.tape.as_ref()).map(Tape::bytes).sum()
    }

    /// Backward of a kept forward. What it adds to the sum is added if all of it is finite.
    fn back(&mut self, key: u64, from: From<'_, &[f32]>, weight: f32, recompute: bool) -> Result<Backed> {
        if !weight.is_finite() {
            return Err(EngineError::BadInput("the weight of a gradient is not finite".into()));
        }
        let kept = self.kept.get_mut(&key).ok_or(EngineError::NotKept(key))?;
        let (input, sequences) = (kept.input.clone(), kept.sequences);
        let from = match from {
            // Before anything is queued: a copy from memory that is not locked may wait for all that is.
            From::Gradient(g) => {
                From::Gradient(Tensor::from_slice(g, (g.len() / self.dims.hidden, self.dims.hidden), &self.device)?)
            }
            From::Targets(targets, scale) => From::Targets(targets, scale),
        };
        let Tape { weights, mut layers, y } = match (kept.tape.take(), recompute) {
            (Some(tape), false) => tape,
            (old, _) => {
                drop(old);
                self.run(&input, sequences)?
            }
        };
        let before = (self.sum_weight != 0.0).then_some(&self.sum[..]);
        let mut gradients = (weight != 0.0).then(|| Gradients::new(&self.layout, before, weight));
        let (losses, mut g) = match (from, self.head(&weights)) {
            (From::Targets(targets, scale), Some(head)) => {
                let of_head = gradients.as_mut().filter(|_| self.frozen.is_none());
                let (losses, g) = head.loss(&y, targets, scale, of_head)?;
                (Some(losses), g)
            }
            (From::Targets(..), None) => return Err(no_loss()),
            (From::Gradient(g), _) => (None, g),
        };
        drop(y);
        let shape = self.shape(sequences, self.settings.sequence);
        while let Some(tape) = layers.pop() {
            let layer = self.reading(&weights).layer(layers.len());
            g = block::backward(&shape, &self.places, &layer, &tape, &g, gradients.as_mut())?;
        }
        let of_embedding = gradients.as_mut().filter(|_| self.frozen.is_none());
        if let (Rows::Tokens(tokens), Some(gradients)) = (&input.rows, of_embedding) {
            gradients.add_rows(0, &Tensor::new(&tokens[..], &self.device)?, &g)?;
        }
        let next = gradients.map(Gradients::finish).transpose()?;
        let backed = self.read_backed(losses, (!self.model.embedding).then_some(g), next.as_ref().map(|(_, z)| z))?;
        if let Some((sum, _)) = next {
            self.sum = sum;
            self.sum_weight += f64::from(weight);
        }
        Ok(backed)
    }

    /// Waits for what a backward gave, and refuses what is not finite. `zeros`: see [`Gradients::finish`].
    fn read_backed(
        &mut self,
        losses: Option<Tensor>,
        gradient: Option<Tensor>,
        zeros: Option<&Tensor>,
    ) -> Result<Backed> {
        let wanted: Vec<&Tensor> = losses.iter().chain(&gradient).chain(zeros).collect();
        let mut values = self.reader.read(&wanted)?.into_iter();
        let mut next = |there: bool| there.then(|| values.next()).flatten().unwrap_or_default();
        let backed = Backed { losses: next(losses.is_some()), gradient: next(gradient.is_some()) };
        let zeros = next(zeros.is_some());
        for (values, what) in [
            (&backed.losses, "the loss"),
            (&backed.gradient, "the gradient of the input"),
            (&zeros, "the gradient of the parameters"),
        ] {
            if !kernel::finite(values) {
                return Err(EngineError::NotFinite(what));
            }
        }
        Ok(backed)
    }

    /// A new version comes into use. Forwards that are older than the one before lose their tapes.
    fn publish(&mut self, weights: Weights, on_host: Option<Arc<Vec<f32>>>) {
        let current = self.weights.number;
        for kept in self.kept.values_mut() {
            kept.tape = kept.tape.take().filter(|tape| tape.weights.number == current);
        }
        self.weights = Arc::new(weights);
        if let Some(read) = self.on_host.take() {
            self.last_on_host = read;
        }
        self.on_host = on_host.map(OnceCell::from).unwrap_or_default();
    }

    /// The weights in use, or those of an earlier version where the device can be read no more: what is left then is still worth
    /// saving.
    fn read(&self) -> &Arc<Vec<f32>> {
        match self.on_host.get() {
            Some(params) => params,
            None => match self.layout.flat(&self.weights.master) {
                Ok(params) => self.on_host.get_or_init(|| Arc::new(params)),
                Err(_) => &self.last_on_host,
            },
        }
    }

    fn uploaded(&self, params: &[f32]) -> Result<Weights> {
        Weights::upload(&self.layout, self.weights.number + 1, params, self.precision, &self.device)
    }
}

fn kept_input(input: &Input) -> StageInput<'_> {
    match &input.rows {
        Rows::Tokens(tokens) => StageInput::Tokens(tokens),
        Rows::Hidden(x) => StageInput::Hidden(x),
    }
}

fn no_loss() -> EngineError {
    EngineError::BadInput("only the last stage has a loss".into())
}

impl Engine for Candle {
    fn model(&self) -> &StageModel {
        &self.model
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn set_packed(&mut self, _: bool) {}

    fn set_kept_bytes_max(&mut self, bytes: u64) {
        // What does not fit any more is computed again.
        let mut room = bytes;
        for kept in self.kept.values_mut() {
            match room.checked_sub(kept.tape.as_ref().map_or(0, Tape::bytes)) {
                Some(left) => room = left,
                None => kept.tape = None,
            }
        }
        self.settings.kept_bytes_max = bytes;
    }

    /// Only where there is an output does the host wait for it. At the last stage what is not finite shows in the loss.
    fn forward_packed(&mut self, key: u64, input: StageInput<'_>, starts: &Starts) -> Result<Vec<f32>> {
        let (kept, sequences) = Input::checked(&self.model, &self.settings, input, starts)?;
        self.kept.remove(&key);
        let tape = self.run(&kept, sequences)?;
        let output = match self.model.head {
            true => Vec::new(),
            false => self.reader.read(&[&tape.y])?.concat(),
        };
        if !kernel::finite(&output) {
            return Err(EngineError::NotFinite("the output of the stage"));
        }
        let room = self.kept_bytes() + tape.bytes() <= self.settings.kept_bytes_max;
        let tape = Some(tape).filter(|_| room && self.settings.recompute == Recompute::WhenNeeded);
        self.kept.insert(key, Kept { input: Arc::new(kept), sequences, tape });
        Ok(output)
    }

    fn loss_backward(&mut self, key: u64, targets: &[u32], weight: f32) -> Result<Lost> {
        if !self.model.head {
            return Err(no_loss());
        }
        let kept = self.kept.get(&key).ok_or(EngineError::NotKept(key))?;
        let tokens = check_targets(targets, kept.sequences * self.settings.sequence, self.dims.vocab)?;
        let from = From::Targets(targets, 1.0 / tokens.max(1) as f32);
        let Backed { losses, gradient } = self.back(key, from, weight, false)?;
        Ok(Lost { loss: losses.into_iter().map(f64::from).sum(), tokens, gradient })
    }

    fn backward(&mut self, key: u64, gradient: &[f32], weight: f32, recompute: bool) -> Result<Vec<f32>> {
        if self.model.head {
            return Err(EngineError::BadInput("the last stage's gradient comes from its loss".into()));
        }
        let kept = self.kept.get(&key).ok_or(EngineError::NotKept(key))?;
        check_gradient(gradient, kept.sequences * self.settings.sequence * self.dims.hidden)?;
        Ok(self.back(key, From::Gradient(gradient), weight, recompute)?.gradient)
    }

    fn drop_kept(&mut self, key: u64) {
        self.kept.remove(&key);
    }

    fn kept(&self) -> Vec<u64> {
        self.kept.keys().copied().collect()
    }

    fn drop_sum(&mut self) {
        (self.sum, self.sum_weight) = (Vec::new(), 0.0);
    }

    fn sum_weight(&self) -> f64 {
        self.sum_weight
    }

    fn step(&mut self, lr: f64) -> Result<StepReport> {
        check_rate(lr)?;
        let blocks = self.model.blocks().len();
        if self.sum_weight == 0.0 {
            return Ok(StepReport { norms: vec![0.0; blocks], weight: 0.0, finite: true });
        }
        let (sum, old) = (&self.sum, &self.weights.master);
        let (report, step) = self.optimizer.step(&self.layout, blocks, old, sum, self.sum_weight, lr)?;
        if let Some(mut step) = step {
            let new = std::mem::take(&mut step.weights);
            let weights = Weights::new(&self.layout, self.weights.number + 1, new, self.precision)?;
            self.optimizer.take(step);
            self.publish(weights, None);
        }
        self.drop_sum();
        Ok(report)
    }

    fn readable(&self) -> Result<()> {
        if self.on_host.get().is_none() {
            let params = self.layout.flat(&self.weights.master)?;
            let _ = self.on_host.set(Arc::new(params));
        }
        Ok(())
    }

    fn params(&self) -> &[f32] {
        self.read()
    }

    fn shared(&self) -> Arc<Vec<f32>> {
        self.read().clone()
    }

    fn set_params(&mut self, params: Vec<f32>) -> Result<()> {
        check_params(&self.model, &params)?;
        let weights = self.uploaded(&params)?;
        self.publish(weights, Some(Arc::new(params)));
        Ok(())
    }

    fn state(&self) -> Result<TrainState> {
        self.readable()?;
        self.optimizer.state(&self.layout, self.params())
    }

    fn load(&mut self, state: TrainState) -> Result<()> {
        let optimizer = self.optimizer.loaded(&self.layout, &self.device, &state)?;
        let weights = self.uploaded(&state.params)?;
        self.optimizer = optimizer;
        self.drop_sum();
        self.publish(weights, Some(Arc::new(state.params)));
        Ok(())
    }

    fn infer(&mut self, id: u64, position: usize, input: StageInput<'_>) -> Result<Vec<f32>> {
        let d = self.dims.hidden;
        let n = match input {
            StageInput::Tokens(tokens) if self.model.embedding => {
                check_tokens(tokens, self.dims.vocab)?;
                tokens.len()
            }
            StageInput::Hidden(x) if !self.model.embedding && x.len().is_multiple_of(d) && kernel::finite(x) => {
                x.len() / d
            }
            _ => return Err(EngineError::BadInput("the piece of a generation is not of this stage".into())),
        };
        let session = self.sessions.get(&id);
        let known = session.map_or(0, |s| s.len);
        if n == 0 || position > known || position + n > self.dims.context {
            let text = format!("{n} tokens at {position} after {known} known, of {} at most", self.dims.context);
            return Err(EngineError::BadInput(text));
        }
        let weights = match session {
            Some(session) => session.weights.clone(),
            None => pinned(&self.weights, self.sessions.values().map(|s| &s.weights), |w| w.number),
        };
        let shape = self.shape(1, n);
        let windows = self.reading(&weights).base().windows();
        let places = Places::new(&self.dims, windows, position, n, &self.device)?;
        let mut x = self.enter(&weights, input)?;
        let mut cache = Vec::with_capacity(self.model.layers as usize);
        for layer in 0..self.model.layers as usize {
            let before = match session {
                Some(session) if position > 0 => Some(session.cache[layer].before(position)?),
                _ => None,
            };
            let (out, tape) =
                block::forward(&shape, &places, &self.reading(&weights).layer(layer), x, before.as_ref())?;
            cache.push(tape.cache());
            x = out;
        }
        if let Some(head) = self.head(&weights) {
            x = head.logits(&x.narrow(0, n - 1, 1)?)?;
        }
        let out = self.reader.read(&[&x])?.concat();
        if !kernel::finite(&out) {
            return Err(EngineError::NotFinite("the output of a generation"));
        }
        self.sessions.insert(id, Session { weights, len: position + n, cache });
        Ok(out)
    }

    fn drop_session(&mut self, session: u64) {
        self.sessions.remove(&session);
    }
}
