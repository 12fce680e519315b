//! Saved states of stages in a run's folder: `checkpoints/stage-0/0000000003.state`, the highest number is the newest.
//!
//! In: the encoded state of a stage. Out: a durable file, and at the next start the newest whole one of each stage. A file is
//! written beside, synced and renamed, so it is there whole or not at all; one that the disk damaged later is found by its hash,
//! and the one before is used. It knows neither tensors nor peers.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use minicbor::{Decode, Encode};
use skein_pipeline::worker::{SaveError, Saves};
use skein_protocol::{Stage, Version, hash::Digest, wire::limits::STATE_MAX};

use crate::home::{
    HomeError, RunFolder,
    file::{self, Reader},
};

/// First bytes of every file.
const MAGIC: &[u8; 16] = b"skein state 1\n\0\0";
/// Bytes of the header's length, and the most that it may say.
const HEADER_MAX: u32 = 512;
/// Of the hash at the end, over everything before it.
const DOMAIN: &str = "skein saved state 1";
const HASH: usize = 32;

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(array)]
struct Header {
    #[n(0)]
    version: Version,
    #[n(1)]
    root: Digest,
    #[n(2)]
    len: u64,
}

/// A state as it was found. Its bytes are those of the file: they take memory only while nobody else needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub version: Version,
    pub root: Digest,
    pub state: Bytes,
}

/// What was not as it should be. Each is told to the person; none stops the start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Remark {
    /// SK408. `instead`: the own step of an older one that is used.
    #[error("checkpoint {} is damaged: {why}", path.display())]
    Damaged { path: PathBuf, why: String, instead: Option<u32> },
    /// SK409. The unfinished file was removed.
    #[error("a save was interrupted last time: {} was removed", path.display())]
    Interrupted { path: PathBuf },
}

#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    /// Files a stage that are kept, at least 1.
    keep: usize,
    unsaved: Unsaved,
}

/// Stages whose latest save did not work, and why. All clones are one list: the worker writes it, whoever talks to the person reads.
#[derive(Clone, Debug, Default)]
pub struct Unsaved(Arc<Mutex<BTreeMap<Stage, HomeError>>>);

impl Unsaved {
    fn list(&self) -> MutexGuard<'_, BTreeMap<Stage, HomeError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn each(&self, mut see: impl FnMut(Stage, &HomeError)) {
        self.list().iter().for_each(|(stage, why)| see(*stage, why));
    }

    /// Why the first of them was not saved; it is forgotten.
    pub fn take(&self) -> Option<HomeError> {
        self.list().pop_first().map(|(_, why)| why)
    }
}

impl Store {
    pub fn new(dir: PathBuf, keep: usize) -> Self {
        Store { dir, keep: keep.max(1), unsaved: Unsaved::default() }
    }

    /// Snapshots that this peer holds for others: the newest of each stage.
    pub fn held(folder: &RunFolder) -> Self {
        Store { dir: folder.held(), keep: 1, unsaved: Unsaved::default() }
    }

    pub fn unsaved(&self) -> Unsaved {
        self.unsaved.clone()
    }

    fn dir_of(&self, stage: Stage) -> PathBuf {
        self.dir.join(format!("stage-{stage}"))
    }

    /// The newest whole state of each stage, and what was wrong with others.
    pub fn newest(&self) -> (Vec<Found>, Vec<Remark>) {
        let (mut found, mut remarks) = (Vec::new(), Vec::new());
        let mut stages: Vec<Stage> = list(&self.dir).iter().filter_map(|path| stage_in(path)).collect();
        stages.sort_unstable();
        for stage in stages {
            let dir = self.dir_of(stage);
            remarks.extend(file::sweep(&dir).into_iter().map(|path| Remark::Interrupted { path }));
            let mut damaged = Vec::new();
            let whole = files(&dir).into_iter().rev().find_map(|(_, path)| match read(&path) {
                Ok(state) if state.version.stage == stage => Some(state),
                Ok(_) => {
                    damaged.push((path, "it is of another stage".to_string()));
                    None
                }
                Err(why) => {
                    damaged.push((path, why));
                    None
                }
            });
            let instead = whole.as_ref().map(|state| state.version.own_step);
            remarks.extend(damaged.into_iter().map(|(path, why)| Remark::Damaged { path, why, instead }));
            found.extend(whole);
        }
        (found, remarks)
    }

