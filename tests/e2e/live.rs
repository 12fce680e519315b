//! Every command that asks a running peer, in text and in `--json`: documents, main fields, exit codes.

use std::{path::Path, process::Output};

use serde_json::Value;

use crate::{
    api,
    process::{Skein, alone, invite, text},
};

fn printed(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command prints when all is well.
fn said(peer: &Skein, args: &[&str]) -> String {
    let output = peer.ask(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    printed(&output)
}

/// The one document that a command prints in `--json`.
fn document(peer: &Skein, args: &[&str]) -> Value {
    let text = said(peer, &[args, &["--json"]].concat());
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"));
    assert_eq!((&document["command"], &document["schema"]), (&args[0].into(), &1.into()), "{document}");
    document
}

/// The exit code of a command that does not work, and the failure's; the message is also on stderr.
fn refused(peer: &Skein, args: &[&str]) -> (Option<i32>, String) {
    let output = peer.ask(&[args, &["--json"]].concat());
    let document: Value = serde_json::from_str(printed(&output).lines().last().unwrap_or_default()).unwrap();
    let code = document["error"]["code"].as_str().unwrap().to_string();
    let words = peer.ask(args);
    assert_eq!(words.status.code(), output.status.code(), "{args:?}");
    assert!(String::from_utf8_lossy(&words.stderr).contains(&code), "{args:?}");
    (output.status.code(), code)
}

fn swarm(dir: &Path) -> (Skein, Skein, Value) {
    let data = dir.join("data.txt");
    text(&data);
    let data = data.display().to_string();
    let train = ["train", "--preset", "demo", "--run-name", "tale", "--data", &data];
    let mut owner = Skein::start(&dir.join("owner"), &train);
    let mut friend = Skein::start(&dir.join("friend"), &["join", &invite(&mut owner)]);
    let id = friend.wait_for("Started")["peer"].clone();
    friend.wait_for("Serving");
    friend.wait_for("Stepped");
    (owner, friend, id)
}

#[test]
fn every_command_asks_a_running_peer_in_words_and_in_json() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (owner, friend, friend_id) = swarm(dir.path());

    for peer in [&owner, &friend] {
        let ready = document(peer, &["status", "--wait", "ready", "--timeout", "60s"]);
        assert_eq!((&ready["run"]["name"], &ready["phase"]), (&"tale".into(), &"training".into()), "{ready}");
        assert!(ready["step"].as_u64().unwrap() > 0 && ready["loss"].as_f64().unwrap() > 0.0, "{ready}");
        assert_eq!(ready["stages"].as_array().unwrap().len(), 3);
        assert!(!ready["mine"].as_array().unwrap().is_empty(), "{ready}");
    }
    let status = said(&owner, &["status"]);
    assert!(status.starts_with("tale   training   step ") && status.contains("stage 2"), "{status}");
    assert!(said(&owner, &["status", "--wait", "step=1"]).starts_with("tale"));

    // The friend's offer, with its stage, may reach the owner a moment after the friend itself is ready.
    let known = |peers: &Value| peers["peers"][0]["stages"].as_array().is_some_and(|stages| !stages.is_empty());
    let mut asked = (0..200).map(|_| document(&owner, &["peers"]));
    let peers = asked.find(known).expect("the owner hears what its friend serves");
    let other = &peers["peers"][0];
    assert_eq!((&other["peer"], &other["connected"], &other["path"]), (&friend_id, &true.into(), &"direct".into()));
    let table = said(&owner, &["peers", "--wide"]);
    assert!(table.starts_with("PEER\tSTAGE\tSTATE") && table.contains(friend_id.as_str().unwrap()), "{table}");

    let made = document(&friend, &["invite"]);
    assert!(made["invite"].as_str().unwrap().starts_with("skein1"), "{made}");
    assert_eq!(made["peers"], 2, "{made}");
    let word = said(&friend, &["invite"]);
    let shown = document(&owner, &["invite", "--show", word.trim()]);
    assert_eq!((&shown["label"], shown["peers"].as_array().unwrap().len()), (&"tale".into(), 2), "{shown}");

    texts(&owner, "tale");
    let model = dir.path().join("model").display().to_string();
    let exported = document(&friend, &["export", "tale", "--out", &model]);
    assert_eq!((&exported["run"], &exported["out"]), (&"tale".into(), &model.clone().into()), "{exported}");
    assert!(exported["parameters"].as_u64().unwrap() > 0 && exported["step"].as_u64().unwrap() > 0, "{exported}");
    assert_eq!(refused(&friend, &["export", "tale", "--out", &model]), (Some(2), "SK314".into()));
    assert_eq!(said(&owner, &["export", "tale", "--out", &model, "--force"]).trim(), model);
    texts(&owner, &model);
    api::a_run_is_served(&dir.path().join("owner"), "tale");

    assert_eq!(refused(&owner, &["generate", "other-tale", "The fox"]), (Some(2), "SK312".into()));
    assert_eq!(refused(&owner, &["export", "other-tale", "--out", "x"]), (Some(2), "SK312".into()));

    let stopped = document(&friend, &["stop"]);
    assert!(stopped["pid"].as_u64().unwrap() > 0 && stopped["now"] == false, "{stopped}");
    assert!(friend.finish().1.success());
    assert_eq!(said(&owner, &["stop"]), "");
    assert_eq!(refused(&owner, &["status"]), (Some(4), "SK701".into()));
    assert!(owner.finish().1.success());
}

/// Text of a run or of a folder.
fn texts(peer: &Skein, model: &str) {
    let args = ["generate", model, "The fox", "--max-tokens", "8", "--seed", "7"];
    let answer = document(peer, &args);
    assert_eq!((&answer["prompt"], &answer["tokens"], &answer["seed"]), (&"The fox".into(), &8.into(), &7.into()));
    assert!(!answer["text"].as_str().unwrap().is_empty(), "{answer}");
    let text = said(peer, &args);
    assert!(text.starts_with("The fox") && text.len() > "The fox\n".len(), "{text}");
}

#[test]
fn a_run_whose_stages_nobody_serves_cannot_answer() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.txt");
    text(&data);
    let data = data.display().to_string();
    let train = ["train", "--preset", "demo", "--run-name", "tale", "--data", &data, "--no-serve"];
    let mut owner = Skein::start(&dir.path().join("owner"), &train);
    invite(&mut owner);
    assert_eq!(document(&owner, &["peers"])["peers"], Value::Array(Vec::new()));
    assert_eq!(refused(&owner, &["generate", "tale", "The fox"]), (Some(6), "SK702".into()));
    api::a_run_that_nobody_serves_is_asked_again_later(&dir.path().join("owner"), "tale");
    let model = dir.path().join("model").display().to_string();
    assert_eq!(refused(&owner, &["export", "tale", "--out", &model]), (Some(6), "SK702".into()));
    assert_eq!(refused(&owner, &["status", "--wait", "step=1", "--timeout", "1s"]), (Some(1), "SK705".into()));
    owner.leave();
}
