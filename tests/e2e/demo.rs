//! The demo, kill included: each case kills another peer at another moment, and the books must be right.

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
    println!("peer {number} at {percent} %: repair {} ms, joiner {} ms", done["repair_ms_max"], done["joiner_ms"]);
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
