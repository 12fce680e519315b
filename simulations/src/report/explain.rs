//! What limits a run, and which one change would bring most. In: a summary. Out: sentences and a guessed factor for each change.
//!
//! A change frees a part of one share of the time; if nothing else stood in the way, the same work would be done in what is left,
//! a factor 1 / (1 - freed). But no resource can be busy for more than all of the time (the utilisation law): a stage whose workers
//! are busy for the part u carries at most 1 / u as much. The smaller one counts. It is an estimate; a simulation with the change
//! made is the answer.

use serde::{Deserialize, Serialize};

use super::{
    numbers::{figure, percent, span},
    summary::Summary,
};
use crate::outcome::{Cause, Ended, StageRow};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    pub cause: Cause,
    /// Of the lost time; where computing is the cause, of all time.
    pub share: f64,
    pub sentences: Vec<String>,
    /// What would bring most; nothing where nothing was done or nothing is lost.
    pub change: Option<Change>,
    /// All that were looked at, the best first.
    pub changes: Vec<Change>,
}

/// One thing that somebody could do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub cause: Cause,
    pub what: String,
    /// Estimated throughput with it, over that without: 1 is no gain.
    pub gain: f64,
    /// What would limit it then, where that is known.
    pub then: Option<Cause>,
}

/// Names what binds, and estimates what each change would bring.
pub fn explain(summary: &Summary) -> Explanation {
    let shares = &summary.shares;
    let lost: f64 = Cause::LOSSES.iter().map(|cause| shares.of(*cause)).sum();
    let cause = shares.bottleneck();
    let share = if cause == Cause::Compute {
        shares.computing
    } else {
        shares.lost().iter().find(|(of, _)| *of == cause).map_or(0.0, |(_, share)| *share)
    };
    if shares.computing + lost <= 0.0 {
        let nothing = "No device was there for any time, so nothing can be said about what limits it.".to_string();
        return Explanation { cause, share: 0.0, sentences: vec![nothing], change: None, changes: Vec::new() };
    }
    if let Ended::Stuck { stage, since_s, why } = &summary.ended {
        // A mean over the time before and after the stop says nothing of either.
        let sentences = vec![
            stopped(*stage, *since_s, why),
            format!("Until the end {}", lower(&where_time_goes(summary, cause, share, lost))),
            "No change is estimated: what would bring more is not known of a run that stopped.".into(),
        ];
        return Explanation { cause, share, sentences, change: None, changes: Vec::new() };
    }
    let mut changes: Vec<Change> = Cause::LOSSES
        .into_iter()
        .chain((cause == Cause::Compute).then_some(Cause::Compute))
        .filter(|of| shares.of(*of) > 0.0)
        .map(|of| change(summary, of))
        .collect();
    changes.sort_by(|a, b| b.gain.total_cmp(&a.gain).then(a.cause.cmp(&b.cause)));
    let best = changes.first().filter(|change| change.gain > 1.005).cloned();
    let mut sentences = vec![where_time_goes(summary, cause, share, lost)];
    sentences.push(why(summary, cause));
    sentences.push(match &best {
        Some(change) => format!(
            "One change would bring most: {}. Estimate: {} as many tokens/s{}. Simulate it to know.",
            change.what,
            times(change.gain),
            change.then.map_or(String::new(), |then| format!("; then {} would limit", then.name()))
        ),
        None => {
            "No single change that was looked at would bring much: what is left of the lost time is small, or bound by \
                 something else at once. This is an estimate."
                .into()
        }
    });
    Explanation { cause, share, sentences, change: best, changes }
}

fn stopped(stage: Option<u16>, since_s: f64, why: &str) -> String {
    let why = why.trim_end_matches('.');
    match stage {
        Some(stage) => {
            format!("Training stopped: stage {stage} has nobody since {} of simulated time ({why}).", span(since_s))
        }
        None => format!("Training stopped: nothing was completed since {} of simulated time ({why}).", span(since_s)),
    }
}

fn times(gain: f64) -> String {
    format!("{gain:.2} times")
}

fn where_time_goes(summary: &Summary, cause: Cause, share: f64, lost: f64) -> String {
    if cause == Cause::Compute {
        return format!(
            "Compute limits: devices spent {} of their time on work that counts, and lost {}.",
            percent(summary.shares.computing),
            percent(lost)
        );
    }
    let next = summary.shares.lost().into_iter().find(|(of, part)| *of != cause && *part >= 0.005);
    let next = next.map_or(String::new(), |(of, part)| format!("; next is {} with {}", of.name(), percent(part)));
    format!(
        "{} limits: devices lost {} of their time, and {} of that went to {}{next}.",
        capital(cause.name()),
        percent(lost),
        percent(share),
        meaning(cause)
    )
}

fn meaning(cause: Cause) -> &'static str {
    match cause {
        Cause::Compute => "computing",
        Cause::Upload => "waiting for uplinks that could not send faster",
        Cause::Download => "waiting for data that downlinks could not take faster",
        Cause::Latency => "waiting for answers with no link full, since only so much may be in flight",
        Cause::Imbalance => "waiting for another stage that is slower",
        Cause::Churn => "joining, fetching weights, and work that was gone when a peer left",
        Cause::Staleness => "work that was refused, as the weights had moved on too far",
    }
}

