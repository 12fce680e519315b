//! One peer, its worker at hand, among others that say whatever a test has them say.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use skein_pipeline::{
    flow::coding::Costs,
    job::{Coding, Done, Job, Piece},
    peer::{
        Peer, PeerConfig,
        io::{Command, Input, Output},
    },
};
use skein_protocol::{
    Attempt, Blob, Instant, JobId, Machine, Manifest, MicroBatchId, Outbox, PeerId, RunId, Stage, Utc, Version,
    codec::Sample,
    event::Event,
    hash::Digest,
    key::Key,
    run::{Codec, PROTOCOL},
    wire::{
        Frame, Starts, flow, hello,
        membership::{Held, Item, Offer, Progress, StageOffer, Stamp, State, What},
        spread, state,
    },
};

const TICK: Duration = Duration::from_millis(100);

/// The peer with number `n`; 1 owns the run and may feed it.
pub fn key(n: u8) -> Key {
    Key::from_secret([n; 32])
}

pub fn id(n: u8) -> PeerId {
    key(n).peer()
}

/// The `index`-th micro-batch of the first step of the owner.
pub fn batch(index: u16) -> MicroBatchId {
    MicroBatchId { feeder: id(1), incarnation: 1, step: 0, index }
}

/// A forward of an honest sender.
pub fn forward(index: u16, stage: Stage) -> flow::Forward {
    let attempt = (0..stage).fold(Attempt::first(0), |attempt, _| attempt.hop(0));
    flow::Forward {
        id: batch(index),
        attempt,
        stage,
        samples: 0,
        close: false,
        hint: None,
        starts: Starts::default(),
        held_out: false,
    }
}

pub struct One {
    me: u8,
    peer: Peer,
    now: Instant,
    sequence: u32,
    next_blob: u64,
    /// Handles that the peer owes a release.
    pub held: BTreeMap<u64, u64>,
    pub jobs: VecDeque<(JobId, Job)>,
    pub said: Vec<(PeerId, Frame)>,
    pub blamed: Vec<PeerId>,
    pub events: Vec<Event>,
    /// What it wants to be compared with its hash.
    pub shelving: Vec<Digest>,
    /// Sessions of generation that were lost.
    pub lost: Vec<u64>,
    /// No state that the worker is given is what it was said to be.
    pub loads_nothing: bool,
}

impl One {
    /// Peer `me` of a run, connected to peers that have said hello.
    pub fn new(manifest: Manifest, me: u8, others: &[u8]) -> Self {
        One::with_memory(manifest, me, others, 1 << 40)
    }

    /// As `new`, of one that gives so many bytes for stages.
    pub fn with_memory(manifest: Manifest, me: u8, others: &[u8], memory: u64) -> Self {
        let mut one = One::of(One::config(manifest, me, memory));
        for other in others {
            one.meets(*other, one.utc());
        }
        one.wait(Duration::from_secs(1));
        one
    }

    pub fn config(manifest: Manifest, me: u8, memory: u64) -> PeerConfig {
        PeerConfig {
            key: key(me),
            run: RunId::default(),
            manifest: Arc::new(manifest),
            manifest_bytes: vec![],
            incarnation: 1,
            seed: 7,
            memory,
            disk: 1 << 30,
            addresses: vec![],
            feed_from: 0,
            held_out: Default::default(),
            saved: vec![],
            shelf: vec![],
            costs: Costs::default(),
            expects_others: true,
        }
    }

    /// One that has met nobody and was told no time.
    pub fn of(config: PeerConfig) -> Self {
        let me = (1..=99).find(|me| key(*me).peer() == config.me()).expect("one of the test's keys");
        let held = config.saved.iter().map(|saved| (saved.blob.id, saved.blob.len)).collect();
        One {
            me,
            peer: Peer::new(config, Instant(1), Utc(1_000_000)),
            now: Instant(1),
            sequence: 0,
            next_blob: 0,
            held,
            jobs: VecDeque::new(),
            said: Vec::new(),
            blamed: Vec::new(),
            events: Vec::new(),
            shelving: Vec::new(),
            lost: Vec::new(),
            loads_nothing: false,
        }
    }

