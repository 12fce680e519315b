//! Peers with a fixed delay between them, a worker that computes nothing, and the books of what became of each id.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use skein_pipeline::{
    flow::{coding::Costs, held_out::HeldOut},
    job::{Coding, Done, Job, Piece},
    peer::{
        Peer, PeerConfig,
        io::{Command, Input, Output},
        view::View,
    },
};
use skein_protocol::{
    Blob, Instant, JobId, Machine, Manifest, MicroBatchId, Outbox, PeerId, RunId, Stage, Utc, Version, codec::Sample,
    event::Event, hash::Digest, key::Key, run::Codec, wire::Starts,
};

const DELAY: Duration = Duration::from_millis(2);
const DEATH_NOTICED: Duration = Duration::from_millis(1600);

pub fn manifest(stages: u16, per_step: u32) -> Manifest {
    let owner = Key::from_secret([1; 32]).peer();
    let text = format!(
        r#"
        [run]
        name = "test"
        protocol = 1
        owner = "{owner}"
        [model]
        family = "llama"
        config = {{ hidden = 32, layers = {stages}, heads = 2, kv_heads = 2, ffn = 64, vocab = 256, context = 64 }}
        weights = {{ init_seed = 1 }}
        [stages]
        count = {stages}
        split = {split:?}
        [train]
        sequence = 16
        micro_batch = 2
        micro_batches_per_step = {per_step}
        in_flight_max = 12
        [optimizer]
        lr = 1e-3
        [staleness]
        bound = 8
        [averaging]
        every = 5
        [codecs]
        forward = ["int8"]
        backward = ["bf16"]
        [data]
        [admission]
        [privacy]
        [checkpoint]
        every = 20
        "#,
        split = vec![1; usize::from(stages)],
    );
    toml::from_str(&text).expect("the test's manifest is well formed")
}

enum What {
    Tick,
    Deliver { from: PeerId, input: Input },
    Finish { job: JobId, done: Done },
    Lost { peer: PeerId },
    Up { peer: PeerId },
}

struct Node {
    peer: Peer,
    blobs: BTreeMap<u64, u64>,
    next_blob: u64,
    /// When its worker is free.
    free: Instant,
    alive: bool,
    awake: bool,
    /// Stopped by the system until then: inputs wait.
    suspended: Option<Instant>,
    events: Vec<Event>,
    /// Stage of each forward that its worker was asked for, and where its records begin.
    forwards: Vec<(Stage, Starts)>,
    /// What its device makes of a job, where it is not what it should.
    fault: Option<Fault>,
}

/// Where records begin in the `index`-th micro-batch of a feeder: no two are alike, and the first is not packed.
pub fn starts(index: u64) -> Starts {
    let places = (0..30u32).filter(|bit| index >> bit & 1 == 1).map(|bit| bit + 1 + bit / 15);
    Starts::from(places.collect::<Vec<_>>())
}

/// Takes the place of the answer to a job.
pub type Fault = fn(&Job) -> Option<Done>;

pub struct World {
    now: Instant,
    nodes: Vec<Node>,
    ids: BTreeMap<PeerId, usize>,
    queue: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    whats: BTreeMap<u64, What>,
    sequence: u64,
    links: BTreeSet<(usize, usize)>,
    manifest: Arc<Manifest>,
    /// Versions of the states that were encoded, by root.
    states: BTreeMap<Digest, Version>,
    /// Micro-batches of data that there are; nothing: no end.
    pub records: Option<u64>,
    /// Jobs of which nothing was to be added to a sum.
    pub weightless: usize,
}

impl World {
    pub fn new(manifest: Manifest, peers: usize, seed: u64) -> Self {
        World::with_held_out(manifest, peers, seed, HeldOut::default())
    }

    /// Of what is fed some is only measured.
    pub fn with_held_out(manifest: Manifest, peers: usize, seed: u64, held_out: HeldOut) -> Self {
        let manifest = Arc::new(manifest);
        let mut world = World {
            now: Instant(1),
            nodes: Vec::new(),
            ids: BTreeMap::new(),
            queue: BinaryHeap::new(),
            whats: BTreeMap::new(),
            sequence: 0,
            links: BTreeSet::new(),
            manifest: manifest.clone(),
            states: BTreeMap::new(),
            records: None,
            weightless: 0,
        };
        for i in 0..peers {
            let key = Key::from_secret([i as u8 + 1; 32]);
            let config = PeerConfig {
                key: key.clone(),
                run: RunId::default(),
                manifest: manifest.clone(),
                manifest_bytes: vec![],
                incarnation: 1,
                seed,
                memory: 1 << 40,
                disk: 1 << 40,
                addresses: vec![format!("sim/{i}")],
                feed_from: 0,
                held_out,
                saved: vec![],
                shelf: vec![],
                costs: Costs::default(),
                expects_others: peers > 1 && i > 0,
            };
            world.ids.insert(key.peer(), i);
            world.nodes.push(Node {
                peer: Peer::new(config, Instant(1), Utc(1_000_000)),
                blobs: BTreeMap::new(),
                next_blob: 0,
                free: Instant(1),
                alive: true,
                awake: true,
                suspended: None,
                events: Vec::new(),
                forwards: Vec::new(),
                fault: None,
            });
            world.after(Duration::from_millis(i as u64), i, What::Tick);
        }
        for a in 0..peers {
            for b in 0..a {
                world.connect(a, b);
            }
        }
        world
    }

