//! The other loop: many peers, one thread, virtual time.
//!
//! Like the process's driver it only translates: facts go into machines, requests come out and are performed, here on a
//! modelled network, a modelled disk and a worker that takes virtual time. It makes no decision for a peer.

mod fault;
mod perform;
mod presets;
mod process;
mod setup;
mod usage;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use skein_pipeline::{
    flow::coding::Costs,
    peer::{
        Peer, PeerConfig, SavedState,
        io::{Command, Input},
    },
};
use skein_protocol::{
    Instant, Lane, Manifest, PeerId, RunId, Stage, Utc,
    event::{Event, Record, Severity},
    hash::Digest,
    rng::Purpose,
    wire::{Frame, membership::Seals},
};

use crate::{
    checker::{Checker, Given, Kill, Line, Property, Summary},
    digest::History,
    engine::{Engine, MILLISECOND, Time},
    worker::modelled::Clockwork,
    world::{
        Disk, Network, Payload, Store,
        adversary::Lie,
        directory::{self, Directory},
        network::{Alarm, ConnectionId, Flows, Sharing, flows},
    },
};

pub use fault::{Fault, Hook, Moment, What};
pub use presets::Small;
pub use process::Process;
pub use setup::{MakeWorker, Plan, Role, Setup};
pub use usage::PeerUse;

use process::{Acknowledgement, Fact, Life, Message};
use usage::Meter;

/// A peer without a connection is given its bootstrap peers again after this.
const BOOTSTRAP: Time = 1000 * MILLISECOND;
/// Wrongs and blames that are kept: among liars they come with every micro-batch.
const NOTED_MAX: usize = 1000;
/// A small durable write.
const SYNC: Time = 5 * MILLISECOND;
/// UTC at the beginning of the world, milliseconds.
const UTC_BASE: u64 = 1_790_000_000_000;

enum Happening {
    Fault(Box<Fault>),
    Wake {
        peer: usize,
        process: u32,
        token: u64,
    },
    Bootstrap {
        peer: usize,
        process: u32,
    },
    Fact {
        peer: usize,
        process: u32,
        fact: Box<Fact>,
    },
    Arrival(Box<Message>),
    Acknowledgement(Box<Acknowledgement>),
    /// A body goes once more, which a partition had swallowed.
    Again(Box<Message>),
    Handshake {
        from: usize,
        to: usize,
        process: u32,
    },
    Silence(Alarm),
    Closed {
        of: usize,
        from: usize,
        connection: ConnectionId,
    },
    JobDone {
        peer: usize,
        process: u32,
        token: u64,
    },
    Incarnate {
        peer: usize,
        process: u32,
    },
}

/// Makes the machine of a process that starts.
pub type MakePeer<P> = Box<dyn FnMut(PeerConfig, Instant, Utc) -> P>;

/// A request of a peer to its user, with what was behind the handles.
#[derive(Clone, Debug)]
pub enum Answer {
    Exported { peer: usize, request: u64, stage: u16, parts: Option<(Vec<Payload>, Digest)>, last: bool },
    Generated { peer: usize, session: u64, logits: Option<Payload> },
}

/// One thing that whoever looks on learns.
#[derive(Clone, Debug)]
pub enum Said {
    Line(Line),
    Killed(Kill),
}

/// What one peer said of another.
#[derive(Clone, Debug)]
pub struct Blame {
    pub by: usize,
    pub of: PeerId,
    pub severity: Severity,
    pub why: String,
}

pub struct Simulation<P: Process = Peer> {
    setup: Setup,
    manifest: Arc<Manifest>,
    run: RunId,
    manifest_bytes: Vec<u8>,
    make_peer: MakePeer<P>,
    ids: Vec<PeerId>,
    numbers: BTreeMap<PeerId, usize>,
    engine: Engine<Happening>,
    network: Network,
    flows: Flows<Message>,
    meters: Vec<Meter>,
    directory: Directory,
    rng: ChaCha8Rng,
    disks: Vec<Disk>,
    lives: Vec<Option<Life<P>>>,
    processes: Vec<u32>,
    speeds: Vec<f64>,
    /// Who dials, by its process, and whom.
    dialing: BTreeSet<(usize, u32, usize)>,
    /// What a partition swallowed, to be sent again.
    swallowed: BTreeMap<(usize, usize), Vec<Message>>,
    /// What a killed process sent after this never left its machine.
    cuts: BTreeMap<(usize, u32), Time>,
    /// Peers that send what is not finite, and whether they have.
    poisoned: BTreeMap<usize, bool>,
    liars: BTreeMap<usize, Lie>,
    hooks: Vec<Hook>,
    lines: Vec<Line>,
    /// Each with the number of lines before it: a process may start in the moment in which the one before it was ended.
    kills: Vec<(usize, Kill)>,
    history: History,
    /// Kept for its memory: the bytes of the frame that is sent.
    written: Vec<u8>,
    traffic: [u64; Lane::ALL.len()],
    arrivals: u64,
    pub answers: Vec<Answer>,
    /// Those that cost a peer its standing, the first of them.
    pub blames: Vec<Blame>,
    wrongs: Vec<(Property, String)>,
    trace: Vec<String>,
}

