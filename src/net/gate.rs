//! Who gets how much: every limit of the network layer in one table, and the standing of peers.
//! In: a peer's faults. Out: whether it is banned, and until when. Knows no socket; the caller gives the time.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use skein_protocol::{Lane, PeerId, event::Severity, wire::limits::BODY_MAX};

pub use super::data::wire::Code;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What this process grants to others. Every number is checked before anything is allocated for it.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of an encoded frame.
    pub frame_max: u32,
    /// Bytes of a message's body: the protocol's own limit, since one averaging round of a stage is one body.
    pub body_max: u64,
    /// Bytes of bodies that are being read at one time.
    pub receiving_total: u64,
    /// Concurrent messages from a peer before and after one of its bodies was taken.
    pub streams_new: u32,
    pub streams: u32,
    /// QUIC receive windows in bytes: of a stream, which its connection's bounds too; of a stranger's connection, of one from
    /// which a body was taken, the most that one may grow to as its link needs it, and the sum that may be granted.
    pub window_stream: u32,
    pub window_new: u32,
    pub window_used: u32,
    pub window: u32,
    pub windows_total: u64,
    /// Bytes unacknowledged on one connection: more than `window`, so that only what the peer grants bounds them.
    pub send_window: u64,
    /// Bytes of messages on their way over one connection, in a lane and those before it.
    pub flying_bytes: u64,
    /// Bytes of the longest datagram that is tried to a peer on this machine or in this network, where more than Ethernet's 1500
    /// bytes may pass: fewer packets are sealed and counted for the same bytes. quinn hands ten at once to the system, which
    /// takes no more than 65,507.
    pub datagram_near: u16,
    /// Messages and bytes that wait for one peer in one lane; more is `Congested`.
    pub queue_messages: usize,
    pub queue_bytes: u64,
    /// Connections: of one peer (a relayed one, two punched ones, a spare), from one /24 or /48, in all, incoming.
    pub connections_peer: u32,
    pub connections_subnet: u32,
    pub connections: u32,
    pub connections_incoming: u32,
    /// Handshakes and dials that are not finished.
    pub connections_pending: u32,
    /// QUIC handshakes in flight; above `handshakes_unproved` an address must first show that it receives (Retry).
    pub handshakes: usize,
    pub handshakes_unproved: usize,
    /// Look-ups that run at one time.
    pub lookups: usize,
    /// Keys and providers a key that we store for others.
    pub provided_keys: usize,
    pub providers_per_key: usize,
    /// Events that wait for the node.
    pub events: usize,
    /// What a relayed circuit through us may carry.
    pub relay_bytes: u64,
    pub relay_duration: Duration,
    pub relay_circuits: usize,
    /// Share of the machine's memory above which no connection is accepted.
    pub memory_share: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            frame_max: 64 * KIB as u32,
            body_max: BODY_MAX,
            receiving_total: 1024 * MIB,
            streams_new: 4,
            streams: 64,
            window_stream: 16 * MIB as u32,
            window_new: MIB as u32,
            window_used: 4 * MIB as u32,
            window: 64 * MIB as u32,
            windows_total: 1024 * MIB,
            send_window: 80 * MIB,
            flying_bytes: 24 * MIB,
            datagram_near: 6500,
            queue_messages: 256,
            queue_bytes: 64 * MIB,
            connections_peer: 4,
            connections_subnet: 64,
            connections: 768,
            connections_incoming: 512,
            connections_pending: 64,
            handshakes: 128,
            handshakes_unproved: 32,
            lookups: 64,
            provided_keys: 4096,
            providers_per_key: 256,
            events: 1024,
            relay_bytes: 1024 * MIB,
            relay_duration: Duration::from_secs(3600),
            relay_circuits: 64,
            memory_share: 0.9,
        }
    }
}

/// Messages of a lane that may be on their way to one peer at one time, each on a stream of its own.
pub fn flying_max(lane: Lane) -> usize {
    match lane {
        Lane::Control | Lane::Gradient | Lane::Activation | Lane::Generation => 16,
        Lane::Average => 8,
        Lane::Bulk => 2,
    }
}

/// quinn's priority of a message, the `number`th of its connection: higher is sent first. In a lane one goes after the other,
/// since of bodies that share a link evenly all arrive when the last one does. The control stream itself stands above all.
pub fn priority(lane: Lane, number: u64) -> i32 {
    /// Messages after which the count begins again: a few are then out of their order.
    const IN_ORDER: u64 = 1 << 24;
    let rank = match lane {
        Lane::Control => 4,
        Lane::Gradient => 3,
        Lane::Activation => 2,
        Lane::Average => 1,
        Lane::Generation => 0,
        Lane::Bulk => -1,
    };
    (rank + 1) * IN_ORDER as i32 - (number % IN_ORDER) as i32 - 1
}

/// What a fault costs, in points. A hundred points are a ban.
fn cost(severity: Severity) -> u32 {
    match severity {
        Severity::Odd => 1,
        Severity::Wrong => 10,
        Severity::Hostile => 40,
    }
}

const BAN_AT: u32 = 100;
/// Points are forgiven at this pace: an honest peer that is odd once a second is never banned.
const FORGIVEN_PER_SECOND: u32 = 1;
/// The first ban; each further one of the same peer is twice as long, up to the last.
const BAN_FIRST: Duration = Duration::from_secs(10 * 60);
const BAN_LAST: Duration = Duration::from_secs(6 * 3600);
/// Peers that are remembered; the least guilty is forgotten first.
const REMEMBERED: usize = 4096;

/// What peers did wrong, and who is banned for it.
#[derive(Debug, Default)]
pub struct Standing {
    peers: BTreeMap<PeerId, Record>,
}

