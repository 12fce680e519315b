//! Data for the machine: the n-th micro-batch of a feeder as token ids and labels, u32 little endian.
//!
//! In: a corpus and the manifest's shapes. Out: the bytes of a micro-batch and where its records begin, or the end. It knows no file and no peer.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use skein_pipeline::flow::held_out::HeldOut;
use skein_protocol::{Manifest, wire::Starts};

use crate::{
    corpus::Corpus,
    home::{HomeError, RunFolder},
};

/// What a feeder feeds.
#[derive(Clone, Debug)]
pub struct Data {
    pub corpus: Arc<Corpus>,
    /// Passes over the data; nothing: without end.
    pub epochs: Option<u64>,
    /// What is measured with, and never learned from.
    pub held_out: Option<Arc<Corpus>>,
    /// How that was cut off: a restart goes on with the same cut, or what was learned would be measured with.
    pub cut: Cut,
}

/// Up to which mark records are held out (see [`Corpus::hold_out_until`]); nothing: none are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut(pub Option<u64>);

impl Cut {
    const NAME: &'static str = "held-out";

    /// That of a run that was fed from here before.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn of(folder: &RunFolder) -> Result<Option<Cut>, HomeError> {
        let noted = folder.read(Cut::NAME)?.map(|text| String::from_utf8_lossy(&text).trim().parse().ok());
        // A run that was fed before anything could be held out learned from all of it.
        Ok(noted.map(Cut).or((Mark::of(folder).read() > 0).then_some(Cut(None))))
    }

    /// For the next start.
    ///
    /// # Errors
    /// The disk is full, or may not be written.
    pub fn note(self, folder: &RunFolder) -> Result<(), HomeError> {
        let text = self.0.map_or("none\n".into(), |until| format!("{until}\n"));
        folder.write(Cut::NAME, text.as_bytes())
    }
}

/// Of so many micro-batches one is of data that is held out, where there is such.
const HELD_OUT_EVERY: u64 = 20;

impl Data {
    /// What is learned from, without an end.
    pub fn of(corpus: Corpus) -> Data {
        Data { corpus: Arc::new(corpus), epochs: None, held_out: None, cut: Cut::default() }
    }

    /// Which of the micro-batches are held out.
    pub fn which_held_out(&self) -> HeldOut {
        HeldOut { every: if self.held_out.is_some() { HELD_OUT_EVERY } else { 0 } }
    }
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
        let which = self.data.which_held_out();
        let learned = which.learned_before(index);
        if self.end.is_some_and(|end| learned >= end) {
            return None;
        }
        let (corpus, index) = match &self.data.held_out {
            Some(held_out) if which.is(index) => (held_out, which.before(index)),
            _ => (&self.data.corpus, learned),
        };
        let records = corpus.records(self.seed, index, self.micro_batch, self.sequence);
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
    use crate::{
        corpus::{HoldOut, Reading},
        text::Tokenizer,
    };

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
        let data = Data::of(corpus.clone());
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
        let data = Data::of(Corpus::fables(1, 9000));
        assert!(Feed::new(data, &manifest).records(3).unwrap().2.is_empty(), "a ring is not packed");
    }

    #[test]
    fn the_cut_is_settled_once_and_of_a_run_that_was_fed_before_nothing_is_held_out() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder { name: "run".into(), path: dir.path().into(), run: Default::default() };
        assert_eq!(Cut::of(&folder).unwrap(), None);
        Mark::of(&folder).write(3);
        assert_eq!(Cut::of(&folder).unwrap(), Some(Cut(None)));
        for cut in [Cut(Some(u64::MAX)), Cut(Some(0)), Cut(None)] {
            cut.note(&folder).unwrap();
            assert_eq!(Cut::of(&folder).unwrap(), Some(cut));
        }
    }

    #[test]
    fn what_is_held_out_comes_between_and_what_is_learned_is_as_without_it() {
        let (learned, held, _) = Corpus::fables(1, 9000).hold_out(HoldOut::Share(0.1), 3).unwrap();
        let manifest = super::super::sample_manifest(2);
        let plain = Feed::new(Data { epochs: Some(2), ..Data::of(learned.clone()) }, &manifest);
        let held_out = Some(Arc::new(held.clone()));
        let feed = Feed::new(Data { epochs: Some(2), held_out, ..Data::of(learned) }, &manifest);
        let of_held = Feed::new(Data::of(held), &manifest);
        let (mut index, mut n) = (0, 0);
        while let Some(records) = feed.records(index) {
            let expected = match index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 {
                true => of_held.records(index / HELD_OUT_EVERY),
                false => {
                    n += 1;
                    plain.records(n - 1)
                }
            };
            assert_eq!(Some(records), expected, "{index}");
            index += 1;
        }
        assert!(index > HELD_OUT_EVERY && plain.records(n - 1).is_some() && plain.records(n).is_none());
    }

    #[test]
    fn tokens_travel_little_endian() {
        assert_eq!(bytes_of(&[1, 256]), &[1, 0, 0, 0, 0, 1, 0, 0][..]);
    }
}
