//! Records as a model learns them, packed into sequences. In: an [`Index`] of records, a tokenizer and a chat template. Out:
//! the `n`-th sequence of a seed, as a pure function of both.
//!
//! Only the lengths of the records are kept in memory; their tokens are made again when a sequence needs them.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use skein_pipeline::exact::IGNORE;

use super::{
    Reading, Summary,
    error::{CorpusError, Skipped},
    index::{Entry, Index},
    order::Order,
    pack::{self, BLOCK, Size, Stretch},
    record::{Kind, Record},
};
use crate::text::{ChatTemplate, Example, Learn, Piece, chat};

pub(super) struct Set {
    index: Arc<Index>,
    reading: Arc<Reading>,
    template: ChatTemplate,
    records: Vec<(Entry, Size)>,
    /// Records whose conversation has nothing to learn, and the like.
    pub skipped: Skipped,
    plans: Mutex<Plans>,
}

/// What a plan depends on besides the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packing {
    seed: u64,
    sequence: usize,
    /// Places within a sequence at which records may begin.
    starts_max: usize,
}

/// What is known of the epochs under one packing.
#[derive(Debug, Default)]
struct Plans {
    of: Option<Packing>,
    /// Sequences up to the end of each epoch.
    ends: Vec<u64>,
    /// Of one epoch: sequences up to the end of each block.
    epoch: u64,
    blocks: Vec<u64>,
    /// Of one block: its epoch, its number, and its packs.
    block: Option<(u64, u64, Packs)>,
}

type Packs = Arc<Vec<Vec<Stretch>>>;

impl Plans {
    fn begin(&mut self, packing: Packing) {
        if self.of != Some(packing) {
            *self = Plans { of: Some(packing), epoch: u64::MAX, ..Plans::default() };
        }
    }
}

impl Set {
    /// Tokenizes every record once, for its length.
    ///
    /// # Errors
    /// A record that the template refuses or that cannot be tokenized, unless they are skipped; or none is left.
    pub fn new(index: Index, reading: Reading) -> Result<Set, CorpusError> {
        let template = reading.template.clone().unwrap_or_else(ChatTemplate::plain);
        let mut set = Set {
            skipped: index.skipped.clone(),
            index: Arc::new(index),
            reading: Arc::new(reading),
            template,
            records: vec![],
            plans: Mutex::default(),
        };
        for (entry, size) in set.index.entries.iter().zip(set.sizes()) {
            match size {
                Ok(Some(size)) => set.records.push((entry.clone(), size)),
                Ok(None) => set.skipped.add("with nothing to learn"),
                Err(error) if set.reading.skip_bad => set.skipped.add(reason(&error)),
                Err(error) => return Err(error),
            }
        }
        if set.records.is_empty() {
            return Err(CorpusError::NothingLearned { records: set.index.seen, sequence: None });
        }
        Ok(set)
    }

