//! A backend over weights in this process. In: a model's folder. Out: answers of one thread that owns the engine.

use std::{
    fs,
    path::Path,
    sync::{Arc, atomic::AtomicUsize, mpsc},
    thread,
    time::UNIX_EPOCH,
};

use skein_pipeline::{
    compute::{
        Device, engine,
        hf::{Checkpoint, HfError},
    },
    exact::{EngineError, Settings},
};
use skein_protocol::{
    hash,
    run::{Arithmetic, Optimizer, OptimizerKind, Recompute, Schedule},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{
    ask::{Ask, Backend, Prompt, Said, Trouble},
    batch::{Batch, Limits},
    session::{Place, Session},
};
use crate::text::{ChatTemplate, Files, Special, TemplateError, TextError, Tokenizer};

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Folder(#[from] HfError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("no thread for computing: {0}")]
    Thread(std::io::Error),
}

/// What is known of a folder beside its weights.
pub(super) struct About {
    pub context: usize,
    pub parameters: usize,
    pub vocabulary: usize,
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    /// The folder has no tokenizer: bytes were taken for one.
    pub guessed: bool,
    /// Seconds since 1970 when its configuration was written.
    pub created: u64,
    pub fingerprint: String,
}

pub(super) struct Folder {
    asks: mpsc::Sender<Session>,
    taken: Arc<AtomicUsize>,
    limits: Limits,
    tokenizer: Tokenizer,
    vocabulary: usize,
    context: usize,
}

impl Folder {
    /// `threads`: at least 1. `limits` may depend on how many parameters there are.
    pub fn open(
        path: &Path,
        threads: usize,
        limits: impl FnOnce(usize) -> Limits,
    ) -> Result<(Folder, About), OpenError> {
        let checkpoint = Checkpoint::open(path)?;
        let (tokenizer, template, guessed) = text(&checkpoint, path)?;
        let (model, params) = checkpoint.whole()?;
        let (parameters, config) = (params.len(), &checkpoint.config);
        let (context, vocabulary) = (config.context as usize, config.vocab as usize);
        let engine = engine(Device::Cpu { threads }, Arithmetic::F32, model, reading(), params)?;
        let limits = limits(parameters);
        let (asks, asked) = mpsc::channel();
        let batch = Batch::new(engine, limits);
        thread::Builder::new().name("answers".into()).spawn(move || batch.run(&asked)).map_err(OpenError::Thread)?;
        let (created, fingerprint) = identity(path);
        let folder = Folder { asks, taken: Arc::default(), limits, tokenizer: tokenizer.clone(), vocabulary, context };
        let about = About { context, parameters, vocabulary, tokenizer, template, guessed, created, fingerprint };
        Ok((folder, about))
    }

    fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, Trouble> {
        let tokens = match prompt {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Rendered(text) => self.tokenizer.encode(text, Special::Parse, false)?,
            Prompt::Text(text) => {
                let tokens = self.tokenizer.encode(text, Special::Parse, false)?;
                let opening = self.tokenizer.opening();
                // Whoever wrote the opening out wants it once.
                let opening = if tokens.starts_with(opening) { &[] } else { opening };
                [opening, &tokens].concat()
            }
        };
        if let Some(token) = tokens.iter().find(|token| **token as usize >= self.vocabulary) {
            return Err(Trouble::NoSuchToken { token: *token, vocabulary: self.vocabulary });
        }
        match tokens.len() {
            0 => Err(Trouble::Empty),
            got if got >= self.context => Err(Trouble::TooLong { got, context: self.context }),
            _ => Ok(tokens),
        }
    }
}

impl Backend for Folder {
    fn ask(&self, ask: Ask) -> Result<UnboundedReceiver<Said>, Trouble> {
        let tokens = self.tokens(&ask.prompt)?;
        let Some(place) = Place::take(&self.taken, self.limits.places()) else {
            return Err(Trouble::Busy { answering: self.limits.sessions_max, waiting: self.limits.waiting_max });
        };
        let (reply, said) = unbounded_channel();
        let session = Session::new(ask, tokens, self.tokenizer.clone(), self.context, reply, place);
        self.asks.send(session).map_err(|_| Trouble::Closed)?;
        Ok(said)
    }
}

/// How the model reads and writes. A folder without a tokenizer is read as bytes where its vocabulary has them.
fn text(checkpoint: &Checkpoint, path: &Path) -> Result<(Tokenizer, Option<ChatTemplate>, bool), OpenError> {
    match (checkpoint.byte_level(), Files::read(path)) {
        (Ok(()), Ok(files)) => Ok((Tokenizer::bytes(), ChatTemplate::from_files(&files)?, false)),
        (_, Ok(files)) => Ok((Tokenizer::from_files(&files)?, ChatTemplate::from_files(&files)?, false)),
        (_, Err(TextError::NoTokenizer { .. })) if checkpoint.config.vocab >= 256 => {
            Ok((Tokenizer::bytes(), None, true))
        }
        (Err(no_bytes), Err(TextError::NoTokenizer { .. })) => Err(no_bytes.into()),
        (_, Err(error)) => Err(error.into()),
    }
}

/// When a folder was made, and a word that changes when it does.
fn identity(path: &Path) -> (u64, String) {
    let config = fs::read(path.join("config.json")).unwrap_or_default();
    let mut parts = vec![config];
    let mut created = 0;
    for name in ["config.json", "model.safetensors", "model.safetensors.index.json"] {
        let Ok(facts) = fs::metadata(path.join(name)) else { continue };
        let written = facts.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        created = created.max(written.as_secs());
        parts.push([facts.len().to_le_bytes(), (written.as_nanos() as u64).to_le_bytes()].concat());
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    (created, format!("sk_{}", hash::keyed("skein model folder 1", &parts).short(8)))
}

/// What an engine that never trains is told about training: as little memory as can be.
fn reading() -> Settings {
    let optimizer = Optimizer {
        kind: OptimizerKind::Sgd,
        lr: 0.0,
        beta1: 0.0,
        beta2: 0.0,
        eps: 0.0,
        decay: 0.0,
        schedule: Schedule::default(),
    };
    Settings { sequence: 1, micro_batch: 1, clip: 0.0, optimizer, recompute: Recompute::Always, kept_bytes_max: 0 }
}
