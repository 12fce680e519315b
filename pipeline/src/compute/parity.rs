//! Whether a checkpoint is computed as its makers' library computes it. In: a folder, cut into stages, and a file of numbers that
//! the library gave for some tokens. Out: how far ours are from them.
//!
//! `pipeline/tests/families/reference.py` writes such a file with Python's `transformers`.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use skein_protocol::run::{Arithmetic, BasePrecision};

use super::{
    Device, engine,
    hf::{AdapterFolder, Checkpoint, HfError},
};
use crate::{
    exact::{Engine, EngineError, IGNORE, Settings, StageInput, StageWeights, likeliest},
    model::{
        BadModel, EMBEDDING, HEAD, StageModel,
        frozen::{BadFrozen, Frozen},
    },
};

/// A longer file is no reference.
const REFERENCE_MAX: u64 = 256 << 20;
/// Tokens of the first row that are continued.
const PROMPT: usize = 8;
/// A gradient below this share of the largest is compared with that share: what is left of it is rounding.
const GRADIENT_MIN: f64 = 1e-4;

/// How far apart the two may be: loss and logits in their own units, gradients by their norms.
pub const LOSS_MAX: f64 = 1e-4;
pub const LOGITS_MAX: f64 = 1e-4;
pub const GRADIENTS_MAX: f64 = 1e-3;

/// What the library gave. Whatever is absent is not compared.
#[derive(Clone, Debug, Deserialize)]
pub struct Reference {
    /// `[batch][sequence]`
    pub ids: Vec<Vec<u32>>,
    /// Mean cross-entropy of every next token, nats.
    pub loss: Option<f64>,
    /// Of the last position, `[batch][vocabulary]`.
    pub last_logits: Option<Vec<Vec<f32>>>,
    /// Of that loss, by the names in the checkpoint, or in the adapter.
    pub grad_norms: Option<BTreeMap<String, f64>>,
    /// How the first 8 tokens of the first row go on, the likeliest token each time.
    pub greedy: Option<Vec<u32>>,
}

/// How far ours are from them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Agreement {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_abs: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits_max_abs: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grads_max_rel: Option<f64>,
    /// The parameter whose gradient is furthest off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grads_worst: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub greedy_equal: Option<bool>,
}

