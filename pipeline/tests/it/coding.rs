//! The codec of a link, through the whole peer: what was measured of a connection changes what the worker is asked for, and is said.

use std::time::Duration;

use skein_pipeline::{
    flow::coding::LinkSpeed,
    job::{Coding, Job},
    peer::io::Input,
};
use skein_protocol::{
    Lane,
    event::Event,
    run::{Codec, Entropy},
    wire::{
        flow::{self, Accepted},
        membership::State,
    },
};

use crate::{
    one::{One, forward, id},
    world::manifest,
};

/// Peer 2 serves stage 1 between peers 3 and 4.
fn middle(bound: u32) -> One {
    let mut manifest = manifest(3, 4);
    manifest.staleness.bound = bound;
    (manifest.codecs.forward, manifest.codecs.backward) = (vec![Codec::Bf16, Codec::Int8], vec![Codec::F32]);
    (manifest.codecs.entropy, manifest.train.in_flight_max) = (Entropy::None, 64);
    let mut one = One::serving(manifest, 2, &[1, 3, 4], &[1]);
    one.offers(4, 2, State::Serving, 0, 0);
    one
}

/// Sends micro-batches `from..to` through stage 1, and returns how their activations are encoded.
fn codings(one: &mut One, from: u16, to: u16) -> Vec<Coding> {
    let mut codings = Vec::new();
    for index in from..to {
        // Four to a step.
        let mut offer = forward(index % 4, 1);
        offer.id.step = u32::from(index / 4);
        one.hear_flow(3, flow::Frame::Forward(offer.clone()), Some(1000));
        let accepted = Accepted { id: offer.id, attempt: offer.attempt, stage: 1, next: Some(id(4)) };
        one.hear_flow(3, flow::Frame::Confirmed(accepted), None);
        codings.extend(one.jobs.iter().filter_map(|(_, job)| match job {
            Job::Forward { coding, .. } => Some(*coding),
            _ => None,
        }));
        one.work();
    }
    assert_eq!(codings.len(), usize::from(to - from));
    codings
}

fn slow(one: &mut One) {
    let link = LinkSpeed { bytes_per_s: 10_000, round_trip: Duration::from_millis(1) };
    one.fact(Input::Measured { peer: id(4), link });
}

#[test]
fn a_slow_link_takes_a_smaller_codec_and_it_is_said_once() {
    let mut one = middle(8);
    assert!(codings(&mut one, 0, 8).iter().all(|coding| coding.codec == Codec::Bf16), "nothing was measured");
    slow(&mut one);
    let codings = codings(&mut one, 8, 20);
    assert_eq!((codings[0].codec, codings[11].codec), (Codec::Bf16, Codec::Int8));
    let said: Vec<_> = one.events.iter().filter(|event| matches!(event, Event::Recoded { .. })).collect();
    let [
        Event::Recoded {
            stage: 1,
            to,
            lane: Lane::Activation,
            codec: Codec::Int8,
            bytes_per_s: 10_000,
            takes_us,
            took_us,
            ..
        },
    ] = said[..]
    else {
        panic!("{said:?}")
    };
    assert!(*to == id(4) && takes_us < took_us);
}

#[test]
fn lock_step_takes_the_first_codec_whatever_is_measured() {
    let mut one = middle(0);
    slow(&mut one);
    assert!(codings(&mut one, 0, 1).iter().all(|coding| coding.codec == Codec::Bf16));
    assert_eq!(one.count(|event| matches!(event, Event::Recoded { .. })), 0);
}

#[test]
fn a_peer_that_is_not_here_has_no_link() {
    let mut one = middle(8);
    let link = LinkSpeed { bytes_per_s: 10_000, round_trip: Duration::from_millis(1) };
    one.fact(Input::Measured { peer: id(9), link });
    slow(&mut one);
    one.loses(4);
    one.meets(4, one.utc());
    one.offers(4, 2, State::Serving, 0, 0);
    assert!(
        codings(&mut one, 0, 12).iter().all(|coding| coding.codec == Codec::Bf16),
        "another connection, not measured"
    );
}