    /// As `new`, and serves these stages.
    pub fn serving(manifest: Manifest, me: u8, others: &[u8], stages: &[Stage]) -> Self {
        let mut one = One::new(manifest, me, others);
        one.serves(stages);
        one
    }

    /// It is told to serve these, and does.
    pub fn serves(&mut self, stages: &[Stage]) {
        for stage in stages {
            self.fact(Input::Command(Command::Host { stage: *stage }));
        }
        self.work();
        assert_eq!(self.count(|event| matches!(event, Event::Serving { .. })), stages.len());
        self.said.clear();
    }

    /// A connection to another peer, which says hello by its own clock.
    pub fn meets(&mut self, other: u8, utc: Utc) {
        self.fact(Input::PeerUp { peer: id(other) });
        let hello = hello::Hello { run: RunId::default(), protocol: PROTOCOL, incarnation: 1, utc, token: None };
        self.hear(other, Frame::Hello(hello::Frame::Hello(hello)), None);
    }

    pub fn loses(&mut self, other: u8) {
        self.fact(Input::PeerLost { peer: id(other), why: "silent".into() });
    }

    pub fn utc(&self) -> Utc {
        Utc(1_000_000 + self.now.0 / 1_000_000)
    }

    pub fn command(&mut self, command: Command) {
        self.fact(Input::Command(command));
    }

    /// A frame of another peer, with a body of `len` bytes.
    pub fn hear(&mut self, from: u8, frame: Frame, len: Option<u64>) {
        let frame = Frame::decode(&frame.encode()).expect("a frame reads back");
        let body = len.map(|len| self.blob(len));
        self.fact(Input::Frame { from: id(from), frame, body });
    }

    pub fn hear_flow(&mut self, from: u8, frame: flow::Frame, len: Option<u64>) {
        self.hear(from, Frame::Flow(frame), len);
    }

    pub fn hear_state(&mut self, from: u8, frame: state::Frame, len: Option<u64>) {
        self.hear(from, Frame::State(frame), len);
    }

    /// Another peer offers a stage, at a version.
    pub fn offers(&mut self, from: u8, stage: Stage, state: State, round: u32, own_step: u32) {
        let offer = StageOffer { stage, state, round, own_step, speed_milli: 0, carries_milli: 0 };
        self.hear_item(from, What::Offer(Offer { stages: vec![offer], ..Offer::default() }));
    }

    /// `from` passes on that another peer serves a stage.
    pub fn passes_on(&mut self, from: u8, author: u8, stage: Stage) {
        let offer =
            StageOffer { stage, state: State::Serving, round: 0, own_step: 5, speed_milli: 0, carries_milli: 0 };
        self.hear_item_by(from, author, What::Offer(Offer { stages: vec![offer], ..Offer::default() }));
    }

    fn hear_item(&mut self, from: u8, what: What) {
        self.hear_item_by(from, from, what);
    }

    fn hear_item_by(&mut self, from: u8, author: u8, what: What) {
        self.sequence += 1;
        let stamp = Stamp { incarnation: 1, sequence: self.sequence };
        let item = Item { run: RunId::default(), stamp, made_at: self.utc(), life_ms: 60_000, what };
        let items = vec![item.sign(&key(author)).into()];
        self.hear(from, Frame::Spread(spread::Frame::Items(spread::Items { items })), None);
    }

    /// Another peer holds a snapshot.
    pub fn holds(&mut self, from: u8, version: Version) {
        self.hear_item(from, What::Held(Held { version, root: Digest([9; 32]), len: 1000 }));
    }

    /// The feeder says that all below this position is over, and how many samples it completed.
    pub fn progress(&mut self, low: u64, samples: u64) {
        let what = What::Progress(Progress {
            low,
            above: Vec::new().into(),
            samples,
            loss_milli: None,
            open: 0,
            held_out_milli: None,
        });
        self.hear_item(1, what);
    }

