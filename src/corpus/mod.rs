//! What a run learns from: text as bytes, and the samples that a feeder draws from it.
//!
//! In: a seed (our own fables), or files of a person. Out: [`Corpus`], whose `n`-th sample is a pure function of the seed and
//! `n`, so that a feeder that starts again continues where it was. Knows no run, no peer and no stage.

pub mod fables;
mod order;
pub mod read;

use std::{collections::BTreeSet, path::PathBuf};

pub use read::{CorpusError, Skipped};

/// Text whose tokens are its bytes (vocabulary 256), as one ring: a sample that reaches the end goes on at the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    bytes: Vec<u8>,
    /// Documents it was made of.
    pub documents: u64,
    /// What was left out, and why.
    pub skipped: Skipped,
}

/// One micro-batch: `[micro_batch, sequence]` tokens and, for each, the token that follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    pub tokens: Vec<u32>,
    pub labels: Vec<u32>,
}

impl Corpus {
    /// At least `bytes_min` bytes of fables, equal for equal seeds.
    pub fn fables(seed: u64, bytes_min: usize) -> Corpus {
        let (text, documents) = fables::expand(seed, bytes_min);
        Corpus { bytes: text.into_bytes(), documents, skipped: Skipped::default() }
    }

    /// One text as it is.
    pub fn from_text(text: &str) -> Corpus {
        Corpus { bytes: text.as_bytes().to_vec(), documents: 1, skipped: Skipped::default() }
    }

    /// Everything under `paths`: `.txt` and `.md` as plain text, `.jsonl` by its `text` fields, folders as all of these.
    ///
    /// # Errors
    /// See [`CorpusError`]: nothing readable, nothing usable, or bytes that are no UTF-8.
    pub fn read(paths: &[PathBuf]) -> Result<Corpus, CorpusError> {
        read::read(paths)
    }

    /// Tokens of one pass.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Samples of one epoch.
    pub fn samples(&self, sequence: usize) -> u64 {
        (self.len() / sequence.max(1) as u64).max(1)
    }

    /// Micro-batches of `epochs` passes; the last may reach into the next pass.
    pub fn micro_batches(&self, epochs: u64, micro_batch: usize, sequence: usize) -> u64 {
        self.samples(sequence).saturating_mul(epochs).div_ceil(micro_batch.max(1) as u64)
    }

    /// The `n`-th sample in the order that `seed` gives: `sequence + 1` token ids. Within an epoch each sample comes once; each
    /// epoch has an order, and an offset of its windows, of its own.
    ///
    /// # Panics
    /// If the corpus is empty; [`Corpus::read`] never makes one.
    pub fn sample(&self, seed: u64, n: u64, sequence: usize) -> Vec<u32> {
        let samples = self.samples(sequence);
        let (epoch, nth) = (n / samples, n % samples);
        let order = order::Order::new(seed, epoch, samples);
        let start = order.at(nth) * sequence as u64 + order.offset(sequence as u64);
        let len = self.len();
        (0..=sequence as u64).map(|i| u32::from(self.bytes[((start + i) % len) as usize])).collect()
    }

    /// The `index`-th micro-batch: samples `index * micro_batch ..`, split into tokens and labels.
    pub fn records(&self, seed: u64, index: u64, micro_batch: usize, sequence: usize) -> Records {
        let mut records = Records {
            tokens: Vec::with_capacity(micro_batch * sequence),
            labels: Vec::with_capacity(micro_batch * sequence),
        };
        for i in 0..micro_batch as u64 {
            let ids = self.sample(seed, index.wrapping_mul(micro_batch as u64).wrapping_add(i), sequence);
            records.tokens.extend_from_slice(&ids[..sequence]);
            records.labels.extend_from_slice(&ids[1..]);
        }
        records
    }

    /// The beginning, as people see it: at most `bytes_max` bytes, cut between characters.
    pub fn preview(&self, bytes_max: usize) -> String {
        let head = &self.bytes[..self.bytes.len().min(bytes_max)];
        let valid = match std::str::from_utf8(head) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&head[..error.valid_up_to()]).expect("valid up to here"),
        };
        valid.to_string()
    }

    /// Share of the words of `text` that are among those of the first `bytes_max` bytes, 0 to 1; nothing where it has no whole
    /// word. A word is letters that stand together, in whatever case. The last is none unless something follows it.
    pub fn known_words(&self, text: &str, bytes_max: usize) -> Option<f64> {
        let head = self.preview(bytes_max).to_lowercase();
        let known: BTreeSet<&str> = head.split(|c: char| !c.is_alphabetic()).collect();
        let whole = text.rfind(|c: char| !c.is_alphabetic()).map_or("", |end| &text[..end]).to_lowercase();
        let words = whole.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
        let (all, of_these) =
            words.fold((0u32, 0u32), |(all, of_these), word| (all + 1, of_these + u32::from(known.contains(word))));
        (all > 0).then(|| f64::from(of_these) / f64::from(all))
    }
}

