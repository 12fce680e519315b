//! Links and connections: when a message arrives, and when a silence is noticed.
//!
//! Between two peers lies the sum of their delays and that of their regions, with jitter. Small messages take that time and no
//! other's; bodies first share uplinks and downlinks as [`flows`]. A connection is reliable while it stands: what a partition
//! swallows is sent again when it heals. Each side knows only its own end: it takes the connection for dead when it has heard
//! nothing for the idle time, or for much longer where it does not use it, whatever the other believes.

mod connections;
mod delays;
pub mod flows;

pub use connections::{Alarm, ConnectionId, ProcessId};
pub use delays::{Access, Fill, Place, Relay, Terrain, measured_fill};
pub use flows::{Flows, InUse, Sharing};

use std::{collections::BTreeSet, time::Duration};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::engine::{MILLISECOND, SECOND, Time};
use connections::Connections;
use delays::Delays;

pub struct Network {
    delays: Delays,
    connections: Connections,
    rng: ChaCha8Rng,
}

impl Network {
    pub fn new(terrain: Terrain, idle: Duration, rng: ChaCha8Rng) -> Self {
        let connections = Connections::new(terrain.places.len(), idle.as_nanos() as Time);
        Network { delays: Delays::new(terrain), connections, rng }
    }

    // ---- times -----------------------------------------------------------------------------------------------------------

    /// From now on the ways of a peer take so many times as long.
    pub fn lag(&mut self, peer: usize, times: f64) {
        self.delays.lag(peer, times);
    }

    /// One way from `a` to `b`, now.
    pub fn delay(&mut self, a: usize, b: usize) -> Time {
        let relayed = self.connections.is_relayed(a, b);
        self.delays.one_way(a, b, relayed, &mut self.rng)
    }

    /// How long `from` takes to reach `to` for the first time: three ways, and what it takes to find it where it is not reached
    /// directly.
    pub fn dialling(&mut self, from: usize, to: usize) -> Time {
        let relayed = self.delays.needs_relay(to);
        let ways = if relayed { 7 } else { 3 };
        (0..ways).map(|_| self.delays.one_way(from, to, relayed, &mut self.rng)).sum()
    }

    /// When a small ordered message that leaves now arrives: beside the bodies, behind its predecessors.
    pub fn arrive_ordered(&mut self, now: Time, from: usize, to: usize, size: u64) -> Time {
        let at = now + self.delay(from, to) + bytes_time(size, self.delays.up(from));
        self.connections.in_order(at, from, to)
    }

    /// Bytes a second that a connection carries at most, whoever else is on its links.
    pub fn cap(&self, from: usize, to: usize) -> u64 {
        self.delays.cap(self.connections.is_relayed(from, to))
    }

    /// How much later a first body of `size` is there than one on a warm connection.
    pub fn slow_start(&self, from: usize, to: usize, size: u64) -> Time {
        self.delays.slow_start(from, to, size, self.connections.is_relayed(from, to))
    }

    /// Bytes a second up and down that bodies get of a peer's access.
    pub fn rates(&self) -> Vec<(u64, u64)> {
        self.delays.rates()
    }

    /// How long QUIC takes to send again what a healed partition had swallowed.
    pub fn retransmission(&mut self) -> Time {
        self.rng.random_range(50..=400) * MILLISECOND
    }

    // ---- connections -----------------------------------------------------------------------------------------------------

    pub fn start(&mut self, peer: usize, process: u32) {
        self.connections.start(peer, process);
    }

    pub fn stop(&mut self, now: Time, peer: usize) -> Vec<Alarm> {
        self.connections.stop(now, peer, &mut self.rng)
    }

    pub fn set_paused(&mut self, now: Time, peer: usize, paused: bool) -> Vec<Alarm> {
        self.connections.set_paused(now, peer, paused, &mut self.rng)
    }

    pub fn block(&mut self, now: Time, from: usize, to: usize) -> Vec<Alarm> {
        self.connections.block(now, from, to, &mut self.rng)
    }

    pub fn unblock(&mut self, now: Time, from: usize, to: usize) -> Vec<Alarm> {
        self.connections.unblock(now, from, to, &mut self.rng)
    }

    pub fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.connections.is_blocked(from, to)
    }

    /// The connection to `other`, as `of` sees it.
    pub fn connection(&self, of: usize, other: usize) -> Option<ConnectionId> {
        self.connections.connection(of, other)
    }

    pub fn neighbours(&self, of: usize) -> Vec<usize> {
        self.connections.neighbours(of)
    }

    pub fn is_alone(&self, of: usize) -> bool {
        self.connections.is_alone(of)
    }

    /// Whether a handshake between two running processes can be finished now.
    pub fn reaches(&self, a: usize, b: usize) -> bool {
        self.connections.reaches(a, b)
    }

    /// Joins two peers by a new connection, which `a` dialled. Returns who of them loses an older one by it.
    pub fn connect(&mut self, now: Time, a: usize, b: usize) -> Vec<usize> {
        let relayed = self.delays.needs_relay(b);
        self.connections.connect(now, a, b, relayed)
    }

    /// `of` takes its end for closed.
    pub fn close(&mut self, now: Time, of: usize, other: usize) -> Vec<Alarm> {
        self.connections.close(now, of, other, &mut self.rng)
    }

    /// The connections that `of` uses from now on are those to these peers: it notices their death fast.
    pub fn set_used(&mut self, now: Time, of: usize, used: BTreeSet<usize>) -> Vec<Alarm> {
        self.connections.set_used(now, of, used, &mut self.rng)
    }

    /// Whether the silence that an alarm was set for has lasted.
    pub fn rings(&self, alarm: &Alarm) -> bool {
        self.connections.rings(alarm)
    }

    /// Others whom `of` has not heard for so long that they count as dead: what it finds out when it wakes.
    pub fn silent(&self, now: Time, of: usize) -> Vec<usize> {
        self.connections.silent(now, of)
    }
}

