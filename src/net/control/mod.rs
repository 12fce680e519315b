//! The control plane: one task that runs libp2p. In: commands of the node, events of the swarm. Out: what was found, which
//! addresses we have, how reachable we are. Data never passes here.

mod behaviour;
mod observed;
mod plane;
mod providers;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU8,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, Swarm, SwarmBuilder, autonat,
    core::{
        ConnectedPoint,
        transport::{ListenerId, TransportError},
    },
    identify,
    identity::Keypair,
    kad, mdns,
    multiaddr::Protocol,
    noise, relay,
    swarm::{
        ConnectionId, DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
    tcp, yamux,
};
use skein_protocol::PeerId;
use tokio::sync::{mpsc, oneshot};

use self::behaviour::{Behaviour, BehaviourEvent, KADEMLIA};
use super::{
    NetConfig, NetError, NetEvent,
    address::{self, Reachability, Scope, Seen},
    data::{Path, Shared, run_quic},
    quic::{self, Endpoints, Quic},
};

/// libp2p closes a connection that neither it nor the data plane uses after this.
const IDLE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_secs(1);
/// After a failed start, bootstrap peers are dialled again with pauses from the first to the last.
const REDIAL_FIRST: Duration = Duration::from_secs(2);
const REDIAL_LAST: Duration = Duration::from_secs(60);
/// Relays that carry for us at one time, and that are remembered.
const RESERVATIONS: usize = 2;
const RELAYS: usize = 16;
/// Addresses of one peer in the routing table. Dead ones leave it when they are dialled.
const ADDRESSES_PEER: usize = 16;
/// A relay that refused is asked again after this.
const RELAY_PAUSE: Duration = Duration::from_secs(30);
/// While the table is smaller than this, what we provide is said again for each newcomer, since it belongs nearer to it.
const TABLE_SMALL: usize = 20;
const PROVIDE_PAUSE: Duration = Duration::from_secs(3);
/// Peers of the local network that are dialled unasked.
const LAN_DIALS: usize = 32;
/// Attempts to find a port that is free for UDP and TCP.
const PORT_ATTEMPTS: usize = 16;
const HOP: &str = "/libp2p/circuit/relay/0.2.0/hop";

/// Requests to the control plane.
#[derive(Debug)]
pub enum Command {
    Dial {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    },
    DialAddress(Multiaddr),
    /// Close a libp2p connection whose stream for messages has ended.
    Close(ConnectionId),
    Ban(PeerId),
    Provide([u8; 32]),
    Lookup {
        request: u64,
        key: [u8; 32],
    },
    Shutdown(oneshot::Sender<()>),
}

