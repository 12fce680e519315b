//! The loop of one peer. In: facts from the network, the worker, the disk and the person. Out: what the peer asks for, performed.
//!
//! One task owns the peer. A turn reads the clock once, hands one fact over, and performs everything that follows before the next.
//! It never waits for another peer, and decides nothing: it translates.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use libp2p::Multiaddr;
use skein_pipeline::{
    flow::coding::LinkSpeed,
    job::Done,
    peer::{
        Peer,
        io::{Command, Input, Output},
    },
};
use skein_protocol::{
    Incarnation, Instant, Lane, Machine, Manifest, Outbox, PeerId, RunId, Utc,
    event::{Event, Record, Severity},
    hash::Digest,
    wire::{Frame, average, flow, generate, hello, state},
};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    NodeError,
    admission::{Admission, FULL},
    admit::{self, Gate},
    blobs::{Blobs, Kind},
    clock::Clock,
    export::{self, Exports, Note},
    feed::{Feed, Mark, bytes_of},
    generate::{Ask, Next, Said, Sessions},
    log::Log,
    memory::Books,
    shapes::{Body, Shapes},
    store::Store,
    view::{BlobState, State, Work},
    worker::{Ran, WorkerThread},
};
use crate::{
    home::{Book, Home, HomeError},
    memory::held,
    net::{self, Code, Net, NetEvent, Path, Reachability, gate},
};

/// The machine is told the time this often.
const TICK: Duration = Duration::from_millis(100);
/// Those who watch get a new snapshot this often.
const SHOW: Duration = Duration::from_millis(200);
/// Traffic and addresses are told this often.
const NOTE: Duration = Duration::from_secs(5);
/// The place in the data is noted at most this often.
const MARK: Duration = Duration::from_secs(1);
/// What a peer said to wait for is shown this long.
const WAITING: Duration = Duration::from_secs(5);

/// What the person in front of this peer wants.
#[derive(Debug)]
pub enum Order {
    Command(Command),
    Generate {
        ask: Ask,
        reply: mpsc::UnboundedSender<Said>,
    },
    Export {
        /// Hears how it goes on.
        notes: mpsc::UnboundedSender<Note>,
        reply: export::Reply,
    },
    /// Ends without draining.
    Stop,
    /// Answered when everything ordered before has been handed to the peer.
    Settle {
        reply: oneshot::Sender<()>,
    },
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// In good order: handed on, saved, said goodbye.
    Drained,
    Stopped,
}

/// What a driver is made of.
pub(super) struct Parts {
    pub peer: Peer,
    pub run: RunId,
    pub manifest: Arc<Manifest>,
    pub incarnation: Incarnation,
    pub clock: Clock,
    pub home: Home,
    pub net: Net,
    pub net_events: mpsc::Receiver<NetEvent>,
    /// Events that were heard before the peer existed.
    pub backlog: Vec<NetEvent>,
    pub gate: Arc<Gate>,
    pub admission: Admission,
    pub shapes: Shapes,
    pub blobs: Blobs,
    /// Snapshots held for others. One thread at a time writes there.
    pub held: Arc<Mutex<Store>>,
    pub worker: WorkerThread,
    pub ran: mpsc::UnboundedReceiver<Ran>,
    pub log: Log,
    pub feed: Option<Feed>,
    pub mark: Mark,
    pub context: usize,
    /// Bytes of memory that the person gave.
    pub memory: u64,
    /// The served stages are saved this often; zero: only when it drains.
    pub save_every: Duration,
    /// What the role asks for, before any order.
    pub commands: Vec<Command>,
    pub orders: mpsc::Receiver<Order>,
    pub records: broadcast::Sender<Record>,
    pub state: watch::Sender<Option<State>>,
}

/// What was compared with its hash, and whether it has it.
type Compared = (Digest, bool);

