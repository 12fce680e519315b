//! The tensors of a folder: one `model.safetensors`, or shards with an index. Headers are read and checked at once, a tensor's
//! bytes only when it is asked for, in pieces, so that nothing is in memory twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use half::f16;
use safetensors::{Dtype, tensor::Metadata};

use super::{HfError, INDEX, WEIGHTS, json, names};
use crate::model::StageModel;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;
/// A longer header is none: that of a model with 100,000 tensors has 15 MB.
const HEADER_MAX: u64 = 64 << 20;
const SHARDS_MAX: usize = 4096;

#[derive(Debug)]
pub struct Tensors {
    files: Vec<PathBuf>,
    by_name: BTreeMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    /// Index into the files.
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Of its first byte in the file.
    start: u64,
}

impl Tensors {
    pub fn open(dir: &Path) -> Result<Self, HfError> {
        let mut tensors = Tensors { files: Vec::new(), by_name: BTreeMap::new() };
        for name in shards(dir)? {
            tensors.add(dir.join(name))?;
        }
        Ok(tensors)
    }

    /// Those of one file.
    pub fn of_file(path: PathBuf) -> Result<Self, HfError> {
        let mut tensors = Tensors { files: Vec::new(), by_name: BTreeMap::new() };
        tensors.add(path)?;
        Ok(tensors)
    }

    /// Reads the header of one more file.
    fn add(&mut self, path: PathBuf) -> Result<(), HfError> {
        let io = |source| HfError::Io { path: path.clone(), source };
        let unreadable = |why: String| HfError::Unreadable { path: path.clone(), why };
        let mut file = File::open(&path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let mut header = vec![0; 8];
        if len < 8 {
            return Err(unreadable(format!("{len} bytes are too short for a safetensors file")));
        }
        file.read_exact(&mut header).map_err(io)?;
        let announced = u64::from_le_bytes(header[..8].try_into().expect("8 bytes"));
        if announced > HEADER_MAX || announced > len - 8 {
            let why = format!("it announces a header of {announced} bytes, of {len} in the file: no safetensors file");
            return Err(unreadable(why));
        }
        header.resize(8 + announced as usize, 0);
        file.read_exact(&mut header[8..]).map_err(io)?;
        // It is refused where its tensors do not lie one behind the other.
        let facts: Metadata =
            serde_json::from_slice(&header[8..]).map_err(|error| unreadable(format!("header: {error}")))?;
        let data = 8 + announced;
        let end = facts.tensors().values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
        let (wanted, bytes) = (data + end, |n: u64| if n == 1 { "1 byte".into() } else { format!("{n} bytes") });
        if len < wanted {
            let are = if wanted - len == 1 { "is" } else { "are" };
            let why = format!("{} {are} missing at its end: was the copy or download cut off?", bytes(wanted - len));
            return Err(unreadable(why));
        }
        if len > wanted {
            return Err(unreadable(format!("it is {} too long for its header", bytes(len - wanted))));
        }
        let number = self.files.len();
        for (name, info) in facts.tensors() {
            let place = Place {
                file: number,
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: data + info.data_offsets.0 as u64,
            };
            if let Some(other) = self.by_name.insert(name.clone(), place) {
                let other = self.files.get(other.file).map_or_else(String::new, |file| file.display().to_string());
                return Err(HfError::Tensor { name, why: format!("is in {} and in {other}", path.display()) });
            }
        }
        self.files.push(path);
        Ok(())
    }

    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Refuses a tensor that is missing, of another shape, or of a type that is not read.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), HfError> {
        let wrong = |why: String| Err(HfError::Tensor { name: name.into(), why });
        let Some(place) = self.by_name.get(name) else { return wrong("is missing".into()) };
        if place.shape != shape {
            return wrong(format!("has the shape {:?}, {shape:?} is expected", place.shape));
        }
        match width(place.dtype) {
            Some(_) => Ok(()),
            None => wrong(format!("is {:?}; F32, BF16 and F16 are read", place.dtype)),
        }
    }

