//! `report.html`: one file that opens without a network. In: a summary, its explanation, the charts and the scenario's text.
//! Out: text. All that a user wrote is escaped; fidelity stands above every number.

use std::fmt::Write;

use super::{
    advice::Change,
    charts::Charts,
    drawing::Drawing,
    estimate::Estimate,
    explain::Explanation,
    numbers::{bytes, count, counted, figure, percent, short, span},
    summary::{Summary, fidelity_name},
    svg::{escape, svg},
};
use crate::{
    outcome::{Ended, Fidelity, Learning},
    words::{WORDS, find},
};

const STYLE: &str = include_str!("page.css");
const HOVER: &str = include_str!("hover.js");

/// Rows of a table of the page; `summary.json` holds the rest.
const ROWS_MAX: usize = 100;
/// Letters of a scenario's text, so that the page stays small.
const TEXT_MAX: usize = 100_000;

/// The page. `text` is the scenario as it ran.
pub fn page(summary: &Summary, explanation: &Explanation, charts: &Charts, text: &str) -> String {
    let mut body = String::new();
    opening(&mut body, summary);
    figures(&mut body, summary);
    expected(&mut body, summary);
    limits(&mut body, explanation, charts);
    drawings(&mut body, summary, charts);
    cost(&mut body, summary, charts);
    properties(&mut body, summary);
    totals(&mut body, summary);
    modelled(&mut body, summary);
    scenario(&mut body, text);
    words(&mut body);
    repeat(&mut body, summary);
    frame(&format!("{}: simulation by skein", summary.scenario), &body)
}

/// A whole document around a body.
pub(super) fn frame(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n<script>\n{HOVER}</script>\n</body>\n</html>\n",
        escape(title)
    )
}

/// Text grows: writing to it cannot fail.
macro_rules! put {
    ($body:expr, $($arguments:tt)*) => { writeln!($body, $($arguments)*).expect("text grows") };
}

/// Escaped text whose numbers stay together at the end of a line.
pub(super) fn flow(text: &str) -> String {
    let mut flowing = String::with_capacity(text.len());
    let mut before = ' ';
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let joins = |next: &char| next.is_ascii_digit() || *next == '%';
        let glue = letter == ' ' && before.is_ascii_digit() && letters.peek().is_some_and(joins);
        flowing.push(if glue { '\u{a0}' } else { letter });
        before = letter;
    }
    escape(&flowing)
}

fn opening(body: &mut String, summary: &Summary) {
    put!(
        body,
        "<header>\n<p class=\"name\">{} &#183; simulation of {} in {} for {}</p>\n<h1>{}</h1>",
        escape(&summary.scenario),
        counted(u64::from(summary.peers), "peer", "peers"),
        counted(u64::from(summary.stages), "stage", "stages"),
        span(summary.simulated_s()),
        escape(&summary.question)
    );
    let verdict = summary.verdict();
    let (word, rest) = verdict.split_once([':', ',']).unwrap_or((&verdict, ""));
    let mark = verdict[word.len()..].chars().next().map_or(String::new(), String::from);
    let class = match word {
        "Yes" => "good",
        _ if verdict.starts_with("No") => "no",
        _ => "plain",
    };
    put!(body, "<p class=\"verdict\"><span class=\"{class}\">{}</span>{mark}{}</p>", escape(word), flow(rest));
    let (class, meaning) = fidelity(summary.fidelity);
    put!(
        body,
        "<p class=\"fidelity {class}\"><strong>Fidelity: {}.</strong> {meaning}{}</p>\n</header>",
        fidelity_name(summary.fidelity),
        match summary.learning {
            Learning::None => " The loss was not simulated.",
            Learning::Curve => " The loss is an <strong>estimate</strong> from a published law.",
            Learning::Real => " The loss is that of a tiny model that was really trained.",
        }
    );
}

pub(super) fn fidelity(fidelity: Fidelity) -> (&'static str, &'static str) {
    match fidelity {
        Fidelity::Protocol => (
            "protocol",
            "Every frame and timer of the program's own peers was followed, under a simulated network and clock.",
        ),
        Fidelity::Fleet => (
            "fleet",
            "Peers were followed as flows and ticks, not frame by frame: numbers are approximate, calibrated against the protocol.",
        ),
    }
}

