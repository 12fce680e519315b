//! One match over everything that a peer can ask of its driver, and what comes of it.

use std::collections::BTreeSet;

use bytes::Bytes;
use skein_pipeline::peer::io::{Command, Exported, Input, Output};
use skein_protocol::{
    Blob, Lane, PeerId, codec,
    event::Severity,
    hash::{self, Digest},
    run::Codec,
    wire::{
        Frame, flow,
        limits::{BODY_MAX, FRAME_MAX},
    },
};

use super::{
    Answer, Blame, Happening, NOTED_MAX, Process, SYNC, Simulation, What,
    process::{Acknowledgement, Fact, Message, Running},
};
use crate::{
    checker::Property,
    digest::Mark,
    engine::{MILLISECOND, Time},
    world::{
        Payload,
        adversary::{Lie, is_result},
        network::{Alarm, ConnectionId},
    },
};

/// Bytes that one lane to one peer may hold.
const LANE_MAX: u64 = 64 << 20;
/// Records come from a file.
const READ: Time = MILLISECOND;

impl<P: Process> Simulation<P> {
    pub(super) fn perform(&mut self, peer: usize, output: Output) {
        match output {
            Output::Send { to, lane, frame, body } => self.send(peer, to, lane, frame, body),
            Output::Dial { peer: other, .. } => {
                if let Some(other) = self.number(other) {
                    self.dial(peer, other);
                }
            }
            Output::Hangup { peer: other } => {
                if let Some(other) = self.number(other).filter(|to| self.network.connection(peer, *to).is_some()) {
                    self.say_closed(peer, other);
                    self.lose(peer, other, "hung up");
                }
            }
            Output::Provide { key } => self.directory.provide(key, self.ids[peer]),
            Output::Lookup { request, key } => {
                let peers = self.directory.find(&key, self.ids[peer]);
                let hops = 4 * self.network.delay(peer, peer) + 20 * MILLISECOND;
                self.fact_after(peer, hops, Fact::Input(Input::Found { request, peers, last: true }));
            }
            Output::Compute { job, job_spec } => {
                self.run_hooks(peer, What::Asked(&job_spec));
                let Some(life) = self.lives[peer].as_mut() else { return };
                life.store.pin(&job_spec);
                life.jobs.push_back((job, job_spec));
                self.start_job(peer);
            }
            Output::Records { request, index } => {
                let fact = match self.setup.records {
                    Some(records) if index >= records => Fact::Input(Input::RecordsEnded),
                    _ => {
                        let corpus = &self.setup.corpus;
                        let (tokens, labels) = corpus.records(&self.manifest, index);
                        let starts = corpus.starts(&self.manifest);
                        Fact::Records { request, tokens, labels, starts }
                    }
                };
                self.fact_after(peer, READ, fact);
            }
            Output::Incarnation => {
                let process = self.processes[peer];
                self.engine.after(SYNC, Happening::Incarnate { peer, process });
            }
            Output::Slice { blob, offset, new } => self.with_store(peer, |store| store.slice(blob, offset, new)),
            Output::Release { blob } => self.with_store(peer, |store| store.release(blob)),
            Output::Active { peers } => {
                let used: BTreeSet<usize> = peers.into_iter().filter_map(|peer| self.number(peer)).collect();
                let alarms = self.network.set_used(self.engine.now(), peer, used);
                self.plan_alarms(alarms);
            }
            Output::Held { .. } => {}
            Output::Shelve { blob, parts } => self.shelve(peer, blob, &parts),
            Output::Blame { peer: of, severity, why } => {
                self.note(peer, |sim| format!("blames p{:?}: {why}", sim.number(of)));
                if severity > Severity::Odd {
                    if self.is_honest(of) {
                        self.wrong(Property::P9, format!("peer {peer} blames an honest peer: {why}"));
                    }
                    if self.blames.len() < NOTED_MAX {
                        self.blames.push(Blame { by: peer, of, severity, why });
                    }
                }
            }
            Output::Exported { request, stage, copy, last } => {
                let parts = match copy {
                    Exported::Weights { parts, root, .. } => Some((self.take(peer, parts), root)),
                    Exported::Missed { .. } | Exported::Nobody => None,
                };
                self.answers.push(Answer::Exported { peer, request, stage, parts, last });
                self.fact_now(peer, Fact::Input(Input::Command(Command::ExportNext { request })));
            }
            Output::Generated { session, logits } => {
                let logits = logits.and_then(|blob| self.take(peer, vec![blob]).pop());
                self.answers.push(Answer::Generated { peer, session, logits });
            }
            Output::Emit(event) => {
                let seen = self.is_watched().then(|| event.clone());
                self.emit(peer, event);
                if let Some(event) = seen {
                    self.run_hooks(peer, What::Emitted(&event));
                }
            }
            Output::Drained => self.exit(peer),
        }
    }

