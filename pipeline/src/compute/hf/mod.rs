//! Hugging Face folders: a model in, to train and to generate from, and a model out, for other programs. In: a folder, or stages
//! and their weights. Out: the weights of a stage, or `config.json`, `model.safetensors` and tokenizer files. A GGUF file stands for
//! a folder.
//!
//! A family is what `config` says of it: all of them are one block with switches. Of a folder's tensors only those of the stage
//! asked for are read.

mod adapter;
mod config;
mod tensors;
mod tokenizer;
mod write;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;
use skein_protocol::{
    hash::{self, Digest},
    run::{Family, ModelConfig},
};

use self::tensors::Tensors;
pub use self::{
    adapter::{AdapterFolder, write_adapter},
    write::{BESIDE, Texts, Written, byte_texts, texts, write, write_texts, write_with},
};
use super::gguf::Gguf;
use crate::model::{BadModel, EMBEDDING, HEAD, Param, StageModel, lora};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Larger files are no configuration.
const CONFIG_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum HfError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {why}", path.display())]
    Unreadable { path: PathBuf, why: String },
    /// The architecture, as the folder calls it.
    #[error("{} is not supported; what is: {}", .0, SUPPORTED.join(", "))]
    Family(String),
    /// A model of a known family with something that no engine here computes.
    #[error("config.json: {key} = {value}: {why}")]
    Unsupported { key: String, value: String, why: String },
    /// Its weights could run code when they are read.
    #[error(
        "{}: pickle files can run code when they are read, so they are not; with Python: \
         AutoModelForCausalLM.from_pretrained(\"{}\").save_pretrained(\"NEW_FOLDER\")",
        .0.display(), .0.parent().unwrap_or(Path::new(".")).display()
    )]
    Pickle(PathBuf),
    /// A tokenizer that cannot be carried over between a folder and a GGUF file.
    #[error("{}: its tokenizer: {why}", path.display())]
    Words { path: PathBuf, why: String },
    /// The files that are there instead.
    #[error("no byte-level tokenizer.json among {0:?}")]
    NoTokenizer(Vec<String>),
    #[error("the tensor {name} {why}")]
    Tensor { name: String, why: String },
    #[error(transparent)]
    Model(#[from] BadModel),
}

/// What `model_type` may be.
pub const SUPPORTED: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// A folder or a GGUF file whose configuration and headers were read and fit each other. Its weights are still on the disk.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    pub family: Family,
    pub config: ModelConfig,
    store: Store,
}

/// Where the weights lie.
#[derive(Debug)]
enum Store {
    Folder(Tensors),
    File(Gguf),
}

impl Checkpoint {
    /// # Errors
    /// Files that are missing, damaged or cut off; another family; tensors that are missing or of other shapes.
    pub fn open(path: &Path) -> Result<Self, HfError> {
        if path.is_file() {
            let (file, family, config) = Gguf::open(path)?;
            return Ok(Checkpoint { path: path.into(), family, config, store: Store::File(file) });
        }
        let file = path.join(CONFIG);
        let (family, config) = config::read(&json(&file, CONFIG_MAX)?, &file)?;
        let tensors = Tensors::open(path)?;
        let whole = StageModel::whole(config.clone())?;
        for param in whole.params() {
            tensors.check(&param.name, &param.shape)?;
        }
        Ok(Checkpoint { path: path.into(), family, config, store: Store::Folder(tensors) })
    }

    /// The flat buffer of a stage of this model: nothing else of the files is read.
    pub fn read(&self, model: &StageModel) -> Result<Vec<f32>, HfError> {
        let has_head = match &self.store {
            Store::Folder(tensors) => tensors.has(HEAD),
            Store::File(file) => file.has_head(),
        };
        // A tie over more than one stage is undone: the head begins as a copy of the embedding.
        let untied = self.config.tie_embeddings && !has_head;
        let name = |name: &str| if untied && name == HEAD { EMBEDDING.into() } else { name.into() };
        match &self.store {
            Store::Folder(tensors) => tensors.read_stage(model, name),
            Store::File(file) => {
                let mut weights = vec![0.0; model.values()];
                for param in model.params() {
                    let named = Param { name: name(&param.name), ..param.clone() };
                    weights[param.range()].copy_from_slice(&file.read(&named, &self.config, self.family)?);
                }
                Ok(weights)
            }
        }
    }

