//! The charts of a simulation. In: an outcome (and others with other seeds, for bands). Out: drawings.

use super::{
    columns::{Column, columns},
    drawing::{Drawing, Ink},
    frame::{Bars, Below, Lines, NARROW, Strand, WIDE, at_axis, at_percent, grid, rows},
    numbers::{bytes, count, figure, percent, span},
    summary::Summary,
};
use crate::outcome::{Came, Cause, Cost, Learning, Outcome, Shares};

/// Points of a line: more than a page shows.
const POINTS_MAX: usize = 300;
/// Columns of the heat map, and its rows.
const CELLS_MAX: usize = 180;
const ROWS_MAX: usize = 64;
const HIGH: f64 = 210.0;
/// Faults that are marked.
const SPANS_MAX: usize = 24;

const UP: Ink = Ink::Series(0);
const SECOND: Ink = Ink::Series(1);
const THIRD: Ink = Ink::Series(2);

pub struct Charts {
    pub throughput: Drawing,
    pub goodput: Drawing,
    pub loss: Option<Drawing>,
    pub peers: Drawing,
    pub stages: Drawing,
    pub busy: Drawing,
    pub staleness: Drawing,
    pub traffic: Drawing,
    pub churn: Drawing,
    pub per_peer: Drawing,
    pub disagreement: Option<Drawing>,
    pub shares: Drawing,
    pub cost: Option<Drawing>,
}

impl Charts {
    /// Of the first outcome; the others give the band of the throughput.
    pub fn of(outcomes: &[Outcome], summary: &Summary) -> Option<Charts> {
        let first = outcomes.first()?;
        let few = columns(&first.series, POINTS_MAX);
        Some(Charts {
            throughput: throughput(outcomes, &few),
            goodput: goodput(&few),
            loss: loss(first, &few),
            peers: peers(&few),
            stages: stages(first),
            busy: busy(summary),
            staleness: staleness(&few),
            traffic: traffic(&few),
            churn: churn(first),
            per_peer: per_peer(first),
            disagreement: disagreement(&few),
            shares: shares(&summary.shares),
            cost: summary.cost.as_ref().map(cost),
        })
    }
}

fn times(few: &[Column]) -> Vec<(f64, f64)> {
    few.iter().map(|column| (column.from_s, column.to_s)).collect()
}

fn strand(name: &str, ink: Ink, few: &[Column], value: impl Fn(&Column) -> f64) -> Strand {
    Strand::new(name, ink, few.iter().map(value).collect())
}

fn throughput(outcomes: &[Outcome], few: &[Column]) -> Drawing {
    let first = &outcomes[0];
    let mut lines = Lines::new("Throughput, tokens/s", times(few), at_axis);
    lines.strands.push(strand("tokens/s", UP, few, |column| column.tokens_per_s));
    lines.ticks = first.changes.iter().filter(|change| change.what != Came::Joined).map(|change| change.at_s).collect();
    if !lines.ticks.is_empty() {
        lines.title.push_str("  (red: departures)");
    }
    for planned in first.planned.iter().take(SPANS_MAX) {
        lines.spans.push((planned.at_s, planned.until_s, planned.what.replace('_', " ")));
    }
    if outcomes.len() > 1 {
        let others: Vec<Vec<Column>> =
            outcomes.iter().map(|outcome| columns(&outcome.series, few.len().max(1))).collect();
        let over = |pick: fn(f64, f64) -> f64, start: f64| -> Vec<f64> {
            let at = |place: usize| {
                others.iter().filter_map(|other| other.get(place)).map(|column| column.tokens_per_s).fold(start, pick)
            };
            (0..few.len()).map(at).collect()
        };
        lines.band = Some((over(f64::min, f64::INFINITY), over(f64::max, f64::NEG_INFINITY)));
    }
    lines.draw(NARROW, HIGH)
}

fn goodput(few: &[Column]) -> Drawing {
    let mut lines = Lines::new("Goodput, part of the work that counts", times(few), at_percent);
    lines.strands.push(strand("goodput", THIRD, few, |column| column.goodput));
    lines.top = Some(1.0);
    lines.draw(NARROW, HIGH)
}

fn loss(outcome: &Outcome, few: &[Column]) -> Option<Drawing> {
    let title = match outcome.learning {
        Learning::None => return None,
        Learning::Curve => "Loss: an ESTIMATE from a published law",
        Learning::Real => "Loss of the small model that was trained",
    };
    let mut lines = Lines::new(title, times(few), at_axis);
    lines.strands.push(strand("loss", UP, few, |column| column.loss.unwrap_or(f64::NAN)));
    if outcome.learning == Learning::Curve {
        lines.strands[0].name = "estimated loss".into();
    }
    if let Some(reference) = outcome.totals.loss_reference.filter(|loss| loss.is_finite()) {
        lines.strands.push(strand("last loss without churn and delay", SECOND, few, |_| reference).dashed());
    }
    lines.floating = true;
    Some(lines.draw(NARROW, HIGH))
}

