//! The data plane: messages between peers, over whichever connections libp2p has made. In: connections, and messages to
//! send. Out: `Up`, `Message`, `Lost`, with at most one connection of a peer in use at a time.
//! A message is delivered, or its sender hears `Lost`. Knows no frame's content.

mod coming;
mod conversation;
mod courtesy;
#[cfg(test)]
mod decoders;
mod flying;
mod granted;
mod hub;
mod link;
mod outbox;
mod pace;
mod quic_link;
mod rooms;
mod sent;
mod silence;
mod stream_link;
mod turns;
mod window;
pub(super) mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p::Multiaddr;
use skein_protocol::{Lane, PeerId, event::Severity};
use tokio::sync::{mpsc, oneshot, watch};

use self::{
    courtesy::Courtesy,
    outbox::{Message, Outbox},
    rooms::{Rooms, Shares},
};
pub use self::{
    hub::{Happened, run as run_hub},
    link::{Link, Path},
    rooms::Held,
    stream_link::{PROTOCOL, Pipe, run as run_stream},
};
use super::{
    Admit, Command, NetEvent, NetStats, PeerStats, SendError,
    gate::{Limits, Standing},
};

pub use quic_link::run as run_quic;

/// A connection that carried messages within this time is not closed for idleness.
const USED_LATELY: Duration = Duration::from_secs(20);

/// What all parts of the network layer share.
pub struct Shared {
    pub me: PeerId,
    pub limits: Limits,
    pub events: mpsc::Sender<NetEvent>,
    pub commands: mpsc::Sender<Command>,
    pub counts: Counts,
    /// Our addresses as they are announced, best first; the control plane keeps them.
    pub addresses: RwLock<Vec<Multiaddr>>,
    /// Peers to whom libp2p has a relayed connection.
    pub relayed: Mutex<BTreeSet<PeerId>>,
    admit: Arc<dyn Admit>,
    inbox: mpsc::Sender<Happened>,
    /// Which start of this process this is, to tell a restarted peer from a second connection.
    instance: u64,
    serials: AtomicU64,
    peers: RwLock<BTreeMap<PeerId, Present>>,
    active: RwLock<BTreeSet<PeerId>>,
    keeps: Mutex<BTreeMap<PeerId, Arc<AtomicBool>>>,
    standing: Mutex<Standing>,
    receiving: Rooms,
    /// Bytes of receive windows granted to peers beyond what everyone gets.
    granted: AtomicU64,
    courtesy: Courtesy,
    started: Instant,
}

/// A peer that is up.
#[derive(Clone)]
struct Present {
    peering: Arc<Peering>,
    link: Arc<Link>,
}

/// Totals since the start. Bytes are frames and bodies, without headers.
#[derive(Default)]
pub struct Counts {
    sent: [AtomicU64; Lane::ALL.len()],
    received: [AtomicU64; Lane::ALL.len()],
    refused: AtomicU64,
    faults: AtomicU64,
    pub connections: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(
        me: PeerId,
        limits: Limits,
        admit: Arc<dyn Admit>,
        events: mpsc::Sender<NetEvent>,
        commands: mpsc::Sender<Command>,
    ) -> (Arc<Shared>, mpsc::Receiver<Happened>) {
        let (inbox, happened) = mpsc::channel(256);
        let receiving = Rooms::new(limits.receiving_total);
        let shared = Shared {
            me,
            limits,
            events,
            commands,
            counts: Counts::default(),
            addresses: RwLock::default(),
            relayed: Mutex::default(),
            admit,
            inbox,
            instance: rand::random(),
            serials: AtomicU64::new(1),
            peers: RwLock::default(),
            active: RwLock::default(),
            keeps: Mutex::default(),
            standing: Mutex::default(),
            receiving,
            granted: AtomicU64::new(0),
            courtesy: Courtesy::new(Instant::now()),
            started: Instant::now(),
        };
        (Arc::new(shared), happened)
    }

