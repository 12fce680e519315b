//! The one clock of a process. Out: nanoseconds since it started, time of suspension included, and the time of day.
//!
//! A laptop whose lid was closed must see that it was away: its neighbours declared it dead meanwhile.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skein_protocol::{Instant, Utc};

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Duration,
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    origin: std::time::Instant,
}

impl Clock {
    /// Starts at [`Instant`] 1: 0 is "never" to some machines.
    pub fn start() -> Self {
        let mut clock = Clock {
            start: Duration::ZERO,
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            origin: std::time::Instant::now(),
        };
        clock.start = clock.uptime();
        clock
    }

    pub fn now(&self) -> Instant {
        Instant::from_duration(self.uptime().saturating_sub(self.start) + Duration::from_nanos(1))
    }

    pub fn utc(&self) -> Utc {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Utc(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Of the machine, sleep included.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn uptime(&self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a timespec of ours; the call writes it and keeps nothing.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
        assert_eq!(failed, 0, "every Linux since 2.6.39 has a boot-time clock");
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    /// The standard library's clock: on these systems it goes on during sleep, or there is no better one.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn uptime(&self) -> Duration {
        self.origin.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_starts_after_zero_and_never_goes_back() {
        let clock = Clock::start();
        let first = clock.now();
        assert!(first > Instant::ZERO && first < Instant(1_000_000_000));
        assert!(clock.now() >= first);
        assert!(clock.utc() > Utc(1_700_000_000_000));
    }
}
