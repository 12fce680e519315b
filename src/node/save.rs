//! The model of a run as a folder for other programs. In: the weights of every stage. Out: a Hugging Face folder, whole or not
//! there.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use skein_pipeline::{
    compute::{
        gguf::{self, Kept},
        hf::{self, HfError, Texts},
    },
    model::{
        BadModel, StageModel,
        frozen::{BadFrozen, Frozen},
        lora,
    },
};
use skein_protocol::{hash::Digest, run::Family};

pub use hf::Written;

use crate::{
    home::{HomeError, Shelf, file},
    text::Files,
};

#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// SK314
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// SK126
    #[error("the disk is full: {free} bytes free, {needed} needed")]
    Full { free: u64, needed: u64 },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Hf(#[from] HfError),
    #[error(transparent)]
    Model(#[from] BadModel),
    #[error("the frozen weights: {0}")]
    Frozen(#[from] BadFrozen),
    #[error(transparent)]
    Home(#[from] HomeError),
}

/// Where the tokenizer of a model is from.
#[derive(Clone, Debug)]
pub enum Beside {
    Bytes,
    /// The files of this folder, or of this GGUF file, as they are.
    Like(PathBuf),
    Files(Arc<Files>),
}

/// What is written of the stages.
#[derive(Clone, Debug)]
pub enum What {
    /// Their weights are the model.
    Model,
    /// Their weights are adapters beside the model that is called so.
    Adapter { base: String },
    /// As before, and each is added to the frozen weights of its stage.
    Merged { frozen: OnShelf },
}

/// The frozen weights of each stage, in order.
#[derive(Clone, Debug)]
pub struct OnShelf {
    pub shelf: Shelf,
    pub blobs: Vec<Digest>,
}

/// How a model is written.
#[derive(Clone, Debug)]
pub struct Form {
    pub family: Family,
    pub what: What,
    pub beside: Beside,
    /// One file for llama.cpp, called so, instead of a folder's files. Adapters have to be merged.
    pub gguf: Option<String>,
}

impl Beside {
    /// For a model whose first stage is this.
    fn texts(&self, first: Option<&StageModel>) -> Result<Texts, HfError> {
        match self {
            Beside::Bytes => Ok(first.map(|first| hf::byte_texts(&first.config)).unwrap_or_default()),
            Beside::Like(folder) => hf::texts(folder),
            // Its configuration is written anew.
            Beside::Files(files) => {
                let files = files.iter().filter(|(name, _)| *name != "config.json");
                Ok(files.map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect())
            }
        }
    }
}

impl Form {
    fn write(&self, dir: &Path, stages: &[(StageModel, Vec<f32>)]) -> Result<Written, SaveError> {
        let texts = self.beside.texts(stages.first().map(|(first, _)| first))?;
        let merged = match &self.what {
            What::Model | What::Adapter { .. } => Vec::new(),
            What::Merged { frozen } => merged(stages, frozen)?,
        };
        let stages = if merged.is_empty() { stages } else { &merged };
        match (&self.what, &self.gguf) {
            (What::Model | What::Merged { .. }, Some(name)) => {
                let path = dir.join(format!("{name}.gguf"));
                Ok(gguf::write_gguf(&path, name, self.family, stages, &texts, Kept::default())?)
            }
            (What::Model | What::Merged { .. }, None) => Ok(hf::write_with(dir, self.family, stages, &texts)?),
            (What::Adapter { base }, _) => {
                let mut written = hf::write_adapter(dir, base, stages)?;
                hf::write_texts(dir, &texts, &mut written)?;
                Ok(written)
            }
        }
    }
}

/// Adapters added to what stands beside them.
fn merged(stages: &[(StageModel, Vec<f32>)], frozen: &OnShelf) -> Result<Vec<(StageModel, Vec<f32>)>, SaveError> {
    let stage = |((adapters, params), blob): (&(StageModel, Vec<f32>), &Digest)| {
        let model = adapters.frozen().ok_or(BadModel::Adapters { rank: 0, targets: Vec::new() })?;
        let base = adapters.lora().map(|lora| lora.base).unwrap_or_default();
        let bytes = frozen.shelf.get(*blob)?.ok_or(BadFrozen::Hash)?;
        let mut weights = Frozen::open(model, base, vec![bytes], *blob)?.flat();
        lora::merge(adapters, params, &mut weights);
        Ok((model.clone(), weights))
    };
    stages.iter().zip(&frozen.blobs).map(stage).collect()
}

/// Writes the folder `out`, from all stages in order. `overwrite`: files that are there may be replaced.
///
/// # Errors
/// See [`SaveError`]. After one, `out` is as it was, or some of its files are new where the disk failed between two renames.
pub fn write(
    out: &Path,
    form: &Form,
    stages: &[(StageModel, Vec<f32>)],
    overwrite: bool,
) -> Result<Written, SaveError> {
    let there = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if there && !overwrite {
        return Err(SaveError::NotEmpty(out.into()));
    }
    let needed = stages.iter().map(|(_, weights)| 4 * weights.len() as u64).sum();
    let io = |source| failed(out, needed, source);
    // Written apart, then renamed: nobody finds half a model. A folder that is there is filled from within: it may be a mount,
    // or stand where nothing else may be written.
    let filled = out.is_dir();
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = if filled { out } else { parent };
    fs::create_dir_all(place).map_err(io)?;
    let apart = tempfile::Builder::new().prefix(".skein-export-").tempdir_in(place).map_err(io)?;
    let mut written = form.write(apart.path(), stages).map_err(|error| match error {
        SaveError::Hf(HfError::Io { source, .. }) => failed(out, needed, source),
        other => other,
    })?;
    if filled {
        // Other files in the folder stay. All bytes are on the disk by now, so little can go wrong between two files; and
        // without its configuration, which is the last, a folder is no model.
        let is_last = |file: &&PathBuf| file.ends_with("config.json") || file.ends_with("adapter_config.json");
        let (last, first): (Vec<_>, Vec<_>) = written.files.iter().partition(is_last);
        for file in first.into_iter().chain(last) {
            let name = file.file_name().unwrap_or_default();
            fs::rename(file, out.join(name)).map_err(io)?;
        }
    } else {
        fs::rename(apart.path(), out).map_err(io)?;
        open_to_others(out);
        // It is no temporary folder any more.
        let _ = apart.keep();
    }
    for file in &mut written.files {
        if let Some(name) = file.file_name() {
            *file = out.join(name);
        }
    }
    Ok(written)
}

fn failed(out: &Path, needed: u64, source: io::Error) -> SaveError {
    match file::refused(out, needed, source) {
        HomeError::DiskFull { free, needed, .. } => SaveError::Full { free, needed },
        HomeError::Denied { path, source } => SaveError::Io { path, source },
        other => SaveError::Io { path: out.into(), source: io::Error::other(other.to_string()) },
    }
}

/// A temporary folder is its owner's alone; a model is as open as other folders.
fn open_to_others(dir: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o755));
    }
    #[cfg(not(unix))]
    let _ = dir;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form() -> Form {
        Form { family: Family::Llama, what: What::Model, beside: Beside::Bytes, gguf: None }
    }

    fn stages(value: f32) -> Vec<(StageModel, Vec<f32>)> {
        let manifest = super::super::sample_manifest(2);
        let of = |stage| {
            let model = StageModel::of(&manifest, stage).unwrap();
            let weights = vec![value; model.values()];
            (model, weights)
        };
        (0..2).map(of).collect()
    }

    #[test]
    fn the_folder_is_whole_and_replaced_only_when_that_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("deep").join("model");
        let written = write(&out, &form(), &stages(2.0), false).unwrap();
        assert!(written.files.iter().all(|file| file.is_file()));
        let (_, weights) = hf::Checkpoint::open(&out).unwrap().whole().unwrap();
        assert!(weights.iter().all(|value| *value == 2.0));
        assert!(matches!(write(&out, &form(), &stages(1.0), false), Err(SaveError::NotEmpty(_))));
        write(&out, &form(), &stages(1.0), true).unwrap();
        assert!(hf::Checkpoint::open(&out).unwrap().whole().unwrap().1.iter().all(|value| *value == 1.0));
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_is_there_is_filled_and_not_replaced() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("mount");
        fs::create_dir(&out).unwrap();
        let before = fs::metadata(&out).unwrap().ino();
        let written = write(&out, &form(), &stages(1.0), false).unwrap();
        assert_eq!(fs::metadata(&out).unwrap().ino(), before, "as a mount it could not have been replaced");
        assert_eq!(fs::read_dir(&out).unwrap().count(), written.files.len(), "nothing unfinished stays");
        assert!(hf::Checkpoint::open(&out).is_ok() && fs::read_dir(dir.path()).unwrap().count() == 1);
    }
}