    fn present(&self, peer: &PeerId) -> Option<Present> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(peer).cloned()
    }

    /// How a peer that is up is reached.
    pub fn path(&self, peer: &PeerId) -> Option<Path> {
        self.present(peer).map(|present| present.link.path)
    }

    /// Puts a message into the queue of its lane. Never waits.
    pub fn send(&self, to: PeerId, lane: Lane, frame: Bytes, body: Option<Bytes>) -> Result<(), SendError> {
        let body = body.filter(|body| !body.is_empty());
        let size = body.as_ref().map_or(0, |body| body.len() as u64);
        if frame.len() as u64 > u64::from(self.limits.frame_max) || size > self.limits.body_max {
            return Err(SendError::TooLarge);
        }
        let present = self.present(&to).ok_or(SendError::NotConnected)?;
        present.peering.outbox.push(Message { lane, frame, body }).map_err(|outbox::Full| SendError::Congested)
    }

    /// Sets which peers are in use: their connections are watched closely and kept.
    pub fn set_active(&self, active: BTreeSet<PeerId>) {
        for (peer, present) in self.peers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            present.peering.active.store(active.contains(peer), Ordering::Relaxed);
        }
        for (peer, keep) in lock(&self.keeps).iter() {
            if active.contains(peer) {
                keep.store(true, Ordering::Relaxed);
            }
        }
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = active;
    }

    fn is_active(&self, peer: &PeerId) -> bool {
        self.active.read().unwrap_or_else(PoisonError::into_inner).contains(peer)
    }

    /// The flag by which libp2p knows that connections to `peer` must stay.
    pub fn keep(&self, peer: PeerId) -> Arc<AtomicBool> {
        let mut keeps = lock(&self.keeps);
        // Flags of connections that are gone are held by nobody else.
        if keeps.len() > 2 * self.limits.connections as usize {
            keeps.retain(|_, keep| Arc::strong_count(keep) > 1);
        }
        keeps.entry(peer).or_insert_with(|| Arc::new(AtomicBool::new(self.is_active(&peer)))).clone()
    }

    /// Notes a fault of a peer; bans it when it has too many.
    pub fn penalise(&self, peer: PeerId, severity: Severity, why: &str) {
        self.counts.faults.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("skein_net_faults_total", "severity" => severity_label(severity)).increment(1);
        tracing::debug!(%peer, ?severity, why, "a peer's fault");
        let banned = lock(&self.standing).penalise(peer, severity, Instant::now());
        if banned.is_some() {
            tracing::info!(%peer, why, "banned");
            // A full queue loses the order to close, but not the ban: its next connection is refused.
            let _ = self.commands.try_send(Command::Ban(peer));
            let _ = self.inbox.try_send(Happened::Banned { peer });
        }
    }

    pub fn is_banned(&self, peer: &PeerId) -> bool {
        lock(&self.standing).is_banned(peer, Instant::now())
    }

    pub fn released(&self) -> Vec<PeerId> {
        lock(&self.standing).released(Instant::now())
    }

    /// Tells the hub; waits while it is busy.
    pub async fn happened(&self, what: Happened) {
        let _ = self.inbox.send(what).await;
    }

    /// As `happened`, from where nothing may wait. Whether there was room.
    pub fn try_happened(&self, what: Happened) -> bool {
        self.inbox.try_send(what).is_ok()
    }

    /// Announces a connection that both sides have greeted on. Nothing comes back when it is not wanted.
    async fn enter(&self, link: &Arc<Link>) -> Option<Arc<Peering>> {
        let (reply, answer) = oneshot::channel();
        self.happened(Happened::Ready { link: link.clone(), reply }).await;
        answer.await.ok()
    }

    fn next_serial(&self) -> u64 {
        self.serials.fetch_add(1, Ordering::Relaxed)
    }

    fn count_sent(&self, lane: Lane, bytes: u64) {
        self.counts.sent[lane as usize].fetch_add(bytes, Ordering::Relaxed);
        metrics::counter!("skein_net_bytes_total", "lane" => lane_label(lane), "direction" => "sent").increment(bytes);
    }

    fn count_received(&self, lane: Lane, bytes: u64) {
        self.counts.received[lane as usize].fetch_add(bytes, Ordering::Relaxed);
        metrics::counter!("skein_net_bytes_total", "lane" => lane_label(lane), "direction" => "received")
            .increment(bytes);
    }

    fn count_refused(&self) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("skein_net_refused_total").increment(1);
    }

    pub fn stats(&self) -> NetStats {
        let load = |counters: &[AtomicU64; Lane::ALL.len()]| {
            std::array::from_fn(|lane| counters[lane].load(Ordering::Relaxed))
        };
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let peers = peers.iter().map(|(peer, present)| PeerStats {
            peer: *peer,
            path: present.link.path,
            address: present.link.address.clone(),
            rtt: present.link.rtt.get(),
            bytes_per_s: present.link.pace.get(),
        });
        NetStats {
            sent: load(&self.counts.sent),
            received: load(&self.counts.received),
            receiving: self.receiving.taken(),
            refused: self.counts.refused.load(Ordering::Relaxed),
            faults: self.counts.faults.load(Ordering::Relaxed),
            connections: self.counts.connections.load(Ordering::Relaxed),
            peers: peers.collect(),
        }
    }
}

