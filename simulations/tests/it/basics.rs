//! Without faults.

use skein_simulations::{Plan, Role, Scenario, Simulation, Small};

use crate::common::{assert_sound, demo, seconds};

#[test]
fn a_lone_peer_trains() {
    let peers = vec![Plan { bootstrap: vec![], ..Plan::new(Role::alone(3)) }];
    let mut sim = Simulation::new(Scenario::new(1, Small::demo(3).manifest(), peers));
    assert!(sim.run_completed(seconds(60), 100), "{:#?}", sim.summary());
    assert_sound(&sim, "alone");
}

#[test]
fn six_peers_in_three_stages_train() {
    let mut sim = demo(1, 3, 2);
    let done = sim.run_completed(seconds(60), 200);
    let summary = assert_sound(&sim, "swarm");
    println!("{:?} {summary:#?}", sim.now());
    assert!(done);
}
