//! Writes a model as a folder for other programs: tensors with the names and shapes of `transformers`, in f32, and the byte
//! tokenizer.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use serde_json::{Value, json};
use skein_protocol::run::{Family, ModelConfig};

use super::{CONFIG, HfError, WEIGHTS, config, tokenizer};
use crate::{
    compute::{folder, gguf::Gguf},
    model::{HEAD, StageModel},
};

/// What may stand beside weights and configuration, and is none of ours.
pub const BESIDE: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];
const BESIDE_MAX: u64 = 256 << 20;

/// Small files about text, by name.
pub type Texts = BTreeMap<String, Vec<u8>>;

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
pub fn write(dir: &Path, family: Family, stages: &[(StageModel, Vec<f32>)]) -> Result<Written, HfError> {
    let texts = stages.first().map(|(first, _)| byte_texts(&first.config)).unwrap_or_default();
    write_with(dir, family, stages, &texts)
}

/// The files about text of a model whose tokens are bytes.
pub fn byte_texts(config: &ModelConfig) -> Texts {
    let json = |value: &Value| serde_json::to_vec_pretty(value).expect("plain data");
    let generation = json!({ "_from_model_config": true, "transformers_version": "4.46.0" });
    [
        ("generation_config.json", json(&generation)),
        ("tokenizer.json", json(&tokenizer::bytes())),
        ("tokenizer_config.json", json(&tokenizer::config(config))),
    ]
    .map(|(name, content)| (name.to_string(), content))
    .into()
}

/// The tokenizer, templates and defaults of generation that a folder has, or what stands for them in a GGUF file.
///
/// # Errors
/// One of them cannot be read, or is too large to be such a file.
pub fn texts(of: &Path) -> Result<Texts, HfError> {
    if of.is_file() {
        return Gguf::open(of)?.0.texts();
    }
    let mut texts = Texts::new();
    for name in BESIDE {
        let path = of.join(name);
        match fs::metadata(&path) {
            Ok(facts) if facts.len() > BESIDE_MAX => {
                let why = format!("{} bytes are too many for such a file", facts.len());
                return Err(HfError::Unreadable { path, why });
            }
            Ok(_) => {
                let content = fs::read(&path).map_err(|source| HfError::Io { path, source })?;
                texts.insert(name.into(), content);
            }
            Err(_) => {}
        }
    }
    Ok(texts)
}

/// Adds files about text to what was `written` into `dir`.
///
/// # Errors
/// Disk full, or not writable: no file is left half written.
pub fn write_texts(dir: &Path, texts: &Texts, written: &mut Written) -> Result<(), HfError> {
    for (name, content) in texts {
        let path = dir.join(name);
        folder::write(&path, content).map_err(|source| HfError::Io { path: path.clone(), source })?;
        written.bytes += content.len() as u64;
        written.files.push(path);
    }
    Ok(())
}

/// As [`write()`], with other files about text beside it.
///
/// # Errors
/// See [`write()`].
pub fn write_with(
    dir: &Path,
    family: Family,
    stages: &[(StageModel, Vec<f32>)],
    texts: &Texts,
) -> Result<Written, HfError> {
    let Some((first, _)) = stages.first() else {
        return Err(HfError::Tensor { name: HEAD.into(), why: "is missing: there are no stages".into() });
    };
    let weights = Weights::of(stages, str::to_string)?;
    let config = config::write(family, &first.config, weights.tied());
    let config = serde_json::to_vec_pretty(&config).expect("plain data");
    let parameters = stages.iter().map(|(model, _)| model.values() as u64).sum();
    let mut written = Written { files: Vec::new(), bytes: 0, parameters };
    write_texts(dir, &[(CONFIG.to_string(), config)].into(), &mut written)?;
    write_texts(dir, texts, &mut written)?;
    let path = dir.join(WEIGHTS);
    folder::write_with(&path, |out| weights.write(out)).map_err(|source| HfError::Io { path: path.clone(), source })?;
    written.bytes += weights.len();
    written.files.push(path);
    Ok(written)
}

/// `model.safetensors`, to be written piece by piece: the bytes are those of `safetensors::serialize`, which would hold the model
/// a second time.
pub struct Weights<'a> {
    header: Vec<u8>,
    /// By name, as they follow in the file.
    tensors: BTreeMap<String, &'a [u8]>,
}

impl<'a> Weights<'a> {
    /// `named`: what the file calls a parameter.
    pub fn of(stages: &'a [(StageModel, Vec<f32>)], named: impl Fn(&str) -> String) -> Result<Self, HfError> {
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
                tensors.insert(named(&param.name), data);
                shapes.insert(named(&param.name), param.shape.clone());
            }
        }
        let mut end = 0;
        let infos = shapes.into_iter().map(|(name, shape)| {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            (name, TensorInfo { dtype: Dtype::F32, shape, data_offsets: (start, end) })
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

    pub fn len(&self) -> u64 {
        let tensors: usize = self.tensors.values().map(|tensor| tensor.len()).sum();
        (8 + self.header.len() + tensors) as u64
    }

    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.header.len() as u64).to_le_bytes())?;
        out.write_all(&self.header)?;
        self.tensors.values().try_for_each(|tensor| out.write_all(tensor))
    }
}

/// f32 values as the little-endian bytes of the file.
pub fn as_bytes(values: &[f32]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "safetensors are little-endian") };
    // SAFETY: f32 has no padding, u8 no alignment; the length is that of the slice in bytes.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::{super::tests::stages, *};

    #[test]
    fn the_weights_are_written_as_the_library_writes_them() {
        for (tie, split) in [(false, true), (true, false)] {
            let dir = tempfile::tempdir().unwrap();
            let stages = stages(tie, split);
            write(dir.path(), Family::Llama, &stages).unwrap();
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
}