    pub fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            let utc = self.utc();
            self.fact(Input::Tick { utc });
        }
    }

    fn blob(&mut self, len: u64) -> Blob {
        self.next_blob += 1;
        self.held.insert(self.next_blob, len);
        Blob { id: self.next_blob, len }
    }

    /// Ends jobs until there are none.
    pub fn work(&mut self) {
        while let Some((job, spec)) = self.jobs.pop_front() {
            let done = self.done(&spec);
            self.fact(Input::Done { job, done });
        }
    }

    pub fn done(&mut self, spec: &Job) -> Done {
        let (coding, sample) = (Coding { codec: Codec::Bf16, zstd: false }, Sample::default());
        match spec {
            Job::Forward { .. } => Done::Forwarded { output: self.blob(1000), coding, raw: 2000, sample },
            Job::Loss { stage, .. } | Job::Backward { stage, .. } => {
                let gradient = (*stage > 0).then(|| self.blob(1000));
                Done::Backed { gradient, coding, raw: 2000, sample, loss: 32.0, tokens: 32 }
            }
            Job::Step { .. } => Done::Stepped { lr: 1e-3, gradient_norm: 1.0, run_step: 0 },
            Job::State { .. } | Job::RoundSnapshot { .. } => {
                Done::Encoded { blob: self.blob(1000), root: Digest([3; 32]) }
            }
            Job::RoundPrepare { .. } => Done::Prepared { before: 0.1, after: 0.05 },
            Job::Load { .. } if self.loads_nothing => Done::BadInput { why: "its root is another".into() },
            Job::Load { root, stage, .. } => Done::Loaded {
                version: Version { stage: *stage, own_step: u32::from(root.0[0]), ..Version::default() },
            },
            Job::Save { .. } => Done::Saved { root: Digest([4; 32]), bytes: 1 },
            Job::Infer { pieces, .. } => {
                let output = |piece: &Piece| (piece.session, Ok(self.blob(1024)));
                Done::Inferred { outputs: pieces.iter().map(output).collect() }
            }
            _ => Done::Ok,
        }
    }

    pub fn fact(&mut self, input: Input) {
        let mut out = Outbox::new();
        self.peer.handle(self.now, input, &mut out);
        let mut mine = Vec::new();
        while let Some(output) = out.pop() {
            match output {
                Output::Send { to, frame, body, .. } => {
                    let held = body.is_none_or(|blob| self.held.contains_key(&blob.id));
                    assert!(held, "sends a handle it does not hold: {frame:?}");
                    if to == id(self.me) {
                        let body = body.map(|blob| self.blob(blob.len));
                        mine.push(Input::Frame { from: to, frame, body });
                    } else {
                        self.said.push((to, frame));
                    }
                }
                Output::Compute { job, job_spec } => self.jobs.push_back((job, job_spec)),
                Output::Records { request, .. } => {
                    let (tokens, labels) = (self.blob(128), self.blob(128));
                    mine.push(Input::Records { request, tokens, labels, starts: Starts::default() });
                }
                Output::Slice { new, .. } => drop(self.held.insert(new.id, new.len)),
                Output::Release { blob } => {
                    assert!(self.held.remove(&blob.id).is_some(), "releases {blob:?} twice");
                }
                Output::Shelve { blob, .. } => self.shelving.push(blob),
                Output::Blame { peer, .. } => self.blamed.push(peer),
                Output::Emit(event) => self.events.push(event),
                Output::Generated { session, logits: None } => self.lost.push(session),
                Output::Generated { logits: Some(blob), .. } => drop(self.held.remove(&blob.id)),
                _ => {}
            }
        }
        mine.into_iter().for_each(|input| self.fact(input));
    }

    pub fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| wanted(event)).count()
    }

    /// What was said to a peer.
    pub fn said_to(&self, peer: u8) -> impl Iterator<Item = &Frame> {
        self.said.iter().filter(move |(to, _)| *to == id(peer)).map(|(_, frame)| frame)
    }
}
