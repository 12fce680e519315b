//! Which connection of a peer is in use, and what the node is told about it. In: connections that became ready or ended.
//! Out: `Up` and `Lost` in strict turn for each peer, and orders to connections. One task; knows no bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use skein_protocol::PeerId;
use tokio::sync::{mpsc, oneshot};

use super::{
    Link, Peering, Present, Shared,
    link::{Order, Rank},
    wire::Segment,
};
use crate::net::{NetEvent, gate::Code};

/// What connections and the node tell the hub.
pub enum Happened {
    /// Both sides have greeted on a connection. Answered when messages may flow; dropped when the connection is not wanted.
    Ready {
        link: Arc<Link>,
        reply: oneshot::Sender<Arc<Peering>>,
    },
    /// A connection is gone, and nobody reads from it any more. `clean`: both sides had agreed that all was delivered.
    /// `undelivered`: something that we sent on it may be lost.
    Ended {
        peer: PeerId,
        link: u64,
        clean: bool,
        undelivered: bool,
        why: String,
    },
    /// The peer has read everything that we sent on a connection that is being left.
    EndRead {
        link: u64,
    },
    /// The peer says that its connections before this segment are broken.
    Broken {
        peer: PeerId,
        number: u32,
        by: u64,
    },
    /// Leave the peer; it is told why.
    Hangup {
        peer: PeerId,
        code: Code,
        why: &'static str,
    },
    Banned {
        peer: PeerId,
    },
    /// Finish what can be finished within the time, then close everything.
    Shutdown {
        within: Duration,
        done: oneshot::Sender<()>,
    },
}

struct Entry {
    peering: Arc<Peering>,
    instance: u64,
    links: BTreeMap<u64, Arc<Link>>,
    /// The connection on which we send.
    current: u64,
    segment: u32,
    /// Why the peer is being left, when it is we who leave.
    leaving: Option<&'static str>,
}

impl Entry {
    /// The best connection that is not being drained.
    fn best(&self) -> Option<&Arc<Link>> {
        let usable = |link: &&Arc<Link>| matches!(*link.orders().borrow(), Order::Wait | Order::Send);
        self.links.values().filter(usable).max_by_key(|link| rank(link))
    }
}

fn rank(link: &Link) -> (Rank, u64) {
    (link.rank, link.id)
}

struct Hub {
    shared: Arc<Shared>,
    peers: BTreeMap<PeerId, Entry>,
}

/// Runs until every sender of `happened` is gone or the hub is shut down.
pub async fn run(shared: Arc<Shared>, mut happened: mpsc::Receiver<Happened>) {
    let mut hub = Hub { shared, peers: BTreeMap::new() };
    while let Some(what) = happened.recv().await {
        match what {
            Happened::Ready { link, reply } => hub.on_ready(link, reply).await,
            Happened::Ended { peer, link, clean, undelivered, why } => {
                hub.on_ended(peer, link, clean, undelivered, why).await;
            }
            Happened::EndRead { .. } => {}
            Happened::Broken { peer, number, by } => hub.on_broken(peer, number, by),
            Happened::Hangup { peer, code, why } => hub.leave(peer, code, why),
            Happened::Banned { peer } => hub.leave(peer, Code::NotWanted, "banned"),
            Happened::Shutdown { within, done } => return hub.shutdown(happened, within, done).await,
        }
    }
}

impl Hub {
    async fn on_ready(&mut self, link: Arc<Link>, reply: oneshot::Sender<Arc<Peering>>) {
        let peer = link.peer;
        if self.shared.is_banned(&peer) {
            return;
        }
        if self.peers.get(&peer).is_some_and(|entry| entry.instance != link.instance || entry.leaving.is_some()) {
            // Another start of the peer's process: its former connections lead nowhere.
            self.lose(peer, "the peer restarted".to_string()).await;
        }
        if let Some(entry) = self.peers.get_mut(&peer) {
            let _ = reply.send(entry.peering.clone());
            entry.links.insert(link.id, link);
            self.choose(peer).await;
            return;
        }
        let peering = Arc::new(Peering::new(&self.shared, peer));
        let entry = Entry {
            peering: peering.clone(),
            instance: link.instance,
            links: BTreeMap::from([(link.id, link.clone())]),
            current: link.id,
            segment: 0,
            leaving: None,
        };
        self.peers.insert(peer, entry);
        self.up(&peering, &link).await;
        link.send_as(Segment { number: 0, broken: false });
        let _ = reply.send(peering);
    }

