//! The runs that this peer took part in: a folder each, with the signed manifest, checkpoints and what a restart needs.
//!
//! In: a label and the run's hash. Out: a [`RunFolder`]. The hash is the identity; two runs of one label get two folders.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use skein_protocol::{RunId, hash::Digest};

use super::{
    HomeError,
    file::{self, Reader},
};

/// Larger files are no manifest.
const FILE_MAX: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub struct Runs {
    dir: PathBuf,
}

impl Runs {
    pub(super) fn new(dir: PathBuf) -> Self {
        Runs { dir }
    }

    /// The folder of `run`, made if there is none. Its name is the label if that is free, else the label and part of the hash.
    pub fn enter(&self, label: &str, run: RunId) -> Result<RunFolder, HomeError> {
        if let Some(known) = self.list().into_iter().find(|folder| folder.run == run) {
            return Ok(known);
        }
        let label = if is_label(label) { label } else { "run" };
        let free = [label.to_string(), format!("{label}-{}", run.short(6)), format!("{label}-{}", run.to_hex())]
            .into_iter()
            .find(|name| !self.dir.join(name).exists())
            .expect("a folder whose name holds the whole hash would be known");
        let folder = RunFolder { name: free.clone(), path: self.dir.join(free), run };
        folder.write("id", format!("{run}\n").as_bytes())?;
        Ok(folder)
    }

    /// All known runs by name.
    pub fn list(&self) -> Vec<RunFolder> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let mut folders: Vec<RunFolder> = entries.filter_map(|entry| RunFolder::open(entry.ok()?.path())).collect();
        folders.sort_by(|a, b| a.name.cmp(&b.name));
        folders
    }

    pub fn named(&self, name: &str) -> Option<RunFolder> {
        if is_label(name) { RunFolder::open(self.dir.join(name)) } else { None }
    }

    /// The run that was worked on last: what `skein join` without an invite goes back to.
    pub fn last(&self) -> Option<RunFolder> {
        let text = fs::read_to_string(self.dir.join("last")).ok()?;
        self.named(text.trim())
    }

    pub fn set_last(&self, folder: &RunFolder) -> Result<(), HomeError> {
        file::write(&self.dir.join("last"), format!("{}\n", folder.name).as_bytes(), Reader::Anyone)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder {
    pub name: String,
    pub path: PathBuf,
    pub run: RunId,
}

impl RunFolder {
    fn open(path: PathBuf) -> Option<RunFolder> {
        let name = path.file_name()?.to_str()?.to_string();
        let id = fs::read_to_string(path.join("id")).ok()?;
        let run = Digest::from_hex(id.trim().strip_prefix("b3:")?)?;
        Some(RunFolder { name, path, run })
    }

    /// The manifest as it was signed.
    pub fn manifest(&self) -> Result<Option<Vec<u8>>, HomeError> {
        self.read("manifest")
    }

    pub fn save_manifest(&self, signed: &[u8]) -> Result<(), HomeError> {
        self.write("manifest", signed)
    }

    /// The invite that led here, if one did: its bootstrap peers and token serve again.
    pub fn invite(&self) -> Result<Option<String>, HomeError> {
        let bytes = self.read("invite")?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()).map(|text| text.trim().to_string()))
    }

    pub fn save_invite(&self, invite: &str) -> Result<(), HomeError> {
        file::write(&self.path.join("invite"), format!("{invite}\n").as_bytes(), Reader::OwnerOnly)
    }

    /// Where checkpoints of its stages lie.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Where snapshots of stages lie that this peer holds for others.
    pub fn held(&self) -> PathBuf {
        self.path.join("held")
    }

    /// One small file of this run; nothing if it is not there.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, HomeError> {
        let path = self.path.join(name);
        match read_small(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HomeError::Denied { path, source }),
        }
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), HomeError> {
        file::write(&self.path.join(name), bytes, Reader::Anyone)
    }
}

fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    fs::read(path)
}

/// `[a-z0-9-]{1,…}`: as a manifest allows, so that no name leads out of the folder.
fn is_label(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_found_by_its_hash_and_a_label_can_be_shared() {
        let dir = tempfile::tempdir().unwrap();
        let runs = Runs::new(dir.path().join("runs"));
        let one = runs.enter("tiny", Digest([1; 32])).unwrap();
        let two = runs.enter("tiny", Digest([2; 32])).unwrap();
        assert_eq!((one.name.as_str(), two.name.as_str()), ("tiny", "tiny-020202"));
        assert_eq!(runs.enter("tiny", Digest([1; 32])).unwrap(), one);
        assert_eq!(runs.list(), vec![one.clone(), two.clone()]);
        runs.set_last(&two).unwrap();
        assert_eq!(runs.last(), Some(two));
        one.save_manifest(b"signed").unwrap();
        assert_eq!(one.manifest().unwrap(), Some(b"signed".to_vec()));
        assert_eq!(one.invite().unwrap(), None);
        one.save_invite("skein1abc").unwrap();
        assert_eq!(one.invite().unwrap().as_deref(), Some("skein1abc"));
    }

    #[test]
    fn no_label_leads_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let runs = Runs::new(dir.path().join("runs"));
        let folder = runs.enter("../../evil", Digest([1; 32])).unwrap();
        assert_eq!(folder.name, "run");
        assert!(runs.named("../runs/run").is_none());
    }
}
