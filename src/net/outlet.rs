//! What all connections of a peer send over the uplink that they have in common. In: what each has on its way, and what arrives. Out:
//! how much more one of them may have on its way because others have nothing to send. Reads no clock.
//!
//! Each connection finds its own window by what it sees, a few round trips after others began or ended, and bodies begin and end
//! sooner than that: of four connections that take turns each has the window that four need, and whoever is left alone fills a
//! part of the link. (A manager of the windows of several flows is an old idea: RFC 3124, 2001.) So what arrived lately is
//! known of all of them together, and of each; what the others leave of the first is free to one of them, up to the second.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::lately::Lately;

/// A rate is taken over so long: longer than a round trip to most of the world.
const RATE_SPAN: Duration = Duration::from_millis(200);
/// How long the greatest rate is believed while anything arrives: it stands in one of two spans of this length.
const BEST_SPAN: Duration = Duration::from_secs(10);
/// A round trip that nobody has measured.
const TRIP: Duration = Duration::from_millis(100);
/// Part of the greatest rate that is aimed at. Less than all of it, so that a queue that has formed goes away.
const AIM: f64 = 0.95;
/// Part of the greatest rate that remains when a queue overflows.
const OVERFLOWED: f64 = 0.9;
/// Who has more bytes on its way takes part, until it has fewer than the second. Fewer are those of frames that control.
const TAKES_PART: (u64, u64) = (6000, 1500);

/// What arrived lately.
#[derive(Clone, Copy, Debug)]
struct Arrived {
    bytes: u64,
    since: Instant,
    /// The most bytes a second.
    best: Lately<f64>,
    /// When the best was last lessened.
    lessened: Option<Instant>,
}

impl Arrived {
    fn new(now: Instant) -> Arrived {
        let best = Lately::new(now, BEST_SPAN, f64::max);
        Arrived { bytes: 0, since: now, best, lessened: None }
    }

    fn acked(&mut self, now: Instant, bytes: u64) {
        self.bytes += bytes;
        let took = now.saturating_duration_since(self.since);
        if took >= RATE_SPAN {
            self.best.note(now, self.bytes as f64 / took.as_secs_f64());
            (self.bytes, self.since) = (0, now);
        }
    }

    /// Bytes a second that are aimed at.
    fn aim(&self) -> f64 {
        self.best.get().unwrap_or(0.0) * AIM
    }

    /// One queue that overflows is seen by all who stand in it. What arrives in spite of it is known a span later.
    fn overflowed(&mut self, now: Instant) {
        let again = self.lessened.is_some_and(|at| now.saturating_duration_since(at) < RATE_SPAN);
        if let Some(best) = self.best.get().filter(|_| !again) {
            self.best = Lately::new(now, BEST_SPAN, f64::max);
            self.best.note(now, best * OVERFLOWED);
            self.lessened = Some(now);
        }
    }
}

#[derive(Debug)]
pub struct Outlet {
    /// Bytes a second of all connections: what each has on its way, over its round trip.
    rate: AtomicU64,
    /// How often one of them began or ceased to take part.
    turns: AtomicU64,
    arrived: Mutex<Arrived>,
}

/// One connection's part in it. What it has on its way is its own no more when this is dropped.
#[derive(Debug)]
pub struct Sender {
    outlet: Arc<Outlet>,
    in_flight: AtomicU64,
    /// Microseconds of its round trip, and its part of the rate.
    trip: AtomicU64,
    rate: AtomicU64,
    takes_part: AtomicBool,
    turns: AtomicU64,
    arrived: Mutex<Arrived>,
}

impl Outlet {
    pub fn new(now: Instant) -> Outlet {
        Outlet { rate: AtomicU64::new(0), turns: AtomicU64::new(0), arrived: Mutex::new(Arrived::new(now)) }
    }
}

impl Sender {
    pub fn new(now: Instant, outlet: Arc<Outlet>) -> Sender {
        Sender {
            outlet,
            in_flight: AtomicU64::new(0),
            trip: AtomicU64::new(micros(TRIP)),
            rate: AtomicU64::new(0),
            takes_part: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            arrived: Mutex::new(Arrived::new(now)),
        }
    }

    /// So many bytes more are on their way.
    pub fn sent(&self, bytes: u64) {
        self.has_in_flight(self.in_flight.load(Relaxed) + bytes);
    }

    /// So many bytes are on their way no longer, and did not arrive.
    pub fn lost(&self, bytes: u64) {
        self.has_in_flight(self.in_flight.load(Relaxed).saturating_sub(bytes));
    }

    /// Its round trip takes so long now.
    pub fn takes(&self, trip: Duration) {
        self.trip.store(micros(trip), Relaxed);
    }