/// Builds the swarm and lets it listen, so that a port that cannot be had is an error of the start.
/// The port is the one that it listens at.
pub fn listening_swarm(
    config: &NetConfig,
    shared: &Arc<Shared>,
) -> Result<(Swarm<Behaviour>, Endpoints, u16), NetError> {
    let mut attempt = 1;
    loop {
        let (addresses, port) = listen_addresses(config)?;
        let (mut swarm, endpoints) = swarm(config, shared)?;
        match listen(&mut swarm, addresses, port) {
            Ok(()) => return Ok((swarm, endpoints, port)),
            Err(NetError::PortTaken { .. }) if config.port == 0 && attempt < PORT_ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Another program may have taken the port since it was seen to be free: that is the same as if it had not been.
fn listen(swarm: &mut Swarm<Behaviour>, addresses: Vec<Multiaddr>, port: u16) -> Result<(), NetError> {
    for address in addresses {
        swarm.listen_on(address.clone()).map_err(|error| match error {
            TransportError::Other(error) if is_in_use(&error) => NetError::PortTaken { port },
            error => NetError::Listen { address, source: io::Error::other(error) },
        })?;
    }
    Ok(())
}

/// Whether an address is taken. Transports wrap each other's errors in types that hide the system's own, and repeat its words.
fn is_in_use(error: &io::Error) -> bool {
    #[cfg(unix)]
    const IN_USE: i32 = libc::EADDRINUSE;
    #[cfg(not(unix))]
    const IN_USE: i32 = 10048;
    error.to_string().contains(&io::Error::from_raw_os_error(IN_USE).to_string())
}

fn swarm(config: &NetConfig, shared: &Arc<Shared>) -> Result<(Swarm<Behaviour>, Endpoints), NetError> {
    let other = |error: &dyn std::fmt::Display| NetError::Other(error.to_string());
    let key = Keypair::ed25519_from_bytes(config.key.secret()).map_err(|error| other(&error))?;
    let adopting = shared.clone();
    let adopt = Arc::new(move |peer, connection| {
        tokio::spawn(run_quic(adopting.clone(), peer, connection));
    });
    let quic = Quic::new(&key, &config.limits, adopt).map_err(|error| other(&error))?;
    let endpoints = quic.endpoints();
    let swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
        .map_err(|error| other(&error))?
        .with_other_transport(|_| quic)
        .expect("a transport that exists cannot fail to be made")
        .with_dns()
        .map_err(|error| other(&error))?
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .map_err(|error| other(&error))?
        .with_behaviour(|key, relay_client| Behaviour::new(key, config, shared.clone(), relay_client))
        .expect("a behaviour that is made cannot fail")
        .with_swarm_config(|swarm| {
            swarm
                .with_idle_connection_timeout(IDLE)
                .with_dial_concurrency_factor(NonZeroU8::new(8).expect("eight is not zero"))
                .with_smart_dial()
        })
        .build();
    Ok((swarm, endpoints))
}

/// Addresses for UDP and TCP on one port, which was seen to be free.
fn listen_addresses(config: &NetConfig) -> Result<(Vec<Multiaddr>, u16), NetError> {
    let mut port = config.port;
    for attempt in 1.. {
        match probe(&config.listen, &mut port) {
            Ok(usable) => {
                let addresses = usable.iter().flat_map(|ip| {
                    let at = SocketAddr::new(*ip, port);
                    [quic::to_multiaddr(at), Multiaddr::from(*ip).with(Protocol::Tcp(port))]
                });
                return Ok((addresses.collect(), port));
            }
            // The system chose a UDP port whose TCP twin is taken.
            Err((_, error))
                if config.port == 0 && error.kind() == io::ErrorKind::AddrInUse && attempt < PORT_ATTEMPTS =>
            {
                port = 0;
            }
            Err((_, error)) if error.kind() == io::ErrorKind::AddrInUse => return Err(NetError::PortTaken { port }),
            Err((_, error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(NetError::PortDenied { port });
            }
            Err((ip, source)) => return Err(NetError::Listen { address: Multiaddr::from(ip), source }),
        }
    }
    unreachable!("the last attempt returns");
}

/// Binds and releases each address once, for the error's sake and to learn the port that the system chooses. Addresses of a
/// family that this machine does not have are left out while others remain.
fn probe(listen: &[IpAddr], port: &mut u16) -> Result<Vec<IpAddr>, (IpAddr, io::Error)> {
    let mut held = Vec::new();
    let mut usable = Vec::new();
    let mut failed = None;
    for ip in listen {
        let bound = quic::bind(SocketAddr::new(*ip, *port)).and_then(|udp| {
            *port = udp.local_addr()?.port();
            held.push(udp);
            let tcp = socket2::Socket::new(
                socket2::Domain::for_address(SocketAddr::new(*ip, *port)),
                socket2::Type::STREAM,
                Some(socket2::Protocol::TCP),
            )?;
            if ip.is_ipv6() {
                tcp.set_only_v6(true)?;
            }
            // As libp2p binds it: connections of a former process that still linger do not count.
            tcp.set_reuse_address(true)?;
            tcp.bind(&SocketAddr::new(*ip, *port).into())
        });
        match bound {
            Ok(()) => usable.push(*ip),
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {
                return Err((*ip, error));
            }
            Err(error) => failed = Some((*ip, error)),
        }
    }
    match failed {
        Some(failed) if usable.is_empty() => Err(failed),
        Some((ip, error)) => {
            tracing::info!(%ip, %error, "not listening there");
            Ok(usable)
        }
        None => Ok(usable),
    }
}

pub struct Control {
    config: NetConfig,
    swarm: Swarm<Behaviour>,
    shared: Arc<Shared>,
    lookups: HashMap<kad::QueryId, u64>,
    /// Dials that the node asked for.
    dials: BTreeMap<ConnectionId, (Option<PeerId>, String)>,
    provided: BTreeSet<[u8; 32]>,
    /// When to say again what we provide.
    provide_at: Option<Instant>,
    table: BTreeSet<libp2p::PeerId>,
    endpoints: BTreeMap<ConnectionId, ConnectedPoint>,
    /// Peers that relay, and where we reached them.
    relays: BTreeMap<libp2p::PeerId, Multiaddr>,
    reservations: BTreeMap<libp2p::PeerId, Reservation>,
    seen: Seen,
    reachability: Reachability,
    redial: Redial,
    /// Whether the swarm is one of this machine or this network, where nobody outside confirms an address.
    enclosed: bool,
}

enum Reservation {
    Asked(ListenerId),
    Refused(Instant),
}

struct Redial {
    at: Instant,
    pause: Duration,
}

impl Control {
    pub fn new(config: NetConfig, swarm: Swarm<Behaviour>, shared: Arc<Shared>) -> Control {
        let near = |address: &Multiaddr| matches!(address::scope(address), Scope::Private | Scope::Loopback);
        let enclosed = config.offline_loopback || (config.lan && config.bootstrap.iter().all(near));
        Control {
            swarm,
            shared,
            lookups: HashMap::new(),
            dials: BTreeMap::new(),
            provided: BTreeSet::new(),
            provide_at: None,
            table: BTreeSet::new(),
            endpoints: BTreeMap::new(),
            relays: BTreeMap::new(),
            reservations: BTreeMap::new(),
            seen: Seen::default(),
            reachability: Reachability::Unknown,
            redial: Redial { at: Instant::now(), pause: REDIAL_FIRST },
            enclosed,
            config,
        }
    }

    /// Runs until the node shuts down or is gone.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        for address in self.config.announce.clone() {
            self.swarm.add_external_address(address);
        }
        self.refresh_addresses().await;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event).await,
                command = commands.recv() => match command {
                    None => return,
                    Some(Command::Shutdown(done)) => {
                        drop(self);
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.on_command(command).await,
                },
                _ = ticks.tick() => self.on_tick(),
            }
        }
    }

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Dial { peer, addresses } => self.dial(Some(peer), addresses).await,
            Command::DialAddress(address) => {
                let peer = address::peer_in(&address).and_then(|id| address::peer_of(&id));
                self.dial(peer, vec![address]).await;
            }
            Command::Close(connection) => {
                self.swarm.close_connection(connection);
            }
            Command::Ban(peer) => {
                self.swarm.behaviour_mut().blocked.block_peer(address::libp2p_of(&peer));
            }
            Command::Provide(key) => {
                self.provided.insert(key);
                self.start_providing(key);
            }
            Command::Lookup { request, key } => self.lookup(request, key).await,
            Command::Shutdown(_) => {}
        }
    }

    /// Hands an event to the node. The future holds no borrow of the swarm, which other threads may not share.
    fn tell(&self, event: NetEvent) -> impl Future<Output = ()> + Send + use<> {
        let events = self.shared.events.clone();
        async move { drop(events.send(event).await) }
    }

    async fn dial(&mut self, peer: Option<PeerId>, addresses: Vec<Multiaddr>) {
        let written = addresses.iter().map(Multiaddr::to_string).collect::<Vec<_>>().join(" ");
        if peer == Some(self.shared.me) {
            let why = "that is this peer itself".to_string();
            return self.tell(NetEvent::DialFailed { peer, address: written, why }).await;
        }
        let options = match (peer, addresses.first()) {
            (None, None) => return,
            (None, Some(address)) => DialOpts::unknown_peer_id().address(address.clone()).build(),
            (Some(peer), _) => {
                // A connection that died unnoticed must not stand in the way of a new one, nor a slow one of a better.
                let condition = match self.shared.path(&peer) {
                    Some(Path::Direct | Path::Punched) => PeerCondition::DisconnectedAndNotDialing,
                    Some(Path::Tcp | Path::Relay) | None => PeerCondition::NotDialing,
                };
                let options = DialOpts::peer_id(address::libp2p_of(&peer)).condition(condition);
                options.addresses(addresses).extend_addresses_through_behaviour().build()
            }
        };
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dials.insert(connection, (peer, written));
            }
            Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => {
                let why = words(&error);
                self.tell(NetEvent::DialFailed { peer, address: written, why }).await;
            }
        }
    }

    fn start_providing(&mut self, key: [u8; 32]) {
        // It fails only when the store is full of keys of our own.
        if let Err(error) = self.swarm.behaviour_mut().kad.start_providing(kad::RecordKey::new(&key)) {
            tracing::warn!(%error, "cannot provide another key");
        }
    }

    async fn lookup(&mut self, request: u64, key: [u8; 32]) {
        if self.lookups.len() >= self.config.limits.lookups {
            return self.tell(NetEvent::Found { request, peers: Vec::new(), done: true }).await;
        }
        let query = self.swarm.behaviour_mut().kad.get_providers(kad::RecordKey::new(&key));
        self.lookups.insert(query, request);
    }

    async fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event).await,
            SwarmEvent::NewListenAddr { address, .. } => {
                let direct = self.config.offline_loopback && !self.config.is_forwarded();
                if direct && address::scope(&address) == Scope::Loopback {
                    self.swarm.add_external_address(address.clone());
                }
                self.refresh_addresses().await;
                self.tell(NetEvent::Listening { address }).await;
            }
            SwarmEvent::ExpiredListenAddr { .. }
            | SwarmEvent::ExternalAddrConfirmed { .. }
            | SwarmEvent::ExternalAddrExpired { .. } => self.refresh_addresses().await,
            SwarmEvent::ListenerClosed { listener_id, .. } => {
                self.on_listener_closed(listener_id);
                self.refresh_addresses().await;
            }
            SwarmEvent::ConnectionEstablished { connection_id, endpoint, .. } => {
                self.dials.remove(&connection_id);
                self.endpoints.insert(connection_id, endpoint);
                self.redial.pause = REDIAL_FIRST;
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                self.endpoints.remove(&connection_id);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                if let Some((peer, address)) = self.dials.remove(&connection_id) {
                    self.tell(NetEvent::DialFailed { peer, address, why: words(&error) }).await;
                }
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener failed"),
            _ => {}
        }
    }

    async fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                self.on_identified(connection_id, peer_id, info);
            }
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                id,
                result: kad::QueryResult::GetProviders(result),
                step,
                ..
            }) => self.on_providers(id, result, step.last).await,
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                result: kad::QueryResult::StartProviding(Ok(kad::AddProviderOk { key })),
                ..
            }) => {
                if let Ok(key) = key.as_ref().try_into() {
                    self.tell(NetEvent::Provided { key }).await;
                }
            }
            BehaviourEvent::Kad(kad::Event::RoutingUpdated { peer, old_peer, .. }) => self.on_table(peer, old_peer),
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.on_lan(found).await,
            BehaviourEvent::AutonatClient(autonat::v2::client::Event { result, tested_addr, .. }) => {
                tracing::debug!(%tested_addr, ok = result.is_ok(), "an address of ours was tested from outside");
                if result.is_err() && !address::is_relayed(&tested_addr) {
                    self.seen.test_failed();
                }
                self.judge_reachability().await;
            }
            BehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted { relay_peer_id, .. }) => {
                tracing::debug!(relay = %relay_peer_id, "a relay carries for us");
            }
            BehaviourEvent::Dcutr(event) => tracing::debug!(?event, "hole punching"),
            _ => {}
        }
    }

    fn on_identified(&mut self, connection: ConnectionId, peer: libp2p::PeerId, info: identify::Info) {
        let Some(endpoint) = self.endpoints.get(&connection).cloned() else { return };
        let at = endpoint.get_remote_address().clone();
        let dialled = endpoint.is_dialer() && !endpoint.is_relayed();
        if info.protocols.contains(&KADEMLIA) {
            for address in info.listen_addrs.iter().filter(|address| address::worth_keeping(address, &at)).take(8) {
                // Circuits lead to peers that cannot answer others' questions.
                if !address::is_relayed(address) {
                    self.remember_address(&peer, address);
                }
            }
            if dialled {
                self.remember_address(&peer, &at);
            }
        }
        if dialled && address::is_quic(&at) && !self.config.offline_loopback {
            if let Some(observer) = address::peer_of(&peer) {
                self.seen.observed(observer, &info.observed_addr);
            }
            if address::scope(&info.observed_addr) == Scope::Global {
                self.swarm.behaviour_mut().observed.offer(info.observed_addr);
            }
        }
        if dialled && info.protocols.iter().any(|protocol| protocol.as_ref() == HOP) && self.remembers_relay(peer) {
            self.relays.insert(peer, address::with_peer(at, peer));
            self.reserve();
        }
    }

    /// Whether there is room to remember `peer` as a relay. One that refused or is gone makes room, so that a peer behind NAT
    /// which outlives all relays of its youth finds new ones.
    fn remembers_relay(&mut self, peer: libp2p::PeerId) -> bool {
        if self.relays.len() < RELAYS || self.relays.contains_key(&peer) {
            return true;
        }
        let refused = |relay: &libp2p::PeerId| matches!(self.reservations.get(relay), Some(Reservation::Refused(_)));
        let of_no_use = self.relays.keys().find(|relay| refused(relay) || !self.swarm.is_connected(relay)).copied();
        of_no_use.is_some_and(|relay| self.relays.remove(&relay).is_some())
    }

    /// Remembers an address of a peer for look-ups; of one peer no more than it can reasonably have.
    fn remember_address(&mut self, peer: &libp2p::PeerId, address: &Multiaddr) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        let known = kad.kbucket(*peer).and_then(|bucket| {
            let entry = bucket.iter().find(|entry| entry.node.key.preimage() == peer)?;
            Some(entry.node.value.len())
        });
        if known.unwrap_or(0) < ADDRESSES_PEER {
            kad.add_address(peer, address::without_peer(address));
        }
    }

    async fn on_providers(
        &mut self,
        id: kad::QueryId,
        result: Result<kad::GetProvidersOk, kad::GetProvidersError>,
        last: bool,
    ) {
        let Some(request) = self.lookups.get(&id).copied() else { return };
        let mut peers = Vec::new();
        if let Ok(kad::GetProvidersOk::FoundProviders { providers, .. }) = result {
            for provider in providers {
                if let Some(peer) = address::peer_of(&provider).filter(|peer| *peer != self.shared.me) {
                    peers.push((peer, self.known_addresses(provider)));
                }
            }
            peers.sort();
        }
        if last {
            self.lookups.remove(&id);
        }
        if last || !peers.is_empty() {
            self.tell(NetEvent::Found { request, peers, done: last }).await;
        }
    }

    /// Addresses that Kademlia knows: from its table, and from the answers of look-ups that run.
    fn known_addresses(&mut self, peer: libp2p::PeerId) -> Vec<Multiaddr> {
        use libp2p::swarm::NetworkBehaviour;
        let kad = &mut self.swarm.behaviour_mut().kad;
        let connection = ConnectionId::new_unchecked(usize::MAX);
        let found = kad.handle_pending_outbound_connection(connection, Some(peer), &[], libp2p::core::Endpoint::Dialer);
        let mut addresses = found.unwrap_or_default();
        addresses.retain(|address| address::scope(address) != Scope::Nobody);
        addresses.sort();
        addresses.dedup();
        addresses.truncate(8);
        addresses
    }

    fn on_table(&mut self, peer: libp2p::PeerId, old: Option<libp2p::PeerId>) {
        if let Some(old) = old {
            self.table.remove(&old);
        }
        if self.table.insert(peer) && self.table.len() <= TABLE_SMALL && !self.provided.is_empty() {
            // A first neighbour hears at once; a crowd of them, together.
            let pause = if self.table.len() == 1 { Duration::ZERO } else { PROVIDE_PAUSE };
            self.provide_at.get_or_insert(Instant::now() + pause);
        }
    }

    async fn on_lan(&mut self, found: Vec<(libp2p::PeerId, Multiaddr)>) {
        for (id, address) in found {
            let Some(peer) = address::peer_of(&id) else { continue };
            if self.endpoints.len() < LAN_DIALS && !self.swarm.is_connected(&id) {
                let options = DialOpts::peer_id(id).addresses(vec![address.clone()]).build();
                // It fails when a dial runs already.
                let _ = self.swarm.dial(options);
            }
            self.tell(NetEvent::Lan { peer, address }).await;
        }
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        for peer in self.shared.released() {
            self.swarm.behaviour_mut().blocked.unblock_peer(address::libp2p_of(&peer));
        }
        if self.provide_at.is_some_and(|at| at <= now) {
            self.provide_at = None;
            for key in self.provided.clone() {
                self.start_providing(key);
            }
        }
        if self.swarm.network_info().num_peers() == 0 && self.redial.at <= now {
            self.redial.at = now + self.redial.pause;
            self.redial.pause = (self.redial.pause * 2).min(REDIAL_LAST);
            for address in self.config.bootstrap.clone() {
                // A failure shows in that nobody is there at the next tick.
                let _ = self.swarm.dial(address);
            }
        }
        self.reserve();
    }

    fn wants_relay(&self) -> bool {
        self.config.relay_use
            && (self.config.listen.is_empty()
                || matches!(self.reachability, Reachability::Punchable | Reachability::Relayed))
    }

    /// Asks relays to carry for us, where nobody can reach us otherwise.
    fn reserve(&mut self) {
        if !self.wants_relay() {
            return;
        }
        let now = Instant::now();
        self.reservations.retain(|_, state| !matches!(state, Reservation::Refused(until) if *until <= now));
        let held = self.reservations.values().filter(|state| matches!(state, Reservation::Asked(_))).count();
        let free = self.relays.iter().filter(|(relay, _)| !self.reservations.contains_key(relay));
        let next: Vec<_> = free.take(RESERVATIONS.saturating_sub(held)).map(|(r, a)| (*r, a.clone())).collect();
        for (relay, address) in next {
            let state = match self.swarm.listen_on(address.with(Protocol::P2pCircuit)) {
                Ok(listener) => Reservation::Asked(listener),
                Err(_) => Reservation::Refused(now + RELAY_PAUSE),
            };
            self.reservations.insert(relay, state);
        }
    }

    fn on_listener_closed(&mut self, listener: ListenerId) {
        for state in self.reservations.values_mut() {
            if matches!(state, Reservation::Asked(asked) if *asked == listener) {
                *state = Reservation::Refused(Instant::now() + RELAY_PAUSE);
            }
        }
    }

    async fn refresh_addresses(&mut self) {
        let listening: Vec<Multiaddr> = self.swarm.listeners().cloned().collect();
        let confirmed: Vec<Multiaddr> = self.swarm.external_addresses().cloned().collect();
        let me = *self.swarm.local_peer_id();
        let ours = address::announced(&listening, &confirmed, me, self.config.offline_loopback);
        *self.shared.addresses.write().unwrap_or_else(PoisonError::into_inner) = ours;
        self.judge_reachability().await;
    }

    async fn judge_reachability(&mut self) {
        let public = self.is_public();
        let now = self.seen.reachability(public);
        if now != self.reachability {
            self.reachability = now;
            tracing::info!(reachability = ?now, "how others reach us");
            self.tell(NetEvent::Reachability(now)).await;
        }
        self.choose_mode();
    }

    /// Whether somebody outside confirmed an address that needs no relay.
    fn is_public(&self) -> bool {
        let wide = |address: &Multiaddr| matches!(address::scope(address), Scope::Global | Scope::Name);
        self.swarm.external_addresses().any(wide)
    }

    /// Only who can be reached answers others' questions, or their look-ups wait for us in vain.
    fn choose_mode(&mut self) {
        let serves = self.is_public() || (self.enclosed && !self.config.listen.is_empty());
        let mode = if serves { kad::Mode::Server } else { kad::Mode::Client };
        if self.swarm.behaviour().kad.mode() != mode {
            self.swarm.behaviour_mut().kad.set_mode(Some(mode));
        }
    }
}

