//! When bodies of micro-batches leave: one after the other, so that what is first in need is first to arrive.
//!
//! In: bodies to send, and what arrived or was lost. Out: as many of them as keep the uplink full, and the rate that it has
//! then. It goes by no rate: a body that takes much longer than its way waits for the uplink, and then fewer are let out at a
//! time.
//!
//! A volunteer's uplink is the narrowest part of nearly every way, and all its connections share it. Bodies that all leave at
//! once share it evenly, and all arrive when the last one does: every stage then waits for the slowest, and works on nothing
//! meanwhile. Connections that compete for one uplink also overflow its queue. What waits here is sent to nobody, so it can still
//! be taken back for nothing.

use std::{collections::BTreeMap, time::Duration};

use skein_protocol::{
    Attempt, Blob, Instant, Lane, MicroBatchId, Outbox, PeerId, Stage,
    wire::{self, flow},
};

use super::{faded, route::Route};
use crate::peer::io::Output;

/// Bodies may take so much longer than a round trip: what the uplink has to send when one of them has left.
const AHEAD: Duration = Duration::from_millis(250);
/// A round trip that nobody has measured yet.
const ROUND_TRIP: Duration = Duration::from_millis(100);
/// Bytes on their way that are always allowed, and the most that a fast uplink gets to.
const LIMIT: (u64, u64) = (256 << 10, 64 << 20);
/// Bodies on their way that are always allowed: while one is acknowledged, the next one goes.
const BODIES_MIN: usize = 2;
/// The same where some of them go to peers that have nothing else: a slow one among them must not stop all others.
const BODIES_MIN_TO_ALL: usize = 4;
/// A body that takes so long, and a second for each of so many bytes, waits for its receiver and not for the uplink.
const STUCK: Duration = Duration::from_secs(10);
const STUCK_RATE: u64 = 256 << 10;
/// Time that the measurement of the rate goes by, of the uplink at work.
const RATE_HALF_LIFE: Duration = Duration::from_secs(10);
/// Bodies that must have arrived for the rate to count.
const RATE_PROVEN: u32 = 8;
/// Nobody who is thought slow gets anything to show better: without bodies the rate is forgotten.
const RATE_HOLDS: Duration = Duration::from_secs(60);
/// A round trip is longer while the uplink has much to send: part of the time of a body that is the uplink's in any case.
const CARRYING_LEAST: f64 = 0.1;
/// Nobody says any more what became of a body.
const FORGOTTEN: Duration = Duration::from_secs(300);

type Name = (PeerId, Lane, Stage, MicroBatchId, Attempt);

#[derive(Debug)]
struct Waiting {
    to: PeerId,
    frame: flow::Frame,
    body: Blob,
}

#[derive(Clone, Copy, Debug)]
struct Flying {
    size: u64,
    sent: Instant,
}

impl Flying {
    fn is_stuck(&self, now: Instant) -> bool {
        now.since(self.sent) > STUCK.saturating_add(Duration::from_secs(self.size / STUCK_RATE))
    }
}

/// Bytes of bodies that arrived, and what the uplink had to do for them: for each the time since the one before arrived, or
/// since it left and went its way, if that was later. So it is the rate of the uplink, full or not.
#[derive(Clone, Copy, Debug, Default)]
struct Carried {
    bytes: f64,
    seconds: f64,
    bodies: u32,
    last: Instant,
}

impl Carried {
    /// `way`: no body arrives sooner, however fast the uplink.
    fn arrived(&mut self, now: Instant, bytes: u64, sent: Instant, way: Duration) {
        let took = now.since(sent).as_secs_f64();
        let carrying = now.since(self.last.max(sent + way)).as_secs_f64().max(took * CARRYING_LEAST);
        let fade = faded(carrying, RATE_HALF_LIFE);
        self.bytes = self.bytes * fade + bytes as f64;
        self.seconds = self.seconds * fade + carrying;
        self.bodies = self.bodies.saturating_add(1);
        self.last = now;
    }

    fn rate(&self, now: Instant) -> Option<f64> {
        let holds = self.bodies >= RATE_PROVEN && now.since(self.last) < RATE_HOLDS;
        (holds && self.seconds > 0.0).then(|| self.bytes / self.seconds)
    }
}

#[derive(Debug)]
pub struct Uplink {
    /// The most urgent lane first, and each in order.
    waiting: BTreeMap<(Lane, u64), Waiting>,
    flying: BTreeMap<Name, Flying>,
    /// Bytes that may be on their way.
    limit: u64,
    /// Something waits since the limit is reached.
    bound: bool,
    carried: Carried,
    next: u64,
}

