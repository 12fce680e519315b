//! Hugging Face folders: a model out, for other programs, and back in, to generate from. In: stages and their weights, or a
//! folder. Out: `config.json`, `generation_config.json`, `model.safetensors`, tokenizer files; or the whole model's weights.
//!
//! Tensors carry the names and shapes of `LlamaForCausalLM`, in f32. The byte tokenizer is written as a byte-level BPE without
//! merges, whose 256 ids are the bytes themselves.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use safetensors::{
    Dtype, SafeTensors,
    tensor::{Metadata, TensorInfo},
};
use serde::Deserialize;
use serde_json::{Value, json};
use skein_protocol::run::ModelConfig;

use super::folder;
use crate::model::{BadModel, HEAD, StageModel};

const WEIGHTS: &str = "model.safetensors";
/// Larger files are no configuration.
const CONFIG_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum HfError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {why}", path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error("{} is not supported, only LlamaForCausalLM", .0)]
    Family(String),
    /// The files that are there instead.
    #[error("no byte-level tokenizer.json among {0:?}")]
    NoTokenizer(Vec<String>),
    #[error("the tensor {name} {why}")]
    Tensor { name: String, why: String },
    #[error(transparent)]
    Model(#[from] BadModel),
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub files: Vec<PathBuf>,
    pub bytes: u64,
    pub parameters: u64,
}

/// Writes the stages of one model, in order, each with its flat buffer, into `dir`, which exists. No copy of the weights is made.
///
/// # Errors
/// Disk full, or not writable: no file is left half written.
pub fn write(dir: &Path, stages: &[(StageModel, Vec<f32>)]) -> Result<Written, HfError> {
    let Some((first, _)) = stages.first() else {
        return Err(HfError::Tensor { name: HEAD.into(), why: "is missing: there are no stages".into() });
    };
    let weights = Weights::of(stages)?;
    let json = |value: &Value| serde_json::to_vec_pretty(value).expect("plain data");
    let contents = [
        ("config.json", json(&config(&first.config, weights.tied()))),
        ("generation_config.json", json(&json!({ "_from_model_config": true, "transformers_version": "4.46.0" }))),
        ("tokenizer.json", json(&tokenizer())),
        ("tokenizer_config.json", json(&tokenizer_config(&first.config))),
    ];
    let parameters = stages.iter().map(|(model, _)| model.values() as u64).sum();
    let mut written = Written { files: Vec::new(), bytes: 0, parameters };
    let mut file = |name: &str, bytes: u64, done: &dyn Fn(&Path) -> io::Result<()>| {
        let path = dir.join(name);
        done(&path).map_err(|source| HfError::Io { path: path.clone(), source })?;
        written.bytes += bytes;
        written.files.push(path);
        Ok::<_, HfError>(())
    };
    for (name, content) in &contents {
        file(name, content.len() as u64, &|path| folder::write(path, content))?;
    }
    file(WEIGHTS, weights.len(), &|path| folder::write_with(path, |out| weights.write(out)))?;
    Ok(written)
}

/// `model.safetensors`, to be written piece by piece: the bytes are those of `safetensors::serialize`, which would hold the model
/// a second time.
struct Weights<'a> {
    header: Vec<u8>,
    /// By name, as they follow in the file.
    tensors: BTreeMap<&'a str, &'a [u8]>,
}

impl<'a> Weights<'a> {
    fn of(stages: &'a [(StageModel, Vec<f32>)]) -> Result<Self, HfError> {
        let (mut tensors, mut shapes) = (BTreeMap::new(), BTreeMap::new());
        for (model, weights) in stages {
            let bytes = as_bytes(weights);
            for param in model.params() {
                let range = 4 * param.range().start..4 * param.range().end;
                let wrong = |why: &str| HfError::Tensor { name: param.name.clone(), why: why.into() };
                let data = bytes.get(range).ok_or_else(|| wrong("lies outside the weights"))?;
                if 4 * param.shape.iter().product::<usize>() != data.len() {
                    return Err(wrong("has another shape than its weights"));
                }
                tensors.insert(param.name.as_str(), data);
                shapes.insert(param.name.as_str(), param.shape.clone());
            }
        }
        let mut end = 0;
        let infos = shapes.into_iter().map(|(name, shape)| {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            (name.to_string(), TensorInfo { dtype: Dtype::F32, shape, data_offsets: (start, end) })
        });
        let about = Some([("format".to_string(), "pt".to_string())].into_iter().collect());
        let unfit = |why: String| HfError::Tensor { name: WEIGHTS.into(), why };
        let facts = Metadata::new(about, infos.collect()).map_err(|error| unfit(error.to_string()))?;
        let mut header = serde_json::to_vec(&facts).map_err(|error| unfit(error.to_string()))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        Ok(Weights { header, tensors })
    }

