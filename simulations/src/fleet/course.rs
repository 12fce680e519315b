//! Who comes, goes, and sits down at a machine, and when. In: laws, and changes that are given. Out: one change after another,
//! in the order of time.
//!
//! Only what comes next for a peer is held, so peers to whom nothing happens cost nothing. What is drawn for a peer depends on
//! the seed, the peer and how often it was drawn for: one more peer shifts nobody else's fate.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skein_protocol::hash;

use crate::engine::{SECOND, Time};

/// What befalls a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Comes,
    /// It has fetched what it serves.
    Serves,
    /// Politely: it drains.
    Leaves,
    Dies,
    /// Its owner sits down at it, and gets up.
    Sits,
    Rises,
    /// Its device runs at so many thousandths of its speed from now on.
    Runs {
        permille: u16,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    pub at: Time,
    pub peer: u32,
    pub what: What,
}

/// A law of how long something lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Span {
    /// It does not end.
    Ever,
    Fixed {
        seconds: f64,
    },
    Exponential {
        mean_s: f64,
    },
    Weibull {
        shape: f64,
        scale_s: f64,
    },
    LogNormal {
        median_s: f64,
        sigma: f64,
    },
}

impl Span {
    /// Seconds, of two numbers in [0, 1); nothing if it does not end.
    fn draw(self, [a, b]: [f64; 2]) -> Option<f64> {
        let exponential = -libm::log(1.0 - a);
        match self {
            Span::Ever => None,
            Span::Fixed { seconds } => Some(seconds),
            Span::Exponential { mean_s } => Some(mean_s * exponential),
            Span::Weibull { shape, scale_s } => Some(scale_s * libm::pow(exponential, 1.0 / shape)),
            Span::LogNormal { median_s, sigma } => {
                let normal = (2.0 * exponential).sqrt() * libm::cos(std::f64::consts::TAU * b);
                Some(median_s * libm::exp(sigma * normal))
            }
        }
    }
}

/// The laws under which peers come and go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Life {
    /// All come for the first time within this; none: only as the given changes say.
    pub arrive_within: Option<Duration>,
    pub stays: Span,
    pub away: Span,
    /// Part of those who go that drain first.
    pub warned: f64,
    /// How long owners use their machines, how long they do not (ever: nobody sits down), and the part of them that sit there
    /// when the peer comes.
    pub sits: Span,
    pub rises: Span,
    pub sits_at_first: f64,
}

impl Life {
    /// All are there from the beginning, and stay.
    pub fn steady() -> Self {
        Life {
            arrive_within: Some(Duration::ZERO),
            stays: Span::Ever,
            away: Span::Ever,
            warned: 0.0,
            sits: Span::Ever,
            rises: Span::Ever,
            sits_at_first: 0.0,
        }
    }
}

/// A change, and the session of the peer in which it holds: one that is over finds another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Planned {
    change: Change,
    session: Option<u16>,
}

pub struct Course {
    life: Life,
    rng: ChaCha8Rng,
    given: Vec<Change>,
    next_given: usize,
    heap: BinaryHeap<Reverse<Planned>>,
    /// Draws so far, by peer.
    drawn: Vec<u32>,
    sessions: Vec<u16>,
}

/// Words of the stream for one draw: two numbers of 64 bits.
const WORDS: u128 = 4;

impl Course {
    /// The first coming of every peer is planned; one whose first given change is that it comes, comes then. `given` need not
    /// be in order, but for what befalls one peer at one moment.
    pub fn new(seed: u64, peers: usize, life: Life, mut given: Vec<Change>) -> Self {
        // Stable: a peer that dies and comes at one moment dies first, as it is given.
        given.sort_by_key(|change| (change.at, change.peer));
        let key = hash::keyed("skein fleet course 1", &[&seed.to_le_bytes()]).0;
        let mut course = Course {
            life,
            rng: ChaCha8Rng::from_seed(key),
            given,
            next_given: 0,
            heap: BinaryHeap::with_capacity(peers),
            drawn: vec![0; peers],
            sessions: vec![0; peers],
        };
        let mut given_first: Vec<Option<What>> = vec![None; if course.given.is_empty() { 0 } else { peers }];
        for change in course.given.iter().rev() {
            given_first[change.peer as usize] = Some(change.what);
        }
        let comes_by_law = |peer: &u32| given_first.get(*peer as usize).copied().flatten() != Some(What::Comes);
        let Some(within) = life.arrive_within else { return course };
        for peer in (0..peers as u32).filter(comes_by_law) {
            let [part, _] = course.numbers(peer);
            let at = (part * within.as_nanos() as f64) as Time;
            course.plan(Change { at, peer, what: What::Comes }, None);
        }
        course
    }

