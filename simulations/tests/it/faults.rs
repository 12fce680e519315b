//! Exactly once, whatever dies, stops or goes deaf, at every step of the protocol.

use std::{cell::RefCell, rc::Rc, time::Duration};

use skein_pipeline::peer::io::Command;
use skein_simulations::{Fault, Plan, Scenario, Simulation, Small, checker::Summary, world::Access};

use crate::{
    common::{assert_settled, assert_sound, seconds, swarm},
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
fn run(seed: u64, wait: Duration, fault: impl Fn(usize) -> Vec<Fault> + 'static) -> (Simulation, String) {
    let all = cases();
    let pick = seed as usize;
    let case = all[pick % all.len()];
    let nth = 5 + (pick / all.len()) as u64 * 7 % 40;
    // Every third swarm is spread over homes.
    let access = if seed % 3 == 2 { Access::HOME } else { Access::LOOPBACK };
    let peers: Vec<Plan> = swarm(3, 2).into_iter().map(|plan| plan.access(access)).collect();
    let mut sim = Simulation::new(Scenario::new(seed, Small::demo(3).manifest(), peers));
    let struck = strike(&mut sim, case, nth, fault);
    let what = format!("seed {seed}: {} when {} (time {nth})", case.who, case.step);
    let mut waited = 0;
    while struck.borrow().is_none() && waited < 60 {
        sim.run_for(seconds(1));
        waited += 1;
    }
    let who = struck.borrow().unwrap_or_else(|| panic!("{what}: never happened: {:#?}", sim.summary()));
    sim.run_for(wait);
    if !sim.is_running(who) && who == 0 {
        sim.act(Fault::Start(0));
    }
    assert!(sim.run_completed(seconds(60), 40), "{what}: nothing is completed any more: {:#?}", sim.summary());
    sim.command(0, Command::StopFeeding);
    sim.run_for(seconds(20));
    (sim, what)
}

fn kills(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let (sim, what) = run(seed, seconds(1), |peer| vec![Fault::Kill(peer)]);
        let summary = assert_sound(&sim, &what);
        assert_settled(&sim, &what);
        assert_eq!(summary.repairs.len(), 1, "{what}");
    }
}

#[test]
fn a_kill_at_any_step_loses_doubles_and_overlaps_nothing() {
    kills(0..150);
}

#[test]
fn a_later_kill_at_any_step_loses_doubles_and_overlaps_nothing() {
    kills(150..300);
}

#[test]
fn a_pause_at_any_step_loses_and_doubles_nothing() {
    for seed in 0..100 {
        let millis = [200, 900, 1500, 1700, 2500, 6000, 15_000][seed as usize % 7];
        let time = Duration::from_millis(millis);
        let (sim, what) = run(seed, seconds(1) + time, move |peer| vec![Fault::PauseFor(peer, time)]);
        let what = format!("{what}, for {millis} ms");
        assert_sound(&sim, &what);
        assert_settled(&sim, &what);
    }
}

#[test]
fn a_one_way_partition_at_any_step_loses_and_doubles_nothing_and_counts_what_overlaps() {
    let mut overlapped = 0;
    for seed in 0..100u64 {
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
        let (sim, what) = run(seed, seconds(1) + time, fault);
        let what = format!("{what}, {} for {millis} ms", if deaf { "deaf" } else { "mute" });
        overlapped += assert_counted(&sim, &what).overlapped;
        assert_settled(&sim, &what);
    }
    println!("overlapped: {overlapped}");
}

/// As `assert_sound`, but two replicas may have applied one id, and peers may have been fenced more than once.
#[track_caller]
fn assert_counted(sim: &Simulation, what: &str) -> Summary {
    let summary = sim.summary();
    let wrongs = sim.wrongs();
    let counts = (summary.lost, summary.doubled);
    assert!(
        counts == (0, 0) && summary.broken.is_empty() && wrongs.is_empty(),
        "{what}: lost, doubled {counts:?}; {:#?} {wrongs:#?}",
        summary.broken
    );
    summary
}
