//! What others say is not believed where it cannot be, and takes no more than its share.

use std::time::Duration;

use skein_pipeline::{job::Job, peer::io::Command};
use skein_protocol::{
    Attempt, Stage, Version,
    event::{Event, Safety},
    hash::Digest,
    wire::{
        Frame, average, flow,
        limits::CHUNK,
        membership::State,
        state::{self, Chunk, Is, Purpose, Want},
    },
};

use crate::{
    one::{One, batch, forward, id},
    world::manifest,
};

/// Bytes of the tokens of one micro-batch.
const TOKENS: u64 = 2 * 16 * 4;

fn version(stage: Stage, peer: u8, own_step: u32) -> Version {
    Version { stage, peer: id(peer), incarnation: 1, round: 0, own_step }
}

fn is(request: u64, version: Version, len: u64) -> Is {
    Is { request, version, len, root: Digest([9; 32]) }
}

fn want(request: u64, purpose: Purpose) -> state::Frame {
    state::Frame::Want(Want { request, stage: 1, purpose, version: None })
}

/// Requests that a peer invents for others to ask with.
const INVENTED: u64 = 1 << 63;

// ---- micro-batches -------------------------------------------------------------------------------------------------------

#[test]
fn a_first_stage_takes_micro_batches_from_their_feeder_alone() {
    let mut one = One::serving(manifest(3, 4), 2, &[1, 3], &[0]);
    one.hear_flow(3, flow::Frame::Forward(forward(0, 0)), Some(TOKENS));
    assert_eq!(one.blamed, vec![id(3)]);
    one.hear_flow(1, flow::Frame::Forward(forward(0, 0)), Some(TOKENS));
    assert_eq!(one.blamed, vec![id(3)]);
    assert_eq!(one.count(|event| matches!(event, Event::Accepted { .. })), 1);
    assert_eq!(one.held.len(), 1);
}

#[test]
fn a_micro_batch_that_no_step_has_is_refused() {
    let mut one = One::serving(manifest(3, 4), 2, &[1, 3], &[1]);
    one.hear_flow(3, flow::Frame::Forward(forward(u16::MAX, 1)), Some(1000));
    let short = flow::Forward { attempt: Attempt::first(0), ..forward(1, 1) };
    one.hear_flow(3, flow::Frame::Forward(short), Some(1000));
    assert_eq!(one.blamed, vec![id(3), id(3)]);
    assert!(one.held.is_empty());
}

#[test]
fn samples_that_a_neighbour_makes_up_move_the_learning_rate_little() {
    let mut one = One::serving(manifest(3, 4), 2, &[1, 3, 4], &[1]);
    one.offers(4, 2, State::Serving, 0, 0);
    one.progress(0, 10_000);
    for (index, said) in [(0, u64::MAX), (1, 0), (2, 10_020)] {
        let offer = flow::Forward { samples: said, ..forward(index, 1) };
        one.hear_flow(3, flow::Frame::Forward(offer.clone()), Some(1000));
        let confirmed = flow::Accepted { id: offer.id, attempt: offer.attempt, stage: 1, next: Some(id(4)) };
        one.hear_flow(3, flow::Frame::Confirmed(confirmed), None);
        one.work();
    }
    let samples: Vec<u64> = one
        .said_to(4)
        .filter_map(|frame| match frame {
            Frame::Flow(flow::Frame::Forward(forward)) => Some(forward.samples),
            _ => None,
        })
        .collect();
    assert_eq!(samples.len(), 3);
    assert!((10_000..12_000).contains(&samples[0]), "{samples:?}");
    assert!((8_000..10_000).contains(&samples[1]), "{samples:?}");
    assert_eq!(samples[2], 10_020);
}

