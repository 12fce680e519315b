//! The model of a run as a folder for other programs. In: what the replicas of every stage hold. Out: a Hugging Face folder,
//! whole or not there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use skein_pipeline::{
    compute::hf::{self, HfError},
    model::{BadModel, StageModel, state::StageState},
};
use skein_protocol::{Manifest, Stage};

pub use hf::Written;

use super::export::{Collected, Weights};
use crate::home::{HomeError, file};

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
    #[error("the weights of stage {stage} are damaged: {why}")]
    Damaged { stage: Stage, why: String },
    #[error(transparent)]
    Hf(#[from] HfError),
    #[error(transparent)]
    Model(#[from] BadModel),
}

/// Writes the folder `out`. Where a stage has several replicas their mean is taken: what each learned since their last round
/// counts. `overwrite`: files that are there may be replaced.
///
/// # Errors
/// See [`SaveError`]. After one, `out` is as it was, or some of its files are new where the disk failed between two renames.
pub fn write(out: &Path, manifest: &Manifest, collected: &Collected, overwrite: bool) -> Result<Written, SaveError> {
    let there = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if there && !overwrite {
        return Err(SaveError::NotEmpty(out.into()));
    }
    let stages = stages(manifest, collected)?;
    let needed = stages.iter().map(|(_, weights)| 4 * weights.len() as u64).sum();
    let io = |source| failed(out, needed, source);
    // Written apart, then renamed: nobody finds half a model. A folder that is there is filled from within: it may be a mount,
    // or stand where nothing else may be written.
    let filled = out.is_dir();
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = if filled { out } else { parent };
    fs::create_dir_all(place).map_err(io)?;
    let apart = tempfile::Builder::new().prefix(".skein-export-").tempdir_in(place).map_err(io)?;
    let mut written = hf::write(apart.path(), &stages).map_err(|error| match error {
        HfError::Io { source, .. } => failed(out, needed, source),
        other => other.into(),
    })?;
    if filled {
        // Other files in the folder stay. All bytes are on the disk by now, so little can go wrong between two files; and
        // without config.json, which is the last, a folder is no model.
        let (last, first): (Vec<_>, Vec<_>) = written.files.iter().partition(|file| file.ends_with("config.json"));
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

/// The model and the weights of every stage.
///
/// # Errors
/// Weights that are not what their root or the manifest says.
pub fn stages(manifest: &Manifest, collected: &Collected) -> Result<Vec<(StageModel, Vec<f32>)>, SaveError> {
    let mut all = Vec::with_capacity(collected.len());
    for (stage, replicas) in collected.iter().enumerate() {
        let stage = stage as Stage;
        let model = StageModel::of(manifest, stage)?;
        let mut mean = vec![0.0f32; model.values()];
        for replica in replicas {
            let params = params_of(replica, &model).map_err(|why| SaveError::Damaged { stage, why })?;
            mean.iter_mut().zip(params).for_each(|(mean, value)| *mean += value / replicas.len() as f32);
        }
        all.push((model, mean));
    }
    Ok(all)
}

fn params_of(weights: &Weights, model: &StageModel) -> Result<Vec<f32>, String> {
    let bytes: Vec<u8> = weights.parts.iter().flat_map(|part| part.iter().copied()).collect();
    if StageState::claimed_root(&bytes) != Some(weights.root) {
        return Err("they are others than were announced".into());
    }
    let state = StageState::decode(&bytes).map_err(|error| error.to_string())?;
    state.check(model.values()).map_err(|error| error.to_string())?;
    match state.train.params.is_empty() {
        true => Err("they hold no parameters".into()),
        false => Ok(state.train.params),
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
    use bytes::Bytes;
    use skein_protocol::Version;

    fn collected(manifest: &Manifest, values: &[f32]) -> Collected {
        let of = |stage: Stage, value: f32| {
            let model = StageModel::of(manifest, stage).unwrap();
            let train = skein_pipeline::exact::TrainState { params: vec![value; model.values()], ..Default::default() };
            let version = Version { stage, ..Version::default() };
            let (bytes, root) = StageState { version, train, ..StageState::default() }.encode();
            let (a, b) = bytes.split_at(bytes.len() / 2);
            Weights { parts: vec![Bytes::copy_from_slice(a), Bytes::copy_from_slice(b)], root }
        };
        (0..manifest.stages.count).map(|stage| values.iter().map(|value| of(stage, *value)).collect()).collect()
    }

    #[test]
    fn replicas_are_averaged_and_the_folder_is_whole() {
        let manifest = super::super::sample_manifest(2);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("deep").join("model");
        let written = write(&out, &manifest, &collected(&manifest, &[1.0, 3.0]), false).unwrap();
        assert!(written.files.iter().all(|file| file.is_file()));
        let (_, weights) = hf::read(&out).unwrap();
        assert!(weights.iter().all(|value| *value == 2.0));
        assert!(matches!(write(&out, &manifest, &collected(&manifest, &[1.0]), false), Err(SaveError::NotEmpty(_))));
        write(&out, &manifest, &collected(&manifest, &[1.0]), true).unwrap();
        assert!(hf::read(&out).unwrap().1.iter().all(|value| *value == 1.0));
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_is_there_is_filled_and_not_replaced() {
        use std::os::unix::fs::MetadataExt;
        let manifest = super::super::sample_manifest(1);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("mount");
        fs::create_dir(&out).unwrap();
        let before = fs::metadata(&out).unwrap().ino();
        let written = write(&out, &manifest, &collected(&manifest, &[1.0]), false).unwrap();
        assert_eq!(fs::metadata(&out).unwrap().ino(), before, "as a mount it could not have been replaced");
        assert_eq!(fs::read_dir(&out).unwrap().count(), written.files.len(), "nothing unfinished stays");
        assert!(hf::read(&out).is_ok() && fs::read_dir(dir.path()).unwrap().count() == 1);
    }

    #[test]
    fn damaged_weights_are_not_written() {
        let manifest = super::super::sample_manifest(1);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("model");
        let mut collected = collected(&manifest, &[1.0]);
        collected[0][0].parts.pop();
        assert!(matches!(write(&out, &manifest, &collected, false), Err(SaveError::Damaged { stage: 0, .. })));
        assert!(!out.exists());
    }
}
