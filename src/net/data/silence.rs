//! When a peer that says nothing is dead. In: when we heard it, and when our own timer ran. Out: dead or not.
//!
//! A busy machine must not kill its peers: silence counts only while this task itself ran on time. When our timer comes
//! late the window starts again, since what the peer sent meanwhile may lie unread. Knows no connection.

use std::time::{Duration, Instant};

/// How often a connection is looked at.
pub const TICK: Duration = Duration::from_millis(200);
/// A timer that is later than this says nothing about the peer.
const LATE: Duration = Duration::from_millis(500);

/// How eagerly a connection is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// A ping after this much silence of ours.
    pub ping: Duration,
    /// Dead after this much silence of theirs.
    pub dead: Duration,
}

/// Connections in use: a dead peer is noticed after 1.6 to 1.8 s.
pub const IN_USE: Pace = Pace { ping: Duration::from_millis(400), dead: Duration::from_millis(1600) };
/// Connections that nobody waits for.
pub const AT_REST: Pace = Pace { ping: Duration::from_secs(5), dead: Duration::from_secs(20) };

#[derive(Debug)]
pub struct Silence {
    pace: Pace,
    heard: Instant,
    ticked: Instant,
    pinged: Instant,
}

/// What to do after a look at the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    Ping,
    /// The peer was silent for this long, and we were listening.
    Dead(Duration),
}

impl Silence {
    pub fn new(now: Instant) -> Silence {
        Silence { pace: AT_REST, heard: now, ticked: now, pinged: now }
    }

    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// To be called every [`TICK`].
    pub fn tick(&mut self, now: Instant, pace: Pace) -> Due {
        let late = now.saturating_duration_since(self.ticked) > TICK + LATE;
        self.ticked = now;
        // What counted as silence at the former pace says nothing about the new one.
        if late || pace != self.pace {
            self.heard = now;
            self.pace = pace;
        }
        let silent = now.saturating_duration_since(self.heard);
        if silent >= pace.dead {
            return Due::Dead(silent);
        }
        if now.saturating_duration_since(self.pinged) >= pace.ping {
            self.pinged = now;
            return Due::Ping;
        }
        Due::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks on time until something other than pings is due; returns how long that took.
    fn dies_after(silence: &mut Silence, mut now: Instant, pace: Pace) -> Duration {
        let start = now;
        loop {
            now += TICK;
            if let Due::Dead(_) = silence.tick(now, pace) {
                return now - start;
            }
        }
    }

    #[test]
    fn a_dead_peer_is_noticed_within_two_seconds() {
        let now = Instant::now();
        assert_eq!(dies_after(&mut Silence::new(now), now, IN_USE), IN_USE.dead + TICK);
        assert_eq!(dies_after(&mut Silence::new(now), now, AT_REST), AT_REST.dead);
    }

    #[test]
    fn a_connection_that_comes_into_use_after_a_rest_is_pinged_first() {
        let mut now = Instant::now();
        let mut silence = Silence::new(now);
        for _ in 0..20 {
            now += TICK;
            silence.tick(now, AT_REST);
        }
        now += TICK;
        assert_eq!(silence.tick(now, IN_USE), Due::Ping);
        assert_eq!(dies_after(&mut silence, now, IN_USE), IN_USE.dead);
    }

    #[test]
    fn our_own_lateness_is_not_the_peers_silence() {
        let mut now = Instant::now();
        let mut silence = Silence::new(now);
        for _ in 0..50 {
            now += Duration::from_millis(1500);
            assert_ne!(silence.tick(now, IN_USE), Due::Dead(Duration::from_millis(1500)));
            assert!(!matches!(silence.tick(now, IN_USE), Due::Dead(_)));
        }
        assert_eq!(dies_after(&mut silence, now, IN_USE), Duration::from_millis(1600));
    }
}