fn figures(body: &mut String, summary: &Summary) {
    let all = &summary.figures;
    put!(body, "<dl class=\"figures\">");
    one(body, "Throughput", &figure(all.tokens_per_s.mean), "tokens/s", &band(&all.tokens_per_s, figure));
    one(body, "Goodput", &summary.goodput(), "of work counts", &band(&all.goodput, percent));
    let per_hour = summary.bytes_per_peer_hour().map_or(String::new(), |sent| format!(" ({} an hour)", bytes(sent)));
    one(
        body,
        "Given to the network",
        &bytes(all.bytes_per_peer.mean),
        &format!("a peer{per_hour}"),
        &band(&all.bytes_per_peer, bytes),
    );
    match (&all.loss_last, summary.learning) {
        (_, Learning::None) => one(body, "Loss", "not simulated", "", ""),
        (Some(loss), learning) => {
            let name = if learning == Learning::Curve { "Loss (estimate)" } else { "Loss" };
            let beside = all
                .loss_reference
                .map_or(String::new(), |loss| format!("{} without churn and delay", figure(loss.mean)));
            one(body, name, &figure(loss.mean), &beside, &band(loss, figure));
        }
        (None, _) => one(body, "Loss", "not known", "", ""),
    }
    match &all.usd_per_billion_tokens {
        Some(usd) => one(body, "Cost", &format!("USD {}", figure(usd.mean)), "a billion tokens", &band(usd, figure)),
        None => one(body, "Cost", "not counted", "", ""),
    }
    put!(body, "</dl>");
    let seeds = summary.seeds.len() as u64;
    if seeds > 1 {
        put!(
            body,
            "<p class=\"note\">Means of {} seeds; in brackets the interval that holds the mean with 95 % confidence (Student's t). Charts over time show seed {}; the band is from the slowest to the fastest seed.</p>",
            count(seeds),
            summary.seeds[0].seed
        );
    } else {
        put!(
            body,
            "<p class=\"note\">One seed: how much of this is chance is not known. Run several with <code>--seeds 5</code>.</p>"
        );
    }
}

fn one(body: &mut String, name: &str, number: &str, unit: &str, band: &str) {
    let below = |class: &str, text: &str| {
        if text.is_empty() { String::new() } else { format!("<dd class=\"{class}\">{}</dd>", escape(text)) }
    };
    put!(
        body,
        "<div><dt{}>{}</dt><dd class=\"number\">{}</dd>{}{}</div>",
        meaning(name),
        escape(name),
        escape(number),
        below("unit", unit),
        below("band", band)
    );
}

/// What a word means, for who points at it.
fn meaning(name: &str) -> String {
    find(name).map_or(String::new(), |word| format!(" title=\"{}\"", escape(word.short())))
}

fn band(estimate: &Estimate, written: fn(f64) -> String) -> String {
    match (estimate.low, estimate.high) {
        (Some(low), Some(high)) => format!("[{} to {}]", written(low), written(high)),
        _ => String::new(),
    }
}

fn expected(body: &mut String, summary: &Summary) {
    if summary.expected.is_empty() {
        return;
    }
    put!(
        body,
        "<h2>What was expected</h2>\n<div class=\"scroll\"><table><thead><tr><th>What</th><th>Expected</th><th>Came</th><th></th></tr></thead><tbody>"
    );
    for expected in &summary.expected {
        put!(
            body,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&expected.what),
            escape(&expected.wanted),
            escape(&expected.got),
            if expected.met { "<span class=\"good\">met</span>" } else { "<span class=\"no\">not met</span>" }
        );
    }
    put!(body, "</tbody></table></div>");
}

