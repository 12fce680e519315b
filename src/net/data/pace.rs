//! How many bytes a second a connection carries. In: stretches of time in which something was on its way, and what was acknowledged
//! in them. Out: a smoothed rate. Knows no clock and no connection.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Stretches that carried less say more of the round trip than of the rate.
const BYTES_MIN: u64 = 64 << 10;

/// Bytes a second; 0 before the first measurement.
#[derive(Debug, Default)]
pub struct Pace(AtomicU64);

impl Pace {
    /// `bytes` were acknowledged `after` the first of them was sent, over a connection with this round trip: the last
    /// acknowledgement is that much later than the last byte.
    pub fn measured(&self, bytes: u64, after: Duration, round_trip: Duration) {
        if bytes < BYTES_MIN {
            return;
        }
        let carried = after.saturating_sub(round_trip).max(after / 8).as_secs_f64().max(1e-6);
        let rate = (bytes as f64 / carried) as u64;
        let before = self.0.load(Ordering::Relaxed);
        let smoothed = if before == 0 { rate } else { (before / 4).saturating_mul(3).saturating_add(rate / 4) };
        self.0.store(smoothed.max(1), Ordering::Relaxed);
    }

    pub fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }
}

/// A stretch of time in which something was on its way.
#[derive(Debug)]
pub struct Stretch {
    since: Instant,
    /// Bytes that the connection had sent before.
    sent: u64,
    /// It sent less than it could have.
    gave_way: bool,
}

impl Stretch {
    pub fn new(now: Instant, sent: u64) -> Stretch {
        Stretch { since: now, sent, gave_way: false }
    }

    /// The connection sends less than it could: what is carried says nothing of the link.
    pub fn gives_way(&mut self) {
        self.gave_way = true;
    }

    pub fn length(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// It ends when `sent` bytes were sent in all.
    pub fn ends(&self, now: Instant, sent: u64, round_trip: Duration, pace: &Pace) {
        if !self.gave_way {
            pace.measured(sent.saturating_sub(self.sent), self.length(now), round_trip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_round_trip_does_not_count_as_time_on_the_way() {
        let (pace, millis) = (Pace::default(), Duration::from_millis);
        assert_eq!(pace.get(), None);
        pace.measured(1000, millis(50), millis(50));
        assert_eq!(pace.get(), None, "too little to tell");
        // 100 Mbit/s at 50 ms.
        pace.measured(1_250_000, millis(150), millis(50));
        assert_eq!(pace.get(), Some(12_500_000));
        for _ in 0..40 {
            pace.measured(1_250_000, millis(1050), millis(50));
        }
        let rate = pace.get().unwrap();
        assert!((1_240_000..1_300_000).contains(&rate), "it follows: {rate}");
        pace.measured(1 << 20, Duration::ZERO, millis(50));
        assert!(pace.get().unwrap() > rate, "what was there at once is fast, and nothing is divided by zero");
    }

    #[test]
    fn a_stretch_that_gave_way_says_nothing_of_the_link() {
        let (pace, now) = (Pace::default(), Instant::now());
        let second = now + Duration::from_secs(1);
        let mut stretch = Stretch::new(now, 100);
        stretch.ends(second, 1_000_100, Duration::ZERO, &pace);
        assert_eq!(pace.get(), Some(1_000_000));
        stretch.gives_way();
        stretch.ends(second, 250_100, Duration::ZERO, &pace);
        assert_eq!(pace.get(), Some(1_000_000));
    }
}