pub(super) struct Driver {
    pub(super) parts: Parts,
    pub(super) out: Outbox<Output>,
    /// Facts that arise while requests are performed: handed over in the same turn.
    pub(super) again: VecDeque<Input>,
    pub(super) now: Instant,
    pub(super) utc: Utc,
    pub(super) sessions: Sessions,
    pub(super) exports: Exports,
    pub(super) book: Book,
    pub(super) incarnation: Incarnation,
    pub(super) end: Option<Result<Ended, NodeError>>,
    pub(super) waiting: Option<(Instant, String)>,
    addresses: Vec<String>,
    reachability: Reachability,
    work: Work,
    busy: Duration,
    shown: Instant,
    noted: Instant,
    saved: Instant,
    traffic: [(u64, u64); Lane::ALL.len()],
    books: Books,
    booked: bool,
    /// The book on its way to the disk.
    saving: Option<JoinHandle<()>>,
    /// The next incarnation on its way to the disk.
    pub(super) incarnating: Option<JoinHandle<Result<Incarnation, HomeError>>>,
    /// The place in the data on its way to the disk, and since when.
    marking: Option<JoinHandle<()>>,
    /// Snapshots of others, and what goes on the shelf, on their way to the disk.
    pub(super) laying: Vec<JoinHandle<()>>,
    /// From the threads that compare.
    pub(super) compared: (mpsc::UnboundedSender<Compared>, mpsc::UnboundedReceiver<Compared>),
    marked: Instant,
}

/// The incarnation that is being written, once it is durable. Forever while none is.
async fn durable(writing: &mut Option<JoinHandle<Result<Incarnation, HomeError>>>) -> Result<Incarnation, NodeError> {
    let Some(thread) = writing else { return std::future::pending().await };
    let written = thread.await;
    *writing = None;
    Ok(written.map_err(|bug| NodeError::Bug(bug.to_string()))??)
}

fn write_book(home: &Home, book: &Book) {
    if let Err(error) = home.save_book(book) {
        tracing::warn!(%error, "the address book was not saved");
    }
}

impl Driver {
    pub fn new(parts: Parts) -> Self {
        let (now, utc) = (parts.clock.now(), parts.clock.utc());
        Driver {
            out: Outbox::new(),
            again: VecDeque::new(),
            now,
            utc,
            sessions: Sessions::new(parts.context),
            exports: Exports::new(parts.manifest.clone()),
            book: parts.home.book(),
            incarnation: parts.incarnation,
            end: None,
            waiting: None,
            addresses: Vec::new(),
            reachability: Reachability::default(),
            work: Work::default(),
            busy: Duration::ZERO,
            shown: Instant::ZERO,
            noted: now,
            saved: now,
            traffic: Default::default(),
            books: Books::default(),
            booked: false,
            saving: None,
            incarnating: None,
            marking: None,
            laying: Vec::new(),
            compared: mpsc::unbounded_channel(),
            marked: Instant::ZERO,
            parts,
        }
    }

    /// Runs until it drained, was stopped, or cannot go on.
    pub async fn run(mut self) -> Result<Ended, NodeError> {
        self.begin();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = loop {
            if let Some(end) = self.end.take() {
                break end;
            }
            let deadlines = self.parts.peer.deadline().map(|(at, _)| at).into_iter().chain(self.sessions.deadline());
            let wake = deadlines.min().map_or(TICK, |at| at.since(self.parts.clock.now()));
            tokio::select! {
                biased;
                _ = tick.tick() => self.on_tick(),
                () = sleep(wake) => {
                    self.turn(None);
                    self.go_on_with_sessions();
                }
                Some(order) = self.parts.orders.recv() => self.on_order(order),
                ran = self.parts.ran.recv() => self.on_ran(ran),
                incarnation = durable(&mut self.incarnating) => self.on_incarnation(incarnation),
                Some((blob, is_right)) = self.compared.1.recv() => {
                    self.turn(Some(Input::Shelved { blob, is_right }));
                }
                request = self.exports.added() => self.on_added(request),
                event = self.parts.net_events.recv() => match event {
                    Some(event) => self.on_net(event),
                    None => break Err(NodeError::NetworkGone),
                },
            }
        };
        self.finish().await;
        ended
    }

    fn begin(&mut self) {
        self.emit(Event::Started { peer: self.parts.peer.me(), incarnation: self.incarnation });
        self.parts.log.flush();
        for event in std::mem::take(&mut self.parts.backlog) {
            self.on_net(event);
        }
        for command in std::mem::take(&mut self.parts.commands) {
            self.turn(Some(Input::Command(command)));
        }
    }