#[test]
fn a_declined_id_is_given_on_with_the_name_of_who_may_have_added_it() {
    let mut one = One::serving(manifest(3, 4), 2, &[1, 4, 6], &[0]);
    one.offers(4, 1, State::Serving, 0, 0);
    one.offers(6, 1, State::Serving, 0, 0);
    let offer = forward(0, 0);
    one.hear_flow(1, flow::Frame::Forward(offer.clone()), Some(TOKENS));
    // Confirms where it goes, and finds the forward that follows.
    let sent = |one: &mut One| {
        let next = one.said_to(1).find_map(|frame| match frame {
            Frame::Flow(flow::Frame::Accepted(accepted)) => accepted.next,
            _ => None,
        });
        let confirmed = flow::Accepted { id: offer.id, attempt: offer.attempt.clone(), stage: 0, next };
        one.hear_flow(1, flow::Frame::Confirmed(confirmed), None);
        one.work();
        let said = std::mem::take(&mut one.said);
        let forward = said.into_iter().find_map(|(to, frame)| match frame {
            Frame::Flow(flow::Frame::Forward(forward)) => Some((to, forward)),
            _ => None,
        });
        forward.expect("it is sent on")
    };
    let (first, forward) = sent(&mut one);
    assert_eq!(forward.hint, None);
    let who = if first == id(4) { 4 } else { 6 };
    let (id_, attempt, stage) = (offer.id, forward.attempt, 1);
    let accepted = flow::Accepted { id: id_, attempt: attempt.clone(), stage, next: Some(id(5)) };
    one.hear_flow(who, flow::Frame::Accepted(accepted), None);
    let declined = flow::Declined { id: id_, attempt, stage, why: flow::Why::NotServing };
    one.hear_flow(who, flow::Frame::Declined(declined), None);
    let (second, forward) = sent(&mut one);
    assert_ne!(second, first);
    assert_eq!(forward.hint, Some(id(5)));
}

#[test]
fn no_two_attempts_have_one_number() {
    let mut one = sent_on();
    let offer = forward(0, 1);
    let mut attempts = std::collections::BTreeSet::new();
    for counter in 0..=255u8 {
        let attempt = offer.attempt.hop(counter);
        let declined = flow::Declined { id: offer.id, attempt: attempt.clone(), stage: 2, why: flow::Why::Busy };
        one.hear_flow(4, flow::Frame::Declined(declined), None);
        one.wait(Duration::from_millis(200));
        let confirmed = flow::Accepted { id: offer.id, attempt: offer.attempt.clone(), stage: 1, next: Some(id(4)) };
        one.hear_flow(3, flow::Frame::Confirmed(confirmed), None);
        for frame in std::mem::take(&mut one.said) {
            if let Frame::Flow(flow::Frame::Forward(forward)) = &frame.1 {
                assert!(attempts.insert(forward.attempt.hops().to_vec()), "{:?}", forward.attempt);
            }
            if matches!(&frame.1, Frame::Flow(flow::Frame::Declined(_))) {
                assert!(frame.0 == id(3) && counter >= 250, "{counter}");
                return;
            }
        }
    }
    panic!("it never gives up");
}

/// A peer that serves the middle of three stages and has sent an id on to peer 4.
fn sent_on() -> One {
    let mut one = One::serving(manifest(3, 4), 2, &[1, 3, 4], &[1]);
    one.offers(4, 2, State::Serving, 0, 0);
    let offer = forward(0, 1);
    one.hear_flow(3, flow::Frame::Forward(offer.clone()), Some(1000));
    let (id_, attempt) = (offer.id, offer.attempt.clone());
    let confirmed = flow::Accepted { id: id_, attempt: attempt.clone(), stage: 1, next: Some(id(4)) };
    one.hear_flow(3, flow::Frame::Confirmed(confirmed), None);
    one.work();
    let accepted = flow::Accepted { id: id_, attempt: attempt.hop(0), stage: 2, next: None };
    one.hear_flow(4, flow::Frame::Accepted(accepted), None);
    assert!(one.said_to(4).any(|frame| matches!(frame, Frame::Flow(flow::Frame::Confirmed(_)))));
    one
}

