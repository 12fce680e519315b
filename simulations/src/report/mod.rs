//! What a user reads of an [`Outcome`]: pages, charts, tables, sentences. Pure: text and pixels come
//! out, nothing is written here.

mod advice;
mod charts;
mod columns;
mod compare;
mod done;
mod drawing;
mod estimate;
mod explain;
mod frame;
mod numbers;
mod page;
mod pixels;
mod summary;
mod svg;
mod sweep;
mod tables;
mod terminal;

pub use advice::Change;
pub use compare::{Comparison, Difference, compare};
pub use done::{SimulateDone, SimulateSummary};
pub use estimate::{Estimate, student_t};
pub use explain::{Explanation, explain};
pub(crate) use numbers::counted;
pub use numbers::span;
pub use summary::{Expected, Figures, Seed, SeedViolation, Summary, Told, Unreadable, quoted};
pub use sweep::{Point, sweep};
pub use terminal::text;

use charts::Charts;

use crate::outcome::Outcome;

/// The files of a report, by name; a name may lie in a folder of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folder {
    pub files: Vec<(String, Vec<u8>)>,
}

impl Folder {
    /// All of a report at once, of the outcomes of one scenario with different seeds; `events` is kept as it is. Empty where there
    /// is no outcome.
    pub fn of(outcomes: &[Outcome], told: &Told, events: Option<&str>) -> Folder {
        let mut folder = Folder::default();
        let Some(summary) = Summary::of(outcomes, told) else { return folder };
        let Some(charts) = Charts::of(outcomes, &summary) else { return folder };
        let text = outcomes.first().map_or("", |outcome| outcome.text.as_str());
        folder.add("report.html", page::page(&summary, &explain(&summary), &charts, text));
        folder.add("summary.json", summary.write());
        folder.add("series.csv", tables::series(outcomes));
        folder.add("peers.csv", tables::peers(outcomes));
        folder.add("stages.csv", tables::stages(outcomes));
        if let Some(events) = events {
            folder.add("events.jsonl", events);
        }
        let origin = summary.origin();
        folder.add("plots/throughput.png", pixels::png(&[charts.throughput, charts.goodput], &origin));
        folder.add("plots/peers.png", pixels::png(&[charts.peers], &origin));
        folder.add("plots/stages.png", pixels::png(&[charts.stages, charts.busy], &origin));
        folder.add("plots/shares.png", pixels::png(&[charts.shares], &origin));
        folder
    }

    fn add(&mut self, name: &str, bytes: impl Into<Vec<u8>>) {
        self.files.push((name.into(), bytes.into()));
    }

    pub fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|(of, _)| of == name).map(|(_, bytes)| bytes.as_slice())
    }
}
