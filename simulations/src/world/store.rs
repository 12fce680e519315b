//! The bytes of one process, by handle. Counts what is held, and notes every handle that is released twice or used after.
//!
//! A handle has one owner and is released once. The handles of a job stay readable until the job ends, released or not.

use std::collections::BTreeMap;

use bytes::Bytes;
use skein_pipeline::{job::Job, worker::Blobs};
use skein_protocol::Blob;

use super::payload::Payload;

/// Handles that a peer names itself have this bit.
const NAMED: u64 = 1 << 63;

#[derive(Debug)]
struct Entry {
    payload: Payload,
    owned: bool,
    /// Jobs that read it.
    pins: u32,
}

#[derive(Debug, Default)]
pub struct Store {
    entries: BTreeMap<u64, Entry>,
    next: u64,
    owned: usize,
    peak: usize,
    wrongs: Vec<String>,
}

impl Store {
    pub fn insert(&mut self, payload: Payload) -> Blob {
        self.next += 1;
        let blob = Blob { id: self.next, len: payload.len() };
        self.own(blob.id, payload);
        blob
    }

    fn own(&mut self, id: u64, payload: Payload) {
        self.owned += 1;
        self.peak = self.peak.max(self.owned);
        self.entries.insert(id, Entry { payload, owned: true, pins: 0 });
    }

    fn wrong(&mut self, what: String) {
        if self.wrongs.len() < 20 {
            self.wrongs.push(what);
        }
    }

    /// A copy of what is behind an owned handle.
    pub fn read(&mut self, blob: Blob, for_what: &str) -> Option<Payload> {
        let found = self.entries.get(&blob.id).filter(|entry| entry.owned).map(|entry| entry.payload.clone());
        match found {
            None => self.wrong(format!("{for_what}: handle {:x} is not held", blob.id)),
            Some(ref payload) if payload.len() != blob.len => {
                self.wrong(format!("{for_what}: handle {:x} says {} bytes, has {}", blob.id, blob.len, payload.len()));
            }
            Some(_) => {}
        }
        found
    }

    pub fn release(&mut self, blob: Blob) {
        match self.entries.get_mut(&blob.id) {
            Some(entry) if entry.owned => {
                entry.owned = false;
                self.owned -= 1;
                if entry.pins == 0 {
                    self.entries.remove(&blob.id);
                }
            }
            _ => self.wrong(format!("handle {:x} was released twice, or never given", blob.id)),
        }
    }

    pub fn slice(&mut self, blob: Blob, offset: u64, new: Blob) {
        let Some(payload) = self.read(blob, "slice") else { return };
        if new.id < NAMED || self.entries.contains_key(&new.id) {
            return self.wrong(format!("slice: the new handle {:x} is taken, or not in the peer's range", new.id));
        }
        match payload.slice(offset, new.len) {
            Some(part) => self.own(new.id, part),
            None => self.wrong(format!("slice: {offset} + {} exceeds {}", new.len, payload.len())),
        }
    }

    /// Keeps the handles of a job readable until `unpin`.
    pub fn pin(&mut self, job: &Job) {
        for blob in job.reads() {
            match self.entries.get_mut(&blob.id) {
                Some(entry) if entry.owned => entry.pins += 1,
                _ => self.wrong(format!("a job names handle {:x}, which is not held: {job:?}", blob.id)),
            }
        }
    }

    pub fn unpin(&mut self, job: &Job) {
        for blob in job.reads() {
            if let Some(entry) = self.entries.get_mut(&blob.id) {
                entry.pins = entry.pins.saturating_sub(1);
                if entry.pins == 0 && !entry.owned {
                    self.entries.remove(&blob.id);
                }
            }
        }
    }

    /// What a job's handle stands for: readable though it was released meanwhile.
    pub fn payload(&self, blob: Blob) -> Option<&Payload> {
        self.entries.get(&blob.id).map(|entry| &entry.payload)
    }

    /// Handles that the peer owes a release.
    pub fn held(&self) -> usize {
        self.owned
    }

    /// The most handles that were ever held.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// What a correct peer never does.
    pub fn wrongs(&self) -> &[String] {
        &self.wrongs
    }
}

impl Blobs for Store {
    fn get(&self, blob: Blob) -> Option<Bytes> {
        match self.payload(blob)? {
            Payload::Real(bytes) => Some(bytes.clone()),
            Payload::Modelled { .. } => None,
        }
    }

    fn put(&mut self, bytes: Bytes) -> Blob {
        self.insert(Payload::Real(bytes))
    }
}

#[cfg(test)]
mod tests {
    use skein_pipeline::job::Coding;
    use skein_protocol::run::Codec;

    use super::*;

    #[test]
    fn releasing_twice_is_noted_and_a_job_keeps_what_it_reads() {
        let mut store = Store::default();
        let blob = store.insert(Payload::plain(4));
        let job = Job::Backward {
            stage: 0,
            key: 1,
            gradient: blob,
            weight: 1.0,
            coding: Coding { codec: Codec::F32, zstd: false },
        };
        store.pin(&job);
        store.release(blob);
        assert!(store.payload(blob).is_some());
        assert_eq!(store.held(), 0);
        store.unpin(&job);
        assert!(store.payload(blob).is_none());
        assert!(store.wrongs().is_empty());
        store.release(blob);
        assert_eq!(store.wrongs().len(), 1);
    }

    #[test]
    fn a_slice_outlives_its_whole() {
        let mut store = Store::default();
        let whole = store.insert(Payload::Real(Bytes::from_static(b"abcdef")));
        let part = Blob { id: NAMED + 1, len: 2 };
        store.slice(whole, 3, part);
        store.release(whole);
        assert_eq!(store.get(part).as_deref(), Some(&b"de"[..]));
        store.release(part);
        assert_eq!((store.held(), store.wrongs().len()), (0, 0));
    }
}