impl Agreement {
    /// Loss and logits may be 1e-4 apart, gradients 1e-3 of their size, and the text must be the same.
    pub fn holds(&self) -> bool {
        let within = |value: Option<f64>, most: f64| value.is_none_or(|value| value <= most);
        within(self.loss_abs, LOSS_MAX)
            && within(self.logits_max_abs, LOGITS_MAX)
            && within(self.grads_max_rel, GRADIENTS_MAX)
            && self.greedy_equal != Some(false)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ParityError {
    #[error("{path}: {why}")]
    Reference { path: String, why: String },
    #[error(transparent)]
    Folder(#[from] HfError),
    #[error(transparent)]
    Model(#[from] BadModel),
    #[error("the weights of the checkpoint: {0}")]
    Weights(#[from] BadFrozen),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Reference {
    /// # Errors
    /// No such file, or not of that form.
    pub fn read(path: &Path) -> Result<Self, ParityError> {
        let wrong = |why: String| ParityError::Reference { path: path.display().to_string(), why };
        let len = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
        if len > REFERENCE_MAX {
            return Err(wrong(format!("{len} bytes are too many for a reference")));
        }
        let text = fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let read: Reference = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        let width = read.ids.first().map_or(0, Vec::len);
        if width < 2 || read.ids.iter().any(|row| row.len() != width) {
            return Err(wrong("`ids` must be rows of one length, of 2 tokens or more".into()));
        }
        if read.last_logits.as_ref().is_some_and(|rows| rows.len() != read.ids.len()) {
            return Err(wrong("`last_logits` must have a row for each of `ids`".into()));
        }
        Ok(read)
    }
}

/// Stages of about as many layers each, at most as many as there are layers.
pub fn cut(checkpoint: &Checkpoint, stages: u32) -> Result<Vec<StageModel>, BadModel> {
    let layers = checkpoint.config.layers;
    let count = stages.clamp(1, layers.max(1));
    let first = |stage: u32| (u64::from(stage) * u64::from(layers) / u64::from(count)) as u32;
    let stage = |n: u32| {
        let config = checkpoint.config.clone();
        StageModel::new(config, first(n), first(n + 1) - first(n), n == 0, n + 1 == count)
    };
    (0..count).map(stage).collect()
}

/// Computes what the reference holds, through engines of the stages of [`cut`], one behind the other on this machine. `adapter`:
/// what is trained beside the checkpoint.
///
/// # Errors
/// A reference whose tokens the model does not read, or memory does not suffice.
pub fn compare(
    checkpoint: &Checkpoint,
    adapter: Option<&AdapterFolder>,
    reference: &Reference,
    stages: u32,
    device: Device,
) -> Result<Agreement, ParityError> {
    let (sequences, sequence) = (reference.ids.len(), reference.ids[0].len());
    let settings = Settings::still(sequence, sequences);
    let mut engines = Vec::new();
    for model in cut(checkpoint, stages)? {
        let weights = checkpoint.read(&model)?;
        let (model, weights) = match adapter {
            None => (model, weights.into()),
            Some(adapter) => {
                let frozen = Frozen::of(&model, &weights, BasePrecision::AsIs)?;
                let model = StageModel::adapted(model, adapter.lora.clone())?;
                let params = adapter.read(&model)?;
                (model, StageWeights { params, frozen: Some(Arc::new(frozen)) })
            }
        };
        engines.push(engine(device, Arithmetic::F32, model, settings.clone(), weights)?);
    }
    let mut found = Agreement::default();
    if reference.loss.is_some() || reference.grad_norms.is_some() {
        let loss = train(&mut engines, &reference.ids)?;
        found.loss_abs = reference.loss.map(|theirs| (theirs - loss).abs());
    }
    if let Some(theirs) = &reference.grad_norms {
        let ours = norms(&mut engines)?;
        let floor = GRADIENT_MIN * theirs.values().fold(0.0, |most: f64, norm| most.max(*norm));
        let apart = |(name, norm): (&String, &f64)| {
            let bare = name.strip_prefix("base_model.model.").unwrap_or(name);
            let ours = ours.get(bare).copied().unwrap_or(f64::INFINITY);
            ((ours - norm).abs() / norm.max(floor), name.clone())
        };
        let worst = theirs.iter().map(apart).max_by(|a, b| a.0.total_cmp(&b.0));
        (found.grads_max_rel, found.grads_worst) = worst.map_or((None, None), |(rel, name)| (Some(rel), Some(name)));
    }
    if let Some(theirs) = &reference.last_logits {
        let mut most = 0f64;
        for (row, theirs) in reference.ids.iter().zip(theirs) {
            let ours = read(&mut engines, 0, row)?;
            let differs = ours.len() != theirs.len();
            let apart = ours.iter().zip(theirs).map(|(a, b)| f64::from((a - b).abs()));
            most = apart.fold(if differs { f64::INFINITY } else { most }, f64::max);
        }
        found.logits_max_abs = Some(most);
    }
    if let Some(theirs) = &reference.greedy {
        found.greedy_equal = Some(greedy(&mut engines, &reference.ids[0], theirs.len())? == *theirs);
    }
    Ok(found)
}

type Stages = Vec<Box<dyn Engine>>;

/// Forward and backward of all rows at once. The mean loss; the gradients are in the engines' open sums.
fn train(engines: &mut Stages, ids: &[Vec<u32>]) -> Result<f64, EngineError> {
    let tokens: Vec<u32> = ids.concat();
    let targets: Vec<u32> = ids.iter().flat_map(|row| row[1..].iter().copied().chain([IGNORE])).collect();
    let mut x = engines[0].forward(0, StageInput::Tokens(&tokens))?;
    for engine in &mut engines[1..] {
        x = engine.forward(0, StageInput::Hidden(&x))?;
    }
    let (last, before) = engines.split_last_mut().expect("a model has a stage");
    let lost = last.loss_backward(0, &targets, 1.0)?;
    let mut gradient = lost.gradient;
    for engine in before.iter_mut().rev() {
        gradient = engine.backward(0, &gradient, 1.0, false)?;
    }
    Ok(lost.loss / f64::from(lost.tokens.max(1)))
}

/// Norms of the gradients in the open sums, by name. The two halves of a tie that the cut undid are one tensor again.
fn norms(engines: &mut Stages) -> Result<BTreeMap<String, f64>, EngineError> {
    let mut gradients: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for engine in engines.iter_mut() {
        // See `Settings::still`.
        engine.step(0.0)?;
        let flat = engine.state()?.m;
        for param in engine.model().params() {
            gradients.insert(param.name.clone(), flat[param.range()].to_vec());
        }
    }
    if engines[0].model().config.tie_embeddings
        && let Some(head) = gradients.remove(HEAD)
        && let Some(embedding) = gradients.get_mut(EMBEDDING)
    {
        embedding.iter_mut().zip(head).for_each(|(embedding, head)| *embedding += head);
    }
    let norm = |values: Vec<f32>| values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    Ok(gradients.into_iter().map(|(name, values)| (name, norm(values))).collect())
}

/// Logits after `tokens`, which stand at `position` and after.
fn read(engines: &mut Stages, position: usize, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
    let mut x = engines[0].infer(1, position, StageInput::Tokens(tokens))?;
    for engine in &mut engines[1..] {
        x = engine.infer(1, position, StageInput::Hidden(&x))?;
    }
    Ok(x)
}

fn greedy(engines: &mut Stages, row: &[u32], count: usize) -> Result<Vec<u32>, EngineError> {
    let (mut piece, mut position, mut said) = (row[..PROMPT.min(row.len())].to_vec(), 0, Vec::new());
    while said.len() < count {
        let logits = read(engines, position, &piece)?;
        position += piece.len();
        let next = likeliest(&logits);
        said.push(next);
        piece = vec![next];
    }
    Ok(said)
}
