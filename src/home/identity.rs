//! The key file: who this peer is. In: a path. Out: the key, made from the operating system's random device on first use.

use std::{fs, io, path::Path};

use data_encoding::HEXLOWER_PERMISSIVE;
use rand::{TryRng, rngs::SysRng};
use skein_protocol::key::Key;

use super::{
    HomeError,
    file::{self, Reader},
};

/// A secret key is 64 hexadecimal digits and a line end.
const LEN_MAX: u64 = 66;

#[derive(Clone)]
pub struct Identity {
    pub key: Key,
    /// Worth a word to the person: there was none before.
    pub made_now: bool,
}

impl Identity {
    pub(super) fn open(path: &Path) -> Result<Identity, HomeError> {
        if let Some(key) = read(path)? {
            return Ok(Identity { key, made_now: false });
        }
        let mut secret = [0u8; 32];
        SysRng
            .try_fill_bytes(&mut secret)
            .map_err(|error| HomeError::Denied { path: path.into(), source: io::Error::other(error.to_string()) })?;
        let made_now =
            file::create(path, format!("{}\n", data_encoding::HEXLOWER.encode(&secret)).as_bytes(), Reader::OwnerOnly)?;
        let key = read(path)?
            .ok_or_else(|| HomeError::Denied { path: path.into(), source: io::ErrorKind::NotFound.into() })?;
        Ok(Identity { key, made_now })
    }
}

fn read(path: &Path) -> Result<Option<Key>, HomeError> {
    let facts = match fs::metadata(path) {
        Ok(facts) => facts,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(HomeError::Denied { path: path.into(), source }),
    };
    let not = |reason| HomeError::NotAKey { path: path.into(), bytes: facts.len(), reason };
    if !facts.is_file() {
        return Err(not("not a file"));
    }
    private(path, &facts)?;
    if facts.len() > LEN_MAX {
        return Err(not("expected 64 hexadecimal digits"));
    }
    let text = fs::read(path).map_err(|source| HomeError::Denied { path: path.into(), source })?;
    let digits = text.trim_ascii_end();
    let bytes = HEXLOWER_PERMISSIVE.decode(digits).map_err(|_| not("expected 64 hexadecimal digits"))?;
    let secret: [u8; 32] = bytes.try_into().map_err(|_| not("expected 64 hexadecimal digits"))?;
    if secret == [0; 32] {
        return Err(not("all zero"));
    }
    Ok(Some(Key::from_secret(secret)))
}

fn private(path: &Path, facts: &fs::Metadata) -> Result<(), HomeError> {
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&facts.permissions()) & 0o7777;
        if mode & 0o077 != 0 {
            return Err(HomeError::KeyOpen { path: path.into(), mode });
        }
    }
    #[cfg(not(unix))]
    let _ = (path, facts);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(content: &[u8]) -> HomeError {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        file::write(&path, content, Reader::OwnerOnly).unwrap();
        match Identity::open(&path) {
            Ok(_) => panic!("accepted {content:?}"),
            Err(error) => error,
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_kept() {
        assert!(matches!(refusal(b""), HomeError::NotAKey { bytes: 0, .. }));
        assert!(matches!(refusal(&[b'z'; 64]), HomeError::NotAKey { bytes: 64, .. }));
        assert!(matches!(refusal(&[b'a'; 62]), HomeError::NotAKey { .. }));
        assert!(matches!(refusal(&[b'a'; 4096]), HomeError::NotAKey { bytes: 4096, .. }));
        assert!(matches!(refusal(&[b'0'; 64]), HomeError::NotAKey { reason: "all zero", .. }));
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        Identity::open(&path).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        match Identity::open(&path) {
            Err(HomeError::KeyOpen { mode: 0o640, .. }) => {}
            other => panic!("{:?}", other.map(|identity| identity.key.peer())),
        }
    }
}
