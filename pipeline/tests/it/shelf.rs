//! What the manifest names by its hash: asked of one peer after the other, taken when its bytes are right, given to whoever asks.

use std::time::Duration;

use skein_pipeline::{
    job::Job,
    peer::io::{Command, Input},
};
use skein_protocol::{
    Version,
    event::Event,
    hash::Digest,
    run::{Lora, Method, Weights},
    wire::{
        Frame,
        membership::State,
        state::{self, Chunk, Is, WantBlob},
    },
};

use crate::{
    one::{One, id, key},
    world::manifest,
};

const FROZEN: [Digest; 2] = [Digest([0xf0; 32]), Digest([0xf1; 32])];
const LEN: u64 = 1000;

fn beside_frozen() -> skein_protocol::Manifest {
    let mut manifest = manifest(2, 4);
    manifest.run.owner = key(1).peer();
    manifest.train.method = Method::Lora;
    manifest.train.lora =
        Some(Lora { rank: 2, alpha: 4, targets: vec!["q".into()], dropout_percent: 0, base: Default::default() });
    manifest.model.weights = Weights::Blob { blob: Digest([7; 32]), sources: vec![], stages: FROZEN.to_vec() };
    manifest
}

/// Whom it asked last for a blob, and by which number.
fn asked(one: &One) -> Option<(u8, WantBlob)> {
    let mut wants = one.said.iter().filter_map(|(to, frame)| match frame {
        Frame::State(state::Frame::WantBlob(want)) => Some((to, *want)),
        _ => None,
    });
    let (to, want) = wants.next_back()?;
    Some(((1..9).find(|n| id(*n) == *to)?, want))
}

/// `from` gives it in one chunk.
fn gives(one: &mut One, from: u8, WantBlob { request, blob }: WantBlob) {
    let is = Is { request, version: Version::default(), len: LEN, root: blob };
    one.hear_state(from, state::Frame::Is(is), None);
    one.hear_state(from, state::Frame::Chunk(Chunk { request, index: 0 }), Some(LEN));
}

/// Peer 4, told to host stage 1, among the owner and two that serve it.
fn joiner() -> One {
    let mut one = One::new(beside_frozen(), 4, &[1, 2, 3]);
    for replica in [2, 3] {
        one.offers(replica, 1, State::Serving, 0, 5);
    }
    one.command(Command::Host { stage: 1 });
    one.wait(Duration::from_millis(300));
    one
}

#[test]
fn a_stage_is_not_begun_before_its_frozen_weights_are_here_and_right() {
    let mut one = joiner();
    let (first, want) = asked(&one).expect("it asks for the frozen weights");
    assert!(want.blob == FROZEN[1] && [2, 3].contains(&first), "of a replica: {first}");
    let is_fetching_a_state =
        |one: &One| one.said.iter().any(|(_, frame)| matches!(frame, Frame::State(state::Frame::Want(_))));
    gives(&mut one, first, want);
    assert_eq!(one.shelving, [FROZEN[1]]);
    one.wait(Duration::from_secs(1));
    assert!(!is_fetching_a_state(&one), "nobody has compared them yet");
    one.fact(Input::Shelved { blob: FROZEN[1], is_right: false });
    assert_eq!(one.blamed, [id(first)]);
    let (second, want) = asked(&one).unwrap();
    assert!(second != first && [2, 3].contains(&second), "the other replica is next: {second}");
    one.hear_state(second, state::Frame::None(want.request), None);
    let (third, want) = asked(&one).unwrap();
    assert_eq!(third, 1, "then the owner, who began with all of them");
    gives(&mut one, third, want);
    one.fact(Input::Shelved { blob: FROZEN[1], is_right: true });
    one.wait(Duration::from_secs(1));
    assert!(is_fetching_a_state(&one), "now it looks for the newest adapters");
    assert_eq!(one.count(|event| matches!(event, Event::Shelved { bytes: LEN, .. })), 1);
}

#[test]
fn what_is_on_the_shelf_is_given_and_what_is_not_is_refused() {
    let mut one = joiner();
    let (from, want) = asked(&one).unwrap();
    gives(&mut one, from, want);
    one.fact(Input::Shelved { blob: FROZEN[1], is_right: true });
    one.said.clear();
    for (request, blob) in [(70, FROZEN[1]), (71, FROZEN[0])] {
        one.hear_state(3, state::Frame::WantBlob(WantBlob { request, blob }), None);
    }
    let said: Vec<&Frame> = one.said_to(3).collect();
    let is = Is { request: 70, version: Version::default(), len: LEN, root: FROZEN[1] };
    assert_eq!(said, [&Frame::State(state::Frame::Is(is)), &Frame::State(state::Frame::None(71))]);
    one.hear_state(3, state::Frame::WantChunk(Chunk { request: 70, index: 0 }), None);
    let last = one.said_to(3).last();
    assert_eq!(last, Some(&Frame::State(state::Frame::Chunk(Chunk { request: 70, index: 0 }))));
    one.hear_state(3, state::Frame::Thanks(70), None);
    assert_eq!(one.count(|event| matches!(event, Event::Safe { .. })), 0, "no state was copied");
}

#[test]
fn the_engine_is_made_of_the_adapters_and_what_stands_beside_them() {
    let mut one = joiner();
    for replica in [2, 3] {
        one.loses(replica);
    }
    one.wait(Duration::from_secs(3));
    while let Some((from, want)) = asked(&one).filter(|_| one.shelving.is_empty()) {
        gives(&mut one, from, want);
    }
    one.fact(Input::Shelved { blob: FROZEN[1], is_right: true });
    one.wait(Duration::from_secs(60));
    let made = one.jobs.iter().find_map(|(_, job)| match job {
        Job::Create { stage: 1, frozen } | Job::Load { stage: 1, frozen, .. } => Some(frozen.clone()),
        _ => None,
    });
    let frozen = made.expect("the stage is made");
    assert_eq!(frozen.iter().map(|blob| blob.len).sum::<u64>(), LEN);
    assert!(frozen.iter().all(|blob| one.held.contains_key(&blob.id)), "they stay the shelf's");
}
