//! The model that a run began with, where its weights lie in a folder on this machine. In: a folder. Out: the weights of stages, the
//! tokenizer, and digests by which a manifest names both. What peers give to each other goes on the shelf: the tokenizer, and beside
//! adapters the frozen weights. Where all weights are trained, only whoever has the folder can make a stage from nothing.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use skein_pipeline::{
    compute::hf::{Checkpoint, HfError},
    model::{
        StageModel,
        frozen::{self, BadFrozen},
    },
};
use skein_protocol::{
    Manifest,
    hash::{self, Digest},
    run::{self, Weights},
};

use crate::{
    home::{HomeError, Shelf},
    text::{ChatTemplate, Files, TemplateError, TextError, Tokenizer},
};

/// What the run's folder keeps of it: its path.
const NOTE: &str = "model";

#[derive(Clone, Debug)]
pub struct Base {
    pub folder: PathBuf,
    pub checkpoint: Arc<Checkpoint>,
    pub weights: Digest,
    pub words: Words,
}

#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error(transparent)]
    Folder(#[from] HfError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("its weights cannot be held: {0}")]
    Frozen(#[from] BadFrozen),
    #[error("its tokenizer has {tokens} tokens, the model {vocab}")]
    Vocabulary { tokens: usize, vocab: u32 },
    /// Another model lies there than the run began with.
    #[error("the weights in {} are not those of this run", .0.display())]
    Changed(PathBuf),
}

/// How a model reads and writes.
#[derive(Clone, Debug)]
pub struct Words {
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    /// Of the tokenizer; nothing where its tokens are the bytes themselves.
    pub files: Option<Arc<Files>>,
    /// The folder has no tokenizer: bytes are taken for one.
    pub guessed: bool,
}

impl Words {
    /// A folder without a tokenizer is read as bytes where its vocabulary has them.
    ///
    /// # Errors
    /// Files that are missing or damaged.
    pub fn of(checkpoint: &Checkpoint, folder: &Path) -> Result<Words, BaseError> {
        if folder.is_file() {
            return Words::of_file(checkpoint, folder);
        }
        let bytes = |template, guessed| Words { tokenizer: Tokenizer::bytes(), template, files: None, guessed };
        match (checkpoint.byte_level(), Files::read(folder)) {
            (Ok(()), Ok(files)) => Ok(bytes(ChatTemplate::from_files(&files)?, false)),
            (_, Ok(files)) => Words::of_files(files),
            (_, Err(TextError::NoTokenizer { .. })) if checkpoint.config.vocab >= 256 => Ok(bytes(None, true)),
            (_, Err(error)) => Err(error.into()),
        }
    }

    fn of_files(files: Files) -> Result<Words, BaseError> {
        Ok(Words {
            tokenizer: Tokenizer::from_files(&files)?,
            template: ChatTemplate::from_files(&files)?,
            files: Some(Arc::new(files)),
            guessed: false,
        })
    }

    /// Those of a run; nothing where its tokenizer has not arrived yet.
    ///
    /// # Errors
    /// It lies there and cannot be read.
    pub fn of_run(shelf: &Shelf, manifest: &Manifest) -> Result<Option<Words>, BaseError> {
        let blob = match &manifest.model.tokenizer {
            run::Tokenizer::Byte => {
                let tokenizer = Tokenizer::bytes();
                return Ok(Some(Words { tokenizer, template: None, files: None, guessed: false }));
            }
            run::Tokenizer::File { blob } => *blob,
        };
        let Some(archive) = shelf.get(blob)? else { return Ok(None) };
        let files = Files::from_archive("the tokenizer of the run", &archive)?;
        Words::of_files(files).map(Some)
    }

    /// Those that a GGUF file holds.
    fn of_file(checkpoint: &Checkpoint, file: &Path) -> Result<Words, BaseError> {
        let files = Files::new(&file.to_string_lossy(), checkpoint.texts()?)?;
        let has_any = files.iter().next().is_some();
        if checkpoint.byte_level().is_ok() || (!has_any && checkpoint.config.vocab >= 256) {
            let template = ChatTemplate::from_files(&files)?;
            return Ok(Words { tokenizer: Tokenizer::bytes(), template, files: None, guessed: !has_any });
        }
        Words::of_files(files)
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
        let words = Words::fitting(&checkpoint, &folder)?;
        let weights = checkpoint.digest()?;
        Ok(Base { folder, checkpoint: Arc::new(checkpoint), weights, words })
    }

    /// As a manifest names the tokenizer.
    pub fn tokenizer(&self) -> run::Tokenizer {
        match &self.words.files {
            None => run::Tokenizer::Byte,
            Some(files) => run::Tokenizer::File { blob: files.digest() },
        }
    }

    /// Of each stage's frozen weights, as they travel. `shelf`: they are laid down there.
    ///
    /// # Errors
    /// The folder cannot be read, the disk is full, or the manifest cuts no such model.
    pub fn frozen(&self, manifest: &Manifest, shelf: Option<&Shelf>) -> Result<Vec<Digest>, BaseError> {
        let stage = |stage| {
            let model = StageModel::of(manifest, stage).map_err(HfError::from)?;
            let (Some(model), Some(lora)) = (model.frozen(), manifest.lora()) else { return Ok(Digest::default()) };
            let bytes = frozen::encode(model, &self.checkpoint.read(model)?, lora.base)?;
            let blob = hash::blob(&[&bytes]);
            if let Some(shelf) = shelf {
                shelf.put(blob, &[&bytes])?;
            }
            Ok(blob)
        };
        (0..manifest.stages.count).map(stage).collect()
    }

    /// Lays the tokenizer down for those who join.
    ///
    /// # Errors
    /// The disk is full, or may not be written.
    pub fn shelve_words(&self, shelf: &Shelf) -> Result<(), HomeError> {
        match &self.words.files {
            None => Ok(()),
            Some(files) => shelf.put(files.digest(), &[&files.archive()]),
        }
    }

    /// Where the model of a run lay when it was last started.
    pub fn place(folder: &crate::home::RunFolder) -> Option<PathBuf> {
        let path = String::from_utf8(folder.read(NOTE).ok()??).ok()?;
        Some(PathBuf::from(path.trim_end()))
    }

    /// That of a run whose folder notes where it lies; nothing where it notes none.
    ///
    /// # Errors
    /// See [`BaseError`]; above all it lies there no more, or is another.
    pub fn of_run(folder: &crate::home::RunFolder, manifest: &Manifest) -> Result<Option<Base>, BaseError> {
        if !matches!(manifest.model.weights, Weights::Blob { .. }) {
            return Ok(None);
        }
        let Some(path) = Base::place(folder) else { return Ok(None) };
        let base = Base::open(&path)?;
        match base.is_of(manifest) {
            true => Ok(Some(base)),
            false => Err(BaseError::Changed(base.folder)),
        }
    }

    pub fn is_of(&self, manifest: &Manifest) -> bool {
        matches!(&manifest.model.weights, Weights::Blob { blob, .. } if *blob == self.weights)
    }

    /// For the next start.
    pub fn note(&self, folder: &crate::home::RunFolder) -> Result<(), HomeError> {
        folder.write(NOTE, self.folder.to_string_lossy().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use skein_pipeline::{
        compute::{
            gguf::{Kept, write_gguf},
            hf,
        },
        model::{StageModel, init},
    };
    use skein_protocol::run::{Family, ModelConfig};

    use super::*;
    use crate::text::Special;

    const TEXTS: [&str; 6] = [
        "the stone and the fox",
        " two  spaces\n\n\tand a tab, 12345 6",
        "naïve café, 你好 😀",
        "<|im_start|>user\nhi<|im_end|>",
        "it's WE'RE they'll",
        "",
    ];

    /// A model with the tokenizer of `name`, in a folder and in a file beside it.
    fn made(dir: &Path, name: &str) -> Result<PathBuf, HfError> {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/golden").join(name);
        let texts = hf::texts(&golden).unwrap();
        let config = ModelConfig { vocab: 512, ..crate::node::sample_manifest(1).model.config };
        let model = StageModel::whole(config).unwrap();
        let stages = [(model.clone(), init::initial(&model, 3))];
        hf::write_with(dir, Family::Llama, &stages, &texts).unwrap();
        let file = dir.join("model.gguf");
        write_gguf(&file, name, Family::Llama, &stages, &texts, Kept::F16).map(|_| file)
    }

    fn words(path: &Path) -> Words {
        Words::fitting(&Checkpoint::open(path).unwrap(), path).unwrap()
    }

    #[test]
    fn a_gguf_file_reads_and_writes_text_as_the_folder_does() {
        for name in ["byte-level", "sentence-piece"] {
            let dir = tempfile::tempdir().unwrap();
            let file = made(dir.path(), name).unwrap();
            let expected = words(dir.path());
            let ours = words(&file);
            // A file of another program: without the whole of tokenizer.json.
            let mut bytes = fs::read(&file).unwrap();
            let key = b"tokenizer.huggingface.json";
            let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
            bytes[at..at + key.len()].copy_from_slice(b"tokenizer.some-other.thing");
            let other = dir.path().join("other.gguf");
            fs::write(&other, bytes).unwrap();
            let theirs = words(&other);
            for words in [&ours, &theirs] {
                for text in TEXTS {
                    for opening in [false, true] {
                        let ids = |words: &Words| words.tokenizer.encode(text, Special::Parse, opening).unwrap();
                        assert_eq!(ids(words), ids(&expected), "{name}: {text:?}");
                        assert_eq!(
                            words.tokenizer.decode(&ids(words), true),
                            expected.tokenizer.decode(&ids(words), true)
                        );
                    }
                }
                assert_eq!(words.tokenizer.bos(), expected.tokenizer.bos());
                assert_eq!(words.tokenizer.ends()[0], expected.tokenizer.ends()[0]);
                let source = |words: &Words| words.template.as_ref().map(|template| template.source().to_string());
                assert_eq!(source(words), source(&expected));
            }
        }
    }

    #[test]
    fn a_tokenizer_without_words_in_gguf_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let told = made(dir.path(), "unigram").unwrap_err();
        assert!(matches!(&told, HfError::Words { why, .. } if why.contains("BPE")), "{told}");
        assert!(!dir.path().join("model.gguf").exists());
    }
}