fn limits(body: &mut String, explanation: &Explanation, charts: &Charts) {
    put!(body, "<h2>What limits it</h2>\n<div class=\"split\">\n<div>");
    let (last, first) =
        explanation.sentences.split_last().map_or(("", &[][..]), |(last, first)| (last.as_str(), first));
    for sentence in first {
        put!(body, "<p>{}</p>", flow(sentence));
    }
    put!(body, "<p class=\"change\">{}</p>\n</div>", flow(last));
    figure_of(body, &charts.shares, "shares", false);
    put!(body, "</div>");
    if explanation.changes.len() > 1 {
        put!(
            body,
            "<div class=\"scroll\"><table><thead><tr><th>If one changed</th><th>Typed</th><th>against</th><th class=\"n\">tokens/s (estimate)</th></tr></thead><tbody>"
        );
        for change @ Change { cause, what, gain, then, .. } in &explanation.changes {
            let then = then.map_or(String::new(), |then| format!("; then {} limits", then.name()));
            put!(
                body,
                "<tr><td>{}</td><td><code>{}</code></td><td>{}</td><td class=\"n\">&#215; {gain:.2}{}</td></tr>",
                escape(what),
                escape(&change.typed()),
                cause.name(),
                escape(&then)
            );
        }
        put!(body, "</tbody></table></div>");
    }
}

fn drawings(body: &mut String, summary: &Summary, charts: &Charts) {
    put!(body, "<h2>Over time</h2>\n<div class=\"charts\">");
    figure_of(body, &charts.throughput, "throughput", false);
    figure_of(body, &charts.goodput, "goodput", false);
    figure_of(body, &charts.peers, "peers", false);
    figure_of(body, &charts.traffic, "traffic", false);
    figure_of(body, &charts.churn, "churn", true);
    figure_of(body, &charts.stages, "stages", true);
    figure_of(body, &charts.busy, "busy", false);
    figure_of(body, &charts.staleness, "staleness", false);
    if let Some(loss) = &charts.loss {
        figure_of(body, loss, "loss", false);
    }
    figure_of(body, &charts.per_peer, "bytes", false);
    if let Some(disagreement) = &charts.disagreement {
        figure_of(body, disagreement, "disagreement", false);
    }
    put!(body, "</div>");
    if let Ended::Stuck { stage: Some(stage), since_s, .. } = &summary.ended {
        put!(body, "<p class=\"note\">Stage {stage} is where it stopped, after {}.</p>", span(*since_s));
    }
}

pub(super) fn figure_of(body: &mut String, drawing: &Drawing, name: &str, wide: bool) {
    put!(body, "<figure{}>{}</figure>", if wide { " class=\"wide\"" } else { "" }, svg(drawing, name));
}

fn cost(body: &mut String, summary: &Summary, charts: &Charts) {
    let (Some(cost), Some(drawing)) = (&summary.cost, &charts.cost) else { return };
    put!(body, "<h2>Cost</h2>\n<div class=\"split\">\n<div>");
    let times = cost.usd_per_billion_tokens / cost.reference_usd_per_billion_tokens;
    let beside = match times {
        times if !times.is_finite() || times <= 0.0 => String::new(),
        times if times >= 1.0 => format!(" That is {} times as much here.", figure(times)),
        times => format!(" Here it is {} of that.", percent(times)),
    };
    put!(
        body,
        "<p>A billion tokens cost USD {} and {} kWh here; the same work on {} costs USD {} and {} kWh.{beside}</p>",
        figure(cost.usd_per_billion_tokens),
        figure(cost.kwh_per_billion_tokens),
        escape(&cost.reference),
        figure(cost.reference_usd_per_billion_tokens),
        figure(cost.reference_kwh_per_billion_tokens)
    );
    put!(body, "<p class=\"note\">What this assumes, the assumption that matters most first:</p>");
    list(body, &cost.assumptions);
    put!(body, "</div>");
    figure_of(body, drawing, "cost", false);
    put!(body, "</div>");
}

fn list(body: &mut String, sentences: &[String]) {
    if sentences.is_empty() {
        return;
    }
    put!(body, "<ul>");
    for sentence in sentences.iter().take(ROWS_MAX) {
        put!(body, "<li>{}</li>", flow(sentence));
    }
    put!(body, "</ul>");
}

