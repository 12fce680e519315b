//! Peers that lose each other, or never understand each other: what each may conclude from that.

use std::time::Duration;

use skein_pipeline::{
    job::Job,
    peer::io::{Command, Input},
};
use skein_protocol::{
    Lane, Utc,
    event::Event,
    wire::{Frame, flow, hello, membership::State},
};

use crate::{
    one::{One, batch, forward, id},
    world::manifest,
};

const SECOND: Duration = Duration::from_secs(1);

fn created(one: &One, stage: u16) -> bool {
    one.jobs.iter().any(|(_, job)| matches!(job, Job::Create { stage: s } if *s == stage))
}

#[test]
fn who_is_cut_off_from_everybody_takes_nothing_for_a_while() {
    let mut one = One::new(manifest(2, 4), 2, &[1, 3]);
    one.offers(3, 1, State::Serving, 0, 5);
    one.command(Command::Host { stage: 0 });
    one.command(Command::Join);
    one.work();
    one.loses(3);
    one.loses(1);
    one.wait(15 * SECOND);
    assert!(!created(&one, 1), "stage 1 begins anew while its replica may be well");
    one.wait(10 * SECOND);
    assert!(created(&one, 1), "nobody came back");
}

#[test]
fn a_stage_that_others_still_hear_of_does_not_begin_anew() {
    let mut one = One::new(manifest(2, 4), 2, &[1]);
    one.progress(0, 1000);
    one.passes_on(1, 3, 1);
    one.command(Command::Host { stage: 1 });
    one.wait(40 * SECOND);
    assert!(!created(&one, 1));
    one.wait(40 * SECOND);
    assert!(created(&one, 1), "its offer has expired");
}

#[test]
fn with_a_wrong_clock_nothing_begins_anew_and_it_is_said_why() {
    let mut one = One::new(manifest(2, 4), 2, &[]);
    one.meets(3, Utc(one.utc().0 + 3_600_000));
    one.command(Command::Join);
    one.wait(60 * SECOND);
    assert!(one.jobs.is_empty(), "{:?}", one.jobs);
    assert!(one.count(|event| matches!(event, Event::ClocksApart { apart_ms: 3_600_000, .. })) > 0);
    one.meets(4, one.utc());
    one.wait(3 * SECOND);
    assert!(created(&one, 0));
}

#[test]
fn who_is_declared_dead_twice_fences_itself_twice_though_not_at_once() {
    let mut one = One::serving(manifest(3, 4), 2, &[1, 3], &[1]);
    let fenced = |one: &One| one.count(|event| matches!(event, Event::Fenced { .. }));
    one.hear(3, Frame::Hello(hello::Frame::Fence(1)), None);
    assert_eq!(fenced(&one), 1);
    one.fact(Input::Incarnated { incarnation: 2 });
    one.hear(3, Frame::Hello(hello::Frame::Fence(2)), None);
    one.wait(5 * SECOND);
    assert_eq!((fenced(&one), one.blamed.len()), (1, 0));
    one.wait(6 * SECOND);
    assert_eq!(fenced(&one), 2);
}

#[test]
fn an_answer_is_kept_as_long_as_its_feeder_is_there() {
    let mut one = One::serving(manifest(3, 4), 2, &[1, 3], &[0, 1, 2]);
    let offer = forward(0, 0);
    one.hear_flow(1, flow::Frame::Forward(offer.clone()), Some(2 * 16 * 4));
    let confirmed = flow::Accepted { id: batch(0), attempt: offer.attempt, stage: 0, next: Some(id(2)) };
    one.hear_flow(1, flow::Frame::Confirmed(confirmed), None);
    let labels = |one: &mut One| one.hear_flow(1, flow::Frame::Labels(batch(0)), Some(2 * 16 * 4));
    one.work();
    labels(&mut one);
    one.work();
    let added = |one: &One| one.count(|event| matches!(event, Event::Added { .. }));
    assert_eq!(added(&one), 3);
    one.wait(700 * SECOND);
    let again = flow::Forward { attempt: skein_protocol::Attempt::first(1), ..forward(0, 0) };
    one.hear_flow(1, flow::Frame::Forward(again), Some(2 * 16 * 4));
    one.work();
    assert_eq!(added(&one), 3, "its feeder has not said that it is over");
    assert!(one.count(|event| matches!(event, Event::Answered { .. })) > 0);
    one.loses(1);
    one.wait(700 * SECOND);
    assert!(one.held.is_empty(), "{:?}", one.held);
}

