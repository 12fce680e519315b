//! The network of one peer: who is there (libp2p), and messages to them (our own streams on the same connections).
//! In: requests of the node driver, none of which waits. Out: a bounded channel of [`NetEvent`]. Decides nothing about
//! training; knows no frame's content.

pub mod address;
mod congestion;
mod control;
mod data;
pub mod gate;
#[cfg(test)]
mod hostile;
mod lately;
mod muxer;
mod outlet;
mod quic;
mod tls;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use libp2p::Multiaddr;
use serde::Serialize;
use skein_protocol::{Lane, PeerId, event::Severity, key::Key};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

pub use self::{
    address::Reachability,
    data::{Held, Path},
    gate::{Code, Limits},
    quic::{bind, plain as plain_quinn, to_multiaddr, to_socket},
};
use self::{
    control::Command,
    data::{Happened, Shared},
    quic::Endpoints,
};

/// How long an orderly end may take before connections are cut.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a process brings to the network.
#[derive(Clone)]
pub struct NetConfig {
    pub key: Key,
    /// UDP and TCP port; 0 lets the system choose one that is free for both.
    pub port: u16,
    /// Addresses to listen on. None: nobody can connect to us but through relays, which are then asked at once.
    pub listen: Vec<IpAddr>,
    /// Look for peers in the local network by mDNS, and count as its member.
    pub lan: bool,
    /// Ask the router for a port (UPnP).
    pub port_mapping: bool,
    /// Let relays carry for us where nobody can reach us otherwise.
    pub relay_use: bool,
    /// Carry traffic for peers that cannot be reached otherwise.
    pub relay_server: bool,
    /// Everything happens on this machine: loopback addresses count, and nobody outside is asked anything.
    pub offline_loopback: bool,
    /// Peers to start from, with or without `/p2p/…`.
    pub bootstrap: Vec<Multiaddr>,
    /// Addresses of ours to tell others, besides those that we find: whoever set them says that they lead here.
    pub announce: Vec<Multiaddr>,
    pub limits: Limits,
}

impl NetConfig {
    /// Others are to come through a forwarder on this machine.
    fn is_forwarded(&self) -> bool {
        self.offline_loopback && !self.announce.is_empty()
    }

    /// Everything on this machine, at any port.
    pub fn loopback(key: Key) -> NetConfig {
        NetConfig {
            key,
            port: 0,
            listen: vec![Ipv4Addr::LOCALHOST.into()],
            lan: false,
            port_mapping: false,
            relay_use: true,
            relay_server: false,
            offline_loopback: true,
            bootstrap: Vec::new(),
            announce: Vec::new(),
            limits: Limits::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("port {port} is taken by another program")]
    PortTaken { port: u16 },
    #[error("the system does not allow port {port}: ports below 1024 need privileges")]
    PortDenied { port: u16 },
    #[error("listening on {address}: {source}")]
    Listen { address: Multiaddr, source: std::io::Error },
    #[error("starting the network: {0}")]
    Other(String),
}

/// What the node thinks of a body that a peer wants to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Take,
    /// The sender is told `code`; with a `severity` it costs its standing.
    Refuse {
        code: Code,
        severity: Option<Severity>,
    },
}

/// Asked for every message with a body, before the body is read or memory for it is taken. Called on network tasks: quick,
/// and never waiting.
pub trait Admit: Send + Sync {
    fn admit(&self, from: PeerId, lane: Lane, frame: &[u8], body_len: u64) -> Verdict;
}

/// Why a message was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The lane is full; `Writable` follows when it is half empty.
    #[error("the lane to this peer is full")]
    Congested,
    /// The peer is not up; if it was, its `Lost` is on its way.
    #[error("this peer is not connected")]
    NotConnected,
    #[error("the message exceeds the limits")]
    TooLarge,
}