    async fn finish(&mut self) {
        self.note_traffic();
        self.parts.log.flush();
        let laying = std::mem::take(&mut self.laying);
        for writing in [self.saving.take(), self.marking.take()].into_iter().flatten().chain(laying) {
            let _ = writing.await;
        }
        if let Some(writing) = self.incarnating.take() {
            let _ = writing.await;
        }
        if let Some(next) = self.parts.peer.feed_next() {
            self.parts.mark.write(next);
        }
        if self.booked {
            write_book(&self.parts.home, &self.book);
        }
        self.show();
        // Nobody reads events any more: tasks of the network that wait for room in the channel must not, or none of them
        // could say goodbye.
        self.parts.net_events.close();
        self.parts.net.clone().shutdown().await;
    }

    /// One turn: one fact, and all that follows from it. No fact: the time alone.
    fn turn(&mut self, fact: Option<Input>) {
        self.now = self.parts.clock.now();
        self.utc = self.parts.clock.utc();
        self.again.push_back(fact.unwrap_or(Input::Tick { utc: self.utc }));
        while let Some(input) = self.again.pop_front() {
            self.parts.peer.handle(self.now, input, &mut self.out);
            while let Some(output) = self.out.pop() {
                self.perform(output);
            }
        }
        self.parts.log.flush();
    }

    pub(super) fn emit(&mut self, event: Event) {
        let record = self.parts.log.append(self.now, self.utc, event);
        // Nobody may be listening.
        let _ = self.parts.records.send(record);
    }

    // ---- time ------------------------------------------------------------------------------------------------------------

    fn on_tick(&mut self) {
        self.turn(None);
        self.go_on_with_sessions();
        self.note_feed();
        if self.now.since(self.shown) >= SHOW {
            self.show();
        }
        if self.now.since(self.noted) >= NOTE {
            self.noted = self.now;
            self.tell_addresses();
            self.note_traffic();
            self.parts.log.flush();
        }
        self.go_on_exporting();
        // At once: who is killed right after a meeting must find the other again where it is now.
        self.save_book();
        let every = self.parts.save_every;
        if !every.is_zero() && self.now.since(self.saved) >= every {
            self.saved = self.now;
            self.turn(Some(Input::Command(Command::Save)));
        }
    }

    /// Where a restart feeds on. As the book, by another thread.
    fn note_feed(&mut self) {
        let busy = self.marking.as_ref().is_some_and(|marking| !marking.is_finished());
        if busy || self.now.since(self.marked) < MARK {
            return;
        }
        let Some(next) = self.parts.peer.feed_next().filter(|next| self.parts.mark.is_news(*next)) else { return };
        self.marked = self.now;
        let mark = self.parts.mark.clone();
        self.marking = Some(spawn_blocking(move || mark.write(next)));
    }

    fn on_incarnation(&mut self, durable: Result<Incarnation, NodeError>) {
        match durable {
            Ok(incarnation) => {
                self.incarnation = incarnation;
                self.turn(Some(Input::Incarnated { incarnation }));
            }
            // Without it not a word may be said: to go on silently would look like a hang.
            Err(error) => self.end = Some(Err(error)),
        }
    }

    /// Totals go into the log; what the connections do, to the peer.
    fn note_traffic(&mut self) {
        let stats = self.parts.net.stats();
        for known in &stats.peers {
            if let (Some(round_trip), Some(bytes_per_s)) = (known.rtt, known.bytes_per_s) {
                let link = LinkSpeed { bytes_per_s, round_trip };
                self.turn(Some(Input::Measured { peer: known.peer, link }));
            }
        }
        for (i, lane) in Lane::ALL.into_iter().enumerate() {
            let total = (stats.sent[i], stats.received[i]);
            if self.traffic[i] != total {
                self.traffic[i] = total;
                self.emit(Event::Traffic { lane, sent: total.0, received: total.1 });
            }
        }
    }

    /// A disk may take seconds to sync, after which this peer would have to fence itself: another thread waits for it.
    fn save_book(&mut self) {
        let busy = self.saving.as_ref().is_some_and(|saving| !saving.is_finished());
        if busy || !std::mem::take(&mut self.booked) {
            return;
        }
        let (home, book) = (self.parts.home.clone(), self.book.clone());
        self.saving = Some(spawn_blocking(move || write_book(&home, &book)));
    }

