//! What a model is asked and what it says: the words between whoever asks and a backend.

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::sampler::{Sampling, Taste};
use crate::text::{TemplateError, TextError};

/// What is continued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// A text of its own: it is opened as the model wants a text to begin.
    Text(String),
    /// What a model's own chat template wrote, which opens it where that is wanted.
    Rendered(String),
    Tokens(Vec<u32>),
}

#[derive(Clone, Debug)]
pub struct Ask {
    pub prompt: Prompt,
    /// At most; nothing: as far as the model reads.
    pub tokens_max: Option<u32>,
    pub sampling: Sampling,
    pub taste: Taste,
    /// Texts before which the answer ends; none empty.
    pub stops: Vec<String>,
    /// For each token its probability, and so many of the likeliest instead.
    pub logprobs: Option<u8>,
    /// Who asks. Where several wait, those come first of whom fewest are being answered.
    pub owner: u64,
}

impl Ask {
    /// `prompt` continued with a seed, everything else as it usually is.
    pub fn new(prompt: Prompt, sampling: Sampling) -> Self {
        let (taste, stops) = (Taste::default(), Vec::new());
        Ask { prompt, tokens_max: None, sampling, taste, stops, logprobs: None, owner: 0 }
    }
}

/// What whoever asks hears. After [`Said::End`] or [`Said::Failed`] nothing follows.
#[derive(Debug)]
pub enum Said {
    Piece(Piece),
    End(End),
    Failed(Trouble),
}

/// Text that stays: whole characters, and no beginning of a text to stop at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    pub text: String,
    /// The tokens that became certain with it, where probabilities were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Token {
    pub this: Likely,
    /// The likeliest at its place, the first first.
    pub top: Vec<Likely>,
}

/// A token and its probability by the model itself, before temperature and the like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Likely {
    pub id: u32,
    pub text: String,
    /// Natural logarithm.
    pub logprob: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub why: Why,
    pub prompt_tokens: u64,
    /// Tokens that were drawn, the one that ends a text among them.
    pub tokens: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The model ended the text, or a text to stop at came.
    Stop,
    Length,
    /// The model reads no further.
    Context,
}

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("there is nothing to continue: the prompt is empty")]
    Empty,
    #[error("the prompt has {got} tokens, this model reads {context}")]
    TooLong { got: usize, context: usize },
    #[error("the token {token} is not among the {vocabulary} of this model")]
    NoSuchToken { token: u32, vocabulary: usize },
    #[error("this model has no chat template")]
    NoTemplate,
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error("{answering} requests are being answered and {waiting} wait: no more are taken now")]
    Busy { answering: usize, waiting: usize },
    #[error("no replica serves stage {stages}")]
    NoReplica { stages: String },
    #[error("the run cannot answer: {0}")]
    Run(String),
    #[error("the answer broke off: {0}")]
    Engine(String),
    #[error("the model is being closed")]
    Closed,
}

/// What computes answers.
pub trait Backend: Send + Sync {
    /// Whoever drops the receiver gets no more, and what was kept for it is dropped within a step.
    ///
    /// # Errors
    /// What can be said at once; later trouble comes as [`Said::Failed`].
    fn ask(&self, ask: Ask) -> Result<mpsc::UnboundedReceiver<Said>, Trouble>;
}