    /// Whether the head is the embedding.
    fn tied(&self) -> bool {
        !self.tensors.contains_key(HEAD)
    }

    fn len(&self) -> u64 {
        let tensors: usize = self.tensors.values().map(|tensor| tensor.len()).sum();
        (8 + self.header.len() + tensors) as u64
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.header.len() as u64).to_le_bytes())?;
        out.write_all(&self.header)?;
        self.tensors.values().try_for_each(|tensor| out.write_all(tensor))
    }
}

/// The whole model of a folder, and its weights in canonical order.
///
/// # Errors
/// Files that are missing or damaged, another family, tensors of other shapes.
pub fn read(dir: &Path) -> Result<(StageModel, Vec<f32>), HfError> {
    let path = dir.join("config.json");
    let unreadable = |path: &Path, why: String| HfError::Unreadable { path: path.into(), why };
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| HfError::Io { path, source }
    };
    if fs::metadata(&path).map_err(io(&path))?.len() > CONFIG_MAX {
        return Err(unreadable(&path, "too large for a configuration".into()));
    }
    let text = fs::read(&path).map_err(io(&path))?;
    let read: Config = serde_json::from_slice(&text).map_err(|error| unreadable(&path, error.to_string()))?;
    let model = StageModel::whole(read.model()?)?;
    byte_level(dir)?;
    let path = dir.join(WEIGHTS);
    let bytes = fs::read(&path).map_err(io(&path))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| unreadable(&path, error.to_string()))?;
    let mut weights = vec![0.0; model.values()];
    for param in model.params() {
        let wrong = |why: String| HfError::Tensor { name: param.name.clone(), why };
        let tensor = tensors.tensor(&param.name).map_err(|error| wrong(error.to_string()))?;
        if tensor.shape() != param.shape {
            return Err(wrong(format!("has the shape {:?}, {:?} is expected", tensor.shape(), param.shape)));
        }
        let out = &mut weights[param.range()];
        match tensor.dtype() {
            Dtype::F32 => {
                let values = tensor.data().as_chunks::<4>().0.iter();
                out.iter_mut().zip(values).for_each(|(out, &b)| *out = f32::from_le_bytes(b));
            }
            Dtype::BF16 => {
                let values = tensor.data().as_chunks::<2>().0.iter();
                out.iter_mut().zip(values).for_each(|(out, &[low, high])| *out = f32::from_le_bytes([0, 0, low, high]));
            }
            other => return Err(wrong(format!("is {other:?}, F32 or BF16 is expected"))),
        }
    }
    Ok((model, weights))
}

/// Refuses a folder whose tokens are not the bytes themselves.
fn byte_level(dir: &Path) -> Result<(), HfError> {
    let path = dir.join("tokenizer.json");
    // The file of a large vocabulary is larger than that.
    let small = fs::metadata(&path).is_ok_and(|facts| facts.len() <= CONFIG_MAX);
    let read: Option<Value> = small.then(|| serde_json::from_slice(&fs::read(&path).ok()?).ok()).flatten();
    if read.is_some_and(|read| read["model"] == tokenizer()["model"]) {
        return Ok(());
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Err(HfError::NoTokenizer(names))
}

/// The parts of `config.json` that are read. Recent files keep `rope_theta` under `rope_parameters`.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: String,
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    intermediate_size: u32,
    vocab_size: u32,
    max_position_embeddings: u32,
    rope_theta: Option<f64>,
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Value>,
    head_dim: Option<u32>,
    #[serde(default)]
    tie_word_embeddings: bool,
    rms_norm_eps: f64,
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

impl Config {
    fn model(&self) -> Result<ModelConfig, HfError> {
        if self.model_type != "llama" {
            let name = self.architectures.first().unwrap_or(&self.model_type);
            return Err(HfError::Family(name.clone()));
        }
        let plain = |rope: &Rope| rope.rope_type.as_deref().is_none_or(|kind| kind == "default");
        if self.rope_scaling.as_ref().is_some_and(|value| !value.is_null())
            || !self.rope_parameters.as_ref().is_none_or(plain)
            || self.head_dim.is_some_and(|head| head.checked_mul(self.num_attention_heads) != Some(self.hidden_size))
        {
            return Err(HfError::Family("a Llama with scaled positions or heads of another size".into()));
        }
        let nested = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        Ok(ModelConfig {
            hidden: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            ffn: self.intermediate_size,
            vocab: self.vocab_size,
            context: self.max_position_embeddings,
            rope_theta: self.rope_theta.or(nested).unwrap_or(10_000.0),
            tie_embeddings: self.tie_word_embeddings,
            norm_eps: self.rms_norm_eps,
        })
    }
}

fn config(model: &ModelConfig, tied: bool) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.hidden / model.heads.max(1),
        "intermediate_size": model.ffn,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.context,
        "rope_theta": model.rope_theta,
        "rms_norm_eps": model.norm_eps,
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "use_cache": true,
    })
}

