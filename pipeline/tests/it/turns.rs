//! Lock-step at one peer: ids that come out of turn, and labels for whoever serves.

use std::time::Duration;

use skein_pipeline::{job::Job, peer::io::Command};
use skein_protocol::{
    Manifest,
    wire::{Frame, flow, membership::State},
};

use crate::{
    one::{One, batch, forward, id},
    world::manifest,
};

fn lock_step(stages: u16) -> Manifest {
    let mut manifest = manifest(stages, 4);
    manifest.staleness.bound = 0;
    manifest
}

fn forwards(one: &One) -> usize {
    one.jobs.iter().filter(|(_, job)| matches!(job, Job::Forward { .. })).count()
}

#[test]
fn an_id_that_comes_after_its_turn_was_given_away_still_runs() {
    let mut one = One::serving(lock_step(3), 2, &[1, 3], &[1]);
    one.hear_flow(3, flow::Frame::Forward(forward(1, 1)), Some(1000));
    one.wait(Duration::from_secs(8));
    assert_eq!(forwards(&one), 0, "it is not its turn");
    one.wait(Duration::from_secs(4));
    assert_eq!(forwards(&one), 1);
    one.hear_flow(3, flow::Frame::Forward(forward(0, 1)), Some(1000));
    assert_eq!(forwards(&one), 2);
}

#[test]
fn a_turn_that_moves_on_is_not_given_away() {
    let mut one = One::serving(lock_step(3), 2, &[1, 3], &[1]);
    // One id every eight seconds: the step is old, and healthy.
    for index in 0..3 {
        one.hear_flow(3, flow::Frame::Forward(forward(index, 1)), Some(1000));
        assert_eq!(forwards(&one), 1);
        one.work();
        one.wait(Duration::from_secs(8));
    }
}

#[test]
fn labels_go_to_a_replica_that_does_not_lead_its_stage() {
    let mut one = One::new(lock_step(3), 1, &[2, 3, 4]);
    one.offers(2, 0, State::Serving, 0, 0);
    one.offers(3, 2, State::Serving, 0, 0);
    one.offers(4, 2, State::Serving, 0, 0);
    one.command(Command::Feed);
    one.wait(Duration::from_secs(1));
    for from in [3, 4] {
        one.hear_flow(from, flow::Frame::WantLabels(batch(0)), None);
        let given = one
            .said
            .iter()
            .filter(|(to, frame)| *to == id(from) && matches!(frame, Frame::Flow(flow::Frame::Labels(_))));
        assert_eq!(given.count(), 1, "to {from}");
    }
    one.hear_flow(2, flow::Frame::WantLabels(batch(0)), None);
    assert!(!one.said_to(2).any(|frame| matches!(frame, Frame::Flow(flow::Frame::Labels(_)))));
}
