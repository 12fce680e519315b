//! More peers than one of them dials.

use skein_simulations::{Plan, Role, Setup, Simulation, Small};

use crate::common::{assert_sound, seconds};

/// Hosts of the first stage; with three of each other stage, and the feeder.
const FIRST: usize = 33;

#[test]
fn in_a_swarm_of_forty_those_who_need_each_other_are_connected() {
    let manifest = || Small { round_every: 0, ..Small::demo(3) }.manifest();
    let count = FIRST + 7;
    let bare = Setup::new(81, manifest(), Vec::new());
    let mut by_id: Vec<usize> = (0..count).collect();
    by_id.sort_by_key(|peer| bare.key(*peer).peer());
    // Hosts of the later stages have the greatest ids: whoever dials in the order of ids never comes to them.
    let mut peers = vec![Plan::new(Role::feeder()); count];
    for (rank, peer) in by_id.iter().filter(|peer| **peer != 0).enumerate() {
        let stage = rank.saturating_sub(FIRST - 1).div_ceil(3) as u16;
        peers[*peer] = Plan::new(Role::host(stage));
    }
    let mut sim = Simulation::new(Setup::new(81, manifest(), peers));
    assert!(sim.run_completed(seconds(40), 100), "{:#?}", sim.summary());
    assert_sound(&sim, "forty");
}

#[test]
fn where_hundreds_serve_every_stage_no_micro_batch_gets_stuck() {
    let manifest = Small { round_every: 0, ..Small::demo(2) }.manifest();
    let everything = Role { hosts: vec![0, 1], ..Role::default() };
    let mut peers = vec![Plan::new(Role::feeder())];
    peers.extend((0..280).map(|_| Plan::new(everything.clone())));
    let mut sim = Simulation::new(Setup::new(82, manifest, peers));
    assert!(sim.run_completed(seconds(60), 200), "{:#?}", sim.summary());
    assert_sound(&sim, "hundreds");
}