/// One sentence with the numbers that belong to the cause.
fn why(summary: &Summary, cause: Cause) -> String {
    let totals = &summary.totals;
    match cause {
        Cause::Compute => match busiest(&summary.by_stage) {
            Some(row) => format!("The busiest workers are those of stage {}: {} of their time.", row.stage, percent(row.busy)),
            None => "Links and round trips keep up with the devices.".into(),
        },
        Cause::Upload => {
            let all = totals.traffic.all().max(1) as f64;
            let passed = (totals.traffic.activations + totals.traffic.gradients) as f64 / all;
            format!(
                "{} of all bytes are activations and gradients, {} averaging; uplinks of the stage that sends most are full {} of the time.",
                percent(passed),
                percent(totals.traffic.averaging as f64 / all),
                percent(summary.by_stage.iter().map(|row| row.sending).fold(0.0, f64::max))
            )
        }
        Cause::Download => format!(
            "Downlinks of the stage that receives most are full {} of the time.",
            percent(summary.by_stage.iter().map(|row| row.receiving).fold(0.0, f64::max))
        ),
        Cause::Latency => {
            "Neither workers nor links are at their limit: a micro-batch spends its time on the way, and too few are on the way."
                .into()
        }
        Cause::Imbalance => match busiest(&summary.by_stage) {
            Some(row) => format!(
                "Stage {} is the slowest: its workers are busy {} of the time with {} replicas, those of the other stages {} on average.",
                row.stage,
                percent(row.busy),
                figure(row.replicas),
                percent(others(&summary.by_stage, row.stage))
            ),
            None => "Some stage is slower than the others.".into(),
        },
        Cause::Churn => {
            let holes: f64 = summary.by_stage.iter().map(|row| row.empty_s).sum();
            let holes = match summary.by_stage.iter().max_by(|a, b| a.empty_s.total_cmp(&b.empty_s)) {
                Some(row) if holes > 0.0 => {
                    format!("; stages had nobody for {} in all, most of it stage {}", span(holes), row.stage)
                }
                _ => String::new(),
            };
            format!(
                "{} came, {} left politely, {} died{holes}.",
                people(totals.joined),
                people(totals.left),
                people(totals.died)
            )
        }
        Cause::Staleness => format!(
            "{} gradients were refused; the staleness of the others is {} at the median and {} at the 99th percentile.",
            people(totals.refused),
            totals.staleness_p50,
            totals.staleness_p99
        ),
    }
}

fn people(number: u64) -> String {
    super::numbers::count(number)
}

fn busiest(stages: &[StageRow]) -> Option<&StageRow> {
    // Of equal ones the first, so that equal outcomes read equal.
    stages.iter().fold(None, |best: Option<&StageRow>, row| match best {
        Some(best) if best.busy >= row.busy => Some(best),
        _ => Some(row),
    })
}

fn others(stages: &[StageRow], stage: u16) -> f64 {
    let rest: Vec<f64> = stages.iter().filter(|row| row.stage != stage).map(|row| row.busy).collect();
    if rest.is_empty() { 0.0 } else { rest.iter().sum::<f64>() / rest.len() as f64 }
}

/// What one could do about a cause, and what it would bring.
fn change(summary: &Summary, cause: Cause) -> Change {
    // What the change frees of its share: half where it doubles something, all where it takes the cause away.
    let (what, freed) = match cause {
        Cause::Compute => (format!("twice as many peers ({})", people(u64::from(summary.peers) * 2)), 0.5),
        Cause::Upload => {
            ("uploads twice as fast, or a codec that sends half the bytes (int4 instead of int8)".to_string(), 0.5)
        }
        Cause::Download => ("downloads twice as fast, or a codec that sends half the bytes".to_string(), 0.5),
        Cause::Latency => ("a window twice as large (in_flight_max), or peers of nearer regions".to_string(), 0.5),
        Cause::Imbalance => match busiest(&summary.by_stage) {
            Some(row) => (format!("more peers at stage {}, or another split of the layers", row.stage), 1.0),
            None => ("another split of the layers".to_string(), 1.0),
        },
        Cause::Churn => {
            ("smaller stages (less to fetch), one more replica for each, or averaging twice as often".to_string(), 0.5)
        }
        Cause::Staleness => ("a larger bound of staleness, or fewer micro-batches in flight".to_string(), 1.0),
    };
    let left = (1.0 - freed * summary.shares.of(cause)).max(0.01);
    let (cap, by) = cap(summary, cause);
    let (gain, then) = if cap < 1.0 / left { (cap, Some(by)) } else { (1.0 / left, None) };
    Change { cause, what, gain: gain.max(1.0), then }
}

/// How much more the busiest other resource can carry, and what it is.
fn cap(summary: &Summary, cause: Cause) -> (f64, Cause) {
    let stages = &summary.by_stage;
    let most = |part: fn(&StageRow) -> f64| stages.iter().map(part).fold(0.0, f64::max);
    let mut busy = most(|row| row.busy);
    if cause == Cause::Imbalance && !stages.is_empty() {
        // Perfectly balanced, every stage is as busy as all are on average.
        let workers: f64 = stages.iter().map(|row| row.replicas).sum();
        if workers > 0.0 {
            busy = stages.iter().map(|row| row.busy * row.replicas).sum::<f64>() / workers;
        }
    }
    // Peers that are added bring workers and links.
    let resources = match cause {
        Cause::Compute => Vec::new(),
        _ => vec![
            (busy, Cause::Compute),
            (most(|row| row.sending) * if cause == Cause::Upload { 0.5 } else { 1.0 }, Cause::Upload),
            (most(|row| row.receiving) * if cause == Cause::Download { 0.5 } else { 1.0 }, Cause::Download),
        ],
    };
    resources
        .into_iter()
        .filter(|(part, _)| *part > 0.0)
        .map(|(part, of)| (1.0 / part.min(1.0), of))
        .fold((f64::INFINITY, Cause::Compute), |least, one| if one.0 < least.0 { one } else { least })
}

fn lower(sentence: &str) -> String {
    let mut letters = sentence.chars();
    letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
