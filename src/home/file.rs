//! Files that are whole or not there: write beside, sync, rename, sync the folder. In: a path and bytes. Out: a durable file, or
//! whether the disk is full or forbidden.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::HomeError;

/// Unfinished files end with this; [`sweep`] finds them after a crash.
const UNFINISHED: &str = ".unfinished";

/// Who may read a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Anyone,
    OwnerOnly,
}

/// Replaces `path` by `bytes`, or leaves it as it was.
///
/// # Errors
/// [`HomeError::DiskFull`] or [`HomeError::Denied`]; the unfinished file is removed.
pub fn write(path: &Path, bytes: &[u8], reader: Reader) -> Result<(), HomeError> {
    write_with(path, bytes.len() as u64, reader, |file| file.write_all(bytes))
}

/// Makes a folder and sees that a file can be made in it: before the work whose result it shall be.
///
/// # Errors
/// As [`write()`].
pub fn probe(dir: &Path) -> Result<(), HomeError> {
    make_dir(dir)?;
    builder(Reader::Anyone).tempfile_in(dir).map(drop).map_err(|error| refused(dir, 0, error))
}

/// As [`write()`], for content that is produced piece by piece; `len` is what it will need, for the message if it does not fit.
pub fn write_with(
    path: &Path,
    len: u64,
    reader: Reader,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), HomeError> {
    let dir = parent(path);
    make_dir(dir)?;
    let mut temp = builder(reader).tempfile_in(dir).map_err(|error| refused(path, len, error))?;
    fill(temp.as_file_mut()).and_then(|()| temp.as_file().sync_all()).map_err(|error| refused(path, len, error))?;
    temp.persist(path).map_err(|error| refused(path, len, error.error))?;
    sync_dir(dir).map_err(|error| refused(path, len, error))
}

/// Creates `path` with `bytes` if it is not there. `false`: it was, and is untouched.
pub(super) fn create(path: &Path, bytes: &[u8], reader: Reader) -> Result<bool, HomeError> {
    let len = bytes.len() as u64;
    let dir = parent(path);
    make_dir(dir)?;
    let mut temp = builder(reader).tempfile_in(dir).map_err(|error| refused(path, len, error))?;
    temp.write_all(bytes).and_then(|()| temp.as_file().sync_all()).map_err(|error| refused(path, len, error))?;
    match temp.persist_noclobber(path) {
        Ok(_) => sync_dir(dir).map_err(|error| refused(path, len, error)).map(|()| true),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(refused(path, len, error.error)),
    }
}

/// Creates a folder and those above it; only the owner can look into the ones made here.
pub fn make_dir(dir: &Path) -> Result<(), HomeError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(|error| refused(dir, 0, error))
}

/// Whether a file is one that is being written, or was when its writer died.
pub fn is_unfinished(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(UNFINISHED.as_bytes())
}

/// Removes what a crash left half written directly in `dir`, and names what it would have become.
pub fn sweep(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_unfinished(path))
        .filter(|path| fs::remove_file(path).is_ok())
        .collect();
    found.sort();
    found
}

/// What an operating-system error on `path` means to a person who wanted to write `needed` bytes.
pub fn refused(path: &Path, needed: u64, error: io::Error) -> HomeError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            HomeError::DiskFull { path: path.into(), free: free(parent(path)).unwrap_or(0), needed }
        }
        _ => HomeError::Denied { path: path.into(), source: error },
    }
}

/// Bytes that this user can still write in the file system of `dir`; nothing where that cannot be known.
pub fn free(dir: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let facts = dir.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok())?;
        Some(facts.f_bavail.saturating_mul(facts.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = dir;
        None
    }
}

/// The user id that owns `path`, or the nearest folder above it that exists.
pub fn owner(path: &Path) -> Option<u32> {
    #[cfg(unix)]
    {
        let facts = path.ancestors().find_map(|path| fs::metadata(path).ok())?;
        Some(std::os::unix::fs::MetadataExt::uid(&facts))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// The folder of a file.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn builder(reader: Reader) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(UNFINISHED);
    #[cfg(unix)]
    {
        let mode = match reader {
            Reader::Anyone => 0o644,
            Reader::OwnerOnly => 0o600,
        };
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    }
    #[cfg(not(unix))]
    let _ = reader;
    builder
}

/// A rename is durable when its folder is. Windows has no such call and needs none.
fn sync_dir(dir: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(dir)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write(&path, b"old", Reader::Anyone).unwrap();
        let full = write_with(&path, 99, Reader::Anyone, |file| {
            file.write_all(b"ne")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(matches!(full, Err(HomeError::DiskFull { needed: 99, .. })), "{full:?}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_crash_left_is_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join(".abc123.unfinished");
        fs::write(&left, b"half").unwrap();
        fs::write(dir.path().join("whole"), b"whole").unwrap();
        assert_eq!(sweep(dir.path()), vec![left.clone()]);
        assert!(!left.exists());
        assert!(sweep(dir.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_private_file_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new").join("key");
        write(&path, b"secret", Reader::OwnerOnly).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_where_a_folder_should_be_is_a_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"").unwrap();
        assert!(matches!(write(&path.join("x"), b"", Reader::Anyone), Err(HomeError::Denied { .. })));
    }
}
