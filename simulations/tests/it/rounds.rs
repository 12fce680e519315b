//! Averaging rounds in a swarm: odd counts of replicas, partners at different counts, partners that vanish between the phases.

use std::collections::{BTreeMap, BTreeSet};

use skein_protocol::{
    PeerId, Stage,
    event::{Event, RoundOutcome},
};
use skein_simulations::{
    Fault, Plan, Setup, Simulation, Small,
    checker::{Line, Summary},
    worker::modelled::Device,
};

use crate::{
    common::{assert_sound, seconds, swarm},
    steps::ROUND,
};

struct Ended {
    me: PeerId,
    stage: Stage,
    round: u32,
    partner: Option<PeerId>,
    outcome: RoundOutcome,
}

fn ended(sim: &Simulation) -> Vec<Ended> {
    let round = |line: &Line| match line.record.event {
        Event::Round { stage, round, partner, outcome, .. } => {
            Some(Ended { me: line.record.peer, stage, round, partner, outcome })
        }
        _ => None,
    };
    sim.lines().iter().filter_map(round).collect()
}

/// What one side calls `Both` the other calls `Both` too, unless it died or lost the last word.
fn assert_agreed(sim: &Simulation, dead: &[PeerId], what: &str) {
    let ended = ended(sim);
    // A round that has just ended at one side may be open at the other.
    let newest: BTreeMap<PeerId, u32> = ended.iter().map(|e| (e.me, e.round)).collect();
    for e in ended.iter().filter(|e| e.outcome == RoundOutcome::Both) {
        let partner = e.partner.expect("a round of two");
        let other = ended.iter().find(|o| o.me == partner && o.stage == e.stage && o.round == e.round);
        let adopted = other
            .is_some_and(|o| matches!(o.outcome, RoundOutcome::Both | RoundOutcome::OneSided | RoundOutcome::Copied));
        let open = newest.get(&partner).is_none_or(|round| *round < e.round);
        assert!(adopted || dead.contains(&partner) || open, "{what}: round {} of stage {}", e.round, e.stage);
    }
}

fn assert_rounds(sim: &Simulation, least: u64, what: &str) -> Summary {
    let summary = assert_sound(sim, what);
    assert!(summary.rounds >= least, "{what}: {} rounds", summary.rounds);
    assert_agreed(sim, &[], what);
    summary
}

#[test]
fn three_replicas_a_stage_all_meet_each_other() {
    let mut sim = Simulation::new(Setup::new(51, Small::demo(2).manifest(), swarm(2, 3)));
    assert!(sim.run_completed(seconds(120), 1200), "{:#?}", sim.summary());
    let summary = assert_rounds(&sim, 20, "three replicas");
    println!("{} rounds, {} rolled back", summary.rounds, summary.rounds_rolled_back);
    for stage in 0..2 {
        let met: BTreeSet<(PeerId, PeerId)> = ended(&sim)
            .iter()
            .filter(|e| e.stage == stage && e.outcome == RoundOutcome::Both)
            .filter_map(|e| e.partner.map(|partner| (e.me.min(partner), e.me.max(partner))))
            .collect();
        assert_eq!(met.len(), 3, "pairs of stage {stage}");
    }
}

#[test]
fn partners_at_different_counts_average_and_leave_with_the_same_round() {
    let slow = Device { flops: Device::CORE.flops / 4.0, ..Device::CORE };
    let peers = swarm(2, 2).into_iter().enumerate().map(|(i, plan)| if i == 2 { plan.device(slow) } else { plan });
    let mut sim = Simulation::new(Setup::new(52, Small::demo(2).manifest(), peers.collect::<Vec<Plan>>()));
    assert!(sim.run_completed(seconds(120), 800), "{:#?}", sim.summary());
    assert_rounds(&sim, 8, "different counts");
    let steps = |peer: usize| {
        let me = sim.id(peer);
        let lines = sim.lines().iter().filter(|line| line.record.peer == me);
        lines.filter(|line| matches!(line.record.event, Event::Stepped { .. })).count()
    };
    assert!(steps(1) > 2 * steps(2), "{} and {} steps", steps(1), steps(2));
}

#[test]
fn a_partner_lost_between_any_two_phases_leaves_the_other_with_a_typed_outcome() {
    for (seed, (step, matches)) in (60..).zip(ROUND) {
        let mut sim = Simulation::new(Setup::new(seed, Small::demo(2).manifest(), swarm(2, 2)));
        let mut struck = false;
        sim.hook(move |moment| {
            if struck || moment.at < 3_000_000_000 || moment.peer == 0 || !matches(&moment.what) {
                return Vec::new();
            }
            struck = true;
            vec![Fault::Kill(moment.peer)]
        });
        sim.run_for(seconds(12));
        let dead: Vec<usize> = (1..5).filter(|peer| !sim.is_running(*peer)).collect();
        assert_eq!(dead.len(), 1, "{step}");
        let survivor = if dead[0] % 2 == 1 { dead[0] + 1 } else { dead[0] - 1 };
        assert_sound(&sim, step);
        let (dead, survivor) = (sim.id(dead[0]), sim.id(survivor));
        assert_agreed(&sim, &[dead], step);
        let killed_at = sim.summary().repairs.len();
        assert_eq!(killed_at, 1);
        let after: Vec<RoundOutcome> = ended(&sim).iter().filter(|e| e.me == survivor).map(|e| e.outcome).collect();
        // Whatever became of that round, the survivor goes on alone.
        assert_eq!(after.last(), Some(&RoundOutcome::Alone), "{step}: {after:?}");
    }
}
