//! Addresses: what one is worth to others, which of ours to announce, and how reachable we are.
//! In: multiaddresses. Out: peers in them, their scope, an order. Knows no connection.

use std::{collections::BTreeMap, net::IpAddr};

use libp2p::{Multiaddr, multiaddr::Protocol};
use skein_protocol::{PeerId, id::LIBP2P_PREFIX};

/// The Skein id of a libp2p peer; nothing when its key is not Ed25519.
pub fn peer_of(id: &libp2p::PeerId) -> Option<PeerId> {
    let bytes = id.to_bytes();
    let key = bytes.strip_prefix(&LIBP2P_PREFIX[..])?;
    key.try_into().ok().map(PeerId)
}

pub fn libp2p_of(peer: &PeerId) -> libp2p::PeerId {
    let mut bytes = LIBP2P_PREFIX.to_vec();
    bytes.extend_from_slice(&peer.0);
    libp2p::PeerId::from_bytes(&bytes).expect("an identity multihash of 36 bytes is a peer id")
}

/// The peer at the end of `/…/p2p/<peer>`: for a circuit the one behind the relay.
pub fn peer_in(address: &Multiaddr) -> Option<libp2p::PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// `address` with `/p2p/<peer>` at its end, once.
pub fn with_peer(address: Multiaddr, peer: libp2p::PeerId) -> Multiaddr {
    address.clone().with_p2p(peer).unwrap_or(address)
}

/// `address` without the peer at its end.
pub fn without_peer(address: &Multiaddr) -> Multiaddr {
    let mut bare = address.clone();
    if peer_in(&bare).is_some() {
        bare.pop();
    }
    bare
}

pub fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

pub fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Whether a connection to this address is a QUIC connection of ours, so that data has streams of its own on it.
pub fn is_quic(address: &Multiaddr) -> bool {
    !is_relayed(address) && address.iter().any(|part| part == Protocol::QuicV1)
}

/// Who can use an address, the widest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everyone, straight.
    Global,
    /// Everyone who can resolve the name.
    Name,
    /// Our own network.
    Private,
    /// Everyone, through a relay.
    Relayed,
    /// This machine.
    Loopback,
    /// Nobody (unspecified, link-local, not an address at all).
    Nobody,
}

pub fn scope(address: &Multiaddr) -> Scope {
    if is_relayed(address) {
        return Scope::Relayed;
    }
    match address.iter().next() {
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => Scope::Name,
        Some(Protocol::Ip4(ip)) => scope_of(ip.into()),
        Some(Protocol::Ip6(ip)) => scope_of(ip.into()),
        _ => Scope::Nobody,
    }
}

fn scope_of(ip: IpAddr) -> Scope {
    if ip.is_loopback() {
        return Scope::Loopback;
    }
    match ip.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() || v4.is_link_local() || v4.is_broadcast() => Scope::Nobody,
        // 100.64/10 is a provider's own translation: as good as private.
        IpAddr::V4(v4) if v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64) => Scope::Private,
        IpAddr::V4(_) => Scope::Global,
        IpAddr::V6(v6) if v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_multicast() => Scope::Nobody,
        IpAddr::V6(v6) if v6.is_unique_local() => Scope::Private,
        IpAddr::V6(_) => Scope::Global,
    }
}

/// Our addresses as others should try them: each with our peer id, no duplicates, best first. Confirmed ones come first,
/// then by scope, QUIC before TCP. Loopback only where it is all there is (`loopback`), and of that only what is confirmed, if
/// anything is: behind a forwarder on this machine.
pub fn announced(
    listening: &[Multiaddr],
    confirmed: &[Multiaddr],
    me: libp2p::PeerId,
    loopback: bool,
) -> Vec<Multiaddr> {
    let mut ours: Vec<(bool, Scope, bool, Multiaddr)> = Vec::new();
    let forwarded = confirmed.iter().any(|address| scope(address) == Scope::Loopback);
    for (address, is_confirmed) in confirmed.iter().map(|a| (a, true)).chain(listening.iter().map(|a| (a, false))) {
        let scope = scope(address);
        let usable = match scope {
            Scope::Global | Scope::Name | Scope::Private | Scope::Relayed => true,
            Scope::Loopback => loopback && (is_confirmed || !forwarded),
            Scope::Nobody => false,
        };
        let address = with_peer(address.clone(), me);
        if usable && !ours.iter().any(|(.., known)| *known == address) {
            let straight = is_confirmed && scope != Scope::Relayed;
            ours.push((!straight, scope, !is_quic(&address), address));
        }
    }
    ours.sort();
    ours.into_iter().map(|(.., address)| address).collect()
}

/// Whether to remember `address` of a peer whose connection to us runs over `seen`: addresses of private networks and of
/// this machine are of use only where the peer is in the same one.
pub fn worth_keeping(address: &Multiaddr, seen: &Multiaddr) -> bool {
    match scope(address) {
        Scope::Global | Scope::Name | Scope::Relayed => true,
        Scope::Private => matches!(scope(seen), Scope::Private | Scope::Loopback),
        Scope::Loopback => scope(seen) == Scope::Loopback,
        Scope::Nobody => false,
    }
}

