//! One seed gives one history: the same in debug and in release, on every platform.
//!
//! The constants change with whatever peers say or when they say it; they must change for no other reason.

use std::time::Duration;

use skein_simulations::{
    Fault, Plan, Role, Setup, Simulation, Small, worker::learning::Learning, world::Access, world::Corpus,
};

use crate::common::{seconds, swarm};

/// A swarm in which much happens: homes, a kill, a pause, a partition, a late joiner.
fn eventful(seed: u64) -> Simulation {
    let late = Plan::new(Role::joiner()).starts(seconds(6));
    let peers = swarm(3, 2).into_iter().chain([late]).enumerate();
    let peers = peers.map(|(i, plan)| if i % 3 == 0 { plan.access(Access::HOME) } else { plan });
    let mut sim = Simulation::new(Setup::new(seed, Small::demo(3).manifest(), peers.collect()));
    sim.at(seconds(4), Fault::Kill(3));
    sim.at(seconds(5), Fault::BlockFor(1, 4, seconds(3)));
    sim.at(seconds(9), Fault::PauseFor(5, Duration::from_millis(2200)));
    sim.run_for(seconds(15));
    sim
}

/// Real arithmetic: 3 stages in 3 peers.
fn learning(seed: u64) -> Simulation {
    let setup = Setup::new(seed, Small::tiny(3).manifest(), swarm(3, 1));
    let corpus = Corpus::Cycle { period: 11 };
    let mut sim = Simulation::new(Setup { corpus, make_worker: Learning::make(), ..setup });
    assert!(sim.run_completed(seconds(60), 100));
    sim
}

#[track_caller]
fn assert_digest(sim: &Simulation, happenings: u64, digest: &str) {
    assert_eq!((sim.happenings(), sim.digest().to_string().as_str()), (happenings, digest));
}

#[test]
fn the_digest_of_seed_1_is_the_same_everywhere() {
    assert_digest(&eventful(1), 11708, "b3:daa7004bde8ec22e50016d2d55b96d4121be9b61bbee77d973c9d4af5d799a8b");
}

#[test]
fn the_digest_of_seed_2_is_the_same_everywhere() {
    assert_digest(&eventful(2), 13695, "b3:4aef9384ae9cb35ab55ff745fc0e302436c226b3e3a516d3fdd6df07125eb956");
}

#[test]
fn the_digest_of_a_history_that_learns_is_the_same_everywhere() {
    assert_digest(&learning(3), 3089, "b3:57ed343a05560db0550e9241c4a3d69c8e717ab63554b5b21463ea0dc6a8f8bf");
}

#[test]
fn the_digest_repeats_and_differs_from_that_of_another_seed() {
    let (once, again, other) = (eventful(4), eventful(4), eventful(5));
    assert_eq!((once.happenings(), once.digest()), (again.happenings(), again.digest()));
    assert_ne!(once.digest(), other.digest());
}
