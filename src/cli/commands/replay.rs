//! `skein replay`: what happened in a run, from the event logs of its peers; with `--check`, whether it was right.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;
use skein_protocol::event::{Event, Record};
use skein_simulations::checker::{self, Given, Line, Property, log};

use crate::cli::{
    args::Replay,
    chronicle::Chronicle,
    context::Context,
    failure::{Failure, Report},
    show::{Count, Peer, counted},
};

/// Properties that logs of real peers can show; bounds of a run (P6, P7) stand in its manifest, not in its logs.
const SHOWN: [Property; 7] = {
    use Property::*;
    [P1, P2, P3, P4, P5, P10, P13]
};

/// Why the others are not.
const UNSHOWN: &str =
    "a log holds neither the bounds of its run, nor what a peer asked of its driver, nor a second history";

pub fn run(args: &Replay, context: &Context) -> Result<u8, Report> {
    let mut logs = Vec::new();
    for path in args.logs.iter().flat_map(|path| event_logs(path)) {
        logs.push(read(&path)?);
    }
    if logs.iter().all(Vec::is_empty) {
        let path = args.logs.first().map_or(String::new(), |path| path.display().to_string());
        return Err(Failure::NoEvents { path, why: "it holds no event".into() }.into());
    }
    let lines = log::merge(logs);
    if args.check { check(&lines, context) } else { print(&lines, args, context) }
}

/// A file, or the logs of a home folder.
fn event_logs(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_path_buf()];
    }
    let mut found = Vec::new();
    let mut folders = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("events")) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> Result<Vec<Record>, Report> {
    let no = |why: String| Report::from(Failure::NoEvents { path: path.display().to_string(), why });
    let text = fs::read_to_string(path).map_err(|error| no(error.to_string()))?;
    log::read(&text).map_err(|error| no(error.to_string()))
}

fn print(lines: &[Line], args: &Replay, context: &Context) -> Result<u8, Report> {
    let mut first_seen = BTreeMap::new();
    for line in lines {
        let order = first_seen.len();
        first_seen.entry(line.record.peer).or_insert(order);
    }
    let mut peers: Vec<_> = first_seen.into_iter().collect();
    peers.sort_by_key(|(_, order)| *order);
    let chronicle = Chronicle::new(peers.into_iter().map(|(peer, _)| (peer, peer.short())));
    let began = lines.first().map_or(0, |line| line.at);
    let wanted =
        |line: &&Line| args.peer.as_ref().is_none_or(|start| line.record.peer.to_string().starts_with(start.as_str()));
    for line in lines.iter().filter(wanted) {
        if context.out.style().json {
            context.out.record(&line.record);
        } else {
            context.out.print(&chronicle.line(Duration::from_nanos(line.at - began), line));
        }
    }
    Ok(0)
}

/// What no event says is taken from the logs: as many stages as were served, and no bound that was not named.
fn check(lines: &[Line], context: &Context) -> Result<u8, Report> {
    let stages = lines.iter().filter_map(|line| match &line.record.event {
        Event::Serving { stage, .. } => Some(stage + 1),
        _ => None,
    });
    let given = Given {
        stages: stages.max().unwrap_or(0),
        staleness_bound: u32::MAX,
        in_flight_max: u32::MAX,
        reach_max: u64::MAX,
        kills: log::deaths(lines),
        partial: true,
    };
    let died = given.kills.len() as u64;
    let summary = checker::check(lines, &given);
    if context.out.style().json {
        let shown = SHOWN.map(|property| property.to_string());
        context.out.document("replay", &json!({ "events": lines.len(), "checked": shown, "summary": summary }));
    } else {
        context.out.print(&format!(
            "{} events: {} completed; of their gradients, one a stage, {} applied, {} pending, {} perished, {} refused, \
             {} lost, {} counted twice",
            Count(lines.len() as u64),
            counted(summary.completed, "micro-batch"),
            Count(summary.applied),
            Count(summary.pending),
            Count(summary.perished),
            Count(summary.refused),
            Count(summary.lost),
            Count(summary.doubled)
        ));
        if died > 0 {
            let names: Vec<String> = given.kills.iter().map(|kill| Peer(kill.peer).to_string()).collect();
            context.out.print(&format!(
                "{} died, by what the others say: {}; what was not safe then perished",
                counted(died, "peer"),
                names.join(", ")
            ));
        }
        for property in SHOWN {
            let broken: Vec<_> = summary.broken.iter().filter(|broken| broken.property == property).collect();
            let mark = if broken.is_empty() { "held" } else { "BROKEN" };
            context.out.print(&format!("{:<4} {mark:<7} {}", property.to_string(), property.says()));
            broken.iter().for_each(|broken| context.out.print(&format!("       {}", broken.what)));
        }
        let not_shown: Vec<String> =
            Property::ALL.iter().filter(|property| !SHOWN.contains(property)).map(ToString::to_string).collect();
        context.out.print(&format!("not checked: {}, because {UNSHOWN}", not_shown.join(", ")));
    }
    Ok(if summary.broken.is_empty() { 0 } else { 10 })
}
