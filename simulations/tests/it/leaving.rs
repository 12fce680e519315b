//! Replicas that leave while others die.

use std::time::Duration;

use skein_pipeline::peer::io::Command;
use skein_protocol::event::Event;
use skein_simulations::{Fault, Plan, Role, Scenario, Simulation, Small, worker::learning::Learning, world::Corpus};

use crate::common::{demo, seconds, unsound};

#[test]
fn a_death_upstream_of_a_replica_that_leaves_doubles_and_overlaps_nothing() {
    let mut failed = Vec::new();
    for seed in 0..60u64 {
        let mut sim = demo(seed, 3, 2);
        assert!(sim.run_completed(seconds(60), 20));
        sim.run_for(Duration::from_millis(seed * 7));
        // A host leaves; then one that sends to it dies.
        let (leaver, dead) = [(5, 3), (6, 4), (3, 1), (4, 1)][seed as usize % 4];
        sim.command(leaver, Command::Drain);
        sim.run_for(Duration::from_millis(5 + seed % 40));
        sim.act(Fault::Kill(dead));
        assert!(sim.run_completed(seconds(60), 40), "seed {seed}");
        sim.command(0, Command::StopFeeding);
        sim.run_for(seconds(15));
        let overlapped = sim.summary().overlapped;
        if let Some(wrong) = unsound(&sim).or((overlapped > 0).then(|| format!("{overlapped} overlapped"))) {
            failed.push(format!("seed {seed}: {wrong}"));
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn a_version_that_is_saved_again_and_again_never_has_two_roots() {
    let manifest = Small { round_every: 2, ..Small::tiny(1) }.manifest();
    let peers = vec![Plan::new(Role::feeder()), Plan::new(Role::host(0)), Plan::new(Role::host(0))];
    let scenario = Scenario::new(17, manifest, peers);
    let mut sim =
        Simulation::new(Scenario { corpus: Corpus::Cycle { period: 11 }, make_worker: Learning::make(), ..scenario });
    assert!(sim.run_completed(seconds(60), 8));
    for _ in 0..4000 {
        for peer in [1, 2] {
            sim.command(peer, Command::Save);
        }
        sim.run_for(Duration::from_millis(1));
    }
    let saved = sim.lines().iter().filter(|line| matches!(line.record.event, Event::Saved { .. })).count();
    let rounds = sim.summary().rounds;
    println!("{saved} saved, {rounds} rounds");
    assert!(saved > 500 && rounds > 100, "{saved} saved, {rounds} rounds");
    if let Some(wrong) = unsound(&sim) {
        panic!("{wrong}");
    }
}
