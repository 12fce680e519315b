//! Chooses the next peer for a micro-batch. In: who serves a stage, and our own measurements. Out: one peer, or nothing and the
//! micro-batch waits.
//!
//! Weighted by what is already with a peer over its pace (join the shortest expected wait), randomised among near-equals so that
//! replicas mix. The pace is what the peer says of its device and its uplink, as far as it is believable, less where its answers
//! are late. What one sender alone measures of a peer is no pace: in a deep pipeline it is the share that this sender gives it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use skein_protocol::{
    Instant, PeerId, Stage,
    rng::{Purpose, Streams},
};

use super::{coding::LinkSpeed, faded};

/// Samples of the acceptance time that are remembered a peer.
const WINDOW: usize = 64;
/// Answers until a peer is no newcomer.
const PROVEN: u32 = 8;
/// Micro-batches that a newcomer has at a time while somebody proven is there, besides as many as it has answered: one that never
/// answers must not end up with the whole window.
const NEWCOMER_MOST: u32 = 2;
/// Part of its speed for which a newcomer counts beside somebody proven.
const NEWCOMER: f64 = 0.5;
/// A claimed speed counts for at most so many times the median of the claims: one that boasts does not get everything.
const CREDIBLE: f64 = 4.0;
/// A replica counts for at least so much of its claim, however late it answers.
const LAG_MOST: f64 = 0.25;
/// Answers older than this half-life count half in the speed.
const SPEED_HALF_LIFE: Duration = Duration::from_secs(5);
/// Patience doubles so many times at most, and never exceeds this.
const LATE_MAX: u8 = 5;
const PATIENCE_MAX: Duration = Duration::from_secs(30);
const PATIENCE_UNKNOWN: Duration = Duration::from_secs(6);

/// What we measured of one replica of one stage.
#[derive(Clone, Debug, Default)]
struct Measured {
    /// Chosen, and not sent yet.
    named: u32,
    in_flight: u32,
    answers: u32,
    /// Exponentially weighted answers, the seconds in which any was awaited, and the same summed over all that were awaited.
    weight: f64,
    busy: f64,
    awaited: f64,
    busy_since: Option<Instant>,
    accept_ms: Vec<f64>,
    accept_next: usize,
    /// Acceptances that came too late, or not, since the last one in time, and when that was last found.
    late: u8,
    late_at: Option<Instant>,
}

#[derive(Debug)]
pub struct Route {
    me: PeerId,
    serving: BTreeMap<Stage, BTreeMap<PeerId, f64>>,
    /// Replicas that finish what they have and take nothing new.
    leaving: BTreeSet<(Stage, PeerId)>,
    /// Where many serve: those that this peer keeps to beside itself. Whoever else happens to be connected has others.
    circle: Option<BTreeSet<PeerId>>,
    measured: BTreeMap<(Stage, PeerId), Measured>,
    /// What was measured of the connections of peers that are here.
    links: BTreeMap<PeerId, LinkSpeed>,
    rng: ChaCha8Rng,
    lock_step: bool,
}

impl Route {
    pub fn new(me: PeerId, streams: &Streams, lock_step: bool) -> Self {
        Route {
            me,
            serving: BTreeMap::new(),
            leaving: BTreeSet::new(),
            circle: None,
            measured: BTreeMap::new(),
            links: BTreeMap::new(),
            rng: streams.stream(Purpose::Route),
            lock_step,
        }
    }

    /// Replicas that serve, are connected and not suspected, with the pace they claim (micro-batches a second; 0 = unknown).
    /// `leaving`: those that only finish what they have.
    pub fn set_serving(&mut self, serving: BTreeMap<Stage, BTreeMap<PeerId, f64>>, leaving: BTreeSet<(Stage, PeerId)>) {
        self.leaving = leaving;
        self.measured.retain(|(stage, peer), _| serving.get(stage).is_some_and(|peers| peers.contains_key(peer)));
        self.serving = serving;
    }