fn properties(body: &mut String, summary: &Summary) {
    put!(body, "<h2>Properties that were checked</h2>");
    if summary.properties.is_empty() {
        put!(body, "<p>None.</p>");
    }
    if summary.violations.is_empty() {
        if !summary.properties.is_empty() {
            put!(
                body,
                "<p><span class=\"good\">{} held:</span> {}.</p>",
                if summary.properties.len() == 1 {
                    "1 property".into()
                } else {
                    format!("All {}", summary.properties.len())
                },
                escape(&summary.properties.join(", "))
            );
        }
        return;
    }
    put!(
        body,
        "<p><span class=\"no\">{} did not hold</span> of {} that were looked at: {}.</p>",
        counted(summary.broken().len() as u64, "property", "properties"),
        summary.properties.len(),
        escape(&summary.properties.join(", "))
    );
    put!(
        body,
        "<div class=\"scroll\"><table><thead><tr><th>Property</th><th class=\"n\">Seed</th><th class=\"n\">At</th><th class=\"n\">Peer</th><th>What</th></tr></thead><tbody>"
    );
    for seen in summary.violations.iter().take(ROWS_MAX) {
        let violation = &seen.violation;
        put!(
            body,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            escape(&violation.property),
            seen.seed,
            super::numbers::clock(violation.at_s),
            violation.peer.map_or("-".into(), |peer| peer.to_string()),
            escape(&violation.what)
        );
    }
    put!(body, "</tbody></table></div>");
    if summary.violations.len() > ROWS_MAX {
        put!(
            body,
            "<p class=\"note\">{} more stand in summary.json.</p>",
            count((summary.violations.len() - ROWS_MAX) as u64)
        );
    }
}

fn totals(body: &mut String, summary: &Summary) {
    let totals = &summary.totals;
    let traffic = &totals.traffic;
    let work = [
        ("Tokens trained", short(totals.tokens as f64)),
        ("Micro-batches completed", count(totals.completed)),
        ("given up, to be done again", count(totals.voided)),
        ("sent again, as somebody was lost or silent", count(totals.resent)),
        ("Run steps", count(totals.steps)),
        ("Gradients in the weights (all stages)", count(totals.applied)),
        ("in an open sum at the end", count(totals.pending)),
        ("perished with their peer", count(totals.perished)),
        ("refused as too old", count(totals.refused)),
        ("lost", count(totals.lost)),
        ("counted twice", count(totals.doubled)),
        ("done by two, counted once", count(totals.overlapped)),
        ("Averaging rounds", count(totals.rounds)),
        ("rolled back", count(totals.rounds_rolled_back)),
    ];
    let lies = &totals.lies;
    let of_liars = [
        ("Peers that lie", count(lies.peers)),
        ("micro-batches completed with a result of theirs", count(lies.passed)),
        ("given up, as a value was not finite", count(lies.refused)),
        ("results that they kept back", count(lies.withheld)),
    ];
    let work: Vec<_> = work.into_iter().chain(of_liars.into_iter().filter(|_| lies.peers > 0)).collect();
    let rest = [
        ("Staleness, median and 99th percentile", format!("{} and {}", totals.staleness_p50, totals.staleness_p99)),
        ("Peers that joined", count(totals.joined)),
        ("left politely", count(totals.left)),
        ("died", count(totals.died)),
        ("Time that peers were there", format!("{} peer hours", figure(totals.peer_s / 3600.0))),
        ("Bytes in all", bytes(traffic.all() as f64)),
        ("activations", bytes(traffic.activations as f64)),
        ("gradients", bytes(traffic.gradients as f64)),
        ("averaging", bytes(traffic.averaging as f64)),
        ("weights and snapshots", bytes(traffic.weights as f64)),
        ("control, tokens and labels", bytes(traffic.control as f64)),
        ("Operations done", format!("{} FLOP", short_power(totals.flops_done))),
        ("of them in the weights", format!("{} FLOP", short_power(totals.flops_useful))),
        ("Parameters of the model", short(summary.parameters as f64)),
    ];
    put!(body, "<h2>Totals</h2>\n<div class=\"split\">");
    for side in [&work[..], &rest[..]] {
        put!(body, "<table><tbody>");
        for (name, value) in side {
            let part = name.starts_with(char::is_lowercase);
            put!(
                body,
                "<tr><td{}{}>{}</td><td class=\"n\">{}</td></tr>",
                if part { " class=\"part\"" } else { "" },
                meaning(name.split([' ', ',']).next().unwrap_or_default()),
                escape(name),
                escape(value)
            );
        }
        put!(body, "</tbody></table>");
    }
    put!(body, "</div>");
    if summary.seeds.len() > 1 {
        put!(
            body,
            "<h2>Each seed</h2>\n<div class=\"scroll\"><table><thead><tr><th class=\"n\">Seed</th><th class=\"n\">tokens/s</th><th class=\"n\">Goodput</th><th class=\"n\">A peer</th><th>Bottleneck</th><th>Ended</th><th>Digest</th></tr></thead><tbody>"
        );
        for seed in summary.seeds.iter().take(ROWS_MAX) {
            let ended = match &seed.ended {
                Ended::Finished => "finished".to_string(),
                Ended::Interrupted => format!("interrupted after {}", span(seed.simulated_s)),
                Ended::Stuck { since_s, .. } => format!("stuck after {}", span(*since_s)),
            };
            put!(
                body,
                "<tr><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td><td>{ended}</td><td><code>{}</code></td></tr>",
                seed.seed,
                figure(seed.tokens_per_s),
                if seed.totals.tokens == 0 { "-".into() } else { percent(seed.goodput) },
                bytes(seed.bytes_per_peer),
                seed.bottleneck.name(),
                escape(&short_digest(&seed.digest))
            );
        }
        put!(body, "</tbody></table></div>");
    }
}

