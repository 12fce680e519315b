//! What peers use of their links and their time, and peers who are far or behind a relay.

use std::{collections::BTreeMap, time::Duration};

use skein_protocol::{Lane, event::Event};
use skein_simulations::{Fault, PeerUse, Plan, Role, Setup, Simulation, Small, world::Access};

use crate::common::{assert_sound, seconds, swarm};

fn homes(seed: u64) -> Setup {
    let peers = swarm(2, 2).into_iter().map(|plan| plan.access(Access::HOME)).collect();
    Setup::new(seed, Small::demo(2).manifest(), peers)
}

#[test]
fn what_a_peer_used_survives_its_death_and_adds_up() {
    let mut sim = Simulation::new(homes(1));
    sim.run_for(seconds(15));
    let before = sim.use_of(1);
    assert_eq!(before.alive, seconds(15));
    assert!(before.serving > seconds(5) && before.serving <= before.alive, "{before:?}");
    assert!(before.busy > Duration::ZERO && before.sending > Duration::ZERO && before.receiving > Duration::ZERO);
    assert!(before.up_full <= before.sending && before.sending <= before.alive, "{before:?}");
    assert!(before.busy.abs_diff(sim.busy(1)) < seconds(1), "what the worker says, but for the job that it is at");
    sim.act(Fault::Kill(1));
    sim.run_for(seconds(5));
    let PeerUse { alive, busy, sending, .. } = sim.use_of(1);
    assert_eq!((alive, busy, sending), (before.alive, before.busy, before.sending));
    sim.act(Fault::Start(1));
    sim.run_for(seconds(2));
    assert_eq!(sim.use_of(1).alive, before.alive + seconds(2));
    assert_sound(&sim, "used");
}

#[test]
fn bytes_that_arrive_were_sent_and_given_to_the_network() {
    let mut sim = Simulation::new(homes(2));
    sim.run_for(seconds(10));
    for lane in Lane::ALL {
        let of = |bytes: fn(&PeerUse) -> &[u64; 6]| -> u64 {
            (0..sim.peers()).map(|peer| bytes(&sim.use_of(peer))[lane as usize]).sum()
        };
        let (sent, received) = (of(|used| &used.sent), of(|used| &used.received));
        assert!(received <= sent && sent <= sim.traffic(lane), "{lane:?}: {received} of {sent}");
        assert!(sent == 0 || received > 0, "{lane:?}");
    }
}

#[test]
fn a_swarm_over_two_regions_and_through_relays_trains_more_slowly() {
    let completed = |change: fn(&mut Setup)| {
        let mut setup = homes(3);
        change(&mut setup);
        let mut sim = Simulation::new(setup);
        sim.run_for(seconds(30));
        assert_sound(&sim, "far").completed
    };
    let near = completed(|_| {});
    let far = completed(|setup| {
        setup.regions = vec![vec![0, 150_000_000], vec![150_000_000, 0]];
        for peer in [3, 4] {
            setup.peers[peer].region = 1;
        }
    });
    let relayed = completed(|setup| {
        for plan in &mut setup.peers[1..] {
            plan.relayed = true;
        }
    });
    assert!(far > 0 && far < near, "{far} of {near} between regions");
    assert!(relayed > 0 && relayed < near, "{relayed} of {near} through relays");
}

#[test]
fn bodies_that_take_longer_than_any_patience_are_sent_once() {
    let manifest = Small::demo(2).manifest();
    let gradient = 2 * manifest.tokens_per_micro_batch() * u64::from(manifest.model.config.hidden);
    // Seven seconds for a gradient: upstream asks after five where its id stands.
    let access = Access { up: gradient / 7, ..Access::HOME };
    // Where one asks at the moment at which its gradient arrives is a matter of the seed.
    for seed in 1..=6 {
        let peers = swarm(2, 2).into_iter().map(|plan| plan.access(access).disk(0)).collect();
        let mut sim = Simulation::new(Setup::new(seed, manifest.clone(), peers));
        sim.run_for(seconds(300));
        let mut sent: BTreeMap<_, u32> = BTreeMap::new();
        for line in sim.lines() {
            match &line.record.event {
                Event::SentForward { id, stage, .. } => *sent.entry((*id, *stage, false)).or_default() += 1,
                Event::SentBackward { id, stage, .. } => *sent.entry((*id, *stage, true)).or_default() += 1,
                _ => {}
            }
        }
        assert!(sent.len() > 40, "{sent:?}");
        sent.retain(|_, times| *times > 1);
        assert_eq!(sent, BTreeMap::new(), "seed {seed}");
        assert_sound(&sim, "slow");
    }
}

#[test]
fn a_newcomer_gets_its_weights_over_a_slow_uplink_at_the_first_try() {
    // Each of four chunks takes half a minute and more.
    let slow = Access { up: 120_000, ..Access::HOME };
    let hosts = [0, 10].map(|at| Plan::new(Role::host(0)).access(slow).starts(seconds(at)));
    let mut sim = Simulation::new(Setup::new(4, Small::demo(1).manifest(), hosts.into()));
    let newcomer = sim.id(1);
    let serves = |event: &Event| matches!(event, Event::Serving { .. });
    let served = sim.run_until(seconds(180), |line| line.record.peer == newcomer && serves(&line.record.event));
    assert!(served.is_some_and(|at| at > seconds(120)), "{served:?}");
    let waited = sim.lines().iter().any(|line| matches!(line.record.event, Event::Waiting { .. }));
    assert!(!waited, "{:?}", sim.lines());
    assert_sound(&sim, "slow");
}