/// A dial's failure in one line.
fn words(error: &DialError) -> String {
    match error {
        DialError::NoAddresses => "no address is known".to_string(),
        DialError::WrongPeerId { obtained, address } => format!("{obtained} answered at {address}"),
        DialError::LocalPeerId { .. } => "that is this peer itself".to_string(),
        DialError::Denied { cause } => cause.to_string(),
        DialError::Transport(failures) => {
            let each = failures.iter().map(|(address, error)| format!("{}: {}", address, innermost(error)));
            each.collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use skein_protocol::{Lane, event::Severity, key::Key};

    use super::*;
    use crate::net::{Admit, Code, Limits, Verdict};

    struct RefuseAll;

    impl Admit for RefuseAll {
        fn admit(&self, _: PeerId, _: Lane, _: &[u8], _: u64) -> Verdict {
            Verdict::Refuse { code: Code::Stale, severity: Some(Severity::Odd) }
        }
    }

    #[tokio::test]
    async fn a_port_that_another_program_takes_after_it_was_seen_to_be_free_is_taken() {
        let config = NetConfig {
            key: Key::from_secret([1; 32]),
            port: 0,
            listen: vec![Ipv4Addr::LOCALHOST.into()],
            lan: false,
            port_mapping: false,
            relay_use: false,
            relay_server: false,
            offline_loopback: true,
            bootstrap: Vec::new(),
            announce: Vec::new(),
            limits: Limits::default(),
        };
        let (events, _received) = mpsc::channel(16);
        let (commands, _ordered) = mpsc::channel(16);
        let me = config.key.peer();
        let (shared, _happened) = Shared::new(me, config.limits.clone(), Arc::new(RefuseAll), events, commands);
        for tcp in [false, true] {
            let (addresses, port) = listen_addresses(&config).unwrap();
            let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
            let _udp = (!tcp).then(|| std::net::UdpSocket::bind(at).unwrap());
            let _tcp = tcp.then(|| std::net::TcpListener::bind(at).unwrap());
            let (mut swarm, _) = swarm(&config, &shared).unwrap();
            let listens = listen(&mut swarm, addresses, port);
            assert!(matches!(listens, Err(NetError::PortTaken { port: of }) if of == port), "{tcp}: {listens:?}");
        }
    }
}