    fn with_store<R: Default>(&mut self, peer: usize, act: impl FnOnce(&mut crate::world::Store) -> R) -> R {
        self.lives[peer].as_mut().map(|life| act(&mut life.store)).unwrap_or_default()
    }

    fn shelve(&mut self, peer: usize, blob: Digest, handles: &[Blob]) {
        let read = |store: &mut crate::world::Store| {
            handles.iter().filter_map(|handle| store.read(*handle, "the shelf")).collect::<Vec<_>>()
        };
        let whole = Payload::whole(&self.with_store(peer, read));
        let is_right = match &whole {
            Some(Payload::Real(bytes)) => hash::blob(&[bytes]) == blob,
            Some(Payload::Modelled { .. }) => true,
            None => false,
        };
        if let Some(whole) = whole.filter(|_| is_right) {
            self.disks[peer].shelf.insert(blob, whole);
        }
        self.fact_after(peer, SYNC, Fact::Input(Input::Shelved { blob, is_right }));
    }

    /// What is behind handles that are now the driver's.
    fn take(&mut self, peer: usize, blobs: Vec<Blob>) -> Vec<Payload> {
        self.with_store(peer, |store| {
            blobs
                .into_iter()
                .filter_map(|blob| {
                    let payload = store.read(blob, "an answer");
                    store.release(blob);
                    payload
                })
                .collect()
        })
    }

    // ---- messages --------------------------------------------------------------------------------------------------------

    fn send(&mut self, peer: usize, to: PeerId, lane: Lane, frame: Frame, body: Option<Blob>) {
        let now = self.engine.now();
        let body = match body {
            None => None,
            Some(blob) => match self.with_store(peer, |store| store.read(blob, "send")) {
                None => return,
                body => body,
            },
        };
        let Some(number) = self.number(to) else {
            return self.wrong(Property::P0, format!("peer {peer} sends to somebody it cannot know"));
        };
        self.note(peer, |_| format!("-> p{number} {}", super::brief(&frame)));
        let body = if number == peer { body } else { self.poison(peer, &frame, body) };
        // The frame itself goes on; whoever looks on sees a copy.
        let seen = self.is_watched().then(|| frame.clone());
        if number == peer {
            let (_, mark) = self.write(&frame);
            self.fact_now(peer, Fact::Frame { from: peer, frame, mark, body });
        } else if let Some(connection) = self.network.connection(peer, number) {
            let (len, mark) = self.write(&frame);
            let too_large = len > FRAME_MAX || body.as_ref().is_some_and(|body| body.len() > BODY_MAX);
            if too_large {
                let words = super::brief(&frame);
                return self.wrong(Property::P0, format!("peer {peer} sends more than the limits allow: {words}"));
            }
            let process = self.processes[peer];
            let message =
                Message { from: peer, to: number, process, departed: now, connection, lane, frame, len, mark, body };
            self.traffic[lane as usize] += message.size();
            if message.body.is_none() {
                self.leave(message);
            } else {
                self.queue(message);
            }
        }
        if let Some(frame) = seen {
            self.run_hooks(peer, What::Sent { to: number, frame: &frame });
        }
    }

    /// How many bytes a frame is, and what stands for them.
    fn write(&mut self, frame: &Frame) -> (usize, Mark) {
        self.written.clear();
        frame.encode_to(&mut self.written);
        (self.written.len(), Mark::of(&self.written))
    }

    /// What a poisoned peer sends in the place of its next result.
    fn poison(&mut self, peer: usize, frame: &Frame, body: Option<Payload>) -> Option<Payload> {
        if !is_result(frame) {
            return body;
        }
        if let (Some(lie), Some(Payload::Real(bytes))) = (self.liars.get(&peer), &body) {
            return Some(Payload::Real(self.lied(*lie, frame, bytes.clone())));
        }
        if self.poisoned.get(&peer) != Some(&false) {
            return body;
        }
        self.poisoned.insert(peer, true);
        let values = self.manifest.tokens_per_micro_batch() * u64::from(self.manifest.model.config.hidden);
        let bytes = codec::encode(&vec![f32::NAN; values as usize], Codec::F32, false);
        Some(Payload::Real(bytes.into()))
    }