fn returned(by: u8) -> flow::Frame {
    let path = vec![flow::Hop { stage: 2, peer: id(by), incarnation: 1 }];
    let attempt = Attempt::first(0).hop(0).hop(0);
    flow::Frame::Backward(flow::Returned {
        id: batch(0),
        attempt,
        stage: 1,
        path,
        loss: 32.0,
        tokens: 32,
        waited_us: 0,
    })
}

#[test]
fn who_sends_a_gradient_cannot_lay_it_at_the_door_of_another() {
    let mut one = sent_on();
    one.hear_flow(4, returned(3), Some(1000));
    assert_eq!(one.blamed, vec![id(4)]);
    one.work();
    assert_eq!(one.count(|event| matches!(event, Event::Added { .. })), 0);
    one.hear_flow(4, returned(4), Some(1000));
    one.work();
    assert_eq!(one.count(|event| matches!(event, Event::Added { .. })), 1);
}

#[test]
fn a_feeder_is_not_moved_by_words_about_ids_it_has_not_minted() {
    let mut one = One::new(manifest(3, 4), 1, &[2, 3]);
    one.command(Command::Feed);
    let (far, attempt) = (batch(3), Attempt::first(0));
    let declined = flow::Declined { id: far, attempt: attempt.clone(), stage: 0, why: flow::Why::Unknown };
    one.hear_flow(3, flow::Frame::Declined(declined), None);
    let accepted = flow::Accepted { id: far, attempt, stage: 0, next: None };
    one.hear_flow(3, flow::Frame::Accepted(accepted), None);
    one.hear_flow(3, flow::Frame::Void(flow::Void { id: far, stage: 9 }), None);
    one.wait(Duration::from_secs(1));
    assert_eq!(one.count(|event| matches!(event, Event::Voided { .. })), 0);
}

#[test]
fn a_feeder_gives_an_id_up_only_at_the_word_of_who_serves_the_stage() {
    let mut one = One::new(manifest(3, 4), 1, &[2, 3]);
    one.offers(2, 0, State::Serving, 0, 0);
    one.command(Command::Feed);
    one.wait(Duration::from_secs(1));
    assert!(one.count(|event| matches!(event, Event::Minted { .. })) > 0);
    let void = |stage| flow::Frame::Void(flow::Void { id: batch(0), stage });
    one.hear_flow(3, void(0), None);
    one.hear_flow(2, void(1), None);
    assert_eq!(one.count(|event| matches!(event, Event::Voided { .. })), 0);
    assert_eq!(one.blamed, vec![id(3), id(2)]);
    one.hear_flow(2, void(0), None);
    assert_eq!(one.count(|event| matches!(event, Event::Voided { .. })), 1);
}

#[test]
fn what_the_worker_was_told_not_to_add_is_not_said_to_be_added() {
    // Staleness bound 8: nine steps between forward and backward, then the id is over while the worker has it.
    let mut one = sent_on();
    one.hear_flow(1, flow::Frame::Cancel(flow::About { id: batch(0), attempt: Attempt::first(0), stage: 1 }), None);
    for step in 0..9u16 {
        for index in 0..4 {
            let mut offer = forward(index, 1);
            offer.id.step = 1 + u32::from(step);
            one.hear_flow(3, flow::Frame::Forward(offer.clone()), Some(1000));
            let (id_, attempt) = (offer.id, offer.attempt);
            let confirmed = flow::Accepted { id: id_, attempt: attempt.clone(), stage: 1, next: Some(id(4)) };
            one.hear_flow(3, flow::Frame::Confirmed(confirmed), None);
            one.work();
            let accepted = flow::Accepted { id: id_, attempt: attempt.hop(0), stage: 2, next: None };
            one.hear_flow(4, flow::Frame::Accepted(accepted), None);
            let flow::Frame::Backward(mut back) = returned(4) else { unreachable!() };
            back.id = id_;
            one.hear_flow(4, flow::Frame::Backward(back), Some(1000));
            one.work();
        }
    }
    assert_eq!(one.count(|event| matches!(event, Event::Stepped { .. })), 9);
    one.hear_flow(4, returned(4), Some(1000));
    let (job, spec) = one.jobs.pop_front().expect("its backward is asked for");
    assert!(matches!(spec, Job::Backward { weight: 0.0, .. }), "{spec:?}");
    one.progress(100, 0);
    let done = one.done(&spec);
    one.fact(skein_pipeline::peer::io::Input::Done { job, done });
    let of_it = |event: &&Event| match event {
        Event::Added { id, .. } | Event::Refused { id, .. } => *id == batch(0),
        _ => false,
    };
    let last = one.events.iter().rfind(of_it);
    assert!(matches!(last, Some(Event::Refused { .. })), "{last:?}");
}