    /// The model in one stage, and its weights in canonical order.
    pub fn whole(&self) -> Result<(StageModel, Vec<f32>), HfError> {
        let model = StageModel::whole(self.config.clone())?;
        let weights = self.read(&model)?;
        Ok((model, weights))
    }

    /// The folder, or the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files about text beside the weights, by name, or what stands for them in a GGUF file.
    ///
    /// # Errors
    /// They cannot be read, or are too large; a file's tokenizer is of a kind that is not known here.
    pub fn texts(&self) -> Result<Texts, HfError> {
        match &self.store {
            Store::Folder(_) => texts(&self.path),
            Store::File(file) => file.texts(),
        }
    }

    /// The model in one stage with an adapter's products added to its matrices: it computes what both do together.
    ///
    /// # Errors
    /// The adapter of another model.
    pub fn merged(&self, adapter: &AdapterFolder) -> Result<(StageModel, Vec<f32>), HfError> {
        let (model, mut weights) = self.whole()?;
        let adapted = StageModel::adapted(model.clone(), adapter.lora.clone())?;
        lora::merge(&adapted, &adapter.read(&adapted)?, &mut weights);
        Ok((model, weights))
    }

    /// What the weights are, whatever files they lie in: of each parameter in canonical order its name, its shape, and its values as
    /// little-endian f32.
    pub fn digest(&self) -> Result<Digest, HfError> {
        let whole = StageModel::whole(self.config.clone())?;
        let mut digests = Vec::with_capacity(whole.params().len());
        for param in whole.params() {
            let values = match &self.store {
                Store::Folder(tensors) => tensors.read_one(&param.name, &param.shape)?,
                Store::File(file) => file.read(param, &self.config, self.family)?,
            };
            let shape: Vec<u8> = param.shape.iter().flat_map(|size| (*size as u64).to_le_bytes()).collect();
            let parts: [&[u8]; 3] = [param.name.as_bytes(), &shape, write::as_bytes(&values)];
            digests.push(hash::keyed("skein tensor 1", &parts));
        }
        Ok(hash::keyed("skein weights 1", &digests.iter().map(|digest| &digest.0[..]).collect::<Vec<_>>()))
    }

    /// Refuses a model whose tokens are not the bytes themselves.
    pub fn byte_level(&self) -> Result<(), HfError> {
        let path = self.path.join("tokenizer.json");
        let bytes = match &self.store {
            // The file of a large vocabulary is larger than that.
            Store::Folder(_) if fs::metadata(&path).is_ok_and(|facts| facts.len() <= CONFIG_MAX) => {
                fs::read(&path).ok()
            }
            Store::Folder(_) => None,
            Store::File(file) => file.texts().ok().and_then(|mut texts| texts.remove("tokenizer.json")),
        };
        let read: Option<Value> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        match read.is_some_and(|read| read["model"] == tokenizer::bytes()["model"]) {
            true => Ok(()),
            false => Err(HfError::NoTokenizer(names(&self.path))),
        }
    }
}