    fn show(&mut self) {
        self.shown = self.now;
        let parts = &self.parts;
        let waiting = self.waiting.as_ref().filter(|(at, _)| self.now.since(*at) < WAITING);
        let (view, net) = (parts.peer.view(), parts.net.stats());
        let (in_blobs, at_work) = (parts.blobs.bytes_in_memory(), parts.worker.at_work());
        let memory = self.books.account(parts.memory, &parts.manifest, &view, at_work, in_blobs, net.receiving, held());
        let state = State {
            run: parts.run,
            name: parts.manifest.run.name.clone(),
            me: parts.peer.me(),
            incarnation: self.incarnation,
            uptime_ms: self.now.0 / 1_000_000,
            utc: self.utc.0,
            peer: view,
            net,
            addresses: self.addresses.clone(),
            reachability: self.reachability,
            work: Work { busy_ms: self.busy.as_millis() as u64, ..self.work },
            blobs: BlobState {
                handles: parts.blobs.held(),
                bytes: parts.blobs.bytes(),
                budget: parts.blobs.budget(),
                wrongs: parts.blobs.wrongs(),
            },
            memory,
            waiting: waiting.map(|(_, what)| what.clone()),
            generating: self.sessions.len(),
        };
        self.parts.state.send_replace(Some(state));
    }

    // ---- the worker and the person ---------------------------------------------------------------------------------------

