//! The engine on candle: CUDA and Metal, and on the CPU the oracle that the engine by hand is compared with.
//!
//! Composed operators that differentiate (candle's fused norm, softmax and rotary embedding have no backward, and lose
//! gradients silently). New weights are new variables: a kept graph refers to the old ones, so its backward is that of its
//! forward. The optimizer runs on the host over the flat buffer, as in every engine.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{D, Device, Tensor, Var, backprop::GradStore};
use candle_nn::ops;
use skein_protocol::run::Recompute;

use crate::{
    exact::{
        Engine, EngineError, FixedProduct, IGNORE, Lost, Settings, StageInput, StepReport, TrainState, kernel,
        optimizer::Master,
    },
    model::{Dims, EMBEDDING, FINAL_NORM, HEAD, StageModel, cost},
};

type Result<T, E = EngineError> = std::result::Result<T, E>;

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        EngineError::Device(error.to_string())
    }
}

/// Opens the device; never falls back to another.
pub fn device(device: super::Device) -> Result<Device> {
    Ok(match device {
        super::Device::Cpu { .. } => Device::Cpu,
        super::Device::Cuda(index) => Device::new_cuda(index)?,
        super::Device::Metal(index) => Device::new_metal(index)?,
    })
}

/// Computes a small product on the device and compares it: a driver that is missing, or a card that is broken, shows here.
///
/// # Errors
/// The device cannot be opened, or its numbers are wrong.
pub fn test(device: super::Device) -> Result<()> {
    const SIDE: usize = 64;
    let device = self::device(device)?;
    // Whole numbers below 2^24, which f32 holds exactly.
    let values: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 7) as f32).collect();
    let square = Tensor::from_slice(&values, (SIDE, SIDE), &device)?;
    let product: Vec<f32> = square.matmul(&square)?.flatten_all()?.to_vec1()?;
    let exact = |i: usize| (0..SIDE).map(|k| values[i / SIDE * SIDE + k] * values[k * SIDE + i % SIDE]).sum::<f32>();
    match product.iter().enumerate().find(|(i, value)| **value != exact(*i)) {
        None => Ok(()),
        Some((i, value)) => Err(EngineError::Device(format!("a product came out as {value}, not {}", exact(i)))),
    }
}

/// A graph keeps about so many times what the engine by hand keeps.
const GRAPH_FACTOR: u64 = 5;

/// Versions that sessions may pin.
const PINNED_MAX: usize = 2;

/// Low enough that its exponential is 0, without the traps of an infinity.
const MASKED: f32 = -1e30;

/// One version of the weights on the device, in canonical order.
struct Weights {
    number: u64,
    vars: Vec<Var>,
}

enum Input {
    Tokens(Vec<u32>),
    Hidden(Vec<f32>),
}

struct Kept {
    input: Arc<Input>,
    graph: Option<Graph>,
}

struct Graph {
    weights: Arc<Weights>,
    /// The received activation, whose gradient goes back.
    x: Option<Var>,
    /// Output of the layers.
    y: Tensor,
}

struct Session {
    weights: Arc<Weights>,
    len: usize,
    /// Keys and values of each layer, `[1, kv_heads, position, head]`.
    cache: Vec<(Tensor, Tensor)>,
}

pub struct Candle {
    model: StageModel,
    dims: Dims,
    settings: Settings,
    device: Device,
    params: Arc<Vec<f32>>,
    weights: Arc<Weights>,
    master: Master,
    /// Weighted sum of gradients on the device, flat.
    sum: Option<Tensor>,
    sum_weight: f64,
    kept: BTreeMap<u64, Kept>,
    sessions: BTreeMap<u64, Session>,
}

impl Candle {
    pub fn new(model: StageModel, settings: Settings, params: Vec<f32>, device: &Device) -> Result<Self> {
        let weights = Arc::new(Weights { number: 0, vars: upload(&model, &params, device)? });
        Ok(Candle {
            dims: model.dims(),
            master: Master::new(&model, &settings),
            model,
            settings,
            device: device.clone(),
            params: Arc::new(params),
            weights,
            sum: None,
            sum_weight: 0.0,
            kept: BTreeMap::new(),
            sessions: BTreeMap::new(),
        })
    }