    /// Micro-batches go to these and to this peer itself, if any of these serves; nothing: to everybody who does.
    pub fn set_circle(&mut self, circle: Option<BTreeSet<PeerId>>) {
        self.circle = circle;
    }

    /// A replica that serves claims another pace.
    pub fn set_claim(&mut self, stage: Stage, peer: PeerId, pace: f64) {
        if let Some(claim) = self.serving.get_mut(&stage).and_then(|peers| peers.get_mut(&peer)) {
            *claim = pace;
        }
    }

    pub fn set_link(&mut self, peer: PeerId, link: LinkSpeed) {
        self.links.insert(peer, link);
    }

    /// The connection to `peer` is gone.
    pub fn forget_link(&mut self, peer: PeerId) {
        self.links.remove(&peer);
    }

    pub fn link(&self, peer: PeerId) -> Option<LinkSpeed> {
        self.links.get(&peer).copied()
    }

    pub fn replicas(&self, stage: Stage) -> impl Iterator<Item = PeerId> + '_ {
        self.serving.get(&stage).into_iter().flat_map(|peers| peers.keys().copied())
    }

    pub fn serves(&self, stage: Stage, peer: PeerId) -> bool {
        self.serving.get(&stage).is_some_and(|peers| peers.contains_key(&peer))
    }

    /// Whether `peer` serves `stage`, or finishes what it has of it.
    pub fn may_hold(&self, stage: Stage, peer: PeerId) -> bool {
        self.serves(stage, peer) || self.leaving.contains(&(stage, peer))
    }

    /// The next replica of `stage`; `hint` first when it is there, though it may be leaving; never one of `without`.
    pub fn choose(&mut self, stage: Stage, hint: Option<PeerId>, without: &[PeerId]) -> Option<PeerId> {
        if let Some(hint) = hint.filter(|hint| self.may_hold(stage, *hint) && !without.contains(hint)) {
            return Some(hint);
        }
        let serving = self.serving.get(&stage)?.iter().filter(|(peer, _)| !without.contains(peer));
        let mut candidates: Vec<(PeerId, f64)> = serving.map(|(peer, claim)| (*peer, *claim)).collect();
        if let Some(circle) = &self.circle
            && candidates.iter().any(|(peer, _)| circle.contains(peer))
        {
            // What goes on at this peer goes over no link.
            candidates.retain(|(peer, _)| circle.contains(peer) || *peer == self.me);
        }
        if self.lock_step {
            return candidates.first().map(|(peer, _)| *peer);
        }
        let is_proven = |peer| self.measured.get(&(stage, peer)).is_some_and(|m| m.answers >= PROVEN);
        let any_proven = candidates.iter().any(|(peer, _)| is_proven(*peer));
        let latency = |peer| self.measured.get(&(stage, peer)).and_then(Measured::latency);
        let latencies: Vec<f64> = candidates.iter().filter_map(|(peer, _)| latency(*peer)).collect();
        let usual = (!latencies.is_empty()).then(|| median(latencies));
        let typical = median(candidates.iter().map(|(_, claim)| *claim).filter(|claim| *claim > 0.0).collect());
        let mut best: Option<(f64, PeerId)> = None;
        for (peer, claim) in candidates {
            let (load, measured) = (self.load(stage, peer), self.measured.get(&(stage, peer)));
            let answers = measured.map_or(0, |measured| measured.answers);
            let is_newcomer = any_proven && answers < PROVEN;
            if is_newcomer && load >= NEWCOMER_MOST + answers {
                continue;
            }
            // Who answers later than others has more to do than what comes from here, or claims too much.
            let lag = usual.zip(measured.and_then(Measured::latency)).map_or(1.0, |(usual, its)| usual / its);
            let claim = if claim > 0.0 { claim.min(CREDIBLE * typical) } else { typical };
            // A newcomer measured itself on little. Were it held to a claim that is too low, it would get nothing to mend it with.
            let claim = if is_newcomer { claim.max(typical) } else { claim };
            let speed = match claim > 0.0 {
                true => claim * lag.clamp(LAG_MOST, 1.0),
                false => measured.and_then(Measured::speed).unwrap_or(1.0),
            };
            // A newcomer gets its first micro-batch at once.
            let trust = if is_newcomer && answers + load > 0 { NEWCOMER } else { 1.0 };
            let jitter: f64 = self.rng.random_range(0.75..1.25);
            let wait = (f64::from(load) + 1.0) / (speed * trust) * jitter;
            if best.is_none_or(|(least, _)| wait < least) {
                best = Some((wait, peer));
            }
        }
        best.map(|(_, peer)| peer)
    }

    /// Micro-batches that go to `peer`, sent or not, and have no answer yet.
    pub fn load(&self, stage: Stage, peer: PeerId) -> u32 {
        self.measured.get(&(stage, peer)).map_or(0, |measured| measured.named + measured.in_flight)
    }

    /// A micro-batch will go to `peer`, which counts at once.
    pub fn named(&mut self, stage: Stage, peer: PeerId) {
        self.measured.entry((stage, peer)).or_default().named += 1;
    }

    /// What was named goes elsewhere.
    pub fn unnamed(&mut self, stage: Stage, peer: PeerId) {
        if let Some(measured) = self.measured.get_mut(&(stage, peer)) {
            measured.named = measured.named.saturating_sub(1);
        }
    }

    /// What was named is on its way.
    pub fn sent(&mut self, now: Instant, stage: Stage, peer: PeerId) {
        let measured = self.measured.entry((stage, peer)).or_default();
        measured.book(now, 0.0);
        measured.named = measured.named.saturating_sub(1);
        measured.in_flight += 1;
        measured.busy_since = Some(now);
    }

    /// `peer` accepted, in time or not.
    pub fn accepted(&mut self, stage: Stage, peer: PeerId, took: Duration) {
        let in_time = took <= self.usual_patience(stage, peer);
        let measured = self.measured.entry((stage, peer)).or_default();
        if in_time {
            measured.late = 0;
        }
        let ms = took.as_secs_f64() * 1e3;
        if measured.accept_ms.len() < WINDOW {
            measured.accept_ms.push(ms);
        } else {
            measured.accept_ms[measured.accept_next % WINDOW] = ms;
        }
        measured.accept_next += 1;
    }

    /// `peer` returned a gradient.
    pub fn answered(&mut self, now: Instant, stage: Stage, peer: PeerId) {
        let measured = self.measured.entry((stage, peer)).or_default();
        measured.answers = measured.answers.saturating_add(1);
        measured.settle(now, 1.0);
    }

    /// What was sent came to nothing: declined, cancelled, or the peer is lost.
    pub fn withdrawn(&mut self, now: Instant, stage: Stage, peer: PeerId) {
        if let Some(measured) = self.measured.get_mut(&(stage, peer)) {
            measured.settle(now, 0.0);
        }
    }

    /// Micro-batches a second of `peer` at `stage`, when it has answered enough to tell.
    pub fn speed(&self, stage: Stage, peer: PeerId) -> Option<f64> {
        self.measured.get(&(stage, peer)).filter(|m| m.answers >= PROVEN).and_then(Measured::speed)
    }

    /// `peer` did not accept in time what lay there since `sent`. A relay may hold what seems delivered, so what waits on a link
    /// may count against it: were everything taken back again and again, nothing would ever arrive.
    ///
    /// All that were there before somebody was last found late are late for the same reason, and count once.
    pub fn was_late(&mut self, now: Instant, stage: Stage, peer: PeerId, sent: Instant) {
        let measured = self.measured.entry((stage, peer)).or_default();
        if measured.late_at.is_none_or(|at| sent >= at) {
            measured.late = (measured.late + 1).min(LATE_MAX);
            measured.late_at = Some(now);
        }
    }

    /// How long to wait for an acceptance of what was delivered: max(1 s, median + 6 MAD + median / 4) over the last 64; 1.5 s before 8.
    /// Twice as long for every time that it came too late, until one comes in time.
    pub fn patience(&self, stage: Stage, peer: PeerId) -> Duration {
        let Some(measured) = self.measured.get(&(stage, peer)) else { return self.usual_patience(stage, peer) };
        // Who never accepted anything may never do so.
        let most = if measured.accept_ms.is_empty() { PATIENCE_UNKNOWN } else { PATIENCE_MAX };
        (self.usual_patience(stage, peer) * (1 << measured.late)).min(most)
    }

    fn usual_patience(&self, stage: Stage, peer: PeerId) -> Duration {
        let Some(measured) = self.measured.get(&(stage, peer)).filter(|m| m.accept_ms.len() >= 8) else {
            return Duration::from_millis(1500);
        };
        let median = median(measured.accept_ms.clone());
        let deviation = self::median(measured.accept_ms.iter().map(|ms| (ms - median).abs()).collect());
        let ms = (median + 6.0 * deviation + median / 4.0).clamp(1000.0, 30_000.0);
        Duration::from_micros((ms * 1e3) as u64)
    }
}

