//! A summary as lines for a terminal: plain words, no colour, nothing wider than the terminal or 100 columns.

use super::{
    estimate::Estimate,
    explain::{explain, lies},
    numbers::{bytes, count, counted, figure, percent, short},
    summary::{Summary, fidelity_name},
};
use crate::outcome::{Cause, Learning};

const WIDTH_MAX: usize = 100;
const WIDTH_MIN: usize = 40;
/// Remarks of a run that are written out.
const REMARKS_MAX: usize = 6;
/// Where values begin.
const INDENT: usize = 19;

/// The whole summary; `report` is where the report lies, if it was written.
pub fn text(summary: &Summary, width: usize, report: Option<&str>) -> String {
    let mut lines = Lines { text: String::new(), width: width.clamp(WIDTH_MIN, WIDTH_MAX) };
    lines.sentence(&summary.verdict(), 0);
    lines.sentence(&format!("{}: {}", summary.scenario, summary.question), 2);
    let figures = &summary.figures;
    let seeds = match summary.seeds.as_slice() {
        [one] => format!("seed {}", one.seed),
        many => format!("{} seeds from {}", many.len(), many.first().map_or(0, |seed| seed.seed)),
    };
    let simulated = super::numbers::span(summary.simulated_s());
    let events: u64 = summary.seeds.iter().map(|seed| seed.events).sum();
    lines.row(
        "simulated",
        &format!(
            "{simulated} of {}, {}, {seeds}, {} events, fidelity {}{}",
            counted(u64::from(summary.peers), "peer", "peers"),
            counted(u64::from(summary.stages), "stage", "stages"),
            short(events as f64),
            fidelity_name(summary.fidelity),
            match summary.fidelity {
                crate::outcome::Fidelity::Protocol => "",
                crate::outcome::Fidelity::Fleet => " (approximate)",
            }
        ),
    );
    lines.row(
        "throughput",
        &format!(
            "{} tokens/s{}; {}",
            figure(figures.tokens_per_s.mean),
            half(&figures.tokens_per_s, figure),
            match summary.totals.tokens {
                0 => "goodput -, nothing was trained".into(),
                _ => format!(
                    "goodput {}{} of the work done, the rest was done again or thrown away",
                    summary.goodput(),
                    half(&figures.goodput, percent)
                ),
            }
        ),
    );
    lines.row("training", &training(summary));
    let totals = &summary.totals;
    let asked = (totals.applied + totals.refused).max(1) as f64;
    lines.row(
        "staleness",
        &format!(
            "median {}, 99th percentile {} own steps; {} of the gradients refused as too old",
            totals.staleness_p50,
            totals.staleness_p99,
            percent(totals.refused as f64 / asked)
        ),
    );
    lines.row("traffic", &traffic(summary));
    lines.row("limits", &limits(summary));
    if let Some(lies) = lies(summary) {
        lines.row("liars", &lies);
    }
    if let Some(change) = explain(summary).change {
        let what = format!("{}, {}: about {:.2} times the tokens/s", change.what, change.typed(), change.gain);
        lines.row("would help", &format!("{what} (estimate)"));
    }
    lines.row("cost", &cost(summary));
    for expected in summary.expected.iter().filter(|expected| !expected.met) {
        lines.row("! expected", &format!("{} {}, came {}", expected.what, expected.wanted, expected.got));
    }
    for seen in summary.violations.iter().take(5) {
        let violation = &seen.violation;
        let peer = violation.peer.map_or(String::new(), |peer| format!(", peer {peer}"));
        let at = super::numbers::clock(violation.at_s);
        let what = format!("{} at {at}, seed {}{peer}: {}", violation.property, seen.seed, violation.what);
        lines.row("! violated", &what);
    }
    if summary.violations.len() > 5 {
        lines.row("", &format!("and {} more", count(summary.violations.len() as u64 - 5)));
    }
    for remark in summary.remarks.iter().take(REMARKS_MAX) {
        lines.row("remark", remark);
    }
    if summary.remarks.len() > REMARKS_MAX {
        lines.row("", &format!("and {} more, in the report", summary.remarks.len() - REMARKS_MAX));
    }
    let checked = summary.properties.len() as u64;
    lines.row(
        "properties",
        &match (checked, summary.broken().len() as u64) {
            (0, _) => "none were checked".into(),
            (_, 0) => format!("{} held", counted(checked, "property", "properties")),
            (_, broken) => format!("{} of {} did not hold", count(broken), count(checked)),
        },
    );
    if let Some(report) = report {
        lines.row("report", report);
    }
    let digest = summary.seeds.first().map_or("", |seed| seed.digest.as_str());
    lines.row("repeat", &format!("{}   (digest {})", summary.command, super::page::short_digest(digest)));
    lines.text
}

