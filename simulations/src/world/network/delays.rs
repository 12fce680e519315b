//! How far peers are from each other, and how much a connection carries. In: how each is connected, and where. Out: times and
//! rates. It knows no connection and no message.

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::engine::{SECOND, Time};

/// Bytes that our controller sends before anything was acknowledged (`INITIAL_WINDOW` of the product).
const FIRST_FLIGHT: u64 = 128 << 10;

/// How a peer is connected to the world.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    /// One way to the backbone: two peers are the sum of theirs apart.
    pub delay: Duration,
    /// Up to this much more, uniformly.
    pub jitter: Duration,
    /// Bytes a second.
    pub up: u64,
    pub down: u64,
}

impl Access {
    /// Processes on one machine.
    pub const LOOPBACK: Access =
        Access { delay: Duration::from_micros(50), jitter: Duration::from_micros(50), up: 1 << 29, down: 1 << 29 };

    /// A cable at home: 20 Mbit/s up, 300 down, 10 ms to the backbone.
    pub const HOME: Access =
        Access { delay: Duration::from_millis(10), jitter: Duration::from_millis(2), up: 2_500_000, down: 37_500_000 };
}

/// Where a peer is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub access: Access,
    pub region: usize,
    /// Others reach it through a relay only.
    pub relayed: bool,
}

impl Default for Place {
    fn default() -> Self {
        Place { access: Access::LOOPBACK, region: 0, relayed: false }
    }
}

/// What lies between two peers that are joined by a relay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Relay {
    /// One way, beside that of both peers.
    pub leg: Duration,
    /// Bytes a second of one connection.
    pub rate: u64,
}

impl Default for Relay {
    /// A relay a third of a continent away that gives each connection 8 Mbit/s.
    fn default() -> Self {
        Relay { leg: Duration::from_millis(20), rate: 1_000_000 }
    }
}

/// How much of a link bodies get.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Fill {
    /// All of it, whatever is lost: the rates of an access are those of bodies.
    #[default]
    Whole,
    /// What our congestion controller filled in a measurement (BENCHMARKS.md, narrow link): 93 % where nothing is lost, 70 % where
    /// 0.5 % is; between and beyond by 0.93 / (1 + 66 p).
    Measured,
    /// This part of it, 0 to 1.
    Part(f64),
}

/// Everything between the peers.
#[derive(Clone, Debug, Default)]
pub struct Terrain {
    pub places: Vec<Place>,
    /// One-way nanoseconds from region to region; empty: there is one.
    pub regions: Vec<Vec<Time>>,
    /// Part of the datagrams that are lost by chance: 0 to 1.
    pub loss: f64,
    pub fill: Fill,
    pub relay: Relay,
}

impl Terrain {
    pub fn of(places: Vec<Place>) -> Self {
        Terrain { places, ..Terrain::default() }
    }
}

pub(super) struct Delays {
    terrain: Terrain,
    /// By how much the ways of each peer are longer than usual.
    lags: Vec<f64>,
}

impl Delays {
    pub fn new(terrain: Terrain) -> Self {
        Delays { lags: vec![1.0; terrain.places.len()], terrain }
    }

    fn access(&self, peer: usize) -> &Access {
        &self.terrain.places[peer].access
    }

    pub fn up(&self, peer: usize) -> u64 {
        self.access(peer).up
    }

    /// Whether whoever dials `peer` needs a relay for it. Two such peers talk through it, whoever dials; one that dials a peer
    /// in the open reaches it directly.
    pub fn needs_relay(&self, peer: usize) -> bool {
        self.terrain.places[peer].relayed
    }

    /// One way without jitter.
    fn base(&self, a: usize, b: usize, relayed: bool) -> Time {
        let (of_a, of_b) = (&self.terrain.places[a], &self.terrain.places[b]);
        let regions = self.terrain.regions.get(of_a.region).and_then(|row| row.get(of_b.region)).copied().unwrap_or(0);
        let leg = if relayed { self.terrain.relay.leg } else { Duration::ZERO };
        (of_a.access.delay + of_b.access.delay + leg).as_nanos() as Time + regions
    }

    pub fn lag(&mut self, peer: usize, times: f64) {
        self.lags[peer] = times.max(0.0);
    }

    pub fn one_way(&self, a: usize, b: usize, relayed: bool, rng: &mut ChaCha8Rng) -> Time {
        let jitter = (self.access(a).jitter + self.access(b).jitter).as_nanos() as Time;
        let extra = if jitter == 0 { 0 } else { rng.random_range(0..=jitter) };
        let times = self.lags[a].max(self.lags[b]);
        let way = self.base(a, b, relayed) + extra;
        if times == 1.0 { way } else { (way as f64 * times) as Time }
    }

