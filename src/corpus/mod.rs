//! What a run learns from: a person's data as samples that a feeder draws.
//!
//! In: a seed (our own fables), or files of a person with the tokenizer and the chat template of a model. Out: [`Corpus`], whose
//! `n`-th sample is a pure function of the seed and `n`, so that a feeder that starts again continues where it was. Knows no
//! run, no peer and no stage.
//!
//! Plain text for a model of bytes is one ring in memory. All else is records that stay in their files, those of Parquet in a temporary
//! one, and are packed into sequences.

mod error;
pub mod fables;
mod index;
mod order;
mod pack;
mod parquet;
mod paths;
pub mod read;
mod record;
mod ring;
mod set;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use jiff::civil::DateTime;
use skein_protocol::{
    hash,
    wire::{Starts, limits::STARTS_MAX},
};

pub use error::{CorpusError, Skipped};
pub use record::{Columns, Kind};

use crate::text::{ChatTemplate, Example, Learn, Piece, Tokenizer};
use index::{Index, Terms};
use ring::Ring;
use set::Set;

#[derive(Clone, Debug)]
pub struct Corpus {
    data: Data,
    /// Documents it was made of.
    pub documents: u64,
    /// What was left out, and why.
    pub skipped: Skipped,
}

#[derive(Clone, Debug)]
enum Data {
    Ring(Ring),
    Set(Arc<Set>),
}

/// How a person's data is read.
#[derive(Clone, Debug)]
pub struct Reading {
    pub tokenizer: Tokenizer,
    /// Of the model; nothing: `User: …`, `Assistant: …`.
    pub template: Option<ChatTemplate>,
    pub learn: Learn,
    /// The present, for templates that write a date. One for a whole run, or its samples would change overnight.
    pub now: DateTime,
    /// What all records have to be; nothing: whatever the first one is.
    pub kind: Option<Kind>,
    pub columns: Columns,
    /// Leaves out what cannot be used and counts it, rather than stopping at the first.
    pub skip_bad: bool,
}

impl Reading {
    /// As the model reads that has both. The date that its template may write is the same at every call.
    pub fn of_model(tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        Reading { template, ..Reading::new(tokenizer, jiff::civil::date(2026, 1, 1).at(0, 0, 0, 0)) }
    }

    pub fn new(tokenizer: Tokenizer, now: DateTime) -> Self {
        Reading {
            tokenizer,
            template: None,
            learn: Learn::default(),
            now,
            kind: None,
            columns: Columns::new(),
            skip_bad: false,
        }
    }
}

/// One micro-batch: `[micro_batch, sequence]` tokens and, for each, the token that follows it, or
/// [`IGNORE`](skein_pipeline::exact::IGNORE) where nothing is learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    pub tokens: Vec<u32>,
    pub labels: Vec<u32>,
    /// For each sequence where its records begin, ascending, the first at 0: no token looks back beyond the begin of its record.
    /// Padding counts as a record, but in micro-batches of more sequences than [`STARTS_MAX`].
    pub starts: Vec<Vec<u32>>,
}

impl Records {
    /// As engines and frames take them, of sequences of so many tokens. Packing leaves no more than a frame carries.
    pub fn starts_of(&self, sequence: usize) -> Starts {
        Starts::of_sequences(self.starts.iter().map(Vec::as_slice), sequence)
    }
}

/// Places within one sequence of a micro-batch at which records may begin.
fn starts_max(micro_batch: usize) -> usize {
    STARTS_MAX / micro_batch.max(1)
}

/// What there is to learn from within a sequence, and what is not used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub records: u64,
    pub tokens: u64,
    /// Of the tokens those that are learned.
    pub learned: u64,
    /// Records that are longer than the sequence and lose their end.
    pub cut: u64,
    /// Records with nothing to learn as far as the sequence reaches: they are not used.
    pub beyond: u64,
    pub duplicates: u64,
    pub skipped: Skipped,
}

/// How much is kept apart from what is learned, to measure with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HoldOut {
    /// 0 to 1.
    Share(f64),
    /// Records, or pieces of a text.
    Count(u64),
}

impl Corpus {
    /// At least `bytes_min` bytes of fables, equal for equal seeds.
    pub fn fables(seed: u64, bytes_min: usize) -> Corpus {
        let (text, documents) = fables::expand(seed, bytes_min);
        Corpus::ring(text.into_bytes(), documents, Skipped::default())
    }

    /// One text as it is.
    pub fn from_text(text: &str) -> Corpus {
        Corpus::ring(text.as_bytes().to_vec(), 1, Skipped::default())
    }

    fn ring(bytes: Vec<u8>, documents: u64, skipped: Skipped) -> Corpus {
        Corpus { data: Data::Ring(Ring::new(bytes)), documents, skipped }
    }