    /// Variables of the `n`th layer.
    fn layer<'a>(&self, weights: &'a [Tensor], n: usize) -> &'a [Tensor] {
        &weights[usize::from(self.model.embedding) + 9 * n..][..9]
    }

    /// Cosines and sines of these positions, `[positions, head / 2]`.
    fn angles(&self, positions: std::ops::Range<usize>) -> Result<(Tensor, Tensor)> {
        let (n, half) = (positions.len(), self.dims.head / 2);
        let table = kernel::rope_table(positions, half, self.dims.theta);
        let table = Tensor::from_vec(table, (n, 2 * half), &self.device)?;
        Ok((table.narrow(1, 0, half)?.contiguous()?, table.narrow(1, half, half)?.contiguous()?))
    }

    /// What `n` queries from position `first` on may see of `seen` keys.
    fn mask(&self, first: usize, n: usize, seen: usize) -> Result<Tensor> {
        let hidden = |i: usize, j: usize| if j > first + i { MASKED } else { 0.0 };
        let mask = (0..n).flat_map(|i| (0..seen).map(move |j| hidden(i, j))).collect::<Vec<f32>>();
        Ok(Tensor::from_vec(mask, (n, seen), &self.device)?)
    }

    /// All layers over `x [sequences * t, hidden]`.
    fn layers(&self, weights: &[Tensor], x: &Tensor) -> Result<Tensor> {
        let t = self.settings.sequence;
        let angles = self.angles(0..t)?;
        let mask = self.mask(0, t, t)?;
        (0..self.model.layers as usize)
            .try_fold(x.clone(), |x, n| block(&self.dims, self.layer(weights, n), &x, t, &angles, &mask, None))
    }

    /// Final norm and head.
    fn logits(&self, weights: &[Tensor], x: &Tensor) -> Result<Tensor> {
        let find = |name| self.model.params().iter().position(|p| p.name == name).map(|i| &weights[i]);
        let norm = find(FINAL_NORM).expect("the last stage has a final norm");
        let head = find(if self.model.tied() { EMBEDDING } else { HEAD }).expect("the last stage has a head");
        Ok(rms(x, norm, self.dims.eps)?.matmul(&head.t()?)?)
    }

    fn embed(&self, weights: &[Tensor], tokens: &[u32]) -> Result<Tensor> {
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= self.dims.vocab) {
            let text = format!("token {id} is outside the vocabulary of {}", self.dims.vocab);
            return Err(EngineError::BadInput(text));
        }
        Ok(weights[0].index_select(&Tensor::new(tokens, &self.device)?, 0)?)
    }

    fn graph(&self, input: &Input) -> Result<Graph> {
        let weights = self.weights.clone();
        let tensors = tensors(&weights.vars);
        let (x, y) = match input {
            Input::Tokens(tokens) => (None, self.layers(&tensors, &self.embed(&tensors, tokens)?)?),
            Input::Hidden(x) => {
                let rows = x.len() / self.dims.hidden;
                let x = Var::from_slice(x, (rows, self.dims.hidden), &self.device)?;
                let y = self.layers(&tensors, x.as_tensor())?;
                (Some(x), y)
            }
        };
        Ok(Graph { weights, x, y })
    }

    /// Tokens of an input that is what this stage takes.
    fn check(&self, input: StageInput<'_>) -> Result<Input> {
        let (t, max) = (self.settings.sequence, self.settings.micro_batch);
        let (tokens, input) = match input {
            StageInput::Tokens(tokens) if self.model.embedding => (tokens.len(), Input::Tokens(tokens.to_vec())),
            StageInput::Hidden(x) if !self.model.embedding && x.len().is_multiple_of(self.dims.hidden) => {
                if !kernel::finite(x) {
                    return Err(EngineError::BadInput("the activation is not finite".into()));
                }
                (x.len() / self.dims.hidden, Input::Hidden(x.to_vec()))
            }
            _ => return Err(EngineError::BadInput("the input is not of this stage".into())),
        };
        if !tokens.is_multiple_of(t) || tokens == 0 || tokens / t > max {
            return Err(EngineError::BadInput(format!("{tokens} tokens are not 1 to {max} sequences of {t}")));
        }
        Ok(input)
    }

    fn take_graph(&mut self, key: u64, recompute: bool) -> Result<Graph> {
        let kept = self.kept.get_mut(&key).ok_or(EngineError::NotKept(key))?;
        let (graph, input) = (kept.graph.take(), kept.input.clone());
        match (graph, recompute) {
            (Some(graph), false) => Ok(graph),
            _ => self.graph(&input),
        }
    }

    /// Takes the gradients of a graph: adds the parameters' to the sum, returns the input's.
    fn collect(&mut self, graph: &Graph, mut gradients: GradStore, weight: f32) -> Result<Vec<f32>> {
        let input = match &graph.x {
            None => Vec::new(),
            Some(x) => match gradients.remove(x.as_tensor()) {
                Some(g) => g.flatten_all()?.to_vec1::<f32>()?,
                None => vec![0.0; x.elem_count()],
            },
        };
        if !kernel::finite(&input) {
            return Err(EngineError::NotFinite("the gradient of the input"));
        }
        if weight != 0.0 {
            let mut parts = Vec::with_capacity(graph.weights.vars.len());
            for (var, param) in graph.weights.vars.iter().zip(self.model.params()) {
                let gradient = gradients.remove(var.as_tensor());
                let gradient =
                    gradient.ok_or_else(|| EngineError::Device(format!("{} has no gradient", param.name)))?;
                parts.push(gradient.flatten_all()?);
            }
            let mut sum = (Tensor::cat(&parts, 0)? * f64::from(weight))?;
            if let Some(before) = &self.sum {
                sum = (before + sum)?;
            }
            // 0 times anything but a finite value is NaN.
            if (&sum * 0.0)?.sum_all()?.to_scalar::<f32>()? != 0.0 {
                return Err(EngineError::NotFinite("the gradient of the parameters"));
            }
            self.sum = Some(sum.detach());
            self.sum_weight += f64::from(weight);
        }
        Ok(input)
    }

    fn publish(&mut self, params: Vec<f32>) -> Result<()> {
        let vars = upload(&self.model, &params, &self.device)?;
        let current = self.weights.number;
        for kept in self.kept.values_mut() {
            kept.graph = kept.graph.take().filter(|g| g.weights.number == current);
        }
        self.weights = Arc::new(Weights { number: current + 1, vars });
        self.params = Arc::new(params);
        Ok(())
    }

    /// The version for a new session.
    fn pin(&self) -> Arc<Weights> {
        let mut pinned: Vec<&Arc<Weights>> = self.sessions.values().map(|s| &s.weights).collect();
        pinned.sort_by_key(|w| w.number);
        pinned.dedup_by_key(|w| w.number);
        match pinned.last() {
            Some(newest) if pinned.len() >= PINNED_MAX => Arc::clone(newest),
            _ => self.weights.clone(),
        }
    }
}