/// A peer that serves stage 1 of four, and has sent an id on to peer 4, which said that it goes to peer 5.
fn handed_on() -> One {
    let mut one = One::serving(manifest(4, 4), 2, &[1, 3, 4, 5, 6, 7], &[1]);
    one.offers(4, 2, State::Serving, 0, 0);
    let offer = flow::Forward { starts: vec![5, 20].into(), ..forward(0, 1) };
    one.hear_flow(3, flow::Frame::Forward(offer.clone()), Some(1000));
    let attempt = offer.attempt;
    let confirmed = flow::Accepted { id: batch(0), attempt: attempt.clone(), stage: 1, next: Some(id(4)) };
    one.hear_flow(3, flow::Frame::Confirmed(confirmed), None);
    let asked = one.jobs.iter().find_map(|(_, job)| match job {
        Job::Forward { starts, .. } => Some(starts.places().to_vec()),
        _ => None,
    });
    assert_eq!(asked, Some(vec![5, 20]), "its worker knows where the records begin");
    one.work();
    let accepted = flow::Accepted { id: batch(0), attempt: attempt.hop(0), stage: 2, next: Some(id(5)) };
    one.hear_flow(4, flow::Frame::Accepted(accepted), None);
    one.offers(7, 2, State::Serving, 0, 0);
    // Whoever sent it here is gone; its successor was told that peer 2 may have it.
    let again = flow::Forward { attempt: skein_protocol::Attempt::first(1).hop(0), hint: Some(id(2)), ..offer };
    one.hear_flow(6, flow::Frame::Forward(again), Some(1000));
    one.said.clear();
    one
}

#[test]
fn who_takes_over_from_a_dead_replica_hears_whom_that_one_had_named() {
    let mut one = handed_on();
    one.loses(4);
    let attempt = skein_protocol::Attempt::first(1).hop(0);
    let confirmed = flow::Accepted { id: batch(0), attempt, stage: 1, next: Some(id(7)) };
    one.hear_flow(6, flow::Frame::Confirmed(confirmed), None);
    let told = one.said_to(7).find_map(|frame| match frame {
        Frame::Flow(flow::Frame::Forward(forward)) => Some((forward.hint, forward.starts.places().to_vec())),
        _ => None,
    });
    assert_eq!(told, Some((Some(id(5)), vec![5, 20])), "and where the records begin");
}

#[test]
fn a_holder_is_asked_under_the_name_by_which_it_knows_the_id() {
    let mut one = handed_on();
    one.wait(6 * SECOND);
    let asked = one.said_to(4).find_map(|frame| match frame {
        Frame::Flow(flow::Frame::Ask(about)) => Some(about.attempt.clone()),
        _ => None,
    });
    assert_eq!(asked, Some(skein_protocol::Attempt::first(0).hop(0).hop(0)));
}

#[test]
fn a_round_whose_tensors_find_no_room_in_the_lane_ends_at_once() {
    use skein_protocol::{event::RoundOutcome, wire::average};
    let mut one = One::serving(manifest(3, 4), 2, &[1, 3], &[1]);
    one.offers(3, 1, State::Serving, 0, 0);
    let name = average::Name { stage: 1, session: 1 };
    let terms = average::Terms { name, round: 0, samples: 8, own_round: 0 };
    one.hear(3, Frame::Average(average::Frame::Propose(terms)), None);
    one.work();
    one.fact(Input::Congested { peer: id(3), lane: Lane::Average });
    let neither = |event: &Event| matches!(event, Event::Round { outcome: RoundOutcome::Neither, .. });
    assert_eq!(one.count(neither), 1);
    one.work();
    assert!(one.held.is_empty(), "{:?}", one.held);
}
