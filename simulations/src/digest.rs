//! One hash of a whole history: equal seeds must give equal digests, in debug and in release.

use std::io::Write;

use skein_protocol::{event::Record, hash::Digest};

use crate::engine::Time;

/// BLAKE3 over everything that happened, in order.
pub struct History {
    hasher: blake3::Hasher,
    happenings: u64,
    /// Kept for its memory.
    line: Vec<u8>,
}

impl Default for History {
    fn default() -> Self {
        History {
            hasher: blake3::Hasher::new_derive_key("skein simulation history 2"),
            happenings: 0,
            line: Vec::new(),
        }
    }
}

impl History {
    /// A fact that reached a peer: when, which peer, what kind, and its bytes.
    pub fn fact(&mut self, at: Time, peer: usize, kind: u8, bytes: &[u8]) {
        self.happenings += 1;
        self.note(at, peer, kind, bytes);
    }

    /// A fact without bytes of its own, told in words.
    pub fn fact_in_words(&mut self, at: Time, peer: usize, kind: u8, words: std::fmt::Arguments<'_>) {
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        line.write_fmt(words).expect("writing to a Vec cannot fail");
        self.fact(at, peer, kind, &line);
        self.line = line;
    }

    /// More bytes of the fact that was told last.
    pub fn more(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    fn note(&mut self, at: Time, peer: usize, kind: u8, bytes: &[u8]) {
        let mut head = [0; 21];
        head[..8].copy_from_slice(&at.to_le_bytes());
        head[8..12].copy_from_slice(&(peer as u32).to_le_bytes());
        head[12] = kind;
        head[13..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(&head);
        self.hasher.update(bytes);
    }

    /// An event that a peer emitted.
    pub fn record(&mut self, at: Time, peer: usize, record: &Record) {
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        serde_json::to_writer(&mut line, record).expect("an event is plain data");
        self.note(at, peer, 255, &line);
        self.line = line;
    }

    /// Facts that peers handled.
    pub fn happenings(&self) -> u64 {
        self.happenings
    }

    pub fn digest(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }
}