fn peers(few: &[Column]) -> Drawing {
    let mut lines = Lines::new("Peers", times(few), at_axis);
    lines.strands.push(strand("alive", Ink::Series(5), few, |column| f64::from(column.alive)));
    lines.strands.push(strand("serving", UP, few, |column| f64::from(column.serving)));
    lines.draw(NARROW, HIGH)
}

fn staleness(few: &[Column]) -> Drawing {
    let mut lines = Lines::new("Staleness, own steps", times(few), at_axis);
    lines.strands.push(strand("median", UP, few, |column| f64::from(column.staleness_p50)));
    lines.strands.push(strand("99th percentile", SECOND, few, |column| f64::from(column.staleness_p99)));
    lines.draw(NARROW, HIGH)
}

fn disagreement(few: &[Column]) -> Option<Drawing> {
    if few.iter().all(|column| column.disagreement.is_none()) {
        return None;
    }
    let mut lines = Lines::new("Disagreement of replicas, relative", times(few), at_axis);
    lines
        .strands
        .push(strand("largest distance", Ink::Series(4), few, |column| column.disagreement.unwrap_or(f64::NAN)));
    Some(lines.draw(NARROW, HIGH))
}

fn rate(value: f64) -> String {
    let text = bytes(value);
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

fn traffic(few: &[Column]) -> Drawing {
    let mut lines = Lines::new("Bytes a second, by what they are", times(few), rate);
    type Part = fn(&crate::outcome::Traffic) -> u64;
    let classes: [(&str, Ink, Part); 5] = [
        ("activations", UP, |traffic| traffic.activations),
        ("gradients", Ink::Series(6), |traffic| traffic.gradients),
        ("averaging", SECOND, |traffic| traffic.averaging),
        ("weights", THIRD, |traffic| traffic.weights),
        ("control", Ink::Series(5), |traffic| traffic.control),
    ];
    for (name, ink, part) in classes {
        lines.strands.push(strand(name, ink, few, |column| {
            let long = column.to_s - column.from_s;
            if long > 0.0 { part(&column.traffic) as f64 / long } else { 0.0 }
        }));
    }
    lines.stacked = true;
    lines.draw(NARROW, HIGH)
}

fn stages(outcome: &Outcome) -> Drawing {
    let few = columns(&outcome.series, CELLS_MAX);
    let stages = few.iter().map(|column| column.replicas.len()).max().unwrap_or(0);
    // More stages than can be told apart go together, the emptiest counts.
    let each = stages.div_ceil(ROWS_MAX).max(1);
    let fewest = |column: &Column, row: usize| {
        (row * each..((row + 1) * each).min(stages))
            .map(|stage| column.replicas.get(stage).copied().unwrap_or(0))
            .min()
            .unwrap_or(0)
    };
    let number = stages.div_ceil(each);
    let most = few.iter().flat_map(|column| &column.replicas).copied().max().unwrap_or(0).max(1);
    let cells: Vec<Vec<Option<f64>>> = (0..number)
        .map(|row| {
            few.iter()
                .map(|column| match fewest(column, row) {
                    0 => None,
                    replicas => Some(f64::from(replicas) / f64::from(most)),
                })
                .collect()
        })
        .collect();
    let names: Vec<String> = (0..number).map(|row| format!("stage {}", row * each)).collect();
    let holes: Vec<String> = outcome
        .by_stage
        .iter()
        .filter(|row| row.empty_s > 0.0)
        .take(12)
        .map(|row| format!("stage {} had nobody for {}", row.stage, span(row.empty_s)))
        .collect();
    let alternative = format!(
        "Replicas that serve, for each of {stages} stages over time; at most {most} at once. {}",
        if holes.is_empty() {
            "Every stage had somebody all the time.".into()
        } else {
            format!("{}.", holes.join("; "))
        }
    );
    let time = (few.first().map_or(0.0, |column| column.from_s), few.last().map_or(0.0, |column| column.to_s));
    grid("Replicas of each stage", alternative, &cells, &names, time, (&format!("1 to {most}"), "nobody"))
}

fn busy(summary: &Summary) -> Drawing {
    let each = summary.by_stage.len().div_ceil(ROWS_MAX).max(1);
    let chunks: Vec<_> = summary.by_stage.chunks(each).collect();
    let most = |rows: &[crate::outcome::StageRow], part: fn(&crate::outcome::StageRow) -> f64| {
        rows.iter().map(part).filter(|value| value.is_finite()).fold(0.0, f64::max)
    };
    let said: Vec<String> = summary
        .by_stage
        .iter()
        .take(12)
        .map(|row| {
            format!("stage {}: {}, {}, {}", row.stage, percent(row.busy), percent(row.sending), percent(row.receiving))
        })
        .collect();
    Bars {
        title: "How busy each stage is".into(),
        alternative: format!(
            "Part of the time that workers compute, uplinks are full and downlinks are full. {}.",
            said.join("; ")
        ),
        names: vec![("computing".into(), UP), ("uplink full".into(), SECOND), ("downlink full".into(), Ink::Series(6))],
        places: chunks
            .iter()
            .map(|rows| {
                vec![most(rows, |row| row.busy), most(rows, |row| row.sending), most(rows, |row| row.receiving)]
            })
            .collect(),
        stacked: false,
        top: Some(1.0),
        written: at_percent,
    }
    .draw(NARROW, HIGH, &Below::Names(chunks.iter().map(|rows| rows[0].stage.to_string()).collect()))
}

fn churn(outcome: &Outcome) -> Drawing {
    const BINS: usize = 160;
    let end = outcome.changes.iter().map(|change| change.at_s).fold(outcome.simulated_s, f64::max).max(1e-9);
    let mut places = vec![vec![0.0; 3]; if outcome.changes.is_empty() { 0 } else { BINS }];
    for change in outcome.changes.iter().filter(|change| change.at_s.is_finite()) {
        let place = ((change.at_s / end * BINS as f64) as usize).min(BINS - 1);
        match change.what {
            Came::Joined => places[place][0] += 1.0,
            Came::Left => places[place][1] -= 1.0,
            Came::Died => places[place][2] -= 1.0,
        }
    }
    let of = |what: Came| count(outcome.changes.iter().filter(|change| change.what == what).count() as u64);
    Bars {
        title: "Who came (up) and went (down)".into(),
        alternative: format!(
            "Over the whole time {} joined, {} left politely and {} died.",
            of(Came::Joined),
            of(Came::Left),
            of(Came::Died)
        ),
        names: vec![("joined".into(), THIRD), ("left politely".into(), SECOND), ("died".into(), Ink::Bad)],
        places,
        stacked: true,
        top: None,
        written: at_axis,
    }
    .draw(WIDE, 190.0, &Below::Time(0.0, end))
}

fn per_peer(outcome: &Outcome) -> Drawing {
    const BINS: usize = 24;
    let mut sent: Vec<u64> = outcome.rows.iter().map(|row| row.sent).collect();
    sent.sort_unstable();
    let at = |part: f64| sent.get(((sent.len().max(1) - 1) as f64 * part) as usize).copied().unwrap_or(0) as f64;
    let (least, most) = (at(0.0), at(1.0));
    let long = (most - least).max(1.0);
    let mut places = vec![vec![0.0]; if sent.is_empty() { 0 } else { BINS }];
    for value in &sent {
        let place = ((*value as f64 - least) / long * BINS as f64) as usize;
        places[place.min(BINS - 1)][0] += 1.0;
    }
    let names = (0..places.len()).map(|bin| rate(least + long * (bin as f64 + 0.5) / BINS as f64)).collect();
    Bars {
        title: "Peers by the bytes that each sent".into(),
        alternative: format!(
            "Of {} peers the least sent {}, the median {}, nine of ten at most {}, the most {}.",
            count(sent.len() as u64),
            bytes(least),
            bytes(at(0.5)),
            bytes(at(0.9)),
            bytes(most)
        ),
        names: vec![("peers".into(), UP)],
        places,
        stacked: true,
        top: None,
        written: at_axis,
    }
    .draw(NARROW, HIGH, &Below::Names(names))
}

/// Where the time went, all of it: work that counts first, then what is lost, the largest first.
pub fn shares(shares: &Shares) -> Drawing {
    let mut bars = vec![("work that counts".to_string(), shares.computing, percent(shares.computing), THIRD)];
    for (cause, _) in shares.lost() {
        let part = shares.of(cause);
        let name = if cause == Cause::Staleness { "refused as stale" } else { cause.name() };
        bars.push((name.into(), part, percent(part), SECOND));
    }
    rows("Where the devices' time went", &bars, NARROW)
}

fn cost(cost: &Cost) -> Drawing {
    let (ours, theirs) = (cost.usd_per_billion_tokens, cost.reference_usd_per_billion_tokens);
    let most = ours.max(theirs).max(1e-12);
    let reference: String = cost.reference.chars().take(22).collect();
    let (ours_kwh, theirs_kwh) = (cost.kwh_per_billion_tokens, cost.reference_kwh_per_billion_tokens);
    let most_kwh = ours_kwh.max(theirs_kwh).max(1e-12);
    let bars = vec![
        ("this swarm".to_string(), ours / most, format!("USD {}", figure(ours)), UP),
        (reference.clone(), theirs / most, format!("USD {}", figure(theirs)), Ink::Series(5)),
        ("this swarm".to_string(), ours_kwh / most_kwh, format!("{} kWh", figure(ours_kwh)), UP),
        (reference, theirs_kwh / most_kwh, format!("{} kWh", figure(theirs_kwh)), Ink::Series(5)),
    ];
    rows("Cost of a billion tokens", &bars, NARROW)
}
