//! The tensors of a GGUF file as parameters of ours. In: a file. Out: what its model is, and the weights of a stage, a tensor at a
//! time in f32. Types of llama.cpp in blocks are unpacked as candle does.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use candle_core::{
    Device,
    quantized::{GgmlDType, ggml_file::qtensor_from_ggml},
};
use half::{bf16, f16};
use skein_protocol::run::{Family, ModelConfig};

use super::{
    container::{Header, Place},
    facts, kind,
    names::{self, ROPE_FACTORS},
    words,
};
use crate::{
    compute::hf::{HfError, Texts},
    model::{HEAD, Param, StageModel},
};

/// Values that are read at a time: whole blocks of every type.
const VALUES: usize = 1 << 18;

/// A file whose header was read and fits its length.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    header: Header,
}

impl Gguf {
    /// # Errors
    /// No GGUF file, one that is cut off, another architecture, or tensors that no engine here computes.
    pub fn open(path: &Path) -> Result<(Self, Family, ModelConfig), HfError> {
        let io = |source| HfError::Io { path: path.into(), source };
        let unreadable = |why: String| HfError::Unreadable { path: path.into(), why };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let header = Header::read(BufReader::with_capacity(1 << 16, file), len).map_err(unreadable)?;
        for (name, place) in &header.tensors {
            let Some(bytes) = bytes(place) else { continue };
            let end = bytes.and_then(|bytes| header.start.checked_add(place.offset)?.checked_add(bytes));
            if end.is_none_or(|end| end > len) {
                let why = format!("the tensor {name} ends beyond its {len} bytes: was the copy or download cut off?");
                return Err(unreadable(why));
            }
        }
        let gguf = Gguf { path: path.into(), header };
        let (family, config) = gguf.model()?;
        let whole = StageModel::whole(config.clone())?;
        let mut known: Vec<String> = vec![ROPE_FACTORS.into()];
        for param in whole.params() {
            gguf.place(param)?;
            known.extend(names::theirs(&param.name));
        }
        known.sort();
        match gguf.header.tensors.keys().find(|name| known.binary_search(name).is_err()) {
            Some(name) => Err(HfError::Tensor {
                name: name.clone(),
                why: format!("is in {} and is not computed here", path.display()),
            }),
            None => Ok((gguf, family, config)),
        }
    }

    fn model(&self) -> Result<(Family, ModelConfig), HfError> {
        let unreadable = |why: String| HfError::Unreadable { path: self.path.clone(), why };
        let place = |name: &str| self.header.tensors.get(name);
        let embedding = place("token_embd.weight").and_then(|place| place.shape.first());
        let vocab = embedding.and_then(|rows| u32::try_from(*rows).ok());
        let factors = place(ROPE_FACTORS).map(|place| self.values(ROPE_FACTORS, place)).transpose()?;
        let beside = facts::Beside {
            vocab: vocab.ok_or_else(|| unreadable("it has no embedding: not the file of a language model".into()))?,
            has_head: place("output.weight").is_some(),
            factors: factors.as_deref(),
        };
        facts::read(&self.header.values, &beside).map_err(|error| match error {
            Ok(name) => HfError::Family(name),
            Err(why) => unreadable(why),
        })
    }

    /// The files about text that would stand beside the model in a folder; nothing where it has no tokenizer.
    ///
    /// # Errors
    /// A tokenizer that is none of those that are read here.
    pub fn texts(&self) -> Result<Texts, HfError> {
        words::read(&self.header.values).map_err(|why| HfError::Words { path: self.path.clone(), why })
    }

    pub fn has_head(&self) -> bool {
        self.header.tensors.contains_key(&names::theirs(HEAD).unwrap_or_default())
    }