    fn on_ran(&mut self, ran: Option<Ran>) {
        match ran {
            Some(Ran::Done { job, done, took }) => {
                self.work.jobs += 1;
                self.busy += took;
                if let Done::Inferred { outputs } = &done {
                    for why in outputs.iter().filter_map(|(_, output)| output.as_ref().err()) {
                        tracing::debug!(why, "a piece of a generation was not computed");
                    }
                }
                self.turn(Some(Input::Done { job, done }));
            }
            Some(Ran::Panicked { job, message }) => {
                tracing::error!(?job, message, "the worker stopped");
                self.end = Some(Err(NodeError::Bug(message)));
            }
            None => self.end = Some(Err(NodeError::Bug("the worker's thread is gone".into()))),
        }
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Command(command) => self.turn(Some(Input::Command(command))),
            Order::Generate { ask, reply } => {
                if let Some(next) = self.sessions.ask(self.now, ask, reply) {
                    self.go_on(next);
                }
            }
            Order::Export { notes, reply } => {
                self.exports.ask(notes, reply);
                self.go_on_exporting();
            }
            Order::Stop => self.end = Some(Ok(Ended::Stopped)),
            Order::Settle { reply } => drop(reply.send(())),
        }
    }

    /// Ends the export that nobody waits for any more, and begins the one whose turn it is.
    fn go_on_exporting(&mut self) {
        if let Some(request) = self.exports.abandoned() {
            self.turn(Some(Input::Command(Command::ExportEnd { request })));
        }
        if let Some(request) = self.exports.begin() {
            self.turn(Some(Input::Command(Command::Export { request })));
        }
    }

    fn on_added(&mut self, request: Option<u64>) {
        if let Some(request) = request {
            self.turn(Some(Input::Command(Command::ExportNext { request })));
        }
        self.go_on_exporting();
    }

    fn go_on_with_sessions(&mut self) {
        for next in self.sessions.on_tick(self.now) {
            self.go_on(next);
        }
    }

    fn go_on(&mut self, next: Next) {
        let begun = match &next {
            Next::Start { session, .. } => Some(*session),
            Next::Go { .. } | Next::Close { .. } => None,
        };
        let command = self.command_of(next);
        self.turn(Some(Input::Command(command)));
        if let Some((session, route)) =
            begun.and_then(|session| Some((session, self.parts.peer.generation_route(session)?.to_vec())))
        {
            self.sessions.on_route(session, route);
        }
    }

    pub(super) fn command_of(&mut self, next: Next) -> Command {
        match next {
            Next::Start { session, tokens, without, apart } => {
                let tokens = self.parts.blobs.put(bytes_of(&tokens), Kind::Work);
                Command::Generate { session, tokens, without, apart }
            }
            Next::Go { session, token } => {
                Command::GenerateNext { session, tokens: self.parts.blobs.put(bytes_of(&[token]), Kind::Work) }
            }
            Next::Close { session } => Command::GenerateClose { session },
        }
    }

    // ---- the network -----------------------------------------------------------------------------------------------------

    fn on_net(&mut self, event: NetEvent) {
        match event {
            NetEvent::Up { peer, path, address } => {
                self.parts.admission.up(peer, network(path, &address));
                self.book.met(peer, &address, self.parts.clock.utc());
                self.booked = true;
                self.turn(Some(Input::PeerUp { peer }));
            }
            NetEvent::Lost { peer, why } => {
                self.parts.gate.lost(peer);
                self.parts.admission.lost(peer);
                if why.ends_with(FULL) {
                    let what = "a place: the run is full".to_string();
                    self.waiting = Some((self.now, what.clone()));
                    self.emit(Event::Waiting { what });
                }
                self.turn(Some(Input::PeerLost { peer, why }));
            }
            NetEvent::Message { from, lane, frame, body, room } => {
                self.on_message(from, lane, &frame, body);
                // The body lies in the store by now, and is counted there.
                drop(room);
            }
            NetEvent::Delivered { peer, lane, frame } => self.on_delivered(peer, lane, &frame),
            NetEvent::Refused { peer, lane, frame, code } => self.on_refused(peer, lane, &frame, code),
            NetEvent::Found { request, peers, done } => {
                let written = |addresses: Vec<Multiaddr>| addresses.iter().map(ToString::to_string).collect();
                let peers = peers.into_iter().map(|(peer, addresses)| (peer, written(addresses))).collect();
                self.turn(Some(Input::Found { request, peers, last: done }));
            }
            // Found by chance rather than by asking: the machine decides whether to meet it.
            NetEvent::Lan { peer, address } => {
                let peers = vec![(peer, vec![address.to_string()])];
                self.turn(Some(Input::Found { request: 0, peers, last: true }));
            }
            NetEvent::Listening { .. } => self.tell_addresses(),
            NetEvent::Reachability(reachability) => {
                self.reachability = reachability;
                self.tell_addresses();
            }
            NetEvent::DialFailed { peer, address, why } => tracing::debug!(?peer, address, why, "not reached"),
            NetEvent::Moved { peer, path, address } => self.parts.admission.up(peer, network(path, &address)),
            NetEvent::Writable { .. } | NetEvent::Provided { .. } => {}
        }
    }

    fn tell_addresses(&mut self) {
        let addresses: Vec<String> = self.parts.net.addresses().iter().map(ToString::to_string).collect();
        if addresses != self.addresses {
            self.addresses = addresses.clone();
            self.turn(Some(Input::Addresses(addresses)));
        }
    }

    fn on_message(&mut self, from: PeerId, lane: Lane, bytes: &[u8], body: Option<Bytes>) {
        let frame = match Frame::decode(bytes) {
            Ok(frame) => frame,
            Err(error) => return self.blame(from, Severity::Hostile, error.to_string()),
        };
        // The gate has judged bodies; a frame without one was not shown to it.
        let fits = self
            .parts
            .shapes
            .of(&frame)
            .is_some_and(|shape| shape.lane == lane && (body.is_some() || shape.body == Body::None));
        if !fits {
            return self.blame(
                from,
                Severity::Wrong,
                "a frame on another lane than its own, or without its body".into(),
            );
        }
        if let Frame::Hello(hello) = &frame {
            if let Err(why) = self.admit(from, hello) {
                return self.parts.net.turn_away(from, why);
            }
            self.parts.gate.heard(from, hello, self.parts.run);
        }
        let kind = admit::kind_of(&frame);
        let body = body.map(|bytes| self.parts.blobs.put(bytes, kind));
        self.turn(Some(Input::Frame { from, frame, body }));
    }

    /// Whether a peer that wants to take part may.
    fn admit(&mut self, from: PeerId, words: &hello::Frame) -> Result<(), &'static str> {
        let wants = match words {
            hello::Frame::Hello(hello) => hello.run == self.parts.run,
            hello::Frame::WantManifest(run) => *run == self.parts.run,
            hello::Frame::Manifest(_) | hello::Frame::Unknown(_) | hello::Frame::Fence(_) | hello::Frame::Goodbye => {
                false
            }
        };
        if !wants {
            return Ok(());
        }
        let members = self.parts.peer.view().peers;
        self.parts.admission.admit(from, members.into_iter().map(|member| member.peer))
    }

    pub(super) fn blame(&mut self, peer: PeerId, severity: Severity, why: String) {
        self.parts.net.penalise(peer, severity);
        self.emit(Event::Penalised { peer, severity, why });
    }

    fn on_delivered(&mut self, peer: PeerId, lane: Lane, bytes: &[u8]) {
        if let Ok(Frame::Flow(frame)) = Frame::decode(bytes)
            && let Some(about) = frame.body_of()
        {
            self.turn(Some(Input::Delivered { peer, lane, about }));
        }
    }

    /// The other side's gate did not take a body. What it would have said, had it read the message, is said in its place.
    fn on_refused(&mut self, peer: PeerId, lane: Lane, bytes: &[u8], code: Code) {
        tracing::debug!(%peer, ?lane, words = code.words(), "a body was refused");
        let Ok(frame) = Frame::decode(bytes) else { return };
        match answer_of(frame, code) {
            Answer::Frame(frame) => self.turn(Some(Input::Frame { from: peer, frame: *frame, body: None })),
            Answer::Chunk(request) => self.turn(Some(Input::ChunkRefused { peer, request })),
            Answer::Hangup => self.parts.net.hangup(peer),
            Answer::Nothing => {}
        }
    }
}