    /// The flat buffer of a stage: each of its parameters from the tensor that `named` says.
    pub fn read_stage(&self, model: &StageModel, named: impl Fn(&str) -> String) -> Result<Vec<f32>, HfError> {
        let mut weights = vec![0.0; model.values()];
        let mut left = &mut weights[..];
        let mut wanted = Vec::with_capacity(model.params().len());
        for param in model.params() {
            let (to, rest) = std::mem::take(&mut left).split_at_mut(param.values());
            left = rest;
            let name = named(&param.name);
            self.check(&name, &param.shape)?;
            wanted.extend(self.by_name.get(&name).map(|place| (place, to)));
        }
        self.fill(wanted)?;
        Ok(weights)
    }

    /// One tensor.
    pub fn read_one(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, HfError> {
        self.check(name, shape)?;
        let mut values = vec![0.0; shape.iter().product()];
        self.fill(self.by_name.get(name).map(|place| (place, &mut values[..])).into_iter().collect())?;
        Ok(values)
    }

    /// Fills every slice with its tensor. Files are read from front to back.
    fn fill(&self, mut wanted: Vec<(&Place, &mut [f32])>) -> Result<(), HfError> {
        wanted.sort_by_key(|(place, _)| (place.file, place.start));
        let (mut open, mut piece): (Option<(usize, File)>, _) = (None, vec![0; PIECE]);
        for (place, to) in wanted {
            let path = &self.files[place.file];
            let io = |source| HfError::Io { path: path.clone(), source };
            let mut file = match open.take().filter(|(number, _)| *number == place.file) {
                Some((_, file)) => file,
                None => File::open(path).map_err(io)?,
            };
            file.seek(SeekFrom::Start(place.start)).map_err(io)?;
            let Some(width) = width(place.dtype) else { continue };
            for to in to.chunks_mut(PIECE / width) {
                let bytes = &mut piece[..to.len() * width];
                file.read_exact(bytes).map_err(io)?;
                decode(place.dtype, bytes, to);
            }
            open = Some((place.file, file));
        }
        Ok(())
    }
}

/// Names of the files that hold the weights.
fn shards(dir: &Path) -> Result<BTreeSet<String>, HfError> {
    if dir.join(WEIGHTS).exists() {
        return Ok([WEIGHTS.to_string()].into());
    }
    let path = dir.join(INDEX);
    if !path.exists() {
        let names = names(dir);
        let pickle = |name: &&String| {
            [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end)) && !name.contains("training_args")
        };
        return Err(match names.iter().find(pickle) {
            Some(name) => HfError::Pickle(dir.join(name)),
            None => {
                let there = if names.is_empty() { "nothing".into() } else { names.join(", ") };
                let why = format!("there is no {WEIGHTS} and no {INDEX}, but {there}");
                HfError::Unreadable { path: dir.into(), why }
            }
        });
    }
    // An index may be as long as the headers that it speaks of.
    let index = json(&path, HEADER_MAX)?;
    let unreadable = |why: &str| HfError::Unreadable { path: path.clone(), why: why.into() };
    let map = index["weight_map"].as_object().ok_or_else(|| unreadable("it has no weight_map"))?;
    let mut shards = BTreeSet::new();
    for file in map.values() {
        let name = file.as_str().filter(|name| !name.is_empty() && !name.contains(['/', '\\']) && *name != "..");
        shards.insert(name.ok_or_else(|| unreadable("a shard is not named as a file of this folder"))?.to_string());
    }
    if shards.is_empty() || shards.len() > SHARDS_MAX {
        return Err(unreadable("it names no shards, or thousands"));
    }
    Ok(shards)
}

/// Bytes of a value, where its type is read.
fn width(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::BF16 | Dtype::F16 => Some(2),
        _ => None,
    }
}

fn decode(dtype: Dtype, bytes: &[u8], to: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            let values = bytes.as_chunks::<4>().0.iter();
            to.iter_mut().zip(values).for_each(|(to, &b)| *to = f32::from_le_bytes(b));
        }
        Dtype::BF16 => {
            let values = bytes.as_chunks::<2>().0.iter();
            to.iter_mut().zip(values).for_each(|(to, &[low, high])| *to = f32::from_le_bytes([0, 0, low, high]));
        }
        _ => {
            let values = bytes.as_chunks::<2>().0.iter();
            to.iter_mut().zip(values).for_each(|(to, &b)| *to = f16::from_le_bytes(b).to_f32());
        }
    }
}