fn bytes_time(bytes: u64, a_second: u64) -> Time {
    (u128::from(bytes) * u128::from(SECOND) / u128::from(a_second.max(1))) as Time
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    /// All use their connections to all.
    fn network(peers: usize) -> Network {
        let mut network = at_rest(peers);
        for peer in 0..peers {
            network.set_used(0, peer, (0..peers).collect());
        }
        network
    }

    fn at_rest(peers: usize) -> Network {
        let access = Access { jitter: Duration::ZERO, ..Access::HOME };
        let terrain = Terrain::of(vec![Place { access, ..Place::default() }; peers]);
        let mut network = Network::new(terrain, Duration::from_millis(1600), ChaCha8Rng::seed_from_u64(1));
        for peer in 0..peers {
            network.start(peer, 1);
        }
        network
    }

    #[test]
    fn small_messages_take_the_way_and_keep_their_order() {
        let mut network = network(2);
        network.connect(0, 0, 1);
        let small = network.arrive_ordered(0, 0, 1, 0);
        assert_eq!(small, 20 * MILLISECOND);
        assert!(network.arrive_ordered(0, 0, 1, 0) > small);
    }

    #[test]
    fn a_dead_peer_is_noticed_by_its_neighbour_only() {
        let mut network = network(3);
        network.connect(0, 0, 1);
        network.connect(0, 1, 2);
        let alarms = network.stop(SECOND, 1);
        assert_eq!(alarms.iter().map(|a| (a.of, a.from)).collect::<Vec<_>>(), [(0, 1), (2, 1)]);
        assert!(alarms.iter().all(|a| a.at >= SECOND + 1500 * MILLISECOND && a.at <= SECOND + 1600 * MILLISECOND));
        assert!(network.rings(&alarms[0]));
        let later = network.close(alarms[0].at, 0, 1);
        assert!(later.iter().all(|alarm| !network.rings(alarm)), "the dead notice nothing");
        assert_eq!(network.connection(0, 1), None);
    }

    #[test]
    fn a_connection_at_rest_is_given_up_late_and_sooner_when_it_comes_into_use() {
        let mut network = at_rest(3);
        network.connect(0, 0, 1);
        network.connect(0, 1, 2);
        network.set_used(0, 2, BTreeSet::from([1]));
        let alarms = network.stop(SECOND, 1);
        let of = |peer: usize| *alarms.iter().find(|alarm| alarm.of == peer).unwrap();
        assert!(of(0).at > 19 * SECOND && of(2).at < 3 * SECOND, "{alarms:?}");
        let later = network.set_used(5 * SECOND, 0, BTreeSet::from([1]));
        assert_eq!(later.iter().map(|alarm| (alarm.of, alarm.from)).collect::<Vec<_>>(), [(0, 1)]);
        assert!(later[0].at > 6 * SECOND && later[0].at < 7 * SECOND, "{later:?}");
        assert!(network.rings(&later[0]) && !network.rings(&of(0)));
        assert_eq!(network.silent(6 * SECOND, 0), [0; 0]);
        assert_eq!(network.silent(7 * SECOND, 0), [1]);
    }

    #[test]
    fn a_one_way_partition_is_noticed_by_one_side_first() {
        let mut network = network(2);
        network.connect(0, 0, 1);
        let alarms = network.block(0, 0, 1);
        assert_eq!(alarms.len(), 1);
        assert_eq!((alarms[0].of, alarms[0].from), (1, 0));
        assert!(network.connection(0, 1).is_some());
        // When the deaf side gives up it falls silent, and only then the other side begins to wait.
        let later = network.close(alarms[0].at, 1, 0);
        assert_eq!((later[0].of, later[0].from), (0, 1));
        assert!(network.connection(0, 1).is_some());
    }

    #[test]
    fn a_partition_that_heals_in_time_is_not_noticed() {
        let mut network = network(2);
        network.connect(0, 0, 1);
        let alarms = network.block(0, 0, 1);
        network.unblock(SECOND, 0, 1);
        assert!(!network.rings(&alarms[0]));
    }

    #[test]
    fn a_restarted_peer_is_somebody_else() {
        let mut network = network(2);
        network.connect(0, 0, 1);
        network.stop(1, 1);
        network.start(1, 2);
        assert!(network.connection(0, 1).is_some());
        assert!(network.connection(1, 0).is_none());
        assert_eq!(network.connect(2, 1, 0), [0]);
        assert!(network.connection(1, 0).is_some());
    }
}