#[derive(Debug)]
struct Record {
    points: u32,
    at: Instant,
    bans: u32,
    banned_until: Option<Instant>,
}

impl Standing {
    /// Notes a fault. Returns the end of the ban when this fault caused one.
    pub fn penalise(&mut self, peer: PeerId, severity: Severity, now: Instant) -> Option<Instant> {
        if !self.peers.contains_key(&peer) && self.peers.len() >= REMEMBERED {
            self.forget_one(now);
        }
        let record = self.peers.entry(peer).or_insert(Record { points: 0, at: now, bans: 0, banned_until: None });
        record.points = record.left(now) + cost(severity);
        record.at = now;
        if record.points < BAN_AT {
            return None;
        }
        let until = now + BAN_LAST.min(BAN_FIRST * (1 << record.bans.min(10)));
        record.points = 0;
        record.bans += 1;
        record.banned_until = Some(until);
        Some(until)
    }

    pub fn is_banned(&self, peer: &PeerId, now: Instant) -> bool {
        self.peers.get(peer).is_some_and(|record| record.banned_until.is_some_and(|until| now < until))
    }

    /// Peers whose ban has just ended; each is returned once.
    pub fn released(&mut self, now: Instant) -> Vec<PeerId> {
        let mut free = Vec::new();
        for (peer, record) in &mut self.peers {
            if record.banned_until.is_some_and(|until| until <= now) {
                record.banned_until = None;
                free.push(*peer);
            }
        }
        free
    }

    fn forget_one(&mut self, now: Instant) {
        let guilt = |record: &Record| (record.banned_until.is_some(), record.bans, record.left(now));
        if let Some(peer) = self.peers.iter().min_by_key(|(_, record)| guilt(record)).map(|(peer, _)| *peer) {
            self.peers.remove(&peer);
        }
    }
}

impl Record {
    fn left(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.at).as_secs().min(u64::from(u32::MAX)) as u32;
        self.points.saturating_sub(seconds.saturating_mul(FORGIVEN_PER_SECOND))
    }
}

/// The network that limits count as one neighbour: a /24 or a /48. Nothing for loopback and private addresses, which are
/// exempt (a household or a laboratory is one subnet).
pub fn subnet(ip: IpAddr) -> Option<IpAddr> {
    match ip.to_canonical() {
        IpAddr::V4(v4) if v4.is_loopback() || v4.is_private() || v4.is_link_local() => None,
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            Some(IpAddr::from([a, b, c, 0]))
        }
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local() => None,
        IpAddr::V6(v6) => {
            let [a, b, c, ..] = v6.segments();
            Some(IpAddr::from([a, b, c, 0, 0, 0, 0, 0]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    #[test]
    fn lanes_go_before_each_other_and_messages_of_one_in_order() {
        let lanes = [Lane::Control, Lane::Gradient, Lane::Activation, Lane::Average, Lane::Generation, Lane::Bulk];
        let order: Vec<i32> =
            lanes.iter().flat_map(|lane| [0, 1, (1 << 24) - 1].map(|number| priority(*lane, number))).collect();
        assert!(order.is_sorted_by(|a, b| a > b), "{order:?}");
    }

    #[test]
    fn hostile_bytes_end_in_a_ban_that_ends() {
        let (mut standing, now) = (Standing::default(), Instant::now());
        assert_eq!(standing.penalise(peer(1), Severity::Hostile, now), None);
        assert_eq!(standing.penalise(peer(1), Severity::Hostile, now), None);
        let until = standing.penalise(peer(1), Severity::Hostile, now).expect("the third one bans");
        assert!(standing.is_banned(&peer(1), now));
        assert!(!standing.is_banned(&peer(2), now));
        assert_eq!(standing.released(until - Duration::from_secs(1)), vec![]);
        assert_eq!(standing.released(until), vec![peer(1)]);
        assert_eq!(standing.released(until), vec![]);
        assert!(!standing.is_banned(&peer(1), until));
    }

    #[test]
    fn oddities_are_forgiven_and_the_second_ban_is_longer() {
        let (mut standing, mut now) = (Standing::default(), Instant::now());
        for _ in 0..1000 {
            now += Duration::from_secs(1);
            assert_eq!(standing.penalise(peer(1), Severity::Odd, now), None);
        }
        let mut bans = Vec::new();
        for _ in 0..6 {
            bans.extend(standing.penalise(peer(1), Severity::Hostile, now).map(|until| until - now));
        }
        assert_eq!(bans, vec![BAN_FIRST, BAN_FIRST * 2]);
    }

    #[test]
    fn memory_of_faults_is_bounded_and_keeps_the_banned() {
        let (mut standing, now) = (Standing::default(), Instant::now());
        for _ in 0..3 {
            standing.penalise(peer(0), Severity::Hostile, now);
        }
        for n in 0..2 * REMEMBERED as u32 {
            let mut key = [1; 32];
            key[..4].copy_from_slice(&n.to_le_bytes());
            standing.penalise(PeerId(key), Severity::Odd, now);
        }
        assert_eq!(standing.peers.len(), REMEMBERED);
        assert!(standing.is_banned(&peer(0), now));
    }

    #[test]
    fn private_addresses_count_towards_no_subnet() {
        assert_eq!(subnet([192, 168, 1, 7].into()), None);
        assert_eq!(subnet([127, 0, 0, 1].into()), None);
        assert_eq!(subnet([203, 0, 113, 9].into()), Some([203, 0, 113, 0].into()));
        let v6: IpAddr = "2001:db8:1:2::3".parse().expect("an address");
        assert_eq!(subnet(v6), "2001:db8:1::".parse().ok());
    }
}