    fn numbers(&mut self, peer: u32) -> [f64; 2] {
        let nth = &mut self.drawn[peer as usize];
        self.rng.set_stream(u64::from(peer));
        self.rng.set_word_pos(u128::from(*nth) * WORDS);
        *nth += 1;
        [self.rng.random(), self.rng.random()]
    }

    fn plan(&mut self, change: Change, session: Option<u16>) {
        self.heap.push(Reverse(Planned { change, session }));
    }

    /// After `span` from `at`, if it ends and the session lasts.
    fn plan_after(&mut self, at: Time, span: Span, peer: u32, what: What, session: Option<u16>) {
        let numbers = self.numbers(peer);
        if let Some(seconds) = span.draw(numbers) {
            let at = at.saturating_add((seconds * SECOND as f64) as Time);
            self.plan(Change { at, peer, what }, session);
        }
    }

    /// The next change up to `until`. What was planned for a session that is over is passed by.
    pub fn next(&mut self, until: Time) -> Option<Change> {
        loop {
            let given = self.given.get(self.next_given).copied();
            let planned = self.heap.peek().map(|Reverse(planned)| *planned);
            let of_heap = match (given, planned) {
                (None, None) => return None,
                (Some(given), Some(planned)) => planned.change < given,
                (given, _) => given.is_none(),
            };
            let change = if of_heap { planned?.change } else { given? };
            if change.at > until {
                return None;
            }
            if !of_heap {
                self.next_given += 1;
                return Some(change);
            }
            self.heap.pop();
            let session = planned?.session;
            if session.is_none_or(|session| session == self.sessions[change.peer as usize]) {
                return Some(change);
            }
        }
    }

    /// A peer came: when it goes is planned, and when its owner sits down.
    pub fn came(&mut self, at: Time, peer: u32) {
        let session = &mut self.sessions[peer as usize];
        *session = session.wrapping_add(1);
        let session = Some(*session);
        let [warned, sits] = self.numbers(peer);
        let goes = if warned < self.life.warned { What::Leaves } else { What::Dies };
        self.plan_after(at, self.life.stays, peer, goes, session);
        if sits < self.life.sits_at_first {
            return self.plan(Change { at, peer, what: What::Sits }, session);
        }
        self.plan_after(at, self.life.rises, peer, What::Sits, session);
    }

    /// A peer went: when it comes again is planned.
    pub fn went(&mut self, at: Time, peer: u32) {
        let session = &mut self.sessions[peer as usize];
        *session = session.wrapping_add(1);
        let session = Some(*session);
        self.plan_after(at, self.life.away, peer, What::Comes, session);
    }

    pub fn sat(&mut self, at: Time, peer: u32) {
        let session = Some(self.sessions[peer as usize]);
        self.plan_after(at, self.life.sits, peer, What::Rises, session);
    }

    pub fn rose(&mut self, at: Time, peer: u32) {
        let session = Some(self.sessions[peer as usize]);
        self.plan_after(at, self.life.rises, peer, What::Sits, session);
    }

    /// A peer has what it serves at `at`, if it is still there.
    pub fn fetches(&mut self, at: Time, peer: u32) {
        let session = Some(self.sessions[peer as usize]);
        self.plan(Change { at, peer, what: What::Serves }, session);
    }

