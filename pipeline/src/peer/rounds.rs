//! Averaging of every stage that this peer serves: acts of `average` become jobs and frames, answers go back.

use skein_gossip::average::{Act, Average, Ended};
use skein_protocol::{
    Blob, Instant, Lane, Outbox, PeerId, Stage, Version,
    event::{Event, RoundOutcome, Safety, Severity},
    run::AveragingRule,
    wire::{self, average},
};

use super::{Peer, desk, io::Output, replica::Replica, transfer::COUNT_MAX};
use crate::{
    flow::{
        schedule::{Priority, Purpose},
        stage::release_done,
    },
    job::{Done, Job, RoundPartner},
    model::cost,
};

/// Which answer of the worker is awaited: a kind, beside the number of the exchange.
const SNAPSHOT: u64 = 0;
const PREPARE: u64 = 1;
const ADOPT: u64 = 2;

/// Numbers of exchanges are never used again, as those of rounds are: a late answer belongs to nobody.
fn ticket(kind: u64, exchange: u64) -> u64 {
    kind << 56 | exchange
}

impl Peer {
    pub(super) fn new_average(&self, stage: Stage) -> Average {
        let averaging = &self.config.manifest.averaging;
        // Lock-step has one serving replica a stage: there is nobody to average with.
        let off = averaging.rule == AveragingRule::None || self.config.manifest.lock_step();
        let every = if off { 0 } else { averaging.every };
        Average::new(self.me, self.config.run, stage, every, cost::round_bytes(&self.config.manifest, stage))
    }

    pub(super) fn rounds_begin(&mut self, stage: Stage, version: Version) {
        if let Some(replica) = self.replicas.get_mut(&stage) {
            replica.average.set_round(version.round);
        }
    }

    fn with_average(
        &mut self,
        now: Instant,
        stage: Stage,
        out: &mut Outbox<Output>,
        act: impl FnOnce(&mut Average, &mut Outbox<Act>),
    ) {
        let Some(replica) = self.replicas.get_mut(&stage).filter(|replica| replica.is_serving()) else { return };
        let mut acts = Outbox::new();
        act(&mut replica.average, &mut acts);
        self.perform_rounds(now, stage, acts, out);
    }

    fn perform_rounds(&mut self, now: Instant, stage: Stage, mut acts: Outbox<Act>, out: &mut Outbox<Output>) {
        let codec = self.config.manifest.averaging.codec;
        while let Some(act) = acts.pop() {
            match act {
                Act::Send { to, frame, body } => {
                    let lane = if body.is_some() { Lane::Average } else { Lane::Control };
                    out.push(Output::Send { to, lane, frame: wire::Frame::Average(frame), body });
                }
                Act::Snapshot { round } => {
                    let exchange = self.ticket();
                    if let Some(replica) = self.replicas.get_mut(&stage) {
                        replica.exchange = exchange;
                    }
                    let job = Job::RoundSnapshot { stage, round, codec };
                    self.jobs.push(Priority::Bulk, job, Purpose::Round { stage, ticket: ticket(SNAPSHOT, exchange) });
                }
                Act::Prepare { round, theirs, my_samples, their_samples, first, copy } => {
                    let partner = RoundPartner { tensors: theirs, my_samples, their_samples, first, copy };
                    let job = Job::RoundPrepare { stage, round, partner };
                    self.jobs.push(
                        Priority::Bulk,
                        job,
                        Purpose::Round { stage, ticket: ticket(PREPARE, self.exchange(stage)) },
                    );
                }
                Act::Adopt { round } => {
                    let job = Job::RoundAdopt { stage, round };
                    self.jobs.push(
                        Priority::Weights,
                        job,
                        Purpose::Round { stage, ticket: ticket(ADOPT, self.exchange(stage)) },
                    );
                    if let Some(flow) = self.replicas.get_mut(&stage).and_then(Replica::flow_mut) {
                        flow.on_adopted(round);
                    }
                }
                Act::RollBack { round } => {
                    // What waits for the worker names tensors that are about to be released.
                    let of = self.exchange(stage);
                    let mine = [ticket(SNAPSHOT, of), ticket(PREPARE, of)];
                    self.jobs.cancel(
                        |purpose| matches!(purpose, Purpose::Round { stage: s, ticket } if *s == stage && mine.contains(ticket)),
                    );
                    let job = Job::RoundRollBack { stage, round };
                    self.jobs.push(Priority::Bulk, job, Purpose::Forget);
                }
                Act::Alone => self.jobs.push(Priority::Weights, Job::RoundAlone { stage }, Purpose::Forget),
                Act::Release(blob) => out.push(Output::Release { blob }),
                Act::Ended(ended) => self.on_round_ended(now, stage, ended, out),
            }
        }
    }

