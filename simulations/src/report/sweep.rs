//! Many scenarios that differ in a few keys, as maps. In: points, each with what was set and its outcomes. Out: a folder with
//! `sweep.html`, `sweep.csv`, `sweep.json` and pictures of the maps.
//!
//! The first key runs to the right and the second down; for each choice of the others there is a map of its own.

use serde::Serialize;

use super::{
    Folder,
    drawing::{Anchor, Drawing, Ink},
    frame::step_of,
    numbers::{count, counted, figure, percent, short},
    page::{figure_of, frame},
    pixels::png,
    summary::{Summary, Told, fidelity_name},
    svg::escape,
    tables::Row,
};
use crate::{
    outcome::{Cause, Ended, Outcome, SCHEMA},
    scenario::unchanged,
};

/// Maps on a page; the rest is in the tables.
const MAPS_MAX: usize = 40;
/// Cells of a side that can still be read.
const SIDE_MAX: usize = 40;

/// One place of the sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// What was set: key and value, in the order in which they were asked for.
    pub over: Vec<(String, String)>,
    /// One a seed; none where it did not come to run.
    pub outcomes: Vec<Outcome>,
}

/// `sweep.json`
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    points: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    over: &'a [(String, String)],
    summary: Option<&'a Summary>,
}

/// What a map shows.
struct Measure {
    name: &'static str,
    value: fn(&Summary) -> Option<f64>,
    written: fn(f64) -> String,
    /// The darkest cell is the lowest, as with cost.
    less_is_more: bool,
}

const MEASURES: [Measure; 3] = [
    Measure {
        name: "tokens/s",
        value: |summary| Some(summary.figures.tokens_per_s.mean),
        written: short,
        less_is_more: false,
    },
    Measure {
        name: "goodput",
        value: |summary| Some(summary.figures.goodput.mean),
        written: percent,
        less_is_more: false,
    },
    Measure {
        name: "USD per 10^9 tokens",
        value: |summary| summary.figures.usd_per_billion_tokens.map(|usd| usd.mean),
        written: figure,
        less_is_more: true,
    },
];

/// One of the maps: the points that share all but two keys.
struct Map<'a> {
    title: String,
    across: (String, Vec<String>),
    down: (String, Vec<String>),
    cells: Vec<(usize, usize, Option<&'a Summary>)>,
}

pub fn sweep(points: &[Point]) -> Folder {
    let summaries: Vec<Option<Summary>> =
        points.iter().map(|point| Summary::of(&point.outcomes, &Told::default())).collect();
    let mut folder = Folder::default();
    let maps = maps(points, &summaries);
    let drawings: Vec<Vec<Drawing>> = maps
        .iter()
        .take(MAPS_MAX)
        .map(|map| MEASURES.iter().filter_map(|measure| draw(map, measure)).collect())
        .collect();
    folder.add("sweep.html", page(points, &summaries, &drawings));
    folder.add("sweep.csv", table(points, &summaries));
    let entries = points.iter().zip(&summaries);
    let document = Document {
        schema: SCHEMA,
        points: entries.map(|(point, summary)| Entry { over: &point.over, summary: summary.as_ref() }).collect(),
    };
    let mut json = serde_json::to_string_pretty(&document).expect("plain data");
    json.push('\n');
    folder.add("sweep.json", json);
    let origin = match summaries.iter().flatten().next() {
        Some(first) => format!("fidelity {}, {}", fidelities(&summaries).join(" and "), first.scenario),
        None => "no place came to run".into(),
    };
    for (place, drawings) in drawings.iter().enumerate().filter(|(_, drawings)| !drawings.is_empty()) {
        let name = if maps.len() == 1 { "plots/sweep.png".into() } else { format!("plots/sweep-{}.png", place + 1) };
        folder.add(&name, png(drawings, &origin));
    }
    folder
}

/// The letter of a bottleneck in a cell.
pub fn letter(cause: Cause) -> char {
    match cause {
        Cause::Compute => 'C',
        Cause::Upload => 'U',
        Cause::Download => 'D',
        Cause::Latency => 'L',
        Cause::Imbalance => 'I',
        Cause::Churn => 'X',
        Cause::Staleness => 'S',
    }
}

fn keys(points: &[Point]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for (key, _) in points.iter().flat_map(|point| &point.over) {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    keys
}

fn value<'a>(point: &'a Point, key: &str) -> &'a str {
    point.over.iter().find(|(of, _)| of == key).map_or("", |(_, value)| value.as_str())
}

