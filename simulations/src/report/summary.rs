//! The numbers of a report in one document, `summary.json`: the same form for one seed and for several.
//! In: outcomes of one scenario. Out: means with their intervals, and what each seed gave.

use serde::{Deserialize, Serialize};

use super::{
    estimate::Estimate,
    numbers::{count, counted, figure, percent, span},
};
use crate::{
    outcome::{
        Cause, Cost, Ended, Fidelity, Learning, Lies, Outcome, SCHEMA, Shares, StageRow, Totals, Traffic, Violation,
    },
    scenario::{Document, Expect},
    world::adversary::Lie,
};

/// What outcomes do not know of themselves.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// What the author of the scenario expects.
    pub expect: Expect,
    /// The command that gives the same again; nothing: one that names the scenario, its seed and its fidelity.
    pub command: Option<String>,
    /// The scenario names machines to compare with.
    pub compares: bool,
}

impl Told {
    pub fn of(document: &Document, command: String) -> Told {
        Told {
            expect: document.scenario.expect.clone(),
            command: Some(command),
            compares: document.says("cost.reference"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub schema: u32,
    pub skein: String,
    pub scenario: String,
    pub question: String,
    /// The scenario as it ran.
    pub text: String,
    pub config: String,
    pub fidelity: Fidelity,
    pub learning: Learning,
    pub peers: u32,
    pub stages: u16,
    pub parameters: u64,
    pub duration_s: f64,
    /// How the seed ended that came worst off.
    pub ended: Ended,
    pub figures: Figures,
    pub bottleneck: Cause,
    /// Means over the seeds, here and in what follows.
    pub shares: Shares,
    pub totals: Totals,
    pub by_stage: Vec<StageRow>,
    pub cost: Option<Cost>,
    pub expected: Vec<Expected>,
    /// What was expected answers the question, with Yes or No.
    #[serde(default)]
    pub answers: bool,
    /// The scenario names machines to compare with: the answer begins with what they would do for the same money.
    #[serde(default)]
    pub compares: bool,
    pub properties: Vec<String>,
    /// Of all seeds.
    pub violations: Vec<SeedViolation>,
    pub remarks: Vec<String>,
    pub command: String,
    pub seeds: Vec<Seed>,
}

/// What is looked at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub tokens_per_s: Estimate,
    /// Part of the work done that had not to be done again or thrown away.
    pub goodput: Estimate,
    pub bytes_per_peer: Estimate,
    pub staleness_p50: Estimate,
    pub staleness_p99: Estimate,
    pub loss_last: Option<Estimate>,
    pub loss_reference: Option<Estimate>,
    pub usd_per_billion_tokens: Option<Estimate>,
    pub kwh_per_billion_tokens: Option<Estimate>,
}

/// One seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seed {
    pub seed: u64,
    pub digest: String,
    pub events: u64,
    pub simulated_s: f64,
    pub ended: Ended,
    pub tokens_per_s: f64,
    pub goodput: f64,
    pub bytes_per_peer: f64,
    pub usd_per_billion_tokens: Option<f64>,
    pub bottleneck: Cause,
    pub shares: Shares,
    pub totals: Totals,
}

/// One thing the author expected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// `throughput`, and what it should be and is, in words.
    pub what: String,
    pub wanted: String,
    pub got: String,
    pub met: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedViolation {
    pub seed: u64,
    #[serde(flatten)]
    pub violation: Violation,
}

#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error(
        "this summary has form {got}, and this version of skein reads form {SCHEMA}: read it with the version that wrote it ({by}), or simulate again"
    )]
    Schema { got: u64, by: String },
    #[error(
        "this is not the summary of a simulation: it names no schema; give the folder of a report, or its summary.json"
    )]
    NoSchema,
    #[error("this summary has no seeds, so it is of no simulation; simulate again, or take another copy")]
    NoSeeds,
    #[error("this summary cannot be read: {0}; simulate again, or take another copy")]
    Broken(#[from] serde_json::Error),
}

