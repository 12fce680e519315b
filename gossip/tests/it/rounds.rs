//! Rounds in a network that works, and partners that die at every frame.

use std::time::Duration;

use skein_protocol::event::RoundOutcome;

use crate::world::{EVERY, Victim, World};

const SECOND: Duration = Duration::from_secs(1);

/// All replicas step until their round is due, at the same moment.
fn all_step(world: &mut World, by: f32) {
    for _ in 0..EVERY {
        for n in 0..world.replicas.len() {
            world.step(n, by);
        }
    }
    world.run_for(SECOND);
}

/// As [`all_step`], without the time that their rounds take. Whose round is due first is the seed's choice.
fn due_now(world: &mut World) {
    let mut order: Vec<usize> = (0..world.replicas.len()).collect();
    world.shuffle(&mut order);
    for step in 0..EVERY {
        for n in &order {
            world.step(*n, 0.1 * step as f32);
        }
    }
}

fn outcomes(world: &World, n: usize) -> Vec<RoundOutcome> {
    world.replicas[n].ended.iter().map(|ended| ended.outcome).collect()
}

#[test]
fn two_replicas_that_learn_nothing_come_together_as_the_closed_form_says() {
    let mut world = World::new(1, 2, 500);
    let mut variances = Vec::new();
    for _ in 0..16 {
        all_step(&mut world, 0.0);
        variances.push(world.variance());
    }
    // The roots are complex (55.5 degrees a round): 13 rounds are two full swings of the disagreement.
    let factor = (variances[15] / variances[2]).powf(1.0 / 13.0);
    assert!((factor - 0.50).abs() < 0.02, "variance falls by {factor} a round");
    assert_eq!(outcomes(&world, 0), [RoundOutcome::Both; 16]);
    world.assert_settled("two");
}

#[test]
fn with_an_odd_count_one_sits_out_and_all_meet_in_the_end() {
    let mut world = World::new(2, 5, 50);
    let before = world.variance();
    for _ in 0..30 {
        all_step(&mut world, 0.0);
    }
    world.run_for(Duration::from_secs(200));
    world.assert_settled("five");
    assert!(world.variance() < before / 1000.0, "{} of {before}", world.variance());
    let one_sided = |outcome: &RoundOutcome| matches!(outcome, RoundOutcome::OneSided | RoundOutcome::Neither);
    assert!((0..5).all(|n| !outcomes(&world, n).iter().any(one_sided)), "every round has two sides");
    assert!((0..5).all(|n| world.replicas[n].adopted >= 10), "nobody is left out for long");
}

#[test]
fn replicas_that_are_due_at_one_moment_pair_up_within_a_few_round_trips() {
    // Frames take 1 ms. At worst one after the other asks three and is turned away by all but the last.
    let round_trip = Duration::from_millis(2);
    let mut most = Duration::ZERO;
    for (replicas, pairs) in [(2, 1), (3, 1), (4, 2)] {
        for seed in 0..200 {
            let mut world = World::new(seed, replicas, 2);
            // No pair is done before the last is found.
            world.trouble.tensors = Duration::from_millis(200);
            let began = world.now;
            due_now(&mut world);
            let partners =
                |world: &World| world.replicas.iter().filter(|replica| replica.machine.in_air().is_some()).count();
            let mut took = Duration::ZERO;
            while partners(&world) + world.replicas.iter().filter(|replica| replica.adopted > 0).count() < 2 * pairs {
                world.run_for(round_trip / 2);
                took = world.now.since(began);
                assert!(took <= 5 * round_trip, "{replicas} replicas, seed {seed}: {:?}", world.replicas[0].machine);
            }
            most = most.max(took);
            world.run_for(SECOND);
            world.assert_settled(&format!("{replicas} replicas, seed {seed}"));
            let all = (0..replicas).flat_map(|n| outcomes(&world, n));
            assert_eq!(all.filter(|outcome| *outcome == RoundOutcome::Both).count(), 2 * pairs, "seed {seed}");
        }
    }
    println!("{most:?} at most");
}

#[test]
fn whoever_is_held_is_told_when_the_one_that_it_waits_for_is_taken_or_gone() {
    for seed in 0..200 {
        let mut world = World::new(seed, 6, 2);
        due_now(&mut world);
        // One dies while proposals are on their way.
        world.run_for(Duration::from_micros(500 + 300 * (seed % 10)));
        world.kill(seed as usize % 6);
        world.run_for(Duration::from_secs(70));
        world.assert_settled(&format!("seed {seed}"));
        let pairs = (0..6).flat_map(|n| outcomes(&world, n)).filter(|outcome| *outcome == RoundOutcome::Both).count();
        assert!(pairs >= 2, "seed {seed}: {pairs} of five replicas averaged");
    }
}

