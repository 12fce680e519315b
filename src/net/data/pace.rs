//! How many bytes a second a connection carries. In: stretches of time in which something was on its way, and what was acknowledged
//! in them. Out: a smoothed rate. Knows no clock and no connection.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
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
}
