//! Between the invite's packed form and the network's addresses. In: an invite, or a peer's own addresses. Out: the other.

use std::net::IpAddr;

use libp2p::{Multiaddr, multiaddr::Protocol};
use skein_protocol::{
    PeerId, RunId,
    invite::{ADDRESSES_MAX, Address, BadInvite, Invite, InvitePeer, LABEL_MAX, PEERS_MAX, Transport, VERSION},
};

use crate::node::lobby::Invited;

/// Whom an invite leads to.
pub fn invited(invite: &Invite) -> Invited {
    let peers = invite
        .peers
        .iter()
        .map(|peer| (peer.id, peer.addresses.iter().map(multiaddr).collect::<Vec<Multiaddr>>()))
        .collect();
    Invited { run: invite.run, label: invite.label.clone(), peers }
}

/// The invite of a run. `peers`: me first, then others that can be reached.
///
/// # Errors
/// No peer has an address that others could dial.
pub fn make(run: RunId, label: &str, peers: &[(PeerId, Vec<Multiaddr>)]) -> Result<String, BadInvite> {
    let peers: Vec<InvitePeer> = peers
        .iter()
        .map(|(id, addresses)| InvitePeer { id: *id, addresses: best(addresses) })
        .filter(|peer| !peer.addresses.is_empty())
        .take(PEERS_MAX)
        .collect();
    let mut label = label.to_string();
    while label.len() > LABEL_MAX {
        label.pop();
    }
    Invite { version: VERSION, run, label, peers, token: None }.encode()
}

/// Addresses for an invite, public ones first, at most one private one, QUIC before TCP; loopback only where there is nothing
/// else (two peers on one machine).
fn best(addresses: &[Multiaddr]) -> Vec<Address> {
    let mut all: Vec<Address> = addresses.iter().filter_map(packed).collect();
    all.sort_by_key(|address| (reach(&address.ip), address.transport == Transport::Tcp, address.ip.is_ipv6()));
    all.dedup();
    let outside: Vec<Address> = all.iter().copied().filter(|address| reach(&address.ip) == Reach::Public).collect();
    let inside: Vec<Address> = all.iter().copied().filter(|address| reach(&address.ip) == Reach::Private).collect();
    let here = all.iter().copied().filter(|address| reach(&address.ip) == Reach::Loopback);
    let mut chosen = outside;
    chosen.truncate(ADDRESSES_MAX - 1);
    chosen.extend(inside.into_iter().take(2));
    chosen.truncate(ADDRESSES_MAX);
    // Peers of one machine find each other by it; it costs 7 bytes.
    if chosen.len() < ADDRESSES_MAX {
        chosen.extend(here.take(1));
    }
    chosen
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Public,
    Private,
    Loopback,
}

fn reach(ip: &IpAddr) -> Reach {
    match ip {
        _ if ip.is_loopback() => Reach::Loopback,
        IpAddr::V4(ip)
            if ip.is_private() || ip.is_link_local() || ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64 =>
        {
            Reach::Private
        }
        IpAddr::V6(ip) if ip.is_unique_local() || ip.is_unicast_link_local() => Reach::Private,
        _ => Reach::Public,
    }
}

/// The direct forms only: an address through a relay is longer than an invite has room for.
fn packed(address: &Multiaddr) -> Option<Address> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) if !ip.is_unspecified() => IpAddr::V4(ip),
        Protocol::Ip6(ip) if !ip.is_unspecified() => IpAddr::V6(ip),
        _ => return None,
    };
    let (transport, port) = match parts.next()? {
        Protocol::Udp(port) => (Transport::Quic, port),
        Protocol::Tcp(port) => (Transport::Tcp, port),
        _ => return None,
    };
    let direct = parts.all(|part| matches!(part, Protocol::QuicV1 | Protocol::P2p(_)));
    (direct && port > 0).then_some(Address { transport, ip, port })
}

fn multiaddr(address: &Address) -> Multiaddr {
    let base = Multiaddr::from(address.ip);
    match address.transport {
        Transport::Quic => base.with(Protocol::Udp(address.port)).with(Protocol::QuicV1),
        Transport::Tcp => base.with(Protocol::Tcp(address.port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<Multiaddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn an_invite_leads_to_the_addresses_it_was_made_of() {
        let me = PeerId([3; 32]);
        let run = RunId::default();
        let mine = addresses(&[
            "/ip4/127.0.0.1/udp/4747/quic-v1",
            "/ip4/192.168.1.7/tcp/4747",
            "/ip4/192.168.1.7/udp/4747/quic-v1",
            "/ip4/198.51.100.9/udp/4747/quic-v1",
            "/ip4/0.0.0.0/udp/4747/quic-v1",
        ]);
        let text = make(run, "a label that is far too long for it", &[(me, mine)]).unwrap();
        let invite = Invite::decode(&text).unwrap();
        assert_eq!(invite.label.len(), LABEL_MAX);
        let invited = invited(&invite);
        assert_eq!((invited.run, invited.peers[0].0), (run, me));
        let wanted = addresses(&[
            "/ip4/198.51.100.9/udp/4747/quic-v1",
            "/ip4/192.168.1.7/udp/4747/quic-v1",
            "/ip4/192.168.1.7/tcp/4747",
            "/ip4/127.0.0.1/udp/4747/quic-v1",
        ]);
        assert_eq!(invited.peers[0].1, wanted);
    }

    #[test]
    fn relayed_addresses_and_peers_without_any_stay_out() {
        let relayed = addresses(&["/ip4/198.51.100.9/udp/1/quic-v1/p2p-circuit"]);
        assert!(make(RunId::default(), "x", &[(PeerId([1; 32]), relayed)]).is_err());
    }
}
