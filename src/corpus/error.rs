//! Why data cannot be learned from, and what was left out of it.

use std::{collections::BTreeMap, fmt, io, path::PathBuf};

use crate::text::{ChatError, TextError};

#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{pattern} is no pattern for paths: {reason}")]
    Pattern { pattern: String, reason: String },
    #[error("{} is not UTF-8: byte {byte:#04x} at {offset}", path.display())]
    NotUtf8 {
        path: PathBuf,
        byte: u8,
        offset: u64,
        /// From 1.
        line: u64,
        guess: &'static str,
    },
    #[error("{}:{line} cannot be used: {reason}", path.display())]
    Record { path: PathBuf, line: u64, reason: String },
    #[error("{}:{line} has none of the known columns; it has {}", path.display(), found.join(", "))]
    Columns { path: PathBuf, line: u64, found: Vec<String> },
    #[error("{}:{line} is {got}, and the records before it are {before}: all must be of one kind", path.display())]
    Mixed { path: PathBuf, line: u64, got: &'static str, before: &'static str },
    #[error("{}:{line} cannot be read as a conversation: {source}", path.display())]
    Chat { path: PathBuf, line: u64, source: ChatError },
    #[error("{}:{line} cannot be tokenized: {source}", path.display())]
    Text { path: PathBuf, line: u64, source: TextError },
    #[error("{} is another file than when it was first read: its record at {line} has changed", path.display())]
    Changed { path: PathBuf, line: u64 },
    #[error("{paths} holds nothing to learn from")]
    Empty { paths: String, files: u64, records: u64, skipped: Skipped },
    #[error("none of the {records} records has anything to learn{}", within(sequence))]
    NothingLearned {
        records: u64,
        /// Where only the beginning of each is read.
        sequence: Option<usize>,
    },
    #[error("{pieces} records cannot be split into some to learn from and some to hold out")]
    HoldOut { pieces: u64 },
}

fn within(sequence: &Option<usize>) -> String {
    sequence.map_or(String::new(), |sequence| format!(" within {sequence} tokens"))
}

/// Records that were left out, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped(pub BTreeMap<&'static str, u64>);

impl Skipped {
    pub(super) fn add(&mut self, reason: &'static str) {
        *self.0.entry(reason).or_default() += 1;
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none left out");
        }
        for (i, (reason, count)) in self.0.iter().enumerate() {
            write!(f, "{}{count} {reason}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What a file that is no UTF-8 most likely is, by its first bytes.
pub(super) fn guess(bytes: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 7] = [
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"PAR1", "Parquet"),
        (b"%PDF", "PDF"),
        (b"PK\x03\x04", "zip"),
    ];
    match KNOWN.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        Some((_, name)) => name,
        None if bytes.contains(&0) => "binary data",
        None => "Latin-1 or Windows-1252",
    }
}
