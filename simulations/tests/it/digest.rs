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
    assert_digest(&eventful(1), 18076, "b3:18efd758a43844ce4e487edcc3a1ad2395d52b0cac345b649f3ae3df4e49676d");
}

#[test]
fn the_digest_of_seed_2_is_the_same_everywhere() {
    assert_digest(&eventful(2), 11645, "b3:25b5af04e3a48802cd339ea3481b6333f86fd9f5b0587e7a0c0002d8a62d586a");
}

#[test]
fn the_digest_of_a_history_that_learns_is_the_same_everywhere() {
    assert_digest(&learning(3), 3070, "b3:40c35e0f2fbbb18acda8ca340a8c13a13e542c326b71c38aa95abcfe7435953a");
}

#[test]
fn the_digest_repeats_and_differs_from_that_of_another_seed() {
    let (once, again, other) = (eventful(4), eventful(4), eventful(5));
    assert_eq!((once.happenings(), once.digest()), (again.happenings(), again.digest()));
    assert_ne!(once.digest(), other.digest());
}