impl Simulation<Peer> {
    /// The product's own peers.
    pub fn new(setup: Setup) -> Self {
        // A signature holds for all or for none.
        let seals = Seals::remembered();
        let make_peer = move |config: PeerConfig, now: Instant, utc: Utc| {
            let mut peer = Peer::new(config, now, utc);
            peer.share_seals(seals.clone());
            peer
        };
        Simulation::with(setup, Box::new(make_peer))
    }

    pub fn peer(&self, peer: usize) -> Option<&Peer> {
        self.lives[peer].as_ref().map(|life| &life.machine)
    }
}

impl<P: Process> Simulation<P> {
    pub fn with(mut setup: Setup, make_peer: MakePeer<P>) -> Self {
        let count = setup.peers.len();
        let keys: Vec<_> = (0..count).map(|peer| setup.key(peer)).collect();
        let ids: Vec<PeerId> = keys.iter().map(|key| key.peer()).collect();
        let owner = setup.peers.iter().position(|plan| plan.role.feeds).unwrap_or(0);
        setup.manifest.run.owner = ids[owner];
        let also = setup.peers.iter().enumerate().filter(|(i, plan)| plan.role.feeds && *i != owner);
        setup.manifest.run.delegates = also.map(|(i, _)| ids[i]).collect();
        let (run, manifest_bytes) = setup::run_of(&setup.manifest, &keys[owner]);
        let network = Network::new(setup.terrain(), setup.idle, setup.stream(Purpose::Link, 0));
        let flows = Flows::new(Sharing::default(), flows::EQUAL, &network.rates());
        let on_shelf: BTreeMap<Digest, Payload> = setup.shelf.iter().cloned().collect();
        let disk_of = |id: &PeerId| match *id == setup.manifest.run.owner {
            true => Disk::with_shelf(on_shelf.clone()),
            false => Disk::default(),
        };
        let disks = ids.iter().map(disk_of).collect();
        let mut engine = Engine::default();
        for (peer, plan) in setup.peers.iter().enumerate() {
            engine.plan(plan.starts.as_nanos() as Time, Happening::Fault(Fault::Start(peer).into()));
        }
        Simulation {
            manifest: Arc::new(setup.manifest.clone()),
            run,
            manifest_bytes,
            make_peer,
            numbers: ids.iter().enumerate().map(|(i, id)| (*id, i)).collect(),
            ids,
            engine,
            network,
            flows,
            meters: vec![Meter::default(); count],
            directory: Directory::default(),
            rng: setup.stream(Purpose::World, 0),
            disks,
            lives: (0..count).map(|_| None).collect(),
            processes: vec![0; count],
            speeds: vec![1.0; count],
            dialing: BTreeSet::new(),
            swallowed: BTreeMap::new(),
            cuts: BTreeMap::new(),
            poisoned: BTreeMap::new(),
            liars: BTreeMap::new(),
            hooks: Vec::new(),
            lines: Vec::new(),
            kills: Vec::new(),
            history: History::default(),
            written: Vec::new(),
            traffic: [0; Lane::ALL.len()],
            arrivals: 0,
            answers: Vec::new(),
            blames: Vec::new(),
            wrongs: Vec::new(),
            trace: Vec::new(),
            setup,
        }
    }