/// Facts, in the past tense.
#[derive(Clone, Debug)]
pub enum NetEvent {
    /// Messages can be exchanged with `peer`. Strictly in turn with `Lost`.
    Up {
        peer: PeerId,
        path: Path,
        address: String,
    },
    /// Another connection to a peer that is up is used from now on; nothing was lost.
    Moved {
        peer: PeerId,
        path: Path,
        address: String,
    },
    /// The connection is gone, or was and is replaced (`Up` follows at once); what was not answered may not have arrived.
    Lost {
        peer: PeerId,
        why: String,
    },
    /// A message arrived whole. Control frames without a body are in order; others are not.
    Message {
        from: PeerId,
        lane: Lane,
        frame: Bytes,
        body: Option<Bytes>,
        /// Room in memory that the body has: to be kept until the body is counted elsewhere.
        room: Option<Held>,
    },
    /// The message that began with this frame is on its way no longer: it lies at `peer`, as far as the connection tells, or was
    /// refused there. Only of activations and gradients.
    Delivered {
        peer: PeerId,
        lane: Lane,
        frame: Bytes,
    },
    /// `peer` did not want the body of the message that began with this frame.
    Refused {
        peer: PeerId,
        lane: Lane,
        frame: Bytes,
        code: Code,
    },
    /// A lane that was `Congested` is half empty again.
    Writable {
        peer: PeerId,
        lane: Lane,
    },
    /// Peers that provide the key of a look-up, with the addresses that are known. The last one of a request is `done`.
    Found {
        request: u64,
        peers: Vec<(PeerId, Vec<Multiaddr>)>,
        done: bool,
    },
    /// The hash table has been told that we provide a key: at first, or again.
    Provided {
        key: [u8; 32],
    },
    /// A dial that the node asked for failed.
    DialFailed {
        peer: Option<PeerId>,
        address: String,
        why: String,
    },
    Listening {
        address: Multiaddr,
    },
    /// A peer was seen in the local network.
    Lan {
        peer: PeerId,
        address: Multiaddr,
    },
    Reachability(Reachability),
}

/// Totals since the start, and the peers of now.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NetStats {
    /// Bytes of frames and bodies, by lane.
    pub sent: [u64; Lane::ALL.len()],
    pub received: [u64; Lane::ALL.len()],
    /// Bytes of bodies that are being read.
    pub receiving: u64,
    /// Bodies that the node refused.
    pub refused: u64,
    /// Faults of peers.
    pub faults: u64,
    /// libp2p connections, with and without messages.
    pub connections: u64,
    pub peers: Vec<PeerStats>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PeerStats {
    pub peer: PeerId,
    pub path: Path,
    pub address: String,
    /// Smoothed round-trip time; nothing before the first measurement.
    pub rtt: Option<Duration>,
    /// What the connection carries while something is on its way; nothing before the first measurement.
    pub bytes_per_s: Option<u64>,
}

/// A handle to the network. Cheap to clone; its methods do not wait.
#[derive(Clone)]
pub struct Net {
    shared: Arc<Shared>,
    endpoints: Endpoints,
    port: u16,
}

/// Starts the network. `admit` judges bodies before they are read.
pub async fn start(mut config: NetConfig, admit: Arc<dyn Admit>) -> Result<(Net, mpsc::Receiver<NetEvent>), NetError> {
    // A forwarder makes something far of what is near.
    if config.is_forwarded() {
        config.limits.datagram_near = 0;
    }
    let (events, received) = mpsc::channel(config.limits.events);
    let (commands, ordered) = mpsc::channel(256);
    let (shared, happened) = Shared::new(config.key.peer(), config.limits.clone(), admit, events, commands);
    let (swarm, endpoints, port) = control::listening_swarm(&config, &shared)?;
    tokio::spawn(data::run_hub(shared.clone(), happened));
    tokio::spawn(control::Control::new(config, swarm, shared.clone()).run(ordered));
    Ok((Net { shared, endpoints, port }, received))
}