// ---- states --------------------------------------------------------------------------------------------------------------

#[test]
fn two_replicas_that_push_snapshots_under_the_same_number_are_both_kept() {
    let mut one = One::new(manifest(3, 4), 2, &[3, 4]);
    for (from, stage) in [(3, 0), (4, 1)] {
        one.offers(from, stage, State::Serving, 0, 5);
        one.hear_state(from, state::Frame::Keep(is(INVENTED | 1, version(stage, from, 5), 1000)), None);
    }
    for from in [3, 4] {
        one.hear_state(from, state::Frame::Chunk(Chunk { request: INVENTED | 1, index: 0 }), Some(1000));
    }
    let held = |stage| one.count(|event| matches!(event, Event::Held { version, .. } if version.stage == stage));
    assert_eq!((held(0), held(1)), (1, 1));
    assert_eq!(one.held.len(), 2);
}

#[test]
fn a_snapshot_that_no_stage_has_is_not_kept() {
    let mut one = One::new(manifest(3, 4), 2, &[3, 4]);
    one.offers(3, 1, State::Serving, 0, 5);
    let long = is(INVENTED | 1, version(1, 3, 5), 1 << 29);
    let nowhere = is(INVENTED | 2, version(7, 3, 5), 1000);
    let far = is(INVENTED | 3, version(1, 3, u32::MAX), 1000);
    // The number of a request of mine would take the place of what I fetch.
    let mine = is(1, version(1, 3, 5), 1000);
    for keep in [long, nowhere, far, mine] {
        one.said.clear();
        one.hear_state(3, state::Frame::Keep(keep.clone()), None);
        let said: Vec<&Frame> = one.said_to(3).collect();
        assert!(matches!(said[..], [Frame::State(state::Frame::None(_))]), "{keep:?}: {said:?}");
    }
    // Who does not serve a stage has no state of it to give.
    one.hear_state(4, state::Frame::Keep(is(INVENTED | 1, version(1, 4, 5), 1000)), None);
    assert!(one.said_to(4).any(|frame| matches!(frame, Frame::State(state::Frame::None(_)))));
}

#[test]
fn of_one_stage_one_snapshot_at_a_time_is_on_its_way() {
    let mut one = One::new(manifest(3, 4), 2, &[3, 4, 5]);
    for from in [3, 4, 5] {
        one.offers(from, 1, State::Serving, 0, 5);
        one.hear_state(from, state::Frame::Keep(is(INVENTED | 1, version(1, from, 5), 1000)), None);
    }
    let asked = one.said.iter().filter(|(_, frame)| matches!(frame, Frame::State(state::Frame::WantChunk(_)))).count();
    assert_eq!(asked, 1);
}

