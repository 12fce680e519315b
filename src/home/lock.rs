//! One process a home. In: a path. Out: a guard, or who holds it. The operating system drops the lock with the process, so a
//! crash leaves nothing to clean up.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use super::{
    HomeError,
    file::{self, Reader, refused},
};

#[derive(Debug)]
pub struct Lock {
    /// Held open: closing it unlocks.
    _file: File,
    pid: PathBuf,
}

impl Lock {
    pub(super) fn take(path: &Path) -> Result<Lock, HomeError> {
        if let Some(dir) = path.parent() {
            file::make_dir(dir)?;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(|error| refused(path, 0, error))?;
        // Windows forbids others to read a locked file, so the holder's number lies beside it.
        let pid = path.with_extension("pid");
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = fs::read_to_string(&pid).ok().and_then(|text| text.trim().parse().ok());
                return Err(HomeError::InUse { path: path.into(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(refused(path, 0, error)),
        }
        file::write(&pid, format!("{}\n", std::process::id()).as_bytes(), Reader::Anyone)?;
        Ok(Lock { _file: file, pid })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A number that stays behind misleads nobody while the lock itself is free.
        let _ = fs::remove_file(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_to_ask_learns_who_was_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path).unwrap();
        match Lock::take(&path) {
            Err(HomeError::InUse { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        Lock::take(&path).unwrap();
    }
}
