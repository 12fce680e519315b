//! Swarms that many tests use, and what they all look at in the end.

use std::time::Duration;

use skein_simulations::{Plan, Role, Scenario, Simulation, Small, checker::Summary};

pub fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A feeder (peer 0), then `replicas` hosts of each stage: stage s has the peers 1 + s * replicas ...
pub fn swarm(stages: u16, replicas: usize) -> Vec<Plan> {
    let mut peers = vec![Plan::new(Role::feeder())];
    for stage in 0..stages {
        for _ in 0..replicas {
            peers.push(Plan::new(Role::host(stage)));
        }
    }
    peers
}

pub fn demo(seed: u64, stages: u16, replicas: usize) -> Simulation {
    Simulation::new(Scenario::new(seed, Small::demo(stages).manifest(), swarm(stages, replicas)))
}

/// Nothing was lost, doubled, overlapped or broken, and nobody did what no correct peer does.
#[track_caller]
pub fn assert_sound(sim: &Simulation, what: &str) -> Summary {
    let summary = sim.summary();
    let wrongs = sim.wrongs();
    let counts = (summary.lost, summary.doubled, summary.overlapped);
    assert!(
        counts == (0, 0, 0) && summary.broken.is_empty() && wrongs.is_empty(),
        "{what}: lost, doubled, overlapped {counts:?}; {:#?} {wrongs:#?}",
        summary.broken
    );
    summary
}

/// Nothing is open: no replica keeps an id, and every peer holds only what outlives a micro-batch (snapshots of stages).
#[track_caller]
pub fn assert_settled(sim: &Simulation, what: &str) {
    for peer in (0..).take_while(|peer| *peer < sim.peers()) {
        let Some(store) = sim.store(peer) else { continue };
        assert_eq!(sim.kept(peer), 0, "{what}: the worker of peer {peer} keeps forwards of ids that are over");
        assert!(store.held() <= 12, "{what}: peer {peer} holds {} handles", store.held());
    }
}
