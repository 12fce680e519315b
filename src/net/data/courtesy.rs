//! Bulk that gives way to training on other connections. In: urgent messages that begin and end, on any connection. Out: whether a
//! connection that carries nothing but bulk should send less.
//!
//! Inside a connection the priorities of its streams decide who goes first. Connections know nothing of each other, so one that
//! copies a stage's state would take its share of the uplink from all micro-batches. Knows no connection.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use skein_protocol::Lane;

/// Between two micro-batches there is a pause: bulk does not rush into each.
const LATELY: Duration = Duration::from_millis(300);
/// A connection that had something urgent within this is not one of bulk alone.
const TRAINS: Duration = Duration::from_secs(2);
/// How often a connection with bulk looks again.
pub const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Courtesy {
    began: Instant,
    /// Urgent messages under way on all connections.
    urgent: AtomicUsize,
    /// When one of them was last seen, in milliseconds since the beginning.
    seen: AtomicU64,
}

/// Messages of these lanes are waited for by every stage after them.
pub fn is_urgent(lane: Lane) -> bool {
    matches!(lane, Lane::Gradient | Lane::Activation)
}

/// An urgent message that is under way.
#[derive(Debug)]
pub struct UnderWay<'a>(&'a Courtesy);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.ends(Instant::now());
    }
}

impl Courtesy {
    pub fn new(now: Instant) -> Courtesy {
        Courtesy { began: now, urgent: AtomicUsize::new(0), seen: AtomicU64::new(0) }
    }

    /// A message is under way until what this returns is dropped.
    pub fn begins(&self, lane: Lane) -> Option<UnderWay<'_>> {
        is_urgent(lane).then(|| {
            self.urgent.fetch_add(1, Relaxed);
            UnderWay(self)
        })
    }

    fn ends(&self, now: Instant) {
        self.urgent.fetch_sub(1, Relaxed);
        self.seen.fetch_max(self.millis(now), Relaxed);
    }

    /// Whether a connection with so many messages of each lane under way gives way now. `own`: when it last had something urgent
    /// itself, among which priorities decide.
    pub fn is_due(&self, now: Instant, counts: &[usize; Lane::ALL.len()], own: Option<Instant>) -> bool {
        let others = Lane::ALL.into_iter().any(|lane| lane != Lane::Bulk && counts[lane as usize] > 0);
        let trains = own.is_some_and(|at| now.saturating_duration_since(at) < TRAINS);
        if counts[Lane::Bulk as usize] == 0 || others || trains {
            return false;
        }
        let seen = self.seen.load(Relaxed);
        let lately = seen > 0 && self.millis(now) < seen + LATELY.as_millis() as u64;
        self.urgent.load(Relaxed) > 0 || lately
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_gives_way_while_somebody_urgent_is_under_way_and_a_little_longer() {
        let now = Instant::now();
        let courtesy = Courtesy::new(now);
        let mut counts = [0; Lane::ALL.len()];
        let due =
            |at: u64, counts: &[usize; Lane::ALL.len()]| courtesy.is_due(now + Duration::from_millis(at), counts, None);
        counts[Lane::Bulk as usize] = 1;
        assert!(courtesy.begins(Lane::Average).is_none() && !due(0, &counts), "nobody waits for it");
        let urgent = courtesy.begins(Lane::Activation);
        assert!(due(0, &counts));
        std::mem::forget(urgent);
        courtesy.ends(now + Duration::from_millis(50));
        assert_eq!([due(349, &counts), due(350, &counts)], [true, false]);
        let own = |ago: u64| now.checked_sub(Duration::from_millis(ago));
        assert!(!courtesy.is_due(now, &counts, own(1900)), "it is its own");
        assert!(courtesy.is_due(now, &counts, own(2000)));
        counts[Lane::Gradient as usize] = 1;
        assert!(!due(100, &counts), "inside a connection priorities decide");
        counts = [0; Lane::ALL.len()];
        assert!(!due(100, &counts), "there is no bulk");
    }
}
