//! The peer as a whole, over a world of a few lines: a fixed delay, a worker that takes a fixed time and computes nothing.

mod world;

use std::time::Duration;

use skein_protocol::event::Event;
use world::{World, manifest};

#[test]
fn a_lone_peer_trains_all_stages() {
    let mut world = World::new(manifest(3, 4), 1, 1);
    world.command_join(0);
    world.command_feed(0);
    world.run(Duration::from_secs(20));
    let completed = world.count(|event| matches!(event, Event::Completed { .. }));
    let stepped = world.count(|event| matches!(event, Event::Stepped { .. }));
    assert!(completed > 100, "completed {completed}");
    assert!(stepped > 50, "stepped {stepped}");
    world.assert_exact();
}

#[test]
fn a_swarm_trains_and_goes_on_when_a_peer_dies() {
    for seed in 0..20 {
        let mut world = World::new(manifest(3, 4), 7, seed);
        for peer in 1..7 {
            world.command_host(peer, ((peer - 1) % 3) as u16);
        }
        world.command_feed(0);
        world.run(Duration::from_secs(10));
        let before = world.count(|event| matches!(event, Event::Completed { .. }));
        assert!(before > 50, "seed {seed}: completed {before}");
        world.kill(1 + (seed as usize % 6));
        world.run(Duration::from_secs(10));
        let after = world.count(|event| matches!(event, Event::Completed { .. }));
        assert!(after > before + 50, "seed {seed}: completed {before}, then {after}");
        world.command_stop_feeding(0);
        world.run(Duration::from_secs(10));
        world.assert_exact();
        let rounds = world.count(|event| matches!(event, Event::Round { .. }));
        assert!(rounds > 3, "seed {seed}: {rounds} rounds");
    }
}

#[test]
fn a_late_joiner_takes_weights_from_a_replica_and_serves() {
    let mut world = World::new(manifest(3, 4), 2, 3);
    world.asleep(1);
    world.command_join(0);
    world.command_feed(0);
    world.run(Duration::from_secs(5));
    world.wake(1);
    world.command_join(1);
    world.run(Duration::from_secs(10));
    let served = world.count_of(1, |event| matches!(event, Event::Added { .. }));
    assert!(served > 20, "served {served}");
    assert!(world.count_of(1, |event| matches!(event, Event::Fetched { .. })) >= 1);
    world.assert_exact();
}

#[test]
fn a_drained_peer_leaves_nothing_pending() {
    let mut world = World::new(manifest(2, 2), 5, 3);
    for peer in 1..5 {
        world.command_host(peer, ((peer - 1) % 2) as u16);
    }
    world.command_feed(0);
    world.run(Duration::from_secs(5));
    world.command_drain(2);
    world.run(Duration::from_secs(15));
    assert_eq!(world.count_of(2, |event| matches!(event, Event::Drained)), 1);
    world.assert_exact();
}