    /// Writes a state durably, in pieces, then removes the oldest ones of its stage. On a full disk others make room for it.
    ///
    /// # Errors
    /// The disk is full or may not be written; the newest whole one that was there stays.
    pub fn write(&self, version: Version, root: Digest, state: &[&[u8]]) -> Result<PathBuf, HomeError> {
        let dir = self.dir_of(version.stage);
        making_room(&files(&dir), |known| self.put(&dir, known, version, root, state))
    }

    /// Lays a snapshot of another peer on the disk, in the place of an older one of its stage: its state, as it lies there now.
    ///
    /// # Errors
    /// The disk is full, may not be written, or did not give back what was written.
    pub fn lay_down(&self, version: Version, root: Digest, parts: &[Bytes]) -> Result<Bytes, HomeError> {
        let pieces: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        let path = self.write(version, root, &pieces)?;
        let damaged = |why: String| HomeError::Denied { path: path.clone(), source: io::Error::other(why) };
        read(&path).map(|found| found.state).map_err(damaged)
    }

    fn put(
        &self,
        dir: &Path,
        known: &[(u64, PathBuf)],
        version: Version,
        root: Digest,
        state: &[&[u8]],
    ) -> Result<PathBuf, HomeError> {
        let number = known.last().map_or(1, |(number, _)| number + 1);
        let len = state.iter().map(|piece| piece.len() as u64).sum();
        let header = minicbor::to_vec(Header { version, root, len }).expect("writing to a Vec");
        let header_len = (header.len() as u32).to_le_bytes();
        let mut parts: Vec<&[u8]> = vec![MAGIC, &header_len, &header];
        parts.extend(state);
        let len = parts.iter().map(|part| part.len() as u64).sum::<u64>() + HASH as u64;
        let path = dir.join(format!("{number:010}.state"));
        file::write_with(&path, len, Reader::Anyone, |file| {
            parts.iter().try_for_each(|part| file.write_all(part))?;
            let hash = hash_of(&map(file)?, header.len());
            file.write_all(&hash.0)
        })?;
        remove(&known[..(known.len() + 1).saturating_sub(self.keep).min(known.len())]);
        Ok(path)
    }
}

/// Puts one more file beside the `known` ones; if the disk is full, again without all but the newest that is whole: one that the
/// disk damaged is worth nothing.
fn making_room<T>(
    known: &[(u64, PathBuf)],
    put: impl Fn(&[(u64, PathBuf)]) -> Result<T, HomeError>,
) -> Result<T, HomeError> {
    match put(known) {
        Err(HomeError::DiskFull { .. }) if known.len() > 1 => put(&keep_newest_whole(known.to_vec())),
        done => done,
    }
}

/// Removes all files but the newest that is whole, and says which is left: one that the disk damaged is worth nothing.
fn keep_newest_whole(mut known: Vec<(u64, PathBuf)>) -> Vec<(u64, PathBuf)> {
    let whole = known.iter().rposition(|(_, path)| read(path).is_ok());
    let kept = whole.map(|at| known.remove(at));
    remove(&known);
    kept.into_iter().collect()
}

fn remove(old: &[(u64, PathBuf)]) {
    for (_, path) in old {
        let _ = fs::remove_file(path);
    }
}

impl Saves for Store {
    fn save(&mut self, version: Version, root: Digest, state: &[u8]) -> Result<(), SaveError> {
        let error = match self.write(version, root, &[state]) {
            Ok(_) => {
                self.unsaved.list().remove(&version.stage);
                return Ok(());
            }
            Err(error) => error,
        };
        let disk_full = matches!(error, HomeError::DiskFull { .. });
        let why = error.to_string();
        self.unsaved.list().insert(version.stage, error);
        Err(SaveError { why, disk_full })
    }
}

