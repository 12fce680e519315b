//! Peers met before, so that the second start needs no invite. In: who was met where. Out: whom to try first.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};
use skein_protocol::{PeerId, Utc};

use super::{
    HomeError,
    file::{self, Reader},
};

pub const PEERS_MAX: usize = 500;
pub const ADDRESSES_MAX: usize = 4;
/// Longer addresses are not remembered.
const ADDRESS_LEN_MAX: usize = 256;
/// Larger files were not written by us.
const FILE_MAX: u64 = 1 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    entries: BTreeMap<PeerId, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// When it was last connected.
    seen: Utc,
    /// The newest first.
    addresses: Vec<String>,
}

impl Book {
    /// Remembers that `peer` was met at `address`. Of more than [`PEERS_MAX`] peers the one not seen for longest is forgotten.
    pub fn met(&mut self, peer: PeerId, address: &str, now: Utc) {
        if address.is_empty() || address.len() > ADDRESS_LEN_MAX {
            return;
        }
        let entry = self.entries.entry(peer).or_insert_with(|| Entry { seen: now, addresses: Vec::new() });
        entry.seen = entry.seen.max(now);
        entry.addresses.retain(|known| known != address);
        entry.addresses.insert(0, address.to_string());
        entry.addresses.truncate(ADDRESSES_MAX);
        while self.entries.len() > PEERS_MAX {
            let oldest = self.entries.iter().min_by_key(|(peer, entry)| (entry.seen, **peer)).map(|(peer, _)| *peer);
            self.entries.remove(&oldest.expect("more than none"));
        }
    }

    /// The most recently seen first.
    pub fn newest(&self) -> Vec<(PeerId, &[String])> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|(peer, entry)| (std::cmp::Reverse(entry.seen), **peer));
        entries.into_iter().map(|(peer, entry)| (*peer, entry.addresses.as_slice())).collect()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn read(path: &Path) -> Book {
        let Ok(facts) = fs::metadata(path) else { return Book::default() };
        if facts.len() > FILE_MAX {
            return Book::default();
        }
        let entries: BTreeMap<PeerId, Entry> =
            fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let mut book = Book::default();
        for (peer, entry) in entries {
            for address in entry.addresses.iter().rev() {
                book.met(peer, address, entry.seen);
            }
        }
        book
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), HomeError> {
        let bytes = serde_json::to_vec(&self.entries).expect("a map of strings is JSON");
        file::write(path, &bytes, Reader::OwnerOnly)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u16) -> PeerId {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        PeerId(bytes)
    }

    #[test]
    fn the_book_survives_the_disk_and_knows_whom_to_try_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers");
        let mut book = Book::default();
        book.met(peer(1), "/ip4/1.2.3.4/udp/1/quic-v1", Utc(10));
        book.met(peer(2), "/ip4/1.2.3.5/udp/1/quic-v1", Utc(30));
        book.met(peer(1), "/ip4/1.2.3.6/udp/1/quic-v1", Utc(20));
        book.write(&path).unwrap();
        let read = Book::read(&path);
        assert_eq!(read, book);
        let order: Vec<_> = read.newest().into_iter().map(|(peer, addresses)| (peer, addresses[0].as_str())).collect();
        assert_eq!(order, [(peer(2), "/ip4/1.2.3.5/udp/1/quic-v1"), (peer(1), "/ip4/1.2.3.6/udp/1/quic-v1")]);
    }

    #[test]
    fn the_book_is_bounded_and_drops_the_oldest() {
        let mut book = Book::default();
        for n in 0..=PEERS_MAX as u16 {
            book.met(peer(n), "/ip4/1.2.3.4/udp/1/quic-v1", Utc(u64::from(n)));
        }
        assert_eq!(book.len(), PEERS_MAX);
        assert!(book.newest().iter().all(|(known, _)| *known != peer(0)));
        for n in 0..10 {
            book.met(peer(1), &format!("/ip4/1.2.3.{n}/udp/1/quic-v1"), Utc(1000));
        }
        book.met(peer(1), &"x".repeat(300), Utc(1000));
        assert_eq!(book.newest()[0].1.len(), ADDRESSES_MAX);
    }

    #[test]
    fn a_damaged_book_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers");
        for content in ["", "[]", "{\"nobody\":{}}"] {
            fs::write(&path, content).unwrap();
            assert!(Book::read(&path).is_empty());
        }
    }
}