fn maps<'a>(points: &[Point], summaries: &'a [Option<Summary>]) -> Vec<Map<'a>> {
    let keys = keys(points);
    let mut maps: Vec<Map> = Vec::new();
    for (point, summary) in points.iter().zip(summaries) {
        let others: Vec<String> = keys.iter().skip(2).map(|key| format!("{key} = {}", value(point, key))).collect();
        let title = others.join(", ");
        let place = maps.iter().position(|map| map.title == title).unwrap_or_else(|| {
            let name = |which: usize| keys.get(which).cloned().unwrap_or_default();
            maps.push(Map { title, across: (name(0), Vec::new()), down: (name(1), Vec::new()), cells: Vec::new() });
            maps.len() - 1
        });
        let map = &mut maps[place];
        let column = place_of(&mut map.across.1, value(point, &map.across.0));
        let row = place_of(&mut map.down.1, value(point, &map.down.0));
        map.cells.push((column, row, summary.as_ref()));
    }
    maps
}

/// Where a value stands, in the order in which values came.
fn place_of(values: &mut Vec<String>, value: &str) -> usize {
    values.iter().position(|of| of == value).unwrap_or_else(|| {
        values.push(value.to_string());
        values.len() - 1
    })
}

/// Nothing where no cell has the value, or the map is too large to read.
fn draw(map: &Map, measure: &Measure) -> Option<Drawing> {
    let (columns, rows) = (map.across.1.len(), map.down.1.len());
    if columns == 0 || columns > SIDE_MAX || rows > SIDE_MAX {
        return None;
    }
    let known: Vec<f64> = map.cells.iter().filter_map(|(.., summary)| (measure.value)((*summary)?)).collect();
    let least = known.iter().copied().filter(|value| value.is_finite()).fold(f64::INFINITY, f64::min);
    let most = known.iter().copied().filter(|value| value.is_finite()).fold(f64::NEG_INFINITY, f64::max);
    if !least.is_finite() {
        return None;
    }
    let named = 6.8
        * map.down.1.iter().chain([&map.down.0]).map(|name| name.chars().count().min(18)).max().unwrap_or(0) as f64
        + 12.0;
    let (wide, high) = (74.0, 40.0);
    let top = 58.0;
    let width = (named + wide * columns as f64 + 4.0).max(300.0);
    let mut title = measure.name.to_string();
    if !map.title.is_empty() {
        title.push_str(&format!(", {}", map.title));
    }
    let mut sheet = Drawing::new(width, top + high * rows as f64 + 4.0, &title);
    sheet.heading(0.0, 14.0, title);
    sheet.words(named, 34.0, format!("{} (across)", cut(&map.across.0)), Ink::Muted, Anchor::Start);
    if !map.down.0.is_empty() {
        sheet.words(0.0, 50.0, cut(&map.down.0), Ink::Muted, Anchor::Start);
    }
    for (column, name) in map.across.1.iter().enumerate() {
        let x = named + wide * (column as f64 + 0.5);
        sheet.words(x, 50.0, name.chars().take(10).collect::<String>(), Ink::Text, Anchor::Middle);
    }
    for (row, name) in map.down.1.iter().enumerate() {
        let y = top + high * (row as f64 + 0.5) + 4.0;
        sheet.words(named - 8.0, y, cut(name), Ink::Text, Anchor::End);
    }
    let mut said = Vec::new();
    for (column, row, summary) in &map.cells {
        let (x, y) = (named + wide * *column as f64, top + high * *row as f64);
        let Some((summary, value)) = summary.and_then(|summary| Some((summary, (measure.value)(summary)?))) else {
            sheet.block(x + 1.0, y + 1.0, wide - 2.0, high - 2.0, Ink::Grid);
            sheet.words(x + wide / 2.0, y + 24.0, "-", Ink::Muted, Anchor::Middle);
            continue;
        };
        // What differs by less than a fiftieth looks the same: otherwise chance looks like a finding.
        let part = if most - least > 0.02 * most.abs() { (value - least) / (most - least) } else { 0.5 };
        let step = step_of(if measure.less_is_more { 1.0 - part } else { part });
        let over = if step >= 6 { Ink::Ground } else { Ink::Text };
        let stuck = matches!(summary.ended, Ended::Stuck { .. });
        let below = if stuck { "stuck".to_string() } else { letter(summary.bottleneck).to_string() };
        sheet.block(x + 1.0, y + 1.0, wide - 2.0, high - 2.0, Ink::Heat(step as u8));
        sheet.words(x + wide / 2.0, y + 18.0, (measure.written)(value), over, Anchor::Middle);
        sheet.words(x + wide / 2.0, y + 32.0, below, over, Anchor::Middle);
        said.push(format!(
            "{} {}{}: {}, limited by {}",
            map.across.0,
            map.across.1[*column],
            if map.down.0.is_empty() { String::new() } else { format!(", {} {}", map.down.0, map.down.1[*row]) },
            (measure.written)(value),
            summary.bottleneck.name()
        ));
    }
    sheet.alternative = format!("{}.", said.join("; "));
    Some(sheet)
}