#[test]
fn a_flood_of_requests_for_a_state_has_it_encoded_a_few_times_only() {
    let mut one = One::serving(manifest(3, 4), 2, &[1, 3], &[1]);
    for request in 0..100 {
        one.hear_state(3, want(request, Purpose::Serve), None);
    }
    one.work();
    let count = |wanted: fn(&state::Frame) -> bool| {
        one.said_to(3).filter(|frame| matches!(frame, Frame::State(frame) if wanted(frame))).count()
    };
    let (given, refused) = (count(|f| matches!(f, state::Frame::Is(_))), count(|f| matches!(f, state::Frame::None(_))));
    assert_eq!((given, refused), (6, 94));
    one.wait(Duration::from_secs(40));
    assert!(one.held.is_empty(), "nobody asks for their chunks: {:?}", one.held);
}

#[test]
fn only_a_whole_state_makes_steps_safe() {
    for (purpose, safe) in [(Purpose::Export, 0), (Purpose::Serve, 1)] {
        let mut one = One::serving(manifest(3, 4), 2, &[1, 3], &[1]);
        one.hear_state(3, want(5, purpose), None);
        one.work();
        one.hear_state(3, state::Frame::WantChunk(Chunk { request: 5, index: 0 }), None);
        one.hear_state(3, state::Frame::Thanks(5), None);
        assert_eq!(one.count(|event| matches!(event, Event::Safe { how: Safety::Copied, .. })), safe, "{purpose:?}");
        assert!(one.held.is_empty());
    }
}

/// A joiner of stage 1 that peer 3 offers, and what it says to a donor that answers with this.
fn joins(answer: impl Fn(u64) -> Is) -> One {
    let mut one = One::new(manifest(3, 4), 2, &[1, 3]);
    one.offers(3, 1, State::Serving, 0, 5);
    one.command(Command::Host { stage: 1 });
    let request = one.said_to(3).find_map(|frame| match frame {
        Frame::State(state::Frame::Want(want)) => Some(want.request),
        _ => None,
    });
    one.said.clear();
    one.hear_state(3, state::Frame::Is(answer(request.expect("it asks the replica"))), None);
    one
}

#[test]
fn donors_without_room_are_asked_again_ever_later_and_are_not_waited_for_when_they_are_gone() {
    let mut one = One::new(manifest(3, 4), 2, &[1, 3, 4, 5]);
    (3..=5).for_each(|donor| one.offers(donor, 1, State::Serving, 0, 5));
    one.command(Command::Host { stage: 1 });
    // Asked so often in each of so many stretches of ten seconds.
    let mut stretches = Vec::new();
    for _ in 0..12 {
        let mut asked = 0;
        for _ in 0..40 {
            for (to, frame) in std::mem::take(&mut one.said) {
                if let Frame::State(state::Frame::Want(want)) = frame {
                    asked += 1;
                    let donor = (3..=5).find(|donor| to == id(*donor)).expect("only donors are asked");
                    one.hear_state(donor, state::Frame::None(want.request), None);
                }
            }
            one.wait(Duration::from_millis(250));
            (3..=5).for_each(|donor| one.offers(donor, 1, State::Serving, 0, 5));
        }
        stretches.push(asked);
    }
    assert!(stretches[0] >= 6, "{stretches:?}");
    assert!(stretches.iter().sum::<u32>() <= 30 && stretches.contains(&0), "{stretches:?}");
    (3..=5).for_each(|donor| one.loses(donor));
    (0..240).for_each(|_| {
        one.wait(Duration::from_millis(250));
        one.work();
    });
    assert_eq!(one.count(|event| matches!(event, Event::Serving { .. })), 1, "it begins from the seed");
}