fn tensors(vars: &[Var]) -> Vec<Tensor> {
    vars.iter().map(|v| v.as_tensor().clone()).collect()
}

fn upload(model: &StageModel, params: &[f32], device: &Device) -> Result<Vec<Var>> {
    if params.len() != model.values() || !kernel::finite(params) {
        let text = format!("{} parameters were given, the stage has {}, all finite", params.len(), model.values());
        return Err(EngineError::BadInput(text));
    }
    let var = |p: &crate::model::Param| Ok(Var::from_slice(&params[p.range()], p.shape.clone(), device)?);
    model.params().iter().map(var).collect()
}

fn rms(x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    let norm = (mean + f64::from(eps))?.sqrt()?;
    Ok(x.broadcast_div(&norm)?.broadcast_mul(w)?)
}

/// Rotates `x [b, heads, t, head]`: pairs `(i, i + head / 2)`.
fn rope(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
    let half = cos.dim(1)?;
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    Ok(Tensor::cat(&[first, second], D::Minus1)?)
}

/// One layer over `x [b * t, hidden]`, in the canonical order of its nine tensors. With a cache (b is 1) the keys and values
/// seen before come first, and the new ones are added to it.
fn block(
    dims: &Dims,
    w: &[Tensor],
    x: &Tensor,
    t: usize,
    angles: &(Tensor, Tensor),
    mask: &Tensor,
    cache: Option<&mut (Tensor, Tensor)>,
) -> Result<Tensor> {
    let rows = x.dim(0)?;
    let b = rows / t;
    let heads =
        |x: Tensor, n: usize| -> Result<Tensor> { Ok(x.reshape((b, t, n, dims.head))?.transpose(1, 2)?.contiguous()?) };
    let h = rms(x, &w[0], dims.eps)?;
    let q = rope(&heads(h.matmul(&w[1].t()?)?, dims.heads)?, angles)?;
    let mut k = rope(&heads(h.matmul(&w[2].t()?)?, dims.kv_heads)?, angles)?;
    let mut v = heads(h.matmul(&w[3].t()?)?, dims.kv_heads)?;
    if let Some((keys, values)) = cache {
        (k, v) = (Tensor::cat(&[&*keys, &k], 2)?, Tensor::cat(&[&*values, &v], 2)?);
        (*keys, *values) = (k.detach(), v.detach());
    }
    let seen = k.dim(2)?;
    let group = dims.heads / dims.kv_heads;
    let repeat = |x: Tensor| -> Result<Tensor> {
        let x = x.unsqueeze(2)?.broadcast_as((b, dims.kv_heads, group, seen, dims.head))?;
        Ok(x.contiguous()?.reshape((b, dims.heads, seen, dims.head))?)
    };
    let (k, v) = (repeat(k)?, repeat(v)?);
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? / (dims.head as f64).sqrt())?.broadcast_add(mask)?;
    let out = ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
    let out = out.transpose(1, 2)?.contiguous()?.reshape((rows, dims.heads * dims.head))?;
    let mid = (x + out.matmul(&w[4].t()?)?)?;
    let h = rms(&mid, &w[5], dims.eps)?;
    let act = (h.matmul(&w[6].t()?)?.silu()? * h.matmul(&w[7].t()?)?)?;
    Ok((&mid + act.matmul(&w[8].t()?)?)?)
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
        self.settings.kept_bytes_max = bytes;
    }

    fn forward(&mut self, key: u64, input: StageInput<'_>) -> Result<Vec<f32>> {
        let input = self.check(input)?;
        self.kept.remove(&key);
        let graph = self.graph(&input)?;
        let output = graph.y.flatten_all()?.to_vec1::<f32>()?;
        if !kernel::finite(&output) {
            return Err(EngineError::NotFinite("the output of the stage"));
        }
        let sequences = (output.len() / self.dims.hidden / self.settings.sequence) as u64;
        let layer = cost::kept_layer(&self.model.config, self.settings.sequence as u64);
        let bytes = 4 * GRAPH_FACTOR * sequences * u64::from(self.model.layers) * layer;
        let graphs = 1 + self.kept.values().filter(|k| k.graph.is_some()).count() as u64;
        let room = bytes.saturating_mul(graphs) <= self.settings.kept_bytes_max;
        let graph = (room && self.settings.recompute == Recompute::WhenNeeded).then_some(graph);
        self.kept.insert(key, Kept { input: Arc::new(input), graph });
        Ok(if self.model.head { Vec::new() } else { output })
    }

    fn loss_backward(&mut self, key: u64, targets: &[u32], weight: f32) -> Result<Lost> {
        if !self.model.head {
            return Err(EngineError::BadInput("only the last stage has a loss".into()));
        }
        let kept = self.kept.get(&key).ok_or(EngineError::NotKept(key))?;
        let rows = match &*kept.input {
            Input::Tokens(tokens) => tokens.len(),
            Input::Hidden(x) => x.len() / self.dims.hidden,
        };
        let tokens = crate::exact::check_targets(targets, rows, self.dims.vocab)?;
        let graph = self.take_graph(key, false)?;
        let index: Vec<u32> = targets.iter().map(|&t| if t == IGNORE { 0 } else { t }).collect();
        let counted: Vec<f32> = targets.iter().map(|&t| f32::from(t != IGNORE)).collect();
        let index = Tensor::from_vec(index, (rows, 1), &self.device)?;
        let counted = Tensor::from_vec(counted, (rows, 1), &self.device)?;
        let logits = self.logits(&tensors(&graph.weights.vars), &graph.y)?;
        let losses = (ops::log_softmax(&logits, D::Minus1)?.gather(&index, 1)? * counted)?.neg()?;
        let loss = losses.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>();
        if !loss.is_finite() {
            return Err(EngineError::NotFinite("the loss"));
        }
        let gradients = (losses.sum_all()? / f64::from(tokens.max(1)))?.backward()?;
        let gradient = self.collect(&graph, gradients, weight)?;
        Ok(Lost { loss, tokens, gradient })
    }

    fn backward(&mut self, key: u64, gradient: &[f32], weight: f32, recompute: bool) -> Result<Vec<f32>> {
        if self.model.head {
            return Err(EngineError::BadInput("the last stage's gradient comes from its loss".into()));
        }
        if !kernel::finite(gradient) {
            return Err(EngineError::BadInput("the gradient is not finite".into()));
        }
        let graph = self.take_graph(key, recompute)?;
        if gradient.len() != graph.y.elem_count() {
            let text =
                format!("the gradient has {} values, the forward's output {}", gradient.len(), graph.y.elem_count());
            return Err(EngineError::BadInput(text));
        }
        let g = Tensor::from_slice(gradient, graph.y.shape().clone(), &self.device)?;
        let gradients = (&graph.y * g)?.sum_all()?.backward()?;
        self.collect(&graph, gradients, weight)
    }

    fn drop_kept(&mut self, key: u64) {
        self.kept.remove(&key);
    }

    fn kept(&self) -> Vec<u64> {
        self.kept.keys().copied().collect()
    }

    fn drop_sum(&mut self) {
        (self.sum, self.sum_weight) = (None, 0.0);
    }

    fn sum_weight(&self) -> f64 {
        self.sum_weight
    }

    fn step(&mut self, lr: f64) -> Result<StepReport> {
        if !lr.is_finite() || lr < 0.0 {
            return Err(EngineError::BadInput(format!("the learning rate is {lr}")));
        }
        let (Some(sum), weight) = (self.sum.take(), std::mem::take(&mut self.sum_weight)) else {
            let norms = vec![0.0; self.model.blocks().len()];
            return Ok(StepReport { norms, weight: 0.0, finite: true });
        };
        self.master.put_sum(sum.to_vec1::<f32>()?, weight);
        let mut new = vec![0.0; self.params.len()];
        let report = self.master.step(&FixedProduct::default(), &self.params, &mut new, lr);
        if report.finite {
            self.publish(new)?;
        }
        Ok(report)
    }

    fn params(&self) -> &[f32] {
        &self.params
    }

    fn shared(&self) -> Arc<Vec<f32>> {
        self.params.clone()
    }

    fn set_params(&mut self, params: Vec<f32>) -> Result<()> {
        self.publish(params)
    }

    fn state(&self) -> TrainState {
        self.master.state(&self.params)
    }

    fn load(&mut self, state: TrainState) -> Result<()> {
        let params = self.master.load(state)?;
        self.drop_sum();
        self.publish(params)
    }

    fn infer(&mut self, id: u64, position: usize, input: StageInput<'_>) -> Result<Vec<f32>> {
        let weights = match self.sessions.get(&id) {
            Some(session) => session.weights.clone(),
            None => self.pin(),
        };
        let detached: Vec<Tensor> = weights.vars.iter().map(Var::as_detached_tensor).collect();
        let d = self.dims.hidden;
        let mut x = match input {
            StageInput::Tokens(tokens) if self.model.embedding && !tokens.is_empty() => {
                self.embed(&detached, tokens)?
            }
            StageInput::Hidden(x) if !self.model.embedding && !x.is_empty() && x.len().is_multiple_of(d) => {
                Tensor::from_slice(x, (x.len() / d, d), &self.device)?
            }
            _ => return Err(EngineError::BadInput("the piece of a generation is not of this stage".into())),
        };
        let (n, known) = (x.dim(0)?, self.sessions.get(&id).map_or(0, |s| s.len));
        if position > known || position + n > self.dims.context {
            let text = format!("{n} tokens at {position} after {known} known, of {} at most", self.dims.context);
            return Err(EngineError::BadInput(text));
        }
        let mut cache = match self.sessions.remove(&id) {
            Some(session) => session.cache,
            None => {
                let empty = Tensor::zeros((1, self.dims.kv_heads, 0, self.dims.head), x.dtype(), &self.device)?;
                vec![(empty.clone(), empty); self.model.layers as usize]
            }
        };
        let (angles, mask) = (self.angles(position..position + n)?, self.mask(position, n, position + n)?);
        for (layer, cache) in cache.iter_mut().enumerate() {
            *cache = (cache.0.narrow(2, 0, position)?, cache.1.narrow(2, 0, position)?);
            x = block(&self.dims, self.layer(&detached, layer), &x, n, &angles, &mask, Some(cache))?;
        }
        self.sessions.insert(id, Session { weights, len: position + n, cache });
        if self.model.head {
            x = self.logits(&detached, &x.narrow(0, n - 1, 1)?)?;
        }
        let out = x.flatten_all()?.to_vec1::<f32>()?;
        match kernel::finite(&out) {
            true => Ok(out),
            false => Err(EngineError::NotFinite("the output of a generation")),
        }
    }

    fn drop_session(&mut self, session: u64) {
        self.sessions.remove(&session);
    }
}