fn half(estimate: &Estimate, written: fn(f64) -> String) -> String {
    estimate.half().map_or(String::new(), |half| format!(" (+/- {})", written(half)))
}

fn training(summary: &Summary) -> String {
    let totals = &summary.totals;
    let done = format!("{}, {} tokens", counted(totals.steps, "step", "steps"), short(totals.tokens as f64));
    let loss = match (&summary.figures.loss_last, summary.learning) {
        (_, Learning::None) => "loss not simulated (--learning real or curve)".into(),
        (None, _) => "loss not known".into(),
        (Some(loss), learning) => {
            let estimate = if learning == Learning::Curve { " (an estimate)" } else { "" };
            let reference = summary
                .figures
                .loss_reference
                .map_or(String::new(), |reference| format!(", {} without churn and delay", figure(reference.mean)));
            format!("loss {}{}{estimate}{reference}", figure(loss.mean), half(loss, figure))
        }
    };
    format!("{done}; {loss}")
}

fn traffic(summary: &Summary) -> String {
    let traffic = &summary.totals.traffic;
    let all = traffic.all();
    if all == 0 {
        return "nothing was sent".into();
    }
    let per_hour = summary.bytes_per_peer_hour().map_or(String::new(), |sent| format!(", {} an hour", bytes(sent)));
    let mut classes = [
        ("activations", traffic.activations),
        ("gradients", traffic.gradients),
        ("averaging", traffic.averaging),
        ("weights", traffic.weights),
        ("control", traffic.control),
    ];
    classes.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let parts: Vec<String> = classes
        .iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| format!("{name} {}", percent(*bytes as f64 / all as f64)))
        .collect();
    format!("each peer sends {}{per_hour}; {}", bytes(summary.figures.bytes_per_peer.mean), parts.join(", "))
}

fn limits(summary: &Summary) -> String {
    let lost: f64 = Cause::LOSSES.iter().map(|cause| summary.shares.of(*cause)).sum();
    let parts: Vec<String> = summary
        .shares
        .lost()
        .iter()
        .filter(|(_, share)| *share >= 0.005)
        .map(|(cause, share)| format!("{} {}", cause.name(), percent(*share)))
        .collect();
    if summary.shares.computing + lost <= 0.0 {
        return "not known: no device was there for any time".into();
    }
    if parts.is_empty() {
        return "no time was lost".into();
    }
    format!("of the lost time ({} of all): {}", percent(lost), parts.join(", "))
}

fn cost(summary: &Summary) -> String {
    let Some(cost) = &summary.cost else { return "not counted".into() };
    let mut text = format!(
        "{} kWh and USD {} per 10^9 tokens; {}, same work: USD {}",
        figure(cost.kwh_per_billion_tokens),
        figure(cost.usd_per_billion_tokens),
        cost.reference,
        figure(cost.reference_usd_per_billion_tokens)
    );
    if let Some(assumption) = cost.assumptions.first() {
        text.push_str(". Assumed: ");
        text.push_str(assumption);
    }
    text
}

struct Lines {
    text: String,
    width: usize,
}

impl Lines {
    fn row(&mut self, name: &str, value: &str) {
        let mut first = format!("  {name}");
        while first.chars().count() < INDENT {
            first.push(' ');
        }
        self.broken(first, value, INDENT);
    }

    fn sentence(&mut self, text: &str, indent: usize) {
        self.broken(" ".repeat(indent), text, indent);
    }

    /// Words on as many lines as it takes; a word that is longer than a line is cut. Control characters do not reach a terminal.
    fn broken(&mut self, start: String, text: &str, indent: usize) {
        let room = self.width - indent;
        let mut line = start;
        let mut used = 0;
        let clean: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        for word in clean.split(' ').filter(|word| !word.is_empty()) {
            let letters: Vec<char> = word.chars().collect();
            for piece in letters.chunks(room) {
                if used > 0 && used + 1 + piece.len() > room {
                    self.end(&line);
                    line = " ".repeat(indent);
                    used = 0;
                }
                if used > 0 {
                    line.push(' ');
                    used += 1;
                }
                line.extend(piece);
                used += piece.len();
            }
        }
        self.end(&line);
    }

    fn end(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }
}