#[test]
fn partners_at_different_steps_average_and_both_get_the_same_mean() {
    let mut world = World::new(3, 2, 20);
    for _ in 0..EVERY - 1 {
        world.step(1, 0.5);
    }
    for _ in 0..EVERY {
        world.step(0, 0.1);
    }
    world.run_for(SECOND);
    assert_eq!((outcomes(&world, 0), outcomes(&world, 1)), (vec![RoundOutcome::Both], vec![RoundOutcome::Both]));
    world.assert_settled("different steps");
    assert_eq!(world.replicas[0].machine.round(), world.replicas[1].machine.round());
}

#[test]
fn tensors_that_take_minutes_on_a_slow_link_are_waited_for_but_not_for_ever() {
    for (minutes, wanted) in [(2, RoundOutcome::Both), (10, RoundOutcome::Neither)] {
        let mut world = World::new(8, 2, 4);
        world.trouble.tensors = Duration::from_secs(60 * minutes);
        all_step(&mut world, 0.1);
        world.run_for(Duration::from_secs(700));
        world.assert_settled("slow link");
        assert!((0..2).all(|n| outcomes(&world, n) == [wanted]), "{minutes} minutes: {:?}", outcomes(&world, 0));
    }
}

#[test]
fn what_is_trained_while_a_round_is_in_the_air_is_kept() {
    let mut world = World::new(4, 2, 3);
    for _ in 0..EVERY {
        world.step(0, 0.0);
        world.step(1, 0.0);
    }
    // A proposal and its answer have arrived, the tensors have not.
    world.run_for(Duration::from_micros(2500));
    world.step(0, 10.0);
    world.run_for(SECOND);
    let replica = &world.replicas[0];
    assert_eq!(outcomes(&world, 0), [RoundOutcome::Both]);
    for (theta, phi) in replica.theta.iter().zip(&replica.phi) {
        assert!((theta - phi - 10.0).abs() < 1e-5, "{theta} {phi}");
    }
}

#[test]
fn a_partner_that_dies_at_any_frame_leaves_the_other_whole_and_free() {
    let frames = {
        let mut world = World::new(5, 2, 4);
        all_step(&mut world, 0.1);
        world.sent
    };
    assert!(frames >= 7, "propose, agree, two of tensors, ready and adopted each: {frames}");
    let mut seen = Vec::new();
    for at in 1..=frames {
        for victim in [Victim::Sender, Victim::Receiver] {
            let about = format!("frame {at}, {victim:?}");
            let mut world = World::new(5, 3, 4);
            world.kill(2);
            world.kill_at = Some((at, victim));
            all_step(&mut world, 0.1);
            world.run_for(Duration::from_secs(70));
            world.assert_settled(&about);
            let alive: Vec<usize> = (0..2).filter(|n| world.replicas[*n].alive).collect();
            assert_eq!(alive.len(), 1, "{about}");
            let replica = &world.replicas[alive[0]];
            seen.extend(replica.ended.iter().map(|ended| ended.outcome));
            assert!(replica.adopted + replica.rolled_back <= 1, "{about}: a session ends in one way");
            // Alone now, its rounds go on.
            let before = replica.ended.len();
            for _ in 0..2 * EVERY {
                world.step(alive[0], 0.1);
                world.run_for(SECOND);
            }
            let later = &world.replicas[alive[0]].ended[before..];
            assert!(later.iter().any(|ended| ended.outcome == RoundOutcome::Alone), "{about}: {later:?}");
        }
    }
    for outcome in [RoundOutcome::Neither, RoundOutcome::OneSided] {
        assert!(seen.contains(&outcome), "no kill led to {outcome:?}");
    }
}

#[test]
fn a_replica_far_behind_copies_and_the_other_keeps_what_it_has() {
    let mut world = World::new(6, 2, 4);
    world.replicas[0].machine.set_round(20);
    let ahead = world.replicas[0].phi.clone();
    all_step(&mut world, 0.0);
    assert_eq!((outcomes(&world, 0), outcomes(&world, 1)), (vec![RoundOutcome::Copied], vec![RoundOutcome::Copied]));
    assert_eq!((&world.replicas[0].phi, &world.replicas[1].phi), (&ahead, &ahead));
    assert_eq!(world.replicas[1].machine.round(), world.replicas[0].machine.round());
    world.assert_settled("far behind");
}

#[test]
fn a_partner_with_numbers_that_are_not_finite_is_rolled_back() {
    let mut world = World::new(7, 2, 4);
    world.replicas[1].theta[2] = f32::NAN;
    let mine = world.replicas[0].phi.clone();
    all_step(&mut world, 0.0);
    assert_eq!(outcomes(&world, 0), [RoundOutcome::Neither]);
    assert_eq!(world.replicas[0].phi, mine);
    assert!(world.replicas[0].machine.is_idle());
}