    /// In the order of the index, by all of this computer's cores. It ends early at an error that will be the result: then what
    /// comes before it may be missing.
    fn sizes(&self) -> Vec<Result<Option<Size>, CorpusError>> {
        let entries = &self.index.entries;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let share = entries.len().div_ceil(cores).max(1);
        let failed = AtomicBool::new(false);
        let sizes_of = |entries: &[Entry]| {
            let mut sizes = Vec::with_capacity(entries.len());
            for entry in entries {
                if failed.load(Ordering::Relaxed) {
                    break;
                }
                sizes.push(self.size(entry));
                if !self.reading.skip_bad && sizes.last().is_some_and(Result::is_err) {
                    failed.store(true, Ordering::Relaxed);
                }
            }
            sizes
        };
        thread::scope(|scope| {
            let workers: Vec<_> = entries.chunks(share).map(|entries| scope.spawn(|| sizes_of(entries))).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("a size is computed without panics")).collect()
        })
    }

    fn size(&self, entry: &Entry) -> Result<Option<Size>, CorpusError> {
        match self.example(entry) {
            Ok(example) => Ok(Size::of(&example.learned)),
            Err(CorpusError::Chat { source: chat::ChatError::NothingLearned, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn example(&self, entry: &Entry) -> Result<Example, CorpusError> {
        let (path, line) = (self.index.path(entry), entry.line);
        let Reading { tokenizer, learn, now, .. } = &*self.reading;
        let text = |source| CorpusError::Text { path: path.into(), line, source };
        match self.index.read(entry)? {
            Record::Text(words) => Example::text(tokenizer, &words, entry.is_end).map_err(text),
            Record::Completion { prompt, completion } => {
                let mut example = Example::completion(tokenizer, &prompt, &completion).map_err(text)?;
                if *learn == Learn::Everything {
                    example.learned.fill(true);
                }
                Ok(example)
            }
            Record::Conversation(messages) => chat::example(tokenizer, &self.template, &messages, *learn, *now)
                .map_err(|source| CorpusError::Chat { path: path.into(), line, source }),
        }
    }

    /// Every record that has something to learn, in the order of the files.
    pub fn examples(&self) -> impl Iterator<Item = Result<Example, CorpusError>> + '_ {
        self.records.iter().map(|(entry, _)| self.example(entry))
    }

    pub fn records(&self) -> usize {
        self.records.len()
    }

    /// Whether a record that is longer than a sequence goes on in the next.
    fn splits(&self) -> bool {
        self.index.kind == Kind::Text
    }

    pub fn len(&self) -> u64 {
        self.records.iter().map(|(_, size)| u64::from(size.tokens)).sum()
    }

    /// Sequences of `epochs` passes.
    pub fn samples(&self, seed: u64, epochs: u64, sequence: usize, starts_max: usize) -> u64 {
        let packing = Packing { seed, sequence, starts_max };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.begin(packing);
        while (plans.ends.len() as u64) < epochs {
            if self.next_epoch(&mut plans, packing) == 0 {
                return 0;
            }
        }
        epochs.checked_sub(1).map_or(0, |last| plans.ends[last as usize])
    }

    /// Tokens, labels and starts of the `n`-th sequence. Within it, records begin at `starts_max` places at most.
    ///
    /// # Errors
    /// A file has changed, or nothing can be learned within a sequence.
    pub fn sample(&self, seed: u64, n: u64, sequence: usize, starts_max: usize) -> Result<Row, CorpusError> {
        let (block, nth) = self.locate(Packing { seed, sequence, starts_max }, n)?;
        let mut row = Row::default();
        for stretch in &block[nth] {
            let example = self.example(&self.records[stretch.record as usize].0)?;
            row.push(&example, stretch);
        }
        row.pad(sequence, starts_max, self.reading.tokenizer.ends().first().copied().unwrap_or(0));
        Ok(row)
    }

    /// The block that the `n`-th sequence is in, and its place there.
    fn locate(&self, packing: Packing, n: u64) -> Result<(Packs, usize), CorpusError> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.begin(packing);
        while plans.ends.last().is_none_or(|end| *end <= n) {
            if self.next_epoch(&mut plans, packing) == 0 {
                return Err(CorpusError::NothingLearned {
                    records: self.records.len() as u64,
                    sequence: Some(packing.sequence),
                });
            }
        }
        let epoch = plans.ends.partition_point(|end| *end <= n) as u64;
        if plans.epoch != epoch {
            plans.blocks = self.blocks(packing, epoch);
            plans.epoch = epoch;
        }
        let begin = epoch.checked_sub(1).map_or(0, |before| plans.ends[before as usize]);
        let nth = n - begin;
        let block = plans.blocks.partition_point(|end| *end <= nth) as u64;
        let nth = nth - block.checked_sub(1).map_or(0, |before| plans.blocks[before as usize]);
        let packs = match &plans.block {
            Some((of, at, packs)) if (*of, *at) == (epoch, block) => packs.clone(),
            _ => {
                let packs = Arc::new(self.plan(&self.order(packing.seed, epoch), block, packing));
                plans.block = Some((epoch, block, packs.clone()));
                packs
            }
        };
        Ok((packs, nth as usize))
    }

    /// Plans one more epoch; how many sequences it has.
    fn next_epoch(&self, plans: &mut Plans, packing: Packing) -> u64 {
        plans.epoch = plans.ends.len() as u64;
        plans.blocks = self.blocks(packing, plans.epoch);
        let count = plans.blocks.last().copied().unwrap_or(0);
        plans.ends.push(plans.ends.last().unwrap_or(&0) + count);
        count
    }

    fn blocks(&self, packing: Packing, epoch: u64) -> Vec<u64> {
        let order = self.order(packing.seed, epoch);
        let blocks = (self.records.len() as u64).div_ceil(BLOCK);
        let counts = (0..blocks).map(|block| self.plan(&order, block, packing).len() as u64);
        counts
            .scan(0, |sum, count| {
                *sum += count;
                Some(*sum)
            })
            .collect()
    }

    fn order(&self, seed: u64, epoch: u64) -> Order {
        Order::new(seed, epoch, self.records.len() as u64)
    }

    fn plan(&self, order: &Order, block: u64, packing: Packing) -> Vec<Vec<Stretch>> {
        let until = (self.records.len() as u64).min((block + 1) * BLOCK);
        let records = (block * BLOCK..until).map(|n| {
            let record = order.at(n) as usize;
            (record as u32, self.records[record].1)
        });
        pack::plan(records, packing.sequence, packing.starts_max, self.splits())
    }

    pub fn summary(&self, sequence: usize) -> Summary {
        let mut summary =
            Summary { duplicates: self.index.duplicates, skipped: self.skipped.clone(), ..Summary::default() };
        for (_, size) in &self.records {
            if !size.reaches(sequence) {
                summary.beyond += 1;
                continue;
            }
            summary.records += 1;
            summary.tokens += u64::from(size.tokens);
            summary.learned += u64::from(size.learned);
            summary.cut += u64::from(!self.splits() && size.tokens as usize > sequence.saturating_add(1));
        }
        summary
    }

    /// The first record as the model sees it.
    pub fn pieces(&self, bytes_max: usize) -> Result<Vec<Piece>, CorpusError> {
        let example = self.example(&self.records[0].0)?;
        Ok(example.pieces(&self.reading.tokenizer, bytes_max))
    }

    /// What people wrote, from the beginning; what cannot be read again is left out.
    pub fn plain(&self, bytes_max: usize) -> String {
        let mut text = String::new();
        for (entry, _) in &self.records {
            let Ok(record) = self.index.read(entry) else { continue };
            text.push_str(&record.plain());
            if text.len() >= bytes_max {
                break;
            }
            if entry.is_end {
                text.push_str("\n\n");
            }
        }
        text.truncate(text.floor_char_boundary(bytes_max));
        text
    }

    pub fn keys(&self) -> impl Iterator<Item = u64> {
        self.records.iter().map(|(entry, _)| entry.key)
    }

    /// The records whose keys `keep` takes.
    pub fn part(&self, keep: impl Fn(u64) -> bool) -> Set {
        Set {
            index: self.index.clone(),
            reading: self.reading.clone(),
            template: self.template.clone(),
            records: self.records.iter().filter(|(entry, _)| keep(entry.key)).cloned().collect(),
            skipped: self.skipped.clone(),
            plans: Mutex::default(),
        }
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Set({} records of {} files)", self.records.len(), self.index.files.len())
    }
}

fn reason(error: &CorpusError) -> &'static str {
    match error {
        CorpusError::Chat { .. } => "refused by the chat template",
        CorpusError::Text { .. } => "not to be tokenized",
        _ => "not to be read again",
    }
}

/// One sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub tokens: Vec<u32>,
    pub labels: Vec<u32>,
    pub starts: Vec<u32>,
}

impl Row {
    fn push(&mut self, example: &Example, stretch: &Stretch) {
        let from = stretch.from as usize;
        let until = from + stretch.len as usize;
        self.starts.push(self.tokens.len() as u32);
        self.tokens.extend(&example.tokens[from..until]);
        self.labels.extend((from + 1..=until).map(|next| match example.learned.get(next) {
            Some(true) => example.tokens[next],
            _ => IGNORE,
        }));
    }

    /// Where there is room for it, the padding is a record: it need not be compared with what is before it.
    fn pad(&mut self, sequence: usize, starts_max: usize, token: u32) {
        if self.tokens.len() < sequence {
            if self.starts.len() <= starts_max {
                self.starts.push(self.tokens.len() as u32);
            }
            self.tokens.resize(sequence, token);
            self.labels.resize(sequence, IGNORE);
        }
    }
}