fn list(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map_or_else(|_| Vec::new(), |entries| entries.filter_map(|e| Some(e.ok()?.path())).collect())
}

fn stage_in(path: &Path) -> Option<Stage> {
    path.file_name()?.to_str()?.strip_prefix("stage-")?.parse().ok()
}

/// Saved states in `dir` by number.
fn files(dir: &Path) -> Vec<(u64, PathBuf)> {
    let number = |path: &Path| path.file_name()?.to_str()?.strip_suffix(".state")?.parse().ok();
    let mut files: Vec<(u64, PathBuf)> =
        list(dir).into_iter().filter_map(|path| Some((number(&path)?, path))).collect();
    files.sort();
    files
}

fn read(path: &Path) -> Result<Found, String> {
    let short = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => "it is too short".to_string(),
        _ => error.to_string(),
    };
    let mut file = File::open(path).map_err(short)?;
    let mut fixed = [0; MAGIC.len() + 4];
    file.read_exact(&mut fixed).map_err(short)?;
    let (magic, header_len) = fixed.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err("it is no saved state".into());
    }
    let header_len = u32::from_le_bytes(header_len.try_into().expect("four bytes"));
    if header_len > HEADER_MAX {
        return Err("its header is too long".into());
    }
    let mut header_bytes = vec![0; header_len as usize];
    file.read_exact(&mut header_bytes).map_err(short)?;
    let header: Header = minicbor::decode(&header_bytes).map_err(|_| "its header cannot be read".to_string())?;
    let rest = file.metadata().map_err(short)?.len().saturating_sub((fixed.len() + header_bytes.len()) as u64);
    if header.len > STATE_MAX || rest != header.len + HASH as u64 {
        return Err(format!("its state has {} bytes, not {}", rest.saturating_sub(HASH as u64), header.len));
    }
    let whole = map(&file).map_err(short)?;
    let start = fixed.len() + header_bytes.len();
    let end = start + header.len as usize;
    if whole.len() != end + HASH {
        return Err("it changed while it was read".into());
    }
    if hash_of(&whole[..end], header_bytes.len()).0 != whole[end..] {
        return Err("its bytes are not what its hash says".into());
    }
    Ok(Found { version: header.version, root: header.root, state: whole.slice(start..end) })
}

/// Over a whole file but the hash itself; its header has `header` bytes.
fn hash_of(file: &[u8], header: usize) -> Digest {
    let (magic, rest) = file.split_at(MAGIC.len());
    let (len, rest) = rest.split_at(4);
    let (header, state) = rest.split_at(header);
    skein_protocol::hash::keyed(DOMAIN, &[magic, len, header, state])
}

