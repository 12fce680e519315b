//! One direction of one link: a rate and a queue before it. In: datagrams at times. Out: when each has passed, or that it found
//! the queue full. It knows no clock and no socket.

use std::time::{Duration, Instant};

/// IPv4 and UDP headers, which take their share of a link's rate.
pub const HEADERS: usize = 28;
/// Bytes of a datagram with its headers: longer ones do not pass, as on a path of Ethernet.
pub const MTU: usize = 1500;
/// A queue is never shorter: a few datagrams.
const QUEUE_MIN: f64 = 64e3;

#[derive(Debug)]
pub struct Pipe {
    bytes_per_s: f64,
    /// Bytes that wait at most.
    queue: f64,
    free_at: Option<Instant>,
}

impl Pipe {
    /// Its queue holds what passes within `queue`.
    pub fn new(bits_per_s: u64, queue: Duration) -> Pipe {
        let bytes_per_s = bits_per_s as f64 / 8.0;
        Pipe { bytes_per_s, queue: (bytes_per_s * queue.as_secs_f64()).max(QUEUE_MIN), free_at: None }
    }

    /// When the last byte of a datagram of `len` bytes has passed that comes at `at`; nothing if the queue is full.
    pub fn pass(&mut self, at: Instant, len: usize) -> Option<Instant> {
        let free_at = self.free_at.unwrap_or(at).max(at);
        let waiting = (free_at - at).as_secs_f64() * self.bytes_per_s;
        if waiting + len as f64 > self.queue {
            return None;
        }
        let passed = free_at + Duration::from_secs_f64((len + HEADERS) as f64 / self.bytes_per_s);
        self.free_at = Some(passed);
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_wait_for_each_other_and_a_full_queue_drops() {
        let mut pipe = Pipe::new(8_000_000, Duration::from_millis(60));
        let start = Instant::now();
        let after = |at: Option<Instant>| at.map(|at| (at - start).as_micros());
        assert_eq!(after(pipe.pass(start, 972)), Some(1000));
        assert_eq!(after(pipe.pass(start, 972)), Some(2000));
        // It was idle for a while.
        assert_eq!(after(pipe.pass(start + Duration::from_millis(5), 972)), Some(6000));
        let passed = (0..1000).filter(|_| pipe.pass(start + Duration::from_millis(6), 972).is_some()).count();
        assert!((60..=66).contains(&passed), "{passed} datagrams in a queue of 64 kB");
    }
}
