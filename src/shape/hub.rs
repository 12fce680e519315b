//! The middle of the net: one public socket a peer. A datagram that a peer sends to another's public address comes out of its
//! own public address at the other, so that peers know each other by public addresses only.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque, binary_heap::PeekMut},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{net::UdpSocket, sync::mpsc, task::AbortHandle};

use super::{
    link::Link,
    pipe::{HEADERS, MTU, Pipe},
};
use crate::net::bind;

/// Queues hold what passes within this, as those of home routers do.
const QUEUE: Duration = Duration::from_millis(60);
/// Datagrams under way to one peer, at most.
const UNDER_WAY: usize = 1 << 16;

/// Datagrams and bytes of one peer.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
    dropped: AtomicU64,
    lost: AtomicU64,
}

/// What became of what a peer sent and was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Passed {
    /// Bytes that left its uplink, and that came out of its downlink.
    pub sent: u64,
    pub received: u64,
    /// Datagrams that found one of its queues full, and that were lost by chance.
    pub dropped: u64,
    pub lost: u64,
}

struct Place {
    /// Where the peer itself listens.
    inside: SocketAddr,
    public: Arc<UdpSocket>,
    link: Link,
    up: Mutex<Pipe>,
    down: Mutex<Pipe>,
    to: mpsc::Sender<UnderWay>,
    counts: Counts,
}

/// Leaves the socket `from` at `at`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct UnderWay {
    at: Instant,
    number: u64,
    from: usize,
    bytes: Vec<u8>,
}

/// Forwards until it is dropped.
pub struct Hub {
    places: Arc<Vec<Place>>,
    tasks: Vec<AbortHandle>,
}

impl Hub {
    /// Begins to forward between peers that listen at these addresses. `port`: of the first public address; the others follow.
    ///
    /// # Errors
    /// A port cannot be had.
    pub async fn start(peers: &[(SocketAddr, Link)], port: Option<u16>, seed: u64) -> io::Result<Hub> {
        let mut places = Vec::new();
        let mut arriving = Vec::new();
        for (number, (inside, link)) in (0u16..).zip(peers) {
            let port = port.map_or(0, |first| first.saturating_add(number));
            let socket = bind((Ipv4Addr::LOCALHOST, port).into())?;
            socket.set_nonblocking(true)?;
            let (to, arrives) = mpsc::channel(UNDER_WAY);
            arriving.push(arrives);
            places.push(Place {
                inside: *inside,
                public: Arc::new(UdpSocket::from_std(socket)?),
                link: *link,
                up: Mutex::new(Pipe::new(link.up, QUEUE)),
                down: Mutex::new(Pipe::new(link.down, QUEUE)),
                to,
                counts: Counts::default(),
            });
        }
        let places = Arc::new(places);
        let known: Arc<BTreeMap<SocketAddr, usize>> =
            Arc::new(peers.iter().enumerate().map(|(i, (inside, _))| (*inside, i)).collect());
        let mut tasks = Vec::new();
        for (number, arrives) in arriving.into_iter().enumerate() {
            let rng = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
            tasks.push(tokio::spawn(take(places.clone(), known.clone(), number, rng)).abort_handle());
            tasks.push(tokio::spawn(give(places.clone(), number, arrives)).abort_handle());
        }
        Ok(Hub { places, tasks })
    }