impl Summary {
    /// Of the outcomes of one scenario with different seeds; nothing of none.
    pub fn of(outcomes: &[Outcome], told: &Told) -> Option<Summary> {
        let first = outcomes.first()?;
        let seeds: Vec<Seed> = outcomes.iter().map(Seed::of).collect();
        let over = |value: &dyn Fn(&Seed) -> f64| Estimate::of(&seeds.iter().map(value).collect::<Vec<_>>());
        let some = |value: &dyn Fn(&Outcome) -> Option<f64>| {
            Estimate::of(&outcomes.iter().filter_map(value).collect::<Vec<_>>())
        };
        let figures = Figures {
            tokens_per_s: over(&|seed| seed.tokens_per_s).unwrap_or_default(),
            goodput: over(&|seed| seed.goodput).unwrap_or_default(),
            bytes_per_peer: over(&|seed| seed.bytes_per_peer).unwrap_or_default(),
            staleness_p50: over(&|seed| f64::from(seed.totals.staleness_p50)).unwrap_or_default(),
            staleness_p99: over(&|seed| f64::from(seed.totals.staleness_p99)).unwrap_or_default(),
            loss_last: some(&|outcome| outcome.totals.loss_last),
            loss_reference: some(&|outcome| outcome.totals.loss_reference),
            usd_per_billion_tokens: some(&|outcome| Some(outcome.cost.as_ref()?.usd_per_billion_tokens)),
            kwh_per_billion_tokens: some(&|outcome| Some(outcome.cost.as_ref()?.kwh_per_billion_tokens)),
        };
        let shares = mean_shares(&seeds);
        let mut remarks: Vec<String> = Vec::new();
        for remark in outcomes.iter().flat_map(|outcome| &outcome.remarks) {
            if !remarks.contains(remark) {
                remarks.push(remark.clone());
            }
        }
        if outcomes.iter().any(|outcome| outcome.totals.loss_last.is_some_and(|loss| !loss.is_finite())) {
            remarks.push("The last loss is not a number: the training diverged.".into());
        }
        let mut summary = Summary {
            schema: SCHEMA,
            skein: first.skein.clone(),
            scenario: first.scenario.clone(),
            question: first.question.clone(),
            text: first.text.clone(),
            config: first.config.clone(),
            fidelity: first.fidelity,
            learning: first.learning,
            peers: first.peers,
            stages: first.stages,
            parameters: first.parameters,
            duration_s: real(first.duration_s),
            ended: worst(outcomes),
            figures,
            bottleneck: shares.bottleneck(),
            shares,
            totals: mean_totals(&seeds),
            by_stage: mean_stages(outcomes),
            cost: mean_cost(outcomes),
            expected: Vec::new(),
            answers: told.expect.answers,
            compares: told.compares,
            properties: first.properties.clone(),
            violations: outcomes
                .iter()
                .flat_map(|outcome| {
                    let seed = outcome.seed;
                    outcome.violations.iter().map(move |violation| SeedViolation {
                        seed,
                        violation: Violation { at_s: real(violation.at_s), ..violation.clone() },
                    })
                })
                .collect(),
            remarks,
            command: told.command.clone().unwrap_or_else(|| command(outcomes)),
            seeds,
        };
        summary.expected = expected(&summary, &told.expect, outcomes);
        Some(rounded(summary))
    }

    /// The document as it is kept.
    pub fn write(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a summary is plain data");
        text.push('\n');
        text
    }

    pub fn read(text: &str) -> Result<Summary, Unreadable> {
        let document: serde_json::Value = serde_json::from_str(text)?;
        match document.get("schema").and_then(serde_json::Value::as_u64) {
            None => Err(Unreadable::NoSchema),
            Some(schema) if schema == u64::from(SCHEMA) => {
                let summary: Summary = serde_json::from_value(document)?;
                if summary.seeds.is_empty() { Err(Unreadable::NoSeeds) } else { Ok(summary) }
            }
            Some(got) => {
                let by = document.get("skein").and_then(serde_json::Value::as_str).unwrap_or("not named");
                Err(Unreadable::Schema { got, by: by.chars().take(40).collect() })
            }
        }
    }

    /// Whether all was as the author expected, and no property was violated.
    pub fn good(&self) -> bool {
        self.violations.is_empty() && self.expected.iter().all(|expected| expected.met)
    }

