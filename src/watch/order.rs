//! What can be asked of a running peer, and its answers. The same types on both sides of the loopback connection.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skein_protocol::{PeerId, Stage};
use tokio::sync::{mpsc, oneshot};

use crate::talk::{self, Prompt, Sampling, Taste};

/// A wish of somebody on this machine, with the way back for its answer. An order whose answer nobody waits for any more (the
/// way back is closed) may be dropped.
#[derive(Debug)]
pub enum Order {
    /// Drain and end; `now`: end without a drain.
    Stop {
        now: bool,
    },
    Invite {
        reply: oneshot::Sender<Result<Made, Refusal>>,
    },
    /// Pieces of text, then [`Piece::End`]; or a refusal at any point.
    Generate {
        request: GenerateRequest,
        reply: mpsc::Sender<Result<Piece, Refusal>>,
    },
    /// Notes on the way, then [`ExportNote::Done`]; or a refusal at any point.
    Export {
        request: ExportRequest,
        reply: mpsc::Sender<Result<ExportNote, Refusal>>,
    },
}

/// An invite, as one word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    pub invite: String,
    /// Bootstrap peers in it.
    pub peers: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    pub prompt: Prompt,
    pub tokens_max: u32,
    #[serde(flatten)]
    pub sampling: Sampling,
    #[serde(default)]
    pub taste: Taste,
    /// For each token its probability, and so many of the likeliest instead.
    #[serde(default)]
    pub logprobs: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Piece {
    /// Who computes what from here on: `(stage, peer)`. The first one comes before the first text; another follows where a
    /// replica was lost.
    Route(Vec<(Stage, PeerId)>),
    Text(talk::Piece),
    End(Finish),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    pub tokens: u64,
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Whether the model itself ended the text.
    #[serde(default)]
    pub stopped: bool,
    pub first_token_ms: u64,
    pub duration_ms: u64,
    /// Replicas that were replaced on the way.
    pub replaced: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportRequest {
    /// Absolute; made by the peer.
    pub out: PathBuf,
    /// Whether files that are there may be replaced.
    pub overwrite: bool,
    #[serde(default)]
    pub form: ExportForm,
}

/// As what a model is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportForm {
    /// What the run trains: the whole model, or its adapter.
    #[default]
    Best,
    /// An adapter as PEFT reads it.
    Adapter,
    /// The model with its adapter in it.
    Merged,
    /// As `Merged`, in one file for llama.cpp.
    Gguf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportNote {
    /// Stages whose weights are here, of all.
    Collected {
        stages: u16,
        of: u16,
    },
    /// A replica that is not in the mean, and why.
    Missed {
        what: String,
    },
    Done {
        files: Vec<PathBuf>,
        bytes: u64,
        parameters: u64,
        step: u64,
    },
}

/// Why a running peer does not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    #[error("no replica serves stages {stages:?}")]
    NoReplica { stages: Vec<Stage> },
    #[error("the prompt has {got} tokens, this model reads {context}")]
    TooLong { got: usize, context: usize },
    #[error("the token {token} is not among the {vocabulary} of this model")]
    NoSuchToken { token: u32, vocabulary: usize },
    #[error("{}: {error}", path.display())]
    Unwritable { path: PathBuf, error: String },
    #[error("{} is not empty", path.display())]
    NotEmpty { path: PathBuf },
    #[error("the disk of {} is full: {free} bytes free, {needed} needed", path.display())]
    DiskFull { path: PathBuf, free: u64, needed: u64 },
    #[error("{why}")]
    Other { why: String },
}
