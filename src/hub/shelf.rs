//! The models of the Hub that are on this computer: a folder each, in `models` of the home. In: that folder. Out: what is there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Source;

/// In a model's folder: where it is from. Other programs pass over it.
const NOTE: &str = "skein-source.json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// `OWNER/NAME`, and the revision that was asked for.
    pub id: String,
    pub revision: String,
    /// What that revision was.
    pub commit: String,
    pub endpoint: String,
    /// When, in UTC: `2026-01-02T03:04:05Z`.
    pub began: String,
    pub bytes: u64,
    /// All files are here and were checked.
    pub complete: bool,
}

impl Note {
    pub(super) fn begin(source: &Source, commit: &str, endpoint: &str) -> Note {
        Note {
            id: source.id(),
            revision: source.revision.clone(),
            commit: commit.into(),
            endpoint: endpoint.into(),
            began: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            bytes: 0,
            complete: false,
        }
    }

    /// Nothing where the folder is none of ours.
    pub fn read(folder: &Path) -> Option<Note> {
        serde_json::from_slice(&fs::read(folder.join(NOTE)).ok()?).ok()
    }

    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        skein_pipeline::compute::folder::write(&folder.join(NOTE), &bytes)
    }

    /// As it is asked for.
    pub fn source(&self) -> Option<Source> {
        format!("{}@{}", self.id, self.revision).parse().ok()
    }
}

/// Every model, whole or not, by name.
pub fn list(models: &Path) -> Vec<(PathBuf, Note)> {
    let entries = fs::read_dir(models).into_iter().flatten().flatten();
    let mut list: Vec<(PathBuf, Note)> =
        entries.map(|entry| entry.path()).filter_map(|path| Some((path.clone(), Note::read(&path)?))).collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list
}

/// The folder of a model that is whole.
pub fn find(models: &Path, source: &Source) -> Option<PathBuf> {
    let folder = models.join(source.folder());
    Note::read(&folder).filter(|note| note.complete).map(|_| folder)
}

/// Bytes of the files in a model's folder.
pub fn bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|facts| facts.len()).sum()
}