    /// Where numbers come from, for what travels without the page.
    pub(super) fn origin(&self) -> String {
        let seeds = match self.seeds.as_slice() {
            [seed] => format!("seed {}", seed.seed),
            seeds => format!("{} seeds", seeds.len()),
        };
        format!("fidelity {}, {}, {seeds}, skein {}", fidelity_name(self.fidelity), self.scenario, self.skein)
    }

    /// The part of the work done that counts; nothing where none was done.
    pub fn goodput(&self) -> String {
        if self.totals.tokens == 0 { "-".into() } else { percent(self.figures.goodput.mean) }
    }

    /// What a peer gives to the network in an hour of being there.
    pub fn bytes_per_peer_hour(&self) -> Option<f64> {
        let hours = self.totals.peer_s / 3600.0;
        (hours > 0.0).then(|| self.totals.traffic.all() as f64 / hours)
    }

    /// The longest time that a seed simulated.
    pub fn simulated_s(&self) -> f64 {
        self.seeds.iter().map(|seed| seed.simulated_s).fold(0.0, f64::max)
    }

    /// Whether it would work and what limits it, in one or two sentences.
    pub fn verdict(&self) -> String {
        let speed = figure(self.figures.tokens_per_s.mean);
        let mut verdict = match &self.ended {
            Ended::Stuck { stage, since_s, why } => {
                let place = stage.map_or(String::new(), |stage| format!(" at stage {stage}"));
                format!(
                    "No: training stops{place} after {}, and nothing that is planned can change it. Why: {}.",
                    span(*since_s),
                    why.trim_end_matches('.')
                )
            }
            _ if self.totals.tokens == 0 => {
                format!("No: in {} of simulated time no token was trained.", span(self.simulated_s()))
            }
            _ if !self.violations.is_empty() => format!(
                "Not safely: it trains {speed} tokens/s, but {} of {} that were checked did not hold.",
                count(self.broken().len() as u64),
                counted(self.properties.len() as u64, "property", "properties")
            ),
            _ if self.expected.iter().any(|expected| !expected.met) => {
                let missed: Vec<String> = self
                    .expected
                    .iter()
                    .filter(|expected| !expected.met)
                    .map(|expected| {
                        format!("{} is {} where {} was expected", expected.what, expected.got, expected.wanted)
                    })
                    .collect();
                let word = if self.answers { "No" } else { "Not as expected" };
                format!("{word}: {}. {}", missed.join("; "), self.limit())
            }
            _ => {
                let as_expected = if self.expected.is_empty() { "" } else { ", as expected" };
                let it = match (self.answers && !self.expected.is_empty(), self.for_the_same_money()) {
                    (true, _) if self.ended == Ended::Interrupted => "So far: it".into(),
                    (true, _) => "Yes: it".into(),
                    (false, Some(money)) => format!("{money}: this swarm"),
                    (false, None) => "It".to_string(),
                };
                format!(
                    "{it} trains {speed} tokens/s{as_expected}, and {} of the work done counts. {}",
                    self.goodput(),
                    self.limit()
                )
            }
        };
        if self.ended == Ended::Interrupted {
            verdict.push_str(&format!(
                " It was interrupted after {} of {}: all numbers are of that part.",
                span(self.simulated_s()),
                span(self.duration_s)
            ));
        }
        verdict
    }

    /// What the machines to compare with would do, where the scenario names them.
    fn for_the_same_money(&self) -> Option<String> {
        let cost = self.cost.as_ref().filter(|_| self.compares)?;
        let times = cost.usd_per_billion_tokens / cost.reference_usd_per_billion_tokens;
        let is_known = times.is_finite() && times > 0.0;
        is_known.then(|| match times {
            times if times >= 1.0 => {
                format!("For the same money {} trains {} times as much", cost.reference, figure(times))
            }
            times => {
                format!("For the same money this trains {} times as much as {}", figure(1.0 / times), cost.reference)
            }
        })
    }