fn cut(name: &str) -> String {
    name.chars().take(18).collect()
}

fn best<'a>(points: &'a [Point], summaries: &'a [Option<Summary>]) -> Option<(&'a Point, &'a Summary)> {
    let mut best: Option<(&Point, &Summary)> = None;
    for (point, summary) in points.iter().zip(summaries) {
        let Some(summary) = summary else { continue };
        if best.is_none_or(|(_, best)| summary.figures.tokens_per_s.mean > best.figures.tokens_per_s.mean) {
            best = Some((point, summary));
        }
    }
    best
}

fn fidelities(summaries: &[Option<Summary>]) -> Vec<&'static str> {
    let mut names: Vec<&str> = summaries.iter().flatten().map(|summary| fidelity_name(summary.fidelity)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn setting(point: &Point) -> String {
    let set: Vec<String> = point.over.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    if set.is_empty() { "the scenario as it is".into() } else { set.join(", ") }
}

fn page(points: &[Point], summaries: &[Option<Summary>], drawings: &[Vec<Drawing>]) -> String {
    let mut body = String::new();
    let mut put = |line: String| {
        body.push_str(&line);
        body.push('\n');
    };
    let ran = summaries.iter().flatten().count() as u64;
    let first = summaries.iter().flatten().next();
    let name = first.map_or("sweep", |summary| summary.scenario.as_str());
    let keys = keys(points);
    put(format!("<header>\n<p class=\"name\">{} &#183; sweep over {}</p>", escape(name), escape(&keys.join(", "))));
    put(format!(
        "<h1>{}</h1>",
        escape(first.map_or("A sweep without results", |summary| question(summaries, summary)))
    ));
    let verdict = match best(points, summaries) {
        Some((point, summary)) => format!(
            "The fastest of {} is {}: {} tokens/s, limited by {}.",
            counted(ran, "place", "places"),
            setting(point),
            figure(summary.figures.tokens_per_s.mean),
            summary.bottleneck.name()
        ),
        None => "No place of this sweep came to run.".into(),
    };
    put(format!("<p class=\"verdict\">{}</p>", super::page::flow(&verdict)));
    let fidelities = fidelities(summaries);
    let class = if fidelities.contains(&"fleet") { " fleet" } else { "" };
    let meaning = match first {
        _ if fidelities.len() > 1 => "Places of different fidelity stand side by side: the table says which.",
        Some(summary) => super::page::fidelity(summary.fidelity).1,
        None => "",
    };
    put(format!(
        "<p class=\"fidelity{class}\"><strong>Fidelity: {}.</strong> {meaning}</p>\n</header>",
        if fidelities.is_empty() { "none".into() } else { fidelities.join(" and ") }
    ));
    let missing: Vec<String> = points
        .iter()
        .zip(summaries)
        .filter(|(_, summary)| summary.is_none())
        .map(|(point, _)| setting(point))
        .collect();
    if !missing.is_empty() {
        put(format!(
            "<p class=\"note\">{} of {} are missing, since they were not simulated to their end: {}.</p>",
            count(missing.len() as u64),
            counted(points.len() as u64, "place", "places"),
            escape(&missing.join("; "))
        ));
    }
    let letters: Vec<String> = [Cause::Compute]
        .iter()
        .chain(&Cause::LOSSES)
        .map(|cause| format!("{} {}", letter(*cause), cause.name()))
        .collect();
    put(format!("<p class=\"note\">Letters in the cells say what limits: {}.</p>", letters.join(", ")));
    for (place, drawings) in drawings.iter().enumerate() {
        body.push_str("<div class=\"cells\">\n");
        for (which, drawing) in drawings.iter().enumerate() {
            body.push_str(&format!("<div class=\"scroll\" style=\"max-width:{:.0}px\">\n", drawing.width * 1.15));
            figure_of(&mut body, drawing, &format!("map-{place}-{which}"), false);
            body.push_str("</div>\n");
        }
        body.push_str("</div>\n");
    }
    rows(&mut body, points, summaries, &keys);
    frame(&format!("{name}: sweep by skein"), &body)
}

/// As it is asked of all places: what differs stands in the table.
fn question<'a>(summaries: &'a [Option<Summary>], first: &'a Summary) -> &'a str {
    let is_same = summaries.iter().flatten().all(|summary| summary.question == first.question);
    if is_same { &first.question } else { unchanged(&first.question) }
}

fn rows(body: &mut String, points: &[Point], summaries: &[Option<Summary>], keys: &[String]) {
    const ROWS_MAX: usize = 2000;
    body.push_str("<h2>All places</h2>\n<div class=\"scroll\"><table><thead><tr>");
    for key in keys {
        body.push_str(&format!("<th class=\"n\">{}</th>", escape(key)));
    }
    body.push_str("<th class=\"n\">tokens/s</th><th class=\"n\">+/-</th><th class=\"n\">Goodput</th><th class=\"n\">USD per 10^9</th><th>Limited by</th><th>Ended</th><th>Fidelity</th></tr></thead><tbody>\n");
    for (point, summary) in points.iter().zip(summaries).take(ROWS_MAX) {
        body.push_str("<tr>");
        for key in keys {
            body.push_str(&format!("<td class=\"n\">{}</td>", escape(value(point, key))));
        }
        match summary {
            Some(summary) => body.push_str(&format!(
                "<td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td><td>{}</td><td>{}</td>",
                figure(summary.figures.tokens_per_s.mean),
                summary.figures.tokens_per_s.half().map_or("-".into(), figure),
                summary.goodput(),
                summary.figures.usd_per_billion_tokens.map_or("-".into(), |usd| figure(usd.mean)),
                summary.bottleneck.name(),
                ended(&summary.ended),
                fidelity_name(summary.fidelity)
            )),
            None => body.push_str("<td colspan=\"7\">did not run</td>"),
        }
        body.push_str("</tr>\n");
    }
    body.push_str("</tbody></table></div>\n");
    if points.len() > ROWS_MAX {
        body.push_str("<p class=\"note\">The rest stands in sweep.csv.</p>\n");
    }
    body.push_str("<footer>Beside this file: sweep.csv, sweep.json, and pictures of the maps in plots.</footer>\n");
}

fn ended(ended: &Ended) -> &'static str {
    match ended {
        Ended::Finished => "finished",
        Ended::Interrupted => "interrupted",
        Ended::Stuck { .. } => "stuck",
    }
}

