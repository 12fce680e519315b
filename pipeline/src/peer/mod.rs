//! One peer of a run: its machines, and the one table that wires them.
//!
//! In: facts from the driver ([`io::Input`]). Out: requests to it ([`io::Output`]). It knows no clock, socket, thread, disk or
//! tensor, and holds no logic of its own beyond "this output becomes that input": what a machine decides is the machine's.

pub mod circle;
pub mod directory;
pub mod drain;
pub mod export;
pub mod generate;
pub mod io;
mod moving;
pub mod neighbours;
mod placement;
pub mod replica;
mod rounds;
mod shelf;
mod snapshots;
pub mod transfer;
pub mod view;
mod wiring;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use skein_protocol::{
    Blob, Incarnation, Instant, Machine, Manifest, MicroBatchId, Outbox, PeerId, RunId, Stage, Utc, Version,
    hash::Digest, key::Key, machine::Why, rng::Streams, wire::membership::Seals,
};

use crate::{
    flow::{
        Desk,
        coding::Costs,
        held_out::HeldOut,
        route::Route,
        schedule::{Purpose, Schedule},
        source::Source,
        stage::StageRules,
        uplink::Uplink,
    },
    job::Job,
    plan::{moves::Foresight, swarm::Cost},
};
use circle::Circle;
use directory::Directory;
use drain::Drain;
use export::Export;
use generate::Generate;
use io::{Input, Output};
pub use moving::{EMPTY_FOR, SLOW_FOR};

use moving::Moving;
use neighbours::Neighbours;
use replica::Replica;
use transfer::Transfer;

/// What a peer is born with.
#[derive(Clone)]
pub struct PeerConfig {
    pub key: Key,
    pub run: RunId,
    pub manifest: Arc<Manifest>,
    /// The signed manifest as it travels, for those who only hold an invite.
    pub manifest_bytes: Vec<u8>,
    /// Durable before the peer says its first word.
    pub incarnation: Incarnation,
    /// Of all its random streams: from the operating system, or the scenario.
    pub seed: u64,
    /// Bytes of device memory given: how many stages fit.
    pub memory: u64,
    /// Bytes of disk given to snapshots of others.
    pub disk: u64,
    /// Where others reach me (multiaddr text), as far as known at the start.
    pub addresses: Vec<String>,
    /// Index of the first micro-batch to feed, after a restart.
    pub feed_from: u64,
    /// Which of what it feeds nothing is learned from.
    pub held_out: HeldOut,
    /// Saved states that the driver found at the start: the newest of each stage, its bytes in the store.
    pub saved: Vec<SavedState>,
    /// What the manifest names by its hash and the driver found at the start, its bytes in the store.
    pub shelf: Vec<(Digest, Blob)>,
    /// What codecs cost on this machine.
    pub costs: Costs,
    /// Bootstrap peers are known: with none, nobody is waited for.
    pub expects_others: bool,
}

/// A state on the disk of this peer, in the store.
#[derive(Clone, Debug)]
pub struct SavedState {
    pub version: Version,
    pub root: Digest,
    pub blob: Blob,
}

impl PeerConfig {
    pub fn me(&self) -> PeerId {
        self.key.peer()
    }
}

/// What this peer is meant to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Placement {
    /// Serve nothing, unless told to.
    #[default]
    Watch,
    /// Serve what the plan says.
    Plan,
}

/// What a transfer is for.
#[derive(Clone, Debug, PartialEq)]
enum Ticket {
    Serve { stage: Stage, snapshot: bool },
    Hold { from: PeerId },
    Export { from: PeerId },
    Blob { blob: Digest },
}

/// What an encoded state is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StateFor {
    Request { to: PeerId, request: u64, whole: bool },
    Keeper,
}

