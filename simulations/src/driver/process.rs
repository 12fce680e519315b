//! One running process: a peer, its worker, its store, and what waits for it.

use std::collections::VecDeque;

use skein_pipeline::{
    job::{Done, Job},
    peer::{
        Peer,
        io::{Input, Output},
    },
};
use skein_protocol::{
    Incarnation, Instant, JobId, Lane, Machine, Outbox,
    wire::{Frame, Starts, flow::About},
};

use crate::{
    digest::Mark,
    engine::Time,
    worker::Work,
    world::{Payload, Store, network::ConnectionId},
};

/// A machine that a driver can run as a peer.
pub trait Process: Machine<Input = Input, Output = Output> {
    /// Data index from which a restart feeds on.
    fn feed_next(&self) -> Option<u64> {
        None
    }
}

impl Process for Peer {
    fn feed_next(&self) -> Option<u64> {
        self.view().feed_next
    }
}

/// Something that reaches a process. Bodies are not in its store yet.
#[derive(Debug)]
pub(super) enum Fact {
    Input(Input),
    /// With what stands for the bytes in which it travelled.
    Frame {
        from: usize,
        frame: Frame,
        mark: Mark,
        body: Option<Payload>,
    },
    Records {
        request: u64,
        tokens: Payload,
        labels: Payload,
        starts: Starts,
    },
    Done {
        job: JobId,
        done: Done,
    },
}

/// A message on its way.
#[derive(Debug)]
pub(super) struct Message {
    pub from: usize,
    pub to: usize,
    /// Process that sent it, and when.
    pub process: u32,
    pub departed: Time,
    pub connection: ConnectionId,
    pub lane: Lane,
    pub frame: Frame,
    /// How many bytes it is, and what stands for them.
    pub len: usize,
    pub mark: Mark,
    pub body: Option<Payload>,
}

/// The acknowledgement of the body of an id on its way back.
#[derive(Debug)]
pub(super) struct Acknowledgement {
    pub sender: usize,
    pub process: u32,
    pub receiver: usize,
    pub connection: ConnectionId,
    pub lane: Lane,
    pub about: About,
}

impl Message {
    /// Bytes on the wire: the frame, the body, and what the transport adds.
    pub fn size(&self) -> u64 {
        self.len as u64 + self.body.as_ref().map_or(0, Payload::len) + 60
    }
}

pub(super) struct Running {
    pub job: JobId,
    pub spec: Job,
    pub began: Time,
    pub ends: Time,
}

pub(super) struct Life<P> {
    pub number: u32,
    pub incarnation: Incarnation,
    pub started: Time,
    pub machine: P,
    pub outbox: Outbox<Output>,
    pub store: Store,
    pub worker: Box<dyn Work>,
    pub jobs: VecDeque<(JobId, Job)>,
    pub running: Option<Running>,
    /// Alarm clocks carry this number: only the latest counts.
    pub wake: (Time, u64),
    pub job_token: u64,
    /// How long its worker was at jobs that are done.
    pub busy: Time,
    pub ticked: Time,
    pub paused: Option<Time>,
    /// A new incarnation is to be written when it runs again.
    pub incarnating: bool,
    pub inbox: VecDeque<Fact>,
    pub seq: u64,
    /// Ticks in a row that asked to be woken at once.
    pub spins: u32,
}

impl<P> Life<P> {
    /// The process's own monotonic clock.
    pub fn local(&self, now: Time) -> Instant {
        Instant(now.saturating_sub(self.started))
    }
}