    /// What a liar makes of values.
    fn lied(&self, lie: Lie, frame: &Frame, bytes: Bytes) -> Bytes {
        let codecs = &self.manifest.codecs;
        let forward = matches!(frame, Frame::Flow(flow::Frame::Forward(_)));
        let allowed = if forward { &codecs.forward } else { &codecs.backward };
        let values = self.manifest.tokens_per_micro_batch() * u64::from(self.manifest.model.config.hidden);
        let mut values = vec![0.0; values as usize];
        if codec::decode_into(&bytes, &mut values, allowed).is_err() {
            return bytes;
        }
        lie.edit(&mut values);
        codec::encode(&values, allowed[0], false).into()
    }

    fn queue(&mut self, message: Message) {
        let (peer, lane) = (message.from, message.lane);
        if self.flows.waiting(peer, message.to, lane) + message.size() > LANE_MAX {
            let congested = Input::Congested { peer: self.ids[message.to], lane };
            return self.fact_now(peer, Fact::Input(congested));
        }
        self.transmit(message);
    }

    /// Puts a body on the links.
    fn transmit(&mut self, message: Message) {
        let (from, to, lane, size) = (message.from, message.to, message.lane, message.size());
        let cold = self.flows.is_cold(from, to);
        let wait = if cold { self.network.slow_start(from, to, size) } else { 0 };
        let cap = self.network.cap(from, to);
        self.flows.begin(self.engine.now(), from, to, lane, size, message, cap, wait);
        self.read_links();
    }

    pub(super) fn on_again(&mut self, message: Message) {
        let stands = self.network.connection(message.from, message.to) == Some(message.connection);
        if stands && self.processes[message.from] == message.process {
            self.transmit(message);
        }
    }

    /// A message leaves its machine.
    pub(super) fn leave(&mut self, mut message: Message) {
        let now = self.engine.now();
        let (from, to) = (message.from, message.to);
        if self.network.connection(from, to) != Some(message.connection) {
            return;
        }
        message.departed = now;
        self.meters[from].sent(message.lane, message.size());
        if self.network.is_blocked(from, to) {
            return self.swallowed.entry((from, to)).or_default().push(message);
        }
        let size = message.size();
        let at = if message.body.is_none() {
            self.network.arrive_ordered(now, from, to, size)
        } else {
            now + self.network.delay(from, to)
        };
        self.engine.plan(at, Happening::Arrival(Box::new(message)));
    }

    pub(super) fn on_arrival(&mut self, message: Message) {
        let size = message.size();
        let Message { from, to, process, departed, connection, lane, frame, mark, body, .. } = message;
        let cut = self.cuts.get(&(from, process)).is_some_and(|cut| departed >= *cut);
        if cut || self.network.connection(to, from) != Some(connection) {
            return;
        }
        if let Frame::Flow(frame) = &frame
            && let Some(about) = frame.body_of()
        {
            let delay = self.network.delay(to, from);
            let of = Acknowledgement { sender: from, process, receiver: to, connection, lane, about };
            self.engine.after(delay, Happening::Acknowledgement(Box::new(of)));
        }
        self.meters[to].received(lane, size);
        self.arrivals += 1;
        if self.arrivals.is_multiple_of(self.setup.reread_every.max(1))
            && let Err(wrong) = read_back(&frame)
        {
            return self.wrong(Property::P9, format!("a frame of peer {from} {wrong}"));
        }
        self.deliver(to, Fact::Frame { from, frame, mark, body });
    }

    pub(super) fn on_acknowledgement(&mut self, of: Box<Acknowledgement>) {
        let Acknowledgement { sender, process, receiver, connection, lane, ref about } = *of;
        if self.processes[sender] != process || self.network.connection(sender, receiver) != Some(connection) {
            return;
        }
        if self.network.is_blocked(receiver, sender) {
            // It is said again until it is heard, or the connection ends.
            let late = self.network.retransmission();
            return self.engine.after(late, Happening::Acknowledgement(of));
        }
        let input = Input::Delivered { peer: self.ids[receiver], lane, about: about.clone() };
        self.deliver(sender, Fact::Input(input));
    }

    // ---- connections -----------------------------------------------------------------------------------------------------

