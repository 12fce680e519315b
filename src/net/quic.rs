//! A libp2p transport over quinn whose connections serve two planes: libp2p has the bidirectional streams, our data plane
//! the unidirectional ones. In: addresses to listen on and to dial. Out: connections whose peer id is proved.
//!
//! One UDP port, one handshake and one NAT mapping a peer, so a hole that libp2p punches is also the data plane's. Hole
//! punching needs nothing special here: both sides dial from their listening ports, which opens both NATs.
//! Knows no message and no policy beyond how many handshakes may run.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use if_watch::{IfEvent, tokio::IfWatcher};
use libp2p::{
    Multiaddr, PeerId,
    core::transport::{DialOpts, ListenerId, PortUse, Transport, TransportError, TransportEvent},
    identity::Keypair,
    multiaddr::Protocol,
};
use skein_protocol::key::Key;
use tokio::{
    sync::{Semaphore, mpsc},
    task::AbortHandle,
};

use super::{
    congestion::PatientConfig,
    gate::{self, Limits},
    muxer::{Adopt, Muxer},
    tls::{self, TlsError},
};

/// A handshake that is not finished by then never will be.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections notice a dead peer after this; those in use have a heartbeat of their own.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Bytes of a datagram that Ethernet carries, as quinn has it.
const DATAGRAM: u16 = 1472;
/// On one machine long datagrams are tried again so soon after they seemed not to pass.
const TRIED_AGAIN: Duration = Duration::from_secs(2);
/// Asked of the system for bursts; what it gives is logged.
const SOCKET_BUFFER: usize = 4 << 20;
/// Bytes of data that quinn buffers for a handshake that we have not looked at.
const INCOMING_BUFFER: u64 = 64 << 10;
const BIDI_STREAMS: u32 = 64;

type Upgrade = BoxFuture<'static, io::Result<(PeerId, Muxer)>>;
type Event = TransportEvent<Upgrade, io::Error>;

pub struct Quic {
    configs: Configs,
    limits: Limits,
    listeners: Vec<Listener>,
    /// Endpoints for dials where nothing listens, by whether they speak IPv4.
    dialers: BTreeMap<bool, quinn::Endpoint>,
    endpoints: Endpoints,
    handshakes: Arc<Semaphore>,
    events_in: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    adopt: Adopt,
}

struct Listener {
    id: ListenerId,
    local: SocketAddr,
    endpoint: quinn::Endpoint,
    tasks: Vec<AbortHandle>,
}

/// All endpoints of a transport, for an orderly end.
#[derive(Clone, Default)]
pub struct Endpoints(Arc<Mutex<Vec<quinn::Endpoint>>>);

impl Endpoints {
    /// Closes every connection with `code`, and waits until the news has left.
    pub async fn close(&self, code: u32, why: &str) {
        let endpoints = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        for endpoint in &endpoints {
            endpoint.close(code.into(), why.as_bytes());
        }
        for endpoint in &endpoints {
            endpoint.wait_idle().await;
        }
    }

    fn add(&self, endpoint: quinn::Endpoint) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(endpoint);
    }
}

impl Quic {
    /// `adopt` is called once for each connection that libp2p has accepted.
    pub fn new(key: &Keypair, limits: &Limits, adopt: Adopt) -> Result<Quic, TlsError> {
        let configs = Configs::new(key, limits)?;
        let (events_in, events) = mpsc::channel(64);
        Ok(Quic {
            configs,
            limits: limits.clone(),
            listeners: Vec::new(),
            dialers: BTreeMap::new(),
            endpoints: Endpoints::default(),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            events_in,
            events,
            adopt,
        })
    }

    pub fn endpoints(&self) -> Endpoints {
        self.endpoints.clone()
    }

    fn endpoint(&self, socket: UdpSocket, server: bool) -> io::Result<quinn::Endpoint> {
        let server = server.then(|| quinn::ServerConfig::clone(&self.configs.server));
        let mut config = quinn::EndpointConfig::default();
        config.max_udp_payload_size(self.limits.datagram_near.max(DATAGRAM)).expect("it is no less than QUIC asks for");
        quinn::Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime))
    }

    /// The endpoint from which `to` is dialled. The listening port is used wherever it can be: only then does the other
    /// side see an address at which we can be reached.
    fn dialer(&mut self, to: SocketAddr, port_use: PortUse) -> io::Result<quinn::Endpoint> {
        let fits = |listener: &&Listener| {
            let local = listener.local.ip();
            listener.local.is_ipv4() == to.is_ipv4() && (!local.is_loopback() || to.ip().is_loopback())
        };
        let shared = port_use == PortUse::Reuse;
        if shared {
            if let Some(listener) = self.listeners.iter().find(fits) {
                return Ok(listener.endpoint.clone());
            }
            if let Some(endpoint) = self.dialers.get(&to.is_ipv4()) {
                return Ok(endpoint.clone());
            }
        }
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let endpoint = self.endpoint(bind(SocketAddr::new(any, 0))?, false)?;
        if shared {
            self.dialers.insert(to.is_ipv4(), endpoint.clone());
            self.endpoints.add(endpoint.clone());
        }
        Ok(endpoint)
    }
}

