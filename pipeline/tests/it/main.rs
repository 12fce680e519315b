//! The peer as a whole, over a world of a few lines: a fixed delay, a worker that takes a fixed time and computes nothing.

mod coding;
mod devices;
mod generate;
mod hostile;
mod one;
mod parted;
mod pinned;
mod shelf;
mod turns;
mod world;

use std::time::Duration;

use one::One;
use skein_pipeline::{
    flow::held_out::HeldOut,
    job::Job,
    peer::{PeerConfig, SavedState, io::Command},
};
use skein_protocol::{Blob, Version, event::Event, hash::Digest};
use world::{World, manifest, starts};

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
fn data_that_ends_is_fed_to_its_end_and_then_that_is_said() {
    let mut world = World::new(manifest(3, 4), 4, 3);
    world.records = Some(30);
    for peer in 1..4 {
        world.command_host(peer, peer as u16 - 1);
    }
    world.command_feed(0);
    world.run(Duration::from_millis(300));
    assert!(!world.view(0).feeding.expect("it feeds").done);
    world.run(Duration::from_secs(10));
    let feeding = world.view(0).feeding.expect("it feeds");
    assert_eq!((feeding.done, feeding.completed, feeding.open), (true, 30, 0));
}

/// Nobody is waited for, so it serves at its first word: not from the seed.
#[test]
fn a_lone_peer_that_comes_back_goes_on_from_what_it_saved() {
    let saved = SavedState {
        version: Version { stage: 1, own_step: 7, ..Version::default() },
        root: Digest([7; 32]),
        blob: Blob { id: 800, len: 1000 },
    };
    let config = PeerConfig { expects_others: false, saved: vec![saved], ..One::config(manifest(3, 4), 1, 1 << 40) };
    let mut one = One::of(config);
    for stage in 0..3 {
        one.command(Command::Host { stage });
    }
    one.command(Command::Feed);
    let made = one
        .jobs
        .iter()
        .map(|(_, job)| (job.stage(), matches!(job, Job::Load { root, .. } if *root == Digest([7; 32]))));
    assert_eq!(made.collect::<Vec<_>>(), [(0, false), (1, true)], "two jobs at a time");
    one.work();
    let steps = one.events.iter().filter_map(|event| match event {
        Event::Serving { stage, version } => Some((*stage, version.own_step)),
        _ => None,
    });
    assert_eq!(steps.collect::<Vec<_>>(), [(0, 0), (1, 7), (2, 0)]);
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

/// One micro-batch in five is of held-out data: it tells its loss, counts as no sample, and enters no sum.
#[test]
fn what_is_held_out_is_measured_and_never_learned() {
    for seed in 0..6 {
        let mut world = World::with_held_out(manifest(3, 4), 7, seed, HeldOut { every: 5 });
        for peer in 1..7 {
            world.command_host(peer, ((peer - 1) % 3) as u16);
        }
        world.command_feed(0);
        world.run(Duration::from_secs(8));
        let kill = seed % 2 == 1;
        if kill {
            world.kill(1 + (seed as usize % 6));
        }
        world.run(Duration::from_secs(8));
        world.command_stop_feeding(0);
        world.run(Duration::from_secs(10));
        let measured = world.ids(|event| matches!(event, Event::Measured { .. }));
        let completed = world.ids(|event| matches!(event, Event::Completed { .. }));
        assert!(measured.len() > 10, "seed {seed}: {}", measured.len());
        let (part, all) = (measured.len(), measured.len() + completed.len());
        assert!((all / 5).abs_diff(part) <= 1, "seed {seed}: {part} of {all}");
        let learned = world.ids(|event| matches!(event, Event::Added { .. } | Event::Refused { .. }));
        assert!(learned.is_disjoint(&measured), "seed {seed}");
        assert!(kill || world.weightless == 3 * part, "seed {seed}: {} of {part}", world.weightless);
        let view = world.view(0);
        assert_eq!(view.samples, 2 * completed.len() as u64, "seed {seed}");
        // Whoever lives has heard of it.
        let hears = if seed == 1 { 3 } else { 2 };
        assert_eq!([0, hears].map(|peer| world.view(peer).held_out_loss), [Some(1.0); 2], "seed {seed}");
        world.assert_exact();
    }
}

/// Every stage is told where the records of an id begin, whoever dies and to whomever it is sent again.
#[test]
fn all_stages_hear_where_records_begin_also_when_an_id_is_sent_again() {
    let mut again = 0;
    for seed in 0..12 {
        let mut world = World::new(manifest(3, 4), 7, seed);
        for peer in 1..7 {
            world.command_host(peer, ((peer - 1) % 3) as u16);
        }
        world.command_feed(0);
        world.run(Duration::from_secs(3));
        world.kill(1 + (seed as usize % 6));
        world.run(Duration::from_secs(4));
        let resent = |event: &Event| matches!(event, Event::Resent { .. });
        again += world.count(resent);
        let times = |index| [0, 1, 2].map(|stage| world.forwards(stage, &starts(index)));
        assert_eq!(times(0), [1; 3], "seed {seed}: only the first id is not packed");
        let minted = world.count(|event| matches!(event, Event::Minted { .. }));
        let through = (0..minted as u64).filter(|index| times(*index).iter().all(|times| *times > 0)).count();
        let completed = world.count(|event| matches!(event, Event::Completed { .. }));
        assert!(through >= completed && completed > 50, "seed {seed}: {through} of {completed}");
    }
    assert!(again > 20, "only {again} ids were sent again");
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

/// Kills one peer at a time drawn from the seed; every role comes by.
#[test]
fn whoever_dies_whenever_nothing_is_lost_or_counted_twice() {
    for seed in 0..200u64 {
        let mut world = World::new(manifest(3, 2), 7, seed);
        for peer in 1..7 {
            world.command_host(peer, ((peer - 1) % 3) as u16);
        }
        world.command_feed(0);
        let draw = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        world.run(Duration::from_millis(1200 + draw % 997));
        world.kill(1 + (draw >> 32) as usize % 6);
        world.run(Duration::from_millis(4500));
        let before = world.count(|event| matches!(event, Event::Completed { .. }));
        world.run(Duration::from_millis(1000));
        let after = world.count(|event| matches!(event, Event::Completed { .. }));
        assert!(after > before, "seed {seed}: nothing is completed any more after {before}");
        world.command_stop_feeding(0);
        world.run(Duration::from_secs(2));
        world.assert_exact();
        world.assert_bounded();
    }
}

#[test]
fn whoever_was_suspended_drops_its_open_work_and_comes_back() {
    // A step that the worker had before it was suspended is made when it wakes, though others have done its work.
    let mut overlapped = 0;
    for seed in 0..40u64 {
        let mut world = World::new(manifest(3, 2), 7, seed);
        for peer in 1..7 {
            world.command_host(peer, ((peer - 1) % 3) as u16);
        }
        world.command_feed(0);
        let draw = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        world.run(Duration::from_millis(1500 + draw % 997));
        let who = 1 + (draw >> 32) as usize % 6;
        world.suspend(who, Duration::from_secs(5));
        world.run(Duration::from_secs(12));
        assert_eq!(world.count_of(who, |event| matches!(event, Event::Fenced { .. })), 1, "seed {seed}");
        world.command_stop_feeding(0);
        world.run(Duration::from_secs(3));
        overlapped += world.assert_none_lost();
    }
    assert!(overlapped <= 20, "{overlapped} ids in 40 runs");
}
