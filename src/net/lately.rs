//! The best of what was seen lately: within this span of time, and within the one before it. In: values, and when they were seen. Out:
//! the best of them. Reads no clock.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub struct Lately<T> {
    span: Duration,
    better: fn(T, T) -> T,
    now: Option<T>,
    before: Option<T>,
    since: Instant,
}

impl<T: Copy> Lately<T> {
    /// `better` says which of two values it is.
    pub fn new(now: Instant, span: Duration, better: fn(T, T) -> T) -> Lately<T> {
        Lately { span, better, now: None, before: None, since: now }
    }

    pub fn note(&mut self, now: Instant, value: T) {
        if now.saturating_duration_since(self.since) >= self.span {
            let before = self.now.filter(|_| now.saturating_duration_since(self.since) < 2 * self.span);
            (self.before, self.now, self.since) = (before, None, now);
        }
        self.now = Some(self.now.map_or(value, |known| (self.better)(known, value)));
    }

    pub fn get(&self) -> Option<T> {
        self.now.into_iter().chain(self.before).reduce(self.better)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_best_is_forgotten_after_two_spans() {
        let start = Instant::now();
        let mut lately = Lately::new(start, Duration::from_secs(10), u32::max);
        assert_eq!(lately.get(), None);
        let mut at = |second, value| {
            lately.note(start + Duration::from_secs(second), value);
            lately.get()
        };
        assert_eq!((at(1, 5), at(2, 9), at(9, 7)), (Some(5), Some(9), Some(9)));
        assert_eq!((at(10, 3), at(19, 4), at(20, 1)), (Some(9), Some(9), Some(4)));
        assert_eq!((at(29, 6), at(40, 2)), (Some(6), Some(2)), "nothing was seen for a span");
    }
}