    fn limit(&self) -> String {
        let mut limit = self.bound_by();
        let Lies { peers, kind, passed, withheld, .. } = self.totals.lies;
        match kind.filter(|_| peers > 0) {
            Some(Lie::Silent) => limit.push_str(&format!(
                " {} of {} peers {} silent: {} never came.",
                count(peers),
                count(u64::from(self.peers)),
                if peers == 1 { "is" } else { "are" },
                counted(withheld, "result", "results")
            )),
            Some(_) => limit.push_str(&format!(
                " {} of {} peers {}: {} of the micro-batches hold a result of theirs.",
                count(peers),
                count(u64::from(self.peers)),
                if peers == 1 { "lies" } else { "lie" },
                percent(passed as f64 / self.totals.completed.max(1) as f64)
            )),
            None => {}
        }
        limit
    }

    fn bound_by(&self) -> String {
        let share = |cause| self.shares.lost().into_iter().find(|(of, _)| *of == cause).map_or(0.0, |(_, share)| share);
        match self.bottleneck {
            Cause::Compute => {
                format!("What limits it is compute ({} of the devices' time).", percent(self.shares.computing))
            }
            cause => format!("What limits it is {} ({} of the lost time).", cause.name(), percent(share(cause))),
        }
    }

    /// Properties that were violated, each once.
    pub fn broken(&self) -> Vec<&str> {
        let mut broken: Vec<&str> =
            self.violations.iter().map(|violation| violation.violation.property.as_str()).collect();
        broken.sort_unstable();
        broken.dedup();
        broken
    }
}

impl Seed {
    fn of(outcome: &Outcome) -> Seed {
        let shares = real_shares(&outcome.shares);
        Seed {
            seed: outcome.seed,
            digest: outcome.digest.clone(),
            events: outcome.events,
            simulated_s: real(outcome.simulated_s),
            ended: real_end(&outcome.ended),
            tokens_per_s: real(outcome.tokens_per_s()),
            goodput: real(outcome.goodput()),
            bytes_per_peer: real(outcome.bytes_per_peer()),
            usd_per_billion_tokens: outcome
                .cost
                .as_ref()
                .map(|cost| cost.usd_per_billion_tokens)
                .filter(|usd| usd.is_finite()),
            bottleneck: shares.bottleneck(),
            shares,
            totals: real_totals(&outcome.totals),
        }
    }
}

/// JSON has no word for what is no number: there it is 0, or nothing where a value may be missing.
pub(super) fn real(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

/// Ten digits of each number: more are chance, and these read back from JSON as they were written.
fn rounded(summary: Summary) -> Summary {
    fn round(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Number(number) if number.is_f64() => {
                let exact = number.as_f64().unwrap_or(0.0);
                let few = if exact.abs() < 1e-12 { 0.0 } else { format!("{exact:.9e}").parse().unwrap_or(exact) };
                *value = few.into();
            }
            serde_json::Value::Array(values) => values.iter_mut().for_each(round),
            serde_json::Value::Object(fields) => fields.values_mut().for_each(round),
            _ => {}
        }
    }
    let Ok(mut document) = serde_json::to_value(&summary) else { return summary };
    round(&mut document);
    serde_json::from_value(document).unwrap_or(summary)
}

fn real_end(ended: &Ended) -> Ended {
    match ended {
        Ended::Stuck { stage, since_s, why } => {
            Ended::Stuck { stage: *stage, since_s: real(*since_s), why: why.clone() }
        }
        other => other.clone(),
    }
}

fn real_shares(shares: &Shares) -> Shares {
    Shares {
        computing: real(shares.computing),
        upload: real(shares.upload),
        download: real(shares.download),
        imbalance: real(shares.imbalance),
        latency: real(shares.latency),
        churn: real(shares.churn),
        staleness: real(shares.staleness),
    }
}

fn real_totals(totals: &Totals) -> Totals {
    let finite = |value: Option<f64>| value.filter(|value| value.is_finite());
    Totals {
        loss_first: finite(totals.loss_first),
        loss_last: finite(totals.loss_last),
        loss_reference: finite(totals.loss_reference),
        flops_useful: real(totals.flops_useful),
        flops_done: real(totals.flops_done),
        peer_s: real(totals.peer_s),
        ..*totals
    }
}

