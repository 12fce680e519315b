//! What a simulation is told: the manifest, the peers, their links and devices, the seed.

use std::{sync::Arc, time::Duration};

use rand_chacha::ChaCha8Rng;
use skein_pipeline::{flow::held_out::HeldOut, peer::io::Command};
use skein_protocol::{
    Manifest, PeerId, RunId, Stage,
    hash::{self, Digest},
    key::Key,
    rng::{Purpose, Streams},
};

use crate::{
    engine::{MILLISECOND, SECOND, Time},
    worker::{
        Work,
        modelled::{Clockwork, Device, Modelled},
    },
    world::{
        Access, Corpus, Fill, Payload, Relay,
        network::{Place, Terrain},
    },
};

/// Peers up to which every peer is told the time as often as the contract asks, and every frame is read back.
const FEW: usize = 64;

/// What a peer is for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Role {
    pub feeds: bool,
    /// Serves these stages, and stays there.
    pub hosts: Vec<Stage>,
    /// Serves where it helps most.
    pub joins: bool,
}

impl Role {
    pub fn feeder() -> Self {
        Role { feeds: true, ..Role::default() }
    }

    pub fn host(stage: Stage) -> Self {
        Role { hosts: vec![stage], ..Role::default() }
    }

    pub fn joiner() -> Self {
        Role { joins: true, ..Role::default() }
    }

    /// Feeds, and serves every stage.
    pub fn alone(stages: Stage) -> Self {
        Role { feeds: true, hosts: (0..stages).collect(), joins: false }
    }

    pub(super) fn commands(&self) -> Vec<Command> {
        let hosts = self.hosts.iter().map(|stage| Command::Host { stage: *stage });
        let joins = self.joins.then_some(Command::Join);
        let feeds = self.feeds.then_some(Command::Feed);
        hosts.chain(joins).chain(feeds).collect()
    }
}

/// One peer of a simulation.
#[derive(Clone, Debug)]
pub struct Plan {
    pub role: Role,
    /// When its process starts.
    pub starts: Duration,
    pub access: Access,
    pub device: Device,
    pub memory: u64,
    pub disk: u64,
    /// Its clock is wrong by this much.
    pub skew_ms: i64,
    /// Peers (by number) whose addresses it is given.
    pub bootstrap: Vec<usize>,
    /// Where it is: a row of `Setup::regions`.
    pub region: usize,
    /// Others reach it through a relay only.
    pub relayed: bool,
}

impl Plan {
    pub fn new(role: Role) -> Self {
        Plan {
            role,
            starts: Duration::ZERO,
            access: Access::LOOPBACK,
            device: Device::CORE,
            memory: 8 << 30,
            disk: 8 << 30,
            skew_ms: 0,
            bootstrap: vec![0],
            region: 0,
            relayed: false,
        }
    }

    pub fn starts(mut self, at: Duration) -> Self {
        self.starts = at;
        self
    }

    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    pub fn skew_ms(mut self, skew: i64) -> Self {
        self.skew_ms = skew;
        self
    }

    pub fn disk(mut self, bytes: u64) -> Self {
        self.disk = bytes;
        self
    }
}

/// Makes the worker of a process, which takes its time by the clockwork.
pub type MakeWorker = Box<dyn Fn(&Arc<Manifest>, Clockwork) -> Box<dyn Work>>;

pub struct Setup {
    pub seed: u64,
    /// The owner is filled in: the first peer that feeds.
    pub manifest: Manifest,
    pub peers: Vec<Plan>,
    pub corpus: Corpus,
    /// What lies on the owner's disk of that which the manifest names by its hash.
    pub shelf: Vec<(Digest, Payload)>,
    /// Micro-batches that there are; none: no end.
    pub records: Option<u64>,
    /// Which of the micro-batches only tell their loss.
    pub held_out: HeldOut,
    /// Silence after which a connection is taken for dead.
    pub idle: Duration,
    pub make_worker: MakeWorker,
    /// Keeps one line of text for everything that happens.
    pub traced: bool,
    /// Every peer is told the time at least this often: less than what it takes for a suspension, 1.6 s.
    pub tick: Duration,
    /// Of so many frames one is read back and compared.
    pub reread_every: u64,
    /// One-way nanoseconds from region to region; empty: there is one.
    pub regions: Vec<Vec<Time>>,
    /// Part of the datagrams that are lost by chance, 0 to 1, and what bodies get of a link.
    pub loss: f64,
    pub fill: Fill,
    pub relay: Relay,
}

impl Setup {
    /// Modelled workers and data.
    pub fn new(seed: u64, manifest: Manifest, peers: Vec<Plan>) -> Self {
        let few = peers.len() <= FEW;
        Setup {
            seed,
            manifest,
            peers,
            corpus: Corpus::Modelled,
            shelf: Vec::new(),
            records: None,
            held_out: HeldOut::default(),
            idle: Duration::from_millis(1600),
            make_worker: Box::new(|manifest, clockwork| Box::new(Modelled::new(manifest.clone(), clockwork))),
            traced: false,
            tick: Duration::from_nanos(if few { 250 * MILLISECOND } else { SECOND }),
            reread_every: if few { 1 } else { 64 },
            regions: Vec::new(),
            loss: 0.0,
            fill: Fill::default(),
            relay: Relay::default(),
        }
    }

    pub(super) fn terrain(&self) -> Terrain {
        let place = |plan: &Plan| Place { access: plan.access, region: plan.region, relayed: plan.relayed };
        Terrain {
            places: self.peers.iter().map(place).collect(),
            regions: self.regions.clone(),
            loss: self.loss,
            fill: self.fill,
            relay: self.relay,
        }
    }

    /// The key of a peer: of the seed and its number.
    pub fn key(&self, peer: usize) -> Key {
        let parts = [&self.seed.to_le_bytes()[..], &(peer as u64).to_le_bytes()];
        Key::from_secret(hash::keyed("skein simulation key 1", &parts).0)
    }

    pub(super) fn stream(&self, purpose: Purpose, peer: usize) -> ChaCha8Rng {
        let mut name = [0; 32];
        name[..8].copy_from_slice(&(peer as u64 + 1).to_le_bytes());
        Streams::new(self.seed, PeerId(name)).stream(purpose)
    }
}

/// Identity and travelling form of a manifest.
pub(super) fn run_of(manifest: &Manifest, owner: &Key) -> (RunId, Vec<u8>) {
    let body = minicbor::to_vec(manifest).expect("writing to a Vec cannot fail");
    let run: Digest = hash::keyed("skein manifest 1", &[&body]);
    let signed = owner.sign("skein manifest 1", body);
    (run, minicbor::to_vec(signed).expect("writing to a Vec cannot fail"))
}