    /// Everything under `paths` as bytes: `.txt` and `.md` as plain text, `.jsonl` by its `text` fields, folders as all of these.
    ///
    /// # Errors
    /// See [`CorpusError`]: nothing readable, nothing usable, or bytes that are no UTF-8.
    pub fn read(paths: &[PathBuf]) -> Result<Corpus, CorpusError> {
        read::read(paths)
    }

    /// Everything under `paths`, files, folders and patterns, as records of the kind that they are. Each is read and tokenized
    /// once here, and again when a sample needs it.
    ///
    /// # Errors
    /// See [`CorpusError`]: the first record that cannot be used, unless they are skipped; or nothing is left.
    pub fn open(paths: &[PathBuf], reading: Reading) -> Result<Corpus, CorpusError> {
        let terms = Terms { columns: reading.columns.clone(), kind: reading.kind, skip_bad: reading.skip_bad };
        let index = Index::build(paths, &terms)?;
        if reading.tokenizer.is_bytes() && index.kind == Kind::Text {
            return Corpus::joined(&index);
        }
        let documents = index.seen;
        let set = Set::new(index, reading)?;
        let skipped = set.skipped.clone();
        Ok(Corpus { data: Data::Set(Arc::new(set)), documents, skipped })
    }

    /// The texts of an index in one ring, as [`Corpus::read`] joins them.
    fn joined(index: &Index) -> Result<Corpus, CorpusError> {
        let (mut bytes, mut text) = (Vec::new(), String::new());
        let mut documents = 0;
        for entry in &index.entries {
            text.push_str(&index.read(entry)?.plain());
            if entry.is_end {
                bytes.extend_from_slice(text.trim_matches(['\n', '\r']).as_bytes());
                bytes.extend_from_slice(read::GAP);
                documents += 1;
                text.clear();
            }
        }
        bytes.extend_from_slice(text.as_bytes());
        Ok(Corpus::ring(bytes, documents, index.skipped.clone()))
    }

