//! Peers for tests: each checks that its events come in the promised order.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use libp2p::Multiaddr;
use skein::net::{self, Admit, Net, NetConfig, NetEvent, Verdict};
use skein_protocol::{Lane, PeerId, key::Key};
use tokio::sync::mpsc;

/// Only bounds how long a failing test hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct TakeAll;

impl Admit for TakeAll {
    fn admit(&self, _: PeerId, _: Lane, _: &[u8], _: u64) -> Verdict {
        Verdict::Take
    }
}

pub struct Node {
    pub net: Net,
    pub me: PeerId,
    events: mpsc::Receiver<NetEvent>,
    up: BTreeSet<PeerId>,
}

pub fn config(seed: u8) -> NetConfig {
    NetConfig::loopback(Key::from_secret([seed; 32]))
}

impl Node {
    pub async fn start(config: NetConfig) -> Node {
        Node::start_with(config, Arc::new(TakeAll)).await
    }

    pub async fn start_with(config: NetConfig, admit: Arc<dyn Admit>) -> Node {
        let listens = config.listen.len() * 2;
        let (net, events) = net::start(config, admit).await.expect("loopback is free");
        let mut node = Node { me: net.me(), net, events, up: BTreeSet::new() };
        for _ in 0..listens {
            node.until(|event| matches!(event, NetEvent::Listening { .. }).then_some(())).await;
        }
        node
    }

    /// The network and its events, which nobody reads from now on.
    pub fn unread(self) -> (Net, mpsc::Receiver<NetEvent>) {
        (self.net, self.events)
    }

    /// The next event for which `wanted` gives something; others are dropped.
    pub async fn until<T>(&mut self, mut wanted: impl FnMut(&NetEvent) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
            let event = event.expect("the awaited event comes in time").expect("the network runs");
            self.check(&event);
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    }

    fn check(&mut self, event: &NetEvent) {
        match event {
            NetEvent::Up { peer, .. } => assert!(self.up.insert(*peer), "two Ups of {peer:?} without a Lost"),
            NetEvent::Lost { peer, .. } => assert!(self.up.remove(peer), "Lost of {peer:?}, who was not up"),
            NetEvent::Message { from, .. } => assert!(self.up.contains(from), "a message of {from:?}, who is not up"),
            _ => {}
        }
    }

    pub fn is_up(&self, peer: PeerId) -> bool {
        self.up.contains(&peer)
    }

    /// Whether nothing but messages and addresses has been heard since the last event that was awaited.
    pub fn quiet(&mut self) -> bool {
        let mut quiet = true;
        while let Ok(event) = self.events.try_recv() {
            self.check(&event);
            quiet &= !matches!(event, NetEvent::Up { .. } | NetEvent::Lost { .. } | NetEvent::DialFailed { .. });
        }
        quiet
    }

    /// Asks who provides `key` until `provider` is among the answers; returns its addresses.
    pub async fn find(&mut self, key: [u8; 32], provider: PeerId) -> Vec<Multiaddr> {
        tokio::time::timeout(PATIENCE, self.ask_for(key, provider)).await.expect("it is found in time")
    }

    async fn ask_for(&mut self, key: [u8; 32], provider: PeerId) -> Vec<Multiaddr> {
        for request in 0.. {
            self.net.lookup(request, key);
            let mut found = None;
            self.until(|event| match event {
                NetEvent::Found { request: answered, peers, done } if *answered == request => {
                    let addresses = peers.iter().find(|(peer, _)| *peer == provider).map(|(_, at)| at.clone());
                    found = found.take().or(addresses);
                    done.then_some(())
                }
                _ => None,
            })
            .await;
            if let Some(found) = found {
                return found;
            }
        }
        unreachable!("it asks for ever");
    }

    pub async fn up(&mut self, peer: PeerId) -> net::Path {
        self.until(|event| match event {
            NetEvent::Up { peer: who, path, .. } if *who == peer => Some(*path),
            _ => None,
        })
        .await
    }

    pub async fn lost(&mut self, peer: PeerId) -> String {
        self.until(|event| match event {
            NetEvent::Lost { peer: who, why } if *who == peer => Some(why.clone()),
            _ => None,
        })
        .await
    }

    pub async fn message(&mut self) -> (PeerId, Lane, Bytes, Option<Bytes>) {
        self.until(|event| match event {
            NetEvent::Message { from, lane, frame, body, .. } => Some((*from, *lane, frame.clone(), body.clone())),
            _ => None,
        })
        .await
    }

    /// The address of this peer over QUIC, or over TCP.
    pub fn address(&self, tcp: bool) -> Multiaddr {
        let part = if tcp { "/tcp/" } else { "/quic-v1" };
        let addresses = self.net.addresses();
        addresses.into_iter().find(|address| address.to_string().contains(part)).expect("it listens on both")
    }
}

/// Two peers that are up for each other, the first having dialled.
pub async fn pair(first: u8, second: u8, tcp: bool) -> (Node, Node) {
    let (mut a, mut b) = (Node::start(config(first)).await, Node::start(config(second)).await);
    a.net.dial_address(b.address(tcp));
    a.up(b.me).await;
    b.up(a.me).await;
    (a, b)
}

pub fn body(len: usize, seed: u8) -> Bytes {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect::<Vec<_>>().into()
}

/// Control frames both ways at once, which must arrive in order, and nothing else must happen.
pub async fn exchange(a: &mut Node, b: &mut Node, frames: u32) {
    let frame = |n: u32| Bytes::from(n.to_le_bytes().to_vec());
    for n in 0..frames {
        a.net.send(b.me, Lane::Control, frame(n), None).expect("b is up");
        b.net.send(a.me, Lane::Control, frame(n), None).expect("a is up");
    }
    for n in 0..frames {
        assert_eq!(b.message().await.2, frame(n));
        assert_eq!(a.message().await.2, frame(n));
    }
}

pub async fn exchange_one_way(from: &Node, to: &mut Node) {
    from.net.send(to.me, Lane::Control, Bytes::from_static(b"hello"), None).expect("it is up");
    to.message().await;
}

/// Waits for a state that no event tells of.
pub async fn eventually(holds: impl Fn() -> bool) {
    let looking = async {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        while !holds() {
            looks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("it comes to hold in time");
}