#[test]
fn a_stage_does_not_begin_again_from_the_seed_while_somebody_keeps_it() {
    let mut one = One::new(manifest(3, 4), 2, &[1, 3]);
    one.holds(3, version(1, 9, 50));
    // Peer 4 keeps a newer one, and is not connected.
    one.holds(4, version(1, 9, 60));
    one.command(Command::Host { stage: 1 });
    let mut wants = 0;
    for _ in 0..30 {
        let frames = std::mem::take(&mut one.said);
        for (to, frame) in frames {
            if let Frame::State(state::Frame::Want(want)) = frame {
                assert_eq!(to, id(3));
                wants += 1;
                one.hear_state(3, state::Frame::None(want.request), None);
            }
        }
        one.wait(Duration::from_millis(500));
        one.work();
        let serving = one.count(|event| matches!(event, Event::Serving { .. }));
        assert!(wants > 1 || serving == 0, "it served after {wants} requests");
    }
    assert!(wants > 1, "{wants} requests");
}

#[test]
fn a_snapshot_that_cannot_be_loaded_is_asked_for_a_few_times_and_then_done_without() {
    let mut one = One::new(manifest(3, 4), 2, &[1, 3]);
    one.loads_nothing = true;
    one.holds(3, version(1, 9, 50));
    one.command(Command::Host { stage: 1 });
    let mut wants = 0;
    for _ in 0..60 {
        for (_, frame) in std::mem::take(&mut one.said) {
            if let Frame::State(state::Frame::Want(want)) = frame {
                wants += 1;
                one.hear_state(3, state::Frame::Is(is(want.request, version(1, 9, 50), 1000)), None);
                one.hear_state(3, state::Frame::Chunk(Chunk { request: want.request, index: 0 }), Some(1000));
            }
        }
        one.work();
        one.wait(Duration::from_millis(500));
    }
    assert!((2..=8).contains(&wants), "{wants} times");
    assert_eq!(one.count(|event| matches!(event, Event::Serving { .. })), 1);
    assert!(one.held.is_empty());
}

#[test]
fn a_stage_that_arrives_during_a_drain_takes_nothing() {
    let mut one = One::new(manifest(3, 4), 2, &[1, 3]);
    one.command(Command::Host { stage: 1 });
    one.wait(Duration::from_secs(2));
    one.command(Command::Drain);
    one.work();
    one.hear_flow(3, flow::Frame::Forward(forward(0, 1)), Some(1000));
    assert_eq!(one.count(|event| matches!(event, Event::Accepted { .. })), 0);
}

fn asks_for_chunks(one: &One) -> bool {
    one.said_to(3).any(|frame| matches!(frame, Frame::State(state::Frame::WantChunk(_))))
}

#[test]
fn a_joiner_fetches_no_more_than_a_state_can_have() {
    assert!(asks_for_chunks(&joins(|request| is(request, version(1, 3, 5), 1000))));
    assert!(!asks_for_chunks(&joins(|request| is(request, version(1, 3, 5), 100 * CHUNK))));
    assert!(!asks_for_chunks(&joins(|request| is(request, version(1, 3, u32::MAX), 1000))));
}

#[test]
fn a_state_of_another_version_than_announced_is_not_served() {
    for (said, serves) in [(9, true), (8, false)] {
        // The worker finds own step 9 in it.
        let mut one = joins(|request| is(request, Version { stage: 1, own_step: said, ..Version::default() }, 1000));
        one.hear_state(3, state::Frame::Chunk(Chunk { request: 1, index: 0 }), Some(1000));
        one.work();
        assert_eq!(one.count(|event| matches!(event, Event::Serving { .. })) == 1, serves, "{said}");
    }
}

// ---- rounds --------------------------------------------------------------------------------------------------------------

#[test]
fn more_rounds_than_a_run_has_are_refused() {
    let mut one = One::serving(manifest(3, 4), 2, &[1, 3], &[1]);
    one.offers(3, 1, State::Serving, 0, 5);
    let name = average::Name { stage: 1, session: 1 };
    let terms = average::Terms { name, round: u32::MAX, samples: 1, own_round: u32::MAX };
    one.hear(3, Frame::Average(average::Frame::Propose(terms)), None);
    assert_eq!(one.blamed, vec![id(3)]);
}