    /// So many bytes are on their way.
    pub fn has_in_flight(&self, bytes: u64) {
        self.in_flight.store(bytes, Relaxed);
        let rate = bytes.saturating_mul(1_000_000) / self.trip.load(Relaxed);
        let before = self.rate.swap(rate, Relaxed);
        self.outlet.rate.fetch_add(rate.wrapping_sub(before), Relaxed);
        let took_part = self.takes_part.load(Relaxed);
        let takes_part = bytes > if took_part { TAKES_PART.1 } else { TAKES_PART.0 };
        if takes_part != took_part {
            self.takes_part.store(takes_part, Relaxed);
            self.turns.fetch_add(1, Relaxed);
            self.outlet.turns.fetch_add(1, Relaxed);
        }
    }

    /// So many bytes arrived.
    pub fn acked(&self, now: Instant, bytes: u64) {
        self.both().for_each(|mut arrived| arrived.acked(now, bytes));
    }

    /// It sends more than a queue on its way holds: what it and all others could send before is no aim any more.
    pub fn overflowed(&self, now: Instant) {
        self.both().for_each(|mut arrived| arrived.overflowed(now));
    }

    /// Whatever it could send before says nothing any more.
    pub fn forget(&self, now: Instant) {
        *lock(&self.arrived) = Arrived::new(now);
    }

    /// How often another connection began or ceased to take part.
    pub fn turns_of_others(&self) -> u64 {
        self.outlet.turns.load(Relaxed).wrapping_sub(self.turns.load(Relaxed))
    }

    /// Bytes that it may have on its way, with a round trip of `trip`, for all that the others leave of the uplink.
    pub fn may(&self, trip: Duration) -> u64 {
        let free = (lock(&self.outlet.arrived).aim() - self.outlet.rate.load(Relaxed) as f64).max(0.0);
        let whole = (lock(&self.arrived).aim() * trip.as_secs_f64()) as u64;
        whole.min(self.in_flight.load(Relaxed) + (free * trip.as_secs_f64()) as u64)
    }

    fn both(&self) -> impl Iterator<Item = MutexGuard<'_, Arrived>> {
        [&self.arrived, &self.outlet.arrived].into_iter().map(lock)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.has_in_flight(0);
    }
}

/// At least one.
fn micros(trip: Duration) -> u64 {
    (trip.as_micros() as u64).max(1)
}

fn lock(arrived: &Mutex<Arrived>) -> MutexGuard<'_, Arrived> {
    arrived.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two connections that carried 600 and 400 kB in the second after `start`.
    fn two(start: Instant) -> [Sender; 2] {
        let outlet = Arc::new(Outlet::new(start));
        let senders = [(); 2].map(|()| Sender::new(start, outlet.clone()));
        assert_eq!(senders[0].may(TRIP), 0, "nothing is known");
        for tenth in 1..=10 {
            for (sender, bytes) in senders.iter().zip([60_000, 40_000]) {
                sender.acked(start + Duration::from_millis(100 * tenth), bytes);
            }
        }
        senders
    }

    #[test]
    fn what_another_leaves_is_free_up_to_what_one_has_carried() {
        let senders = two(Instant::now());
        assert_eq!((senders[0].may(TRIP), senders[1].may(TRIP)), (57_000, 38_000));
        senders[1].sent(30_000);
        senders[1].sent(20_000);
        assert_eq!(senders[0].may(TRIP), 45_000);
        senders[0].has_in_flight(10_000);
        assert_eq!(senders[0].may(TRIP), 45_000, "its own is its own");
        senders[1].lost(20_000);
        assert_eq!(senders[0].may(TRIP), 57_000);
        // What is on its way for half as long comes from twice the rate.
        senders[1].takes(TRIP / 2);
        senders[1].has_in_flight(30_000);
        assert_eq!(senders[0].may(TRIP), 35_000);
    }

    #[test]
    fn a_connection_that_ends_leaves_all_it_had() {
        let [one, other] = two(Instant::now());
        other.sent(80_000);
        assert_eq!((one.may(TRIP), one.turns_of_others()), (15_000, 1));
        drop(other);
        assert_eq!((one.may(TRIP), one.turns_of_others()), (57_000, 2));
    }

    #[test]
    fn an_overflow_lessens_the_aim_of_all_once() {
        let start = Instant::now();
        let [one, other] = two(start);
        let second = start + Duration::from_secs(1);
        other.overflowed(second);
        other.overflowed(second);
        assert_eq!((one.may(TRIP), other.may(TRIP)), (57_000, 34_200));
        one.sent(85_500);
        assert_eq!(other.may(TRIP), 0, "nine tenths of a megabyte a second");
        one.lost(85_500);
        one.forget(second);
        assert_eq!(one.may(TRIP), 0);
    }

    #[test]
    fn few_bytes_are_no_turn_and_who_takes_part_does_so_until_it_has_few() {
        let [one, other] = two(Instant::now());
        one.sent(1200);
        one.has_in_flight(0);
        assert_eq!(other.turns_of_others(), 0);
        one.sent(TAKES_PART.0 + 1);
        one.has_in_flight(TAKES_PART.1 + 1);
        one.has_in_flight(TAKES_PART.0 + 1);
        assert_eq!((one.turns_of_others(), other.turns_of_others()), (0, 1));
        one.has_in_flight(TAKES_PART.1);
        assert_eq!(other.turns_of_others(), 2);
    }
}