    /// Not there yet: it hears nothing until it wakes.
    pub fn asleep(&mut self, i: usize) {
        self.nodes[i].awake = false;
    }

    pub fn wake(&mut self, i: usize) {
        self.nodes[i].awake = true;
        for other in 0..self.nodes.len() {
            if other != i {
                self.connect(i, other);
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        if !(self.nodes[a].awake && self.nodes[b].awake) {
            return;
        }
        self.links.insert((a.min(b), a.max(b)));
        let (pa, pb) = (self.nodes[a].peer.me(), self.nodes[b].peer.me());
        self.after(DELAY, a, What::Deliver { from: pb, input: Input::PeerUp { peer: pb } });
        self.after(DELAY, b, What::Deliver { from: pa, input: Input::PeerUp { peer: pa } });
    }

    fn after(&mut self, delay: Duration, node: usize, what: What) {
        self.sequence += 1;
        self.whats.insert(self.sequence, what);
        self.queue.push(Reverse((self.now + delay, self.sequence, node)));
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(Reverse((at, sequence, node))) = self.queue.peek().copied() {
            if at > end {
                break;
            }
            self.queue.pop();
            self.now = at;
            let Some(what) = self.whats.remove(&sequence) else { continue };
            if let Some(until) = self.nodes[node].suspended.filter(|until| at < *until) {
                self.after(until.since(at), node, what);
                continue;
            }
            if !self.nodes[node].alive {
                continue;
            }
            match what {
                What::Tick => {
                    self.after(Duration::from_millis(100), node, What::Tick);
                    if self.nodes[node].awake {
                        let utc = Utc(1_000_000 + at.0 / 1_000_000);
                        self.handle(node, Input::Tick { utc });
                    }
                }
                What::Deliver { from, input } => {
                    let other = self.ids[&from];
                    let linked = other == node || self.links.contains(&(node.min(other), node.max(other)));
                    if linked && self.nodes[node].awake {
                        self.handle(node, input);
                    }
                }
                What::Finish { job, done } => self.handle(node, Input::Done { job, done }),
                What::Up { peer } => self.handle(node, Input::PeerUp { peer }),
                What::Lost { peer } => self.handle(node, Input::PeerLost { peer, why: "silent".into() }),
            }
        }
        self.now = end;
    }

    fn command(&mut self, node: usize, command: Command) {
        self.handle(node, Input::Command(command));
    }

    pub fn command_join(&mut self, node: usize) {
        self.command(node, Command::Join);
    }

    pub fn command_host(&mut self, node: usize, stage: Stage) {
        self.command(node, Command::Host { stage });
    }

    pub fn command_feed(&mut self, node: usize) {
        self.command(node, Command::Feed);
    }

    pub fn command_stop_feeding(&mut self, node: usize) {
        self.command(node, Command::StopFeeding);
    }

    pub fn command_drain(&mut self, node: usize) {
        self.command(node, Command::Drain);
    }

    /// From now on its device fails so; nothing: it is well again.
    pub fn break_device(&mut self, node: usize, fault: Option<Fault>) {
        self.nodes[node].fault = fault;
    }

    pub fn kill(&mut self, node: usize) {
        self.nodes[node].alive = false;
        let dead = self.nodes[node].peer.me();
        for other in 0..self.nodes.len() {
            if self.links.remove(&(node.min(other), node.max(other))) {
                self.after(DEATH_NOTICED, other, What::Lost { peer: dead });
            }
        }
    }

    /// Stops a process for a while: its connections die at the others, and it learns of it when it goes on.
    pub fn suspend(&mut self, node: usize, time: Duration) {
        self.nodes[node].suspended = Some(self.now + time);
        let me = self.nodes[node].peer.me();
        for other in 0..self.nodes.len() {
            if other != node && self.links.contains(&(node.min(other), node.max(other))) {
                let peer = self.nodes[other].peer.me();
                self.after(DEATH_NOTICED, other, What::Lost { peer: me });
                self.after(time, node, What::Lost { peer });
                self.after(time + 2 * DELAY, other, What::Up { peer: me });
                self.after(time + 2 * DELAY, node, What::Up { peer });
            }
        }
    }

    fn handle(&mut self, node: usize, input: Input) {
        let mut out = Outbox::new();
        let now = self.now;
        self.nodes[node].peer.handle(now, input, &mut out);
        while let Some(output) = out.pop() {
            self.perform(node, output);
        }
    }

    fn perform(&mut self, node: usize, output: Output) {
        let me = self.nodes[node].peer.me();
        match output {
            Output::Send { to, lane, frame, body } => {
                let other = self.ids[&to];
                if let skein_protocol::wire::Frame::Flow(frame) = &frame
                    && let Some(about) = frame.body_of()
                {
                    let input = Input::Delivered { peer: to, lane, about };
                    self.after(2 * DELAY, node, What::Deliver { from: to, input });
                }
                let frame = skein_protocol::wire::Frame::decode(&frame.encode()).expect("a frame reads back");
                let body = body.map(|blob| {
                    assert!(self.nodes[node].blobs.contains_key(&blob.id), "sends a blob it does not have");
                    self.blob(other, blob.len)
                });
                self.after(DELAY, other, What::Deliver { from: me, input: Input::Frame { from: me, frame, body } });
            }
            Output::Compute { job, job_spec } => self.compute(node, job, job_spec),
            Output::Records { index, .. } if self.records.is_some_and(|end| index >= end) => {
                let input = Input::RecordsEnded;
                self.after(Duration::from_millis(1), node, What::Deliver { from: me, input });
            }
            Output::Records { request, index } => {
                let len = 2 * 16 * 4;
                let (tokens, labels) = (self.blob(node, len), self.blob(node, len));
                let input = Input::Records { request, tokens, labels, starts: starts(index) };
                self.after(Duration::from_millis(1), node, What::Deliver { from: me, input });
            }
            Output::Incarnation => {
                let input = Input::Incarnated { incarnation: 2 };
                self.after(Duration::from_millis(1), node, What::Deliver { from: me, input });
            }
            Output::Slice { blob, new, .. } => {
                assert!(self.nodes[node].blobs.contains_key(&blob.id), "slices a blob it does not have");
                self.nodes[node].blobs.insert(new.id, new.len);
            }
            Output::Release { blob } => {
                assert!(self.nodes[node].blobs.remove(&blob.id).is_some(), "released twice: {blob:?}");
            }
            Output::Blame { peer, why, .. } => panic!("an honest peer was blamed: {peer}: {why}"),
            Output::Emit(event) => self.nodes[node].events.push(event),
            Output::Hangup { .. } => panic!("a hang-up in a world without reasons"),
            Output::Dial { .. }
            | Output::Provide { .. }
            | Output::Lookup { .. }
            | Output::Active { .. }
            | Output::Exported { .. }
            | Output::Held { .. }
            | Output::Shelve { .. }
            | Output::Generated { .. }
            | Output::Drained => {}
        }
    }

    fn blob(&mut self, node: usize, len: u64) -> Blob {
        let node = &mut self.nodes[node];
        node.next_blob += 1;
        node.blobs.insert(node.next_blob, len);
        Blob { id: node.next_blob, len }
    }

    fn compute(&mut self, node: usize, job: JobId, spec: Job) {
        let (coding, sample) = (Coding { codec: Codec::Bf16, zstd: false }, Sample::default());
        if let Job::Loss { weight, .. } | Job::Backward { weight, .. } = &spec {
            self.weightless += usize::from(*weight == 0.0);
        }
        if let Job::Forward { stage, starts, .. } | Job::Loss { stage, starts, .. } = &spec {
            self.nodes[node].forwards.push((*stage, starts.clone()));
        }
        let fault = self.nodes[node].fault.and_then(|fault| fault(&spec));
        let (ms, done) = match spec {
            _ if fault.is_some() => (5, fault.unwrap_or(Done::Ok)),
            Job::Forward { .. } => (10, Done::Forwarded { output: self.blob(node, 1000), coding, raw: 2000, sample }),
            Job::Loss { .. } | Job::Backward { .. } => {
                let gradient = (spec.stage() > 0).then(|| self.blob(node, 1000));
                (20, Done::Backed { gradient, coding, raw: 2000, sample, loss: 32.0, tokens: 32 })
            }
            Job::Step { .. } => (3, Done::Stepped { lr: 1e-3, gradient_norm: 1.0, run_step: 0 }),
            Job::State { version, .. } => {
                let root = Digest::default();
                let root = Digest(std::array::from_fn(|i| root.0[i] ^ self.states.len().to_le_bytes()[i % 8]));
                self.states.insert(root, version);
                (5, Done::Encoded { blob: self.blob(node, 9 << 10), root })
            }
            Job::Load { root, .. } => (1, Done::Loaded { version: self.states[&root] }),
            Job::RoundSnapshot { .. } => (5, Done::Encoded { blob: self.blob(node, 9 << 10), root: Digest([3; 32]) }),
            Job::RoundPrepare { .. } => (5, Done::Prepared { before: 0.1, after: 0.05 }),
            Job::Save { .. } => (5, Done::Saved { root: Digest([4; 32]), bytes: 1 }),
            Job::Infer { pieces, .. } => {
                let output = |piece: &Piece| (piece.session, Ok(self.blob(node, 1024)));
                (1, Done::Inferred { outputs: pieces.iter().map(output).collect() })
            }
            _ => (1, Done::Ok),
        };
        let start = self.nodes[node].free.max(self.now);
        let end = start + Duration::from_millis(ms);
        self.nodes[node].free = end;
        self.after(end.since(self.now), node, What::Finish { job, done });
    }

    /// How often the workers of a stage were asked for a forward whose records begin at `starts`.
    pub fn forwards(&self, stage: Stage, starts: &Starts) -> usize {
        let all = self.nodes.iter().flat_map(|node| &node.forwards);
        all.filter(|(of, at)| *of == stage && at == starts).count()
    }

    /// Nobody holds more blobs than the window explains.
    pub fn assert_bounded(&self) {
        for (i, node) in self.nodes.iter().enumerate() {
            assert!(node.blobs.len() < 60, "peer {i} holds {} blobs", node.blobs.len());
        }
    }

    /// Of the events that are wanted, of all peers.
    pub fn ids(&self, wanted: impl Fn(&Event) -> bool) -> BTreeSet<MicroBatchId> {
        let events = self.nodes.iter().flat_map(|node| &node.events).filter(|event| wanted(event));
        let id = |event: &Event| match event {
            Event::Measured { id, .. }
            | Event::Completed { id, .. }
            | Event::Added { id, .. }
            | Event::Refused { id, .. } => *id,
            other => panic!("{other:?} is of no id"),
        };
        events.map(id).collect()
    }

    pub fn view(&self, node: usize) -> View {
        self.nodes[node].peer.view()
    }

    pub fn count(&self, wanted: impl Fn(&Event) -> bool + Copy) -> usize {
        (0..self.nodes.len()).map(|node| self.count_of(node, wanted)).sum()
    }

    pub fn count_of(&self, node: usize, wanted: impl Fn(&Event) -> bool) -> usize {
        self.nodes[node].events.iter().filter(|event| wanted(event)).count()
    }

    /// Each completed id was added at every stage of its path, by no replica twice, and by no second replica that lives.
    pub fn assert_exact(&self) {
        assert_eq!(self.assert_none_lost(), 0, "ids are in the sums of two living replicas of one stage");
    }

    /// Each completed id was added at every stage of its path. Returns how many are in the weights of a second living replica.
    pub fn assert_none_lost(&self) -> usize {
        let mut added: BTreeMap<(MicroBatchId, Stage), Vec<PeerId>> = BTreeMap::new();
        for node in &self.nodes {
            for event in &node.events {
                if let Event::Added { id, stage, .. } | Event::Refused { id, stage, .. } = event {
                    added.entry((*id, *stage)).or_default().push(node.peer.me());
                }
            }
        }
        for node in &self.nodes {
            for event in &node.events {
                let Event::Completed { id, path, .. } = event else { continue };
                assert_eq!(path.len(), usize::from(self.manifest.stages.count));
                for hop in path {
                    let peers = added.get(&(*id, hop.stage)).cloned().unwrap_or_default();
                    assert!(peers.contains(&hop.peer), "{id:?} lost at stage {}", hop.stage);
                }
            }
        }
        // What a fenced replica had added and not stepped is not in its weights.
        for node in &self.nodes {
            for event in &node.events {
                let Event::Perished { stage, ids, .. } = event else { continue };
                for id in ids {
                    let peers = added.entry((*id, *stage)).or_default();
                    if let Some(at) = peers.iter().position(|peer| *peer == node.peer.me()) {
                        peers.remove(at);
                    }
                }
            }
        }
        let living = |peers: &Vec<PeerId>| peers.iter().filter(|peer| self.nodes[self.ids[peer]].alive).count();
        added.values().map(|peers| living(peers).saturating_sub(1)).sum()
    }
}