pub struct Peer {
    config: PeerConfig,
    me: PeerId,
    incarnation: Incarnation,
    rules: StageRules,
    started: Instant,
    last_turn: Instant,
    last_tick: Instant,
    utc: Utc,
    /// Waiting for a new incarnation to be durable: not a word until then.
    silent: bool,
    placement: Placement,
    moving: Option<Moving>,
    foresight: Foresight,
    stage_costs: Arc<[Cost]>,
    /// No move is tried before.
    move_after: Instant,
    /// Of ids that were given back for a move: who has them two stages on.
    beyond: BTreeMap<MicroBatchId, PeerId>,
    neighbours: Neighbours,
    directory: Directory,
    route: Route,
    uplink: Uplink,
    jobs: Schedule,
    transfer: Transfer,
    generate: Generate,
    export: Export,
    replicas: BTreeMap<Stage, Replica>,
    source: Option<Source>,
    tickets: BTreeMap<u64, Ticket>,
    states: BTreeMap<u64, (StateFor, Version)>,
    /// Versions that the worker writes to the disk.
    saving: BTreeMap<Stage, Version>,
    next_ticket: u64,
    sought: BTreeMap<Digest, shelf::Sought>,
    /// The stage that is moved to once its frozen weights are here.
    fetch_ahead: Option<Stage>,
    /// What was asked for by its hash, beside the weights of stages.
    asked: BTreeSet<Digest>,
    /// Stages that were said to be without a replica.
    empty: BTreeSet<Stage>,
    active: Vec<PeerId>,
    /// Those whose connection is kept whatever goes over it, and whether who serves what has changed since.
    near: Vec<PeerId>,
    near_is_old: bool,
    circle: Circle,
    /// All of the circle were connected when that was last looked at, and nobody was lost since.
    circle_stands: bool,
    /// When the circle was drawn, whether there is news since, and what this peer served then, and whether it fed.
    circled_at: Instant,
    circle_is_old: bool,
    circled_for: (BTreeSet<Stage>, bool),
    drain: Option<Drain>,
    greeted_at: Option<Instant>,
    /// When the route last heard who serves, and whether there is news since.
    routed_at: Instant,
    route_is_old: bool,
    /// When the last neighbour was lost, or this peer started.
    alone_since: Instant,
    /// Somebody's time of day is that of this machine.
    clock_is_right: bool,
    lookup_at: Instant,
    plan_at: Instant,
    published_at: Instant,
    ended: bool,
    /// Jobs in a row that my worker could not do: forwards and backwards, and steps, which fail apart.
    undone: [u32; 2],
    fences: BTreeMap<PeerId, Instant>,
    /// Told once more to fence, too soon after the last time.
    fence_again: bool,
}

/// Splits the borrow: a desk over the shared parts, beside the machine that writes on it.
macro_rules! desk {
    ($peer:ident, $now:expr, $out:expr) => {
        $crate::flow::Desk {
            now: $now,
            me: $peer.me,
            out: $out,
            jobs: &mut $peer.jobs,
            route: &mut $peer.route,
            uplink: &mut $peer.uplink,
        }
    };
}
pub(crate) use desk;

impl Peer {
    pub fn new(config: PeerConfig, now: Instant, utc: Utc) -> Self {
        let me = config.me();
        let streams = Streams::new(config.seed, me);
        let manifest = &config.manifest;
        Peer {
            me,
            incarnation: config.incarnation,
            rules: StageRules::of(manifest, config.costs),
            started: now,
            last_turn: now,
            last_tick: now,
            utc,
            silent: false,
            placement: Placement::Watch,
            moving: None,
            foresight: Foresight::default(),
            stage_costs: placement::stage_costs(manifest, me),
            move_after: now,
            beyond: BTreeMap::new(),
            neighbours: Neighbours::default(),
            directory: Directory::new(&config, &streams, now),
            route: Route::new(me, &streams, manifest.lock_step()),
            uplink: Uplink::default(),
            jobs: Schedule::default(),
            transfer: Transfer::default(),
            generate: Generate::new(config.manifest.clone()),
            export: Export::default(),
            replicas: BTreeMap::new(),
            source: None,
            tickets: BTreeMap::new(),
            states: BTreeMap::new(),
            saving: BTreeMap::new(),
            next_ticket: 0,
            sought: BTreeMap::new(),
            fetch_ahead: None,
            asked: BTreeSet::new(),
            empty: BTreeSet::new(),
            active: Vec::new(),
            near: Vec::new(),
            near_is_old: true,
            circle: Circle::default(),
            circle_stands: false,
            circled_at: now,
            circle_is_old: true,
            circled_for: (BTreeSet::new(), false),
            drain: None,
            greeted_at: None,
            routed_at: now,
            route_is_old: false,
            alone_since: now,
            clock_is_right: false,
            lookup_at: now,
            plan_at: now,
            published_at: now,
            ended: false,
            undone: [0; 2],
            fences: BTreeMap::new(),
            fence_again: false,
            config,
        }
    }

