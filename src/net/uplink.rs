//! What all connections of a peer send over the uplink that they have in common. In: what each has on its way, and what arrives. Out:
//! how much more one of them may have on its way because others have nothing to send. Reads no clock.
//!
//! Each connection finds its own window by what it sees, a few round trips after others began or ended, and bodies begin and end
//! sooner than that: of four connections that take turns each has the window that four need, and whoever is left alone fills a
//! part of the link. (A manager of the windows of several flows is an old idea: RFC 3124, 2001.) So what was carried lately is
//! known of all of them together, and of each; what the others leave of the first is free to one of them, up to the second.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::lately::Lately;

/// A rate is taken over so long: longer than a round trip to most of the world.
const RATE_SPAN: Duration = Duration::from_millis(200);
/// How long the greatest rate is believed: it stands in one of two spans of this length.
const BEST_SPAN: Duration = Duration::from_secs(10);
/// Part of the greatest rate that is aimed at. Less than all of it, so that a queue that has formed goes away.
const AIM: f64 = 0.95;
/// Part of the greatest rate that remains with each round of a connection that overflows a queue.
const OVERFLOWED: f64 = 0.9;
/// Who has more bytes on its way takes part; fewer are those of acknowledgements and of frames that control.
const TAKES_PART: u64 = 6000;

/// What was acknowledged lately.
#[derive(Clone, Copy, Debug)]
struct Carried {
    bytes: u64,
    since: Instant,
    /// In bytes a second.
    best: Lately<f64>,
}

impl Carried {
    fn new(now: Instant) -> Carried {
        Carried { bytes: 0, since: now, best: Lately::new(now, BEST_SPAN, f64::max) }
    }

    fn acked(&mut self, now: Instant, bytes: u64) {
        self.bytes += bytes;
        let took = now.saturating_duration_since(self.since);
        if took >= RATE_SPAN {
            self.best.note(now, self.bytes as f64 / took.as_secs_f64());
            (self.bytes, self.since) = (0, now);
        }
    }

    /// Bytes that are on their way at the rate that is aimed at.
    fn aim(&self, trip: Duration) -> u64 {
        (self.best.get().unwrap_or(0.0) * AIM * trip.as_secs_f64()) as u64
    }

    fn overflowed(&mut self, now: Instant) {
        if let Some(best) = self.best.get() {
            self.best = Lately::new(now, BEST_SPAN, f64::max);
            self.best.note(now, best * OVERFLOWED);
        }
    }
}

#[derive(Debug)]
pub struct Uplink {
    /// Bytes of all connections that are on their way.
    in_flight: AtomicU64,
    /// How often one of them began or ceased to take part.
    turns: AtomicU64,
    carried: Mutex<Carried>,
}

/// One connection's part in it. What it has on its way is its own no more when this is dropped.
#[derive(Debug)]
pub struct Sender {
    uplink: Arc<Uplink>,
    in_flight: AtomicU64,
    turns: AtomicU64,
    carried: Mutex<Carried>,
}

impl Uplink {
    pub fn new(now: Instant) -> Uplink {
        Uplink { in_flight: AtomicU64::new(0), turns: AtomicU64::new(0), carried: Mutex::new(Carried::new(now)) }
    }
}

impl Sender {
    pub fn new(now: Instant, uplink: Arc<Uplink>) -> Sender {
        let carried = Mutex::new(Carried::new(now));
        Sender { uplink, in_flight: AtomicU64::new(0), turns: AtomicU64::new(0), carried }
    }

    /// So many bytes more are on their way.
    pub fn sent(&self, bytes: u64) {
        self.has_in_flight(self.in_flight.load(Relaxed) + bytes);
    }

    /// So many bytes are on their way.
    pub fn has_in_flight(&self, bytes: u64) {
        let before = self.in_flight.swap(bytes, Relaxed);
        self.uplink.in_flight.fetch_add(bytes.wrapping_sub(before), Relaxed);
        if (before > TAKES_PART) != (bytes > TAKES_PART) {
            self.turns.fetch_add(1, Relaxed);
            self.uplink.turns.fetch_add(1, Relaxed);
        }
    }

