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
    held: DashMap<u64, Held>,
    next: AtomicU64,
    /// Of work, of weights, and of what counts in no budget but lies in memory: states made here.
    bytes: [AtomicU64; 3],
    budgets: [u64; 2],
    wrongs: AtomicU64,
}

#[derive(Debug)]
struct Held {
    bytes: Bytes,
    kind: Kind,
}

/// What bytes are for, and so which budget they count in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Micro-batches, rounds, sessions.
    Work,
    /// States of stages on their way: few, large, and each of them asked for.
    Weights,
    /// No peer fills memory with it, so it counts in no budget: states encoded here.
    Own,
    /// Bytes of files, which lie in memory only as long as nobody else needs it: they count nowhere.
    File,
}

/// What a body that wants to come in is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Refused when the budget is spent, its sender goes elsewhere or comes again.
    Work,
    /// Has a budget of its own: work goes on while a state comes in.
    Weights,
    /// What lets kept bytes go (gradients, labels): may use a quarter more.
    Relief,
}

/// A peer that used a handle it does not have: a bug of the peer, never of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("handle {:x} of {} bytes is not held, or not so long", .0.id, .0.len)]
pub struct Misused(pub Blob);

impl Blobs {
    /// `work`, `weights`: bytes that others may fill (see [`Blobs::has_room`]). What this process makes itself is not refused.
    pub fn new(work: u64, weights: u64) -> Self {
        let shared = Shared {
            held: DashMap::new(),
            next: AtomicU64::new(1),
            bytes: Default::default(),
            budgets: [work, weights],
            wrongs: AtomicU64::new(0),
        };
        Blobs { shared: Arc::new(shared) }
    }

    pub fn put(&self, bytes: Bytes, kind: Kind) -> Blob {
        let blob = Blob { id: self.shared.next.fetch_add(1, Ordering::Relaxed), len: bytes.len() as u64 };
        self.count(kind, |all| _ = all.fetch_add(blob.len, Ordering::Relaxed));
        self.shared.held.insert(blob.id, Held { bytes, kind });
        blob
    }

    /// The counter of a kind, if it is counted.
    fn count(&self, kind: Kind, change: impl FnOnce(&AtomicU64)) {
        match kind {
            Kind::Work => change(&self.shared.bytes[0]),
            Kind::Weights => change(&self.shared.bytes[1]),
            Kind::Own => change(&self.shared.bytes[2]),
            Kind::File => {}
        }
    }

    pub fn get(&self, blob: Blob) -> Result<Bytes, Misused> {
        self.look(blob).map(|(bytes, _)| bytes)
    }

    fn look(&self, blob: Blob) -> Result<(Bytes, Kind), Misused> {
        let found = self.shared.held.get(&blob.id).map(|held| (held.bytes.clone(), held.kind));
        found.filter(|(bytes, _)| bytes.len() as u64 == blob.len).ok_or_else(|| self.wrong(blob))
    }

    pub fn release(&self, blob: Blob) -> Result<(), Misused> {
        let (_, held) = self.shared.held.remove(&blob.id).ok_or_else(|| self.wrong(blob))?;
        self.count(held.kind, |all| _ = all.fetch_sub(held.bytes.len() as u64, Ordering::Relaxed));
        Ok(())
    }

    /// Puts the same bytes, which lie in a file by now, in the place of those in memory. Nothing where the handle is gone.
    pub fn moved_to_file(&self, blob: Blob, bytes: Bytes) {
        let Some(mut held) = self.shared.held.get_mut(&blob.id).filter(|held| held.bytes.len() == bytes.len()) else {
            return;
        };
        let before = std::mem::replace(&mut *held, Held { bytes, kind: Kind::File });
        self.count(before.kind, |all| _ = all.fetch_sub(before.bytes.len() as u64, Ordering::Relaxed));
    }

    /// The bytes and the end of the handle.
    pub fn take(&self, blob: Blob) -> Result<Bytes, Misused> {
        let bytes = self.get(blob)?;
        self.release(blob)?;
        Ok(bytes)
    }