    fn round_trip(&self, a: usize, b: usize, relayed: bool) -> Time {
        self.base(a, b, relayed) + self.base(b, a, relayed)
    }

    pub fn rates(&self) -> Vec<(u64, u64)> {
        let part = match self.terrain.fill {
            Fill::Whole => 1.0,
            Fill::Measured => measured_fill(self.terrain.loss),
            Fill::Part(part) => part.clamp(0.0, 1.0),
        };
        let of = |rate: u64| (rate as f64 * part) as u64;
        self.terrain.places.iter().map(|place| (of(place.access.up), of(place.access.down))).collect()
    }

    pub fn cap(&self, relayed: bool) -> u64 {
        if relayed { self.terrain.relay.rate } else { u64::MAX }
    }

    /// A controller begins with a first flight and doubles it every round trip until the link is full, or the body is out. Ours
    /// keeps its window while a connection rests, so only the first body pays.
    pub fn slow_start(&self, from: usize, to: usize, size: u64, relayed: bool) -> Time {
        let round_trip = self.round_trip(from, to, relayed);
        let rate = self.access(from).up.min(self.access(to).down).min(self.cap(relayed));
        let on_its_way = u128::from(rate) * u128::from(round_trip) / u128::from(SECOND);
        let wanted = on_its_way.min(u128::from(size)) as u64;
        (u128::from(round_trip) * u128::from(doublings_milli(FIRST_FLIGHT, wanted)) / 1000) as Time
    }
}

/// Part of a link's rate that our congestion controller makes use of: 93 % of a clean one, 70 % where one datagram in 200 is
/// lost by chance (BENCHMARKS.md, narrow link).
pub fn measured_fill(loss: f64) -> f64 {
    0.93 / (1.0 + 66.0 * loss.max(0.0))
}

/// Thousandths of doublings from `first` bytes to `bytes`: whole ones, and the rest on a straight line.
fn doublings_milli(first: u64, bytes: u64) -> u64 {
    let (mut window, mut whole) = (first, 0);
    while window * 2 <= bytes {
        window *= 2;
        whole += 1;
    }
    whole * 1000 + bytes.saturating_sub(window) * 1000 / window
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::MILLISECOND;
    use rand::SeedableRng;

    fn delays(terrain: Terrain) -> Delays {
        Delays::new(terrain)
    }

    fn still(relayed: bool, region: usize) -> Place {
        Place { access: Access { jitter: Duration::ZERO, ..Access::HOME }, region, relayed }
    }

    #[test]
    fn delays_of_regions_relays_and_last_miles_add_up() {
        let regions = vec![vec![1, 40 * MILLISECOND], vec![50 * MILLISECOND, 1]];
        let delays = delays(Terrain { regions, ..Terrain::of(vec![still(false, 0), still(true, 1)]) });
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(delays.one_way(0, 1, false, &mut rng), 60 * MILLISECOND);
        assert_eq!(delays.one_way(1, 0, true, &mut rng), 90 * MILLISECOND);
        assert_eq!(delays.cap(true), 1_000_000);
        assert!(delays.needs_relay(1) && !delays.needs_relay(0));
    }

    #[test]
    fn a_first_body_pays_a_round_trip_for_each_doubling() {
        let home = delays(Terrain::of(vec![still(false, 0); 2]));
        assert_eq!(home.slow_start(0, 1, 1 << 20, false), 0, "less is on its way than goes at once");
        let access = Access { jitter: Duration::ZERO, up: 25_000_000, ..Access::HOME };
        let fast = delays(Terrain::of(vec![Place { access, ..Place::default() }; 2]));
        // 40 ms at 25 MB/s: 1 MB is on its way, which is 2.9 doublings of 128 KiB.
        assert_eq!(fast.slow_start(0, 1, 128 << 10, false), 0);
        assert_eq!(fast.slow_start(0, 1, 256 << 10, false), 40 * MILLISECOND);
        assert_eq!(fast.slow_start(0, 1, 1 << 20, false), 40 * 2907 * MILLISECOND / 1000);
    }

    #[test]
    fn what_is_filled_follows_the_measurement() {
        let terrain = |loss, fill| Terrain { loss, fill, ..Terrain::of(vec![still(false, 0); 2]) };
        assert_eq!(delays(terrain(0.0, Fill::Measured)).rates()[0].0, 2_325_000);
        let lossy = delays(terrain(0.005, Fill::Measured)).rates()[0].0 as f64 / 2.5e6;
        assert!((lossy - 0.70).abs() < 0.005, "{lossy}");
        assert_eq!(delays(terrain(0.005, Fill::Measured)).cap(false), u64::MAX);
    }
}
