//! The table of edges: which machine hears of which fact, and which machine's output is which other's input.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use skein_protocol::{
    Blob, Incarnation, Instant, Lane, Outbox, PeerId, Stage, Utc,
    event::{Event, Severity},
    run::PROTOCOL,
    wire::{self, Starts, flow, hello, membership::Progress},
};

use super::{
    Peer, Placement, desk,
    generate::Means,
    io::{Command, Input, Output},
    neighbours::Greeting,
    replica::Replica,
};
use crate::{
    flow::{
        coding::LinkSpeed,
        schedule::{Finished, Purpose},
        source::{Done as Over, Source},
        stage::{StageFlow, Standing, decline, release_done},
    },
    job::Done,
    model::cost,
};

/// A silence of my own for this long, and others have declared me dead: I was suspended.
const SUSPENDED: Duration = Duration::from_millis(1600);
/// One peer fences me at most this often.
const FENCE_PAUSE: Duration = Duration::from_secs(10);
/// Clocks further apart than this do not understand each other: items are refused by their time.
const APART: Duration = Duration::from_secs(90);
/// A run that begins has empty stages; they are news only after this.
const EMPTY_AFTER: Duration = Duration::from_secs(3);
/// Jobs of training in a row that my worker may fail at before I leave: who comes for them then finds somebody else.
const UNDONE_MAX: u32 = 8;
/// Where many are, the route hears of those who come at most this often: in the rush of a beginning all come at once.
const ROUTE_PAUSE: Duration = Duration::from_millis(200);
/// Ticks do their work at most this often.
const TICK: Duration = Duration::from_millis(90);

impl Peer {
    pub(super) fn turn(&mut self, now: Instant, input: Input, out: &mut Outbox<Output>) {
        let gap = now.since(self.last_turn);
        self.last_turn = now;
        let alone = self.neighbours.up().next().is_none();
        if gap > SUSPENDED && !self.silent && !alone {
            self.fence(now, out, &format!("this peer stood still for {} ms", gap.as_millis()));
        }
        match input {
            Input::Frame { from, frame, body } => self.on_frame(now, from, frame, body, out),
            Input::PeerUp { peer } => self.on_peer_up(now, peer, out),
            Input::PeerLost { peer, why } => self.on_connection_lost(now, peer, &why, out),
            Input::Found { peers, .. } => self.on_found(now, peers, out),
            Input::Done { job, done } => self.on_done(now, job, done, out),
            Input::Records { request, tokens, labels, starts } => {
                self.on_records(now, request, (tokens, labels, starts), out)
            }
            Input::RecordsEnded => self.on_records_ended(),
            Input::Shelved { blob, is_right } => self.on_shelved(now, blob, is_right, out),
            Input::Incarnated { incarnation } => self.on_incarnated(now, incarnation, out),
            Input::Measured { peer, link } => self.on_measured(peer, link),
            Input::Delivered { peer, lane, about } => self.on_delivered(now, peer, lane, &about, out),
            Input::Congested { peer, lane } => self.on_congested(now, peer, lane, out),
            Input::ChunkRefused { peer, request } => {
                let mut desk = desk!(self, now, out);
                let fact = self.transfer.on_chunk_refused(&mut desk, peer, request);
                self.on_transfer_facts(now, fact, out);
            }
            Input::Addresses(addresses) => self.directory.set_addresses(addresses),
            Input::Command(command) => self.on_command(now, command, out),
            Input::Tick { utc } => self.on_tick(now, utc, out),
        }
    }

    // ---- connections -----------------------------------------------------------------------------------------------------

    fn hello(&self) -> wire::Frame {
        wire::Frame::Hello(hello::Frame::Hello(hello::Hello {
            run: self.config.run,
            protocol: PROTOCOL,
            incarnation: self.incarnation,
            utc: self.utc,
            token: None,
        }))
    }

    fn say(&self, to: PeerId, frame: wire::Frame, out: &mut Outbox<Output>) {
        out.push(Output::Send { to, lane: Lane::Control, frame, body: None });
    }

    fn on_peer_up(&mut self, now: Instant, peer: PeerId, out: &mut Outbox<Output>) {
        self.neighbours.on_up(now, peer);
        out.push(Output::Emit(Event::PeerUp { peer }));
        if !self.silent {
            self.say(peer, self.hello(), out);
        }
    }

    /// A neighbour is gone; with it what it offered, unless that `still_holds`.
    fn on_peer_lost(&mut self, now: Instant, peer: PeerId, why: &str, still_holds: bool, out: &mut Outbox<Output>) {
        let incarnation = self.neighbours.on_lost(now, peer);
        self.circle_stands = false;
        if let Some(incarnation) = incarnation {
            out.push(Output::Emit(Event::PeerLost { peer, incarnation, why: why.to_string() }));
        }
        if still_holds {
            self.directory.on_away(peer);
        } else {
            self.directory.on_lost(now, peer, incarnation);
        }
        self.forget_peer(now, peer, incarnation, why, out);
    }

    fn on_measured(&mut self, peer: PeerId, link: LinkSpeed) {
        if self.neighbours.is_up(peer) {
            self.route.set_link(peer, link);
        }
    }

