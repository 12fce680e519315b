//! Virtual time: a queue of what will happen, in the order of (time, sequence).
//!
//! Two things at the same nanosecond happen in the order in which they were planned, so a history depends on nothing else.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

/// Nanoseconds since the world began.
pub type Time = u64;

pub const MILLISECOND: Time = 1_000_000;
pub const SECOND: Time = 1_000_000_000;

struct Entry<T> {
    at: Time,
    sequence: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// The clock and the queue. Nothing is ever planned in the past.
pub struct Engine<T> {
    now: Time,
    sequence: u64,
    heap: BinaryHeap<Reverse<Entry<T>>>,
}

impl<T> Default for Engine<T> {
    fn default() -> Self {
        Engine { now: 0, sequence: 0, heap: BinaryHeap::new() }
    }
}

impl<T> Engine<T> {
    pub fn now(&self) -> Time {
        self.now
    }

    /// Plans `what` for `at`, or for now if that has passed.
    pub fn plan(&mut self, at: Time, what: T) {
        self.sequence += 1;
        self.heap.push(Reverse(Entry { at: at.max(self.now), sequence: self.sequence, what }));
    }

    pub fn after(&mut self, delay: Time, what: T) {
        self.plan(self.now.saturating_add(delay), what);
    }

    /// When the next thing happens.
    pub fn next_at(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    /// Moves the clock to the next thing and returns it.
    pub fn step(&mut self) -> Option<T> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.what)
    }

    /// Moves the clock forward where nothing happens.
    pub fn idle_until(&mut self, at: Time) {
        self.now = self.now.max(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_happen_by_time_and_then_in_the_order_of_planning() {
        let mut engine = Engine::default();
        engine.plan(5, "c");
        engine.plan(3, "a");
        engine.plan(3, "b");
        let mut order = Vec::new();
        while let Some(what) = engine.step() {
            order.push((engine.now(), what));
            if what == "a" {
                engine.plan(1, "late");
            }
        }
        assert_eq!(order, [(3, "a"), (3, "b"), (3, "late"), (5, "c")]);
    }
}
