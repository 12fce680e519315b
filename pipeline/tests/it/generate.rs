//! Sessions of generation, seen from one peer: what a drain, a fence and a full lane mean to those who wait.

use std::time::Duration;

use skein_pipeline::{
    model::cost,
    peer::io::{Command, Input},
};
use skein_protocol::{
    Blob, Lane,
    wire::{
        Frame,
        generate::{self, Infer, Session},
        membership::State,
    },
};

use crate::{
    one::{One, id},
    world::manifest,
};

/// A piece of session `number` of peer 1, for stage 1 at peer 2.
fn piece(number: u64, position: u32) -> Frame {
    piece_of(1, number, position)
}

fn piece_of(asker: u8, number: u64, position: u32) -> Frame {
    let session = Session { asker: id(asker), number, position };
    Frame::Generate(generate::Frame::Infer(Infer { session, stage: 1, route: vec![id(3), id(2), id(4)] }))
}

fn lost(one: &One, asker: u8) -> usize {
    one.said_to(asker).filter(|frame| matches!(frame, Frame::Generate(generate::Frame::Lost(_)))).count()
}

#[test]
fn a_peer_that_leaves_tells_the_askers_at_once_and_takes_no_more_sessions() {
    let mut one = One::serving(manifest(3, 4), 2, &[1, 3, 4], &[1]);
    // Somebody else serves the stage: no state is handed over.
    one.offers(4, 1, State::Serving, 0, 0);
    one.hear(3, piece(1, 0), Some(512));
    one.work();
    one.hear(3, piece(2, 0), Some(512));
    one.command(Command::Drain);
    assert_eq!(lost(&one, 1), 2, "one session has its answer, one waits for it: {:?}", one.said);
    one.hear(3, piece(3, 0), Some(512));
    one.hear(3, piece(1, 4), Some(512));
    assert_eq!(lost(&one, 1), 4);
    one.work();
    assert!(one.held.is_empty(), "{:?}", one.held);
}

/// Nobody new is taken where there is no room, and whoever takes most gives way, its newest text first.
#[test]
fn caches_have_a_bound_and_who_takes_most_gives_way() {
    const NOBODY: [Vec<u64>; 2] = [vec![], vec![]];
    let manifest = manifest(3, 4);
    // Room for 160 tokens; a new text needs as much as the model reads, 64.
    let bytes = cost::cache_token_bytes(&manifest, 1);
    let memory = cost::memory(&manifest, 1).peak() + 160 * bytes;
    assert_eq!(cost::caches_max(&manifest, [1].into_iter(), memory), 160 * bytes);
    let token = u64::from(4 * manifest.model.config.hidden);
    let mut one = One::with_memory(manifest, 2, &[1, 3, 4, 5], memory);
    one.serves(&[1]);
    // Whose sessions were lost by it: of 1, and of 5.
    let says = |one: &mut One, asker: u8, number: u64, position: u32, tokens: u64| -> [Vec<u64>; 2] {
        one.hear(3, piece_of(asker, number, position), Some(tokens * token));
        one.work();
        let lost = |asker: u8| {
            let of = |frame: &Frame| match frame {
                Frame::Generate(generate::Frame::Lost(session)) => Some(session.number),
                _ => None,
            };
            one.said_to(asker).filter_map(of).collect::<Vec<_>>()
        };
        let all = [lost(1), lost(5)];
        one.said.clear();
        all
    };
    let close = |one: &mut One, asker: u8, number: u64| {
        let session = Session { asker: id(asker), number, position: 0 };
        one.hear(asker, Frame::Generate(generate::Frame::Close(session)), None);
    };
    for (asker, number) in [(1, 1), (5, 2), (1, 3), (5, 4)] {
        assert_eq!(says(&mut one, asker, number, 0, 30), NOBODY, "{number}");
    }
    assert_eq!(
        says(&mut one, 1, 5, 0, 30),
        [vec![5], vec![]],
        "there is no room for a new one, and nobody pays for it"
    );
    assert_eq!(says(&mut one, 1, 1, 30, 20), NOBODY);
    assert_eq!(says(&mut one, 5, 2, 30, 20), NOBODY, "to the last token");
    assert_eq!(says(&mut one, 1, 3, 30, 20), [vec![3], vec![]], "he has most, and this is his newest");
    close(&mut one, 1, 3);
    assert_eq!(says(&mut one, 1, 1, 50, 14), NOBODY);
    assert_eq!(says(&mut one, 5, 4, 30, 16), NOBODY);
    assert_eq!(says(&mut one, 5, 2, 50, 1), [vec![], vec![4]], "what began first comes to its end");
    close(&mut one, 5, 4);
    // What nobody goes on with makes room for others.
    one.wait(Duration::from_secs(31));
    assert_eq!(says(&mut one, 5, 2, 51, 1), NOBODY);
    assert_eq!(says(&mut one, 1, 6, 0, 30), [vec![1], vec![]]);
    // A cache that was long is not forgotten because it is cut.
    assert_eq!(says(&mut one, 1, 6, 30, 34), NOBODY);
    assert_eq!(says(&mut one, 1, 6, 0, 1), NOBODY);
    assert_eq!(says(&mut one, 5, 7, 0, 1), [vec![], vec![7]]);
    assert!(one.held.is_empty(), "{:?}", one.held);
}