/// quinn's configurations for both sides, with our windows and time-outs: for peers near by, and for all others.
#[derive(Clone)]
struct Configs {
    client: quinn::ClientConfig,
    client_near: quinn::ClientConfig,
    server: Arc<quinn::ServerConfig>,
    server_near: Arc<quinn::ServerConfig>,
}

impl Configs {
    fn new(key: &Keypair, limits: &Limits) -> Result<Configs, TlsError> {
        let (client, server) = tls::configs(key)?;
        let (client, server) = (Arc::new(client), Arc::new(server));
        let far = Arc::new(transport(limits, None));
        let longer = limits.datagram_near > DATAGRAM;
        let near = if longer { Arc::new(transport(limits, Some(limits.datagram_near))) } else { far.clone() };
        let client = |transport: &Arc<quinn::TransportConfig>| {
            let mut config = quinn::ClientConfig::new(client.clone());
            config.transport_config(transport.clone());
            config
        };
        let server = |transport: &Arc<quinn::TransportConfig>| {
            let mut config = quinn::ServerConfig::with_crypto(server.clone());
            config
                .transport_config(transport.clone())
                .migration(false)
                .max_incoming(limits.handshakes * 2)
                .incoming_buffer_size(INCOMING_BUFFER)
                .incoming_buffer_size_total(INCOMING_BUFFER * limits.handshakes as u64);
            Arc::new(config)
        };
        Ok(Configs {
            client: client(&far),
            client_near: client(&near),
            server: server(&far),
            server_near: server(&near),
        })
    }

    fn client(&self, to: SocketAddr) -> quinn::ClientConfig {
        if is_near(to.ip()) { self.client_near.clone() } else { self.client.clone() }
    }

    fn server(&self, from: SocketAddr) -> Arc<quinn::ServerConfig> {
        if is_near(from.ip()) { self.server_near.clone() } else { self.server.clone() }
    }
}

/// Whether the path may carry more than Ethernet's 1500 bytes: on one machine it does, in one network it can.
fn is_near(ip: IpAddr) -> bool {
    gate::subnet(ip).is_none()
}

/// quinn's configurations with our certificates and ciphers, and otherwise as they come: what our data plane is measured beside.
///
/// # Errors
/// No certificate can be made.
pub fn plain(key: &Key) -> Result<(quinn::ClientConfig, quinn::ServerConfig), TlsError> {
    let key = Keypair::ed25519_from_bytes(key.secret()).expect("32 bytes are a secret key");
    let (client, server) = tls::configs(&key)?;
    Ok((quinn::ClientConfig::new(Arc::new(client)), quinn::ServerConfig::with_crypto(Arc::new(server))))
}

/// `mtu`: the longest datagram that is tried, in bytes; nothing: what Ethernet carries.
fn transport(limits: &Limits, mtu: Option<u16>) -> quinn::TransportConfig {
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    if let Some(mtu) = mtu {
        // Datagrams of 64 KiB are lost in bursts where a reader is slow, which looks like a path that does not carry them.
        discovery.upper_bound(mtu).interval(TRIED_AGAIN).black_hole_cooldown(TRIED_AGAIN);
    }
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(BIDI_STREAMS.into())
        .max_concurrent_uni_streams(limits.streams_new.into())
        .mtu_discovery_config(Some(discovery))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(limits.window_stream.into())
        .receive_window(limits.window_new.into())
        .send_window(limits.send_window)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(quinn::IdleTimeout::try_from(IDLE_TIMEOUT).expect("ten seconds fit a varint")))
        .congestion_controller_factory(Arc::new(PatientConfig::new(Instant::now(), mtu.is_some())));
    transport
}

pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Refusals are not fatal: packets are lost in bursts, and the log says why.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    let given = socket.recv_buffer_size().unwrap_or(0);
    if given < SOCKET_BUFFER {
        tracing::info!(
            asked = SOCKET_BUFFER,
            given,
            "the system gives a smaller UDP receive buffer (net.core.rmem_max)"
        );
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The socket address of `/ip4|ip6/…/udp/…/quic-v1` with or without `/p2p/…`, and nothing else.
pub fn to_socket(address: &Multiaddr) -> Option<(SocketAddr, Option<PeerId>)> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let (Protocol::Udp(port), Protocol::QuicV1) = (parts.next()?, parts.next()?) else { return None };
    let peer = match parts.next() {
        None => None,
        Some(Protocol::P2p(peer)) => Some(peer),
        Some(_) => return None,
    };
    parts.next().is_none().then_some((SocketAddr::new(ip, port), peer))
}

pub fn to_multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Udp(address.port())).with(Protocol::QuicV1)
}

async fn established(connecting: quinn::Connecting, adopt: Adopt) -> io::Result<(PeerId, Muxer)> {
    let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer to the QUIC handshake"))??;
    let peer = tls::peer_of(&connection).ok_or_else(|| io::Error::other("no peer id in the certificate"))?;
    Ok((peer, Muxer::new(peer, connection, adopt)))
}

