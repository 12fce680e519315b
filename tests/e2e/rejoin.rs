//! `train` and `join` as two terminals: kill -9 of either, and back with the same home, without the invite.

use std::{collections::BTreeSet, fs};

use serde_json::Value;
use skein::home::Home;

use crate::process::{Skein, alone, books, invite, text};

/// States are saved often enough for a kill to find one.
const SAVED: &[(&str, &str)] = &[("SKEIN_STORE__CHECKPOINT_EVERY", "10s")];

/// The own step at which a peer that is back serves its first stage. No stage may begin anew.
fn served_from(peer: &mut Skein) -> u64 {
    let serving = peer.wait_until(|line| {
        assert!(line["type"] != "Restored" || line["from_seed"] == false, "{line}");
        line["type"] == "Serving"
    });
    serving.expect("it serves")["version"]["own_step"].as_u64().unwrap()
}

fn id_of(started: &Value) -> skein_protocol::PeerId {
    serde_json::from_value(started["peer"].clone()).unwrap()
}

#[test]
fn whoever_was_killed_comes_back_without_an_invite() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (data, owner_home, friend_home) =
        (dir.path().join("data.txt"), dir.path().join("owner"), dir.path().join("friend"));
    text(&data);
    let data = data.display().to_string();
    let train = ["train", "--preset", "demo", "--run-name", "tale", "--data", &data];
    let mut owner = Skein::start_with(&owner_home, &train, SAVED);
    let invite = invite(&mut owner);
    let owner_id = id_of(&owner.wait_for("Started"));

    let mut friend = Skein::start_with(&friend_home, &["join", &invite], SAVED);
    let first = friend.wait_for("Started");
    friend.wait_for("Serving");
    friend.wait_for("Stepped");
    let mut kills = vec![(id_of(&first), friend.kill())];

    // The training goes on, and the friend is itself again: the same key, the next incarnation. It finds the others by its
    // address book alone.
    owner.wait_until(|line| line["type"] == "PeerLost" && line["peer"] == first["peer"]).expect("its loss is seen");
    owner.forget();
    owner.wait_for("Completed");
    fs::remove_file(Home::at(&friend_home).runs().last().unwrap().path.join("invite")).unwrap();
    let mut friend = Skein::start_with(&friend_home, &["join"], SAVED);
    let again = friend.wait_for("Started");
    assert_eq!(first["peer"], again["peer"]);
    assert!(again["incarnation"].as_u64() > first["incarnation"].as_u64());
    assert!(served_from(&mut friend) > 0, "what the run has learned is taken over");
    friend.wait_for("Stepped");

    // The feeder dies, and feeds on after its return, under its own name and from its own checkpoints: the stages that it
    // served alone do not begin anew.
    let mut saved = BTreeSet::new();
    owner
        .wait_until(|line| {
            if line["type"] == "Saved" {
                saved.insert(line["version"]["stage"].as_u64());
            }
            saved.len() == 3
        })
        .expect("it saves its three stages");
    kills.push((owner_id, owner.kill()));
    friend
        .wait_until(|line| line["type"] == "PeerLost" && line["peer"] == *owner_id.to_string())
        .expect("its loss is seen");
    friend.forget();
    let mut owner = Skein::start_with(&owner_home, &["train", "--run", "tale", "--data", &data], SAVED);
    assert!(served_from(&mut owner) > 0, "the checkpoint is resumed");
    owner.wait_for("Completed");
    friend.wait_for("Stepped");
    friend.leave();
    owner.leave();

    let books = books(&[&owner_home, &friend_home], &kills);
    assert_eq!((books.lost, books.doubled), (0, 0), "{books:?}");
    assert!(books.completed > 0 && books.broken.is_empty(), "{books:?}");
}
