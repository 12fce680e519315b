//! The bytes of this process, by handle. In: bodies that arrived, results of the worker, slices. Out: the bytes behind a handle.
//!
//! A handle has one owner, the peer, who releases it once. Bytes are shared, never copied: a slice keeps its whole alive. What
//! the worker reads it holds itself, so a release never pulls anything away from it. It knows no tensor and no frame.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use dashmap::{DashMap, mapref::entry::Entry};
use skein_protocol::Blob;

/// Handles from here on are named by the peer itself (slices); ours stay below.
const NAMED_BY_PEER: u64 = 1 << 63;

/// Cheap to clone; all clones are one store.
#[derive(Clone, Debug)]
pub struct Blobs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    held: DashMap<u64, Bytes>,
    next: AtomicU64,
    bytes: AtomicU64,
    budget: u64,
    wrongs: AtomicU64,
}

/// What a body that wants to come in is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Work and weights: refused when the budget is spent, its sender goes elsewhere or comes again.
    Work,
    /// What lets kept bytes go (gradients, labels): may use a quarter more.
    Relief,
}

/// A peer that used a handle it does not have: a bug of the peer, never of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("handle {:x} of {} bytes is not held, or not so long", .0.id, .0.len)]
pub struct Misused(pub Blob);

impl Blobs {
    /// `budget`: bytes that others may fill (see [`Blobs::has_room`]). What this process makes itself is not refused.
    pub fn new(budget: u64) -> Self {
        let shared = Shared {
            held: DashMap::new(),
            next: AtomicU64::new(1),
            bytes: AtomicU64::new(0),
            budget,
            wrongs: AtomicU64::new(0),
        };
        Blobs { shared: Arc::new(shared) }
    }

    pub fn put(&self, bytes: Bytes) -> Blob {
        let blob = Blob { id: self.shared.next.fetch_add(1, Ordering::Relaxed), len: bytes.len() as u64 };
        self.shared.bytes.fetch_add(blob.len, Ordering::Relaxed);
        self.shared.held.insert(blob.id, bytes);
        blob
    }

    pub fn get(&self, blob: Blob) -> Result<Bytes, Misused> {
        let found = self.shared.held.get(&blob.id).map(|bytes| bytes.clone());
        found.filter(|bytes| bytes.len() as u64 == blob.len).ok_or_else(|| self.wrong(blob))
    }

    pub fn release(&self, blob: Blob) -> Result<(), Misused> {
        let (_, bytes) = self.shared.held.remove(&blob.id).ok_or_else(|| self.wrong(blob))?;
        self.shared.bytes.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The bytes and the end of the handle.
    pub fn take(&self, blob: Blob) -> Result<Bytes, Misused> {
        let bytes = self.get(blob)?;
        self.release(blob)?;
        Ok(bytes)
    }

    /// `new.len` bytes of `blob` from `offset` under the peer's own handle `new`.
    pub fn slice(&self, blob: Blob, offset: u64, new: Blob) -> Result<(), Misused> {
        let whole = self.get(blob)?;
        let end = offset.checked_add(new.len).filter(|end| *end <= blob.len).ok_or_else(|| self.wrong(new))?;
        let part = whole.slice(offset as usize..end as usize);
        match self.shared.held.entry(new.id) {
            Entry::Vacant(entry) if new.id >= NAMED_BY_PEER => {
                entry.insert(part);
                self.shared.bytes.fetch_add(new.len, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(self.wrong(new)),
        }
    }

    /// Whether `len` more bytes may come in.
    pub fn has_room(&self, len: u64, room: Room) -> bool {
        let limit = match room {
            Room::Work => self.shared.budget,
            Room::Relief => self.shared.budget.saturating_add(self.shared.budget / 4),
        };
        self.bytes().saturating_add(len) <= limit
    }

    /// Bytes held, each slice counted as its own.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    pub fn budget(&self) -> u64 {
        self.shared.budget
    }

    /// Handles that the peer owes a release.
    pub fn held(&self) -> usize {
        self.shared.held.len()
    }

    /// How often a handle was used that is not held. 0 in a correct peer.
    pub fn wrongs(&self) -> u64 {
        self.shared.wrongs.load(Ordering::Relaxed)
    }

    fn wrong(&self, blob: Blob) -> Misused {
        self.shared.wrongs.fetch_add(1, Ordering::Relaxed);
        Misused(blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(id: u64, len: u64) -> Blob {
        Blob { id: NAMED_BY_PEER + id, len }
    }

    #[test]
    fn a_slice_outlives_its_whole_and_the_books_balance() {
        let blobs = Blobs::new(100);
        let whole = blobs.put(Bytes::from_static(b"abcdef"));
        blobs.slice(whole, 3, named(1, 2)).unwrap();
        assert_eq!(blobs.bytes(), 8);
        blobs.release(whole).unwrap();
        assert_eq!(blobs.take(named(1, 2)).unwrap(), &b"de"[..]);
        assert_eq!((blobs.bytes(), blobs.held(), blobs.wrongs()), (0, 0, 0));
    }

    #[test]
    fn a_handle_is_released_once() {
        let blobs = Blobs::new(100);
        let blob = blobs.put(Bytes::from_static(b"a"));
        assert_eq!(blobs.release(blob), Ok(()));
        assert_eq!(blobs.release(blob), Err(Misused(blob)));
        assert_eq!(blobs.wrongs(), 1);
    }

    #[test]
    fn slices_stay_inside_and_take_no_handle_twice() {
        let blobs = Blobs::new(100);
        let whole = blobs.put(Bytes::from_static(b"abcdef"));
        assert!(blobs.slice(whole, 5, named(1, 2)).is_err());
        assert!(blobs.slice(whole, u64::MAX, named(1, 2)).is_err());
        assert!(blobs.slice(whole, 0, Blob { id: 9, len: 2 }).is_err());
        assert!(blobs.slice(whole, 0, named(1, 2)).is_ok());
        assert!(blobs.slice(whole, 0, named(1, 2)).is_err());
    }

    #[test]
    fn relief_fits_where_work_does_not() {
        let blobs = Blobs::new(100);
        blobs.put(Bytes::from(vec![0; 90]));
        assert!(blobs.has_room(10, Room::Work) && !blobs.has_room(11, Room::Work));
        assert!(blobs.has_room(35, Room::Relief) && !blobs.has_room(36, Room::Relief));
    }
}
