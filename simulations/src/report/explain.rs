//! What limits a run, and which one change would bring most. In: a summary. Out: sentences, and the changes of [`super::advice`].
//! Every gain is an estimate; a simulation with the change made is the answer.

use serde::{Deserialize, Serialize};

use super::{
    advice::{Change, changes},
    numbers::{counted, figure, percent, span},
    summary::Summary,
};
use crate::{
    outcome::{Cause, Ended, Learning, StageRow},
    world::adversary::Lie,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    pub cause: Cause,
    /// Of the lost time; where computing is the cause, of all time.
    pub share: f64,
    pub sentences: Vec<String>,
    /// What would bring most; nothing where nothing was done, nothing is lost, or the scenario can change nothing that would help.
    pub change: Option<Change>,
    /// All that were looked at, the best first.
    pub changes: Vec<Change>,
}

impl Explanation {
    /// With what each of [`Explanation::changes`] brought, in their order.
    #[must_use]
    pub fn tried(mut self, brought: &[f64]) -> Explanation {
        for (change, brought) in self.changes.iter_mut().zip(brought) {
            change.brought = Some(*brought);
        }
        self.change = self.changes.first().cloned();
        self
    }
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
        let mut sentences = vec![
            stopped(*stage, *since_s, why),
            format!("Until the end {}", lower(&where_time_goes(summary, cause, share, lost))),
        ];
        sentences.extend(lies(summary));
        sentences.push("No change is estimated: what would bring more is not known of a run that stopped.".into());
        return Explanation { cause, share, sentences, change: None, changes: Vec::new() };
    }
    let changes = changes(summary);
    let best = changes.first().cloned();
    let mut sentences = vec![where_time_goes(summary, cause, share, lost), why(summary, cause)];
    sentences.extend(lies(summary));
    sentences.push(match &best {
        Some(change) => format!(
            "One change would bring most: {} ({}). Estimate: {} as many tokens/s{}. Simulate it to know: {} {}",
            change.what,
            change.typed(),
            times(change.gain),
            change.then.map_or(String::new(), |then| format!("; then {} would limit", then.name())),
            summary.command,
            change.typed()
        ),
        None => {
            "No single change that was looked at would bring much: what is left of the lost time is small, bound by something \
             else at once, or nothing that this scenario can change. This is an estimate."
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

/// What liars did, where there are any: the simulator knows who they are.
pub(super) fn lies(summary: &Summary) -> Option<String> {
    let (totals, lies) = (&summary.totals, &summary.totals.lies);
    let kind = lies.kind.filter(|_| lies.peers > 0)?;
    let who = format!(
        "{} of {} {} (adversaries.kind = {}: {})",
        people(lies.peers),
        counted(u64::from(summary.peers), "peer", "peers"),
        if lies.peers == 1 { "lies" } else { "lie" },
        kind.name(),
        kind.says()
    );
    let passed = format!(
        "{} ({} of all)",
        counted(lies.passed, "micro-batch", "micro-batches"),
        percent(lies.passed as f64 / totals.completed.max(1) as f64)
    );
    let what = match (kind, summary.learning) {
        (Lie::Silent, _) => format!(
            "{} never came. What they hold keeps its place in the window until it is sent again elsewhere, as happened {} times",
            counted(lies.withheld, "result", "results"),
            people(totals.resent)
        ),
        (_, Learning::Real) => format!(
            "{passed} came back with a wrong result in them and are in the weights, {} were given up, since a value was not finite",
            people(lies.refused)
        ),
        (_, Learning::None | Learning::Curve) => format!(
            "{passed} came back with a result of theirs in them. Without learning = \"real\" there are no values, and nobody can \
             see that they are wrong"
        ),
    };
    Some(format!("{who}: {what}. Without them: --set liars=0"))
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

fn lower(sentence: &str) -> String {
    let mut letters = sentence.chars();
    letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