    fn on_delivered(&mut self, now: Instant, peer: PeerId, lane: Lane, about: &flow::About, out: &mut Outbox<Output>) {
        self.uplink.on_delivered(now, &self.route, peer, lane, about);
        match about.stage {
            stage if lane == Lane::Gradient => {
                let from = stage.saturating_add(1);
                self.with_flow(now, out, from, |flow, _| flow.on_returned(now, peer, about));
            }
            0 if about.id.feeder == self.me => {
                self.with_source(now, out, |source, desk| source.on_delivered(desk, peer, about));
            }
            0 => {}
            stage => {
                self.with_flow(now, out, stage - 1, |flow, desk| flow.on_delivered(desk, peer, about));
            }
        }
    }

    fn on_connection_lost(&mut self, now: Instant, peer: PeerId, why: &str, out: &mut Outbox<Output>) {
        let was_up = self.neighbours.is_up(peer);
        self.uplink.on_lost(peer);
        self.route.forget_link(peer);
        // A connection that neither side needs is closed. What was heard of its peer holds until it expires.
        let is_needed = self.active.binary_search(&peer).is_ok() || self.circle.dialled.contains(&peer);
        self.on_peer_lost(now, peer, why, !is_needed, out);
        if was_up && self.neighbours.up().next().is_none() && self.greeted_at.take().is_some() {
            // It did not say goodbye, so it may be I who am cut off: what others serve is not free because they are not heard.
            self.alone_since = now;
        }
    }

    /// What this incarnation of `peer` had of ours goes elsewhere.
    fn forget_peer(
        &mut self,
        now: Instant,
        peer: PeerId,
        incarnation: Option<Incarnation>,
        why: &str,
        out: &mut Outbox<Output>,
    ) {
        self.uplink.forget(Some(peer));
        self.refresh_route(now, out);
        let mut moved = 0;
        let stages: Vec<Stage> = self.replicas.keys().copied().collect();
        for stage in stages {
            moved += self.with_flow(now, out, stage, |flow, desk| flow.on_lost(desk, peer, why)).unwrap_or(0);
        }
        moved += self.with_source(now, out, |source, desk| source.on_lost(desk, peer, why)).unwrap_or(0);
        if moved > 0 {
            self.neighbours.declare_dead(peer, incarnation);
        }
        let mut desk = desk!(self, now, out);
        self.generate.on_lost(&mut desk, peer);
        let facts = self.transfer.on_lost(&mut desk, peer);
        self.on_transfer_facts(now, facts, out);
        self.rounds_on_lost(now, peer, out);
    }

    fn on_hello(&mut self, now: Instant, from: PeerId, hello: hello::Hello, out: &mut Outbox<Output>) {
        if hello.run != self.config.run || hello.protocol != PROTOCOL || !self.admits(from) {
            self.say(from, wire::Frame::Hello(hello::Frame::Unknown(self.config.run)), out);
            return out.push(Output::Hangup { peer: from });
        }
        self.compare_clocks(from, hello.utc, out);
        match self.neighbours.on_hello(now, from, hello.incarnation) {
            Greeting::Stale => {}
            Greeting::Dead => self.say(from, wire::Frame::Hello(hello::Frame::Fence(hello.incarnation)), out),
            Greeting::Restarted(before) => {
                self.directory.on_lost(now, from, Some(before));
                self.forget_peer(now, from, Some(before), "it started again", out);
                self.meet(now, from, out);
            }
            Greeting::Again => {
                self.meet(now, from, out);
                self.directory.say_again();
                self.publish_offer(now, out);
                self.publish_held(now, out);
            }
            Greeting::Known => self.meet(now, from, out),
        }
    }

    /// Items are taken within `APART` of the receiver's time of day: with a clock that is wrong nobody is heard, which looks like
    /// an empty run.
    fn compare_clocks(&mut self, from: PeerId, theirs: Utc, out: &mut Outbox<Output>) {
        let apart = Duration::from_millis(self.utc.0.abs_diff(theirs.0));
        self.clock_is_right |= apart <= APART;
        if apart > APART {
            let apart_ms = apart.as_millis() as u64;
            out.push(Output::Emit(Event::ClocksApart { peer: from, apart_ms }));
        }
    }

    fn admits(&self, peer: PeerId) -> bool {
        let admission = &self.config.manifest.admission;
        let run = &self.config.manifest.run;
        admission.members.is_empty()
            || admission.members.contains(&peer)
            || peer == run.owner
            || run.delegates.contains(&peer)
    }

    fn meet(&mut self, now: Instant, peer: PeerId, out: &mut Outbox<Output>) {
        if self.clock_is_right {
            self.greeted_at.get_or_insert(now);
        }
        self.directory.on_up(now, peer, out);
        self.refresh_route_soon(now, out);
        self.place(now, out);
    }

    fn on_found(&mut self, now: Instant, peers: Vec<(PeerId, Vec<String>)>, out: &mut Outbox<Output>) {
        // Whom it knows without working with them it need not meet again.
        let apart = |peer: &PeerId| self.directory.offer(*peer).is_some() && !self.circle.has(peer);
        let peers: Vec<_> = peers.into_iter().filter(|(peer, _)| !apart(peer)).take(32).collect();
        for (peer, addresses) in peers {
            self.dial(now, peer, addresses, out);
        }
    }