    fn on_round_ended(&mut self, now: Instant, stage: Stage, ended: Ended, out: &mut Outbox<Output>) {
        let Ended { round, partner, outcome, disagreement, samples, began } = ended;
        let duration_ms = now.since(began).as_millis() as u64;
        out.push(Output::Emit(Event::Round { stage, round, partner, outcome, disagreement, samples, duration_ms }));
        if let Some(flow) = self.replicas.get_mut(&stage).and_then(Replica::flow_mut) {
            flow.round = round;
            if matches!(outcome, RoundOutcome::Both | RoundOutcome::Copied) {
                let own_step = flow.own_step;
                out.push(Output::Emit(Event::Safe { stage, own_step, how: Safety::Averaged }));
            }
        }
    }

    pub(super) fn rounds_on_step(&mut self, now: Instant, stage: Stage, samples: u64, out: &mut Outbox<Output>) {
        self.with_average(now, stage, out, |average, acts| average.on_step(now, samples, acts));
    }

    pub(super) fn rounds_on_frame(
        &mut self,
        now: Instant,
        from: PeerId,
        frame: average::Frame,
        body: Option<Blob>,
        out: &mut Outbox<Output>,
    ) {
        use average::Frame as F;
        let (stage, rounds) = match &frame {
            F::Propose(terms) | F::Agree(terms) | F::Tensors(terms) => {
                (terms.name.stage, terms.round.max(terms.own_round))
            }
            F::Busy(name) | F::Ready(name) | F::Adopted(name) | F::Abort(name) => (name.stage, 0),
        };
        if rounds > COUNT_MAX {
            super::wiring::out_release(out, body);
            let why = "more rounds than a run has".to_string();
            return out.push(Output::Blame { peer: from, severity: Severity::Wrong, why });
        }
        if !self.replicas.get(&stage).is_some_and(Replica::is_serving) {
            return super::wiring::out_release(out, body);
        }
        self.with_average(now, stage, out, |average, acts| average.on_frame(now, from, frame, body, acts));
    }

    pub(super) fn rounds_on_done(
        &mut self,
        now: Instant,
        stage: Stage,
        ticket: u64,
        done: Done,
        out: &mut Outbox<Output>,
    ) {
        let (kind, exchange) = (ticket >> 56, ticket << 8 >> 8);
        if exchange != self.exchange(stage) {
            let mut desk = desk!(self, now, out);
            return release_done(&mut desk, done);
        }
        let round = self.replicas.get(&stage).and_then(|replica| replica.average.in_air()).unwrap_or(u32::MAX);
        match (kind, done) {
            (SNAPSHOT, Done::Encoded { blob, .. }) => {
                self.with_average(now, stage, out, |average, acts| average.on_snapshot(round, Some(blob), acts));
            }
            (SNAPSHOT, _) => self.with_average(now, stage, out, |average, acts| average.on_snapshot(round, None, acts)),
            (PREPARE, Done::Prepared { after, .. }) => {
                self.with_average(now, stage, out, |average, acts| average.on_prepared(now, round, Some(after), acts));
            }
            (PREPARE, _) => {
                self.with_average(now, stage, out, |average, acts| average.on_prepared(now, round, None, acts));
            }
            _ => {}
        }
    }

    fn exchange(&self, stage: Stage) -> u64 {
        self.replicas.get(&stage).map_or(0, |replica| replica.exchange)
    }

    /// Tensors for `peer` found no place in the lane: the round with it ends at once rather than by its deadline.
    pub(super) fn rounds_congested(&mut self, now: Instant, peer: PeerId, out: &mut Outbox<Output>) {
        for stage in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.with_average(now, stage, out, |average, acts| average.on_congested(peer, acts));
        }
    }

    pub(super) fn rounds_on_lost(&mut self, now: Instant, peer: PeerId, out: &mut Outbox<Output>) {
        for stage in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.with_average(now, stage, out, |average, acts| average.on_lost(now, peer, acts));
        }
    }

    pub(super) fn rounds_on_fence(&mut self, now: Instant, stage: Stage, out: &mut Outbox<Output>) {
        self.with_average(now, stage, out, |average, acts| average.on_fenced(acts));
    }

    pub(super) fn rounds_on_tick(&mut self, now: Instant, out: &mut Outbox<Output>) {
        for stage in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.with_average(now, stage, out, |average, acts| average.on_tick(now, acts));
        }
    }

    pub(super) fn rounds_last(&mut self, now: Instant, out: &mut Outbox<Output>) {
        for stage in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.round_last(now, stage, out);
        }
    }

    pub(super) fn round_last(&mut self, now: Instant, stage: Stage, out: &mut Outbox<Output>) {
        self.with_average(now, stage, out, |average, acts| average.last_round(now, acts));
    }

    pub(super) fn rounds_busy(&self) -> bool {
        self.replicas.values().any(|replica| !replica.average.is_idle())
    }

    pub(super) fn rounds_partners(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.replicas.values().filter_map(|replica| replica.average.partner())
    }

    /// Slow weights that have not moved for more than two intervals follow the fast ones before anybody gets them.
    pub(super) fn rounds_before_giving(&mut self, now: Instant, stage: Stage, out: &mut Outbox<Output>) {
        let stale = self.replicas.get(&stage).is_some_and(|replica| replica.average.is_stale());
        if stale {
            self.with_average(now, stage, out, |average, acts| average.alone(now, acts));
        }
    }
}
