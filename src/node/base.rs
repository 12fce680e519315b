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

/// How a model in a folder reads and writes.
pub struct Words {
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    /// Of the tokenizer's files; nothing where its tokens are the bytes themselves.
    pub files: Option<Digest>,
    /// The folder has no tokenizer: bytes are taken for one.
    pub guessed: bool,
}

impl Words {
    /// A folder without a tokenizer is read as bytes where its vocabulary has them.
    ///
    /// # Errors
    /// Files that are missing or damaged.
    pub fn of(checkpoint: &Checkpoint, folder: &Path) -> Result<Words, BaseError> {
        let bytes = |template, guessed| Words { tokenizer: Tokenizer::bytes(), template, files: None, guessed };
        match (checkpoint.byte_level(), Files::read(folder)) {
            (Ok(()), Ok(files)) => Ok(bytes(ChatTemplate::from_files(&files)?, false)),
            (_, Ok(files)) => Ok(Words {
                tokenizer: Tokenizer::from_files(&files)?,
                template: ChatTemplate::from_files(&files)?,
                files: Some(files.digest()),
                guessed: false,
            }),
            (_, Err(TextError::NoTokenizer { .. })) if checkpoint.config.vocab >= 256 => Ok(bytes(None, true)),
            (_, Err(error)) => Err(error.into()),
        }
    }

    /// Those of which the model knows every token.
    ///
    /// # Errors
    /// As [`Words::of`], and a tokenizer of more tokens than the model has.
    pub fn fitting(checkpoint: &Checkpoint, folder: &Path) -> Result<Words, BaseError> {
        let words = Words::of(checkpoint, folder)?;
        let (tokens, vocab) = (words.tokenizer.vocabulary(), checkpoint.config.vocab);
        if tokens > vocab as usize {
            return Err(BaseError::Vocabulary { tokens, vocab });
        }
        Ok(words)
    }
}

impl Base {
    /// Reads all of the weights once, for their digest.
    ///
    /// # Errors
    /// See [`BaseError`].
    pub fn open(folder: &Path) -> Result<Base, BaseError> {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
        let checkpoint = Checkpoint::open(&folder)?;
        let Words { tokenizer, template, files, .. } = Words::fitting(&checkpoint, &folder)?;
        let words = files.map_or(run::Tokenizer::Byte, |blob| run::Tokenizer::File { blob });
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