/// The network that a connection comes from; nothing for one that does not count, or that a relay hides.
fn network(path: Path, address: &str) -> Option<IpAddr> {
    let address: Multiaddr = address.parse().ok().filter(|_| path != Path::Relay)?;
    gate::subnet(net::address::ip_of(&address)?)
}

/// What a refused body means to its sender.
#[derive(Debug, PartialEq)]
enum Answer {
    Frame(Box<Frame>),
    /// This request gets no state.
    Chunk(u64),
    /// Nothing repairs it but a new connection.
    Hangup,
    Nothing,
}

fn answer_of(frame: Frame, code: Code) -> Answer {
    let say = |frame| Answer::Frame(Box::new(frame));
    match frame {
        Frame::Flow(flow::Frame::Forward(forward)) => {
            let why = if code == Code::Busy { flow::Why::Busy } else { flow::Why::NotServing };
            let flow::Forward { id, attempt, stage, .. } = forward;
            say(Frame::Flow(flow::Frame::Declined(flow::Declined { id, attempt, stage, why })))
        }
        // A gradient has one way only: its loss is repaired as the loss of the peer.
        Frame::Flow(flow::Frame::Backward(_)) => Answer::Hangup,
        Frame::Average(average::Frame::Tensors(terms)) => say(Frame::Average(average::Frame::Abort(terms.name))),
        Frame::Generate(generate::Frame::Infer(infer)) => say(Frame::Generate(generate::Frame::Lost(infer.session))),
        Frame::State(state::Frame::Chunk(chunk)) => Answer::Chunk(chunk.request),
        // Labels are asked for again, and whoever does not want the logits has stopped reading.
        _ => Answer::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_protocol::{Attempt, MicroBatchId, wire::Starts};

    #[test]
    fn a_refused_forward_is_a_decline_of_the_same_attempt() {
        let id = MicroBatchId { feeder: PeerId([1; 32]), incarnation: 1, step: 2, index: 3 };
        let attempt = Attempt::first(4).hop(5);
        let forward = flow::Forward {
            id,
            attempt: attempt.clone(),
            stage: 6,
            samples: 7,
            close: false,
            hint: None,
            starts: Starts::default(),
            held_out: false,
        };
        let frame = Frame::Flow(flow::Frame::Forward(forward));
        for (code, why) in [(Code::Busy, flow::Why::Busy), (Code::NotWanted, flow::Why::NotServing)] {
            let declined = flow::Declined { id, attempt: attempt.clone(), stage: 6, why };
            let expected = Frame::Flow(flow::Frame::Declined(declined));
            assert_eq!(answer_of(frame.clone(), code), Answer::Frame(Box::new(expected)));
        }
    }
}
