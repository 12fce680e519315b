//! Writes a model as one GGUF file. In: stages with their weights, the text files beside them, how matrices are kept. Out: a file that
//! llama.cpp reads. Values are converted row by row on their way: no copy of the weights is made.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};

use half::{bf16, f16};
use skein_protocol::run::Family;

use super::{
    Kept, Q8_BLOCK, Q8_BYTES,
    container::{Header, Place, Value, aligned},
    facts, kind,
    names::{self, ROPE_FACTORS},
    words,
};
use crate::{
    compute::{
        folder,
        hf::{HfError, Texts, Written},
    },
    model::{Param, StageModel},
};

/// Rows that are converted before they are written.
const BYTES: usize = 1 << 20;

/// Writes the stages of one model, in order, each with its flat buffer. `texts`: the files about text that stand beside the model, by
/// name; none, and the file has no tokenizer. `name`: what the model is called.
///
/// # Errors
/// A tokenizer that the format has no words for; adapters, which have to be merged before; disk full, or not writable: no file is left
/// half written.
pub fn write_gguf(
    path: &Path,
    name: &str,
    family: Family,
    stages: &[(StageModel, Vec<f32>)],
    texts: &Texts,
    kept: Kept,
) -> Result<Written, HfError> {
    let none = |why: &str| HfError::Unreadable { path: path.into(), why: why.into() };
    let Some((first, _)) = stages.first() else { return Err(none("there are no stages")) };
    let config = &first.config;
    let mut values = facts::write(family, config);
    values.push(("general.name".into(), Value::Text(name.into())));
    values.push(("general.file_type".into(), Value::Whole(file_type(kept))));
    if kept == Kept::Q8 {
        values.push(("general.quantization_version".into(), Value::Whole(2)));
    }
    values.extend(words::write(texts, config.vocab as usize).map_err(|why| HfError::Words { path: path.into(), why })?);
    let factors = facts::rope_factors(config);
    let tensors = tensors(family, stages, factors.as_deref(), kept)?;
    let mut places = Vec::with_capacity(tensors.len());
    let mut offset = 0;
    for tensor in &tensors {
        places.push((tensor.name.clone(), Place { kind: tensor.kind, shape: tensor.shape.clone(), offset }));
        offset = aligned(offset + tensor.bytes());
    }
    let header = Header::write(&values, &places);
    let written = folder::write_with(path, |out| {
        out.write_all(&header)?;
        tensors.iter().try_for_each(|tensor| tensor.write(out))
    });
    written.map_err(|source| HfError::Io { path: path.into(), source })?;
    let parameters = stages.iter().map(|(model, _)| model.values() as u64).sum();
    Ok(Written { files: vec![path.into()], bytes: header.len() as u64 + offset, parameters })
}

/// What most of a file is, as llama.cpp numbers it.
fn file_type(kept: Kept) -> i64 {
    match kept {
        Kept::F32 => 0,
        Kept::F16 => 1,
        Kept::Q8 => 7,
        Kept::Bf16 => 32,
    }
}

struct Tensor<'a> {
    name: String,
    kind: u32,
    shape: Vec<usize>,
    values: &'a [f32],
    /// Heads whose rows are in another order there.
    heads: Option<usize>,
}

fn tensors<'a>(
    family: Family,
    stages: &'a [(StageModel, Vec<f32>)],
    factors: Option<&'a [f32]>,
    kept: Kept,
) -> Result<Vec<Tensor<'a>>, HfError> {
    let (_, interleaved) = facts::architecture(family);
    let mut by_name = BTreeMap::new();
    let mut tensors = Vec::new();
    let params =
        stages.iter().flat_map(|(model, values)| model.params().iter().map(move |param| (model, values, param)));
    for (model, values, param) in params {
        let wrong = |why: &str| HfError::Tensor { name: param.name.clone(), why: why.into() };
        let name = names::theirs(&param.name).ok_or_else(|| wrong("has no name in GGUF"))?;
        let values = values.get(param.range()).ok_or_else(|| wrong("lies outside the weights"))?;
        if by_name.insert(name.clone(), ()).is_some() {
            return Err(wrong("is in two stages"));
        }
        let heads = names::turned(param, &model.config, interleaved);
        tensors.push(Tensor { name, kind: kind_of(param, kept), shape: param.shape.clone(), values, heads });
    }
    if let Some(values) = factors {
        let (name, shape) = (ROPE_FACTORS.to_string(), vec![values.len()]);
        tensors.push(Tensor { name, kind: kind::F32, shape, values, heads: None });
    }
    Ok(tensors)
}

fn kind_of(param: &Param, kept: Kept) -> u32 {
    let even = param.shape.last().is_some_and(|columns| columns.is_multiple_of(Q8_BLOCK));
    match kept {
        _ if !param.is_matrix() => kind::F32,
        Kept::F32 => kind::F32,
        Kept::Bf16 => kind::BF16,
        Kept::Q8 if even => kind::Q8_0,
        Kept::F16 | Kept::Q8 => kind::F16,
    }
}

impl Tensor<'_> {
    fn bytes(&self) -> u64 {
        let values = self.values.len() as u64;
        match self.kind {
            kind::F32 => 4 * values,
            kind::Q8_0 => values / Q8_BLOCK as u64 * Q8_BYTES as u64,
            _ => 2 * values,
        }
    }

    /// With what fills it up to where the next may begin.
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.shape.last().copied().unwrap_or(1).max(1);
        let rows = self.values.len() / columns;
        let mut bytes = Vec::with_capacity(BYTES + 4 * columns);
        for row in 0..rows {
            let row = self.heads.map_or(row, |heads| names::our_row(row, rows, heads));
            encode(self.kind, &self.values[row * columns..(row + 1) * columns], &mut bytes);
            if bytes.len() >= BYTES || row + 1 == rows {
                out.write_all(&bytes)?;
                bytes.clear();
            }
        }
        bytes.resize((aligned(self.bytes()) - self.bytes()) as usize + bytes.len(), 0);
        out.write_all(&bytes)
    }
}

fn encode(kind: u32, row: &[f32], out: &mut Vec<u8>) {
    match kind {
        kind::F16 => row.iter().for_each(|value| out.extend(f16::from_f32(*value).to_le_bytes())),
        kind::BF16 => row.iter().for_each(|value| out.extend(bf16::from_f32(*value).to_le_bytes())),
        kind::Q8_0 => row.chunks(Q8_BLOCK).for_each(|block| q8(block, out)),
        _ => row.iter().for_each(|value| out.extend(value.to_le_bytes())),
    }
}

/// The largest of a block is 127 steps; a step is kept in f16.
fn q8(block: &[f32], out: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let step = largest / 127.0;
    let per_value = if step == 0.0 { 0.0 } else { 1.0 / step };
    out.extend(f16::from_f32(step).to_le_bytes());
    out.extend(block.iter().map(|value| (value * per_value).round() as i8 as u8));
}