    // ---- for those who watch ---------------------------------------------------------------------------------------------

    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.engine.now())
    }

    pub fn id(&self, peer: usize) -> PeerId {
        self.ids[peer]
    }

    pub fn number(&self, peer: PeerId) -> Option<usize> {
        self.numbers.get(&peer).copied()
    }

    pub fn peers(&self) -> usize {
        self.ids.len()
    }

    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    pub fn is_running(&self, peer: usize) -> bool {
        self.lives[peer].is_some()
    }

    pub fn ids(&self) -> &[PeerId] {
        &self.ids
    }

    /// What peers said since this was asked before, and who was killed, in order: who takes it as it comes keeps no long history.
    pub fn take_said(&mut self) -> Vec<Said> {
        let (lines, kills) = (std::mem::take(&mut self.lines), std::mem::take(&mut self.kills));
        let mut kills = kills.into_iter().peekable();
        let mut all = Vec::with_capacity(lines.len() + kills.len());
        for (number, line) in lines.into_iter().enumerate() {
            while let Some((_, kill)) = kills.next_if(|(before, _)| *before <= number) {
                all.push(Said::Killed(kill));
            }
            all.push(Said::Line(line));
        }
        all.extend(kills.map(|(_, kill)| Said::Killed(kill)));
        all
    }

    /// All events so far that nobody has taken, in order.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    pub fn summary(&self) -> Summary {
        let mut checker = Checker::new(&Given::of(&self.manifest, Vec::new()));
        let mut kills = self.kills.iter().peekable();
        for (number, line) in self.lines.iter().enumerate() {
            while let Some((_, kill)) = kills.next_if(|(before, _)| *before <= number) {
                checker.on_kill(*kill);
            }
            checker.on_line(line);
        }
        kills.for_each(|(_, kill)| checker.on_kill(*kill));
        checker.finish()
    }

    /// One hash of everything that happened.
    pub fn digest(&self) -> Digest {
        self.history.digest()
    }

    pub fn happenings(&self) -> u64 {
        self.history.happenings()
    }

    /// Bytes of bodies and frames that were given to the network, by lane.
    pub fn traffic(&self, lane: Lane) -> u64 {
        self.traffic[lane as usize]
    }

    /// What the time and the links of a peer went to until now, over all its processes.
    pub fn use_of(&self, peer: usize) -> PeerUse {
        self.meters[peer].sums(self.engine.now())
    }

    /// Whether links are shared by the exact law, or by that of large swarms.
    pub fn shares_exactly(&self) -> bool {
        self.flows.is_exact()
    }

    /// What a running peer holds: handles, and the most it ever held.
    pub fn store(&self, peer: usize) -> Option<&Store> {
        self.lives[peer].as_ref().map(|life| &life.store)
    }

    /// How long the worker of a running peer was at jobs that are done.
    pub fn busy(&self, peer: usize) -> Duration {
        Duration::from_nanos(self.lives[peer].as_ref().map_or(0, |life| life.busy))
    }

    /// Forwards that a peer's worker keeps for their backward.
    pub fn kept(&self, peer: usize) -> usize {
        self.lives[peer].as_ref().map_or(0, |life| life.worker.kept())
    }

    /// The weights that a peer's worker holds of a stage, where they are real.
    pub fn params(&self, peer: usize, stage: Stage) -> Option<&[f32]> {
        self.lives[peer].as_ref().and_then(|life| life.worker.params(stage))
    }

    pub fn disk(&self, peer: usize) -> &Disk {
        &self.disks[peer]
    }

    /// What no correct peer does (handles released twice, frames that cannot be read back, jobs without an engine), and what is
    /// broken by it. Empty if none did.
    pub fn wrongs(&self) -> Vec<(Property, String)> {
        let mut wrongs = self.wrongs.clone();
        for (peer, life) in self.lives.iter().enumerate() {
            wrongs.extend(life.iter().flat_map(|life| wrongs_of(peer, life)));
        }
        wrongs
    }

    /// One line for everything that happened, if the setup asked for it.
    pub fn trace(&self) -> &[String] {
        &self.trace
    }

    // ---- for those who interfere -----------------------------------------------------------------------------------------

    pub fn hook(&mut self, hook: impl FnMut(&Moment<'_>) -> Vec<Fault> + 'static) {
        self.hooks.push(Box::new(hook));
    }

    pub fn at(&mut self, time: Duration, fault: Fault) {
        self.engine.plan(time.as_nanos() as Time, Happening::Fault(fault.into()));
    }

    /// Does it now.
    pub fn act(&mut self, fault: Fault) {
        self.do_fault(fault);
    }

    pub fn command(&mut self, peer: usize, command: Command) {
        self.fact_now(peer, Fact::Input(Input::Command(command)));
    }

    /// From now on it lies.
    pub fn lie(&mut self, peer: usize, lie: Lie) {
        self.liars.insert(peer, lie);
    }

    /// Gives a body to a peer, for a command that names it.
    pub fn put(&mut self, peer: usize, payload: Payload) -> Option<skein_protocol::Blob> {
        self.lives[peer].as_mut().map(|life| life.store.insert(payload))
    }

    // ---- running ---------------------------------------------------------------------------------------------------------

    pub fn run_for(&mut self, time: Duration) {
        let until = self.engine.now() + time.as_nanos() as Time;
        while self.next_at().is_some_and(|at| at <= until) {
            self.step();
        }
        self.engine.idle_until(until);
    }

    /// Runs until an event for which `wanted` is true, for at most `limit`: when that was.
    pub fn run_until(&mut self, limit: Duration, mut wanted: impl FnMut(&Line) -> bool) -> Option<Duration> {
        let until = self.engine.now() + limit.as_nanos() as Time;
        let mut seen = self.lines.len();
        while self.next_at().is_some_and(|at| at <= until) {
            self.step();
            for line in &self.lines[seen..] {
                if wanted(line) {
                    return Some(Duration::from_nanos(line.at));
                }
            }
            seen = self.lines.len();
        }
        self.engine.idle_until(until);
        None
    }

    /// Runs until `count` more micro-batches are completed, for at most `limit`. Whether they were.
    pub fn run_completed(&mut self, limit: Duration, count: usize) -> bool {
        let mut left = count;
        self.run_until(limit, |line| {
            left -= usize::from(matches!(line.record.event, Event::Completed { .. }));
            left == 0
        })
        .is_some()
    }

    fn next_at(&self) -> Option<Time> {
        self.engine.next_at().into_iter().chain(self.flows.next_at()).min()
    }

    fn step(&mut self) {
        if let Some(at) = self.flows.next_at()
            && self.engine.next_at().is_none_or(|next| at <= next)
        {
            self.engine.idle_until(at);
            let left = self.flows.step(at);
            self.read_links();
            return left.into_iter().for_each(|left| self.leave(left.body));
        }
        let Some(happening) = self.engine.step() else { return };
        match happening {
            Happening::Fault(fault) => self.do_fault(*fault),
            Happening::Wake { peer, process, token } => self.on_wake(peer, process, token),
            Happening::Bootstrap { peer, process } => self.bootstrap(peer, process),
            Happening::Fact { peer, process, fact } => {
                if self.processes[peer] == process {
                    self.deliver(peer, *fact);
                }
            }
            Happening::Arrival(message) => self.on_arrival(*message),
            Happening::Acknowledgement(of) => self.on_acknowledgement(of),
            Happening::Again(message) => self.on_again(*message),
            Happening::Handshake { from, to, process } => self.on_handshake(from, to, process),
            Happening::Silence(alarm) => self.on_silence(alarm),
            Happening::Closed { of, from, connection } => self.on_closed(of, from, connection),
            Happening::JobDone { peer, process, token } => self.on_job_done(peer, process, token),
            Happening::Incarnate { peer, process } => self.on_incarnate(peer, process),
        }
    }

    fn utc(&self, peer: usize) -> Utc {
        let now = UTC_BASE + self.engine.now() / MILLISECOND;
        Utc(now.saturating_add_signed(self.setup.peers[peer].skew_ms))
    }

    fn wrong(&mut self, property: Property, what: String) {
        if self.wrongs.len() < NOTED_MAX {
            self.wrongs.push((property, what));
        }
    }

    /// Whether a peer was not told to lie.
    fn is_honest(&self, peer: PeerId) -> bool {
        self.number(peer).is_none_or(|peer| !self.poisoned.contains_key(&peer) && !self.liars.contains_key(&peer))
    }

    fn note(&mut self, peer: usize, text: impl FnOnce(&Self) -> String) {
        if self.setup.traced {
            let line = format!("{} p{peer} {}", Instant(self.engine.now()), text(self));
            self.trace.push(line);
        }
    }

    fn plan_alarms(&mut self, alarms: Vec<Alarm>) {
        for alarm in alarms {
            self.engine.plan(alarm.at, Happening::Silence(alarm));
        }
    }

    fn fact_now(&mut self, peer: usize, fact: Fact) {
        self.fact_after(peer, 0, fact);
    }

    fn fact_after(&mut self, peer: usize, delay: Time, fact: Fact) {
        let process = self.processes[peer];
        self.engine.after(delay, Happening::Fact { peer, process, fact: Box::new(fact) });
    }

    // ---- processes -------------------------------------------------------------------------------------------------------

    fn do_fault(&mut self, fault: Fault) {
        let now = self.engine.now();
        let named = match fault {
            Fault::Kill(p) | Fault::Start(p) | Fault::Pause(p) | Fault::Resume(p) | Fault::PauseFor(p, _) => p,
            Fault::Block(p, _) | Fault::Unblock(p, _) | Fault::BlockFor(p, ..) => p,
            Fault::Partition(p, _) | Fault::Heal(p, _) => p,
            Fault::Speed(p, _) | Fault::DiskFull(p, _) | Fault::Poison(p) | Fault::Command(p, _) => p,
            Fault::Skew(p, _) | Fault::DiskTorn(p, _) | Fault::Lag(p, _) => p,
        };
        self.note(named, |_| format!("!! {fault:?}"));
        match fault {
            Fault::Kill(peer) => self.kill(peer),
            Fault::Start(peer) => self.start(peer),
            Fault::Pause(peer) => self.pause(peer),
            Fault::Resume(peer) => self.resume(peer),
            Fault::PauseFor(peer, time) => {
                self.pause(peer);
                self.engine.after(time.as_nanos() as Time, Happening::Fault(Fault::Resume(peer).into()));
            }
            Fault::Block(from, to) => {
                let alarms = self.network.block(now, from, to);
                self.plan_alarms(alarms);
            }
            Fault::Unblock(from, to) => self.unblock(from, to),
            Fault::BlockFor(from, to, time) => {
                self.do_fault(Fault::Block(from, to));
                self.engine.after(time.as_nanos() as Time, Happening::Fault(Fault::Unblock(from, to).into()));
            }
            Fault::Partition(a, b) => {
                self.do_fault(Fault::Block(a, b));
                self.do_fault(Fault::Block(b, a));
            }
            Fault::Heal(a, b) => {
                self.unblock(a, b);
                self.unblock(b, a);
            }
            Fault::Speed(peer, factor) => self.speeds[peer] = factor,
            Fault::DiskFull(peer, full) => self.disks[peer].full = full,
            Fault::DiskTorn(peer, torn) => self.disks[peer].torn = torn,
            Fault::Lag(peer, times) => self.network.lag(peer, times),
            Fault::Skew(peer, ms) => self.setup.peers[peer].skew_ms += ms,
            Fault::Poison(peer) => {
                self.poisoned.insert(peer, false);
            }
            Fault::Command(peer, command) => self.command(peer, command),
        }
    }

    fn start(&mut self, peer: usize) {
        if self.lives[peer].is_some() {
            return;
        }
        let now = self.engine.now();
        self.processes[peer] += 1;
        let number = self.processes[peer];
        self.disks[peer].incarnation += 1;
        let incarnation = self.disks[peer].incarnation;
        let plan = &self.setup.peers[peer];
        let mut store = Store::default();
        let saved = self.disks[peer].saved.values().map(|saved| SavedState {
            version: saved.version,
            root: saved.root,
            blob: store.insert(saved.payload.clone()),
        });
        let saved = saved.collect();
        let on_disk = self.disks[peer].shelf.iter();
        let shelf = on_disk.map(|(blob, payload)| (*blob, store.insert(payload.clone()))).collect();
        let config = PeerConfig {
            key: self.setup.key(peer),
            run: self.run,
            manifest: self.manifest.clone(),
            manifest_bytes: self.manifest_bytes.clone(),
            incarnation,
            seed: self.setup.seed.wrapping_add(u64::from(number) << 32),
            memory: plan.memory,
            disk: plan.disk,
            addresses: vec![directory::address(self.ids[peer])],
            feed_from: self.disks[peer].feed_from,
            held_out: self.setup.held_out,
            saved,
            shelf,
            costs: Costs::default(),
            expects_others: plan.bootstrap.iter().any(|other| *other != peer),
        };
        let commands = plan.role.commands();
        let rng = self.setup.stream(Purpose::World, peer + 1 + (number as usize) * 4096);
        let clockwork = Clockwork::new(self.manifest.clone(), plan.device, rng);
        let worker = (self.setup.make_worker)(&self.manifest, clockwork);
        let utc = self.utc(peer);
        let machine = (self.make_peer)(config, Instant::ZERO, utc);
        self.network.start(peer, number);
        // Ticks of different peers are not in step.
        let tick = self.tick();
        let phase = self.rng.random_range(0..tick);
        self.lives[peer] = Some(Life {
            number,
            incarnation,
            started: now,
            machine,
            outbox: Default::default(),
            store,
            worker,
            jobs: Default::default(),
            running: None,
            wake: (Time::MAX, 0),
            job_token: 0,
            busy: 0,
            ticked: (now + phase).saturating_sub(tick),
            paused: None,
            incarnating: false,
            inbox: Default::default(),
            seq: 0,
            spins: 0,
        });
        self.meters[peer].on_started(now);
        self.emit(peer, Event::Started { peer: self.ids[peer], incarnation });
        for command in commands {
            self.fact_now(peer, Fact::Input(Input::Command(command)));
        }
        self.bootstrap(peer, number);
        self.rearm(peer);
    }

    fn bootstrap(&mut self, peer: usize, process: u32) {
        if self.processes[peer] != process || self.lives[peer].is_none() {
            return;
        }
        if self.network.is_alone(peer) {
            for other in self.setup.peers[peer].bootstrap.clone() {
                self.dial(peer, other);
            }
        }
        self.engine.after(BOOTSTRAP, Happening::Bootstrap { peer, process });
    }

    fn bury(&mut self, peer: usize, life: Life<P>) {
        wrongs_of(peer, &life).into_iter().for_each(|(property, what)| self.wrong(property, what));
        if let Some(next) = life.machine.feed_next() {
            self.disks[peer].feed_from = next;
        }
        let now = self.engine.now();
        let alarms = self.network.stop(now, peer);
        self.plan_alarms(alarms);
        self.flows.stop(now, peer);
        self.meters[peer].on_ended(now);
        self.read_links();
    }

    /// Tells the meters what the links do since the flows changed.
    fn read_links(&mut self) {
        let now = self.engine.now();
        for peer in self.flows.take_turned() {
            self.meters[peer].set_links(now, self.flows.in_use(peer));
        }
    }

    fn tick(&self) -> Time {
        self.setup.tick.as_nanos() as Time
    }

    fn kill(&mut self, peer: usize) {
        let Some(life) = self.lives[peer].take() else { return };
        let now = self.engine.now();
        self.kills.push((self.lines.len(), Kill { peer: self.ids[peer], at: now }));
        self.disks[peer].crash();
        // Packets of the last moment may not have left the machine.
        if self.rng.random() {
            let last = self.rng.random_range(0..=2 * MILLISECOND);
            self.cuts.insert((peer, life.number), now.saturating_sub(last));
        }
        self.bury(peer, life);
        self.processes[peer] += 1;
    }

    /// The process ends in good order.
    fn exit(&mut self, peer: usize) {
        let Some(life) = self.lives[peer].take() else { return };
        for other in self.network.neighbours(peer) {
            self.say_closed(peer, other);
        }
        self.bury(peer, life);
        self.processes[peer] += 1;
    }

    fn pause(&mut self, peer: usize) {
        let now = self.engine.now();
        let Some(life) = self.lives[peer].as_mut().filter(|life| life.paused.is_none()) else { return };
        life.paused = Some(now);
        let alarms = self.network.set_paused(now, peer, true);
        self.plan_alarms(alarms);
        self.meters[peer].set_busy(now, false);
        self.flows.hold(now, peer, true);
        self.read_links();
    }

    fn resume(&mut self, peer: usize) {
        let now = self.engine.now();
        let Some(life) = self.lives[peer].as_mut() else { return };
        let Some(since) = life.paused.take() else { return };
        life.wake.0 = Time::MAX;
        if std::mem::take(&mut life.incarnating) {
            let process = life.number;
            self.engine.after(SYNC, Happening::Incarnate { peer, process });
        }
        let inbox = std::mem::take(&mut life.inbox);
        if let Some(running) = &mut life.running {
            running.began += now - since;
            running.ends += now - since;
            let at = running.ends;
            life.job_token += 1;
            let happening = Happening::JobDone { peer, process: life.number, token: life.job_token };
            self.engine.plan(at, happening);
            self.meters[peer].set_busy(now, true);
        }
        let alarms = self.network.set_paused(now, peer, false);
        self.plan_alarms(alarms);
        // After a long pause a timer may fire before the socket is read, or after.
        let long = now - since >= self.setup.idle.as_nanos() as Time;
        let timers_first = long && self.rng.random();
        if timers_first {
            for other in self.network.neighbours(peer) {
                self.lose(peer, other, "nothing heard while suspended");
            }
        }
        for fact in inbox {
            self.fact_now(peer, fact);
        }
        for other in self.network.silent(now, peer) {
            self.lose(peer, other, "idle");
        }
        self.flows.hold(now, peer, false);
        self.read_links();
        self.flush(peer);
        self.start_job(peer);
    }

    fn unblock(&mut self, from: usize, to: usize) {
        let now = self.engine.now();
        let alarms = self.network.unblock(now, from, to);
        self.plan_alarms(alarms);
        let late = self.network.retransmission();
        for message in self.swallowed.remove(&(from, to)).unwrap_or_default() {
            // Small messages keep their order, so they have a place in it from now on.
            let (at, happening) = if message.body.is_none() {
                let at = self.network.arrive_ordered(now + late, from, to, message.size());
                (at, Happening::Arrival(Box::new(message)))
            } else {
                (now + late, Happening::Again(Box::new(message)))
            };
            self.engine.plan(at, happening);
        }
    }

    // ---- facts -----------------------------------------------------------------------------------------------------------

    fn on_wake(&mut self, peer: usize, process: u32, token: u64) {
        let now = self.engine.now();
        let Some(life) = self.lives[peer].as_mut() else { return };
        if life.number != process || life.wake.1 != token || life.paused.is_some() {
            return;
        }
        life.wake.0 = Time::MAX;
        life.ticked = now;
        let utc = self.utc(peer);
        self.deliver(peer, Fact::Input(Input::Tick { utc }));
    }

    /// Gives a fact to a running peer, and performs what it asks for.
    fn deliver(&mut self, peer: usize, fact: Fact) {
        let now = self.engine.now();
        let Some(life) = self.lives[peer].as_mut() else { return };
        if life.paused.is_some() {
            if !matches!(fact, Fact::Input(Input::Tick { .. })) {
                life.inbox.push_back(fact);
            }
            return;
        }
        self.record(peer, &fact);
        let hooked = match &fact {
            Fact::Frame { from, frame, .. } => self.run_hooks(peer, What::Arrived { from: *from, frame }),
            Fact::Done { done, .. } => self.run_hooks(peer, What::Finished(done)),
            _ => false,
        };
        if hooked && self.lives[peer].as_ref().is_none_or(|life| life.paused.is_some()) {
            // It died, or stopped, before it saw this.
            if let Some(life) = &mut self.lives[peer] {
                life.inbox.push_back(fact);
            }
            return;
        }
        let Some(life) = self.lives[peer].as_mut() else { return };
        let input = match fact {
            Fact::Input(input) => input,
            Fact::Frame { from, frame, body, .. } => {
                let from = self.ids[from];
                Input::Frame { from, frame, body: body.map(|body| life.store.insert(body)) }
            }
            Fact::Records { request, tokens, labels, starts } => {
                let (tokens, labels) = (life.store.insert(tokens), life.store.insert(labels));
                Input::Records { request, tokens, labels, starts }
            }
            Fact::Done { job, done } => Input::Done { job, done },
        };
        let local = life.local(now);
        life.machine.handle(local, input, &mut life.outbox);
        self.flush(peer);
    }

    fn record(&mut self, peer: usize, fact: &Fact) {
        let now = self.engine.now();
        let history = &mut self.history;
        match fact {
            Fact::Input(Input::Tick { .. }) => history.fact(now, peer, 0, &[]),
            Fact::Input(Input::PeerUp { peer: other }) => history.fact(now, peer, 4, &other.0),
            Fact::Input(input) => history.fact_in_words(now, peer, 1, format_args!("{input:?}")),
            Fact::Frame { from, mark, body, .. } => {
                history.frame(now, peer, *from, *mark, body.as_ref().map_or(0, Payload::len));
            }
            Fact::Records { request, .. } => history.fact(now, peer, 2, &request.to_le_bytes()),
            Fact::Done { job, done } => history.fact_in_words(now, peer, 3, format_args!("{job:?} {done:?}")),
        }
        if self.setup.traced && !matches!(fact, Fact::Input(Input::Tick { .. })) {
            self.note(peer, |_| match fact {
                Fact::Frame { from, frame, .. } => format!("<- p{from} {}", brief(frame)),
                other => format!("<- {other:?}"),
            });
        }
    }

    /// Performs what the peer asked for. Stops when the peer dies or is suspended in the middle.
    fn flush(&mut self, peer: usize) {
        loop {
            let Some(life) = self.lives[peer].as_mut().filter(|life| life.paused.is_none()) else { return };
            let Some(output) = life.outbox.pop() else { break };
            self.perform(peer, output);
        }
        self.rearm(peer);
    }

    /// Plans the next wake-up of a peer.
    fn rearm(&mut self, peer: usize) {
        let (now, tick) = (self.engine.now(), self.tick());
        let Some(life) = self.lives[peer].as_mut() else { return };
        let asked = life.machine.deadline().map_or(Time::MAX, |(at, _)| life.started.saturating_add(at.0));
        if asked <= now && life.ticked == now {
            life.spins += 1;
            if life.spins == 1000 {
                self.wrong(Property::P0, format!("peer {peer} asks to be woken again and again"));
            }
        } else if asked > now {
            life.spins = 0;
        }
        let Some(life) = self.lives[peer].as_mut() else { return };
        // A process is woken to the millisecond.
        let soonest = if life.ticked == now { now + MILLISECOND } else { now };
        let at = (life.ticked + tick).min(asked).max(soonest);
        if at == life.wake.0 {
            return;
        }
        life.wake = (at, life.wake.1 + 1);
        let happening = Happening::Wake { peer, process: life.number, token: life.wake.1 };
        self.engine.plan(at, happening);
    }

    fn is_watched(&self) -> bool {
        !self.hooks.is_empty()
    }

    fn run_hooks(&mut self, peer: usize, what: What<'_>) -> bool {
        if !self.is_watched() {
            return false;
        }
        let moment = Moment { at: self.engine.now(), peer, what };
        let mut hooks = std::mem::take(&mut self.hooks);
        let faults: Vec<Fault> = hooks.iter_mut().flat_map(|hook| hook(&moment)).collect();
        hooks.append(&mut self.hooks);
        self.hooks = hooks;
        let any = !faults.is_empty();
        for fault in faults {
            self.do_fault(fault);
        }
        any
    }

    fn emit(&mut self, peer: usize, event: Event) {
        let now = self.engine.now();
        let utc = self.utc(peer);
        let Some(life) = self.lives[peer].as_mut() else { return };
        life.seq += 1;
        let record = Record { at: life.local(now).0, utc: utc.0, peer: self.ids[peer], seq: life.seq, event };
        if let Event::Stepped { stage, micro_batches, .. } = &record.event {
            let summed = life.worker.stepped_with(*stage);
            if summed.is_some_and(|summed| summed != *micro_batches) {
                let wrong =
                    format!("peer {peer} says its step had {micro_batches} gradients, its worker had {summed:?}");
                self.wrong(Property::P0, wrong);
            }
        }
        self.history.record(now, peer, &record);
        self.note(peer, |_| format!("** {:?}", record.event));
        self.meters[peer].on_event(now, &record.event);
        self.lines.push(Line { at: now, record });
    }

    fn lose(&mut self, peer: usize, other: usize, why: &str) {
        let now = self.engine.now();
        let alarms = self.network.close(now, peer, other);
        self.plan_alarms(alarms);
        self.flows.close(now, peer, other);
        self.read_links();
        self.fact_now(peer, Fact::Input(Input::PeerLost { peer: self.ids[other], why: why.into() }));
    }
}

/// What a process did that its driver cannot do.
fn wrongs_of<P>(peer: usize, life: &Life<P>) -> Vec<(Property, String)> {
    let wrongs = life.store.wrongs().iter().cloned().chain(life.worker.wrongs());
    wrongs.map(|wrong| (Property::P0, format!("peer {peer}: {wrong}"))).collect()
}

/// A frame in a few words.
fn brief(frame: &Frame) -> String {
    let mut text = format!("{frame:?}");
    text.truncate(text.char_indices().nth(300).map_or(text.len(), |(at, _)| at));
    text
}