fn short_power(value: f64) -> String {
    if value >= 1e15 { format!("{value:.2e}") } else { short(value) }
}

/// The start of a digest: enough to compare by eye.
pub(super) fn short_digest(digest: &str) -> String {
    if digest.chars().count() > 19 {
        format!("{}...", digest.chars().take(19).collect::<String>())
    } else {
        digest.into()
    }
}

fn modelled(body: &mut String, summary: &Summary) {
    put!(body, "<h2>What is modelled and what is not</h2>");
    if summary.remarks.is_empty() {
        put!(body, "<p>No remarks on this run.</p>");
    }
    list(body, &summary.remarks);
}

fn scenario(body: &mut String, text: &str) {
    put!(body, "<h2>The scenario as it ran</h2>");
    let cut: String = text.chars().take(TEXT_MAX).collect();
    put!(body, "<pre tabindex=\"0\">{}</pre>", escape(cut.trim_end()));
    if cut.len() < text.len() {
        put!(body, "<p class=\"note\">The rest of the text is left out here.</p>");
    }
}

/// What the words of this page mean, one sentence each; `skein explain WORD` has the rest.
fn words(body: &mut String) {
    put!(body, "<h2>Words</h2>\n<details><summary>What the words on this page mean</summary>\n<dl class=\"words\">");
    for word in WORDS {
        put!(body, "<dt>{}</dt><dd>{}</dd>", escape(word.word), flow(word.short()));
    }
    put!(body, "</dl>\n<p class=\"note\"><code>skein explain WORD</code> says more of each.</p>\n</details>");
}

fn repeat(body: &mut String, summary: &Summary) {
    put!(body, "<h2>To repeat it</h2>\n<pre tabindex=\"0\">{}</pre>", escape(&summary.command));
    put!(body, "<p class=\"note\">The same seed and scenario give the same digest, on every machine.</p>");
    put!(body, "<div class=\"scroll\"><table><tbody>");
    let mut row = |name: &str, value: &str| {
        put!(body, "<tr><th>{name}</th><td><code>{}</code></td></tr>", escape(value));
    };
    row("Fidelity", fidelity_name(summary.fidelity));
    let seeds: Vec<String> = summary.seeds.iter().take(ROWS_MAX).map(|seed| seed.seed.to_string()).collect();
    row(if seeds.len() == 1 { "Seed" } else { "Seeds" }, &seeds.join(", "));
    row("Scenario's digest", &summary.config);
    if let [seed] = summary.seeds.as_slice() {
        row("Digest of all that happened", &seed.digest);
    } else {
        for seed in summary.seeds.iter().take(ROWS_MAX) {
            row(&format!("Digest, seed {}", seed.seed), &seed.digest);
        }
    }
    let events: u64 = summary.seeds.iter().map(|seed| seed.events).sum();
    row("Events", &count(events));
    row("Version of skein", &summary.skein);
    put!(body, "</tbody></table></div>");
    put!(
        body,
        "<footer>Beside this file: summary.json, series.csv, peers.csv, stages.csv, and pictures of the main charts in plots.</footer>"
    );
}