    /// Tokens of one pass.
    pub fn len(&self) -> u64 {
        match &self.data {
            Data::Ring(ring) => ring.len(),
            Data::Set(set) => set.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Micro-batches of `epochs` passes; the last may reach into the next pass. Packed records fill a number of sequences that
    /// depends on their order, and so on the seed; and on `micro_batch` where they are so short that a frame could not name all.
    pub fn micro_batches(&self, seed: u64, epochs: u64, micro_batch: usize, sequence: usize) -> u64 {
        let samples = match &self.data {
            Data::Ring(ring) => ring.samples(sequence).saturating_mul(epochs),
            Data::Set(set) => set.samples(seed, epochs, sequence, starts_max(micro_batch)),
        };
        samples.div_ceil(micro_batch.max(1) as u64)
    }

    /// The `index`-th micro-batch of a seed: samples `index * micro_batch ..`.
    ///
    /// # Errors
    /// A file is gone or has changed, or no record has anything to learn within a sequence. A corpus in memory gives none.
    ///
    /// # Panics
    /// If the corpus is empty; reading never makes one.
    pub fn records(&self, seed: u64, index: u64, micro_batch: usize, sequence: usize) -> Result<Records, CorpusError> {
        let mut records = Records {
            tokens: Vec::with_capacity(micro_batch * sequence),
            labels: Vec::with_capacity(micro_batch * sequence),
            starts: Vec::with_capacity(micro_batch),
        };
        for i in 0..micro_batch as u64 {
            let n = index.wrapping_mul(micro_batch as u64).wrapping_add(i);
            match &self.data {
                Data::Ring(ring) => {
                    let ids = ring.sample(seed, n, sequence);
                    records.tokens.extend_from_slice(&ids[..sequence]);
                    records.labels.extend_from_slice(&ids[1..]);
                    records.starts.push(vec![0]);
                }
                Data::Set(set) => {
                    let row = set.sample(seed, n, sequence, starts_max(micro_batch))?;
                    records.tokens.extend(row.tokens);
                    records.labels.extend(row.labels);
                    records.starts.push(row.starts);
                }
            }
        }
        Ok(records)
    }

    /// What there is, for a model that reads `sequence` tokens at a time.
    pub fn summary(&self, sequence: usize) -> Summary {
        match &self.data {
            Data::Ring(ring) => Summary {
                records: self.documents,
                tokens: ring.len(),
                learned: ring.len(),
                skipped: self.skipped.clone(),
                ..Summary::default()
            },
            Data::Set(set) => set.summary(sequence),
        }
    }

    /// Splits off what is never learned from. Which records that are follows from their content and the seed alone: the same
    /// ones whatever their order, and equal records stay together. What is learned, what is held out, and up to which mark that is: see
    /// [`hold_out_until`](Corpus::hold_out_until).
    ///
    /// # Errors
    /// One of the two would be empty.
    pub fn hold_out(&self, held: HoldOut, seed: u64) -> Result<(Corpus, Corpus, u64), CorpusError> {
        let mut marks: Vec<u64> = match &self.data {
            Data::Ring(ring) => ring.keys(),
            Data::Set(set) => set.keys().collect(),
        };
        marks.iter_mut().for_each(|key| *key = mark(*key, seed));
        marks.sort_unstable();
        let pieces = marks.len() as u64;
        let count = match held {
            HoldOut::Share(share) => (share.clamp(0.0, 1.0) * pieces as f64).round() as usize,
            HoldOut::Count(count) => usize::try_from(count).unwrap_or(usize::MAX).min(marks.len()),
        };
        let Some(last) = count.checked_sub(1).map(|at| marks[at]) else {
            return Err(CorpusError::HoldOut { pieces });
        };
        let (learned, held) = self.hold_out_until(last, seed)?;
        Ok((learned, held, last))
    }

    /// The same cut again, also where there is more by now: what was learned is never held out, nor the other way round.
    ///
    /// # Errors
    /// One of the two would be empty.
    pub fn hold_out_until(&self, last: u64, seed: u64) -> Result<(Corpus, Corpus), CorpusError> {
        let (learned, held) = (self.part(|key| mark(key, seed) > last), self.part(|key| mark(key, seed) <= last));
        match learned.is_empty() || held.is_empty() {
            true => Err(CorpusError::HoldOut { pieces: learned.documents + held.documents }),
            false => Ok((learned, held)),
        }
    }

    fn part(&self, keep: impl Fn(u64) -> bool) -> Corpus {
        let (data, documents) = match &self.data {
            Data::Ring(ring) => (Data::Ring(ring.part(keep)), self.documents),
            Data::Set(set) => {
                let part = set.part(keep);
                let records = part.records() as u64;
                (Data::Set(Arc::new(part)), records)
            }
        };
        Corpus { data, documents, skipped: self.skipped.clone() }
    }

    /// Records one by one in the order of the files, not packed and whole; of a ring its pieces of `piece` tokens.
    pub fn examples(&self, piece: usize) -> Box<dyn Iterator<Item = Result<Example, CorpusError>> + '_> {
        match &self.data {
            Data::Ring(ring) => Box::new(ring.stretches(piece).map(|bytes| {
                let tokens: Vec<u32> = bytes.iter().map(|byte| u32::from(*byte)).collect();
                Ok(Example { learned: vec![true; tokens.len()], tokens })
            })),
            Data::Set(set) => Box::new(set.examples()),
        }
    }

    /// How many [`examples`](Corpus::examples) there are.
    pub fn example_count(&self, piece: usize) -> u64 {
        match &self.data {
            Data::Ring(ring) => ring.stretches(piece).count() as u64,
            Data::Set(set) => set.records() as u64,
        }
    }

    /// The first record as the model sees it, up to `bytes_max` bytes: what is learned, and what is only read.
    ///
    /// # Errors
    /// Its file is gone or has changed.
    pub fn pieces(&self, bytes_max: usize) -> Result<Vec<Piece>, CorpusError> {
        match &self.data {
            Data::Ring(ring) => Ok(vec![Piece { text: ring.preview(bytes_max).into(), learned: true }]),
            Data::Set(set) => set.pieces(bytes_max),
        }
    }

    /// The beginning, as people wrote it: at most `bytes_max` bytes, cut between characters.
    pub fn preview(&self, bytes_max: usize) -> String {
        match &self.data {
            Data::Ring(ring) => ring.preview(bytes_max).to_string(),
            Data::Set(set) => set.plain(bytes_max),
        }
    }

    /// Share of the words of `texts` that are among those of the first `bytes_max` bytes, 0 to 1; nothing where they have no whole
    /// word. A word is letters that stand together, in whatever case. The last of a text is none unless something follows it.
    pub fn known_words(&self, texts: &[&str], bytes_max: usize) -> Option<f64> {
        let head = self.preview(bytes_max).to_lowercase();
        let known: BTreeSet<&str> = head.split(|c: char| !c.is_alphabetic()).collect();
        let whole =
            |text: &&str| text.rfind(|c: char| !c.is_alphabetic()).map_or("", |end| &text[..end]).to_lowercase();
        let whole = texts.iter().map(whole).collect::<Vec<_>>().join(" ");
        let words = whole.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
        let (all, of_these) =
            words.fold((0u32, 0u32), |(all, of_these), word| (all + 1, of_these + u32::from(known.contains(word))));
        (all > 0).then(|| f64::from(of_these) / f64::from(all))
    }
}

/// Where a record comes in the order that decides who is held out.
fn mark(key: u64, seed: u64) -> u64 {
    hash::mix(key ^ hash::mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)))
}

#[cfg(test)]
mod tests;
