//! What manifests name by its hash: the frozen weights of stages, tokenizers. One file each, whose name is its hash; all runs of this
//! home share them. In: bytes. Out: files that are whole, mapped: they take memory only while nobody else needs it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use skein_protocol::hash::{self, Digest};

use super::{
    HomeError,
    file::{self, Reader},
};

#[derive(Clone, Debug)]
pub struct Shelf {
    dir: PathBuf,
}

impl Shelf {
    pub(super) fn new(dir: PathBuf) -> Self {
        Shelf { dir }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, blob: Digest) -> PathBuf {
        self.dir.join(blob.to_hex())
    }

    /// Lays down what lies in `pieces`, unless it is there; its hash is `blob`, as the caller knows.
    ///
    /// # Errors
    /// The disk is full, or may not be written: nothing is left half written.
    pub fn put(&self, blob: Digest, pieces: &[&[u8]]) -> Result<(), HomeError> {
        let path = self.path(blob);
        let len = pieces.iter().map(|piece| piece.len() as u64).sum();
        if path.exists() && self.get(blob).is_ok_and(|there| there.is_some()) {
            return Ok(());
        }
        file::write_with(&path, len, Reader::Anyone, |file| pieces.iter().try_for_each(|piece| file.write_all(piece)))
    }

    /// Whether something lies there by this name; its bytes are not looked at.
    pub fn has(&self, blob: Digest) -> bool {
        self.path(blob).exists()
    }

    /// What has this hash. Nothing: it is not there, or was damaged and is so no more.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn get(&self, blob: Digest) -> Result<Option<Bytes>, HomeError> {
        let path = self.path(blob);
        let denied = |source| HomeError::Denied { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(denied(source)),
        };
        // SAFETY: nobody writes to a file of the shelf: it is renamed to its place whole, and removed as a whole, which leaves its
        // bytes to whoever maps them.
        let mapped = Bytes::from_owner(unsafe { memmap2::Mmap::map(&file) }.map_err(denied)?);
        if hash::blob(&[&mapped]) == blob {
            return Ok(Some(mapped));
        }
        tracing::warn!(path = %path.display(), "it does not have the hash that is its name: it is fetched again");
        // Some systems remove nothing that somebody has mapped.
        drop((mapped, file));
        fs::remove_file(&path).map_err(denied)?;
        Ok(None)
    }

    /// Removes what is none of `wanted`, and what a crash left half written: how many files. What is younger than a day may be of a
    /// run that is being made, and stays.
    pub fn sweep(&self, wanted: &BTreeSet<Digest>) -> usize {
        self.sweep_older(wanted, DAY)
    }

    fn sweep_older(&self, wanted: &BTreeSet<Digest>, age: Duration) -> usize {
        let Ok(entries) = fs::read_dir(&self.dir) else { return 0 };
        let is_over = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_of_none = Digest::from_hex(name).is_some_and(|blob| !wanted.contains(&blob));
            let written = fs::metadata(path).and_then(|facts| facts.modified()).ok();
            let is_old = written.and_then(|at| at.elapsed().ok()).is_some_and(|since| since >= age);
            (is_of_none || file::is_unfinished(path)) && is_old
        };
        let over = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_over);
        over.filter(|path| fs::remove_file(path).is_ok()).count()
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_the_shelf_has_its_hash_or_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().join("shelf"));
        let blob = hash::blob(&[b"some ", b"weights"]);
        assert_eq!(shelf.get(blob).unwrap(), None);
        shelf.put(blob, &[b"some ", b"weights"]).unwrap();
        assert_eq!(shelf.get(blob).unwrap().as_deref(), Some(&b"some weights"[..]));
        fs::write(shelf.path(blob), b"some weighty").unwrap();
        assert_eq!(shelf.get(blob).unwrap(), None);
        assert!(!shelf.path(blob).exists());
        shelf.put(blob, &[b"some weights"]).unwrap();
        assert_eq!(shelf.get(blob).unwrap().as_deref(), Some(&b"some weights"[..]));
    }

    #[test]
    fn only_what_no_run_names_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().into());
        let (one, two) = (hash::blob(&[b"1"]), hash::blob(&[b"2"]));
        shelf.put(one, &[b"1"]).unwrap();
        shelf.put(two, &[b"2"]).unwrap();
        fs::write(dir.path().join("notes.txt"), b"of a person").unwrap();
        assert_eq!(shelf.sweep(&[two].into()), 0, "a run that is being made may name it");
        assert_eq!(shelf.sweep_older(&[two].into(), Duration::ZERO), 1);
        assert_eq!((shelf.get(one).unwrap(), shelf.get(two).unwrap().is_some()), (None, true));
        assert!(dir.path().join("notes.txt").exists());
    }
}
