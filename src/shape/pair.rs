//! A narrow link on one machine: a forwarder of UDP that delays, queues, drops and loses. In: datagrams of whoever dials it. Out:
//! the same, later, at the other side; and back. For measuring; knows no packet's content.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{net::UdpSocket, sync::mpsc, task::AbortHandle};

use super::pipe::{HEADERS, MTU, Pipe};
use crate::net::bind;

/// Datagrams that are delayed at one time, at most: 64 MiB and more of a link.
const DELAYED: usize = 1 << 16;

/// What a link is like, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub bits_per_s: u64,
    pub round_trip: Duration,
    /// Share of datagrams that are lost by chance.
    pub loss: f64,
}

/// Why words are no shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no link: a rate and a round trip are wanted, and what is lost if anything, as 100mbit,50ms,0.5%")]
pub struct NoShape(String);

impl FromStr for Shape {
    type Err = NoShape;

    fn from_str(text: &str) -> Result<Shape, NoShape> {
        let bad = || NoShape(text.into());
        let number = |word: &str, unit: &str, most: f64| -> Result<f64, NoShape> {
            let value = word.trim().strip_suffix(unit).and_then(|value| value.trim().parse::<f64>().ok());
            value.filter(|value| (0.0..=most).contains(value)).ok_or_else(bad)
        };
        let mut parts = text.split(',');
        let mbit = number(parts.next().ok_or_else(bad)?, "mbit", 1e5)?;
        let ms = number(parts.next().ok_or_else(bad)?, "ms", 1e4)?;
        let loss = parts.next().map_or(Ok(0.0), |part| number(part, "%", 100.0))?;
        if parts.next().is_some() || mbit <= 0.0 {
            return Err(bad());
        }
        let round_trip = Duration::from_secs_f64(ms / 1e3);
        Ok(Shape { bits_per_s: (mbit * 1e6) as u64, round_trip, loss: loss / 100.0 })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}mbit,{}ms", self.bits_per_s as f64 / 1e6, self.round_trip.as_secs_f64() * 1e3)?;
        if self.loss > 0.0 { write!(f, ",{}%", self.loss * 100.0) } else { Ok(()) }
    }
}

/// Datagrams, both ways.
#[derive(Debug, Default)]
pub struct Counts {
    passed: AtomicU64,
    /// The queue was full.
    dropped: AtomicU64,
    lost: AtomicU64,
}

impl Counts {
    /// Datagrams that found the queue full, of all.
    pub fn dropped_percent(&self) -> f64 {
        let [passed, dropped, lost] =
            [&self.passed, &self.dropped, &self.lost].map(|n| n.load(Ordering::Relaxed) as f64);
        100.0 * dropped / (passed + dropped + lost).max(1.0)
    }
}

/// A forwarder that runs until it is dropped.
#[derive(Debug)]
pub struct Shaper {
    address: SocketAddr,
    counts: Arc<Counts>,
    tasks: Vec<AbortHandle>,
}

impl Shaper {
    /// Begins to forward to `to` what comes to [`Shaper::address`]. One peer at a time: answers go to who sent last.
    ///
    /// # Errors
    /// No port can be had.
    pub async fn start(to: SocketAddr, shape: Shape) -> io::Result<Shaper> {
        let socket = || {
            let socket = bind((Ipv4Addr::LOCALHOST, 0).into())?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket).map(Arc::new)
        };
        let (front, back) = (socket()?, socket()?);
        let address = front.local_addr()?;
        let counts = Arc::new(Counts::default());
        let dialler = Arc::new(Mutex::new(None));
        let known = dialler.clone();
        let there = move |from| {
            *known.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
            Some(to)
        };
        let here = move |_| *dialler.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tasks = way(front.clone(), back.clone(), shape, counts.clone(), there);
        tasks.extend(way(back, front, shape, counts.clone(), here));
        Ok(Shaper { address, counts, tasks })
    }

    /// Where to dial in the place of the other side.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// One direction: what comes in at `from` leaves from `to`.
fn way(
    from: Arc<UdpSocket>,
    to: Arc<UdpSocket>,
    shape: Shape,
    counts: Arc<Counts>,
    route: impl Fn(SocketAddr) -> Option<SocketAddr> + Send + 'static,
) -> Vec<AbortHandle> {
    let (delayed, mut leaving) = mpsc::channel::<(Instant, Vec<u8>, SocketAddr)>(DELAYED);
    let taking = async move {
        let mut buffer = vec![0; 1 << 16];
        // As much waits before the link as is on its way over it.
        let mut pipe = Pipe::new(shape.bits_per_s, shape.round_trip);
        while let Ok((n, sender)) = from.recv_from(&mut buffer).await {
            let (now, Some(to)) = (Instant::now(), route(sender)) else { continue };
            if n + HEADERS > MTU {
                continue;
            }
            let Some(passed) = pipe.pass(now, n) else {
                counts.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            if rand::random::<f64>() < shape.loss {
                counts.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            counts.passed.fetch_add(1, Ordering::Relaxed);
            let _ = delayed.try_send((passed + shape.round_trip / 2, buffer[..n].to_vec(), to));
        }
    };
    let giving = async move {
        while let Some((at, bytes, address)) = leaving.recv().await {
            if at > Instant::now() {
                tokio::time::sleep_until(at.into()).await;
            }
            let _ = to.send_to(&bytes, address).await;
        }
    };
    vec![tokio::spawn(taking).abort_handle(), tokio::spawn(giving).abort_handle()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_read_as_it_is_said() {
        let shape: Shape = "100mbit,50ms,0.5%".parse().expect("a shape");
        assert_eq!(shape, Shape { bits_per_s: 100_000_000, round_trip: Duration::from_millis(50), loss: 0.005 });
        assert_eq!(shape.to_string(), "100mbit,50ms,0.5%");
        assert_eq!("8.5mbit,20ms".parse::<Shape>().expect("a shape").to_string(), "8.5mbit,20ms");
        for bad in [
            "",
            "100mbit",
            "100,50ms",
            "0mbit,50ms",
            "100mbit,50ms,101%",
            "100mbit,-1ms",
            "1mbit,1ms,1%,1",
            "nanmbit,1ms",
        ] {
            assert!(bad.parse::<Shape>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn datagrams_come_through_both_ways_and_long_ones_do_not() {
        let end = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let shape = Shape { bits_per_s: 1 << 30, round_trip: Duration::from_millis(2), loss: 0.0 };
        let shaper = Shaper::start(end.local_addr().unwrap(), shape).await.unwrap();
        let here = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        here.send_to(&[0; MTU], shaper.address()).await.unwrap();
        here.send_to(b"there", shaper.address()).await.unwrap();
        let mut buffer = [0; 2000];
        let (n, from) = end.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..n], b"there");
        end.send_to(b"back", from).await.unwrap();
        let (n, from) = here.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..n], from), (&b"back"[..], shaper.address()));
        assert_eq!(shaper.counts().dropped_percent(), 0.0);
    }
}
