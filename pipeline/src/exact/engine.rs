//! What every engine can do: the contract between a worker and the arithmetic of one stage.
//!
//! Hidden states and their gradients are f32, row-major `[tokens, hidden]`, tokens in the order of the sequences. Parameters
//! lie in one flat buffer in the canonical order of [`StageModel`]. The caller chooses the keys of forwards and sessions.

use std::sync::Arc;

use skein_protocol::{
    Manifest,
    run::{Optimizer, OptimizerKind, Recompute, Schedule},
    wire::Starts,
};

pub use crate::model::state::TrainState;
use crate::model::{StageModel, frozen::Frozen};

/// A target that is not counted in the loss.
pub const IGNORE: u32 = u32::MAX;

/// The token that logits `[vocab]` hold likeliest, the last of equal ones; 0 of none.
pub fn likeliest(logits: &[f32]) -> u32 {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id as u32)
}

/// What a manifest says about training, as far as an engine needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Tokens of one sequence.
    pub sequence: usize,
    /// Sequences of one micro-batch, at most.
    pub micro_batch: usize,
    /// Bound of each block's gradient norm; 0 = off.
    pub clip: f64,
    pub optimizer: Optimizer,
    /// Keep only the inputs of forwards and compute them again at their backward.
    pub recompute: Recompute,
    /// Bytes that kept forwards may take beyond their inputs; above it a forward keeps its input only.
    pub kept_bytes_max: u64,
}

impl Settings {
    /// Of an engine whose weights stay as they are. Its gradients can be read all the same: without momentum and decay the first
    /// moment after a step of rate 0 is the gradient itself.
    pub fn still(sequence: usize, micro_batch: usize) -> Self {
        let optimizer = Optimizer {
            kind: OptimizerKind::Sgd,
            lr: 0.0,
            beta1: 0.0,
            beta2: 0.0,
            eps: 0.0,
            decay: 0.0,
            schedule: Schedule::default(),
        };
        let (recompute, kept_bytes_max) = (Recompute::WhenNeeded, u64::MAX);
        Settings { sequence, micro_batch, clip: 0.0, optimizer, recompute, kept_bytes_max }
    }

    pub fn of(manifest: &Manifest) -> Self {
        Settings {
            sequence: manifest.train.sequence as usize,
            micro_batch: manifest.train.micro_batch as usize,
            clip: manifest.train.clip,
            optimizer: manifest.optimizer.clone(),
            recompute: manifest.train.recompute,
            kept_bytes_max: u64::MAX,
        }
    }
}

/// What an engine begins with.
#[derive(Clone, Debug)]
pub struct StageWeights {
    /// What is trained: the flat buffer of the stage's model, as [`crate::model::init::initial`] makes it.
    pub params: Vec<f32>,
    /// That of [`StageModel::frozen`], where the parameters are adapters; engines on one machine share it.
    pub frozen: Option<Arc<Frozen>>,
}

impl From<Vec<f32>> for StageWeights {
    fn from(params: Vec<f32>) -> Self {
        StageWeights { params, frozen: None }
    }
}

/// What comes into a stage: token ids at the first, hidden states `[tokens, hidden]` elsewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StageInput<'a> {
    Tokens(&'a [u32]),
    Hidden(&'a [f32]),
}

/// A piece of one generation: see [`Engine::infer`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece<'a> {
    pub session: u64,
    pub position: usize,
    pub input: StageInput<'a>,
}

/// The last stage's answer to a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Lost {
    /// Sum of the counted tokens' losses, nats.
    pub loss: f64,
    /// Counted tokens: those whose target is not [`IGNORE`].
    pub tokens: u32,
    /// Gradient of the *mean* loss of the counted tokens for the stage's input; empty where tokens came in.
    pub gradient: Vec<f32>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Gradient norm of each block of [`StageModel::blocks`], before it was clipped.
    pub norms: Vec<f64>,
    /// Sum of the weights of what was in the sum; 0: there was nothing to step with, nothing changed.
    pub weight: f64,
    /// False: a norm was too large to be squared; the sum was dropped, nothing else changed.
    pub finite: bool,
}

