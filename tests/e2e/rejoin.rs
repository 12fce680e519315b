//! `train` and `join` as two terminals: kill -9 of either, and back with the same home, without the invite.

use std::fs;

use crate::process::{Skein, alone, invite, text};

#[test]
fn whoever_was_killed_comes_back_without_an_invite() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (data, owner_home, friend_home) =
        (dir.path().join("data.txt"), dir.path().join("owner"), dir.path().join("friend"));
    text(&data);
    let data = data.display().to_string();
    let mut owner = Skein::start(&owner_home, &["train", "--preset", "demo", "--run-name", "tale", "--data", &data]);
    let invite = invite(&mut owner);

    let mut friend = Skein::start(&friend_home, &["join", &invite]);
    let first = friend.wait_for("Started");
    friend.wait_for("Serving");
    friend.wait_for("Stepped");
    friend.kill();

    // The training goes on, and the friend is itself again: the same key, the next incarnation.
    owner.wait_for("PeerLost");
    owner.wait_for("Completed");
    let mut friend = Skein::start(&friend_home, &["join"]);
    let again = friend.wait_for("Started");
    assert_eq!(first["peer"], again["peer"]);
    assert!(again["incarnation"].as_u64() > first["incarnation"].as_u64());
    friend.wait_for("Stepped");

    // The feeder dies, and feeds on after its return, under its own name.
    owner.kill();
    let mut owner = Skein::start(&owner_home, &["train", "--run", "tale", "--data", &data]);
    owner.wait_for("Completed");
    friend.wait_for("Stepped");
    drop((owner, friend));
    let logs = [&owner_home, &friend_home].map(|home| fs::read_dir(home.join("runs")).unwrap().count());
    assert!(logs.iter().all(|count| *count > 0));
}