impl Default for Uplink {
    fn default() -> Self {
        Uplink {
            waiting: BTreeMap::new(),
            flying: BTreeMap::new(),
            limit: LIMIT.0,
            bound: false,
            carried: Carried::default(),
            next: 0,
        }
    }
}

impl Uplink {
    /// `body` goes to `to` as soon as it is its turn. It stays its holder's, who says when it is gone.
    pub fn push(&mut self, to: PeerId, lane: Lane, frame: flow::Frame, body: Blob) {
        self.next += 1;
        self.waiting.insert((lane, self.next), Waiting { to, frame, body });
    }

    /// A body is gone, and nobody needs it any more.
    pub fn released(&mut self, body: Blob) {
        self.waiting.retain(|_, waiting| waiting.body.id != body.id);
    }

    /// What was to go to `peer` under this name goes elsewhere.
    pub fn take_back(&mut self, peer: PeerId, about: &flow::About) {
        self.waiting.retain(|_, waiting| waiting.to != peer || waiting.frame.body_of().as_ref() != Some(about));
    }

    /// Whatever waits was of an incarnation that is over: of `peer`, or of mine.
    pub fn forget(&mut self, peer: Option<PeerId>) {
        self.waiting.retain(|_, waiting| peer.is_some_and(|peer| waiting.to != peer));
    }

    /// The connection to `peer` is gone, and with it all that was on its way.
    pub fn on_lost(&mut self, peer: PeerId) {
        self.forget(Some(peer));
        self.flying.retain(|(to, ..), _| *to != peer);
    }

    /// A body lies at `peer`, or was refused there.
    pub fn on_delivered(&mut self, now: Instant, route: &Route, peer: PeerId, lane: Lane, about: &flow::About) {
        let flow::About { id, attempt, stage } = about.clone();
        let Some(flying) = self.flying.remove(&(peer, lane, stage, id, attempt)) else { return };
        let Flying { size, sent } = flying;
        let way = route.link(peer).map_or(ROUND_TRIP, |link| link.round_trip);
        // What a receiver did not take says nothing of the uplink.
        if !flying.is_stuck(now) {
            self.carried.arrived(now, size, sent, way);
        }
        if now.since(sent) > way.saturating_add(AHEAD) {
            self.limit = self.limit.saturating_sub(size);
        } else if self.bound {
            self.limit = self.limit.saturating_add(size);
        }
        self.limit = self.limit.clamp(LIMIT.0, LIMIT.1);
    }

    /// Lets out what may leave now.
    pub fn release(&mut self, now: Instant, out: &mut Outbox<Output>) {
        if self.waiting.is_empty() {
            self.bound = false;
            return;
        }
        self.flying.retain(|_, flying| now.since(flying.sent) < FORGOTTEN);
        let (mut bodies, mut on_way) = (0, 0u64);
        let mut to: BTreeMap<PeerId, u64> = BTreeMap::new();
        for ((peer, ..), flying) in &self.flying {
            // Who takes nothing gets no more, and stops nobody else.
            *to.entry(*peer).or_default() += flying.size;
            if !flying.is_stuck(now) {
                (bodies, on_way) = (bodies + 1, on_way.saturating_add(flying.size));
            }
        }
        let keys: Vec<(Lane, u64)> = self.waiting.keys().copied().collect();
        for key in keys {
            let Some(waiting) = self.waiting.get(&key) else { continue };
            let (peer, size) = (waiting.to, waiting.body.len);
            let there = to.get(&peer).copied().unwrap_or(0);
            let has_room = on_way.saturating_add(size) <= self.limit;
            let peer_has_room = there == 0 || there.saturating_add(size) <= self.limit / 2;
            let always =
                bodies < BODIES_MIN && (there == 0 || there == on_way) || there == 0 && bodies < BODIES_MIN_TO_ALL;
            if !(always || has_room && peer_has_room) {
                if peer_has_room {
                    // What comes behind it, and is smaller, must not overtake it for ever.
                    break;
                }
                continue;
            }
            let Some(Waiting { to: peer, frame, body }) = self.waiting.remove(&key) else { continue };
            if let Some(flow::About { id, attempt, stage }) = frame.body_of() {
                self.flying.insert((peer, key.0, stage, id, attempt), Flying { size, sent: now });
                (bodies, on_way) = (bodies + 1, on_way.saturating_add(size));
                *to.entry(peer).or_default() += size;
            }
            out.push(Output::Send { to: peer, lane: key.0, frame: wire::Frame::Flow(frame), body: Some(body) });
        }
        self.bound = !self.waiting.is_empty();
    }

