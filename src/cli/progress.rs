//! Something that takes a while: a bar or spinner on a terminal, a line every ten seconds elsewhere. In: how far it is.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    out::{Mark, Out},
    show::{Bytes, Count},
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
        Progress { out: out.clone(), label: label.into(), unit, bar, last_line: Mutex::new(Instant::now()) }
    }

    /// Where it stands.
    pub fn at(&self, position: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(position),
            None => {
                let mut last = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    let amount = match self.unit {
                        Unit::Bytes => Bytes(position).to_string(),
                        Unit::Things => Count(position).to_string(),
                    };
                    self.out.say(Mark::Note, &format!("{}: {amount}", self.label), &[]);
                }
            }
        }
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
