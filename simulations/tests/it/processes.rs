//! Processes that end and begin: what is told of them, and what they find.

use std::time::Duration;

use skein_protocol::event::Event;
use skein_simulations::{
    Fault, Setup, Simulation, Small,
    checker::{Checker, Given},
    driver::Said,
    worker::learning::Learning,
    world::{Access, Corpus, adversary::Lie},
};

use crate::common::{demo, seconds, swarm};

#[test]
fn a_restart_within_one_moment_is_a_death_and_then_a_start() {
    let mut sim = demo(5, 3, 2);
    sim.at(seconds(6), Fault::Kill(1));
    sim.at(seconds(6), Fault::Start(1));
    sim.run_for(seconds(12));
    let summary = sim.summary();
    let me = sim.id(1);
    let said = sim.take_said();
    let killed = said.iter().position(|said| matches!(said, Said::Killed(kill) if kill.peer == me));
    let starts = |said: &Said| {
        let Said::Line(line) = said else { return false };
        line.record.peer == me && matches!(line.record.event, Event::Started { incarnation: 2, .. })
    };
    let started = said.iter().position(starts);
    assert!(killed < started && killed.is_some(), "{killed:?} {started:?}");
    // Whoever takes it as it comes, and whoever asks in the end, finds the same.
    let mut checker = Checker::new(&Given::of(sim.manifest(), Vec::new()));
    for said in said {
        match said {
            Said::Killed(kill) => checker.on_kill(kill),
            Said::Line(line) => checker.on_line(&line),
        }
    }
    assert_eq!(checker.finish(), summary);
    // Only what the first process had not made safe perished, not what the second did.
    assert!(summary.perished < 20 && summary.lost == 0, "{summary:#?}");
}

#[test]
fn who_starts_again_is_not_held_up_by_what_its_former_process_dialled() {
    let peers = swarm(3, 2).into_iter().map(|plan| plan.access(Access::HOME)).collect();
    let mut sim = Simulation::new(Setup::new(3, Small::demo(3).manifest(), peers));
    // Three ways of 20 ms each: it dies in the midst of them.
    let at = |ms| Duration::from_millis(ms);
    sim.at(at(3000), Fault::Kill(1));
    sim.at(at(3010), Fault::Start(1));
    sim.at(at(3030), Fault::Kill(1));
    sim.at(at(3040), Fault::Start(1));
    let me = sim.id(1);
    sim.run_for(at(3041));
    let up =
        sim.run_until(seconds(10), |line| line.record.peer == me && matches!(line.record.event, Event::PeerUp { .. }));
    assert!(up.is_some_and(|up| up < at(3500)), "{up:?}");
}

#[test]
fn a_suspended_process_writes_its_incarnation_when_it_wakes() {
    let mut sim = demo(4, 3, 2);
    let at = |ms| Duration::from_millis(ms);
    // It wakes, fences itself, and is suspended again before the incarnation is written.
    sim.at(at(5000), Fault::PauseFor(1, at(2000)));
    sim.at(at(7003), Fault::PauseFor(1, at(60_000)));
    let me = sim.id(1);
    sim.run_for(at(67_003));
    let starts = |sim: &Simulation| {
        let lines = sim.lines().iter().filter(|line| line.record.peer == me);
        lines.filter(|line| matches!(line.record.event, Event::Started { .. })).count()
    };
    assert_eq!(starts(&sim), 1);
    sim.run_for(at(500));
    assert!(starts(&sim) > 1);
}

#[test]
fn of_a_liar_that_lies_on_a_bounded_number_of_blames_is_kept() {
    let setup = Setup::new(5, Small::tiny(2).manifest(), swarm(2, 2));
    let corpus = Corpus::Cycle { period: 11 };
    let mut sim = Simulation::new(Setup { corpus, make_worker: Learning::make(), ..setup });
    sim.lie(1, Lie::Nan);
    let voided = |sim: &Simulation| sim.summary().voided;
    while voided(&sim) < 1100 && sim.now() < seconds(600) {
        sim.run_for(seconds(10));
    }
    assert!(voided(&sim) >= 1100, "{}", voided(&sim));
    assert_eq!(sim.blames.len(), 1000);
}
