//! How a person ends a peer: Ctrl-C once and twice, SIGTERM, the end of stdin, `skein stop`, in every phase of its life.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use libc::{SIGINT, SIGSTOP, SIGTERM};
use serde_json::Value;
use skein::{home::Home, node::store::Store};
use skein_protocol::{
    invite::{Address, Invite, InvitePeer, Transport, VERSION},
    key::Key,
};

use crate::process::{Skein, alone, invite, text};

/// Far less than a drain may take.
const AT_ONCE: Duration = Duration::from_secs(5);

fn data(dir: &Path) -> String {
    let path = dir.join("data.txt");
    text(&path);
    path.display().to_string()
}

fn train(home: &Path, data: &str, more: &[&str]) -> Skein {
    let args = ["train", "--preset", "demo", "--run-name", "tale", "--data", data];
    Skein::start(home, &[&args[..], more].concat())
}

fn has(lines: &[Value], kind: &str) -> bool {
    lines.iter().any(|line| line["type"] == kind)
}

fn checkpoints(home: &Path) -> usize {
    let folder = Home::at(home).runs().last().unwrap();
    let (found, remarks) = Store::new(folder.checkpoints(), 3).newest();
    assert!(remarks.is_empty(), "{remarks:?}");
    found.iter().filter(|found| found.version.own_step > 0).count()
}

#[test]
fn one_signal_drains_and_saves() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let data = data(dir.path());
    for signal in [SIGINT, SIGTERM] {
        let home = dir.path().join(signal.to_string());
        let mut owner = train(&home, &data, &[]);
        owner.wait_for("Stepped");
        owner.signal(signal);
        let (lines, status) = owner.finish();
        assert_eq!(status.code(), Some(0), "signal {signal}");
        assert!(has(&lines, "Draining") && has(&lines, "Drained"), "signal {signal}");
        assert!(said(&home).contains("left in good order"), "{}", said(&home));
        assert_eq!(checkpoints(&home), 3, "each stage is saved");
    }
}

fn said(home: &Path) -> String {
    fs::read_to_string(home.join("stderr")).unwrap()
}

/// The replicas are suspended, so that the feeder's drain waits for what is open.
#[test]
fn a_second_signal_ends_a_drain_at_once() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let data = data(dir.path());
    let mut owner = train(&dir.path().join("owner"), &data, &["--no-serve"]);
    let friend = Skein::start(&dir.path().join("friend"), &["join", &invite(&mut owner)]);
    owner.wait_for("Completed");
    friend.signal(SIGSTOP);
    owner.signal(SIGTERM);
    owner.wait_for("Draining");
    owner.signal(SIGINT);
    let second = Instant::now();
    let (lines, status) = owner.finish();
    assert_eq!(status.code(), Some(130));
    assert!(second.elapsed() < AT_ONCE && !has(&lines, "Drained"), "{:?}", second.elapsed());
}

/// An invite of a peer that never answers.
fn dead_invite() -> String {
    let address = Address { transport: Transport::Quic, ip: [127, 0, 0, 1].into(), port: 9 };
    let peers = vec![InvitePeer { id: Key::from_secret([9; 32]).peer(), addresses: vec![address] }];
    let invite = Invite { version: VERSION, run: Default::default(), label: "gone".into(), peers, token: None };
    invite.encode().unwrap()
}

#[test]
fn whoever_waits_for_the_run_can_be_told_to_leave() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let invite = dead_invite();
    let waiting = |name: &str, args: &[&str]| -> (PathBuf, Skein) {
        let home = dir.path().join(name);
        let mut peer = Skein::start(&home, &[&["join", &invite], args].concat());
        peer.wait_for_words("looking for 1 peer of the invite");
        (home, peer)
    };
    for (name, signal) in [("interrupted", SIGINT), ("terminated", SIGTERM)] {
        let (home, peer) = waiting(name, &[]);
        peer.signal(signal);
        assert_eq!(peer.finish().1.code(), Some(0), "{name}: {}", said(&home));
        assert!(said(&home).contains("left before the run was found"), "{}", said(&home));
    }
    let (home, mut peer) = waiting("let-go", &["--until-stdin-closes"]);
    peer.close_stdin();
    assert_eq!(peer.finish().1.code(), Some(0), "{}", said(&home));
}

/// The model of a run that has ended is on the disk when its owner says that all is well.
#[test]
fn a_signal_while_the_model_is_saved_does_not_cost_it() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let data = data(dir.path());
    let (home, model) = (dir.path().join("owner"), dir.path().join("model"));
    let mut owner = train(&home, &data, &["--steps", "5", "--out", &model.display().to_string()]);
    owner.wait_for("RunEnded");
    owner.signal(SIGINT);
    assert_eq!(owner.finish().1.code(), Some(0), "{}", said(&home));
    assert!(model.join("model.safetensors").exists());
}

#[test]
fn a_model_that_cannot_be_saved_is_no_good_end_after_a_signal_either() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let data = data(dir.path());
    let (home, model) = (dir.path().join("owner"), dir.path().join("model"));
    let mut owner = train(&home, &data, &["--steps", "5", "--out", &model.display().to_string()]);
    invite(&mut owner);
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), "somebody else's").unwrap();
    owner.wait_for("RunEnded");
    owner.signal(SIGINT);
    let (lines, status) = owner.finish();
    assert_eq!((status.code(), &lines.last().unwrap()["error"]["code"]), (Some(2), &"SK314".into()), "{}", said(&home));
    assert!(!said(&home).contains("left in good order"), "{}", said(&home));
}

#[test]
fn stop_lets_a_peer_drain_and_now_does_not() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let data = data(dir.path());
    for (name, now) in [("stopped", false), ("stopped-now", true)] {
        let mut owner = train(&dir.path().join(name), &data, &[]);
        owner.wait_for("Stepped");
        let stop = owner.ask(if now { &["stop", "--now", "--json"] } else { &["stop", "--json"] });
        let document: Value = serde_json::from_slice(&stop.stdout).unwrap();
        assert!(stop.status.success() && document["command"] == "stop" && document["now"] == now, "{document}");
        let (lines, status) = owner.finish();
        assert_eq!((status.code(), has(&lines, "Drained")), (Some(0), !now), "{name}");
    }
}
