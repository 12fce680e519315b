//! The closed list of what a worker may be asked, and what it answers. The driver runs jobs in the order given, one at a time.
//!
//! A worker holds one engine a stage, the slow weights and outer momentum of averaging, and what is kept for each forward
//! under its `key`. Machines decide; a job says everything that the worker needs to know.

use skein_protocol::{Blob, Stage, Version, codec::Sample, hash::Digest, run::Codec, wire::Starts};

/// Name of a forward inside one replica: what the engine keeps for its backward lies under it.
pub type Key = u64;

/// How a result is to be encoded for its next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coding {
    pub codec: Codec,
    /// zstd may be used where it pays.
    pub zstd: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// Make the engine of a stage, with version 0: from the manifest's seed, or from the weights that it names where they are here.
    Create {
        stage: Stage,
        /// Where the bytes of its frozen weights lie, in order (see `model::frozen`); none, where all of it is trained.
        frozen: Vec<Blob>,
    },
    /// Make (or overwrite) the engine of a stage from a state: the parts, concatenated. Checked against `root`.
    Load {
        stage: Stage,
        parts: Vec<Blob>,
        root: Digest,
        /// As in `Create`.
        frozen: Vec<Blob>,
    },
    /// Forward of `input` (token ids at stage 0, an encoded activation elsewhere), whose records begin at `starts`. Keeps what
    /// backward needs.
    Forward {
        stage: Stage,
        key: Key,
        input: Blob,
        starts: Starts,
        coding: Coding,
    },
    /// Last stage: forward, loss and backward in one. `weight` 0: the gradient is passed on, not added.
    Loss {
        stage: Stage,
        key: Key,
        input: Blob,
        starts: Starts,
        labels: Blob,
        weight: f32,
        coding: Coding,
    },
    /// Backward of a kept forward.
    Backward {
        stage: Stage,
        key: Key,
        gradient: Blob,
        weight: f32,
        coding: Coding,
    },
    /// Forget what is kept under these keys.
    Drop {
        stage: Stage,
        keys: Vec<Key>,
    },
    /// Forget the open sum.
    DropSum {
        stage: Stage,
    },
    /// Step the optimizer with the mean of the open sum, at the learning rate of `samples` of the whole run.
    Step {
        stage: Stage,
        samples: u64,
    },
    /// Everything a replica needs; or, not `full`, its parameters (theta) only, for an export.
    State {
        stage: Stage,
        version: Version,
        full: bool,
    },
    /// Freeze theta and phi for a round and encode `d = theta - phi` (in `codec`) and phi (f32).
    RoundSnapshot {
        stage: Stage,
        round: u32,
        codec: Codec,
    },
    /// Compute the new phi and momentum of a round from my frozen tensors and the partner's.
    RoundPrepare {
        stage: Stage,
        round: u32,
        partner: RoundPartner,
    },
    /// phi and m become the prepared ones; theta <- phi + (theta now - theta frozen).
    RoundAdopt {
        stage: Stage,
        round: u32,
    },
    /// Forget what was frozen and prepared.
    RoundRollBack {
        stage: Stage,
        round: u32,
    },
    /// phi <- theta, m <- 0.
    RoundAlone {
        stage: Stage,
    },
    /// Generate: pieces of different sessions, for which the weights are read once.
    Infer {
        stage: Stage,
        pieces: Vec<Piece>,
    },
    InferClose {
        stage: Stage,
        session: u64,
    },
    /// Write the state of a stage durably to the run's folder.
    Save {
        stage: Stage,
        version: Version,
    },
    /// Forget the stage.
    Remove {
        stage: Stage,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct RoundPartner {
    /// The partner's encoded tensors, as its `RoundSnapshot` made them.
    pub tensors: Blob,
    pub my_samples: u64,
    pub their_samples: u64,
    /// Whether my peer id is the smaller: sums run in the order of peer ids.
    pub first: bool,
    /// Too far apart: take over the partner's phi instead of averaging.
    pub copy: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Done {
    /// `Create`, `Load`, `Drop`, `DropSum`, `RoundAdopt`, `RoundRollBack`, `RoundAlone`, `InferClose`, `Remove`.
    Ok,
    /// `Load`: what was in the state.
    Loaded {
        version: Version,
    },
    /// `Forward`: the encoded output. `raw` is its size as f32, `sample` what was last measured of outputs in this codec.
    Forwarded {
        output: Blob,
        coding: Coding,
        raw: u64,
        sample: Sample,
    },
    /// `Loss` and `Backward`. `gradient`: encoded, nothing at stage 0. `loss` is a sum over `tokens` (`Loss` only).
    Backed {
        gradient: Option<Blob>,
        coding: Coding,
        raw: u64,
        sample: Sample,
        loss: f32,
        tokens: u32,
    },
    Stepped {
        lr: f64,
        gradient_norm: f32,
        run_step: u64,
    },
    /// `State`, and `RoundSnapshot`, whose tensors have no root.
    Encoded {
        blob: Blob,
        root: Digest,
    },
    /// `RoundPrepare`: |phi - mean phi| / |mean phi| before and after the round (both sides know both).
    Prepared {
        before: f32,
        after: f32,
    },
    /// One answer a piece, in their order: f32 hidden states, or logits of the last position at the last stage; or why there is none.
    Inferred {
        outputs: Vec<(u64, Result<Blob, String>)>,
    },
    Saved {
        root: Digest,
        bytes: u64,
    },
    /// The input is not what the manifest says, or its values are not finite: its sender is to blame.
    BadInput {
        why: String,
    },
    /// My own result is not finite.
    NotFinite {
        why: String,
    },
    /// The job could not be done: memory, disk, device. `disk_full` has its own text for the user.
    Failed {
        why: String,
        disk_full: bool,
    },
}

/// A piece of a session: token ids or hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub session: u64,
    pub position: u32,
    /// How many it has.
    pub tokens: u32,
    pub input: Blob,
}

impl Job {
    /// Handles that it reads.
    pub fn reads(&self) -> Vec<Blob> {
        match self {
            Job::Load { parts, frozen, .. } => parts.iter().chain(frozen).copied().collect(),
            Job::Create { frozen, .. } => frozen.clone(),
            Job::Forward { input, .. } => vec![*input],
            Job::Loss { input, labels, .. } => vec![*input, *labels],
            Job::Backward { gradient, .. } => vec![*gradient],
            Job::RoundPrepare { partner, .. } => vec![partner.tensors],
            Job::Infer { pieces, .. } => pieces.iter().map(|piece| piece.input).collect(),
            Job::Drop { .. }
            | Job::DropSum { .. }
            | Job::Step { .. }
            | Job::State { .. }
            | Job::RoundSnapshot { .. }
            | Job::RoundAdopt { .. }
            | Job::RoundRollBack { .. }
            | Job::RoundAlone { .. }
            | Job::InferClose { .. }
            | Job::Save { .. }
            | Job::Remove { .. } => Vec::new(),
        }
    }

    /// The stage whose engine runs it.
    pub fn stage(&self) -> Stage {
        match self {
            Job::Create { stage, .. }
            | Job::Load { stage, .. }
            | Job::Forward { stage, .. }
            | Job::Loss { stage, .. }
            | Job::Backward { stage, .. }
            | Job::Drop { stage, .. }
            | Job::DropSum { stage }
            | Job::Step { stage, .. }
            | Job::State { stage, .. }
            | Job::RoundSnapshot { stage, .. }
            | Job::RoundPrepare { stage, .. }
            | Job::RoundAdopt { stage, .. }
            | Job::RoundRollBack { stage, .. }
            | Job::RoundAlone { stage }
            | Job::Infer { stage, .. }
            | Job::InferClose { stage, .. }
            | Job::Save { stage, .. }
            | Job::Remove { stage } => *stage,
        }
    }
}
