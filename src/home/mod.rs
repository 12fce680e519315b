//! Where a peer keeps itself: identity, counter of starts, address book, runs, the address of its control server.
//!
//! In: `--home`, or the platform's folders. Out: [`Home`], whose every write is whole or not there. One process at a time holds
//! a home ([`Home::lock`]). Knows no network and no training.

pub mod book;
pub mod control;
mod counter;
pub mod file;
mod identity;
mod lock;
pub mod runs;
pub mod shelf;

use std::{
    io,
    path::{Path, PathBuf},
};

use etcetera::BaseStrategy;

pub use self::{
    book::Book,
    control::{Control, Published},
    identity::Identity,
    lock::Lock,
    runs::RunFolder,
    shelf::Shelf,
};

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("no home folder: set --home")]
    Nowhere,
    #[error("{} is held by process {}", path.display(), pid.map_or("unknown".to_string(), |pid| pid.to_string()))]
    InUse { path: PathBuf, pid: Option<u32> },
    #[error("{} can be read by other users: mode {mode:04o}", path.display())]
    KeyOpen { path: PathBuf, mode: u32 },
    #[error("{} is no key: {bytes} bytes, {reason}", path.display())]
    NotAKey { path: PathBuf, bytes: u64, reason: &'static str },
    #[error("{} is damaged: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("the disk of {} is full: {free} free, {needed} needed", path.display())]
    DiskFull { path: PathBuf, free: u64, needed: u64 },
    #[error("{}: {source}", path.display())]
    Denied { path: PathBuf, source: io::Error },
}

/// The three folders of the platform, or one folder for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    config: PathBuf,
    data: PathBuf,
    state: PathBuf,
    /// The folder that `--home` or `SKEIN_HOME` named.
    named: Option<PathBuf>,
}

impl Home {
    /// `named` puts everything under one folder; else the platform's places. Nothing is created.
    pub fn find(named: Option<&Path>) -> Result<Home, HomeError> {
        if let Some(dir) = named {
            return Ok(Home::at(dir));
        }
        let places = etcetera::choose_base_strategy().map_err(|_| HomeError::Nowhere)?;
        let data = places.data_dir().join("skein");
        Ok(Home {
            config: places.config_dir().join("skein"),
            state: places.state_dir().map_or_else(|| data.clone(), |dir| dir.join("skein")),
            data,
            named: None,
        })
    }

    /// Everything under `dir`.
    pub fn at(dir: &Path) -> Home {
        Home { config: dir.into(), data: dir.into(), state: dir.into(), named: Some(dir.into()) }
    }

    /// The folder that was asked for by name, if any.
    pub fn named(&self) -> Option<&Path> {
        self.named.as_deref()
    }

    pub fn config_file(&self) -> PathBuf {
        self.config.join("config.toml")
    }

    pub fn key_file(&self) -> PathBuf {
        self.config.join("key")
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Models of the Hub, a folder each.
    pub fn models_dir(&self) -> PathBuf {
        self.data.join("models")
    }

    pub fn control_file(&self) -> PathBuf {
        self.state.join("control")
    }

    /// Logs and event logs.
    pub fn log_dir(&self) -> PathBuf {
        self.state.join("log")
    }

    /// Holds this home for this process until the guard is dropped.
    ///
    /// # Errors
    /// [`HomeError::InUse`] with the holder's process id, or why the folder cannot be written.
    pub fn lock(&self) -> Result<Lock, HomeError> {
        Lock::take(&self.data.join("lock"))
    }

    /// The key of this peer, made on first use.
    ///
    /// # Errors
    /// A key that others can read, that is no key, or that cannot be written is refused.
    pub fn identity(&self) -> Result<Identity, HomeError> {
        Identity::open(&self.key_file())
    }

    /// One more than any incarnation before, durable when this returns. Call it with the lock held.
    pub fn next_incarnation(&self) -> Result<skein_protocol::Incarnation, HomeError> {
        counter::next(&self.data.join("incarnation"))
    }

    /// Peers met before. A damaged book is an empty one.
    /// Port of the last start, if the system or chance chose it.
    pub fn last_port(&self) -> Option<u16> {
        std::fs::read_to_string(self.data.join("port")).ok()?.trim().parse().ok().filter(|port| *port > 0)
    }

    /// Remembers it. A convenience: where that cannot be written the usual port is tried next time.
    pub fn keep_port(&self, port: u16) {
        if let Err(error) = file::write(&self.data.join("port"), format!("{port}\n").as_bytes(), file::Reader::Anyone) {
            tracing::warn!(%error, "the port is not remembered");
        }
    }

    pub fn book(&self) -> Book {
        Book::read(&self.data.join("peers"))
    }

    /// # Errors
    /// Disk full, or not writable; the book on disk stays as it was.
    pub fn save_book(&self, book: &Book) -> Result<(), HomeError> {
        book.write(&self.data.join("peers"))
    }

    /// What the runs of this home name by its hash.
    pub fn shelf(&self) -> Shelf {
        Shelf::new(self.data.join("shelf"))
    }

    pub fn runs(&self) -> runs::Runs {
        runs::Runs::new(self.data.join("runs"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_home_holds_everything() {
        let home = Home::find(Some(Path::new("/somewhere"))).unwrap();
        for path in [home.config_file(), home.key_file(), home.control_file(), home.log_dir(), home.data().join("lock")]
        {
            assert!(path.starts_with("/somewhere"), "{}", path.display());
        }
    }

    #[test]
    fn two_homes_have_two_keys_and_one_home_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Home::at(&dir.path().join("a")), Home::at(&dir.path().join("b")));
        let first = a.identity().unwrap();
        assert!(first.made_now);
        let again = a.identity().unwrap();
        assert!(!again.made_now);
        assert_eq!(first.key.peer(), again.key.peer());
        assert_ne!(first.key.peer(), b.identity().unwrap().key.peer());
    }
}