    /// Where others reach the peer.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn address(&self, peer: usize) -> io::Result<SocketAddr> {
        self.places[peer].public.local_addr()
    }

    /// From now on a peer's link has these rates, in bits a second, and empty queues.
    pub fn set_rates(&self, peer: usize, up: u64, down: u64) {
        let place = &self.places[peer];
        for (pipe, rate) in [(&place.up, up), (&place.down, down)] {
            *pipe.lock().unwrap_or_else(PoisonError::into_inner) = Pipe::new(rate, QUEUE);
        }
    }

    pub fn passed(&self, peer: usize) -> Passed {
        let counts = &self.places[peer].counts;
        let [sent, received, dropped, lost] =
            [&counts.sent, &counts.received, &counts.dropped, &counts.lost].map(|count| count.load(Relaxed));
        Passed { sent, received, dropped, lost }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

fn pass(pipe: &Mutex<Pipe>, at: Instant, len: usize) -> Option<Instant> {
    pipe.lock().unwrap_or_else(PoisonError::into_inner).pass(at, len)
}

/// What others send to a peer's public address.
async fn take(places: Arc<Vec<Place>>, known: Arc<BTreeMap<SocketAddr, usize>>, to: usize, mut rng: StdRng) {
    let mut buffer = vec![0; 1 << 16];
    let mut number = 0;
    let there = &places[to];
    loop {
        // A peer that is gone answers with refusals, which some systems report here.
        let Ok((len, sender)) = there.public.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let now = Instant::now();
        // Only peers have a way to others.
        let Some(from) = known.get(&sender).copied().filter(|_| len + HEADERS <= MTU) else { continue };
        let here = &places[from];
        let Some(left) = pass(&here.up, now, len) else {
            here.counts.dropped.fetch_add(1, Relaxed);
            continue;
        };
        here.counts.sent.fetch_add(len as u64, Relaxed);
        let chance = 1.0 - (1.0 - here.link.loss) * (1.0 - there.link.loss);
        if chance > 0.0 && rng.random::<f64>() < chance {
            there.counts.lost.fetch_add(1, Relaxed);
            continue;
        }
        number += 1;
        let at = left + here.link.delay + there.link.delay;
        if there.to.try_send(UnderWay { at, number, from, bytes: buffer[..len].to_vec() }).is_err() {
            there.counts.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Gives a peer what arrives for it, in the order of time, through its downlink.
async fn give(places: Arc<Vec<Place>>, to: usize, mut arrives: mpsc::Receiver<UnderWay>) {
    let there = &places[to];
    let mut far: BinaryHeap<Reverse<UnderWay>> = BinaryHeap::new();
    // In the downlink: when each has passed.
    let mut near: VecDeque<(Instant, UnderWay)> = VecDeque::new();
    loop {
        let next = [far.peek().map(|Reverse(first)| first.at), near.front().map(|(passed, _)| *passed)];
        let due = async {
            match next.into_iter().flatten().min() {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            more = arrives.recv() => match more {
                Some(more) => far.push(Reverse(more)),
                None => return,
            },
            () = due => {}
        }
        let now = Instant::now();
        while let Some(Reverse(first)) = far.peek_mut().filter(|first| first.0.at <= now).map(PeekMut::pop) {
            match pass(&there.down, first.at, first.bytes.len()) {
                Some(passed) => near.push_back((passed, first)),
                None => drop(there.counts.dropped.fetch_add(1, Relaxed)),
            }
        }
        while let Some((_, first)) = near.pop_front_if(|(passed, _)| *passed <= now) {
            there.counts.received.fetch_add(first.bytes.len() as u64, Relaxed);
            let _ = places[first.from].public.send_to(&first.bytes, there.inside).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn peer() -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
    }

    #[tokio::test]
    async fn peers_know_each_other_by_public_addresses_and_strangers_have_no_way() {
        let (a, b, stranger) = (peer().await, peer().await, peer().await);
        let link = Link { up: 1 << 30, down: 1 << 30, delay: Duration::from_millis(1), loss: 0.0 };
        let ends = [&a, &b].map(|peer| (peer.local_addr().unwrap(), link));
        let hub = Hub::start(&ends, None, 1).await.unwrap();
        let (public_a, public_b) = (hub.address(0).unwrap(), hub.address(1).unwrap());
        stranger.send_to(b"who", public_b).await.unwrap();
        a.send_to(&[0; MTU], public_b).await.unwrap();
        a.send_to(b"there", public_b).await.unwrap();
        let mut buffer = [0; 2000];
        let (len, from) = b.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..len], from), (&b"there"[..], public_a));
        b.send_to(b"back", from).await.unwrap();
        let (len, from) = a.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..len], from), (&b"back"[..], public_b));
        assert_eq!(hub.passed(0), Passed { sent: 5, received: 4, dropped: 0, lost: 0 });
    }
}
