//! The demo, kill included: each case kills another peer at another moment, and the books must be right.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use crate::process::{Skein, alone};

fn run(args: &[&str]) -> (Value, bool) {
    let _alone = alone();
    let home = tempfile::tempdir().unwrap();
    let (mut lines, status) = Skein::start(home.path(), args).finish();
    let done = lines.pop().unwrap_or_default();
    assert_eq!(done["type"], "DemoDone", "{done} {}", std::fs::read_to_string(home.path().join("stderr")).unwrap());
    (done, status.success())
}

/// Kills peer `number` of 6 (3 stages of 2 replicas) at a share of 40 steps.
fn killed(number: u16, percent: u16) {
    let seed = number.to_string();
    let (done, success) = run(&["demo", "--steps", "40", "--seed", &seed, "--kill", &format!("{number}@{percent}%")]);
    for nothing in ["lost", "doubled", "overlapped"] {
        assert_eq!(done[nothing], 0, "{nothing}: {done}");
    }
    assert_eq!(done["killed"].as_array().unwrap().len(), 1);
    assert!(done["completed"].as_u64().unwrap() >= 80, "{done}");
    assert!(success, "{done}");
    assert_eq!(done["shortfalls"], Value::Array(vec![]));
    told(&done);
    println!("peer {number} at {percent} %: repair {} ms, joiner {} ms", done["repair_ms_max"], done["joiner_ms"]);
}

fn number(done: &Value, name: &str) -> f64 {
    done[name].as_f64().unwrap_or_else(|| panic!("{name} is no number: {done}"))
}

/// What any swarm of several stages and replicas can tell.
fn told(done: &Value) {
    for some in ["rounds", "tokens_per_s", "bytes_activations", "bytes_gradients", "bytes_averaging", "wall_s"] {
        assert!(number(done, some) > 0.0, "{some}: {done}");
    }
    // Between bf16 and int8 with its scales.
    let coded = number(done, "bytes_if_f32") / number(done, "bytes_activations");
    assert!((1.5..4.1).contains(&coded), "f32 would be {coded} times as much: {done}");
    assert!(number(done, "disagreement") < 0.02, "{done}");
    for text in ["before", "after"] {
        assert!(done["samples"][text].as_str().is_some_and(|text| text.len() > 20), "{text}: {done}");
    }
}

/// Sums of the last counts of the peers' lanes, from the logs that a demo kept.
fn lanes(kept: &Path) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for home in std::fs::read_dir(kept).unwrap().map(|home| home.unwrap().path()) {
        let Ok(log) = std::fs::read_to_string(home.join("runs/demo/events.jsonl")) else { continue };
        let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let traffic = records.filter(|record| record["type"] == "Traffic");
        let last: BTreeMap<String, u64> = traffic
            .map(|record| (record["lane"].as_str().unwrap().to_string(), record["sent"].as_u64().unwrap()))
            .collect();
        for (lane, sent) in last {
            *sums.entry(lane).or_default() += sent;
        }
    }
    sums
}

#[test]
fn a_kill_of_the_first_stage_loses_nothing() {
    killed(1, 20);
    killed(4, 60);
}

#[test]
fn a_kill_of_a_middle_stage_loses_nothing() {
    killed(2, 30);
    killed(5, 70);
}

#[test]
fn a_kill_of_the_last_stage_loses_nothing() {
    killed(3, 40);
    killed(6, 50);
}

#[test]
fn one_peer_alone_is_a_swarm_too() {
    let (done, success) = run(&["demo", "--peers", "1", "--stages", "1", "--steps", "20", "--no-kill"]);
    assert!(success && done["lost"] == 0, "{done}");
    assert_eq!(done["bytes_activations"], 0, "nothing leaves the one stage");
}

/// Steps that the loss needs to halve, with room; two cores that do nothing else make several times as many in a minute.
const ENOUGH: f64 = 80.0;

/// Steps after which it spells most of what it says: four fifths of the words, where each of four samples differs by a sixth from
/// the others. An untrained one spells one in twenty.
const SPELLS: f64 = 400.0;
/// Steps after which it spells nearly all of it.
const SPELLS_WELL: f64 = 700.0;

/// As a person runs it, half of the first loss included. A machine that has hardly any time for it gets more minutes, to which the
/// same rule applies. Words are asked of a run that had the steps to learn them.
#[test]
fn the_demo_of_a_minute_keeps_its_promises() {
    let homes = tempfile::tempdir().unwrap();
    let demo = |seconds: &str| {
        let kept = homes.path().join(seconds);
        let (done, success) = run(&["demo", "--seconds", seconds, "--keep", kept.to_str().unwrap()]);
        (done, success, kept)
    };
    let minute = demo("60");
    let (done, success, kept) = if number(&minute.0, "steps") < ENOUGH { demo("200") } else { minute };
    assert!(success, "{done}");
    assert!(number(&done, "loss_last") < number(&done, "loss_first") / 2.0, "{done}");
    told(&done);
    assert_eq!((done["killed"].as_array().unwrap().len(), done["joined"].as_array().unwrap().len()), (1, 1));
    assert!(number(&done, "joiner_ms") > 0.0, "{done}");
    // Nothing of it is open where the kill came between two micro-batches.
    let repair = done.get("repair_ms_max").unwrap_or_else(|| panic!("no repair: {done}"));
    assert!(repair.is_null() || repair.as_u64() > Some(0), "{done}");
    let lanes = lanes(&kept);
    for lane in ["control", "gradient", "activation", "average", "generation", "bulk"] {
        assert!(lanes[lane] > 0, "{lane}: {lanes:?}");
    }
    let (known, before) = (&done["samples"]["known_words_after"], &done["samples"]["known_words_before"]);
    println!("{} steps, words {before} -> {known}: {}", done["steps"], done["samples"]["after"]);
    if number(&done, "steps") >= SPELLS {
        let least = if number(&done, "steps") >= SPELLS_WELL { 0.8 } else { 0.6 };
        assert!(known.as_f64().is_some_and(|share| share >= least), "{done}");
    }
}

#[cfg(unix)]
#[test]
fn a_demo_that_is_told_to_stop_leaves_nothing_behind() {
    let _alone = alone();
    let home = tempfile::tempdir().unwrap();
    let mut demo = Skein::start(home.path(), &["demo"]);
    demo.wait_for("Completed");
    let folders = || {
        let entries = std::fs::read_dir(home.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().to_string());
        names.filter(|name| name.starts_with("skein-demo-")).collect::<Vec<_>>()
    };
    let folder = folders();
    assert_eq!(folder.len(), 1);
    demo.signal(libc::SIGTERM);
    let (_, status) = demo.finish();
    assert_eq!(status.code(), Some(130));
    assert_eq!(folders(), Vec::<String>::new());
    assert_eq!(processes_of(&folder[0]), Vec::<String>::new());
}

/// Command lines of living processes that name `folder`, where the system shows them.
#[cfg(unix)]
fn processes_of(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).to_string()).filter(|line| line.contains(folder)).collect()
}