    pub(super) fn dial(&mut self, from: usize, to: usize) {
        let process = self.processes[from];
        if from == to || self.network.connection(from, to).is_some() || !self.dialing.insert((from, process, to)) {
            return;
        }
        let there_and_back = self.network.dialling(from, to);
        self.engine.after(there_and_back, Happening::Handshake { from, to, process });
    }

    pub(super) fn on_handshake(&mut self, from: usize, to: usize, process: u32) {
        self.dialing.remove(&(from, process, to));
        let connected = self.network.connection(from, to).is_some() && self.network.connection(to, from).is_some();
        if self.processes[from] != process || connected || !self.network.reaches(from, to) {
            return;
        }
        let now = self.engine.now();
        self.flows.close(now, from, to);
        self.flows.close(now, to, from);
        self.read_links();
        for side in self.network.connect(now, from, to) {
            let other = self.ids[if side == from { to } else { from }];
            let lost = Input::PeerLost { peer: other, why: "another connection took its place".into() };
            self.fact_now(side, Fact::Input(lost));
        }
        self.fact_now(from, Fact::Input(Input::PeerUp { peer: self.ids[to] }));
        self.fact_now(to, Fact::Input(Input::PeerUp { peer: self.ids[from] }));
    }

    pub(super) fn on_silence(&mut self, alarm: Alarm) {
        let paused = self.lives[alarm.of].as_ref().is_none_or(|life| life.paused.is_some());
        if !paused && self.network.rings(&alarm) {
            self.lose(alarm.of, alarm.from, "idle");
        }
    }

    /// Tells the other side that this one closes, behind everything small that was said before.
    pub(super) fn say_closed(&mut self, from: usize, to: usize) {
        let Some(connection) = self.network.connection(from, to) else { return };
        if self.network.is_blocked(from, to) {
            return;
        }
        let at = self.network.arrive_ordered(self.engine.now(), from, to, 60);
        self.engine.plan(at, Happening::Closed { of: to, from, connection });
    }

    pub(super) fn on_closed(&mut self, of: usize, from: usize, connection: ConnectionId) {
        if self.network.connection(of, from) == Some(connection) {
            self.lose(of, from, "closed by the other side");
        }
    }

    // ---- the worker and the disk -----------------------------------------------------------------------------------------

    pub(super) fn start_job(&mut self, peer: usize) {
        let now = self.engine.now();
        let Some(life) = self.lives[peer].as_mut().filter(|life| life.paused.is_none()) else { return };
        if life.running.is_some() {
            return;
        }
        let Some((job, spec)) = life.jobs.pop_front() else { return };
        let cost = life.worker.cost(&spec) as f64 / self.speeds[peer];
        let ends = now + cost as Time;
        life.job_token += 1;
        let happening = Happening::JobDone { peer, process: life.number, token: life.job_token };
        life.running = Some(Running { job, spec, began: now, ends });
        self.meters[peer].set_busy(now, true);
        self.engine.plan(ends, happening);
    }

    pub(super) fn on_job_done(&mut self, peer: usize, process: u32, token: u64) {
        let Some(life) = self.lives[peer].as_mut() else { return };
        if life.number != process || life.job_token != token || life.paused.is_some() {
            return;
        }
        let Some(Running { job, spec, began, ends }) = life.running.take() else { return };
        life.busy += ends - began;
        self.meters[peer].set_busy(ends, false);
        let done = life.worker.run(spec.clone(), &mut life.store, &mut self.disks[peer]);
        life.store.unpin(&spec);
        self.start_job(peer);
        self.deliver(peer, Fact::Done { job, done });
    }

    pub(super) fn on_incarnate(&mut self, peer: usize, process: u32) {
        let Some(life) = self.lives[peer].as_mut().filter(|life| life.number == process) else { return };
        // A suspended process has not written yet.
        if life.paused.is_some() {
            life.incarnating = true;
            return;
        }
        self.disks[peer].incarnation += 1;
        life.incarnation = self.disks[peer].incarnation;
        let incarnation = life.incarnation;
        self.deliver(peer, Fact::Input(Input::Incarnated { incarnation }));
    }
}

/// A receiver reads what was written, and would write the same.
fn read_back(frame: &Frame) -> Result<(), String> {
    let bytes = frame.encode();
    match Frame::decode(&bytes) {
        Ok(decoded) if decoded.encode() == bytes => Ok(()),
        Ok(decoded) => Err(format!("is not what it was: {}", super::brief(&decoded))),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}