fn table(points: &[Point], summaries: &[Option<Summary>]) -> String {
    let keys = keys(points);
    let mut head = Row::starting("place");
    for key in &keys {
        head.word(key);
    }
    for name in [
        "seeds",
        "tokens_per_s",
        "tokens_per_s_low",
        "tokens_per_s_high",
        "goodput",
        "bytes_per_peer",
        "loss_last",
        "usd_per_billion_tokens",
        "kwh_per_billion_tokens",
        "bottleneck",
        "ended",
        "fidelity",
        "violations",
    ] {
        head.word(name);
    }
    let mut text = String::new();
    head.end(&mut text);
    for (place, (point, summary)) in points.iter().zip(summaries).enumerate() {
        let mut row = Row::starting(&place.to_string());
        for key in &keys {
            row.word(value(point, key));
        }
        let Some(summary) = summary else {
            row.whole(0);
            for _ in 0..12 {
                row.word("");
            }
            row.end(&mut text);
            continue;
        };
        let figures = &summary.figures;
        let some = |value: Option<f64>| value.unwrap_or(f64::NAN);
        row.whole(summary.seeds.len() as u64).real(figures.tokens_per_s.mean);
        row.real(some(figures.tokens_per_s.low)).real(some(figures.tokens_per_s.high));
        row.real(figures.goodput.mean).real(figures.bytes_per_peer.mean);
        row.real(some(figures.loss_last.map(|loss| loss.mean)));
        row.real(some(figures.usd_per_billion_tokens.map(|usd| usd.mean)));
        row.real(some(figures.kwh_per_billion_tokens.map(|kwh| kwh.mean)));
        row.word(summary.bottleneck.name()).word(ended(&summary.ended)).word(fidelity_name(summary.fidelity));
        row.whole(summary.violations.len() as u64);
        row.end(&mut text);
    }
    text
}