impl Measured {
    fn speed(&self) -> Option<f64> {
        (self.answers >= 2 && self.busy > 0.0).then(|| self.weight / self.busy)
    }

    /// Seconds from sending to the answer, by Little's law.
    fn latency(&self) -> Option<f64> {
        (self.answers >= 2 && self.weight > 0.0).then(|| self.awaited / self.weight)
    }

    /// One less in flight.
    fn settle(&mut self, now: Instant, answers: f64) {
        self.book(now, answers);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.busy_since = (self.in_flight > 0).then_some(now);
    }

    /// The time since the last change was spent with what is in flight.
    fn book(&mut self, now: Instant, answers: f64) {
        let Some(since) = self.busy_since else { return };
        let seconds = now.since(since).as_secs_f64();
        let fade = faded(seconds, SPEED_HALF_LIFE);
        self.weight = self.weight * fade + answers;
        self.busy = self.busy * fade + seconds;
        self.awaited = self.awaited * fade + seconds * f64::from(self.in_flight);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(peers: &[u8]) -> Route {
        let mut route = Route::new(PeerId([9; 32]), &Streams::new(1, PeerId([9; 32])), false);
        let peers = peers.iter().map(|p| (PeerId([*p; 32]), 0.0)).collect();
        route.set_serving(BTreeMap::from([(0, peers)]), BTreeSet::new());
        route
    }

    fn run(route: &mut Route, speeds: &[f64], picks: usize) -> Vec<usize> {
        // Each peer answers in the order of its queue, one every 1/speed seconds.
        let mut free = vec![0.0f64; speeds.len()];
        let mut ends: Vec<(f64, usize)> = Vec::new();
        let mut counts = vec![0; speeds.len()];
        for i in 0..picks {
            let t = i as f64 * 0.05;
            ends.sort_by(|a, b| a.0.total_cmp(&b.0));
            while ends.first().is_some_and(|(end, _)| *end <= t) {
                let (end, who) = ends.remove(0);
                route.answered(Instant((end * 1e9) as u64), 0, PeerId([who as u8; 32]));
            }
            let peer = route.choose(0, None, &[]).expect("somebody serves");
            let who = usize::from(peer.0[0]);
            counts[who] += 1;
            route.sent(Instant((t * 1e9) as u64), 0, peer);
            free[who] = free[who].max(t) + 1.0 / speeds[who];
            ends.push((free[who], who));
        }
        counts
    }

    #[test]
    fn in_a_circle_this_peer_is_one_of_those_who_are_chosen() {
        let mut route = route(&[1, 2, 3, 9]);
        route.set_circle(Some(BTreeSet::from([PeerId([1; 32]), PeerId([2; 32])])));
        let chosen = |route: &mut Route| -> BTreeSet<u8> {
            (0..50).filter_map(|_| route.choose(0, None, &[])).map(|peer| peer.0[0]).collect()
        };
        assert_eq!(chosen(&mut route), BTreeSet::from([1, 2, 9]));
        // Where nobody of the circle serves, everybody who does is as good.
        route.set_circle(Some(BTreeSet::from([PeerId([7; 32])])));
        assert_eq!(chosen(&mut route), BTreeSet::from([1, 2, 3, 9]));
    }

    #[test]
    fn picks_follow_the_measured_speed() {
        let counts = run(&mut route(&[0, 1]), &[15.0, 5.0], 1000);
        assert!(counts[0] > 2 * counts[1], "{counts:?}");
        assert!(counts[1] > 100, "the slower one still works: {counts:?}");
    }

    #[test]
    fn a_newcomer_counts_half_and_has_two_more_than_it_answered() {
        let mut route = route(&[0, 1]);
        let (old, new) = (PeerId([0; 32]), PeerId([1; 32]));
        for i in 0..PROVEN {
            route.sent(Instant(u64::from(i)), 0, old);
            route.answered(Instant(u64::from(i) + 1_000_000), 0, old);
        }
        // Nobody knows yet what the new one can do.
        route.set_claim(0, old, 10.0);
        let first: Vec<_> = (0..20).filter_map(|_| route.choose(0, None, &[])).collect();
        assert!(first.contains(&new), "at once");
        let mut load = |answers: u32| {
            for _ in 0..answers {
                route.answered(Instant(1), 0, new);
            }
            (0..100).for_each(|_| {
                let peer = route.choose(0, None, &[]).expect("two serve");
                route.sent(Instant(1), 0, peer);
            });
            [old, new].map(|peer| route.load(0, peer))
        };
        assert_eq!(load(0), [98, 2]);
        // One answered: three at a time.
        assert_eq!(load(1)[1], 3);
        let [old, new] = load(7);
        assert!(new > 8 && new < old, "{old} {new}");
    }

    #[test]
    fn a_newcomer_that_began_slowly_gets_enough_to_show_better() {
        let mut route = route(&[0, 1]);
        let (old, new) = (PeerId([0; 32]), PeerId([1; 32]));
        for i in 0..PROVEN {
            route.sent(Instant(u64::from(i)), 0, old);
            route.answered(Instant(u64::from(i) + 1_000_000), 0, old);
        }
        // Its first two took long, and that is what it says of itself. Few are open at a time.
        route.set_claim(0, old, 50.0);
        route.set_claim(0, new, 1.0);
        (0..2).for_each(|_| route.answered(Instant(1), 0, new));
        let mut got = 0;
        for at in 0..40 {
            let mut open = Vec::new();
            for _ in 0..4 {
                let peer = route.choose(0, None, &[]).expect("two serve");
                route.sent(Instant(2 + at), 0, peer);
                open.push(peer);
            }
            got += open.iter().filter(|peer| **peer == new).count() as u32;
            open.into_iter().for_each(|peer| route.answered(Instant(2 + at), 0, peer));
        }
        assert!(got >= PROVEN - 2, "{got}");
    }

    #[test]
    fn a_boast_counts_for_little_and_late_answers_for_less() {
        let mut route = route(&[0, 1, 2]);
        let peers = [0, 1, 2].map(|n| PeerId([n; 32]));
        for (peer, claim) in peers.into_iter().zip([5.0, 5.0, 5000.0]) {
            route.set_claim(0, peer, claim);
        }
        let share = |route: &mut Route| {
            let mut shares = [0; 3];
            for _ in 0..240 {
                let peer = route.choose(0, None, &[]).expect("three serve");
                route.named(0, peer);
                shares[usize::from(peer.0[0])] += 1;
            }
            peers.iter().zip(shares).for_each(|(peer, named)| (0..named).for_each(|_| route.unnamed(0, *peer)));
            shares
        };
        let [a, b, boast] = share(&mut route);
        assert!(a > 30 && b > 30 && boast < 5 * a, "{a} {b} {boast}");
        // Where it boasts it answers ten times as late.
        for (peer, takes) in peers.into_iter().zip([1, 1, 10]) {
            for _ in 0..PROVEN {
                route.sent(Instant(0), 0, peer);
                route.answered(Instant(takes * 1_000_000_000), 0, peer);
            }
        }
        let [a, b, boast] = share(&mut route);
        assert!(boast < 2 * a && boast < 2 * b, "{a} {b} {boast}");
    }

    #[test]
    fn patience_doubles_until_an_acceptance_comes_in_time_and_learns_from_late_ones() {
        let mut route = route(&[0]);
        let (peer, seconds) = (PeerId([0; 32]), |route: &Route| route.patience(0, PeerId([0; 32])).as_secs_f64());
        let at = |second: u64| Instant(second * 1_000_000_000);
        let late = |route: &mut Route, sent, found| (seconds(route), route.was_late(at(found), 0, peer, at(sent))).0;
        // Two of the same moment count once.
        assert_eq!([late(&mut route, 0, 10), late(&mut route, 5, 11), late(&mut route, 10, 20)], [1.5, 3.0, 3.0]);
        assert_eq!([late(&mut route, 20, 30), late(&mut route, 30, 40)], [6.0, 6.0], "it never accepted anything");
        route.accepted(0, peer, Duration::from_secs(9));
        assert_eq!(seconds(&route), 24.0);
        late(&mut route, 40, 50);
        route.accepted(0, peer, Duration::from_secs(4));
        assert_eq!(seconds(&route), 30.0, "it was late");
        route.accepted(0, peer, Duration::from_secs(1));
        assert_eq!(seconds(&route), 1.5);
        (0..64).for_each(|_| route.accepted(0, peer, Duration::from_secs(4)));
        assert!(seconds(&route) > 4.5, "{}", seconds(&route));
    }

    #[test]
    fn a_newcomer_that_does_not_answer_gets_no_more() {
        let mut route = route(&[0, 1]);
        let (proven, silent) = (PeerId([0; 32]), PeerId([1; 32]));
        let mut given = 0;
        for i in 0..1000u64 {
            let peer = route.choose(0, None, &[]).unwrap();
            route.named(0, peer);
            if peer == proven {
                route.sent(Instant(i * 1_000_000), 0, peer);
                route.answered(Instant(i * 1_000_000 + 900_000), 0, peer);
            }
            given += u32::from(i >= 100 && peer == silent);
        }
        assert!(given <= NEWCOMER_MOST, "{given}");
    }

    #[test]
    fn a_hint_that_serves_is_taken_and_one_that_is_excluded_is_not() {
        let mut route = route(&[0, 1]);
        assert_eq!(route.choose(0, Some(PeerId([1; 32])), &[]), Some(PeerId([1; 32])));
        assert_eq!(route.choose(0, Some(PeerId([1; 32])), &[PeerId([1; 32])]), Some(PeerId([0; 32])));
        assert_eq!(route.choose(0, None, &[PeerId([0; 32]), PeerId([1; 32])]), None);
        assert_eq!(route.choose(1, None, &[]), None);
        let (a, b) = (PeerId([0; 32]), PeerId([1; 32]));
        route.set_serving(BTreeMap::from([(0, BTreeMap::from([(a, 0.0)]))]), BTreeSet::from([(0, b)]));
        assert_eq!(route.choose(0, Some(b), &[]), Some(b), "it may hold the id, though it is leaving");
        assert_eq!(route.choose(0, None, &[]), Some(a));
    }
}