    pub(super) fn dial(&mut self, now: Instant, peer: PeerId, addresses: Vec<String>, out: &mut Outbox<Output>) {
        if peer != self.me && self.neighbours.may_dial(now, peer) {
            out.push(Output::Dial { peer, addresses });
        }
    }

    fn on_congested(&mut self, now: Instant, peer: PeerId, lane: Lane, out: &mut Outbox<Output>) {
        // The lane is bounded so that a slow peer cannot fill our memory. What it missed it will ask for, or lose as if the
        // connection had: a peer whose lanes stay full is as good as gone.
        match lane {
            Lane::Control | Lane::Gradient | Lane::Activation => out.push(Output::Hangup { peer }),
            Lane::Generation => {
                let mut desk = desk!(self, now, out);
                self.generate.on_congested(&mut desk, peer);
            }
            Lane::Average => self.rounds_congested(now, peer, out),
            Lane::Bulk => {
                let mut desk = desk!(self, now, out);
                let fact = self.transfer.on_congested(&mut desk, peer);
                self.on_transfer_facts(now, fact, out);
            }
        }
    }

    // ---- frames ----------------------------------------------------------------------------------------------------------

    fn on_frame(
        &mut self,
        now: Instant,
        from: PeerId,
        frame: wire::Frame,
        body: Option<Blob>,
        out: &mut Outbox<Output>,
    ) {
        if let wire::Frame::Hello(frame) = frame {
            out_release(out, body);
            return self.on_hello_frame(now, from, frame, out);
        }
        if self.silent || (from != self.me && !self.neighbours.is_up(from)) {
            return out_release(out, body);
        }
        match frame {
            wire::Frame::Hello(_) => unreachable!("handled above"),
            wire::Frame::Spread(frame) => {
                out_release(out, body);
                self.directory.on_frame(now, self.utc, from, frame, out);
                self.after_directory(now, out);
            }
            wire::Frame::Flow(frame) => self.on_flow(now, from, frame, body, out),
            wire::Frame::Average(frame) => self.rounds_on_frame(now, from, frame, body, out),
            wire::Frame::State(frame) => {
                let mut desk = desk!(self, now, out);
                let fact = self.transfer.on_frame(&mut desk, from, frame, body);
                self.on_transfer_facts(now, fact, out);
            }
            wire::Frame::Generate(frame) => {
                let replicas = &self.replicas;
                let stays = |flow: &StageFlow| flow.standing == Standing::Serving;
                let serves = |stage: Stage| replicas.get(&stage).and_then(Replica::flow).is_some_and(stays);
                let stages = replicas.keys().copied();
                let caches_max = cost::caches_max(&self.config.manifest, stages, self.config.memory);
                let mut desk = desk!(self, now, out);
                let means = Means { serves: &serves, caches_max };
                self.generate.on_frame(&mut desk, from, frame, body, &means);
            }
        }
    }

    fn on_hello_frame(&mut self, now: Instant, from: PeerId, frame: hello::Frame, out: &mut Outbox<Output>) {
        match frame {
            hello::Frame::Hello(hello) => self.on_hello(now, from, hello, out),
            hello::Frame::WantManifest(run) if run == self.config.run => {
                let manifest = self.config.manifest_bytes.clone();
                self.say(from, wire::Frame::Hello(hello::Frame::Manifest(manifest.into())), out);
            }
            hello::Frame::WantManifest(run) => self.say(from, wire::Frame::Hello(hello::Frame::Unknown(run)), out),
            hello::Frame::Manifest(_) | hello::Frame::Unknown(_) => {}
            hello::Frame::Fence(incarnation) => self.on_fence(now, from, incarnation, out),
            hello::Frame::Goodbye => self.on_peer_lost(now, from, "it left", false, out),
        }
    }

