//! Time as machines see it: a monotonic [`Instant`] since the process started, and [`Utc`] where two peers compare clocks.

use std::{
    fmt,
    ops::{Add, AddAssign, Sub},
    time::Duration,
};

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Nanoseconds since this process (or this simulated world) started. Never compared between peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Instant(pub u64);

impl Instant {
    pub const ZERO: Instant = Instant(0);

    pub fn from_duration(since_start: Duration) -> Self {
        Instant(saturating_nanos(since_start))
    }

    /// Time from `earlier` to `self`, zero when `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub fn as_duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

fn saturating_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(saturating_nanos(duration)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_sub(saturating_nanos(duration)))
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z, as the peer that wrote it believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(transparent)]
pub struct Utc(#[n(0)] pub u64);

impl Utc {
    /// Distance of two clocks, whichever is ahead.
    pub fn distance(self, other: Utc) -> Duration {
        Duration::from_millis(self.0.abs_diff(other.0))
    }
}

impl Add<Duration> for Utc {
    type Output = Utc;
    fn add(self, duration: Duration) -> Utc {
        Utc(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0 / 1_000_000_000, self.0 / 1_000_000 % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(Instant(5).since(Instant(9)), Duration::ZERO);
        assert_eq!(Instant(u64::MAX) + Duration::from_secs(1), Instant(u64::MAX));
        assert_eq!(Instant(1) - Duration::from_secs(1), Instant::ZERO);
        assert_eq!(Utc(1000).distance(Utc(3500)), Duration::from_millis(2500));
    }
}
