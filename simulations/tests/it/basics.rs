//! Without faults.

use skein_protocol::event::Event;
use skein_simulations::{Plan, Role, Setup, Simulation, Small};

use crate::common::{assert_settled, assert_sound, demo, seconds, swarm};

#[test]
fn a_lone_peer_trains() {
    let peers = vec![Plan { bootstrap: vec![], ..Plan::new(Role::alone(3)) }];
    let mut sim = Simulation::new(Setup::new(1, Small::demo(3).manifest(), peers));
    assert!(sim.run_completed(seconds(60), 100), "{:#?}", sim.summary());
    assert_sound(&sim, "alone");
}

#[test]
fn six_peers_in_three_stages_train() {
    let mut sim = demo(1, 3, 2);
    assert!(sim.run_completed(seconds(60), 200), "{:#?}", sim.summary());
    let summary = assert_sound(&sim, "swarm");
    assert!(summary.loss_last < summary.loss_first);
}

#[test]
fn a_run_that_ends_leaves_nothing_open() {
    let mut manifest = Small::demo(3).manifest();
    manifest.run.ends.steps = Some(31);
    let mut sim = Simulation::new(Setup::new(2, manifest, swarm(3, 2)));
    sim.run_for(seconds(20));
    let summary = assert_sound(&sim, "ended");
    assert_settled(&sim, "ended");
    assert!(sim.lines().iter().any(|line| matches!(line.record.event, Event::RunEnded { .. })));
    assert!(summary.completed >= 31 * 4, "{summary:#?}");
    assert_eq!((summary.pending, summary.perished), (0, 0));
}