    pub fn me(&self) -> PeerId {
        self.me
    }

    /// Trusts what other peers of this process found of signatures.
    pub fn share_seals(&mut self, seals: Seals) {
        self.directory.share_seals(seals);
    }

    pub fn manifest(&self) -> &Manifest {
        &self.config.manifest
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Hands waiting jobs to the driver. Each gets its weight by the age that its work has now, and a state the version that
    /// the weights will have when the worker comes to it: one version never has two roots.
    fn dispatch(&mut self, now: Instant, out: &mut Outbox<Output>) {
        let (replicas, states, saving) = (&mut self.replicas, &mut self.states, &mut self.saving);
        self.jobs.dispatch(now, out, |job, purpose, stepping| {
            let Some(flow) = replicas.get_mut(&job.stage()).and_then(Replica::flow_mut) else { return };
            flow.weigh(job, purpose);
            let mut then = flow.version();
            then.own_step += u32::from(stepping);
            match (job, purpose) {
                (Job::State { version, .. }, Purpose::State { ticket, .. }) => {
                    *version = then;
                    if let Some((_, version)) = states.get_mut(&ticket) {
                        *version = then;
                    }
                }
                (Job::Save { stage, version }, _) => {
                    *version = then;
                    saving.insert(*stage, then);
                }
                _ => {}
            }
        });
    }

    /// Runs `act` on the flow of a stage that serves.
    fn with_flow<R>(
        &mut self,
        now: Instant,
        out: &mut Outbox<Output>,
        stage: Stage,
        act: impl FnOnce(&mut crate::flow::stage::StageFlow, &mut Desk<'_>) -> R,
    ) -> Option<R> {
        let flow = self.replicas.get_mut(&stage)?.flow_mut()?;
        let mut desk = desk!(self, now, out);
        Some(act(flow, &mut desk))
    }

    fn with_source<R>(
        &mut self,
        now: Instant,
        out: &mut Outbox<Output>,
        act: impl FnOnce(&mut Source, &mut Desk<'_>) -> R,
    ) -> Option<R> {
        let source = self.source.as_mut()?;
        let mut desk = desk!(self, now, out);
        Some(act(source, &mut desk))
    }
}

impl Machine for Peer {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Instant, input: Input, out: &mut Outbox<Output>) {
        self.turn(now, input, out);
        self.dispatch(now, out);
        for output in out.iter() {
            if let Output::Release { blob } = output {
                self.uplink.released(*blob);
            }
        }
        self.uplink.release(now, out);
    }

    fn deadline(&self) -> Option<(Instant, Why)> {
        let flows = self.replicas.values().filter_map(|replica| replica.flow().and_then(|flow| flow.deadline()));
        let source = self.source.as_ref().and_then(Source::deadline);
        let offers = flows.chain(source).min().map(|at| (at, "an offer of a micro-batch ends"));
        let route = self.route_is_old.then(|| (self.route_at(), "the route is old"));
        let news = self.directory.deadline().filter(|_| !self.silent).map(|at| (at, "news waits"));
        let (at, why) = offers.into_iter().chain(route).chain(news).min()?;
        Some((at.max(self.last_turn + MIN_WAKE), why))
    }
}

/// A machine is not woken more often than this by its own deadlines.
const MIN_WAKE: std::time::Duration = std::time::Duration::from_millis(10);