    fn place(&self, param: &Param) -> Result<(String, &Place), HfError> {
        let wrong = |name: &str, why: String| Err(HfError::Tensor { name: name.into(), why });
        let Some(name) = names::theirs(&param.name) else { return wrong(&param.name, "has no name in GGUF".into()) };
        let Some(place) = self.header.tensors.get(&name) else { return wrong(&name, "is missing".into()) };
        if place.shape != param.shape {
            return wrong(&name, format!("has the shape {:?}, {:?} is expected", place.shape, param.shape));
        }
        if bytes(place).is_none() {
            return wrong(&name, format!("is of type {}; F32, F16, BF16, Q4 to Q8 and K types are read", place.kind));
        }
        Ok((name, place))
    }

    /// One parameter, its rows in our order. `interleaved`: see `facts::architecture`.
    pub fn read(&self, param: &Param, config: &ModelConfig, family: Family) -> Result<Vec<f32>, HfError> {
        let (name, place) = self.place(param)?;
        let values = self.values(&name, place)?;
        let (_, interleaved) = facts::architecture(family);
        let Some(heads) = names::turned(param, config, interleaved) else { return Ok(values) };
        let (rows, columns) = (param.shape[0], param.shape[1]);
        let mut ours = vec![0.0; values.len()];
        for (row, from) in values.chunks_exact(columns.max(1)).enumerate() {
            let to = names::our_row(row, rows, heads) * columns;
            ours[to..to + columns].copy_from_slice(from);
        }
        Ok(ours)
    }

    fn values(&self, name: &str, place: &Place) -> Result<Vec<f32>, HfError> {
        let io = |source| HfError::Io { path: self.path.clone(), source };
        let wrong = |why: String| HfError::Tensor { name: name.into(), why };
        let (block, width) = layout(place.kind).ok_or_else(|| wrong(format!("is of type {}", place.kind)))?;
        let count: usize = place.shape.iter().product();
        let mut file = File::open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(self.header.start + place.offset)).map_err(io)?;
        let mut values = Vec::with_capacity(count);
        let mut piece = vec![0; VALUES / block * width];
        while values.len() < count {
            let take = VALUES.min(count - values.len());
            let bytes = &mut piece[..take / block * width];
            file.read_exact(bytes).map_err(io)?;
            decode(place.kind, bytes, take, &mut values)
                .map_err(|error| wrong(format!("cannot be unpacked: {error}")))?;
        }
        Ok(values)
    }
}

/// Bytes of a tensor; inside nothing where they are no whole blocks, nothing where the type is not read.
fn bytes(place: &Place) -> Option<Option<u64>> {
    let (block, width) = layout(place.kind)?;
    let values = place.shape.iter().product::<usize>();
    let row = place.shape.last().copied().unwrap_or(1);
    Some(row.is_multiple_of(block).then(|| values as u64 / block as u64 * width as u64))
}

/// Values of a block, and its bytes.
fn layout(kind: u32) -> Option<(usize, usize)> {
    match kind {
        kind::F32 => Some((1, 4)),
        kind::F16 | kind::BF16 => Some((1, 2)),
        kind => packed(kind).map(|packed| (packed.block_size(), packed.type_size())),
    }
}

/// Types in blocks.
fn packed(kind: u32) -> Option<GgmlDType> {
    Some(match kind {
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        kind::Q8_0 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        _ => return None,
    })
}

fn decode(kind: u32, bytes: &[u8], count: usize, to: &mut Vec<f32>) -> candle_core::Result<()> {
    match kind {
        kind::F32 => to.extend(bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value))),
        kind::F16 => to.extend(bytes.as_chunks().0.iter().map(|value| f16::from_le_bytes(*value).to_f32())),
        kind::BF16 => to.extend(bytes.as_chunks().0.iter().map(|value| bf16::from_le_bytes(*value).to_f32())),
        kind => {
            let Some(packed) = packed(kind) else { candle_core::bail!("type {kind}") };
            let tensor = qtensor_from_ggml(packed, bytes, vec![count], &Device::Cpu)?;
            to.extend(tensor.dequantize(&Device::Cpu)?.to_vec1::<f32>()?);
        }
    }
    Ok(())
}