    /// Whether anybody is still to come or about to serve.
    pub fn brings(&self) -> bool {
        let brings = |what: What| matches!(what, What::Comes | What::Serves);
        self.given[self.next_given..].iter().any(|change| brings(change.what))
            || self.heap.iter().any(|Reverse(planned)| brings(planned.change.what))
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.heap.capacity() * size_of::<Reverse<Planned>>()
            + self.given.capacity() * size_of::<Change>()
            + self.drawn.capacity() * size_of::<u32>()
            + self.sessions.capacity() * size_of::<u16>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Homes that lend their machine: sessions as those of IPFS servers over a week of 2022 (half end within 2 h, four fifths
    /// within 8 h: Weibull, mean 5.4 h), and 8 h between two of them in the median.
    fn volunteer() -> Life {
        Life {
            stays: Span::Weibull { shape: 0.61, scale_s: 3.66 * 3600.0 },
            away: Span::LogNormal { median_s: 8.0 * 3600.0, sigma: 1.0 },
            warned: 0.5,
            ..Life::steady()
        }
    }

    fn spans(span: Span) -> Vec<f64> {
        let mut course = Course::new(3, 4000, Life::steady(), Vec::new());
        let mut spans: Vec<f64> = (0..4000).filter_map(|peer| span.draw(course.numbers(peer))).collect();
        spans.sort_by(f64::total_cmp);
        spans
    }

    #[test]
    fn spans_follow_their_laws() {
        let weibull = spans(volunteer().stays);
        let (median, fourth) = (weibull[2000] / 3600.0, weibull[3200] / 3600.0);
        assert!((1.85..2.2).contains(&median) && (7.2..8.8).contains(&fourth), "{median} {fourth}");
        let normal = spans(Span::LogNormal { median_s: 100.0, sigma: 1.0 });
        assert!((93.0..107.0).contains(&normal[2000]) && (250.0..295.0).contains(&normal[3365]), "{}", normal[3365]);
        let mean = spans(Span::Exponential { mean_s: 10.0 }).iter().sum::<f64>() / 4000.0;
        assert!((9.5..10.5).contains(&mean), "{mean}");
        assert!(spans(Span::Ever).is_empty());
    }

    #[test]
    fn changes_come_in_order_and_those_of_a_former_session_do_not() {
        let life = Life { stays: Span::Fixed { seconds: 5.0 }, ..Life::steady() };
        let dies = Change { at: 2 * SECOND, peer: 0, what: What::Dies };
        let mut course = Course::new(1, 2, life, vec![dies]);
        for peer in [0, 1] {
            assert_eq!(course.next(0), Some(Change { at: 0, peer, what: What::Comes }));
            course.came(0, peer);
        }
        assert_eq!(course.next(SECOND), None);
        assert_eq!(course.next(9 * SECOND), Some(dies));
        course.went(dies.at, 0);
        assert_eq!(course.next(9 * SECOND), Some(Change { at: 5 * SECOND, peer: 1, what: What::Dies }));
        assert_eq!(course.next(Time::MAX), None);
    }

    #[test]
    fn who_dies_and_comes_at_one_moment_is_there_afterwards() {
        let change = |at, what| Change { at, peer: 0, what };
        let given = vec![change(0, What::Comes), change(5, What::Dies), change(5, What::Comes)];
        let mut course = Course::new(1, 1, Life { arrive_within: None, ..Life::steady() }, given.clone());
        let told: Vec<Change> = std::iter::from_fn(|| course.next(Time::MAX)).collect();
        assert_eq!(told, given);
    }

    #[test]
    fn one_more_peer_shifts_nobody_elses_fate() {
        let life = Life { arrive_within: Some(Duration::from_secs(100)), ..volunteer() };
        let fates = |peers: usize| {
            let mut course = Course::new(7, peers, life, Vec::new());
            let mut changes = Vec::new();
            while let Some(change) = course.next(200_000 * SECOND) {
                match change.what {
                    What::Comes => course.came(change.at, change.peer),
                    _ => course.went(change.at, change.peer),
                }
                changes.push(change);
            }
            changes
        };
        let few: Vec<_> = fates(5).into_iter().filter(|change| change.peer < 4).collect();
        assert!(few.len() > 20);
        assert_eq!(few, fates(4));
    }
}