/// Token ids of `text`: its bytes.
pub fn encode(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// Turns token ids back into text piece by piece: a character is given out when its last byte has come.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    held: Vec<u8>,
}

impl Decoder {
    /// Text that is complete after one more token. Ids above 255 and bytes that cannot continue become `U+FFFD`.
    pub fn push(&mut self, token: u32) -> String {
        match u8::try_from(token) {
            Ok(byte) => self.held.push(byte),
            Err(_) => self.held.extend_from_slice("\u{fffd}".as_bytes()),
        }
        let mut text = String::new();
        while !self.held.is_empty() {
            match std::str::from_utf8(&self.held) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.held.clear();
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(std::str::from_utf8(&self.held[..valid]).expect("valid up to here"));
                    self.held.drain(..valid);
                    match error.error_len() {
                        None => break,
                        Some(bad) => {
                            text.push('\u{fffd}');
                            self.held.drain(..bad);
                        }
                    }
                }
            }
        }
        text
    }

    /// What is held at the end is an unfinished character.
    pub fn finish(self) -> &'static str {
        if self.held.is_empty() { "" } else { "\u{fffd}" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_covers_the_text_and_each_sample_comes_once() {
        let text: String = (0..1000u32).map(|i| char::from(b' ' + (i % 90) as u8)).collect();
        let corpus = Corpus::from_text(&text);
        let sequence = 8;
        let samples = corpus.samples(sequence);
        assert_eq!(samples, 125);
        let mut seen = vec![0u32; 1000];
        let order = order::Order::new(7, 0, samples);
        for n in 0..samples {
            let start = order.at(n) * 8 + order.offset(8);
            for i in 0..8 {
                seen[((start + i) % 1000) as usize] += 1;
            }
        }
        assert!(seen.iter().all(|&times| times == 1));
    }

    #[test]
    fn a_sample_is_a_function_of_seed_and_index() {
        let corpus = Corpus::fables(1, 20_000);
        assert_eq!(corpus.sample(3, 40, 64), corpus.sample(3, 40, 64));
        assert_ne!(corpus.sample(3, 40, 64), corpus.sample(4, 40, 64));
        assert_ne!(corpus.sample(3, 0, 64), corpus.sample(3, corpus.samples(64), 64));
        assert_eq!(corpus.sample(3, 40, 64).len(), 65);
    }

    #[test]
    fn labels_are_the_tokens_that_follow() {
        let corpus = Corpus::fables(1, 20_000);
        let records = corpus.records(5, 2, 3, 16);
        assert_eq!((records.tokens.len(), records.labels.len()), (48, 48));
        for row in 0..3 {
            assert_eq!(records.tokens[row * 16 + 1..(row + 1) * 16], records.labels[row * 16..(row + 1) * 16 - 1]);
        }
        assert_eq!(records.tokens[..16], corpus.sample(5, 6, 16)[..16]);
    }

    #[test]
    fn a_text_shorter_than_a_sample_goes_round() {
        let corpus = Corpus::from_text("abc");
        let ids = corpus.sample(0, 9, 8);
        assert_eq!(ids.len(), 9);
        for pair in ids.windows(2) {
            assert_eq!((pair[0] - 96) % 3 + 97, pair[1]);
        }
    }

    #[test]
    fn words_of_the_corpus_are_told_from_inventions() {
        let corpus = Corpus::fables(1, 20_000);
        assert_eq!(corpus.known_words(&fables::fable(9, 3), 20_000), Some(1.0));
        assert_eq!(corpus.known_words("A small fox thopped. \"Nood slorn,\" sai", 20_000), Some(0.5));
        assert_eq!(corpus.known_words("the the the th", 20_000), Some(1.0));
        assert_eq!(corpus.known_words("\u{fffd}#17 ", 20_000), None);
        assert_eq!(corpus.known_words("fo", 20_000), None, "it may go on");
    }

    #[test]
    fn characters_come_out_whole() {
        let mut decoder = Decoder::default();
        let pieces: Vec<String> = encode("aé☂").into_iter().map(|token| decoder.push(token)).collect();
        assert_eq!(pieces.concat(), "aé☂");
        assert_eq!(pieces[1], "");
        assert_eq!(decoder.finish(), "");
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(0xff), "\u{fffd}");
        assert_eq!(decoder.push(0xc3), "");
        assert_eq!(decoder.push(u32::from(b'a')), "\u{fffd}a");
        assert_eq!(decoder.push(300), "\u{fffd}");
        decoder.push(0xe2);
        assert_eq!(decoder.finish(), "\u{fffd}");
    }
}