#[test]
fn a_session_is_ended_and_continued_by_its_asker_alone() {
    let mut one = One::serving(manifest(3, 4), 2, &[1, 3, 4], &[1]);
    one.hear(3, piece(1, 0), Some(512));
    let session = Session { asker: id(1), number: 1, position: 0 };
    one.hear(4, Frame::Generate(generate::Frame::Close(session)), None);
    one.hear(4, piece(2, 0), Some(512));
    assert_eq!(one.blamed, vec![id(4)]);
    one.work();
    let onward = |frame: &&Frame| matches!(frame, Frame::Generate(generate::Frame::Infer(infer)) if infer.stage == 2);
    assert_eq!(one.said_to(4).filter(onward).count(), 1, "the session of the asker goes on");
}

/// An asker whose prompt is on its way to peer 3.
fn asker() -> One {
    let mut one = One::new(manifest(2, 4), 2, &[3, 4]);
    one.offers(3, 0, State::Serving, 0, 0);
    one.offers(4, 1, State::Serving, 0, 0);
    one.held.insert(900, 16);
    one.command(Command::Generate { session: 1, tokens: Blob { id: 900, len: 16 }, without: vec![], apart: false });
    assert!(one.said_to(3).any(|frame| matches!(frame, Frame::Generate(generate::Frame::Infer(_)))));
    one
}

#[test]
fn an_asker_hears_of_a_refusal_a_full_lane_a_fence_and_an_endless_silence() {
    let refused = |one: &mut One| {
        let session = Session { asker: id(2), number: 1, position: 0 };
        // Somebody who has nothing to do with it says so first.
        one.hear(4, Frame::Generate(generate::Frame::Lost(Session { number: 9, ..session })), None);
        assert!(one.lost.is_empty());
        one.hear(4, Frame::Generate(generate::Frame::Lost(session)), None);
    };
    let congested = |one: &mut One| one.fact(Input::Congested { peer: id(3), lane: Lane::Generation });
    let fenced = |one: &mut One| {
        one.hear(3, Frame::Hello(skein_protocol::wire::hello::Frame::Fence(1)), None);
    };
    let silence = |one: &mut One| one.wait(Duration::from_secs(121));
    type Way<'a> = (&'a str, &'a dyn Fn(&mut One));
    let ways: [Way<'_>; 4] =
        [("refused", &refused), ("congested", &congested), ("fenced", &fenced), ("silence", &silence)];
    for (what, happens) in ways {
        let mut one = asker();
        happens(&mut one);
        assert_eq!(one.lost, vec![1], "{what}");
    }
}