    fn on_flow(
        &mut self,
        now: Instant,
        from: PeerId,
        frame: flow::Frame,
        body: Option<Blob>,
        out: &mut Outbox<Output>,
    ) {
        use flow::Frame as F;
        let me = self.me;
        match (frame, body) {
            (F::Forward(forward), Some(body)) => self.on_forward(now, from, forward, body, out),
            (F::Labels(id), Some(body)) => {
                let last = self.rules.last;
                let taken = self.with_flow(now, out, last, |flow, desk| flow.on_labels(desk, from, id, body));
                if taken.is_none() {
                    out.push(Output::Release { blob: body });
                }
            }
            (F::Backward(returned), Some(body)) => {
                let stage = returned.stage;
                let taken = self.with_flow(now, out, stage, |flow, desk| flow.on_backward(desk, from, returned, body));
                if taken.is_none() {
                    out.push(Output::Release { blob: body });
                }
            }
            (F::Accepted(accepted), None) => match accepted.stage {
                0 if accepted.id.feeder == me => {
                    self.with_source(now, out, |source, desk| source.on_accepted(desk, from, &accepted));
                }
                0 => {}
                stage => {
                    self.with_flow(now, out, stage - 1, |flow, desk| flow.on_accepted(desk, from, &accepted));
                }
            },
            (F::Declined(declined), None) => match declined.stage {
                0 if declined.id.feeder == me => {
                    self.with_source(now, out, |source, desk| source.on_declined(desk, from, &declined));
                }
                0 => {}
                stage => {
                    self.with_flow(now, out, stage - 1, |flow, desk| flow.on_declined(desk, from, &declined));
                }
            },
            (F::Confirmed(confirmed), None) => {
                self.with_flow(now, out, confirmed.stage, |flow, desk| flow.on_confirmed(desk, from, &confirmed));
            }
            (F::Cancel(about), None) => {
                self.with_flow(now, out, about.stage, |flow, desk| flow.on_cancel(desk, from, &about));
            }
            (F::Ask(about), None) => {
                let asked = self.with_flow(now, out, about.stage, |flow, desk| flow.on_ask(desk, from, &about));
                if asked.is_none() {
                    let mut desk = desk!(self, now, out);
                    decline(&mut desk, from, about.id, &about.attempt, about.stage, flow::Why::Unknown);
                }
            }
            (F::WantLabels(id), None) => {
                if self.may_hold(self.rules.last, from) {
                    self.with_source(now, out, |source, desk| source.on_want_labels(desk, from, id));
                }
            }
            (F::Finished(returned), None) => {
                self.with_source(now, out, |source, desk| source.on_finished(desk, from, returned));
                self.feed(now, out);
            }
            (F::Void(void), None) => {
                let serves = self.may_hold(void.stage, from);
                self.with_source(now, out, |source, desk| source.on_void(desk, from, &void, serves));
                self.feed(now, out);
            }
            (_, body) => {
                // A body where none belongs, or none where one does: the driver's gate lets neither through from honest peers.
                out_release(out, body);
                let why = "a frame with the wrong body".to_string();
                out.push(Output::Blame { peer: from, severity: Severity::Wrong, why });
            }
        }
    }

    fn on_forward(
        &mut self,
        now: Instant,
        from: PeerId,
        mut forward: flow::Forward,
        body: Blob,
        out: &mut Outbox<Output>,
    ) {
        if let Some(why) = self.refusal(from, &forward) {
            out.push(Output::Release { blob: body });
            return out.push(Output::Blame { peer: from, severity: Severity::Wrong, why: why.into() });
        }
        forward.samples = self.believable_samples(from, forward.samples);
        let why = if self.directory.is_over(&forward.id, self.rules_per_step()) {
            flow::Why::Over
        } else if self.replicas.get(&forward.stage).is_some_and(Replica::is_serving) {
            self.with_flow(now, out, forward.stage, |flow, desk| flow.on_forward(desk, from, forward, body));
            return;
        } else {
            flow::Why::NotServing
        };
        out.push(Output::Release { blob: body });
        let mut desk = desk!(self, now, out);
        decline(&mut desk, from, forward.id, &forward.attempt, forward.stage, why);
    }

    /// The samples of the run that a neighbour relays set the learning rate: as far from what the feeders signed as a late word of
    /// theirs explains, and no farther. In lock-step they are taken as said, so that the bits are those of one process.
    fn believable_samples(&self, from: PeerId, said: u64) -> u64 {
        let known = self.run_samples();
        if from == self.me || known == 0 || self.config.manifest.lock_step() {
            return said;
        }
        let train = &self.config.manifest.train;
        let window = u64::from(train.in_flight_max.max(train.micro_batches_per_step)) * u64::from(train.micro_batch);
        let slack = known / 8 + 4 * window;
        said.clamp(known.saturating_sub(slack), known.saturating_add(slack))
    }

    /// Whether `peer` serves `stage`, or finishes what it has of it, whoever leads it.
    fn may_hold(&self, stage: Stage, peer: PeerId) -> bool {
        match peer == self.me {
            true => self.replicas.get(&stage).is_some_and(Replica::is_serving),
            false => self.directory.has_served(peer, stage),
        }
    }

