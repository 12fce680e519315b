//! Exactly once, whatever dies, stops or goes deaf, at every step of the protocol.

use std::{cell::RefCell, rc::Rc};

use skein_pipeline::peer::io::Command;
use skein_simulations::{Fault, Simulation};

use crate::{
    common::{assert_settled, assert_sound, demo, seconds},
    steps::{Case, cases},
};

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

/// One seed: runs a swarm, strikes, and sees that it goes on and that the books are right.
fn run(seed: u64, pick: usize, fault: impl Fn(usize) -> Vec<Fault> + 'static) -> (Simulation, String) {
    let all = cases();
    let case = all[pick % all.len()];
    let nth = 5 + (pick / all.len()) as u64 * 7 % 40;
    let mut sim = demo(seed, 3, 2);
    let struck = strike(&mut sim, case, nth, fault);
    let what = format!("seed {seed}: {} when {} (time {nth})", case.who, case.step);
    let limit = seconds(60);
    let mut waited = 0;
    while struck.borrow().is_none() && waited < 60 {
        sim.run_for(seconds(1));
        waited += 1;
    }
    let who = struck.borrow().unwrap_or_else(|| panic!("{what}: never happened: {:#?}", sim.summary()));
    if !sim.is_running(who) && who == 0 {
        sim.run_for(seconds(1));
        sim.act(Fault::Start(0));
    }
    assert!(sim.run_completed(limit, 40), "{what}: nothing is completed any more: {:#?}", sim.summary());
    sim.command(0, Command::StopFeeding);
    sim.run_for(seconds(20));
    (sim, what)
}

#[test]
fn a_kill_at_any_step_loses_doubles_and_overlaps_nothing() {
    for seed in 0..210 {
        let (sim, what) = run(seed, seed as usize, |peer| vec![Fault::Kill(peer)]);
        let summary = assert_sound(&sim, &what);
        assert_settled(&sim, &what);
        assert_eq!(summary.repairs.len(), 1, "{what}");
    }
}