/// Stuck before interrupted before finished; of the stuck, the earliest.
fn worst(outcomes: &[Outcome]) -> Ended {
    let rank = |ended: &Ended| match ended {
        Ended::Stuck { since_s, .. } => (0, real(*since_s)),
        Ended::Interrupted => (1, 0.0),
        Ended::Finished => (2, 0.0),
    };
    outcomes
        .iter()
        .map(|outcome| real_end(&outcome.ended))
        .min_by(|a, b| {
            let (a, b) = (rank(a), rank(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        })
        .unwrap_or(Ended::Finished)
}

fn average(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut number) = (0.0, 0.0);
    for value in values.filter(|value| value.is_finite()) {
        sum += value;
        number += 1.0;
    }
    if number > 0.0 { sum / number } else { 0.0 }
}

fn mean_shares(seeds: &[Seed]) -> Shares {
    let of = |part: fn(&Shares) -> f64| average(seeds.iter().map(|seed| part(&seed.shares)));
    Shares {
        computing: of(|shares| shares.computing),
        upload: of(|shares| shares.upload),
        download: of(|shares| shares.download),
        imbalance: of(|shares| shares.imbalance),
        latency: of(|shares| shares.latency),
        churn: of(|shares| shares.churn),
        staleness: of(|shares| shares.staleness),
    }
}

fn mean_totals(seeds: &[Seed]) -> Totals {
    let whole = |part: fn(&Totals) -> u64| {
        let sum: u128 = seeds.iter().map(|seed| u128::from(part(&seed.totals))).sum();
        let number = seeds.len().max(1) as u128;
        ((sum + number / 2) / number) as u64
    };
    let part = |part: fn(&Totals) -> f64| average(seeds.iter().map(|seed| part(&seed.totals)));
    let some = |part: fn(&Totals) -> Option<f64>| {
        Estimate::of(&seeds.iter().filter_map(|seed| part(&seed.totals)).collect::<Vec<_>>()).map(|loss| loss.mean)
    };
    Totals {
        tokens: whole(|totals| totals.tokens),
        completed: whole(|totals| totals.completed),
        voided: whole(|totals| totals.voided),
        applied: whole(|totals| totals.applied),
        perished: whole(|totals| totals.perished),
        refused: whole(|totals| totals.refused),
        pending: whole(|totals| totals.pending),
        lost: whole(|totals| totals.lost),
        doubled: whole(|totals| totals.doubled),
        overlapped: whole(|totals| totals.overlapped),
        resent: whole(|totals| totals.resent),
        steps: whole(|totals| totals.steps),
        rounds: whole(|totals| totals.rounds),
        rounds_rolled_back: whole(|totals| totals.rounds_rolled_back),
        staleness_p50: whole(|totals| u64::from(totals.staleness_p50)) as u32,
        staleness_p99: whole(|totals| u64::from(totals.staleness_p99)) as u32,
        loss_first: some(|totals| totals.loss_first),
        loss_last: some(|totals| totals.loss_last),
        loss_reference: some(|totals| totals.loss_reference),
        traffic: Traffic {
            activations: whole(|totals| totals.traffic.activations),
            gradients: whole(|totals| totals.traffic.gradients),
            averaging: whole(|totals| totals.traffic.averaging),
            weights: whole(|totals| totals.traffic.weights),
            control: whole(|totals| totals.traffic.control),
        },
        flops_useful: part(|totals| totals.flops_useful),
        flops_done: part(|totals| totals.flops_done),
        peer_s: part(|totals| totals.peer_s),
        joined: whole(|totals| totals.joined),
        left: whole(|totals| totals.left),
        died: whole(|totals| totals.died),
        lies: Lies {
            peers: whole(|totals| totals.lies.peers),
            kind: seeds.iter().find_map(|seed| seed.totals.lies.kind),
            passed: whole(|totals| totals.lies.passed),
            refused: whole(|totals| totals.lies.refused),
            withheld: whole(|totals| totals.lies.withheld),
        },
    }
}

fn mean_stages(outcomes: &[Outcome]) -> Vec<StageRow> {
    let Some(first) = outcomes.first() else { return Vec::new() };
    let same = |row: &StageRow| {
        let stage = row.stage;
        let found = outcomes.iter().filter_map(move |outcome| outcome.by_stage.iter().find(|row| row.stage == stage));
        found.copied()
    };
    first
        .by_stage
        .iter()
        .map(|row| StageRow {
            stage: row.stage,
            replicas: average(same(row).map(|row| row.replicas)),
            replicas_min: same(row).map(|row| row.replicas_min).min().unwrap_or(0),
            busy: average(same(row).map(|row| row.busy)),
            sending: average(same(row).map(|row| row.sending)),
            receiving: average(same(row).map(|row| row.receiving)),
            completed: average(same(row).map(|row| row.completed as f64)).round() as u64,
            empty_s: average(same(row).map(|row| row.empty_s)),
        })
        .collect()
}

fn mean_cost(outcomes: &[Outcome]) -> Option<Cost> {
    let costs: Vec<&Cost> = outcomes.iter().filter_map(|outcome| outcome.cost.as_ref()).collect();
    let first = *costs.first()?;
    let of = |part: fn(&Cost) -> f64| average(costs.iter().map(|cost| part(cost)));
    Some(Cost {
        kwh: of(|cost| cost.kwh),
        usd: of(|cost| cost.usd),
        kwh_per_billion_tokens: of(|cost| cost.kwh_per_billion_tokens),
        usd_per_billion_tokens: of(|cost| cost.usd_per_billion_tokens),
        reference: first.reference.clone(),
        reference_usd_per_billion_tokens: of(|cost| cost.reference_usd_per_billion_tokens),
        reference_kwh_per_billion_tokens: of(|cost| cost.reference_kwh_per_billion_tokens),
        assumptions: first.assumptions.clone(),
    })
}

fn expected(summary: &Summary, expect: &Expect, outcomes: &[Outcome]) -> Vec<Expected> {
    let mut all = Vec::new();
    let mut add = |what: &str, wanted: String, got: String, met: bool| {
        all.push(Expected { what: what.into(), wanted, got, met });
    };
    let figures = &summary.figures;
    if let Some(least) = expect.tokens_per_s_min {
        let got = figures.tokens_per_s.mean;
        add(
            "throughput",
            format!("at least {} tokens/s", figure(least)),
            format!("{} tokens/s", figure(got)),
            got >= least,
        );
    }
    if let Some(least) = expect.goodput_min {
        let got = figures.goodput.mean;
        // Of no work no part counts.
        let met = got >= least && summary.totals.tokens > 0;
        add("goodput", format!("at least {}", percent(least)), summary.goodput(), met);
    }
    if let Some(most) = expect.lost_max {
        let got = summary.seeds.iter().map(|seed| seed.totals.lost).max().unwrap_or(0);
        add("lost work", format!("at most {}", count(most)), count(got), got <= most);
    }
    if let Some(least) = expect.recovers_min {
        let all: Vec<f64> = outcomes.iter().filter_map(Outcome::recovers).collect();
        let got = Estimate::of(&all).map(|of| of.mean);
        add(
            "throughput of the last third",
            format!("at least {} of that of the first", percent(least)),
            got.map_or("-".into(), percent),
            got.is_some_and(|got| got >= least),
        );
    }
    if let Some(cause) = &expect.bottleneck {
        let got = summary.bottleneck.name();
        let key = |name: &str| name.trim().to_lowercase().replace('_', " ");
        // `imbalance` in a document is `stage imbalance` in words.
        let met = key(got) == key(cause) || key(got) == format!("stage {}", key(cause));
        add("the bottleneck", cause.clone(), got.into(), met);
    }
    all
}

fn command(outcomes: &[Outcome]) -> String {
    let Some(first) = outcomes.first() else { return String::new() };
    let fidelity = fidelity_name(first.fidelity);
    let seeds = outcomes.len();
    let row = outcomes.windows(2).all(|pair| pair[1].seed == pair[0].seed.wrapping_add(1));
    let which = match (seeds, first.seed) {
        (1, seed) => format!("--seed {seed}"),
        (_, 1) if row => format!("--seeds {seeds}"),
        (_, seed) => format!("--seed {seed} --seeds {seeds}"),
    };
    format!("skein simulate {} {which} --fidelity {fidelity}", quoted(&first.scenario))
}

pub fn fidelity_name(fidelity: Fidelity) -> &'static str {
    match fidelity {
        Fidelity::Protocol => "protocol",
        Fidelity::Fleet => "fleet",
    }
}

/// A word so that a shell takes it as it is.
pub fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./=,:".contains(letter);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}