    /// What is wrong with a forward that no honest peer sends.
    fn refusal(&self, from: PeerId, forward: &flow::Forward) -> Option<&'static str> {
        let (id, hops) = (&forward.id, forward.attempt.hops().len());
        if !self.may_feed(id.feeder) {
            Some("a micro-batch of somebody who may not feed")
        } else if forward.stage == 0 && from != id.feeder {
            Some("a micro-batch that comes to the first stage from another than its feeder")
        } else if u64::from(id.index) >= self.rules_per_step() || hops != usize::from(forward.stage) + 1 {
            Some("a micro-batch that no step has")
        } else {
            None
        }
    }

    /// Only the owner and its delegates mint ids.
    pub(super) fn may_feed(&self, peer: PeerId) -> bool {
        let run = &self.config.manifest.run;
        peer == run.owner || run.delegates.contains(&peer)
    }

    pub(super) fn rules_per_step(&self) -> u64 {
        u64::from(self.rules.micro_batches_per_step)
    }

    // ---- the worker and the data -----------------------------------------------------------------------------------------

    fn on_done(&mut self, now: Instant, job: skein_protocol::JobId, done: Done, out: &mut Outbox<Output>) {
        if let Done::Failed { why, .. } = &done {
            out.push(Output::Emit(Event::Waiting { what: format!("a job could not be done: {why}") }));
        }
        let Some(Finished { stage, purpose, began, took }) = self.jobs.done(now, job) else {
            let mut desk = desk!(self, now, out);
            return release_done(&mut desk, done);
        };
        let trains = matches!(purpose, Purpose::Forward { .. } | Purpose::Backward { .. } | Purpose::Step { .. });
        if trains && let Some(flow) = self.replicas.get_mut(&stage).and_then(Replica::flow_mut) {
            flow.busy.worked(took);
        }
        if trains {
            self.count_undone(now, matches!(purpose, Purpose::Step { .. }), &done, out);
        }
        match purpose {
            Purpose::Forward { stage, id } => {
                self.flow_done(now, stage, done, out, |flow, desk, done| {
                    flow.on_begun(id, began);
                    flow.on_forward_done(desk, id, done);
                });
            }
            Purpose::Backward { stage, id } => {
                self.flow_done(now, stage, done, out, |flow, desk, done| {
                    flow.on_begun(id, began);
                    flow.on_backward_done(desk, id, done);
                });
            }
            Purpose::Step { stage } => self.on_stepped(now, stage, done, out),
            Purpose::DropSum { stage } => {
                self.with_flow(now, out, stage, |flow, desk| flow.on_sum_dropped(desk));
            }
            Purpose::Create { stage } => self.on_created(now, stage, done, out),
            Purpose::Round { stage, ticket } => self.rounds_on_done(now, stage, ticket, done, out),
            Purpose::State { stage, ticket } => self.on_state_encoded(now, stage, ticket, done, out),
            Purpose::Save { stage } => self.on_saved(stage, done, out),
            Purpose::Infer { stage, .. } => {
                let mut desk = desk!(self, now, out);
                self.generate.on_done(&mut desk, stage, done);
            }
            Purpose::Forget => {
                let mut desk = desk!(self, now, out);
                release_done(&mut desk, done);
            }
        }
    }

    /// Whose worker fails again and again is no help: it leaves, and says why.
    fn count_undone(&mut self, now: Instant, steps: bool, done: &Done, out: &mut Outbox<Output>) {
        let undone = &mut self.undone[usize::from(steps)];
        let Done::Failed { why, .. } = done else { return *undone = 0 };
        *undone += 1;
        if *undone == UNDONE_MAX {
            let what =
                format!("{UNDONE_MAX} jobs in a row could not be done, the last because: {why}. This peer leaves");
            out.push(Output::Emit(Event::Waiting { what }));
            self.start_drain(now, out);
        }
    }

    fn flow_done(
        &mut self,
        now: Instant,
        stage: Stage,
        done: Done,
        out: &mut Outbox<Output>,
        act: impl FnOnce(&mut StageFlow, &mut crate::flow::Desk<'_>, Done),
    ) {
        let mut desk = desk!(self, now, out);
        match self.replicas.get_mut(&stage).and_then(Replica::flow_mut) {
            Some(flow) => act(flow, &mut desk, done),
            None => release_done(&mut desk, done),
        }
    }

    fn on_stepped(&mut self, now: Instant, stage: Stage, done: Done, out: &mut Outbox<Output>) {
        let count = self.with_flow(now, out, stage, |flow, desk| flow.on_step_done(desk, done)).unwrap_or(0);
        let samples = u64::from(count) * u64::from(self.config.manifest.train.micro_batch);
        self.rounds_on_step(now, stage, samples, out);
        self.push_snapshot_if_due(stage);
    }

    fn on_records(
        &mut self,
        now: Instant,
        request: u64,
        (tokens, labels, starts): (Blob, Blob, Starts),
        out: &mut Outbox<Output>,
    ) {
        let taken = self.with_source(now, out, |source, desk| source.on_records(desk, request, tokens, labels, starts));
        if taken.is_none() {
            out.push(Output::Release { blob: tokens });
            out.push(Output::Release { blob: labels });
        }
        self.feed(now, out);
    }

    fn on_records_ended(&mut self) {
        if let Some(source) = &mut self.source {
            source.exhausted = true;
        }
    }

    /// Mints what the window allows, and publishes what is over.
    pub(super) fn feed(&mut self, now: Instant, out: &mut Outbox<Output>) {
        if self.silent {
            return;
        }
        self.end_if_reached(out);
        let run_samples = self.run_samples();
        self.with_source(now, out, |source, desk| source.advance(desk, run_samples));
        self.publish_progress(now, out);
    }

    /// Samples completed by all feeders.
    pub(super) fn run_samples(&self) -> u64 {
        let mine = self.source.as_ref().map_or(0, Source::samples);
        self.directory.samples_without(self.me).saturating_add(mine.max(self.directory.samples_of(self.me)))
    }

    fn publish_progress(&mut self, now: Instant, out: &mut Outbox<Output>) {
        /// Progress is small, and many ids end together. Where many peers hear of it, it comes less often.
        const EVERY: Duration = Duration::from_millis(100);
        const EVERY_MAX: Duration = Duration::from_secs(2);
        let every = (EVERY * self.directory.crowd()).min(EVERY_MAX);
        let Some(source) = &mut self.source else { return };
        if !source.news || now.since(self.published_at) < every && source.open_len() > 0 {
            return;
        }
        source.news = false;
        self.published_at = now;
        let milli = |loss: Option<f32>| loss.filter(|loss| *loss >= 0.0).map(|loss| (loss * 1e3) as u64);
        let Over { low, above } = source.done();
        let progress = Progress {
            low,
            above: above.into(),
            samples: source.samples(),
            loss_milli: milli(source.loss),
            open: source.open_len() as u32,
            held_out_milli: milli(source.held_out_loss),
        };
        self.directory.publish_progress(now, self.utc, progress, out);
        self.after_directory(now, out);
    }

    fn end_if_reached(&mut self, out: &mut Outbox<Output>) {
        if self.ended {
            return;
        }
        let manifest = &self.config.manifest;
        let ends = &manifest.run.ends;
        let samples = self.run_samples();
        let steps = samples / manifest.samples_per_step().max(1);
        let tokens = samples.saturating_mul(u64::from(manifest.train.sequence));
        let loss = self.source.as_ref().and_then(|source| source.loss);
        let why = if ends.steps.is_some_and(|end| steps >= end) {
            "the steps of the manifest are done"
        } else if ends.tokens.is_some_and(|end| tokens >= end) {
            "the tokens of the manifest are done"
        } else if ends.loss.zip(loss).is_some_and(|(end, loss)| f64::from(loss) <= end) {
            "the loss of the manifest is reached"
        } else {
            return;
        };
        self.ended = true;
        if let Some(source) = &mut self.source {
            source.ended = true;
        }
        out.push(Output::Emit(Event::RunEnded { why: why.into() }));
    }

    // ---- incarnations ----------------------------------------------------------------------------------------------------

    fn on_fence(&mut self, now: Instant, from: PeerId, incarnation: Incarnation, out: &mut Outbox<Output>) {
        let recent = self.fences.get(&from).is_some_and(|at| now.since(*at) < FENCE_PAUSE);
        if incarnation != self.incarnation || self.silent || !self.admits(from) {
            return;
        }
        if recent {
            // It takes no word of mine until then, so this incarnation has to end; but not at its every whim.
            return self.fence_again = true;
        }
        self.fences.retain(|_, at| now.since(*at) < FENCE_PAUSE);
        self.fences.insert(from, now);
        self.fence(now, out, "others had declared this peer dead");
    }

    /// Somebody said again that this peer is dead: it fences itself when the pause is over.
    fn fence_when_due(&mut self, now: Instant, out: &mut Outbox<Output>) {
        if self.fence_again && self.fences.values().all(|at| now.since(*at) >= FENCE_PAUSE) {
            self.fence(now, out, "others had declared this peer dead once more");
        }
    }

    /// Drops the open work, and falls silent until a new incarnation is durable.
    fn fence(&mut self, now: Instant, out: &mut Outbox<Output>, why: &str) {
        let (old, new) = (self.incarnation, self.incarnation + 1);
        out.push(Output::Emit(Event::Fenced { old, new, why: why.into() }));
        self.silent = true;
        self.uplink.forget(None);
        self.fence_again = false;
        self.jobs.fenced(now);
        let stages: Vec<Stage> = self.replicas.keys().copied().collect();
        for stage in stages {
            self.with_flow(now, out, stage, |flow, desk| flow.on_fenced(desk, new));
            self.rounds_on_fence(now, stage, out);
        }
        self.with_source(now, out, |source, desk| source.on_fenced(desk, new));
        let mut desk = desk!(self, now, out);
        self.generate.on_fenced(&mut desk);
        out.push(Output::Incarnation);
    }

    fn on_incarnated(&mut self, now: Instant, incarnation: Incarnation, out: &mut Outbox<Output>) {
        self.incarnation = incarnation;
        self.silent = false;
        self.directory.on_incarnated(incarnation);
        for replica in self.replicas.values_mut() {
            if let Some(flow) = replica.flow_mut() {
                flow.set_incarnation(incarnation);
            }
        }
        if let Some(source) = &mut self.source {
            source.set_incarnation(incarnation);
        }
        out.push(Output::Emit(Event::Started { peer: self.me, incarnation }));
        let hello = self.hello();
        for peer in self.neighbours.connected().collect::<Vec<_>>() {
            self.say(peer, hello.clone(), out);
        }
        let mut desk = desk!(self, now, out);
        let facts = self.transfer.on_incarnated(&mut desk);
        self.on_transfer_facts(now, facts, out);
        self.publish_offer(now, out);
        self.feed(now, out);
    }

    // ---- commands and time -----------------------------------------------------------------------------------------------

    fn on_command(&mut self, now: Instant, command: Command, out: &mut Outbox<Output>) {
        match command {
            Command::Host { stage } => self.want_stage(now, stage, true, "it was asked for", out),
            Command::Join => {
                self.placement = Placement::Plan;
                self.place(now, out);
            }
            Command::Fetch { blob } => {
                if self.transfer.shelved(blob).is_none() {
                    self.asked.insert(blob);
                }
            }
            Command::Feed => {
                let (me, incarnation, manifest) = (self.me, self.incarnation, &self.config.manifest);
                let (feed_from, held_out) = (self.config.feed_from, self.config.held_out);
                let made = || Source::new(me, incarnation, manifest, feed_from, held_out);
                let source = self.source.get_or_insert_with(made);
                source.feeding = true;
                source.news = true;
                self.feed(now, out);
            }
            Command::StopFeeding => {
                if let Some(source) = &mut self.source {
                    source.feeding = false;
                }
            }
            Command::Drain => self.start_drain(now, out),
            Command::Save => self.save_all(),
            Command::Export { request } => self.start_export(now, request, out),
            Command::ExportNext { request } => self.export_next(now, request, out),
            Command::ExportEnd { request } => self.end_export(now, request, out),
            Command::Generate { session, tokens, without, apart } => {
                let last = self.rules.last;
                let mut desk = desk!(self, now, out);
                self.generate.start(&mut desk, session, tokens, last, &without, apart);
            }
            Command::GenerateNext { session, tokens } => {
                let mut desk = desk!(self, now, out);
                self.generate.next(&mut desk, session, tokens);
            }
            Command::GenerateClose { session } => {
                let mut desk = desk!(self, now, out);
                self.generate.close(&mut desk, session);
            }
        }
    }

    fn on_tick(&mut self, now: Instant, utc: Utc, out: &mut Outbox<Output>) {
        self.utc = utc;
        if self.route_is_old && now >= self.route_at() {
            self.refresh_route(now, out);
        }
        if self.silent {
            return;
        }
        self.directory.tell_when_due(now, out);
        if now.since(self.last_tick) < TICK {
            return;
        }
        self.last_tick = now;
        self.fence_when_due(now, out);
        if self.silent {
            return;
        }
        self.hold_saved(now, out);
        let neighbours = &self.neighbours;
        self.directory.on_tick(now, utc, |peer| neighbours.is_gone(peer), out);
        self.after_directory(now, out);
        self.renew_route(now, out);
        let stages: Vec<Stage> = self.replicas.keys().copied().collect();
        for stage in stages {
            let mut desk = desk!(self, now, out);
            let (me, neighbours, directory) = (self.me, &self.neighbours, &self.directory);
            if let Some(flow) = self.replicas.get_mut(&stage).and_then(Replica::flow_mut) {
                flow.on_tick(&mut desk, |peer| peer == me || neighbours.is_up(peer) || directory.offer(peer).is_some());
            }
        }
        self.with_source(now, out, |source, desk| source.on_tick(desk));
        let mut desk = desk!(self, now, out);
        self.generate.on_tick(&mut desk);
        let facts = self.transfer.on_tick(&mut desk);
        self.on_transfer_facts(now, facts, out);
        self.rounds_on_tick(now, out);
        self.place(now, out);
        self.reach_out(now, out);
        self.publish_offer(now, out);
        self.feed(now, out);
        self.finish_run(now, out);
        self.go_on_draining(now, out);
        self.name_active(out);
    }

    /// The run has ended: partial sums are stepped, so that nothing stays pending.
    fn finish_run(&mut self, now: Instant, out: &mut Outbox<Output>) {
        self.end_if_reached(out);
        if !self.ended || self.directory.open_somewhere() {
            return;
        }
        let stages: Vec<Stage> = self.replicas.keys().copied().collect();
        for stage in stages {
            self.with_flow(now, out, stage, |flow, desk| {
                if flow.open_ids() == 0 {
                    flow.step(desk);
                }
            });
        }
    }

    /// Everything that may follow from news in the directory.
    pub(super) fn after_directory(&mut self, now: Instant, out: &mut Outbox<Output>) {
        if self.directory.take_news() {
            self.circle_is_old = true;
            self.refresh_route_soon(now, out);
        }
        let per_step = self.rules_per_step();
        let stages: Vec<Stage> = self.replicas.keys().copied().collect();
        if self.directory.take_progress_news() {
            for stage in stages {
                let mut desk = desk!(self, now, out);
                let Some(flow) = self.replicas.get_mut(&stage).and_then(Replica::flow_mut) else { continue };
                let directory = &self.directory;
                flow.on_over(&mut desk, |id| directory.is_over(id, per_step));
            }
        }
    }

    /// Somebody came, or says something else: at once among few.
    fn refresh_route_soon(&mut self, now: Instant, out: &mut Outbox<Output>) {
        if self.directory.crowd() > 1 && now < self.route_at() {
            self.route_is_old = true;
        } else {
            self.refresh_route(now, out);
        }
    }

    /// When the route may hear of somebody who came.
    pub(super) fn route_at(&self) -> Instant {
        self.routed_at + ROUTE_PAUSE
    }

    /// Who serves what, for the route: connected, greeted and living.
    pub(super) fn refresh_route(&mut self, now: Instant, out: &mut Outbox<Output>) {
        (self.routed_at, self.route_is_old, self.near_is_old) = (now, false, true);
        let carries = self.uplink.carries(now);
        let (mut serving, mut leaving) = self.directory.standing(self.neighbours.up());
        for (stage, pace) in self.own_paces(carries) {
            serving.entry(stage).or_default().insert(self.me, pace);
        }
        let drains = |replica: &&Replica| replica.flow().is_some_and(|flow| flow.standing == Standing::Draining);
        leaving.extend(self.replicas.values().filter(drains).map(|replica| (replica.stage, self.me)));
        for (stage, replica) in &mut self.replicas {
            let others = serving.get(stage).into_iter().flat_map(BTreeMap::keys);
            let members = others.copied().filter(|peer| *peer != self.me).collect();
            let leavers = leaving.iter().filter(|(of, peer)| of == stage && *peer != self.me);
            replica.average.set_members(members, leavers.map(|(_, peer)| *peer).collect());
        }
        if self.config.manifest.lock_step() {
            for (stage, peers) in &mut serving {
                let leader = self.leader(*stage);
                peers.retain(|peer, _| Some(*peer) == leader);
            }
        }
        self.route.set_serving(serving, leaving);
        self.tell_empty(now, out);
    }

    /// What changes with every tick: paces, and what speeds mean for a feeder's window. In lock-step a replica leads by its
    /// version.
    fn renew_route(&mut self, now: Instant, out: &mut Outbox<Output>) {
        let numbers = self.directory.take_numbers(|peer| self.neighbours.is_up(peer));
        if self.config.manifest.lock_step() {
            self.refresh_route(now, out);
        }
        for (stage, peer, pace) in numbers {
            self.route.set_claim(stage, peer, pace);
        }
        let carries = self.uplink.carries(now);
        for (stage, pace) in self.own_paces(carries) {
            self.route.set_claim(stage, self.me, pace);
        }
        // What is empty at the beginning is told later, and afterwards whenever the route is another one.
        if self.routed_at <= self.started + EMPTY_AFTER {
            self.tell_empty(now, out);
        }
        if let Some(source) = &mut self.source {
            // Stages that a feeder has no connection to are on the way, too.
            let mut everybody = self.directory.serving();
            for (stage, flow) in self.replicas.iter().filter_map(|(stage, replica)| Some((stage, replica.flow()?))) {
                everybody.entry(*stage).or_default().insert(self.me, flow.busy.speed());
            }
            source.window.on_serving(&everybody);
        }
    }

    /// The stages that this peer serves, each with its pace, as it offers them: see `Offer::paces`.
    fn own_paces(&self, carries: Option<f64>) -> Vec<(Stage, f64)> {
        let serves = |flow: &&StageFlow| flow.standing == Standing::Serving;
        let serving =
            self.replicas.values().filter_map(|replica| Some((replica.stage, replica.flow().filter(serves)?)));
        let count = serving.clone().count() as f64;
        serving.map(|(stage, flow)| (stage, flow.busy.pace(carries) / count)).collect()
    }

    fn tell_empty(&mut self, now: Instant, out: &mut Outbox<Output>) {
        for stage in 0..=self.rules.last {
            let somebody = self.route.replicas(stage).next();
            match somebody {
                None if now.since(self.started) > EMPTY_AFTER && self.empty.insert(stage) => {
                    out.push(Output::Emit(Event::StageEmpty { stage }));
                }
                Some(peer) if self.empty.remove(&stage) => out.push(Output::Emit(Event::StageBack { stage, peer })),
                _ => {}
            }
        }
    }

    fn name_active(&mut self, out: &mut Outbox<Output>) {
        let mut active: Vec<PeerId> = Vec::new();
        for flow in self.replicas.values().filter_map(Replica::flow) {
            active.extend(flow.partners());
            active.extend(flow.feeders());
        }
        active.extend(self.source.iter().flat_map(Source::replicas_in_use));
        active.extend(self.transfer.partners());
        active.extend(self.generate.partners());
        active.extend(self.rounds_partners());
        if std::mem::take(&mut self.near_is_old) {
            self.near = self.who_is_near();
        }
        // Mostly those who are near are all, and they are in order.
        active.retain(|peer| *peer != self.me && self.near.binary_search(peer).is_err());
        if active.is_empty() && self.near == self.active {
            return;
        }
        active.extend(self.near.iter().filter(|peer| **peer != self.me));
        active.sort_unstable();
        active.dedup();
        if active != self.active {
            self.active = active.clone();
            out.push(Output::Active { peers: active });
        }
    }

    /// Those of the circle who serve what this peer may send to or hear from, and the strangers.
    fn who_is_near(&self) -> Vec<PeerId> {
        let last = self.rules.last;
        let beside = |stage: Stage| [stage.checked_sub(1), Some(stage), Some(stage + 1).filter(|s| *s <= last)];
        let mut stages: BTreeSet<Stage> = self.replicas.keys().flat_map(|stage| beside(*stage)).flatten().collect();
        if self.source.is_some() {
            stages.extend([0, last]);
        }
        let replicas = stages.into_iter().flat_map(|stage| self.route.replicas(stage));
        let near = replicas.filter(|peer| self.circle.has(peer)).chain(self.circle.strangers.iter().copied());
        near.collect::<BTreeSet<PeerId>>().into_iter().collect()
    }
}

pub(super) fn out_release(out: &mut Outbox<Output>, body: Option<Blob>) {
    if let Some(blob) = body {
        out.push(Output::Release { blob });
    }
}