    /// Bytes a second of bodies that it carries, when enough of them have arrived to tell.
    pub fn carries(&self, now: Instant) -> Option<f64> {
        self.carried.rate(now)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use skein_protocol::{
        rng::Streams,
        wire::{Starts, flow::Forward},
    };

    use super::*;

    const KIB: u64 = 1 << 10;

    /// An uplink, the clock, and the bodies that have left it and not arrived.
    struct World {
        uplink: Uplink,
        route: Route,
        now: Instant,
        next: u64,
        left: Vec<(PeerId, Lane, flow::About)>,
    }

    impl World {
        fn new() -> World {
            let route = Route::new(PeerId([9; 32]), &Streams::new(1, PeerId([9; 32])), false);
            World { uplink: Uplink::default(), route, now: Instant::ZERO, next: 0, left: Vec::new() }
        }

        fn push(&mut self, to: u8, lane: Lane, size: u64) -> Blob {
            self.next += 1;
            let id = MicroBatchId { feeder: PeerId([9; 32]), incarnation: 1, step: self.next as u32, index: 0 };
            let forward = Forward {
                id,
                attempt: Attempt::first(0),
                stage: 1,
                samples: 0,
                close: false,
                held_out: false,
                hint: None,
                starts: Starts::default(),
            };
            let body = Blob { id: self.next, len: size };
            self.uplink.push(PeerId([to; 32]), lane, flow::Frame::Forward(forward), body);
            body
        }

        /// Steps of the bodies that leave now.
        fn leave(&mut self) -> Vec<u32> {
            let mut out = Outbox::new();
            self.uplink.release(self.now, &mut out);
            let mut steps = Vec::new();
            while let Some(Output::Send { to, lane, frame: wire::Frame::Flow(frame), .. }) = out.pop() {
                let about = frame.body_of().unwrap();
                steps.push(about.id.step);
                self.left.push((to, lane, about));
            }
            steps
        }

        /// The first of those that are under way arrives, so long after it left or the one before it arrived.
        fn arrives(&mut self, after: u64) {
            self.now += Duration::from_millis(after);
            let (to, lane, about) = self.left.remove(0);
            self.uplink.on_delivered(self.now, &self.route, to, lane, &about);
        }
    }

    #[test]
    fn on_a_slow_link_one_body_goes_and_one_waits_behind_it() {
        let mut world = World::new();
        for _ in 0..6 {
            world.push(1, Lane::Activation, 128 * KIB);
        }
        assert_eq!(world.leave(), [1, 2]);
        assert_eq!(world.leave(), [0u32; 0]);
        for step in 3..6 {
            world.arrives(600);
            assert_eq!(world.leave(), [step]);
        }
    }

    #[test]
    fn a_fast_link_soon_has_as_many_under_way_as_it_carries() {
        let mut world = World::new();
        for _ in 0..400 {
            world.push(1, Lane::Activation, 64 * KIB);
        }
        let mut most = 0;
        for _ in 0..100 {
            world.leave();
            most = most.max(world.left.len());
            world.arrives(1);
        }
        assert!(most > 50, "{most}");
        // The same link gets slow.
        for _ in 0..most + 50 {
            world.leave();
            world.arrives(300);
        }
        assert!(world.left.len() <= BODIES_MIN_TO_ALL, "{}", world.left.len());
    }

    #[test]
    fn its_rate_is_the_same_full_or_not() {
        let mut world = World::new();
        assert_eq!(world.uplink.carries(world.now), None);
        for _ in 0..20 {
            world.push(1, Lane::Activation, 128 * KIB);
        }
        world.leave();
        for _ in 0..20 {
            world.arrives(500);
            world.leave();
        }
        let full = world.uplink.carries(world.now).unwrap();
        assert!((full / (256.0 * KIB as f64) - 1.0).abs() < 0.02, "{full}");
        // One at a time, a long way, and long pauses: the uplink is the same.
        for _ in 0..40 {
            world.now += Duration::from_secs(20);
            world.push(1, Lane::Activation, 128 * KIB);
            world.leave();
            world.arrives(500 + ROUND_TRIP.as_millis() as u64);
        }
        let rare = world.uplink.carries(world.now).unwrap();
        assert!((rare / full - 1.0).abs() < 0.02, "{rare} {full}");
        // A faster one is seen to be so.
        for _ in 0..400 {
            world.push(1, Lane::Activation, 128 * KIB);
            world.leave();
            world.arrives(10 + ROUND_TRIP.as_millis() as u64);
        }
        assert!(world.uplink.carries(world.now).unwrap() > 4.0 * full);
        world.now += RATE_HOLDS;
        assert_eq!(world.uplink.carries(world.now), None, "it may be another one by now");
    }

    #[test]
    fn what_is_rare_and_has_a_long_way_is_not_taken_for_slow() {
        let mut world = World::new();
        // Six a second, each 100 ms under way: some are always on their way, and the uplink has hardly anything to do.
        for n in 0..60u64 {
            world.now = Instant(n * 80_000_000);
            world.push(1, Lane::Activation, 128 * KIB);
            world.leave();
            if n > 0 {
                let way = 22 + n % 2;
                world.arrives(way);
            }
        }
        let rate = world.uplink.carries(world.now).unwrap();
        assert!(rate > 8e6, "{rate}");
    }

    #[test]
    fn a_receiver_that_takes_nothing_is_not_a_slow_uplink() {
        let mut world = World::new();
        world.push(2, Lane::Activation, 128 * KIB);
        world.leave();
        let stuck = world.left.remove(0);
        for _ in 0..40 {
            world.push(1, Lane::Activation, 128 * KIB);
            world.leave();
            world.arrives(500 + ROUND_TRIP.as_millis() as u64);
        }
        world.left.push(stuck);
        world.arrives(0);
        let rate = world.uplink.carries(world.now).unwrap();
        assert!((rate / (256.0 * KIB as f64) - 1.0).abs() < 0.02, "{rate}");
    }

    #[test]
    fn gradients_go_before_activations_that_waited_longer() {
        let mut world = World::new();
        for lane in [Lane::Activation, Lane::Activation, Lane::Activation, Lane::Gradient] {
            world.push(1, lane, 1 << 20);
        }
        assert_eq!(world.leave(), [4, 1]);
    }

    #[test]
    fn a_slow_peer_does_not_stop_what_goes_to_others() {
        let mut world = World::new();
        for to in [1, 1, 1, 2, 3, 3, 4] {
            world.push(to, Lane::Activation, 1 << 20);
        }
        assert_eq!(world.leave(), [1, 2, 4, 5]);
    }

    #[test]
    fn what_is_released_or_lost_does_not_leave_and_makes_room() {
        let mut world = World::new();
        let bodies: Vec<Blob> = [1, 1, 1, 2].map(|to| world.push(to, Lane::Activation, 1 << 20)).into();
        assert_eq!(world.leave(), [1, 2, 4]);
        world.uplink.released(bodies[2]);
        world.push(2, Lane::Activation, 1 << 20);
        assert_eq!(world.leave(), [0u32; 0]);
        world.uplink.on_lost(PeerId([1; 32]));
        assert_eq!(world.leave(), [5]);
        let waiting: BTreeSet<u64> = world.uplink.waiting.values().map(|waiting| waiting.body.id).collect();
        assert!(waiting.is_empty());
    }

    #[test]
    fn who_takes_nothing_stops_nobody_else_and_gets_no_more() {
        let mut world = World::new();
        for to in [1, 1, 1, 2, 2, 3, 4, 5] {
            world.push(to, Lane::Activation, 1 << 20);
        }
        assert_eq!(world.leave(), [1, 2, 4, 6]);
        world.now += STUCK + Duration::from_secs(4) + Duration::from_millis(1);
        assert_eq!(world.leave(), [7, 8], "the first four are stuck");
        world.now += FORGOTTEN;
        assert_eq!(world.leave(), [3, 5], "nobody tells of any of them");
    }

    #[test]
    fn a_large_body_is_not_overtaken_for_ever_by_small_ones() {
        let mut world = World::new();
        world.uplink.limit = 1 << 20;
        for _ in 0..8 {
            world.push(1, Lane::Activation, 64 * KIB);
            world.push(2, Lane::Activation, 64 * KIB);
        }
        assert_eq!(world.leave().len(), 16);
        world.push(3, Lane::Gradient, 512 * KIB);
        world.push(4, Lane::Activation, 64 * KIB);
        let mut left = world.leave();
        assert!(left.is_empty());
        while left.is_empty() {
            world.arrives(10);
            left = world.leave();
        }
        assert_eq!(left[0], 17);
    }

    #[test]
    fn what_is_taken_back_or_of_an_older_incarnation_does_not_leave() {
        let mut world = World::new();
        for _ in 0..4 {
            world.push(1, Lane::Activation, 1 << 20);
        }
        assert_eq!(world.leave(), [1, 2]);
        let waits = world.uplink.waiting.values().next().and_then(|waiting| waiting.frame.body_of()).unwrap();
        world.uplink.take_back(PeerId([2; 32]), &waits);
        assert_eq!(world.uplink.waiting.len(), 2, "that is somebody else's");
        world.uplink.take_back(PeerId([1; 32]), &waits);
        world.arrives(10);
        assert_eq!(world.leave(), [4]);
        world.push(1, Lane::Activation, 1 << 20);
        world.push(2, Lane::Activation, 1 << 20);
        world.uplink.forget(Some(PeerId([1; 32])));
        assert_eq!(world.uplink.waiting.len(), 1);
        world.uplink.forget(None);
        assert!(world.uplink.waiting.is_empty());
    }
}