/// A byte-level BPE without merges. Its alphabet writes each byte as one printable character: those that are printable in
/// Latin-1 as themselves, the others from U+0100 on, in order.
fn tokenizer() -> Value {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..256u32 {
        let code = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        let character = char::from_u32(code).expect("below the surrogates");
        vocabulary.insert(character.to_string(), byte.into());
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": [],
        },
    })
}

fn tokenizer_config(model: &ModelConfig) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context,
        "clean_up_tokenization_spaces": false,
    })
}

/// f32 values as the little-endian bytes of the file.
fn as_bytes(values: &[f32]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "safetensors are little-endian") };
    // SAFETY: f32 has no padding, u8 no alignment; the length is that of the slice in bytes.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::model::{init, tests::tiny};

    fn stages(tie: bool, split: bool) -> Vec<(StageModel, Vec<f32>)> {
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
            let written = write(dir.path(), &stages).unwrap();
            assert_eq!(written.files.len(), 5);
            let (model, weights) = read(dir.path()).unwrap();
            let all: Vec<f32> = stages.iter().flat_map(|(_, weights)| weights.clone()).collect();
            assert_eq!(weights, all, "tie {tie} split {split}");
            // A tie over more than one stage is undone.
            assert_eq!(model.tied(), tie && !split);
        }
    }

    #[test]
    fn the_weights_are_written_as_the_library_writes_them() {
        for (tie, split) in [(false, true), (true, false)] {
            let dir = tempfile::tempdir().unwrap();
            let stages = stages(tie, split);
            write(dir.path(), &stages).unwrap();
            let params = stages.iter().flat_map(|(model, weights)| model.params().iter().map(move |p| (p, weights)));
            let tensors = params.map(|(param, weights)| {
                let range = 4 * param.range().start..4 * param.range().end;
                let view = TensorView::new(Dtype::F32, param.shape.clone(), &as_bytes(weights)[range]).unwrap();
                (param.name.clone(), view)
            });
            let about = Some([("format".to_string(), "pt".to_string())].into_iter().collect());
            let expected = safetensors::serialize(tensors.collect::<BTreeMap<_, _>>(), about).unwrap();
            assert_eq!(fs::read(dir.path().join(WEIGHTS)).unwrap(), expected, "tie {tie} split {split}");
        }
    }

    #[test]
    fn the_byte_tokenizer_has_one_character_a_byte() {
        let tokenizer = tokenizer();
        let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
        assert_eq!(vocabulary.len(), 256);
        assert_eq!((&vocabulary["A"], &vocabulary["Ġ"], &vocabulary["Ċ"]), (&json!(65), &json!(32), &json!(10)));
    }

    #[test]
    fn another_family_and_damaged_files_are_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path()), Err(HfError::Io { .. })));
        write(dir.path(), &stages(false, false)).unwrap();
        let path = dir.path().join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"llama\"", "\"gpt2\"")).unwrap();
        assert!(matches!(read(dir.path()), Err(HfError::Family(_))));
        fs::write(&path, text).unwrap();
        let path = dir.path().join("tokenizer.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"A\": 65", "\"A\": 66")).unwrap();
        assert!(matches!(read(dir.path()), Err(HfError::NoTokenizer(files)) if files.len() == 5));
        fs::write(&path, text).unwrap();
        let path = dir.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(read(dir.path()), Err(HfError::Unreadable { .. })));
    }
}
