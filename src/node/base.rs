//! The model that a run began with, where its weights lie in a folder on this machine. In: a folder. Out: the weights of stages, the
//! tokenizer, and digests by which a manifest names both. Only whoever has the folder can make a stage from nothing; everybody
//! else gets it from a replica.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use skein_pipeline::compute::hf::{Checkpoint, HfError};
use skein_protocol::{
    Manifest,
    hash::Digest,
    run::{self, Weights},
};

use crate::text::{ChatTemplate, Files, TemplateError, TextError, Tokenizer};

/// What the run's folder keeps of it: its path.
const NOTE: &str = "model";

#[derive(Clone, Debug)]
pub struct Base {
    pub folder: PathBuf,
    pub checkpoint: Arc<Checkpoint>,
    pub weights: Digest,
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    /// As a manifest names the tokenizer.
    pub words: run::Tokenizer,
}

#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error(transparent)]
    Folder(#[from] HfError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("its tokenizer has {tokens} tokens, the model {vocab}")]
    Vocabulary { tokens: usize, vocab: u32 },
    /// Another model lies there than the run began with.
    #[error("the weights in {} are not those of this run", .0.display())]
    Changed(PathBuf),
}

impl Base {
    /// Reads all of the weights once, for their digest.
    ///
    /// # Errors
    /// See [`BaseError`].
    pub fn open(folder: &Path) -> Result<Base, BaseError> {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
        let checkpoint = Checkpoint::open(&folder)?;
        let (tokenizer, template, words) = match Files::read(&folder) {
            Err(TextError::NoTokenizer { .. }) if checkpoint.config.vocab >= 256 => {
                (Tokenizer::bytes(), None, run::Tokenizer::Byte)
            }
            files => {
                let files = files?;
                let tokenizer = Tokenizer::from_files(&files)?;
                let words = match tokenizer.is_bytes() {
                    true => run::Tokenizer::Byte,
                    false => run::Tokenizer::File { blob: files.digest() },
                };
                (tokenizer, ChatTemplate::from_files(&files)?, words)
            }
        };
        let vocab = checkpoint.config.vocab;
        if tokenizer.vocabulary() > vocab as usize {
            return Err(BaseError::Vocabulary { tokens: tokenizer.vocabulary(), vocab });
        }
        let weights = checkpoint.digest()?;
        Ok(Base { folder, checkpoint: Arc::new(checkpoint), weights, tokenizer, template, words })
    }

    /// That of a run whose folder notes where it lies; nothing where it notes none.
    ///
    /// # Errors
    /// See [`BaseError`]; above all it lies there no more, or is another.
    pub fn of_run(folder: &crate::home::RunFolder, manifest: &Manifest) -> Result<Option<Base>, BaseError> {
        if !matches!(manifest.model.weights, Weights::Blob { .. }) {
            return Ok(None);
        }
        let Some(path) = folder.read(NOTE).ok().flatten().and_then(|path| String::from_utf8(path).ok()) else {
            return Ok(None);
        };
        let base = Base::open(Path::new(path.trim_end()))?;
        match base.is_of(manifest) {
            true => Ok(Some(base)),
            false => Err(BaseError::Changed(base.folder)),
        }
    }

    /// The chat template that lies beside the weights of a run, if it is still the one of its tokenizer. Reads no weights.
    pub fn template_of(folder: &crate::home::RunFolder, manifest: &Manifest) -> Option<ChatTemplate> {
        let run::Tokenizer::File { blob } = &manifest.model.tokenizer else { return None };
        let path = String::from_utf8(folder.read(NOTE).ok()??).ok()?;
        let files = Files::read(Path::new(path.trim_end())).ok()?;
        if files.digest() == *blob { ChatTemplate::from_files(&files).ok()? } else { None }
    }

    pub fn is_of(&self, manifest: &Manifest) -> bool {
        matches!(&manifest.model.weights, Weights::Blob { blob, .. } if *blob == self.weights)
    }

    /// For the next start.
    pub fn note(&self, folder: &crate::home::RunFolder) -> Result<(), crate::home::HomeError> {
        folder.write(NOTE, self.folder.to_string_lossy().as_bytes())
    }
}
