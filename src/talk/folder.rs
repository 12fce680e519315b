//! A backend over weights in this process. In: a model's folder. Out: answers of one thread that owns the engine.

use std::{
    fs,
    path::Path,
    sync::{Arc, atomic::AtomicUsize, mpsc},
    thread,
    time::UNIX_EPOCH,
};

use skein_pipeline::{
    compute::{Device, engine, hf::Checkpoint},
    exact::{EngineError, Settings},
};
use skein_protocol::{
    hash,
    run::{Arithmetic, Recompute},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{
    ask::{Ask, Backend, Prompt, Said, Trouble},
    batch::{Batch, Limits},
    session::{Place, Session},
};
use crate::{
    node::base::{BaseError, Words},
    text::{ChatTemplate, Special, Tokenizer},
};

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Base(#[from] BaseError),
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
        let checkpoint = Checkpoint::open(path).map_err(BaseError::from)?;
        let Words { tokenizer, template, guessed, .. } = Words::of(&checkpoint, path)?;
        let (model, params) = checkpoint.whole().map_err(BaseError::from)?;
        let (parameters, config) = (params.len(), &checkpoint.config);
        let (context, vocabulary) = (config.context as usize, config.vocab as usize);
        // As little memory as can be.
        let reading = Settings { recompute: Recompute::Always, kept_bytes_max: 0, ..Settings::still(1, 1) };
        let engine = engine(Device::Cpu { threads }, Arithmetic::F32, model, reading, params)?;
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

/// When a folder was made, and a word that changes when it does.
fn identity(path: &Path) -> (u64, String) {
    let config = fs::read(path.join("config.json")).unwrap_or_default();
    let mut parts = vec![config];
    let mut created = 0;
    let files = match path.is_file() {
        true => vec![path.to_path_buf()],
        false => {
            ["config.json", "model.safetensors", "model.safetensors.index.json"].map(|name| path.join(name)).into()
        }
    };
    for file in files {
        let Ok(facts) = fs::metadata(file) else { continue };
        let written = facts.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        created = created.max(written.as_secs());
        parts.push([facts.len().to_le_bytes(), (written.as_nanos() as u64).to_le_bytes()].concat());
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    (created, format!("sk_{}", hash::keyed("skein model folder 1", &parts).short(8)))
}
