//! Text whose tokens are its bytes, as one ring: a window that reaches the end goes on at the beginning. In: bytes. Out: windows
//! of them, the `n`-th of a seed as a pure function of both.

use std::fmt;

use skein_protocol::hash;

use super::order::Order;

/// A text without empty lines is held out in pieces of about this many bytes: a page.
const PIECE: usize = 4096;

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Ring {
    bytes: Vec<u8>,
}

impl Ring {
    pub fn new(bytes: Vec<u8>) -> Self {
        Ring { bytes }
    }

    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Samples of one epoch.
    pub fn samples(&self, sequence: usize) -> u64 {
        (self.len() / sequence.max(1) as u64).max(1)
    }

    /// The `n`-th sample in the order that `seed` gives: `sequence + 1` token ids. Within an epoch each sample comes once; each
    /// epoch has an order, and an offset of its windows, of its own.
    pub fn sample(&self, seed: u64, n: u64, sequence: usize) -> Vec<u32> {
        let samples = self.samples(sequence);
        let (epoch, nth) = (n / samples, n % samples);
        let order = Order::new(seed, epoch, samples);
        let start = order.at(nth) * sequence as u64 + order.offset(sequence as u64);
        let len = self.len();
        (0..=sequence as u64).map(|i| u32::from(self.bytes[((start + i) % len) as usize])).collect()
    }

    /// All of it from the beginning, in stretches of `bytes`.
    pub fn stretches(&self, bytes: usize) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(bytes.max(1))
    }

    /// The beginning: at most `bytes_max` bytes, cut between characters.
    pub fn preview(&self, bytes_max: usize) -> &str {
        let head = &self.bytes[..self.bytes.len().min(bytes_max)];
        match std::str::from_utf8(head) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&head[..error.valid_up_to()]).expect("valid up to here"),
        }
    }

    /// Paragraphs, or pages of a text that has none.
    fn pieces(&self) -> Vec<&[u8]> {
        let (mut pieces, mut rest) = (Vec::new(), self.bytes.as_slice());
        while !rest.is_empty() {
            let near = &rest[..rest.len().min(4 * PIECE)];
            let at = match near.windows(2).position(|pair| pair == b"\n\n") {
                Some(at) => at + 2,
                None if near.len() == rest.len() => rest.len(),
                None => page(rest),
            };
            pieces.push(&rest[..at]);
            rest = &rest[at..];
        }
        pieces
    }

    /// Of each piece; equal pieces have equal keys.
    pub fn keys(&self) -> Vec<u64> {
        self.pieces().into_iter().map(key).collect()
    }

    /// The pieces whose keys `keep` takes, one after the other.
    pub fn part(&self, keep: impl Fn(u64) -> bool) -> Ring {
        Ring::new(self.pieces().into_iter().filter(|piece| keep(key(piece))).flatten().copied().collect())
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} bytes)", self.bytes.len())
    }
}

fn key(piece: &[u8]) -> u64 {
    let digest = hash::keyed("skein text record 1", &[piece]);
    u64::from_le_bytes(digest.0[..8].try_into().expect("eight bytes"))
}

/// Up to the first line that ends after a page, or to the next whole character.
fn page(text: &[u8]) -> usize {
    let after = &text[PIECE..];
    let line = after.iter().take(PIECE).position(|byte| *byte == b'\n').map(|at| at + 1);
    let character = after.iter().position(|byte| *byte & 0xc0 != 0x80);
    PIECE + line.or(character).unwrap_or(after.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_covers_the_text_and_each_sample_comes_once() {
        let text: String = (0..1000u32).map(|i| char::from(b' ' + (i % 90) as u8)).collect();
        let ring = Ring::new(text.into_bytes());
        let sequence = 8;
        let samples = ring.samples(sequence);
        assert_eq!(samples, 125);
        let mut seen = vec![0u32; 1000];
        let order = Order::new(7, 0, samples);
        for n in 0..samples {
            let start = order.at(n) * 8 + order.offset(8);
            for i in 0..8 {
                seen[((start + i) % 1000) as usize] += 1;
            }
        }
        assert!(seen.iter().all(|&times| times == 1));
    }

    #[test]
    fn a_text_shorter_than_a_sample_goes_round() {
        let ids = Ring::new(b"abc".to_vec()).sample(0, 9, 8);
        assert_eq!(ids.len(), 9);
        for pair in ids.windows(2) {
            assert_eq!((pair[0] - 96) % 3 + 97, pair[1]);
        }
    }

    #[test]
    fn a_preview_is_cut_between_characters() {
        assert_eq!(Ring::new("aé".into()).preview(2), "a");
    }

    #[test]
    fn pieces_are_paragraphs_or_pages_and_together_all_of_it() {
        let pages = "é".repeat(30_000);
        let lines = "a line of text\n".repeat(3_000);
        for text in ["one\n\ntwo\n\n\nthree", &pages, &lines] {
            let ring = Ring::new(text.into());
            let pieces = ring.pieces();
            assert_eq!(pieces.concat(), text.as_bytes());
            assert!(pieces.len() > 2 && pieces.iter().all(|piece| std::str::from_utf8(piece).is_ok()));
        }
        let ring = Ring::new("one\n\ntwo\n\none\n\n".into());
        let keys = ring.keys();
        assert_eq!(keys[0], keys[2]);
        assert_eq!(ring.part(|key| key == keys[0]).preview(99), "one\n\none\n\n");
    }
}
