//! Links and connections: when a message arrives, and when a silence is noticed.
//!
//! A peer has one uplink and one downlink, each a queue at its bandwidth; between two peers lies the sum of their delays, with
//! jitter. A connection is reliable while it stands: what a partition swallows is sent again when it heals. Each side knows
//! only its own end: it takes the connection for dead when it has heard nothing for the idle time, whatever the other believes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::engine::{MILLISECOND, Time};

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

    fn delay_ns(&self) -> Time {
        self.delay.as_nanos() as Time
    }
}

/// Which process of which peer: a restart is another one.
pub type ProcessId = (usize, u32);

/// Name of a connection; never used again.
pub type ConnectionId = u64;

#[derive(Clone, Debug)]
struct Side {
    process: ProcessId,
    up: bool,
    silent_since: Option<Time>,
    /// Changes whenever a silence begins or ends: an old alarm finds another number.
    watch: u64,
    /// Arrival of the last ordered message at this side.
    ordered_at: Time,
}

#[derive(Clone, Debug)]
struct Connection {
    id: ConnectionId,
    /// In the order of the peers' numbers.
    sides: [Side; 2],
}

/// A silence begins: look at `at` whether it lasted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    pub at: Time,
    pub connection: ConnectionId,
    /// Who will have heard nothing, of whom.
    pub of: usize,
    pub from: usize,
    pub watch: u64,
}

pub struct Network {
    access: Vec<Access>,
    up_free: Vec<Time>,
    down_free: Vec<Time>,
    /// The running process of each peer, and whether it is suspended.
    running: Vec<Option<u32>>,
    paused: Vec<bool>,
    connections: BTreeMap<(usize, usize), Connection>,
    blocked: BTreeSet<(usize, usize)>,
    next: ConnectionId,
    idle: Duration,
    rng: ChaCha8Rng,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Network {
    pub fn new(access: Vec<Access>, idle: Duration, rng: ChaCha8Rng) -> Self {
        let peers = access.len();
        Network {
            access,
            up_free: vec![0; peers],
            down_free: vec![0; peers],
            running: vec![None; peers],
            paused: vec![false; peers],
            connections: BTreeMap::new(),
            blocked: BTreeSet::new(),
            next: 0,
            idle,
            rng,
        }
    }

    // ---- delays ----------------------------------------------------------------------------------------------------------

    /// One way from `a` to `b`, now.
    pub fn delay(&mut self, a: usize, b: usize) -> Time {
        let jitter = (self.access[a].jitter + self.access[b].jitter).as_nanos() as Time;
        let extra = if jitter == 0 { 0 } else { self.rng.random_range(0..=jitter) };
        self.access[a].delay_ns() + self.access[b].delay_ns() + extra
    }

    /// Puts `size` bytes on the uplink of `from`: when the last byte has left.
    pub fn depart(&mut self, now: Time, from: usize, size: u64) -> Time {
        let took = bytes_time(size, self.access[from].up);
        self.up_free[from] = self.up_free[from].max(now) + took;
        self.up_free[from]
    }

    /// When a body that left at `departed` has arrived whole.
    pub fn arrive(&mut self, departed: Time, from: usize, to: usize, size: u64) -> Time {
        let at = departed + self.delay(from, to);
        let first = at.saturating_sub(bytes_time(size, self.access[from].up));
        self.down_free[to] = self.down_free[to].max(first) + bytes_time(size, self.access[to].down);
        at.max(self.down_free[to])
    }

    /// When a small ordered message that leaves now arrives: beside the queues, behind its predecessors.
    pub fn arrive_ordered(&mut self, now: Time, from: usize, to: usize, size: u64) -> Time {
        let at = now + self.delay(from, to) + bytes_time(size, self.access[from].up);
        let Some(side) = self.side_mut(to, from) else { return at };
        side.ordered_at = side.ordered_at.max(at).max(side.ordered_at + 1);
        side.ordered_at
    }

    // ---- processes -------------------------------------------------------------------------------------------------------

    pub fn start(&mut self, peer: usize, process: u32) {
        self.running[peer] = Some(process);
        self.paused[peer] = false;
    }

    pub fn stop(&mut self, now: Time, peer: usize) -> Vec<Alarm> {
        self.running[peer] = None;
        self.paused[peer] = false;
        self.refresh_all(now, peer)
    }

    pub fn set_paused(&mut self, now: Time, peer: usize, paused: bool) -> Vec<Alarm> {
        self.paused[peer] = paused;
        self.refresh_all(now, peer)
    }

    // ---- partitions ------------------------------------------------------------------------------------------------------

    pub fn block(&mut self, now: Time, from: usize, to: usize) -> Vec<Alarm> {
        self.blocked.insert((from, to));
        self.refresh(now, from, to)
    }

    pub fn unblock(&mut self, now: Time, from: usize, to: usize) -> Vec<Alarm> {
        self.blocked.remove(&(from, to));
        self.refresh(now, from, to)
    }

    pub fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocked.contains(&(from, to))
    }

    // ---- connections -----------------------------------------------------------------------------------------------------

    fn side(&self, of: usize, other: usize) -> Option<&Side> {
        self.connections.get(&pair(of, other)).map(|c| &c.sides[usize::from(of > other)])
    }

    fn side_mut(&mut self, of: usize, other: usize) -> Option<&mut Side> {
        self.connections.get_mut(&pair(of, other)).map(|c| &mut c.sides[usize::from(of > other)])
    }