impl Net {
    pub fn me(&self) -> PeerId {
        self.shared.me
    }

    /// The UDP and TCP port that this peer listens at; 0 when it does not.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Queues a message to a peer that is up. Control frames without a body arrive in order; every other message has a
    /// stream of its own, whose priority is its lane's.
    pub fn send(&self, to: PeerId, lane: Lane, frame: Bytes, body: Option<Bytes>) -> Result<(), SendError> {
        self.shared.send(to, lane, frame, body)
    }

    /// Connects to `peer` at `addresses` and wherever else it is known to be. `Up` or `DialFailed` follows, unless it is up; if
    /// it is up by way of a relay or TCP, a better connection is tried, and `Moved` follows when there is one.
    pub fn dial(&self, peer: PeerId, addresses: Vec<Multiaddr>) {
        self.command(Command::Dial { peer, addresses });
    }

    /// Connects to whoever is at `address`, or to the peer that its `/p2p/…` names.
    pub fn dial_address(&self, address: Multiaddr) {
        self.command(Command::DialAddress(address));
    }

    /// Closes all connections to `peer`; `Lost` follows.
    pub fn hangup(&self, peer: PeerId) {
        self.leave(peer, Code::Done, "hung up");
    }

    /// As [`Net::hangup`], and the peer is told why it is not wanted.
    pub fn turn_away(&self, peer: PeerId, why: &'static str) {
        self.leave(peer, Code::NotWanted, why);
    }

    fn leave(&self, peer: PeerId, code: Code, why: &'static str) {
        if !self.shared.try_happened(Happened::Hangup { peer, code, why }) {
            let shared = self.shared.clone();
            tokio::spawn(async move { shared.happened(Happened::Hangup { peer, code, why }).await });
        }
    }

    /// Says in the distributed hash table that we provide `key`; it is said again by itself.
    pub fn provide(&self, key: [u8; 32]) {
        self.command(Command::Provide(key));
    }

    /// Asks who provides `key`. Answers are `Found` with this `request`.
    pub fn lookup(&self, request: u64, key: [u8; 32]) {
        self.command(Command::Lookup { request, key });
    }

    /// Where others can reach us, each with our peer id, best first.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        self.shared.addresses.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The peers in use: their connections are never closed for idleness, and their death is noticed within two seconds.
    pub fn active(&self, peers: BTreeSet<PeerId>) {
        self.shared.set_active(peers);
    }

    /// Notes a fault of a peer; too many end in a ban.
    pub fn penalise(&self, peer: PeerId, severity: Severity) {
        self.shared.penalise(peer, severity, "the node says so");
    }

    pub fn stats(&self) -> NetStats {
        self.shared.stats()
    }

    /// Finishes what is on its way (for at most a second), says goodbye and closes everything. Whoever holds the receiver of
    /// events reads on, closes or drops it meanwhile: tasks that wait for room in it cannot say goodbye, and are cut off.
    pub async fn shutdown(self) {
        let (done, finished) = oneshot::channel();
        let goodbye = async {
            self.shared.happened(Happened::Shutdown { within: GOODBYE, done }).await;
            let _ = finished.await;
        };
        let _ = timeout(2 * GOODBYE, goodbye).await;
        let code = Code::ShuttingDown;
        let _ = timeout(GOODBYE, self.endpoints.close(code as u32, code.words())).await;
        let (done, finished) = oneshot::channel();
        let close = async {
            if self.shared.commands.send(Command::Shutdown(done)).await.is_ok() {
                let _ = finished.await;
            }
        };
        let _ = timeout(GOODBYE, close).await;
    }

    /// The control plane takes commands faster than any node gives them; should it ever not, the command waits in a task.
    fn command(&self, command: Command) {
        if let Err(mpsc::error::TrySendError::Full(command)) = self.shared.commands.try_send(command) {
            let commands = self.shared.commands.clone();
            tokio::spawn(async move { drop(commands.send(command).await) });
        }
    }
}
