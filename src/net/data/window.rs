//! How far a peer may send ahead of our reading. In: bytes that were read, and how long a round trip takes. Out: a window that
//! has become too narrow for what the peer sends. Knows no connection.
//!
//! A link carries at most a window a round trip. Strangers get a narrow one, since it is memory that they may fill; a peer in
//! use gets what it has shown that it fills: four times what was read in one round trip (its bandwidth-delay product), so that
//! a lost packet, or a reader that is late, does not stop it. It never shrinks: what a peer was once told that it may send it may
//! send for ever, so memory is promised until the connection ends.

use std::time::{Duration, Instant};

/// A window is this many times what is read in a round trip.
const AHEAD: u64 = 4;
/// Bytes are counted over at least this long: on loopback a round trip is shorter than a reader's turn.
const SPAN_MIN: Duration = Duration::from_millis(4);
/// Bytes after such a rest say nothing of a rate.
const REST: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Window {
    size: u64,
    least: u64,
    most: u64,
    /// Bytes read since.
    read: u64,
    since: Instant,
    last: Instant,
}

impl Window {
    /// `size`: what it is now; `least`: what a peer in use should have; `most`: what one peer gets at most; in bytes.
    pub fn new(now: Instant, size: u64, least: u64, most: u64) -> Window {
        Window { size, least, most: most.max(least), read: 0, since: now, last: now }
    }

    /// `bytes` were read. The size that is wanted, where the window is too narrow. `round_trip` is asked rarely.
    pub fn on_read(&mut self, now: Instant, bytes: u64, round_trip: impl FnOnce() -> Duration) -> Option<u64> {
        if now.saturating_duration_since(self.last) >= REST {
            (self.read, self.since) = (0, now);
        }
        self.last = now;
        self.read += bytes;
        let took = now.saturating_duration_since(self.since);
        if took < SPAN_MIN {
            return None;
        }
        let round_trip = round_trip().max(SPAN_MIN);
        if took < round_trip {
            return None;
        }
        let in_one = (self.read as f64 * round_trip.as_secs_f64() / took.as_secs_f64()) as u64;
        (self.read, self.since) = (0, now);
        let wanted = (in_one * AHEAD).clamp(self.least, self.most);
        // A little more is not worth a frame.
        (wanted > self.size + self.size / 4).then_some(wanted)
    }

    /// The window is `size` from now on.
    pub fn set(&mut self, size: u64) {
        self.size = size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Reads for a second what a link of so many bytes a second and this round trip brings, a window a round trip at most.
    fn after_a_second(rate: u64, round_trip: Duration) -> u64 {
        let mut now = Instant::now();
        let mut window = Window::new(now, MIB, 4 * MIB, 64 * MIB);
        let step = Duration::from_millis(1);
        for _ in 0..1000 {
            now += step;
            let most = (window.size as f64 / round_trip.as_secs_f64()) as u64;
            if let Some(size) = window.on_read(now, rate.min(most) / 1000, || round_trip) {
                window.set(size);
            }
        }
        window.size
    }

    #[test]
    fn a_window_follows_what_the_link_carries_in_a_round_trip() {
        let ms = Duration::from_millis;
        assert_eq!(after_a_second(12_500_000, ms(50)), 4 * MIB, "100 Mbit/s fit into the first one");
        let far = after_a_second(125_000_000, ms(100));
        assert!((40 * MIB..=64 * MIB).contains(&far), "1 Gbit/s over 100 ms: {far}");
        let near = after_a_second(1_250_000_000, ms(1));
        assert!((16 * MIB..=32 * MIB).contains(&near), "10 Gbit/s next door: {near}");
    }

    #[test]
    fn a_rest_is_no_rate_and_what_was_refused_is_asked_for_again() {
        let now = Instant::now();
        let mut window = Window::new(now, MIB, 4 * MIB, 64 * MIB);
        let trip = || Duration::from_millis(100);
        window.on_read(now, 0, trip);
        assert_eq!(window.on_read(now + trip(), 1000, trip), Some(4 * MIB), "a peer in use has the least");
        assert_eq!(window.on_read(now + 2 * trip(), 1000, trip), Some(4 * MIB), "it was refused: asked for again");
        window.set(4 * MIB);
        let size = window.on_read(now + 3 * trip(), 8 * MIB, trip).expect("too narrow");
        assert_eq!(size, 32 * MIB);
        window.set(size);
        let rested = now + 3 * trip() + REST;
        assert_eq!(window.on_read(rested, 64 * MIB, trip), None, "the first bytes after a rest are no rate");
    }
}
