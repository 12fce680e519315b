//! Peers with room for one stage each: who is one too many at a stage goes where somebody is missing, and nobody moves without need.

use std::collections::BTreeSet;

use skein_pipeline::model::cost;
use skein_protocol::event::Event;
use skein_simulations::{Fault, Plan, Role, Setup, Simulation, Small};

use crate::common::{assert_settled, assert_sound, seconds};

/// A feeder, and joiners that can hold any one stage and no two.
fn roomless(stages: u16, joiners: usize) -> Vec<Plan> {
    let manifest = Small::demo(stages).manifest();
    let memory = (0..stages).map(|stage| cost::memory(&manifest, stage).peak()).max().expect("it has stages");
    let joiner = Plan { memory, ..Plan::new(Role::joiner()) };
    std::iter::once(Plan::new(Role::feeder())).chain(vec![joiner; joiners]).collect()
}

fn start(seed: u64, stages: u16, joiners: usize) -> Simulation {
    Simulation::new(Setup::new(seed, Small::demo(stages).manifest(), roomless(stages, joiners)))
}

fn count(sim: &Simulation, wanted: impl Fn(&Event) -> bool) -> usize {
    sim.lines().iter().filter(|line| wanted(&line.record.event)).count()
}

fn left(sim: &Simulation) -> usize {
    count(sim, |event| matches!(event, Event::StageLeft { .. }))
}

#[test]
fn newcomers_that_took_the_same_stage_at_once_come_to_serve_all() {
    let mut moved = 0;
    for seed in 0..8 {
        let mut sim = start(100 + seed, 2, 2);
        assert!(sim.run_completed(seconds(40), 40), "seed {seed}: {:#?}", sim.summary());
        moved += left(&sim);
        assert_sound(&sim, &format!("seed {seed}"));
    }
    assert!(moved > 0, "they never took the same stage");
}

/// A run of two stages: one host of `lonely`, which dies, and two joiners that serve the other stage and have no room for both.
fn the_only_one_dies(seed: u64, lonely: u16) -> Simulation {
    let mut plan = roomless(2, 2);
    plan.insert(1, Plan::new(Role::host(lonely)));
    plan.push(Plan::new(Role::joiner()).starts(seconds(1_000_000)));
    let mut sim = Simulation::new(Setup::new(seed, Small::demo(2).manifest(), plan));
    assert!(sim.run_completed(seconds(60), 60), "seed {seed}: {:#?}", sim.summary());
    assert_eq!(left(&sim), 0, "seed {seed}");
    sim.run_for(seconds(5));
    sim.act(Fault::Kill(1));
    sim
}

fn assert_goes_on(sim: &mut Simulation, what: &str) {
    let done = sim.summary().completed as usize;
    assert!(sim.run_completed(seconds(60), done + 60), "{what}: {:#?}", sim.summary());
    sim.command(0, skein_pipeline::peer::io::Command::StopFeeding);
    sim.run_for(seconds(20));
    assert_sound(sim, what);
    assert_settled(sim, what);
}

#[test]
fn a_replica_too_many_takes_over_where_the_only_one_died() {
    for seed in 0..6 {
        let what = format!("seed {seed}");
        let mut sim = the_only_one_dies(200 + seed, 1);
        assert_goes_on(&mut sim, &what);
        assert_eq!(left(&sim), 1, "{what}");
    }
}

#[test]
fn a_replica_too_many_reaches_the_last_stage_though_its_work_waits_at_the_one_between() {
    for seed in 0..4 {
        let what = format!("seed {seed}");
        let mut plan = roomless(3, 2);
        plan.splice(1..1, [Plan::new(Role::host(1)), Plan::new(Role::host(2))]);
        let mut sim = Simulation::new(Setup::new(270 + seed, Small::demo(3).manifest(), plan));
        assert!(sim.run_completed(seconds(60), 60), "{what}: {:#?}", sim.summary());
        sim.run_for(seconds(5));
        sim.act(Fault::Kill(2));
        assert_goes_on(&mut sim, &what);
        assert_eq!(left(&sim), 1, "{what}");
    }
}

#[test]
fn who_holds_answers_for_a_stage_that_died_stays_until_somebody_takes_them() {
    for seed in 0..4 {
        let what = format!("seed {seed}");
        let mut sim = the_only_one_dies(250 + seed, 0);
        sim.run_for(seconds(20));
        sim.act(Fault::Start(4));
        assert_goes_on(&mut sim, &what);
    }
}

/// Who serves `stage`, by what all said.
fn serving(sim: &Simulation, stage: u16) -> Vec<usize> {
    let mut serving = BTreeSet::new();
    for record in sim.lines().iter().map(|line| &line.record) {
        match record.event {
            Event::Serving { stage: of, .. } if of == stage => serving.insert(record.peer),
            Event::StageLeft { stage: of } if of == stage => serving.remove(&record.peer),
            _ => false,
        };
    }
    serving.into_iter().filter_map(|peer| sim.number(peer)).filter(|peer| sim.is_running(*peer)).collect()
}

#[test]
fn of_several_that_could_go_only_so_many_go_as_are_needed() {
    let mut sim = start(404, 2, 6);
    // All but one took the same stage at once. Two of them go.
    sim.run_for(seconds(10));
    assert_eq!((serving(&sim, 0).len(), serving(&sim, 1).len()), (5, 1));
    sim.run_for(seconds(90));
    let moved = left(&sim);
    assert_eq!(moved, 2);
    let lonely = serving(&sim, 1);
    assert_eq!((serving(&sim, 0).len(), lonely.len()), (3, 3));
    // Two die: three against one. All three see that one of them should go; afterwards two against two is as good as it gets.
    lonely[1..].iter().for_each(|peer| sim.act(Fault::Kill(*peer)));
    sim.run_for(seconds(60));
    assert_eq!(left(&sim), moved + 1);
    assert_eq!((serving(&sim, 0).len(), serving(&sim, 1).len()), (2, 2));
    assert_sound(&sim, "three against one");
}

#[test]
fn nobody_moves_without_need() {
    for seed in 0..2 {
        let mut sim = start(300 + seed, 3, 6);
        assert!(sim.run_completed(seconds(60), 40), "seed {seed}: {:#?}", sim.summary());
        sim.run_for(seconds(20));
        let before = left(&sim);
        sim.run_for(seconds(80));
        assert_eq!(left(&sim), before, "seed {seed}");
        assert_sound(&sim, &format!("seed {seed}"));
    }
}