    /// `new.len` bytes of `blob` from `offset` under the peer's own handle `new`.
    pub fn slice(&self, blob: Blob, offset: u64, new: Blob) -> Result<(), Misused> {
        let (whole, kind) = self.look(blob)?;
        let end = offset.checked_add(new.len).filter(|end| *end <= blob.len).ok_or_else(|| self.wrong(new))?;
        let part = whole.slice(offset as usize..end as usize);
        match self.shared.held.entry(new.id) {
            Entry::Vacant(entry) if new.id >= NAMED_BY_PEER => {
                entry.insert(Held { bytes: part, kind });
                self.count(kind, |all| _ = all.fetch_add(new.len, Ordering::Relaxed));
                Ok(())
            }
            _ => Err(self.wrong(new)),
        }
    }

    /// Whether `len` more bytes may come in.
    pub fn has_room(&self, len: u64, room: Room) -> bool {
        let [work, weights] = self.shared.budgets;
        let (lies, limit) = match room {
            Room::Work => (self.bytes(), work),
            Room::Relief => (self.bytes(), work.saturating_add(work / 4)),
            Room::Weights => (self.shared.bytes[1].load(Ordering::Relaxed), weights),
        };
        lies.saturating_add(len) <= limit
    }

    /// Bytes of work that are held, each slice counted as its own.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes[0].load(Ordering::Relaxed)
    }

    /// Everything that lies in memory, each slice counted as its own.
    pub fn bytes_in_memory(&self) -> u64 {
        self.shared.bytes.iter().map(|bytes| bytes.load(Ordering::Relaxed)).fold(0, u64::saturating_add)
    }

    /// For work.
    pub fn budget(&self) -> u64 {
        self.shared.budgets[0]
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
        let blobs = Blobs::new(100, 100);
        let whole = blobs.put(Bytes::from_static(b"abcdef"), Kind::Work);
        blobs.slice(whole, 3, named(1, 2)).unwrap();
        assert_eq!(blobs.bytes(), 8);
        blobs.release(whole).unwrap();
        assert_eq!(blobs.take(named(1, 2)).unwrap(), &b"de"[..]);
        assert_eq!((blobs.bytes(), blobs.held(), blobs.wrongs()), (0, 0, 0));
    }

    #[test]
    fn a_handle_is_released_once() {
        let blobs = Blobs::new(100, 100);
        let blob = blobs.put(Bytes::from_static(b"a"), Kind::Work);
        assert_eq!(blobs.release(blob), Ok(()));
        assert_eq!(blobs.release(blob), Err(Misused(blob)));
        assert_eq!(blobs.wrongs(), 1);
    }

    #[test]
    fn slices_stay_inside_and_take_no_handle_twice() {
        let blobs = Blobs::new(100, 100);
        let whole = blobs.put(Bytes::from_static(b"abcdef"), Kind::Work);
        assert!(blobs.slice(whole, 5, named(1, 2)).is_err());
        assert!(blobs.slice(whole, u64::MAX, named(1, 2)).is_err());
        assert!(blobs.slice(whole, 0, Blob { id: 9, len: 2 }).is_err());
        assert!(blobs.slice(whole, 0, named(1, 2)).is_ok());
        assert!(blobs.slice(whole, 0, named(1, 2)).is_err());
    }

    #[test]
    fn relief_fits_where_work_does_not() {
        let blobs = Blobs::new(100, 100);
        blobs.put(Bytes::from(vec![0; 90]), Kind::Work);
        assert!(blobs.has_room(10, Room::Work) && !blobs.has_room(11, Room::Work));
        assert!(blobs.has_room(35, Room::Relief) && !blobs.has_room(36, Room::Relief));
    }

    #[test]
    fn what_lies_in_a_file_counts_nowhere_nor_do_its_slices() {
        let blobs = Blobs::new(100, 100);
        let part = blobs.put(Bytes::from_static(b"abcdef"), Kind::Weights);
        assert!(!blobs.has_room(95, Room::Weights) && blobs.has_room(100, Room::Work));
        blobs.moved_to_file(part, Bytes::from_static(b"abcdef"));
        blobs.slice(part, 1, named(1, 2)).unwrap();
        assert!(blobs.has_room(100, Room::Weights));
        assert_eq!(blobs.get(named(1, 2)).unwrap(), &b"bc"[..]);
        blobs.release(part).unwrap();
        blobs.release(named(1, 2)).unwrap();
        blobs.moved_to_file(part, Bytes::from_static(b"abcdef"));
        assert!(blobs.has_room(100, Room::Weights) && !blobs.has_room(101, Room::Weights));
        assert_eq!((blobs.held(), blobs.wrongs()), (0, 0));
    }
}
