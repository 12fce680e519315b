//! What the manifest says of who may take part, between real processes.

use std::fs;

use serde_json::Value;
use skein_protocol::run::{Size, preset::preset, text as toml};

use crate::process::{Skein, alone, invite, text};

/// The code with which a command ended.
fn code(joiner: Skein) -> (Option<i32>, Value) {
    let (mut lines, status) = joiner.finish();
    let error = lines.pop().unwrap_or_default()["error"].clone();
    println!("{error}");
    (status.code(), error["code"].clone())
}

#[test]
fn a_full_run_says_so_and_keeps_its_members() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (dir.path().join("data.txt"), dir.path().join("run.toml"));
    text(&data);
    let mut manifest = preset("demo").unwrap();
    manifest.run.name = "small-club".into();
    manifest.admission.peers_max = 2;
    manifest.admission.memory_min = Size(512 << 20);
    // Without an owner it is whoever trains it.
    let manifest = toml::write(&manifest);
    let lines: Vec<&str> = manifest.lines().filter(|line| !line.starts_with("owner")).collect();
    fs::write(&run, lines.join("\n")).unwrap();
    let (data, run) = (data.display().to_string(), run.display().to_string());
    let mut owner = Skein::start(&dir.path().join("owner"), &["train", "--run", &run, "--data", &data]);
    let invite = invite(&mut owner);

    // Too little for this run, though enough for a stage.
    let poor = Skein::start(&dir.path().join("poor"), &["join", &invite, "--memory", "300MiB", "--wait", "20s"]);
    assert_eq!(code(poor), (Some(6), "SK310".into()));

    let home = dir.path().join("friend");
    let mut friend = Skein::start(&home, &["join", &invite]);
    friend.wait_for("Serving");
    let late = Skein::start(&dir.path().join("late"), &["join", &invite, "--wait", "2s"]);
    assert_eq!(code(late), (Some(6), "SK309".into()));

    // Who has a place keeps it over a restart.
    friend.kill();
    let mut friend = Skein::start(&home, &["join"]);
    friend.wait_for("Stepped");
}