    /// So many bytes arrived.
    pub fn acked(&self, now: Instant, bytes: u64) {
        for carried in [&self.carried, &self.uplink.carried] {
            lock(carried).acked(now, bytes);
        }
    }

    /// It sends more than a queue on its way holds: what all could send before is no aim any more.
    pub fn overflowed(&self, now: Instant) {
        lock(&self.uplink.carried).overflowed(now);
    }

    /// How often another connection began or ceased to take part.
    pub fn turns_of_others(&self) -> u64 {
        self.uplink.turns.load(Relaxed).wrapping_sub(self.turns.load(Relaxed))
    }

    /// Bytes that it may have on its way, with a round trip of `trip`, for all that the others leave of the uplink.
    pub fn may(&self, trip: Duration) -> u64 {
        let all = lock(&self.uplink.carried).aim(trip);
        let free = all.saturating_sub(self.uplink.in_flight.load(Relaxed));
        (self.in_flight.load(Relaxed) + free).min(lock(&self.carried).aim(trip))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.has_in_flight(0);
    }
}

fn lock(carried: &Mutex<Carried>) -> std::sync::MutexGuard<'_, Carried> {
    carried.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIP: Duration = Duration::from_millis(100);

    fn two(start: Instant) -> [Sender; 2] {
        let uplink = Arc::new(Uplink::new(start));
        [(); 2].map(|()| Sender::new(start, uplink.clone()))
    }

    /// In each tenth of a second of the first second one after the other carries so many bytes.
    fn carry(start: Instant, senders: &[Sender; 2], bytes: [u64; 2]) {
        for tenth in 1..=10 {
            for (sender, bytes) in senders.iter().zip(bytes) {
                sender.acked(start + Duration::from_millis(100 * tenth), bytes);
            }
        }
    }

    #[test]
    fn what_another_leaves_is_free_up_to_what_one_has_carried() {
        let start = Instant::now();
        let senders = two(start);
        assert_eq!(senders[0].may(TRIP), 0, "nothing is known");
        carry(start, &senders, [60_000, 40_000]);
        // A megabyte a second in all, of which one carried 600 kB at most.
        assert_eq!((senders[0].may(TRIP), senders[1].may(TRIP)), (57_000, 38_000));
        senders[1].sent(30_000);
        senders[1].sent(20_000);
        assert_eq!(senders[0].may(TRIP), 45_000);
        senders[0].has_in_flight(10_000);
        assert_eq!(senders[0].may(TRIP), 45_000, "its own is its own");
        drop(senders.into_iter().nth(1));
    }

    #[test]
    fn a_connection_that_ends_leaves_all_it_had() {
        let start = Instant::now();
        let senders = two(start);
        carry(start, &senders, [60_000, 40_000]);
        let [one, other] = senders;
        other.sent(80_000);
        assert_eq!((one.may(TRIP), one.turns_of_others()), (15_000, 1));
        drop(other);
        assert_eq!((one.may(TRIP), one.turns_of_others()), (57_000, 2));
    }

    #[test]
    fn an_overflow_lessens_the_aim_of_all() {
        let start = Instant::now();
        let senders = two(start);
        carry(start, &senders, [60_000, 40_000]);
        senders[1].sent(50_000);
        assert_eq!(senders[0].may(TRIP), 45_000);
        senders[1].overflowed(start + Duration::from_secs(1));
        assert_eq!(senders[0].may(TRIP), 35_500);
    }

    #[test]
    fn few_bytes_are_no_turn() {
        let senders = two(Instant::now());
        senders[0].sent(1200);
        senders[0].has_in_flight(0);
        assert_eq!(senders[1].turns_of_others(), 0);
        senders[0].sent(TAKES_PART + 1);
        senders[0].sent(1200);
        assert_eq!((senders[0].turns_of_others(), senders[1].turns_of_others()), (0, 1));
    }
}