    /// The connection to `other`, as `of` sees it.
    pub fn connection(&self, of: usize, other: usize) -> Option<ConnectionId> {
        let side = self.side(of, other)?;
        let mine = self.running[of] == Some(side.process.1);
        (side.up && mine).then(|| self.connections[&pair(of, other)].id)
    }

    pub fn neighbours(&self, of: usize) -> Vec<usize> {
        (0..self.access.len()).filter(|other| self.connection(of, *other).is_some()).collect()
    }

    /// Whether a handshake between two running processes can be finished now.
    pub fn reaches(&self, a: usize, b: usize) -> bool {
        let awake = |peer: usize| self.running[peer].is_some() && !self.paused[peer];
        awake(a) && awake(b) && !self.is_blocked(a, b) && !self.is_blocked(b, a)
    }

    /// Joins two peers by a new connection. Returns who of them loses an older one by it.
    pub fn connect(&mut self, now: Time, a: usize, b: usize) -> Vec<usize> {
        let lost = [a, b].into_iter().zip([b, a]).filter(|(x, y)| self.connection(*x, *y).is_some()).map(|(x, _)| x);
        let lost: Vec<usize> = lost.collect();
        self.next += 1;
        let (low, high) = pair(a, b);
        let side = |peer: usize| Side {
            process: (peer, self.running[peer].unwrap_or(0)),
            up: true,
            silent_since: None,
            watch: 0,
            ordered_at: now,
        };
        let connection = Connection { id: self.next, sides: [side(low), side(high)] };
        self.connections.insert((low, high), connection);
        lost
    }

    /// `of` takes its end for closed.
    pub fn close(&mut self, now: Time, of: usize, other: usize) -> Vec<Alarm> {
        if let Some(side) = self.side_mut(of, other) {
            side.up = false;
        }
        if self.connections.get(&pair(of, other)).is_some_and(|c| c.sides.iter().all(|side| !side.up)) {
            self.connections.remove(&pair(of, other));
            return Vec::new();
        }
        self.refresh(now, of, other)
    }

    /// Whether the silence that an alarm was set for has lasted.
    pub fn rings(&self, alarm: &Alarm) -> bool {
        self.connection(alarm.of, alarm.from) == Some(alarm.connection)
            && self
                .side(alarm.of, alarm.from)
                .is_some_and(|side| side.watch == alarm.watch && side.silent_since.is_some())
    }

    /// Others whom `of` has not heard for the idle time: what it finds out when it wakes.
    pub fn silent(&self, now: Time, of: usize) -> Vec<usize> {
        let idle = self.idle.as_nanos() as Time;
        let silent = |other: &usize| {
            self.side(of, *other)
                .is_some_and(|side| side.up && side.silent_since.is_some_and(|since| now.saturating_sub(since) >= idle))
        };
        self.neighbours(of).into_iter().filter(silent).collect()
    }

    fn refresh_all(&mut self, now: Time, peer: usize) -> Vec<Alarm> {
        (0..self.access.len()).filter(|other| *other != peer).flat_map(|other| self.refresh(now, peer, other)).collect()
    }

    /// Looks at both directions of a connection: a silence that begins sets an alarm, one that ends forgets its own.
    fn refresh(&mut self, now: Time, a: usize, b: usize) -> Vec<Alarm> {
        [self.refresh_direction(now, a, b), self.refresh_direction(now, b, a)].into_iter().flatten().collect()
    }

    fn refresh_direction(&mut self, now: Time, from: usize, to: usize) -> Option<Alarm> {
        let sender = self.side(from, to)?;
        let speaks = sender.up && self.running[from] == Some(sender.process.1) && !self.paused[from];
        let heard = speaks && !self.is_blocked(from, to);
        let id = self.connections[&pair(from, to)].id;
        // The last packet before the silence is up to a keep-alive old.
        let idle = self.idle.as_nanos() as Time;
        let early = self.rng.random_range(0..=idle / 16);
        let side = self.side_mut(to, from)?;
        if !side.up || heard == side.silent_since.is_none() {
            return None;
        }
        side.watch += 1;
        side.silent_since = (!heard).then_some(now);
        (!heard).then_some(Alarm { at: now + idle - early, connection: id, of: to, from, watch: side.watch })
    }

    /// How long QUIC takes to send again what a healed partition had swallowed.
    pub fn retransmission(&mut self) -> Time {
        self.rng.random_range(50..=400) * MILLISECOND
    }
}

fn bytes_time(bytes: u64, a_second: u64) -> Time {
    (u128::from(bytes) * 1_000_000_000 / u128::from(a_second.max(1))) as Time
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SECOND;
    use rand::SeedableRng;

    fn network(peers: usize) -> Network {
        let mut network = Network::new(
            vec![Access { jitter: Duration::ZERO, ..Access::HOME }; peers],
            Duration::from_millis(1600),
            ChaCha8Rng::seed_from_u64(1),
        );
        for peer in 0..peers {
            network.start(peer, 1);
        }
        network
    }

    #[test]
    fn an_uplink_is_a_queue_and_small_messages_pass_it() {
        let mut network = network(2);
        network.connect(0, 0, 1);
        let first = network.depart(0, 0, 2_500_000);
        let second = network.depart(0, 0, 2_500_000);
        assert_eq!((first, second), (SECOND, 2 * SECOND));
        let small = network.arrive_ordered(0, 0, 1, 0);
        assert_eq!(small, 20 * MILLISECOND);
        assert!(network.arrive_ordered(0, 0, 1, 0) > small);
        assert_eq!(network.arrive(first, 0, 1, 2_500_000), SECOND + 20 * MILLISECOND);
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
