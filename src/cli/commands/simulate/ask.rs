//! `skein simulate SCENARIO`: one question, at one seed or at many.

use std::{
    fmt::Write as _,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};

use skein_simulations::{
    ask::{Far, Watch, ask},
    checker::Line,
    outcome::{Ended, Outcome},
    report::{self, Folder, SimulateDone, SimulateSummary, Summary, Told, quoted},
};

use super::{
    files::{Opened, open, refused},
    folder::{Kind, Place},
    in_parallel,
    progress::{Progress, stopped_by_signal},
};
use crate::cli::{args::Simulate, context::Context, failure::Report};

/// Bytes of events that a report keeps.
const EVENTS_MAX: usize = 512 << 20;

pub fn run(args: &Simulate, context: &Context) -> Result<u8, Report> {
    let opened = open(&args.scenario, &args.ask)?;
    let dir = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("sim-{}", opened.name)));
    let place = Place::claim(&dir, Kind::One, &opened.name, args.force)?;
    let first = opened.document.scenario.simulate.seed;
    let seeds: Vec<u64> = (first..).take(args.ask.seeds.unwrap_or(1) as usize).collect();
    let progress = Progress::start(&context.out, &opened.name, seeds.len(), stopped_by_signal());
    let events = args.events.then(|| Mutex::new(String::new()));
    let outcomes = simulate(&opened, &seeds, None, &progress, events.as_ref())?;
    let (took, stopped) = (progress.took(), progress.is_stopped());
    drop(progress);
    let (outcomes, each): (Vec<Outcome>, Vec<Duration>) = outcomes.into_iter().unzip();
    let told = Told::of(&opened.document, again(args));
    let events = events.map(|events| events.into_inner().unwrap_or_default());
    let folder = Folder::of(&outcomes, &told, events.as_deref());
    let written = place.write(&folder);
    let Some(summary) = Summary::of(&outcomes, &told) else { return Ok(0) };
    // What came of it is said even where no report can be kept.
    if context.out.style().json {
        for (outcome, took) in outcomes.iter().zip(each) {
            context.out.event("SimulateDone", &SimulateDone::of(outcome, took.as_secs_f64()));
        }
        if seeds.len() > 1 {
            context.out.event("SimulateSummary", &SimulateSummary::of(&summary, took.as_secs_f64()));
        }
    } else {
        let page = dir.join("report.html").display().to_string();
        let page = written.is_ok().then_some(page.as_str());
        context.out.print(report::text(&summary, context.out.style().width, page).trim_end());
        summary.broken().iter().for_each(|broken| context.out.warn(broken));
        if written.is_ok() && place.replaces {
            context.out.note("The report that was there is replaced.");
        }
    }
    written?;
    if events.is_some_and(|events| events.len() >= EVENTS_MAX) {
        context.out.warn("events.jsonl was full: its end is missing.");
    }
    if stopped {
        let what = format!(
            "It was stopped: the report holds {} of {} seeds, as far as they came.",
            outcomes.len(),
            seeds.len()
        );
        context.out.warn(&what);
        return Ok(130);
    }
    Ok(if args.check && !summary.good() { 10 } else { 0 })
}

/// Every seed on a core of its own, each with how long it took.
pub fn simulate(
    opened: &Opened,
    seeds: &[u64],
    jobs: Option<usize>,
    progress: &Progress,
    events: Option<&Mutex<String>>,
) -> Result<Vec<(Outcome, Duration)>, Report> {
    let outcomes = in_parallel(seeds, jobs, |number, seed| {
        // What was not begun when it was stopped is no outcome; the first always is.
        if number > 0 && progress.is_stopped() {
            return None;
        }
        let mut watch = Events { watch: progress.watch(number), events: events.filter(|_| number == 0) };
        let began = Instant::now();
        let outcome = ask(&opened.document, &opened.files, *seed, &mut watch);
        Some(outcome.map(|outcome| (outcome, began.elapsed())))
    });
    let outcomes: Vec<(Outcome, Duration)> =
        outcomes.into_iter().flatten().collect::<Result<_, _>>().map_err(refused)?;
    Ok(whole(outcomes))
}

/// Where some were simulated to their ends, those that were stopped would spoil the means.
fn whole(outcomes: Vec<(Outcome, Duration)>) -> Vec<(Outcome, Duration)> {
    let is_whole = |(outcome, _): &(Outcome, Duration)| outcome.ended != Ended::Interrupted;
    if outcomes.iter().any(is_whole) { outcomes.into_iter().filter(is_whole).collect() } else { outcomes }
}

/// Writes the events of the first seed down.
struct Events<'e, W> {
    watch: W,
    events: Option<&'e Mutex<String>>,
}

impl<W: Watch> Watch for Events<'_, W> {
    fn far(&mut self, far: &Far) -> bool {
        self.watch.far(far)
    }

    fn line(&mut self, line: &Line, _: usize) {
        let Some(Ok(mut text)) = self.events.map(Mutex::lock) else { return };
        if text.len() < EVENTS_MAX
            && let Ok(record) = serde_json::to_string(&line.record)
        {
            let _ = writeln!(text, "{record}");
        }
    }
}

/// The command that gives the same again.
fn again(args: &Simulate) -> String {
    let mut command = format!("skein simulate {}", quoted(&args.scenario));
    for change in args.ask.changes() {
        let _ = write!(command, " --set {}", quoted(&change));
    }
    if let Some(seeds) = args.ask.seeds {
        let _ = write!(command, " --seeds {seeds}");
    }
    command
}
