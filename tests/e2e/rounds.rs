//! A replica is killed while it averages with another: the other rolls back, and the books of all are right.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::process::{Skein, alone, books, invite, manifest_of, text};

/// How often a kill may come too late before the test gives up.
const TRIES: usize = 20;

/// Reads until a round of this replica is due: its proposal leaves in the turn that wrote the line.
fn wait_for_a_due_round(peer: &mut Skein, every: u64) {
    let mut since: BTreeMap<u64, u64> = BTreeMap::new();
    let due = peer.wait_until(|line| {
        let Some(stage) = line["stage"].as_u64() else { return false };
        let steps = since.entry(stage).or_default();
        match line["type"].as_str() {
            // With its first round a newcomer is in step with itself.
            Some("Round") => *steps = 1,
            Some("Stepped") if *steps > 0 => *steps += 1,
            _ => {}
        }
        *steps > every
    });
    assert!(due.is_some(), "it ended before a round was due");
}

fn is_round_with(line: &Value, partner: &Value, outcomes: &[&str]) -> bool {
    line["type"] == "Round" && line["partner"] == *partner && outcomes.iter().any(|outcome| line["outcome"] == *outcome)
}

#[test]
fn a_partner_that_is_killed_in_a_round_costs_nothing_but_the_round() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (data, home, friends) = (dir.path().join("data.txt"), dir.path().join("owner"), dir.path().join("friend"));
    text(&data);
    let data = data.display().to_string();
    let mut owner = Skein::start(&home, &["train", "--preset", "demo", "--run-name", "tale", "--data", &data]);
    let invite = invite(&mut owner);
    let manifest = manifest_of(&home);
    let every = u64::from(manifest.averaging.every);

    let mut kills = Vec::new();
    let hit = (0..TRIES).any(|_| {
        let mut friend = Skein::start(&friends, &["join", &invite]);
        let me = friend.wait_for("Started")["peer"].clone();
        wait_for_a_due_round(&mut friend, every);
        kills.push((serde_json::from_value(me.clone()).unwrap(), friend.kill()));
        // A round that was in the air ends when the partner is seen to be gone.
        let mut rolled_back = false;
        owner.wait_until(|line| {
            rolled_back |= is_round_with(line, &me, &["neither", "one_sided"]);
            line["type"] == "PeerLost" && line["peer"] == me
        });
        rolled_back |= owner
            .wait_until(|line| line["type"] == "Completed" || is_round_with(line, &me, &["neither", "one_sided"]))
            .is_some_and(|line| line["type"] == "Round");
        rolled_back
    });
    assert!(hit, "none of {TRIES} kills came in the middle of a round");
    println!("kill {} came in the middle of a round", kills.len());

    // The partner comes back, and its next round succeeds on both sides.
    let mut friend = Skein::start(&friends, &["join", &invite]);
    let me = friend.wait_for("Started")["peer"].clone();
    owner.wait_until(|line| is_round_with(line, &me, &["both"])).expect("a later round succeeds");
    friend.leave();
    owner.leave();

    let books = books(&[&home, &friends], &kills);
    assert_eq!((books.lost, books.doubled, books.overlapped), (0, 0, 0), "{books:?}");
    assert!(books.completed > 0 && books.broken.is_empty(), "{books:?}");
}
