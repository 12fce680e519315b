//! Something that takes a while: a bar or spinner on a terminal, a line every ten seconds elsewhere. In: how far it is.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    out::{Mark, Out},
    show::{Bytes, Count, Span},
};

const LINE_EVERY: Duration = Duration::from_secs(10);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Things,
}

pub struct Progress {
    out: Out,
    label: String,
    unit: Unit,
    total: u64,
    began: Instant,
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
}

impl Progress {
    /// `total` 0: not known; then it is a spinner.
    pub fn start(out: &Out, label: &str, total: u64, unit: Unit) -> Progress {
        let bar = out.style().progress.then(|| {
            let bar = out.bars().add(if total == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(total) });
            let template = match (total, unit) {
                (0, _) => "{spinner} {msg}  {elapsed}",
                (_, Unit::Bytes) => "{spinner} {msg}  {bytes} / {total_bytes}  {wide_bar}  {bytes_per_sec}  {eta}",
                (_, Unit::Things) => "{spinner} {msg}  {pos} / {len}  {wide_bar}  {eta}",
            };
            bar.set_style(ProgressStyle::with_template(template).expect("templates are fixed"));
            bar.set_message(label.to_string());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let began = Instant::now();
        Progress { out: out.clone(), label: label.into(), unit, total, began, bar, last_line: Mutex::new(began) }
    }

    /// Where it stands.
    pub fn at(&self, position: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(position),
            None => {
                let mut last = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    let sentence = format!("{}: {}", self.label, self.amount(position, self.began.elapsed()));
                    self.out.say(Mark::Note, &sentence, &[]);
                }
            }
        }
    }

    /// `9 of 20, 3 min left`, as far as it is known.
    fn amount(&self, position: u64, took: Duration) -> String {
        let written = |amount: u64| match self.unit {
            Unit::Bytes => Bytes(amount).to_string(),
            Unit::Things => Count(amount).to_string(),
        };
        if self.total == 0 {
            return written(position);
        }
        let left = match position {
            0 => String::new(),
            done => format!(", {} left", Span(took.mul_f64(self.total.saturating_sub(done) as f64 / done as f64))),
        };
        format!("{} of {}{left}", written(position), written(self.total))
    }

    /// The bar makes room for a last line.
    pub fn done(self, sentence: &str) {
        self.clear();
        self.out.done(sentence);
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            self.out.bars().remove(bar);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