/// Names of the files in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A JSON file of at most `most` bytes.
fn json(path: &Path, most: u64) -> Result<Value, HfError> {
    let io = |source| HfError::Io { path: path.into(), source };
    let unreadable = |why: String| HfError::Unreadable { path: path.into(), why };
    let len = fs::metadata(path).map_err(io)?.len();
    if len > most {
        return Err(unreadable(format!("{len} bytes are too many; at most {most}")));
    }
    serde_json::from_slice(&fs::read(path).map_err(io)?).map_err(|error| unreadable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{init, tests::tiny};

    pub(super) fn stages(tie: bool, split: bool) -> Vec<(StageModel, Vec<f32>)> {
        let config = ModelConfig { tie_embeddings: tie, ..tiny() };
        let models = match split {
            true => vec![
                StageModel::new(config.clone(), 0, 1, true, false).unwrap(),
                StageModel::new(config.clone(), 1, config.layers - 1, false, true).unwrap(),
            ],
            false => vec![StageModel::whole(config).unwrap()],
        };
        models
            .into_iter()
            .map(|model| (init::initial(&model, 5), model))
            .map(|(weights, model)| (model, weights))
            .collect()
    }

    #[test]
    fn a_folder_reads_back_equal_whatever_the_split_and_tie() {
        for (tie, split) in [(false, false), (false, true), (true, false), (true, true)] {
            let dir = tempfile::tempdir().unwrap();
            let stages = stages(tie, split);
            let written = write(dir.path(), Family::Llama, &stages).unwrap();
            assert_eq!(written.files.len(), 5);
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            checkpoint.byte_level().unwrap();
            let (model, weights) = checkpoint.whole().unwrap();
            let all: Vec<f32> = stages.iter().flat_map(|(_, weights)| weights.clone()).collect();
            assert_eq!(weights, all, "tie {tie} split {split}");
            // A tie over more than one stage is undone.
            assert_eq!(model.tied(), tie && !split);
        }
    }

    #[test]
    fn a_stage_is_read_alone_and_a_tie_is_undone_on_the_way() {
        for tie in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), Family::Llama, &stages(tie, false)).unwrap();
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            for (model, weights) in stages(tie, true) {
                assert_eq!(checkpoint.read(&model).unwrap(), weights, "tie {tie}");
            }
        }
    }

    #[test]
    fn every_family_reads_back_as_it_was() {
        use skein_protocol::run::{RopeScaling, Window};
        let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 16 };
        let window = Some(Window { size: 5, from: 1 });
        for (family, config) in [
            (Family::Llama, ModelConfig { rope_scaling: Some(llama3), head: Some(6), ..tiny() }),
            (Family::Llama, ModelConfig { rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }), ..tiny() }),
            (Family::Mistral, ModelConfig { window: Some(Window { size: 5, from: 0 }), ..tiny() }),
            (Family::Mistral, tiny()),
            (Family::Qwen2, ModelConfig { qkv_bias: true, window, ..tiny() }),
            (Family::Qwen2, ModelConfig { qkv_bias: true, ..tiny() }),
            (Family::Qwen3, ModelConfig { qk_norm: true, head: Some(6), window, ..tiny() }),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let model = StageModel::whole(config.clone()).unwrap();
            let mut weights = init::initial(&model, 5);
            weights.iter_mut().enumerate().for_each(|(i, v)| *v += i as f32 * 1e-4);
            write(dir.path(), family, &[(model, weights.clone())]).unwrap();
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            assert_eq!((checkpoint.family, &checkpoint.config), (family, &config));
            assert_eq!(checkpoint.whole().unwrap().1, weights);
        }
    }

    #[test]
    fn another_family_and_damaged_files_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Checkpoint::open(dir.path());
        assert!(matches!(open(), Err(HfError::Io { .. })));
        write(dir.path(), Family::Llama, &stages(false, false)).unwrap();
        let path = dir.path().join(CONFIG);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"llama\"", "\"gpt2\"")).unwrap();
        assert!(matches!(open(), Err(HfError::Family(_))));
        fs::write(&path, text.replace("\"vocab_size\": 11", "\"vocab_size\": 12")).unwrap();
        assert!(matches!(open(), Err(HfError::Tensor { name, .. }) if name == EMBEDDING));
        fs::write(&path, text).unwrap();
        let tokenizer = dir.path().join("tokenizer.json");
        let text = fs::read_to_string(&tokenizer).unwrap();
        fs::write(&tokenizer, text.replace("\"A\": 65", "\"A\": 66")).unwrap();
        assert!(matches!(open().unwrap().byte_level(), Err(HfError::NoTokenizer(files)) if files.len() == 5));
        let path = dir.path().join(WEIGHTS);
        let bytes = fs::read(&path).unwrap();
        for (damage, said) in [
            (bytes[..bytes.len() - 1].to_vec(), "1 byte is missing"),
            ([&bytes[..], &[0; 9]].concat(), "9 bytes too long"),
            (bytes[..5].to_vec(), "too short"),
            ([&(1u64 << 60).to_le_bytes()[..], &bytes[8..]].concat(), "header"),
            ([&bytes[..8], b"[", &bytes[9..]].concat(), "header"),
        ] {
            fs::write(&path, damage).unwrap();
            let told = open().unwrap_err().to_string();
            assert!(told.contains(said), "{told}");
        }
        fs::remove_file(&path).unwrap();
        assert!(open().unwrap_err().to_string().contains("no model.safetensors"));
        fs::write(dir.path().join("pytorch_model.bin"), b"\x80").unwrap();
        assert!(matches!(open(), Err(HfError::Pickle(_))));
    }
}
