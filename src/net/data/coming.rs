//! Whether a body that holds room still comes. In: the time, and the bytes of bodies that were read on its connection. Out: that it is
//! to be given up, and why. Knows no stream.
//!
//! Bytes are counted over the whole connection: a body that others of its connection go before gets none for long, and is as good
//! as they are.

use std::time::{Duration, Instant};

use skein_protocol::wire::limits::{CHUNK, RATE_MIN, RATE_SHARED};

/// A connection whose bodies say nothing for this long holds memory for nothing.
pub const STALLED: Duration = Duration::from_secs(20);
/// Nothing in the protocol waits longer for a body, beside the time that its bytes need on the slowest link, or a chunk where that is
/// shared.
const TRANSIT: Duration = Duration::from_secs(120);

/// How long a body may be on its way behind others, when all of them are `bytes`.
pub fn longest(bytes: u64) -> Duration {
    TRANSIT + Duration::from_secs((bytes / RATE_MIN).max(bytes.min(CHUNK) / RATE_SHARED))
}

/// Why a body is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// Nobody waits for it any more.
    Over,
    /// Nothing comes.
    Silent,
    /// Others wait for its room, and it does not hurry.
    Trickles,
}

#[derive(Debug)]
pub struct Coming {
    began: Instant,
    /// Bytes read on the connection when it began.
    read: u64,
    /// When the last bytes were seen, and how many there were then.
    heard: (Instant, u64),
    until: Instant,
}

impl Coming {
    /// There is room for a body of `bytes`; `read` bytes were read on its connection before.
    pub fn new(now: Instant, read: u64, bytes: u64) -> Coming {
        Coming { began: now, read, heard: (now, read), until: now + longest(bytes) }
    }

    /// To be asked with every piece of the body, and now and then without one.
    pub fn look(&mut self, now: Instant, read: u64, is_waited_for: bool) -> Option<Late> {
        if read != self.heard.1 {
            self.heard = (now, read);
        }
        let held = now.saturating_duration_since(self.began);
        if now >= self.until {
            return Some(Late::Over);
        }
        if now.saturating_duration_since(self.heard.0) >= STALLED {
            return Some(Late::Silent);
        }
        let slow = read.saturating_sub(self.read) < RATE_SHARED.saturating_mul(held.as_secs());
        (is_waited_for && held >= STALLED && slow).then_some(Late::Trickles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a body of 100 MB that comes at `rate` bytes a second, a piece a second, is given up.
    fn given_up(rate: u64, is_waited_for: bool) -> Option<(u64, Late)> {
        let (now, len) = (Instant::now(), 100_000_000);
        let mut coming = Coming::new(now, 7, len);
        let mut look = |second| coming.look(now + Duration::from_secs(second), 7 + rate * second, is_waited_for);
        let seconds = len.checked_div(rate).unwrap_or(u64::from(u16::MAX));
        (0..seconds).find_map(|second| look(second).map(|late| (second, late)))
    }

    #[test]
    fn what_the_slowest_link_carries_has_its_time_and_what_trickles_loses_its_room_to_others() {
        assert_eq!(given_up(RATE_MIN, true), None);
        assert_eq!(given_up(RATE_SHARED, true), Some((520, Late::Over)), "longer than the protocol waits");
        assert_eq!(given_up(1000, true), Some((20, Late::Trickles)));
        assert_eq!(given_up(1000, false), Some((520, Late::Over)), "nobody else wants the room");
        assert_eq!(longest(CHUNK).as_secs(), 120 + 134, "a chunk has the time that its fetcher gives it");
        assert_eq!(given_up(0, false), Some((20, Late::Silent)));
    }
}