fn lane_label(lane: Lane) -> &'static str {
    match lane {
        Lane::Control => "control",
        Lane::Gradient => "gradient",
        Lane::Activation => "activation",
        Lane::Average => "average",
        Lane::Generation => "generation",
        Lane::Bulk => "bulk",
    }
}

fn severity_label(severity: Severity) -> &'static str {
    match severity {
        Severity::Odd => "odd",
        Severity::Wrong => "wrong",
        Severity::Hostile => "hostile",
    }
}

/// What all connections to one start of one peer share.
pub struct Peering {
    outbox: Outbox,
    active: AtomicBool,
    keep: Arc<AtomicBool>,
    /// Whether the node has been told `Up`, and not yet `Lost`. Who delivers a message holds it for reading, so no message
    /// comes between the two.
    up: tokio::sync::RwLock<bool>,
    /// The frames of all of their segments below this were read, or will never be.
    segments: watch::Sender<u32>,
    receiving: Shares,
    /// Milliseconds since our start at which a message last went either way.
    used: AtomicU64,
}

impl Peering {
    fn new(shared: &Shared, peer: PeerId) -> Peering {
        Peering {
            outbox: Outbox::new(shared.limits.queue_messages, shared.limits.queue_bytes),
            active: AtomicBool::new(shared.is_active(&peer)),
            keep: shared.keep(peer),
            up: tokio::sync::RwLock::new(false),
            segments: watch::Sender::new(0),
            receiving: shared.receiving.shares(),
            used: AtomicU64::new(0),
        }
    }

    /// Hands an event about this peer to the node, unless the node was told that the peer is lost.
    async fn deliver(&self, shared: &Shared, event: NetEvent) {
        let up = self.up.read().await;
        if *up {
            self.mark_used(shared);
            let _ = shared.events.send(event).await;
        }
    }

    fn mark_used(&self, shared: &Shared) {
        self.used.store(shared.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Keeps libp2p from closing connections that are in use, whoever uses them.
    fn refresh_keep(&self, shared: &Shared) {
        let idle = (shared.started.elapsed().as_millis() as u64).saturating_sub(self.used.load(Ordering::Relaxed));
        let keep = self.active.load(Ordering::Relaxed) || u128::from(idle) < USED_LATELY.as_millis();
        self.keep.store(keep, Ordering::Relaxed);
    }

    fn segment_ended(&self, number: u32) {
        self.segments.send_if_modified(|next| {
            let later = number.saturating_add(1) > *next;
            *next = (*next).max(number.saturating_add(1));
            later
        });
    }

    async fn segments_ended_below(&self, number: u32) {
        let _ = self.segments.subscribe().wait_for(|next| *next >= number).await;
    }
}
