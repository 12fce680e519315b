//! Who is there: each peer's machine, access, region, place. In: the ground and a seed. Out: people by number.
//!
//! A peer's draws are keyed by its ordinal (its number without the feeders; newcomers of a crowd count from far above), so that
//! another peer more changes nobody else's.

use std::time::Duration;

use super::{
    Places, Scenario, What,
    check::{Ground, befalls, memory_of, time},
};
use crate::{
    driver::{Plan, Role},
    engine::Time,
    worker::modelled::Device,
    world::{
        Access,
        draw::{self, Draw},
        unit,
    },
};

/// Ordinals of the newcomers of the n-th fault begin at n + 1 times this.
const CROWD: u64 = 1 << 20;

/// Newcomers of a crowd and those before them never have a common ordinal.
const _: () = assert!(CROWD > super::keys::PEERS_MAX);

/// One peer.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    /// What its draws are keyed by; none: a feeder.
    pub ordinal: Option<u64>,
    pub device: String,
    pub access: String,
    pub region: String,
    /// Number of the region in `World::regions`.
    pub region_number: usize,
    /// Hours that its clock is ahead of UTC.
    pub utc: f64,
    pub speed: Device,
    pub link: Access,
    /// Bytes that it gives.
    pub memory: u64,
    pub watts: f64,
    /// Others reach it through a relay only.
    pub relayed: bool,
    pub liar: bool,
    /// The stage that it was told to serve.
    pub stage: Option<u16>,
    /// When it first comes; nothing: with the course of churn.
    pub newcomer: Option<Time>,
}

/// Feeders, then peers, then the newcomers of crowds in the order of the faults.
pub fn people(scenario: &Scenario, ground: &Ground, seed: u64) -> Vec<Person> {
    let drawer = Drawer::new(scenario, ground, seed);
    let feeders = (0..scenario.peers.feeders).map(|_| drawer.feeder());
    let peers = (0..u64::from(scenario.peers.count)).map(|ordinal| drawer.peer(ordinal));
    let mut people: Vec<Person> = feeders.chain(peers).collect();
    for (number, fault) in scenario.faults.iter().enumerate().filter(|(_, fault)| fault.what == What::Crowd) {
        let (at, within) = (time(&fault.at), time(&fault.lasts));
        for each in 0..befalls(fault, u64::from(scenario.peers.count)) {
            let ordinal = CROWD * (number as u64 + 1) + each;
            let late = Draw::Arrival.rank(seed, ordinal) % within.max(1);
            people.push(Person { newcomer: Some(at + late), ..drawer.peer(ordinal) });
        }
    }
    people
}

struct Drawer<'g> {
    scenario: &'g Scenario,
    ground: &'g Ground,
    seed: u64,
    accesses: Vec<(String, f64)>,
    regions: Vec<(usize, f64)>,
}

impl<'g> Drawer<'g> {
    fn new(scenario: &'g Scenario, ground: &'g Ground, seed: u64) -> Self {
        let accesses = ground.accesses.shares(&scenario.network.access);
        let regions = ground.regions.shares.iter().copied().enumerate().collect();
        Drawer { scenario, ground, seed, accesses, regions }
    }

    fn peer(&self, ordinal: u64) -> Person {
        let Scenario { peers, network, adversaries, .. } = self.scenario;
        let device = draw::pick(&self.ground.shares, Draw::Device.even(self.seed, ordinal)).clone();
        let machine = &self.ground.machines[&device];
        let spread = draw::normal(&mut Draw::Speed.stream(self.seed, ordinal));
        let flops = machine.device.flops * libm::exp(peers.spread * spread);
        let region = *draw::pick(&self.regions, Draw::Region.even(self.seed, ordinal));
        let access = draw::pick(&self.accesses, Draw::Access.even(self.seed, ordinal)).clone();
        let stages = u64::from(self.ground.manifest.stages.count);
        Person {
            ordinal: Some(ordinal),
            speed: Device { flops, noise: machine.device.noise },
            memory: memory_of(machine, peers.memory_share),
            watts: machine.watts,
            device,
            relayed: Draw::Relayed.even(self.seed, ordinal) < network.relayed,
            liar: Draw::Liar.even(self.seed, ordinal) < adversaries.share,
            stage: (peers.places == Places::Even).then_some((ordinal % stages) as u16),
            newcomer: None,
            ..self.placed(access, region)
        }
    }

    /// A feeder only feeds: a core of the largest region, behind the best uplink that is there.
    fn feeder(&self) -> Person {
        let up = |name: &String| self.ground.accesses.access[name].up;
        let best =
            self.accesses.iter().filter(|(_, share)| *share > 0.0).map(|(name, _)| name).max_by_key(|name| up(name));
        let largest = self.regions.iter().rev().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(region, _)| *region);
        self.placed(best.expect("shares sum to 1").clone(), largest)
    }

    /// Where somebody is; the rest as a feeder has it.
    fn placed(&self, access: String, region: usize) -> Person {
        let core = Device::CORE;
        let regions = &self.ground.regions;
        Person {
            ordinal: None,
            device: "feeder".into(),
            link: self.link(&access),
            access,
            region: regions.names[region].clone(),
            region_number: region,
            utc: regions.utc[region],
            speed: core,
            memory: 8 << 30,
            watts: 10.0,
            relayed: false,
            liar: false,
            stage: None,
            newcomer: None,
        }
    }

    /// The table's link, with what the scenario says instead. A delay that it says is exact.
    fn link(&self, access: &str) -> Access {
        let network = &self.scenario.network;
        let mut link = self.ground.accesses.access[access];
        link.up = unit::rate(&network.up).unwrap_or(link.up);
        link.down = unit::rate(&network.down).unwrap_or(link.down);
        if let Ok(delay) = unit::time(&network.delay) {
            (link.delay, link.jitter) = (Duration::from_nanos(delay), Duration::ZERO);
        }
        link
    }
}

impl Person {
    pub fn feeds(&self) -> bool {
        self.ordinal.is_none()
    }

    pub fn plan(&self, disk: u64, starts: Time) -> Plan {
        let role = match (self.feeds(), self.stage) {
            (true, _) => Role::feeder(),
            (false, Some(stage)) => Role::host(stage),
            (false, None) => Role::joiner(),
        };
        let plan = Plan::new(role).starts(Duration::from_nanos(starts)).access(self.link).device(self.speed).disk(disk);
        Plan { memory: self.memory, region: self.region_number, relayed: self.relayed, ..plan }
    }
}
