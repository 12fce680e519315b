//! Swarms that many tests use, and what they all look at in the end.

use std::time::Duration;

use skein_simulations::{Plan, Role, Setup, Simulation, Small, checker::Summary};

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
    Simulation::new(Setup::new(seed, Small::demo(stages).manifest(), swarm(stages, replicas)))
}

/// What is wrong with the books, the events or the requests of the peers, if anything.
pub fn unsound(sim: &Simulation) -> Option<String> {
    let summary = sim.summary();
    let wrongs = sim.wrongs();
    let counts = (summary.lost, summary.doubled);
    let sound = counts == (0, 0) && summary.broken.is_empty() && wrongs.is_empty();
    (!sound).then(|| format!("lost, doubled {counts:?}; broken: {:?}; wrong: {wrongs:?}", summary.broken))
}

/// Whether anything is open where nothing should be: no replica keeps an id, and every peer holds only what outlives a
/// micro-batch (snapshots of stages).
pub fn unsettled(sim: &Simulation) -> Option<String> {
    (0..sim.peers()).find_map(|peer| {
        let held = sim.store(peer)?.held();
        if sim.kept(peer) > 0 {
            return Some(format!("the worker of peer {peer} keeps {} forwards of ids that are over", sim.kept(peer)));
        }
        (held > 12).then(|| format!("peer {peer} holds {held} handles"))
    })
}

/// Nothing was lost, doubled, overlapped or broken, and nobody did what no correct peer does.
#[track_caller]
pub fn assert_sound(sim: &Simulation, what: &str) -> Summary {
    if let Some(wrong) = unsound(sim) {
        panic!("{what}: {wrong}");
    }
    let summary = sim.summary();
    assert_eq!(summary.overlapped, 0, "{what}");
    summary
}

#[track_caller]
pub fn assert_settled(sim: &Simulation, what: &str) {
    if let Some(wrong) = unsettled(sim) {
        panic!("{what}: {wrong}");
    }
}