    /// Moves to the best connection; the others finish what they carry.
    async fn choose(&mut self, peer: PeerId) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let Some(best) = entry.best().cloned() else { return };
        let moved = best.id != entry.current;
        for link in entry.links.values().filter(|link| link.id != best.id) {
            link.order(Order::Drain);
        }
        if moved {
            entry.current = best.id;
            entry.segment += 1;
            best.send_as(Segment { number: entry.segment, broken: false });
            let peering = entry.peering.clone();
            self.insert(&peering, &best);
            let moved = NetEvent::Moved { peer, path: best.path, address: best.address.clone() };
            let _ = self.shared.events.send(moved).await;
        }
    }

    async fn on_ended(&mut self, peer: PeerId, id: u64, clean: bool, undelivered: bool, why: String) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        if entry.links.remove(&id).is_none() {
            return;
        }
        let was_current = entry.current == id;
        if !was_current && (clean || !undelivered || entry.leaving.is_some()) {
            return;
        }
        let why = entry.leaving.map_or(why, str::to_string);
        if was_current {
            let Some(best) = entry.best().cloned() else { return self.lose(peer, why).await };
            entry.current = best.id;
            entry.segment += 1;
            let segment = Segment { number: entry.segment, broken: true };
            let peering = entry.peering.clone();
            self.lost_and_up(&peering, &best, why).await;
            best.send_as(segment);
        } else if let Some(current) = entry.links.get(&entry.current).cloned() {
            let peering = entry.peering.clone();
            self.lost_and_up(&peering, &current, why).await;
        }
    }

    fn on_broken(&mut self, peer: PeerId, number: u32, by: u64) {
        let Some(entry) = self.peers.get(&peer) else { return };
        for link in entry.links.values().filter(|link| link.id != by) {
            let reading = link.reading.load(std::sync::atomic::Ordering::Relaxed);
            if reading > 0 && reading <= number {
                link.order(Order::Close(Code::Cancelled, Code::Cancelled.words()));
            }
        }
    }

    /// Closes all connections to `peer`; `Lost` follows when they are gone.
    fn leave(&mut self, peer: PeerId, code: Code, why: &'static str) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.leaving = Some(why);
            for link in entry.links.values() {
                link.order(Order::Close(code, why));
            }
        }
    }

    /// Forgets a peer: the node is told, and what is left of its connections is closed.
    async fn lose(&mut self, peer: PeerId, why: String) {
        let Some(entry) = self.peers.remove(&peer) else { return };
        self.remove(&peer);
        {
            let mut up = entry.peering.up.write().await;
            *up = false;
            let _ = self.shared.events.send(NetEvent::Lost { peer, why }).await;
        }
        entry.peering.outbox.clear();
        for link in entry.links.values() {
            link.order(Order::Close(Code::Done, Code::Done.words()));
        }
    }

    async fn up(&self, peering: &Arc<Peering>, link: &Arc<Link>) {
        let mut up = peering.up.write().await;
        *up = true;
        peering.mark_used(&self.shared);
        peering.refresh_keep(&self.shared);
        self.insert(peering, link);
        let event = NetEvent::Up { peer: link.peer, path: link.path, address: link.address.clone() };
        let _ = self.shared.events.send(event).await;
    }

    /// Messages may be lost, but the peer is there: the node hears both at once, with nothing between.
    async fn lost_and_up(&self, peering: &Arc<Peering>, link: &Arc<Link>, why: String) {
        let _up = peering.up.write().await;
        peering.outbox.clear();
        self.insert(peering, link);
        let _ = self.shared.events.send(NetEvent::Lost { peer: link.peer, why }).await;
        let event = NetEvent::Up { peer: link.peer, path: link.path, address: link.address.clone() };
        let _ = self.shared.events.send(event).await;
    }

    fn insert(&self, peering: &Arc<Peering>, link: &Arc<Link>) {
        let present = Present { peering: peering.clone(), link: link.clone() };
        self.shared.peers.write().unwrap_or_else(PoisonError::into_inner).insert(link.peer, present);
    }

    fn remove(&self, peer: &PeerId) {
        self.shared.peers.write().unwrap_or_else(PoisonError::into_inner).remove(peer);
    }

    async fn shutdown(self, mut happened: mpsc::Receiver<Happened>, within: Duration, done: oneshot::Sender<()>) {
        let mut open = BTreeMap::new();
        for entry in self.peers.values() {
            for link in entry.links.values() {
                link.order(if entry.current == link.id { Order::Finish } else { Order::Drain });
                open.insert(link.id, link.clone());
            }
        }
        let mut unread: BTreeSet<u64> = open.keys().copied().collect();
        let _ = tokio::time::timeout(within, async {
            while !unread.is_empty() {
                match happened.recv().await {
                    Some(Happened::Ended { link, .. } | Happened::EndRead { link }) => unread.remove(&link),
                    Some(_) => false,
                    None => return,
                };
            }
        })
        .await;
        for link in open.values() {
            link.order(Order::Close(Code::ShuttingDown, Code::ShuttingDown.words()));
        }
        let _ = done.send(());
    }
}
