//! One hash of a whole history: equal seeds must give equal digests, in debug and in release.

use skein_protocol::{event::Record, hash::Digest};

use crate::engine::Time;

/// BLAKE3 over everything that happened, in order.
pub struct History {
    hasher: blake3::Hasher,
    happenings: u64,
}

impl Default for History {
    fn default() -> Self {
        History { hasher: blake3::Hasher::new_derive_key("skein simulation history 1"), happenings: 0 }
    }
}

impl History {
    /// A fact that reached a peer: when, which peer, what kind, and its bytes.
    pub fn fact(&mut self, at: Time, peer: usize, kind: u8, bytes: &[u8]) {
        self.happenings += 1;
        self.hasher.update(&at.to_le_bytes());
        self.hasher.update(&(peer as u32).to_le_bytes());
        self.hasher.update(&[kind]);
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }

    /// An event that a peer emitted.
    pub fn record(&mut self, at: Time, peer: usize, record: &Record) {
        let line = serde_json::to_vec(record).expect("an event is plain data");
        self.fact(at, peer, 255, &line);
    }

    pub fn happenings(&self) -> u64 {
        self.happenings
    }

    pub fn digest(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }
}
