//! Data for the machine: the n-th micro-batch of a feeder as token ids and labels, u32 little endian.
//!
//! In: a corpus and the manifest's shapes. Out: the bytes of a micro-batch and where its records begin, or the end. It knows no file and no peer.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use skein_protocol::{Manifest, wire::Starts};

use crate::{corpus::Corpus, home::RunFolder};

/// What a feeder feeds.
#[derive(Clone, Debug)]
pub struct Data {
    pub corpus: Arc<Corpus>,
    /// Passes over the data; nothing: without end.
    pub epochs: Option<u64>,
}

pub struct Feed {
    data: Data,
    seed: u64,
    micro_batch: usize,
    sequence: usize,
    end: Option<u64>,
}

impl Feed {
    pub fn new(data: Data, manifest: &Manifest) -> Self {
        let (micro_batch, sequence) = (manifest.train.micro_batch as usize, manifest.train.sequence as usize);
        let seed = manifest.train.seed;
        let end = data.epochs.map(|epochs| data.corpus.micro_batches(seed, epochs, micro_batch, sequence));
        Feed { data, seed, micro_batch, sequence, end }
    }

    /// Tokens, labels and starts of the `index`-th micro-batch; nothing past the end, and where the data is there no more.
    pub fn records(&self, index: u64) -> Option<(Bytes, Bytes, Starts)> {
        if self.end.is_some_and(|end| index >= end) {
            return None;
        }
        let records = self.data.corpus.records(self.seed, index, self.micro_batch, self.sequence);
        let records = records.inspect_err(|error| tracing::error!(%error, "the data cannot be read any more")).ok()?;
        Some((bytes_of(&records.tokens), bytes_of(&records.labels), records.starts_of(self.sequence)))
    }
}

/// Token ids as they travel.
pub fn bytes_of(tokens: &[u32]) -> Bytes {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>().into()
}

/// Where a restart feeds on: a number in the run's folder. Written often and never synced: losing it feeds some data again.
/// All clones are one mark.
#[derive(Clone, Debug)]
pub struct Mark {
    path: PathBuf,
    written: Arc<Mutex<Option<u64>>>,
}

impl Mark {
    pub fn of(folder: &RunFolder) -> Self {
        Mark { path: folder.path.join("fed"), written: Arc::default() }
    }

    pub fn read(&self) -> u64 {
        std::fs::read_to_string(&self.path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Whether something else is noted.
    pub fn is_news(&self, next: u64) -> bool {
        *self.written() != Some(next)
    }

    fn written(&self) -> MutexGuard<'_, Option<u64>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self, next: u64) {
        if !self.is_news(next) {
            return;
        }
        let beside = self.path.with_extension("new");
        let done = std::fs::write(&beside, format!("{next}\n")).and_then(|()| std::fs::rename(&beside, &self.path));
        match done {
            Ok(()) => *self.written() = Some(next),
            Err(error) => tracing::debug!(%error, "the position in the data was not noted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use skein_pipeline::exact::IGNORE;

    use super::*;
    use crate::{corpus::Reading, text::Tokenizer};

    #[test]
    fn the_mark_is_what_was_written_last_and_0_before() {
        let dir = tempfile::tempdir().unwrap();
        let mark = Mark { path: dir.path().join("fed"), written: Arc::default() };
        assert_eq!(mark.read(), 0);
        mark.write(7);
        mark.write(9);
        assert_eq!(mark.read(), 9);
    }

    #[test]
    fn packed_records_come_with_the_places_at_which_they_begin() {
        let dir = tempfile::tempdir().unwrap();
        let line = |i: u32| format!("{{\"prompt\":\"ask {i}\",\"completion\":\"say {i}\"}}\n");
        std::fs::write(dir.path().join("a.jsonl"), (0..40).map(line).collect::<String>()).unwrap();
        let reading = Reading::of_model(Tokenizer::bytes(), None);
        let corpus = Corpus::open(&[dir.path().to_path_buf()], reading).unwrap();
        let manifest = super::super::sample_manifest(2);
        let (micro_batch, sequence) = (manifest.train.micro_batch as usize, 64);
        let mut manifest = manifest;
        manifest.train.sequence = sequence as u32;
        let data = Data { corpus: Arc::new(corpus.clone()), epochs: None };
        let (tokens, _, starts) = Feed::new(data, &manifest).records(3).unwrap();
        let records = corpus.records(manifest.train.seed, 3, micro_batch, sequence).unwrap();
        assert_eq!((starts.check(micro_batch * sequence, sequence), starts.is_empty()), (Ok(()), false));
        let within = records.starts.iter().map(|starts| starts.len() - 1).sum::<usize>();
        assert_eq!(starts.places().len(), within);
        for &at in starts.places() {
            let at = at as usize;
            let padded = records.labels[at..(at / sequence + 1) * sequence].iter().all(|label| *label == IGNORE);
            assert!(padded || tokens[4 * at..].iter().step_by(4).take(3).eq(b"ask"), "a record begins at {at}");
        }
        let data = Data { corpus: Arc::new(Corpus::fables(1, 9000)), epochs: None };
        assert!(Feed::new(data, &manifest).records(3).unwrap().2.is_empty(), "a ring is not packed");
    }

    #[test]
    fn tokens_travel_little_endian() {
        assert_eq!(bytes_of(&[1, 256]), &[1, 0, 0, 0, 0, 1, 0, 0][..]);
    }
}
