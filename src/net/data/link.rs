//! One connection to a peer as the hub sees it: what it is worth, what it was told to do. Knows no bytes.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use skein_protocol::PeerId;
use tokio::sync::watch;

use super::{pace::Pace, wire::Segment};
use crate::net::gate::Code;

/// How a connection came about and what carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// QUIC, dialled straight.
    Direct,
    /// QUIC, after a relayed connection had made the introduction.
    Punched,
    /// TCP, where UDP does not pass.
    Tcp,
    /// Through a relay.
    Relay,
}

impl Path {
    pub fn in_words(self) -> &'static str {
        match self {
            Path::Direct => "direct",
            Path::Punched => "punched",
            Path::Tcp => "tcp",
            Path::Relay => "relay",
        }
    }
}

/// What a connection is worth: greater is better. Both sides compute the same order, so that of several connections between
/// two peers both keep the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// QUIC before TCP before relayed.
    class: u8,
    /// Of two simultaneous dials the one of the smaller peer id stays.
    dialled_by_smaller: bool,
    /// Of two dials of one peer the later stays: it dialled again for a reason.
    serial: u64,
}

impl Rank {
    /// `serial` is the number that the side which dialled gave in its greeting.
    pub fn new(path: Path, me: PeerId, peer: PeerId, dialled_by_me: bool, serial: u64) -> Rank {
        let class = match path {
            Path::Direct | Path::Punched => 2,
            Path::Tcp => 1,
            Path::Relay => 0,
        };
        Rank { class, dialled_by_smaller: dialled_by_me == (me < peer), serial }
    }
}

/// What the hub wants of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Read, but send nothing yet.
    Wait,
    /// Send what waits for the peer.
    Send,
    /// Finish what is on its way, and close when the other side has, too. What waits goes over another connection.
    Drain,
    /// As `Drain`, but there is no other connection: send what waits.
    Finish,
    /// Close now, and say why.
    Close(Code, &'static str),
}

impl Order {
    /// Whether messages that wait may be sent.
    pub fn sends(self) -> bool {
        matches!(self, Order::Send | Order::Finish)
    }

    /// Whether the connection is being left in good order.
    pub fn leaves(self) -> bool {
        matches!(self, Order::Drain | Order::Finish)
    }
}

#[derive(Debug)]
pub struct Link {
    /// Unique in this process.
    pub id: u64,
    pub peer: PeerId,
    /// Which start of the peer's process this connection leads to.
    pub instance: u64,
    pub rank: Rank,
    pub path: Path,
    pub address: String,
    pub rtt: Rtt,
    pub pace: Pace,
    /// The segment of theirs that this connection carries, plus one; 0 before the first.
    pub reading: AtomicU32,
    /// The segment of ours that it carries. It is announced even when the order to send is taken back before anything was
    /// sent, since the other side waits for every segment's end.
    segment: OnceLock<Segment>,
    order: watch::Sender<Order>,
}

impl Link {
    #[allow(clippy::too_many_arguments)]
    pub fn new(id: u64, peer: PeerId, instance: u64, rank: Rank, path: Path, address: String, rtt: Rtt) -> Link {
        let order = watch::Sender::new(Order::Wait);
        Link {
            id,
            peer,
            instance,
            rank,
            path,
            address,
            rtt,
            pace: Pace::default(),
            reading: AtomicU32::new(0),
            segment: OnceLock::new(),
            order,
        }
    }

    pub fn order(&self, order: Order) {
        self.order.send_if_modified(|now| {
            // Nothing comes after an order to close.
            let change = !matches!(now, Order::Close(..)) && *now != order;
            if change {
                *now = order;
            }
            change
        });
    }

    /// Orders to send, as this segment. A connection is chosen at most once.
    pub fn send_as(&self, segment: Segment) {
        let _ = self.segment.set(segment);
        self.order(Order::Send);
    }

    pub fn segment(&self) -> Option<Segment> {
        self.segment.get().copied()
    }

    pub fn orders(&self) -> watch::Receiver<Order> {
        self.order.subscribe()
    }
}

/// Where the round-trip time comes from.
#[derive(Debug)]
pub enum Rtt {
    /// quinn measures it.
    Quic(quinn::Connection),
    /// Microseconds, from pings; 0 before the first.
    Pings(AtomicU64),
}

impl Rtt {
    pub fn get(&self) -> Option<Duration> {
        match self {
            Rtt::Quic(connection) => Some(connection.rtt()),
            Rtt::Pings(micros) => Some(micros.load(Ordering::Relaxed)).filter(|m| *m > 0).map(Duration::from_micros),
        }
    }

    /// Notes that a ping took `micros` to come back.
    pub fn measured(&self, micros: u64) {
        if let Rtt::Pings(known) = self {
            let before = known.load(Ordering::Relaxed);
            let smoothed = if before == 0 { micros } else { (before * 7 + micros) / 8 };
            known.store(smoothed.max(1), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_prefer_the_same_connection() {
        let (small, large) = (PeerId([1; 32]), PeerId([2; 32]));
        let both = |path, dialled_by_small, serial| {
            let there = Rank::new(path, small, large, dialled_by_small, serial);
            let here = Rank::new(path, large, small, !dialled_by_small, serial);
            assert_eq!(there, here);
            there
        };
        assert!(both(Path::Direct, true, 1) > both(Path::Direct, false, 9), "the smaller peer's dial");
        assert!(both(Path::Direct, true, 2) > both(Path::Direct, true, 1), "the later dial");
        assert!(both(Path::Punched, false, 1) > both(Path::Tcp, true, 9), "QUIC before TCP");
        assert!(both(Path::Tcp, false, 1) > both(Path::Relay, true, 9), "straight before relayed");
    }

    #[test]
    fn an_order_to_close_is_the_last() {
        let rank = Rank::new(Path::Direct, PeerId([1; 32]), PeerId([2; 32]), true, 1);
        let rtt = Rtt::Pings(AtomicU64::new(0));
        let link = Link::new(1, PeerId([2; 32]), 1, rank, Path::Direct, String::new(), rtt);
        link.order(Order::Close(Code::Done, "done"));
        link.send_as(Segment { number: 0, broken: false });
        assert_eq!(*link.orders().borrow(), Order::Close(Code::Done, "done"));
    }
}
