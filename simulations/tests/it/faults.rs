//! Exactly once, whatever dies, stops or goes deaf, at every step of the protocol.

use std::{cell::RefCell, rc::Rc, time::Duration};

use skein_pipeline::peer::io::Command;
use skein_simulations::{Fault, Plan, Setup, Simulation, Small, checker::Summary, world::Access};

use crate::{
    common::{seconds, swarm, unsettled, unsound},
    steps::{Case, cases},
};

/// Peers of the swarm: the feeder, then two hosts of each of three stages.
const PEERS: usize = 7;

/// Does `fault` to the peer at the `nth` time that the case happens. Tells who it was.
fn strike(
    sim: &mut Simulation,
    case: Case,
    nth: u64,
    fault: impl Fn(usize) -> Vec<Fault> + 'static,
) -> Rc<RefCell<Option<usize>>> {
    let struck = Rc::new(RefCell::new(None));
    let seen = struck.clone();
    let mut left = nth;
    sim.hook(move |moment| {
        if seen.borrow().is_some() || !case.happens(moment) {
            return Vec::new();
        }
        left -= 1;
        if left > 0 {
            return Vec::new();
        }
        *seen.borrow_mut() = Some(moment.peer);
        fault(moment.peer)
    });
    struck
}

/// One seed: runs a swarm, strikes, and sees that it goes on; then feeding stops, and what is open gets time to end.
fn run(seed: u64, wait: Duration, fault: impl Fn(usize) -> Vec<Fault> + 'static) -> Result<Simulation, String> {
    run_then(seed, wait, fault, |sim, who| {
        // Nobody else feeds.
        if !sim.is_running(who) && who == 0 {
            sim.act(Fault::Start(0));
        }
    })
}

/// As `run`, and does what `then` says after the wait.
fn run_then(
    seed: u64,
    wait: Duration,
    fault: impl Fn(usize) -> Vec<Fault> + 'static,
    then: impl Fn(&mut Simulation, usize),
) -> Result<Simulation, String> {
    let all = cases();
    let pick = seed as usize;
    let case = all[pick % all.len()];
    // Rounds are rare: their steps are struck early.
    let turn = (pick / all.len()) as u64;
    let nth = if case.who == "averaging partner" { 1 + turn * 3 % 11 } else { 5 + turn * 7 % 40 };
    // Every third swarm is spread over homes.
    let access = if seed % 3 == 2 { Access::HOME } else { Access::LOOPBACK };
    let peers: Vec<Plan> = swarm(3, 2).into_iter().map(|plan| plan.access(access)).collect();
    let mut sim = Simulation::new(Setup::new(seed, Small::demo(3).manifest(), peers));
    let struck = strike(&mut sim, case, nth, fault);
    let what = format!("{} when {} (time {nth})", case.who, case.step);
    let mut waited = 0;
    while struck.borrow().is_none() && waited < 600 {
        sim.run_for(Duration::from_millis(100));
        waited += 1;
    }
    let Some(who) = *struck.borrow() else { return Err(format!("{what}: never happened")) };
    sim.run_for(wait);
    then(&mut sim, who);
    let goes_on = sim.run_completed(seconds(60), 40);
    if goes_on {
        sim.command(0, Command::StopFeeding);
        sim.run_for(seconds(15));
    }
    if !goes_on {
        return Err(format!("{what}: nothing is completed any more"));
    }
    let wrong = unsound(&sim).or_else(|| unsettled(&sim));
    wrong.map_or(Ok(sim), |wrong| Err(format!("{what}: {wrong}")))
}

/// Runs every seed, and names all that went wrong.
#[track_caller]
fn survey(seeds: std::ops::Range<u64>, one: impl Fn(u64) -> Result<(), String>) {
    let failed: Vec<String> =
        seeds.filter_map(|seed| one(seed).err().map(|wrong| format!("seed {seed}: {wrong}"))).collect();
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

fn kills(seeds: std::ops::Range<u64>) {
    survey(seeds, |seed| {
        let sim = run(seed, seconds(1), |peer| vec![Fault::Kill(peer)])?;
        no_overlap(&sim.summary())
    });
}

fn no_overlap(summary: &Summary) -> Result<(), String> {
    if summary.overlapped == 0 { Ok(()) } else { Err(format!("{} overlapped", summary.overlapped)) }
}

#[test]
fn a_kill_at_any_step_loses_doubles_and_overlaps_nothing() {
    kills(0..120);
}

#[test]
fn a_later_kill_at_any_step_loses_doubles_and_overlaps_nothing() {
    kills(120..240);
}

#[test]
fn a_kill_at_any_step_and_a_restart_lose_double_and_overlap_nothing() {
    survey(1000..1060, |seed| {
        // At once, or when its death is old.
        let back = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(2500)][seed as usize % 3];
        let sim = run_then(seed, back, |peer| vec![Fault::Kill(peer)], |sim, who| sim.act(Fault::Start(who)))?;
        no_overlap(&sim.summary())
    });
}

#[test]
fn a_drain_at_any_step_loses_nothing_at_all() {
    survey(2000..2040, |seed| {
        let sim = run(seed, seconds(8), |peer| vec![Fault::Command(peer, Command::Drain)])?;
        let summary = sim.summary();
        no_overlap(&summary)?;
        if summary.perished > 0 { Err(format!("{} perished", summary.perished)) } else { Ok(()) }
    });
}

#[test]
fn a_pause_at_any_step_loses_and_doubles_nothing_and_counts_what_overlaps() {
    let overlapped = RefCell::new(0);
    survey(0..84, |seed| {
        let millis = [200, 900, 1500, 1700, 2500, 6000, 15_000][seed as usize % 7];
        let time = Duration::from_millis(millis);
        let sim = run(seed, seconds(1) + time, move |peer| vec![Fault::PauseFor(peer, time)])
            .map_err(|wrong| format!("{millis} ms: {wrong}"))?;
        // A step that the worker had begun when it was suspended is made when it wakes, though others have done its work.
        *overlapped.borrow_mut() += sim.summary().overlapped;
        Ok(())
    });
    println!("overlapped: {}", overlapped.into_inner());
}

#[test]
fn a_one_way_partition_at_any_step_loses_and_doubles_nothing_and_counts_what_overlaps() {
    let overlapped = RefCell::new(0);
    survey(0..80, |seed| {
        let millis = [500, 1500, 2000, 4000, 12_000][seed as usize % 5];
        let time = Duration::from_millis(millis);
        let deaf = seed % 2 == 0;
        let fault = move |peer: usize| {
            let others = (0..PEERS).filter(move |other| *other != peer);
            // All of its links, or every second one.
            let others = others.filter(move |other| seed % 4 < 2 || other % 2 == 0);
            let one_way = move |other| if deaf { (other, peer) } else { (peer, other) };
            others.map(one_way).map(|(from, to)| Fault::BlockFor(from, to, time)).collect()
        };
        let how = if deaf { "deaf" } else { "mute" };
        let sim = run(seed, seconds(1) + time, fault).map_err(|wrong| format!("{how}, {millis} ms: {wrong}"))?;
        *overlapped.borrow_mut() += sim.summary().overlapped;
        Ok(())
    });
    println!("overlapped: {}", overlapped.into_inner());
}
