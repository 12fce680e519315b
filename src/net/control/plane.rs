//! Where libp2p and the data plane meet: refuses connections of banned peers and crowded networks, keeps connections that
//! are in use, and opens a stream for messages where a connection is not QUIC of our own. Knows no message.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::IpAddr,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour, Stream,
        SubstreamProtocol, THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};

use crate::net::{
    address,
    data::{self, PROTOCOL, Path, Pipe, Shared},
    gate,
};

pub struct Plane {
    shared: Arc<Shared>,
    /// Connections of each subnet, and the subnet of each connection.
    subnets: BTreeMap<IpAddr, u32>,
    counted: BTreeMap<ConnectionId, IpAddr>,
    /// Relayed connections of each peer.
    relayed: BTreeMap<skein_protocol::PeerId, u32>,
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("this peer is banned")]
    Banned,
    #[error("too many connections from one network")]
    Crowded,
    #[error("the peer's key is not Ed25519")]
    Key,
}

impl Plane {
    pub fn new(shared: Arc<Shared>) -> Plane {
        Plane { shared, subnets: BTreeMap::new(), counted: BTreeMap::new(), relayed: BTreeMap::new() }
    }

    fn handler(
        &self,
        connection: ConnectionId,
        id: PeerId,
        at: &Multiaddr,
        dialled_by_me: bool,
    ) -> Result<Handler, ConnectionDenied> {
        let peer = address::peer_of(&id).ok_or_else(|| ConnectionDenied::new(Refusal::Key))?;
        if self.shared.is_banned(&peer) {
            return Err(ConnectionDenied::new(Refusal::Banned));
        }
        let path = if address::is_relayed(at) { Path::Relay } else { Path::Tcp };
        let about = About { peer: id, connection, path, address: at.to_string(), dialled_by_me };
        let shared = self.shared.clone();
        let keep = shared.keep(peer);
        Ok(Handler { shared, keep, about: (!address::is_quic(at)).then_some(about), asked: false })
    }
}

impl NetworkBehaviour for Plane {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        from: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let subnet = address::ip_of(from).filter(|_| !address::is_relayed(from)).and_then(gate::subnet);
        let crowded = |subnet| self.subnets.get(&subnet).is_some_and(|n| *n >= self.shared.limits.connections_subnet);
        if subnet.is_some_and(crowded) {
            return Err(ConnectionDenied::new(Refusal::Crowded));
        }
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        from: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        // The far end of a relayed connection is only a peer id; our end names the relay.
        let at = if address::is_relayed(local) { local } else { from };
        self.handler(connection, peer, at, false)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        to: &Multiaddr,
        role: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        self.handler(connection, peer, to, role == Endpoint::Dialer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(now) => {
                self.shared.counts.connections.fetch_add(1, Ordering::Relaxed);
                let at = now.endpoint.get_remote_address();
                if now.endpoint.is_relayed() {
                    if let Some(peer) = address::peer_of(&now.peer_id) {
                        *self.relayed.entry(peer).or_default() += 1;
                        self.shared.relayed.lock().unwrap_or_else(PoisonError::into_inner).insert(peer);
                    }
                } else if let Some(subnet) = address::ip_of(at).and_then(gate::subnet) {
                    *self.subnets.entry(subnet).or_default() += 1;
                    self.counted.insert(now.connection_id, subnet);
                }
            }
            FromSwarm::ConnectionClosed(gone) => {
                self.shared.counts.connections.fetch_sub(1, Ordering::Relaxed);
                if let Some(subnet) = self.counted.remove(&gone.connection_id) {
                    decrement(&mut self.subnets, subnet);
                }
                if let Some(peer) = address::peer_of(&gone.peer_id).filter(|_| gone.endpoint.is_relayed())
                    && decrement(&mut self.relayed, peer) == 0
                {
                    self.shared.relayed.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// Counts one less, and forgets what is at zero. Returns what is left.
fn decrement<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) -> u32 {
    let Some(count) = counts.get_mut(&key) else { return 0 };
    *count -= 1;
    let left = *count;
    if left == 0 {
        counts.remove(&key);
    }
    left
}

/// A connection that is not QUIC of our own.
struct About {
    peer: PeerId,
    connection: ConnectionId,
    path: Path,
    address: String,
    dialled_by_me: bool,
}

pub struct Handler {
    shared: Arc<Shared>,
    keep: Arc<AtomicBool>,
    /// Until the one stream for messages is there.
    about: Option<About>,
    asked: bool,
}

impl Handler {
    fn adopt(&mut self, mut stream: Stream) {
        let Some(about) = self.about.take() else { return };
        // The stream is always open; whether the connection stays is decided by use.
        stream.ignore_for_keep_alive();
        let About { peer, connection, path, address, dialled_by_me } = about;
        let pipe = Pipe { peer, connection, path, address, dialled_by_me, stream };
        tokio::spawn(data::run_stream(self.shared.clone(), pipe));
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep.load(Ordering::Relaxed)
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Self::ToBehaviour>> {
        let opens = self.about.as_ref().is_some_and(|about| about.dialled_by_me);
        if opens && !self.asked {
            self.asked = true;
            let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ());
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>) {
        match event {
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, .. }) => self.adopt(protocol),
            // The side that dialled opens the stream: others are dropped.
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. })
                if self.about.as_ref().is_some_and(|about| !about.dialled_by_me) =>
            {
                self.adopt(protocol);
            }
            _ => {}
        }
    }
}
