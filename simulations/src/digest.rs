//! One hash of a whole history: equal seeds must give equal digests, in debug and in release.

use std::io::Write;

use skein_protocol::{
    event::Record,
    hash::{self, Digest},
};

use crate::engine::Time;

/// Everything that happened, in order, by a hash that takes a word in a few cycles: frames alone are a megabyte a second.
/// BLAKE3 makes one digest of where it ends.
#[derive(Default)]
pub struct History {
    sums: Sums,
    happenings: u64,
    /// Kept for its memory.
    line: Vec<u8>,
}

/// Two sums, every other word in each, by the round function of XXH64 (Collet, 2012). A round loses nothing: two histories that
/// differ in one word of a sum differ in the sum, whatever comes behind.
#[derive(Default)]
struct Sums([u64; 2]);

impl Sums {
    const PRIME_1: u64 = 0x9e37_79b1_85eb_ca87;
    const PRIME_2: u64 = 0xc2b2_ae3d_27d4_eb4f;

    fn add(&mut self, words: [u64; 2]) {
        for (sum, word) in self.0.iter_mut().zip(words) {
            let round = sum.wrapping_add(word.wrapping_mul(Self::PRIME_2));
            *sum = round.rotate_left(31).wrapping_mul(Self::PRIME_1);
        }
    }

    /// Zeros fill the last words: how many bytes there are is to be added before them.
    fn add_bytes(&mut self, bytes: &[u8]) {
        let word = |half: &[u8]| u64::from_le_bytes(*half.first_chunk().expect("a half of 16 bytes"));
        let (pairs, rest) = bytes.as_chunks::<16>();
        for pair in pairs {
            self.add([word(&pair[..8]), word(&pair[8..])]);
        }
        if !rest.is_empty() {
            let mut last = [0; 16];
            last[..rest.len()].copy_from_slice(rest);
            self.add([word(&last[..8]), word(&last[8..])]);
        }
    }
}

/// Stands for the bytes of a frame, from when it is sent until it is heard.
#[derive(Clone, Copy, Debug)]
pub struct Mark([u64; 2]);

impl Mark {
    pub fn of(bytes: &[u8]) -> Self {
        let mut sums = Sums::default();
        sums.add([bytes.len() as u64, 0]);
        sums.add_bytes(bytes);
        Mark(sums.0)
    }
}

impl History {
    /// A frame that reached a peer: when, which peer, whose, and how many bytes its body has.
    pub fn frame(&mut self, at: Time, peer: usize, from: usize, mark: Mark, body: u64) {
        self.happenings += 1;
        self.sums.add([at, (peer as u64) << 32 | from as u64]);
        self.sums.add(mark.0);
        self.sums.add([body, 0]);
    }

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

    fn note(&mut self, at: Time, peer: usize, kind: u8, bytes: &[u8]) {
        self.sums.add([at, (peer as u64) << 40 | u64::from(kind) << 32 | bytes.len() as u64]);
        self.sums.add_bytes(bytes);
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
        let [even, odd] = self.sums.0.map(u64::to_le_bytes);
        hash::keyed("skein simulation history 3", &[&even, &odd])
    }
}
