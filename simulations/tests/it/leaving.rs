//! Replicas that leave while others die.

use std::time::Duration;

use skein_pipeline::peer::io::Command;
use skein_protocol::event::{Event, RoundOutcome};
use skein_simulations::{
    Fault, Plan, Role, Setup, Simulation, Small,
    checker::Line,
    driver::Answer,
    worker::{learning::Learning, modelled::Device},
    world::{Access, Corpus},
};

use crate::common::{assert_sound, demo, seconds, swarm, unsound};

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
    // So slow that jobs wait: a save may be asked for before a round is adopted, and made after.
    let slow = Device { flops: 5e7, ..Device::CORE };
    let host = || Plan::new(Role::host(0)).device(slow);
    let peers = vec![Plan::new(Role::feeder()), host(), host()];
    let setup = Setup::new(17, manifest, peers);
    let mut sim =
        Simulation::new(Setup { corpus: Corpus::Cycle { period: 11 }, make_worker: Learning::make(), ..setup });
    assert!(sim.run_completed(seconds(600), 8));
    for _ in 0..20_000 {
        for peer in [1, 2] {
            sim.command(peer, Command::Save);
        }
        sim.run_for(Duration::from_millis(1));
    }
    let saved = sim.lines().iter().filter(|line| matches!(line.record.event, Event::Saved { .. })).count();
    let rounds = sim.summary().rounds;
    println!("{saved} saved, {rounds} rounds");
    assert!(saved > 300 && rounds > 50, "{saved} saved, {rounds} rounds");
    if let Some(wrong) = unsound(&sim) {
        panic!("{wrong}");
    }
}

#[test]
fn the_last_replica_of_a_stage_leaves_its_last_step_to_whoever_takes_over() {
    for seed in 0..12u64 {
        let mut peers = swarm(3, 1);
        peers[3].role.joins = true;
        let mut sim = Simulation::new(Setup::new(seed, Small::demo(3).manifest(), peers));
        assert!(sim.run_completed(seconds(60), 60));
        sim.run_for(Duration::from_millis(137 * seed));
        sim.command(2, Command::Drain);
        let restored = |line: &Line| matches!(line.record.event, Event::Restored { stage: 1, .. });
        assert!(sim.run_until(seconds(40), restored).is_some(), "seed {seed}: {:#?}", sim.summary());
        let steps = sim.lines().iter().filter_map(|line| match line.record.event {
            Event::Stepped { own_step, .. } if line.record.peer == sim.id(2) => Some(own_step),
            _ => None,
        });
        let goes_on = sim.lines().iter().find_map(|line| match &line.record.event {
            Event::Restored { stage: 1, version, .. } => Some(version.own_step),
            _ => None,
        });
        assert_eq!(goes_on, steps.max(), "seed {seed}");
        assert!(sim.run_completed(seconds(60), 40), "seed {seed}");
        sim.command(0, Command::StopFeeding);
        sim.run_for(seconds(15));
        let summary = assert_sound(&sim, &format!("seed {seed}"));
        assert_eq!(summary.perished, 0, "seed {seed}");
    }
}

#[test]
fn who_leaves_beside_others_does_a_last_round_with_them() {
    for seed in 0..6u64 {
        let mut sim = demo(40 + seed, 3, 2);
        assert!(sim.run_completed(seconds(60), 60 + seed as usize));
        let leaves = sim.now();
        sim.command(5, Command::Drain);
        sim.run_for(seconds(20));
        let last = sim.lines().iter().rev().find_map(|line| match line.record.event {
            Event::Round { outcome, .. } if line.record.peer == sim.id(5) && line.at >= leaves.as_nanos() as u64 => {
                Some(outcome)
            }
            _ => None,
        });
        assert_eq!(last, Some(RoundOutcome::Both), "seed {seed}");
        assert_sound(&sim, &format!("seed {seed}"));
    }
}

#[test]
fn whoever_fetches_a_state_gets_all_of_it_before_its_donor_leaves() {
    // The stage's whole state is on its way for 26 seconds, what an export needs of it for 5.
    let slow = Access { up: 700_000, ..Access::LOOPBACK };
    let mut peers = swarm(1, 1);
    peers[1].access = slow;
    let mut sim = Simulation::new(Setup::new(3, Small::demo(1).manifest(), peers));
    assert!(sim.run_completed(seconds(60), 20));
    sim.command(0, Command::StopFeeding);
    sim.run_for(seconds(5));
    sim.command(0, Command::Export { request: 1 });
    sim.run_for(Duration::from_millis(100));
    sim.command(1, Command::Drain);
    let left = sim.run_until(seconds(120), |line| matches!(line.record.event, Event::Drained)).expect("it leaves");
    sim.run_for(seconds(1));
    let held = sim.lines().iter().find(|line| matches!(line.record.event, Event::Held { .. }));
    let held = Duration::from_nanos(held.expect("the last state of the stage is held by the other").at);
    assert!(left - held < seconds(1), "held {held:?}, left {left:?}");
    let exported = matches!(sim.answers[..], [Answer::Exported { request: 1, parts: Some(_), last: true, .. }]);
    assert!(exported, "{:?}", sim.answers);
    assert_sound(&sim, "fetched from while it left");
}

#[test]
fn an_export_has_one_replica_on_its_way_at_a_time_and_one_that_left_does_not_end_it() {
    let mut sim = demo(8, 3, 2);
    assert!(sim.run_completed(seconds(60), 20));
    sim.command(0, Command::StopFeeding);
    sim.run_for(seconds(5));
    for request in [1, 2] {
        sim.command(0, Command::Export { request });
    }
    sim.act(Fault::Kill(6));
    let before = sim.store(0).expect("it runs").held();
    let mut most = 0;
    for _ in 0..20_000 {
        sim.run_for(Duration::from_millis(1));
        most = most.max(sim.store(0).expect("it runs").held());
    }
    // A stage of this model is one chunk.
    assert!(most <= before + 1, "{most} handles, {before} before");
    let came: Vec<_> = sim
        .answers
        .iter()
        .map(|answer| match answer {
            Answer::Exported { request, stage, parts, last, .. } => (*request, *stage, parts.is_some(), *last),
            other => panic!("{other:?}"),
        })
        .collect();
    let of = |request: u64| came.iter().filter(move |(of, ..)| *of == request);
    for request in [1, 2] {
        let last: Vec<_> = of(request).filter(|(.., last)| *last).map(|(_, stage, ..)| *stage).collect();
        assert_eq!(last, [0, 1, 2], "{came:?}");
        for stage in 0..3 {
            assert!(of(request).any(|(_, at, here, _)| *at == stage && *here), "{came:?}");
        }
    }
    assert_eq!(of(2).filter(|(.., here, _)| *here).count(), 5, "{came:?}");
}