impl StepReport {
    /// Norm of the whole stage's gradient.
    pub fn norm(&self) -> f64 {
        self.norms.iter().map(|n| n * n).sum::<f64>().sqrt()
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// What came in is not what the model says, or its values are not finite: its sender is to blame.
    #[error("{0}")]
    BadInput(String),
    /// The result is not finite. Nothing was added to the sum.
    #[error("{0} is not finite")]
    NotFinite(&'static str),
    #[error("no forward is kept under key {0}")]
    NotKept(u64),
    /// Memory or device.
    #[error("{0}")]
    Device(String),
}

/// Forward, backward and optimizer of one stage.
///
/// A forward keeps its input until [`drop_kept`](Engine::drop_kept), and until its backward what that needs, with the weights
/// it used: a step or an adoption never writes in place. At most two versions of the weights are held; a forward older than
/// that is computed again from its input, at today's weights. No call panics on values; an `Err` leaves the sum as it was.
pub trait Engine: Send {
    fn model(&self) -> &StageModel;

    fn settings(&self) -> &Settings;

    /// From now on kept forwards may take this much beyond their inputs ([`Settings::kept_bytes_max`]).
    fn set_kept_bytes_max(&mut self, bytes: u64);

    /// Whether there is memory to hold the weights once more in the order in which products read them
    /// (at first there is). It changes no bit.
    fn set_packed(&mut self, packed: bool);

    /// Bytes that the weights take so packed, whether they are or not. 0: this engine packs none.
    fn packed_bytes(&self) -> u64 {
        0
    }

    /// Runs the stage's layers. Returns the hidden states, or nothing at the last stage (its loss or its logits come from
    /// [`loss_backward`](Engine::loss_backward) and [`infer`](Engine::infer)). A key that is kept already is replaced. `starts`:
    /// where records begin in the sequences; each record is computed as if it stood alone, forward and backward.
    fn forward_packed(&mut self, key: u64, input: StageInput<'_>, starts: &Starts) -> Result<Vec<f32>, EngineError>;

    /// [`forward_packed`](Engine::forward_packed) of sequences that are one record each.
    fn forward(&mut self, key: u64, input: StageInput<'_>) -> Result<Vec<f32>, EngineError> {
        self.forward_packed(key, input, &Starts::default())
    }

    /// Last stage: loss of the kept forward against `targets` (one a token, or [`IGNORE`]), then its backward.
    /// `weight` as in [`backward`](Engine::backward).
    fn loss_backward(&mut self, key: u64, targets: &[u32], weight: f32) -> Result<Lost, EngineError>;

    /// Backward of a kept forward from the gradient of its output. The parameters' gradients times `weight` are added to the
    /// open sum; with weight 0 they are not computed. `recompute`: at today's weights, even if those of the forward are held.
    /// Returns the gradient of the input, empty where tokens came in.
    fn backward(&mut self, key: u64, gradient: &[f32], weight: f32, recompute: bool) -> Result<Vec<f32>, EngineError>;

    fn drop_kept(&mut self, key: u64);

    /// Memory of a result of this engine that nobody reads any more, for a later one.
    fn reuse(&mut self, result: Vec<f32>) {
        drop(result);
    }

    /// Keys kept, in order.
    fn kept(&self) -> Vec<u64>;

    fn drop_sum(&mut self);

    /// Sum of the weights in the open sum.
    fn sum_weight(&self) -> f64;

    /// Steps the optimizer with the weighted mean of the open sum, each block's norm clipped apart, and begins a new sum.
    fn step(&mut self, lr: f64) -> Result<StepReport, EngineError>;

    /// Whether [`params`](Engine::params) and [`shared`](Engine::shared) are those in use: of a device that can be read no more they
    /// are older ones.
    fn readable(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// The flat buffer.
    fn params(&self) -> &[f32];

    /// The flat buffer, for whoever still wants it when there is a newer one.
    fn shared(&self) -> Arc<Vec<f32>>;

    /// New parameters (an averaging round was adopted); optimizer state and open sum stay.
    fn set_params(&mut self, params: Vec<f32>) -> Result<(), EngineError>;

    /// # Errors
    /// The device can be read no more.
    fn state(&self) -> Result<TrainState, EngineError>;

    /// Another state; the open sum is dropped.
    fn load(&mut self, state: TrainState) -> Result<(), EngineError>;

    /// One piece of a generation: the tokens (or hidden states) at `position` and after, on top of what the session holds.
    /// A position before the session's end cuts it there. Returns hidden states, or at the last stage the logits `[vocab]`
    /// of the last position. A session uses the weights of its first piece.
    fn infer(&mut self, session: u64, position: usize, input: StageInput<'_>) -> Result<Vec<f32>, EngineError>;

    /// Pieces of different sessions, one result each in their order: as [`infer`](Engine::infer) one after the other, but that the
    /// weights may be read once for all of them.
    fn infer_all(&mut self, pieces: &[Piece<'_>]) -> Vec<Result<Vec<f32>, EngineError>> {
        pieces.iter().map(|piece| self.infer(piece.session, piece.position, piece.input)).collect()
    }

    fn drop_session(&mut self, session: u64);
}
