//! The steps of the protocol at which something can go wrong, by name.

use skein_pipeline::job::{Done, Job};
use skein_protocol::{
    event::Event,
    wire::{Frame, average, flow},
};
use skein_simulations::{Moment, What};

type Matches = fn(&What<'_>) -> bool;
type Step = (&'static str, Matches);
/// A kind of peer, its numbers, and its steps.
type Kind = (&'static str, (usize, usize), &'static [&'static [Step]]);

macro_rules! sent {
    ($pattern:pat) => {
        |what| matches!(what, What::Sent { frame: $pattern, .. })
    };
}

macro_rules! arrived {
    ($pattern:pat) => {
        |what| matches!(what, What::Arrived { frame: $pattern, .. })
    };
}

/// Steps of a replica of any stage but the last, of one micro-batch.
pub const REPLICA: &[Step] = &[
    ("a forward arrives", arrived!(Frame::Flow(flow::Frame::Forward(_)))),
    ("it says Accepted", |what| matches!(what, What::Emitted(Event::Accepted { .. }))),
    ("Accepted is sent", sent!(Frame::Flow(flow::Frame::Accepted(_)))),
    ("Confirmed arrives", arrived!(Frame::Flow(flow::Frame::Confirmed(_)))),
    ("a forward is asked of the worker", |what| matches!(what, What::Asked(Job::Forward { .. } | Job::Loss { .. }))),
    ("a forward is computed", |what| matches!(what, What::Finished(Done::Forwarded { .. }))),
    ("a gradient is computed", |what| matches!(what, What::Finished(Done::Backed { .. }))),
    ("it says Added", |what| matches!(what, What::Emitted(Event::Added { .. }))),
    ("the gradient is sent", sent!(Frame::Flow(flow::Frame::Backward(_) | flow::Frame::Finished(_)))),
    ("a step is asked of the worker", |what| matches!(what, What::Asked(Job::Step { .. }))),
    ("a step is made", |what| matches!(what, What::Finished(Done::Stepped { .. }))),
    ("it says Stepped", |what| matches!(what, What::Emitted(Event::Stepped { .. }))),
];

/// Steps of whoever hands an id on to the next stage (feeder included).
pub const HOLDER: &[Step] = &[
    ("a forward is sent", sent!(Frame::Flow(flow::Frame::Forward(_)))),
    ("Accepted arrives", arrived!(Frame::Flow(flow::Frame::Accepted(_)))),
    ("Confirmed is sent", sent!(Frame::Flow(flow::Frame::Confirmed(_)))),
    ("a gradient arrives", arrived!(Frame::Flow(flow::Frame::Backward(_) | flow::Frame::Finished(_)))),
];

pub const LAST: &[Step] = &[
    ("labels are asked for", sent!(Frame::Flow(flow::Frame::WantLabels(_)))),
    ("labels arrive", arrived!(Frame::Flow(flow::Frame::Labels(_)))),
];

pub const FEEDER: &[Step] = &[
    ("an id is minted", |what| matches!(what, What::Emitted(Event::Minted { .. }))),
    ("labels are wanted", arrived!(Frame::Flow(flow::Frame::WantLabels(_)))),
    ("labels are sent", sent!(Frame::Flow(flow::Frame::Labels(_)))),
    ("an id is completed", |what| matches!(what, What::Emitted(Event::Completed { .. }))),
];

pub const ROUND: &[Step] = &[
    ("a round is proposed", sent!(Frame::Average(average::Frame::Propose(_)))),
    ("a proposal arrives", arrived!(Frame::Average(average::Frame::Propose(_)))),
    ("a round is agreed", sent!(Frame::Average(average::Frame::Agree(_)))),
    ("an agreement arrives", arrived!(Frame::Average(average::Frame::Agree(_)))),
    ("a snapshot is asked of the worker", |what| matches!(what, What::Asked(Job::RoundSnapshot { .. }))),
    ("tensors are sent", sent!(Frame::Average(average::Frame::Tensors(_)))),
    ("tensors arrive", arrived!(Frame::Average(average::Frame::Tensors(_)))),
    ("a round is prepared", |what| matches!(what, What::Finished(Done::Prepared { .. }))),
    ("Ready is sent", sent!(Frame::Average(average::Frame::Ready(_)))),
    ("Ready arrives", arrived!(Frame::Average(average::Frame::Ready(_)))),
    ("an adoption is asked of the worker", |what| matches!(what, What::Asked(Job::RoundAdopt { .. }))),
    ("Adopted is sent", sent!(Frame::Average(average::Frame::Adopted(_)))),
    ("Adopted arrives", arrived!(Frame::Average(average::Frame::Adopted(_)))),
];

/// One place in the protocol, at one kind of peer of a swarm of 3 stages x 2 replicas with the feeder as peer 0.
#[derive(Clone, Copy)]
pub struct Case {
    pub who: &'static str,
    pub step: &'static str,
    peers: (usize, usize),
    matches: Matches,
}

impl Case {
    pub fn happens(&self, moment: &Moment<'_>) -> bool {
        (self.peers.0..=self.peers.1).contains(&moment.peer) && (self.matches)(&moment.what)
    }
}

/// Every kind of peer at every one of its steps.
pub fn cases() -> Vec<Case> {
    let kinds: [Kind; 5] = [
        ("first stage", (1, 2), &[REPLICA, HOLDER]),
        ("middle stage", (3, 4), &[REPLICA, HOLDER]),
        ("last stage", (5, 6), &[REPLICA, LAST]),
        ("averaging partner", (1, 6), &[ROUND]),
        ("feeder", (0, 0), &[HOLDER, FEEDER]),
    ];
    let mut cases = Vec::new();
    for (who, peers, tables) in kinds {
        for (step, matches) in tables.iter().flat_map(|table| table.iter()) {
            // The last stage forwards and backwards in one, and is confirmed for nothing.
            let absent = who == "last stage" && *step == "a forward is computed";
            if !absent {
                cases.push(Case { who, step, peers, matches: *matches });
            }
        }
    }
    cases
}
