//! Devices that fail: the job has a reason, its micro-batch is tried elsewhere, and the peer stays or leaves in words.

use std::time::Duration;

use skein_pipeline::job::{Done, Job};
use skein_protocol::event::Event;

use crate::world::{World, manifest};

const SECOND: Duration = Duration::from_secs(1);

fn trains(job: &Job) -> bool {
    matches!(job, Job::Forward { .. } | Job::Loss { .. } | Job::Backward { .. })
}

fn failed(why: &str) -> Done {
    Done::Failed { why: why.into(), disk_full: false }
}

fn out_of_memory(job: &Job) -> Option<Done> {
    trains(job).then(|| failed("the device has no memory left"))
}

fn not_a_number(job: &Job) -> Option<Done> {
    trains(job).then(|| Done::NotFinite { why: "the output of the stage is not finite".into() })
}

fn no_kernel(job: &Job) -> Option<Done> {
    matches!(job, Job::Create { .. } | Job::Load { .. }).then(|| failed("a product came out as 3, not 4"))
}

/// A feeder and two replicas of each of two stages: stage 0 has the peers 1 and 3, stage 1 the peers 2 and 4.
fn swarm() -> World {
    let mut world = World::new(manifest(2, 4), 5, 7);
    for peer in 1..5 {
        world.command_host(peer, ((peer - 1) % 2) as u16);
    }
    world.command_feed(0);
    world
}

fn completed(world: &World) -> usize {
    world.count(|event| matches!(event, Event::Completed { .. }))
}

fn voided(world: &World) -> usize {
    world.count(|event| matches!(event, Event::Voided { .. }))
}

fn says(world: &World, peer: usize, words: &str) -> usize {
    world.count_of(peer, |event| matches!(event, Event::Waiting { what } if what.contains(words)))
}

#[test]
fn what_a_device_cannot_do_is_done_elsewhere_and_who_always_fails_leaves_with_its_reason() {
    for broken in 1..5 {
        let mut world = swarm();
        world.run(5 * SECOND);
        world.break_device(broken, Some(out_of_memory));
        let before = completed(&world);
        world.run(15 * SECOND);
        assert!(completed(&world) > before + 50, "peer {broken}: {before}, then {}", completed(&world));
        assert_eq!(voided(&world), 0, "peer {broken}");
        assert!(says(&world, broken, "the device has no memory left") > 0);
        assert_eq!(says(&world, broken, "This peer leaves"), 1);
        world.run(20 * SECOND);
        assert_eq!(world.count_of(broken, |event| matches!(event, Event::Drained)), 1, "peer {broken}");
        world.command_stop_feeding(0);
        world.run(5 * SECOND);
        world.assert_exact();
    }
}

#[test]
fn who_fails_for_a_moment_stays() {
    let mut world = swarm();
    world.run(5 * SECOND);
    world.break_device(2, Some(out_of_memory));
    world.run(Duration::from_millis(50));
    world.break_device(2, None);
    world.run(10 * SECOND);
    assert!(says(&world, 2, "the device has no memory left") > 0);
    assert_eq!(says(&world, 2, "This peer leaves"), 0);
    let added = world.count_of(2, |event| matches!(event, Event::Added { .. }));
    world.run(10 * SECOND);
    assert!(world.count_of(2, |event| matches!(event, Event::Added { .. })) > added, "it serves again");
}

#[test]
fn a_result_that_is_not_finite_is_tried_at_another_replica_before_it_is_given_up() {
    for broken in 1..5 {
        let mut world = swarm();
        world.run(5 * SECOND);
        world.break_device(broken, Some(not_a_number));
        let before = completed(&world);
        world.run(10 * SECOND);
        assert!(completed(&world) > before + 50, "peer {broken}: {before}, then {}", completed(&world));
        assert_eq!(voided(&world), 0, "peer {broken}: the other replica can do them");
        world.command_stop_feeding(0);
        world.run(5 * SECOND);
        world.assert_exact();
    }
    // Where everybody says so, it is the model.
    let mut world = swarm();
    world.run(5 * SECOND);
    for peer in [2, 4] {
        world.break_device(peer, Some(not_a_number));
    }
    world.run(10 * SECOND);
    assert!(voided(&world) > 0);
}

#[test]
fn a_device_that_fails_its_first_kernel_serves_nothing_and_says_why() {
    let mut world = World::new(manifest(1, 4), 2, 7);
    world.break_device(1, Some(no_kernel));
    world.command_host(1, 0);
    world.command_feed(0);
    world.run(10 * SECOND);
    assert!(says(&world, 1, "a product came out as 3, not 4") > 0);
    assert_eq!(world.count_of(1, |event| matches!(event, Event::Serving { .. })), 0);
}