/// How others reach us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reachability {
    /// Not known yet.
    #[default]
    Unknown,
    /// At an address that was tested from outside.
    Public,
    /// Behind a NAT that shows every peer the same port: hole punching works.
    Punchable,
    /// Behind a NAT that shows each peer another port: only relays carry, or others that are public.
    Relayed,
}

/// What peers say our address is, and what tests from outside found.
#[derive(Debug, Default)]
pub struct Seen {
    /// Where each observer sees our QUIC port.
    observed: BTreeMap<PeerId, Multiaddr>,
    failed_tests: u32,
}

/// Observers that are remembered.
const OBSERVERS: usize = 16;
/// Tests that must fail before we take ourselves for unreachable.
const FAILED_TESTS: u32 = 3;

impl Seen {
    /// `observer` saw us at `address`, on a connection that we dialled from our listening port.
    pub fn observed(&mut self, observer: PeerId, address: &Multiaddr) {
        if scope(address) != Scope::Global {
            return;
        }
        if self.observed.len() >= OBSERVERS && !self.observed.contains_key(&observer) {
            self.observed.pop_first();
        }
        self.observed.insert(observer, without_peer(address));
    }

    pub fn test_failed(&mut self) {
        self.failed_tests = self.failed_tests.saturating_add(1);
    }

    /// `public` says whether a straight address is confirmed now.
    pub fn reachability(&self, public: bool) -> Reachability {
        if public {
            return Reachability::Public;
        }
        if self.failed_tests < FAILED_TESTS {
            return Reachability::Unknown;
        }
        let mut families: BTreeMap<bool, Vec<&Multiaddr>> = BTreeMap::new();
        for address in self.observed.values() {
            families.entry(ip_of(address).is_some_and(|ip| ip.is_ipv4())).or_default().push(address);
        }
        let stable = |seen: &&Vec<&Multiaddr>| seen.iter().all(|address| *address == seen[0]);
        match families.values().filter(|seen| seen.len() >= 2).find(stable) {
            Some(_) => Reachability::Punchable,
            None => Reachability::Relayed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_protocol::key::Key;

    fn at(text: &str) -> Multiaddr {
        text.parse().expect("an address")
    }

    #[test]
    fn ids_are_the_same_in_both_worlds() {
        let key = Key::from_secret([9; 32]);
        let theirs = libp2p::identity::Keypair::ed25519_from_bytes(key.secret()).expect("32 bytes");
        let theirs = theirs.public().to_peer_id();
        assert_eq!(libp2p_of(&key.peer()), theirs);
        assert_eq!(peer_of(&theirs), Some(key.peer()));
        assert_eq!(theirs.to_string(), key.peer().to_string());
    }

    #[test]
    fn confirmed_and_wide_addresses_are_announced_first() {
        let me = libp2p_of(&Key::from_secret([1; 32]).peer());
        let relayed = at(&format!("/ip4/198.51.100.1/udp/1/quic-v1/p2p/{me}/p2p-circuit"));
        let listening = [
            at("/ip4/127.0.0.1/udp/1/quic-v1"),
            at("/ip4/192.168.0.2/tcp/1"),
            at("/ip4/192.168.0.2/udp/1/quic-v1"),
            relayed.clone(),
        ];
        let confirmed = [relayed.clone(), at("/ip4/203.0.113.5/udp/9/quic-v1")];
        let ours = announced(&listening, &confirmed, me, false);
        let wanted = [confirmed[1].clone(), listening[2].clone(), listening[1].clone(), relayed];
        assert_eq!(ours, wanted.map(|address| with_peer(address, me)));
        assert_eq!(announced(&listening[..1], &[], me, true).len(), 1);
        let forwarded = at("/ip4/127.0.0.1/udp/7/quic-v1");
        let behind = announced(&listening[..1], std::slice::from_ref(&forwarded), me, true);
        assert_eq!(behind, [with_peer(forwarded, me)]);
    }

    #[test]
    fn private_addresses_of_strangers_are_not_kept() {
        let far = at("/ip4/203.0.113.5/udp/9/quic-v1");
        let near = at("/ip4/192.168.0.7/udp/9/quic-v1");
        assert!(!worth_keeping(&near, &far));
        assert!(worth_keeping(&near, &near));
        assert!(worth_keeping(&far, &near));
        assert!(!worth_keeping(&at("/ip4/127.0.0.1/udp/9/quic-v1"), &near));
    }

    #[test]
    fn a_port_that_changes_with_the_observer_cannot_be_punched() {
        let mut seen = Seen::default();
        let observer = |n| PeerId([n; 32]);
        seen.observed(observer(1), &at("/ip4/203.0.113.5/udp/9/quic-v1"));
        assert_eq!(seen.reachability(false), Reachability::Unknown);
        for _ in 0..FAILED_TESTS {
            seen.test_failed();
        }
        assert_eq!(seen.reachability(false), Reachability::Relayed);
        seen.observed(observer(2), &at("/ip4/203.0.113.5/udp/9/quic-v1"));
        assert_eq!(seen.reachability(false), Reachability::Punchable);
        seen.observed(observer(2), &at("/ip4/203.0.113.5/udp/10/quic-v1"));
        assert_eq!(seen.reachability(false), Reachability::Relayed);
        assert_eq!(seen.reachability(true), Reachability::Public);
    }
}
