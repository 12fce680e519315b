//! Leaving politely: sessions of generation are refused, so that they go on elsewhere at once; what was accepted is finished or
//! handed on, the open sum is stepped, a last round brings the work to others, the state is saved, whoever is fetching a state
//! gets the rest of it, neighbours are told.

use std::time::Duration;

use skein_protocol::{
    Instant, Lane, Outbox, Stage,
    event::Event,
    wire::{self, hello},
};

use super::{Peer, desk, io::Output, replica::Replica};
use crate::flow::{schedule::Purpose, stage::Standing};

/// What is not finished by then is left to others.
const PATIENCE: Duration = Duration::from_secs(10);
/// Whoever fetches a state from here, by chunks that move, is waited for as long as this.
const FETCHING: Duration = Duration::from_secs(600);
/// A last round may take this long.
const LAST_ROUND: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Micro-batches are finished.
    Finishing {
        since: Instant,
    },
    /// Partial sums are stepped.
    Stepping {
        since: Instant,
    },
    /// A last round with whoever is there.
    LastRound {
        since: Instant,
    },
    /// States are saved, and where nobody else serves the stage given to a keeper; others fetch the rest of what they began.
    Saving {
        since: Instant,
    },
    Over,
}

impl Peer {
    pub(super) fn start_drain(&mut self, now: Instant, out: &mut Outbox<Output>) {
        if self.drain.is_some() {
            return;
        }
        out.push(Output::Emit(Event::Draining));
        self.give_up_move(now, out);
        self.drain = Some(Drain::Finishing { since: now });
        if let Some(source) = &mut self.source {
            source.feeding = false;
        }
        let anybody = self.neighbours.up().next().is_some();
        if anybody {
            let mut desk = desk!(self, now, out);
            self.generate.refuse_all(&mut desk);
        }
        for replica in self.replicas.values_mut() {
            if let Some(flow) = replica.flow_mut()
                && anybody
            {
                flow.standing = Standing::Draining;
            }
        }
        self.publish_offer(now, out);
        self.refresh_route(now, out);
        self.go_on_draining(now, out);
    }

    pub(super) fn go_on_draining(&mut self, now: Instant, out: &mut Outbox<Output>) {
        let late = |since: Instant, patience: Duration| now.since(since) > patience;
        match self.drain {
            None | Some(Drain::Over) => {}
            Some(Drain::Finishing { since }) => {
                let is_up = |peer| self.neighbours.is_up(peer);
                let flows = self.replicas.values().filter_map(Replica::flow);
                let open: usize = flows.map(|flow| flow.needed_ids(is_up)).sum();
                let fed = self.source.as_ref().map_or(0, |source| source.open_len());
                if open + fed == 0 || late(since, PATIENCE) {
                    self.drain = Some(Drain::Stepping { since: now });
                    let stages: Vec<Stage> = self.replicas.keys().copied().collect();
                    for stage in stages {
                        self.with_flow(now, out, stage, |flow, desk| flow.step(desk));
                    }
                    self.go_on_draining(now, out);
                }
            }
            Some(Drain::Stepping { since }) => {
                let stepping = self.replicas.values().filter_map(Replica::flow).any(|flow| flow.is_stepping());
                if !stepping || late(since, PATIENCE) {
                    self.drain = Some(Drain::LastRound { since: now });
                    self.rounds_last(now, out);
                    self.go_on_draining(now, out);
                }
            }
            Some(Drain::LastRound { since }) => {
                if !self.rounds_busy() || late(since, LAST_ROUND) {
                    self.drain = Some(Drain::Saving { since: now });
                    self.save_all();
                    self.push_last_snapshots();
                    self.go_on_draining(now, out);
                }
            }
            Some(Drain::Saving { since }) => {
                let saving = self.jobs.has(|purpose| matches!(purpose, Purpose::Save { .. }));
                let done = !saving && !self.is_pushing() || late(since, PATIENCE);
                if done && (!self.is_fetched_from() || late(since, FETCHING)) {
                    self.leave(out);
                }
            }
        }
    }

    /// Whether a state is on its way to somebody, or is about to be. Whoever asks for no more chunks is soon not counted.
    fn is_fetched_from(&self) -> bool {
        self.transfer.is_serving() || !self.states.is_empty()
    }

    fn leave(&mut self, out: &mut Outbox<Output>) {
        self.drain = Some(Drain::Over);
        for to in self.neighbours.up().collect::<Vec<_>>() {
            let frame = wire::Frame::Hello(hello::Frame::Goodbye);
            out.push(Output::Send { to, lane: Lane::Control, frame, body: None });
        }
        out.push(Output::Emit(Event::Drained));
        out.push(Output::Drained);
    }
}
