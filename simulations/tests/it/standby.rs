//! Lock-step with more than one host of a stage: one serves, the others stand by.

use skein_pipeline::peer::io::Command;
use skein_protocol::{Stage, event::Event};
use skein_simulations::{Fault, Plan, Role, Setup, Simulation, Small, checker::Line};

use crate::common::{assert_sound, seconds, swarm};

fn steps(sim: &Simulation, stage: Stage) -> Vec<(usize, u32)> {
    let step = |line: &Line| match line.record.event {
        Event::Stepped { stage: of, own_step, .. } if of == stage => Some((sim.number(line.record.peer)?, own_step)),
        _ => None,
    };
    sim.lines().iter().filter_map(step).collect()
}

fn serves(sim: &Simulation, peer: usize) -> bool {
    let me = sim.id(peer);
    sim.lines().iter().any(|line| line.record.peer == me && matches!(line.record.event, Event::Serving { .. }))
}

#[test]
fn a_host_that_comes_later_stands_by_and_interrupts_nothing() {
    for late in [4, 5, 6, 7] {
        let peers = swarm(3, 1).into_iter().chain((4..8).map(|peer| {
            let host = Plan::new(Role::host(1));
            host.starts(if peer == late { seconds(5) } else { seconds(1_000_000) })
        }));
        let manifest = Small::demo(3).lock_step().manifest();
        let mut sim = Simulation::new(Setup::new(91, manifest, peers.collect()));
        sim.run_for(seconds(20));
        assert!(!serves(&sim, late), "peer {late} took the stage");
        let steps = steps(&sim, 1);
        assert!(steps.len() > 50, "{} steps", steps.len());
        assert!(steps.iter().zip(1..).all(|(step, n)| *step == (2, n)), "every step once, at the replica that serves");
        assert_sound(&sim, "standby");
    }
}

#[test]
fn two_hosts_that_start_together_settle_who_serves() {
    for seed in 0..6 {
        let manifest = Small::demo(3).lock_step().manifest();
        let mut sim = Simulation::new(Setup::new(seed, manifest, swarm(3, 2)));
        assert!(sim.run_completed(seconds(60), 200), "seed {seed}: {:#?}", sim.summary());
        for stage in 0..3 {
            let steps = steps(&sim, stage);
            let who = steps[0].0;
            assert!(steps.iter().zip(1..).all(|(step, n)| *step == (who, n)), "seed {seed}, stage {stage}: {steps:?}");
        }
        assert_sound(&sim, &format!("seed {seed}"));
    }
}

#[test]
fn a_standby_goes_on_from_the_newest_snapshot_when_the_replica_dies() {
    let peers = swarm(3, 1).into_iter().chain([Plan::new(Role::host(1)).starts(seconds(5))]).collect();
    let manifest = Small::demo(3).lock_step().manifest();
    let every = manifest.checkpoint.every as u32;
    let mut sim = Simulation::new(Setup::new(92, manifest, peers));
    sim.run_for(seconds(20));
    let before = steps(&sim, 1).last().expect("it stepped").1;
    sim.act(Fault::Kill(2));
    let restored = |line: &Line| matches!(line.record.event, Event::Restored { stage: 1, from_seed: false, .. });
    let at = sim.run_until(seconds(20), restored).expect("the standby takes the stage");
    println!("{before} steps made, restored at {at:?}");
    assert!(sim.run_completed(seconds(60), 100), "{:#?}", sim.summary());
    let first = steps(&sim, 1).into_iter().find(|(peer, _)| *peer == 4).expect("the standby steps").1;
    assert!(first <= before + 1 && first + every + 5 > before, "{before} made, goes on with {first}");
    sim.command(0, Command::StopFeeding);
    sim.run_for(seconds(20));
    let summary = assert_sound(&sim, "restored");
    assert!(summary.perished > 0, "what was lost is counted: {summary:#?}");
}