/// The bytes of a file, read as they are looked at.
fn map(file: &File) -> io::Result<Bytes> {
    // SAFETY: nobody writes to a file of the store: it is renamed to its place whole, and removed as a whole, which leaves its
    // bytes to whoever maps them.
    let mapped = unsafe { memmap2::Mmap::map(file) }?;
    Ok(Bytes::from_owner(mapped))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &Path) -> Store {
        Store { dir: dir.into(), keep: 2, unsaved: Unsaved::default() }
    }

    fn version(stage: Stage, own_step: u32) -> Version {
        Version { stage, own_step, ..Version::default() }
    }

    fn save(store: &Store, stage: Stage, own_step: u32) {
        store
            .write(version(stage, own_step), Digest([9; 32]), &[&[own_step as u8; 300], &[own_step as u8; 700]])
            .unwrap();
    }

    fn steps(found: &[Found]) -> Vec<(Stage, u32)> {
        found.iter().map(|found| (found.version.stage, found.version.own_step)).collect()
    }

    #[test]
    fn the_newest_state_of_each_stage_comes_back_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        // A state that was copied from a younger replica may have fewer steps, and is the newest all the same.
        for step in [5, 9, 7] {
            save(&store, 0, step);
        }
        save(&store, 3, 1);
        let (found, remarks) = store.newest();
        assert_eq!(steps(&found), [(0, 7), (3, 1)]);
        assert_eq!(found[0].state, vec![7; 1000]);
        assert_eq!(found[0].root, Digest([9; 32]));
        assert_eq!(remarks, []);
        assert_eq!(files(&store.dir_of(0)).len(), 2);
    }

    #[test]
    fn any_damage_is_seen_and_the_one_before_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        save(&store, 0, 1);
        save(&store, 0, 2);
        let path = store.dir_of(0).join("0000000002.state");
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let (found, remarks) = store.newest();
            assert_eq!(steps(&found), [(0, 1)], "byte {at}");
            assert_eq!(remarks.len(), 1);
        }
        for len in [0, 3, 20, 40, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            let (found, remarks) = store.newest();
            assert_eq!(steps(&found), [(0, 1)], "{len} bytes");
            assert!(matches!(remarks[..], [Remark::Damaged { instead: Some(1), .. }]), "{remarks:?}");
        }
    }

    #[test]
    fn what_makes_room_on_a_full_disk_is_never_the_last_whole_state() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { keep: 9, ..store(dir.path()) };
        for step in 1..5 {
            save(&store, 0, step);
        }
        for number in [3, 4] {
            fs::write(store.dir_of(0).join(format!("000000000{number}.state")), b"damaged").unwrap();
        }
        let kept = keep_newest_whole(files(&store.dir_of(0)));
        assert_eq!(kept, files(&store.dir_of(0)));
        assert!(matches!(kept[..], [(2, _)]), "{kept:?}");
        assert_eq!(steps(&store.newest().0), [(0, 2)]);
    }

    #[test]
    fn a_snapshot_lies_on_the_disk_in_the_place_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { keep: 1, ..store(dir.path()) };
        let parts = [Bytes::from_static(b"first "), Bytes::from_static(b"part")];
        let first = store.lay_down(version(2, 1), Digest([1; 32]), &parts).unwrap();
        let second = store.lay_down(version(2, 2), Digest([2; 32]), &parts[1..]).unwrap();
        // Whoever is being given the former still gets all of it.
        assert_eq!((&first[..], &second[..]), (&b"first part"[..], &b"part"[..]));
        assert_eq!(steps(&store.newest().0), [(2, 2)]);
        assert_eq!(files(&store.dir_of(2)).len(), 1);
    }

    #[test]
    fn an_interrupted_save_is_removed_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        save(&store, 0, 1);
        let left = store.dir_of(0).join(".abc.unfinished");
        fs::write(&left, b"half").unwrap();
        let (found, remarks) = store.newest();
        assert_eq!(steps(&found), [(0, 1)]);
        assert_eq!(remarks, [Remark::Interrupted { path: left }]);
    }

    #[test]
    fn on_a_full_disk_older_states_make_room_and_the_newest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { keep: 3, ..store(dir.path()) };
        (1..=3).for_each(|step| save(&store, 0, step));
        let full = || HomeError::DiskFull { path: dir.path().into(), free: 0, needed: 9 };
        let left = || files(&store.dir_of(0)).len();
        // Room for two files.
        making_room(&files(&store.dir_of(0)), |_| if left() > 1 { Err(full()) } else { Ok(()) }).unwrap();
        assert_eq!(steps(&store.newest().0), [(0, 3)]);
        let error = making_room::<()>(&files(&store.dir_of(0)), |_| Err(full())).unwrap_err();
        assert!(matches!(error, HomeError::DiskFull { .. }));
        assert_eq!(steps(&store.newest().0), [(0, 3)], "nothing that was safe is lost");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("stage-0"), b"in the way").unwrap();
        let mut store = store(dir.path());
        let error = store.save(version(0, 1), Digest::default(), &[1]).unwrap_err();
        assert!(!error.disk_full && error.why.contains("stage-0"), "{error}");
        let unsaved = store.unsaved();
        let mut seen = Vec::new();
        unsaved.each(|stage, why| seen.push((stage, why.to_string())));
        assert_eq!(seen, [(0, error.why)]);
        // What was saved after all is no trouble any more.
        fs::remove_file(dir.path().join("stage-0")).unwrap();
        store.save(version(0, 2), Digest::default(), &[1]).unwrap();
        assert!(unsaved.take().is_none());
    }
}
