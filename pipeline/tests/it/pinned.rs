//! First and last stage on the owner alone: nobody else takes them, is told to, or is believed.

use std::time::Duration;

use skein_pipeline::peer::io::Command;
use skein_protocol::{Manifest, event::Event, wire::membership::State};

use crate::{
    one::{One, id, key},
    world::manifest,
};

fn pinned() -> Manifest {
    let mut manifest = manifest(3, 4);
    manifest.run.owner = key(1).peer();
    manifest.stages.pin_ends = true;
    manifest
}

/// Stages that `one` serves after a while.
fn serves(one: &mut One) -> Vec<u16> {
    for _ in 0..9 {
        one.wait(Duration::from_secs(10));
        one.work();
    }
    let serving = |event: &Event| if let Event::Serving { stage, .. } = event { Some(*stage) } else { None };
    let mut stages: Vec<u16> = one.events.iter().filter_map(serving).collect();
    stages.sort_unstable();
    stages
}

#[test]
fn a_helper_takes_what_is_between_and_nothing_else() {
    let mut one = One::new(pinned(), 4, &[1]);
    one.command(Command::Join);
    one.command(Command::Host { stage: 0 });
    one.command(Command::Host { stage: 2 });
    assert_eq!(serves(&mut one), [1]);
}

#[test]
fn the_owner_takes_all_of_it() {
    let mut one = One::new(pinned(), 1, &[4]);
    one.command(Command::Join);
    assert_eq!(serves(&mut one), [0, 1, 2]);
}

#[test]
fn who_claims_an_end_is_blamed_and_gets_no_tokens() {
    let mut one = One::serving(pinned(), 1, &[2, 3], &[1, 2]);
    one.offers(2, 0, State::Serving, 0, 0);
    one.offers(3, 1, State::Serving, 0, 0);
    assert_eq!(one.blamed, [id(2)]);
    one.command(Command::Feed);
    one.wait(Duration::from_secs(5));
    let to = |peer| one.said_to(peer).filter(|frame| matches!(frame, skein_protocol::wire::Frame::Flow(_))).count();
    assert_eq!(to(2), 0, "nothing of a micro-batch");
    assert_eq!(one.count(|event| matches!(event, Event::Completed { .. })), 0, "stage 0 has nobody");
}