async fn accept(
    id: ListenerId,
    endpoint: quinn::Endpoint,
    configs: Configs,
    handshakes: Arc<Semaphore>,
    limits: Limits,
    events: mpsc::Sender<Event>,
    adopt: Adopt,
) {
    let Ok(local) = endpoint.local_addr() else { return };
    while let Some(incoming) = endpoint.accept().await {
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let running = limits.handshakes.saturating_sub(handshakes.available_permits());
        if running > limits.handshakes_unproved && !incoming.remote_address_validated() && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        let from = incoming.remote_address();
        let (adopt, config) = (adopt.clone(), configs.server(from));
        let upgrade = async move {
            let _permit = permit;
            established(incoming.accept_with(config)?, adopt).await
        };
        let event = TransportEvent::Incoming {
            listener_id: id,
            upgrade: upgrade.boxed(),
            local_addr: to_multiaddr(local),
            send_back_addr: to_multiaddr(from),
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// Reports the addresses of the interfaces that a listener on "any address" stands on, as they come and go.
async fn watch_interfaces(id: ListenerId, local: SocketAddr, mut watcher: IfWatcher, events: mpsc::Sender<Event>) {
    while let Some(Ok(event)) = watcher.next().await {
        let (net, up) = match event {
            IfEvent::Up(net) => (net, true),
            IfEvent::Down(net) => (net, false),
        };
        if net.addr().is_ipv4() != local.is_ipv4() {
            continue;
        }
        let listen_addr = to_multiaddr(SocketAddr::new(net.addr(), local.port()));
        let event = if up {
            TransportEvent::NewAddress { listener_id: id, listen_addr }
        } else {
            TransportEvent::AddressExpired { listener_id: id, listen_addr }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

impl Transport for Quic {
    type Output = (PeerId, Muxer);
    type Error = io::Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        let Some((wanted, _)) = to_socket(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let endpoint = bind(wanted).and_then(|socket| self.endpoint(socket, true)).map_err(TransportError::Other)?;
        let local = endpoint.local_addr().map_err(TransportError::Other)?;
        let accepting = accept(
            id,
            endpoint.clone(),
            self.configs.clone(),
            self.handshakes.clone(),
            self.limits.clone(),
            self.events_in.clone(),
            self.adopt.clone(),
        );
        let mut tasks = vec![tokio::spawn(accepting).abort_handle()];
        if local.ip().is_unspecified() {
            let watcher = IfWatcher::new().map_err(TransportError::Other)?;
            let watching = watch_interfaces(id, local, watcher, self.events_in.clone());
            tasks.push(tokio::spawn(watching).abort_handle());
        } else {
            let event = TransportEvent::NewAddress { listener_id: id, listen_addr: to_multiaddr(local) };
            let events = self.events_in.clone();
            tasks.push(tokio::spawn(async move { drop(events.send(event).await) }).abort_handle());
        }
        self.dialers.remove(&local.is_ipv4());
        self.endpoints.add(endpoint.clone());
        self.listeners.push(Listener { id, local, endpoint, tasks });
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let Some(at) = self.listeners.iter().position(|listener| listener.id == id) else { return false };
        drop(self.listeners.swap_remove(at));
        let events = self.events_in.clone();
        let closed = TransportEvent::ListenerClosed { listener_id: id, reason: Ok(()) };
        tokio::spawn(async move { drop(events.send(closed).await) });
        true
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Upgrade, TransportError<io::Error>> {
        let Some((to, peer)) = to_socket(&address).filter(|(to, _)| to.port() != 0 && !to.ip().is_unspecified()) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let endpoint = self.dialer(to, options.port_use).map_err(TransportError::Other)?;
        let (config, adopt) = (self.configs.client(to), self.adopt.clone());
        let dial = async move {
            // The name is not looked at: the certificate says who answered.
            let connecting = endpoint.connect_with(config, to, "skein").map_err(io::Error::other)?;
            let (found, muxer) = established(connecting, adopt).await?;
            match peer {
                Some(wanted) if wanted != found => Err(io::Error::other(format!("{found} answered there"))),
                _ => Ok((found, muxer)),
            }
        };
        Ok(dial.boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Event> {
        match self.events.poll_recv(cx) {
            Poll::Ready(Some(event)) => Poll::Ready(event),
            // We hold a sender ourselves, so the channel never ends.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.endpoint.close(gate::Code::ShuttingDown.into(), b"listener closed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_quic_addresses_are_ours() {
        let id = Keypair::generate_ed25519().public().to_peer_id();
        let plain: Multiaddr = "/ip4/127.0.0.1/udp/4001/quic-v1".parse().expect("an address");
        let socket = SocketAddr::from(([127, 0, 0, 1], 4001));
        assert_eq!(to_socket(&plain), Some((socket, None)));
        assert_eq!(to_socket(&plain.clone().with(Protocol::P2p(id))), Some((socket, Some(id))));
        assert_eq!(to_socket(&plain.clone().with(Protocol::P2p(id)).with(Protocol::P2pCircuit)), None);
        assert_eq!(to_socket(&"/ip4/127.0.0.1/tcp/4001".parse().expect("an address")), None);
        assert_eq!(to_multiaddr(socket), plain);
    }
}
