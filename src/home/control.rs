//! Where the running peer of this home can be asked: address and token of its control server. In: what the server says when it
//! listens. Out: what `status` and its kin read. The file goes with the process; one that stayed behind leads to a closed door.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    HomeError,
    file::{self, Reader},
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    pub address: SocketAddr,
    /// Needed for whatever changes state.
    pub token: String,
    pub pid: u32,
}

impl Control {
    /// Nothing when the file is missing or is not ours.
    pub fn read(path: &Path) -> Option<Control> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// # Errors
    /// Disk full, or not writable.
    pub fn publish(&self, path: &Path) -> Result<Published, HomeError> {
        let bytes = serde_json::to_vec(self).expect("strings and numbers are JSON");
        file::write(path, &bytes, Reader::OwnerOnly)?;
        Ok(Published { path: path.into(), control: self.clone() })
    }
}

/// Removes the file when it is dropped, unless it is another's by then.
#[derive(Debug)]
pub struct Published {
    path: PathBuf,
    control: Control,
}

impl Drop for Published {
    fn drop(&mut self) {
        if Control::read(&self.path).as_ref() == Some(&self.control) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_goes_with_its_process_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let one = Control { address: "127.0.0.1:4750".parse().unwrap(), token: "a".into(), pid: 1 };
        let published = one.publish(&path).unwrap();
        assert_eq!(Control::read(&path), Some(one.clone()));
        let other = Control { pid: 2, ..one };
        let later = other.publish(&path).unwrap();
        drop(published);
        assert_eq!(Control::read(&path), Some(other));
        drop(later);
        assert_eq!(Control::read(&path), None);
    }
}
