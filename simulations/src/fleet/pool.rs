//! The replicas of one stage, as sums: what each adds is added when it begins to serve and taken off when it goes or its owner
//! sits down, so replicas to which nothing happens cost nothing.
//!
//! Sums are of integers (billionths), so they do not depend on the order in which replicas came, and taking off undoes adding.

use super::{load::Takes, setup::Peer};

/// One of what is summed as so many.
const UNIT: f64 = 1e9;

/// What one replica adds, or all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Micro-batches a second, by which routes choose: its peer's device and links are there for all of its stages, alike. With
    /// overlap of device and links, and by the device alone.
    rate: u64,
    claim: u64,
    /// Micro-batches a second of the device where it does all stages of its peer for each.
    whole: u64,
    /// The rate of those whose peer serves the next stage, too.
    onward: u64,
    /// Of its time at full rate: device, uplink and downlink at work, the device of its peer at work while the uplink is.
    computes: u64,
    sends: u64,
    receives: u64,
    both: u64,
    /// The same of all replicas of its peer together: device, uplink, downlink.
    device: u64,
    uplink: u64,
    downlink: u64,
    /// Part of its peer's device that is there for this stage, and its square.
    share: u64,
    share_squared: u64,
    /// Rate of those bound by their uplink; time in which those bound by their downlink wait for it, at full rate.
    slowed: u64,
    starved: u64,
    /// Bytes a second of the uplink, microseconds to the backbone.
    up: u64,
    delay_us: u64,
}

/// Micro-batches a second of a replica whose peer serves so many stages: it has its part of device and links.
pub fn rate(takes: Takes, stages: u32) -> f64 {
    1.0 / (takes.slowest() * f64::from(stages.max(1)))
}

/// All replicas of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Whole {
    pub stages: u32,
    /// Seconds at the device of a micro-batch at all of them.
    compute: f64,
    /// Of the time at full rate.
    device: f64,
    uplink: f64,
    downlink: f64,
}

impl Whole {
    /// Part of the peer that is there for each of its stages.
    fn share(&self) -> f64 {
        1.0 / f64::from(self.stages.max(1))
    }

    pub fn of(replicas: impl Iterator<Item = Takes>) -> Self {
        // A rate is that of a replica whose peer has no other, until their number is known.
        let sum = replicas.fold(Whole::default(), |whole, takes| {
            let rate = 1.0 / takes.slowest();
            Whole {
                stages: whole.stages + 1,
                compute: whole.compute + takes.compute,
                device: whole.device + rate * takes.compute,
                uplink: whole.uplink + rate * takes.up,
                downlink: whole.downlink + rate * takes.down,
            }
        });
        let [device, uplink, downlink] = [sum.device, sum.uplink, sum.downlink].map(|all| all * sum.share());
        Whole { device, uplink, downlink, ..sum }
    }
}

/// Micro-batches a second that a replica claims, in the plan's sense: a peer's device is there for all its stages alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim(u64);

impl Claim {
    /// `compute`: seconds of a micro-batch at the device. `stages`: how many the peer serves or is about to.
    pub fn of(compute: f64, stages: u32) -> Claim {
        Claim(units(1.0 / (compute * f64::from(stages.max(1)))))
    }

    pub fn number(self) -> f64 {
        number(self.0)
    }
}

fn units(of: f64) -> u64 {
    (of * UNIT) as u64
}

fn number(units: u64) -> f64 {
    units as f64 / UNIT
}

impl Part {
    /// `takes`: what a micro-batch takes at this stage. `onward`: the peer serves the next, too.
    pub fn of(peer: &Peer, takes: Takes, whole: &Whole, onward: bool) -> Part {
        let Takes { compute, up, down } = takes;
        let share = whole.share();
        let rate = rate(takes, whole.stages);
        let by_up = up > compute && up >= down;
        let by_down = down > compute && down > up;
        Part {
            rate: units(rate),
            claim: units(share / compute),
            whole: units(1.0 / whole.compute),
            onward: if onward { units(rate) } else { 0 },
            computes: units(rate * compute),
            sends: units(rate * up),
            receives: units(rate * down),
            both: units(whole.device * rate * up),
            device: units(whole.device),
            uplink: units(whole.uplink),
            downlink: units(whole.downlink),
            share: units(share),
            share_squared: units(share * share),
            slowed: if by_up { units(rate) } else { 0 },
            starved: if by_down { units(share - rate * compute) } else { 0 },
            up: peer.up as u64,
            delay_us: u64::from(peer.delay_us),
        }
    }

    fn merge(&self, other: &Part, with: impl Fn(u64, u64) -> u64) -> Part {
        Part {
            rate: with(self.rate, other.rate),
            claim: with(self.claim, other.claim),
            whole: with(self.whole, other.whole),
            onward: with(self.onward, other.onward),
            computes: with(self.computes, other.computes),
            sends: with(self.sends, other.sends),
            receives: with(self.receives, other.receives),
            both: with(self.both, other.both),
            device: with(self.device, other.device),
            uplink: with(self.uplink, other.uplink),
            downlink: with(self.downlink, other.downlink),
            share: with(self.share, other.share),
            share_squared: with(self.share_squared, other.share_squared),
            slowed: with(self.slowed, other.slowed),
            starved: with(self.starved, other.starved),
            up: with(self.up, other.up),
            delay_us: with(self.delay_us, other.delay_us),
        }
    }

    pub fn rate(&self) -> f64 {
        number(self.rate)
    }

    pub fn claim(&self) -> f64 {
        number(self.claim)
    }

    pub fn whole(&self) -> f64 {
        number(self.whole)
    }

    pub fn computes(&self) -> f64 {
        number(self.computes)
    }

    pub fn sends(&self) -> f64 {
        number(self.sends)
    }

    pub fn receives(&self) -> f64 {
        number(self.receives)
    }

    pub fn device(&self) -> f64 {
        number(self.device)
    }

    pub fn uplink(&self) -> f64 {
        number(self.uplink)
    }

    pub fn downlink(&self) -> f64 {
        number(self.downlink)
    }

    pub fn share(&self) -> f64 {
        number(self.share)
    }

    pub fn both(&self) -> f64 {
        number(self.both)
    }

    pub fn slowed(&self) -> f64 {
        number(self.slowed)
    }

    pub fn starved(&self) -> f64 {
        number(self.starved)
    }

    pub fn up(&self) -> f64 {
        self.up as f64
    }

    pub fn delay_s(&self) -> f64 {
        self.delay_us as f64 / 1e6
    }

    fn bytes(&self) -> [[u8; 8]; 4] {
        [self.rate, self.claim, self.up, self.delay_us].map(u64::to_le_bytes)
    }
}

/// The replicas of one stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pool {
    pub sum: Part,
    pub serving: u32,
    /// Those that fetch its state, and what all that serve and fetch claim.
    pub fetching: u32,
    planned: u64,
    /// Replicas of each region.
    pub regions: Vec<u32>,
    /// Micro-batches so far, for one of rate 1: a replica of rate r did r times what was added since it began.
    pub done_at_rate_1: f64,
}

impl Pool {
    pub fn new(regions: usize) -> Self {
        Pool { regions: vec![0; regions], ..Pool::default() }
    }

    pub fn add(&mut self, part: &Part, claim: Claim, region: u8) {
        self.sum = self.sum.merge(part, |a, b| a + b);
        self.serving += 1;
        self.planned += claim.0;
        self.count(region, 1);
    }

    pub fn take(&mut self, part: &Part, claim: Claim, region: u8) {
        self.sum = self.sum.merge(part, |a, b| a - b);
        self.serving -= 1;
        self.planned -= claim.0;
        self.count(region, u32::MAX);
    }

    fn count(&mut self, region: u8, by: u32) {
        if let Some(count) = self.regions.get_mut(usize::from(region)) {
            *count = count.wrapping_add(by);
        }
    }

    /// Somebody begins to fetch the state, or is done with it, or goes.
    pub fn expect(&mut self, claim: Claim) {
        self.fetching += 1;
        self.planned += claim.0;
    }

    pub fn expect_no_more(&mut self, claim: Claim) {
        self.fetching -= 1;
        self.planned -= claim.0;
    }

    /// Micro-batches a second by what all that serve or will soon say of themselves.
    pub fn planned(&self) -> f64 {
        number(self.planned)
    }

    /// Who serves it or is about to.
    pub fn expected(&self) -> u32 {
        self.serving + self.fetching
    }

    /// Part of its micro-batches that are at a peer that serves the next stage, too.
    pub fn onward(&self) -> f64 {
        self.each(number(self.sum.onward))
    }

    /// Of each micro-batch, at a replica that is chosen in proportion to its rate.
    fn each(&self, of_full_time: f64) -> f64 {
        if self.sum.rate == 0 { 0.0 } else { of_full_time / self.sum.rate() }
    }

    /// How unlike the parts of their peers are that are there for the stage: their standard deviation over their mean.
    pub fn uneven(&self) -> f64 {
        let count = f64::from(self.serving.max(1));
        let [mean, square] = [self.sum.share, self.sum.share_squared].map(|sum| number(sum) / count);
        if mean > 0.0 { (square - mean * mean).max(0.0).sqrt() / mean } else { 0.0 }
    }

    /// Seconds of a micro-batch at the slowest part of a replica.
    pub fn slowest(&self) -> f64 {
        self.each(self.sum.share())
    }

    /// Seconds of it at the device.
    pub fn compute(&self) -> f64 {
        self.each(self.sum.computes())
    }

    /// Seconds of it on the uplink.
    pub fn sends(&self) -> f64 {
        self.each(self.sum.sends())
    }

    /// Seconds to the backbone.
    pub fn delay(&self) -> f64 {
        if self.serving == 0 { 0.0 } else { self.sum.delay_s() / f64::from(self.serving) }
    }

    /// What of its state is in the digest of a tick.
    pub fn sign(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&self.serving.to_le_bytes());
        hasher.update(&self.fetching.to_le_bytes());
        for field in self.sum.bytes() {
            hasher.update(&field);
        }
        hasher.update(&self.done_at_rate_1.to_bits().to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use skein_protocol::Stage;

    use super::*;
    use crate::{
        Small,
        fleet::load::{Load, Stays},
    };

    fn peer(flops: f32, up: f32) -> Peer {
        let down = 10.0 * up;
        Peer { flops, up, down, delay_us: 7, memory_mib: 1 << 14, place: None, device: 0, access: 0, region: 1 }
    }

    fn load() -> Load {
        Load::of(&Small { round_every: 0, ..Small::demo(4) }.manifest(), None)
    }

    fn takes(stage: Stage, peer: &Peer) -> Takes {
        load().takes(stage, peer, 1.0, Stays::default())
    }

    /// Of a peer of one stage.
    fn part(peer: &Peer) -> (Part, Claim) {
        let takes = takes(1, peer);
        (Part::of(peer, takes, &Whole::of([takes].into_iter()), false), Claim::of(takes.compute, 1))
    }

    #[test]
    fn what_is_taken_off_was_never_there() {
        let parts = [(1e8, 1e6), (3.7e8, 2e5), (9.1e7, 3e6)].map(|(f, u)| part(&peer(f, u)));
        let mut pool = Pool::new(2);
        parts.iter().for_each(|(part, claim)| pool.add(part, *claim, 1));
        let mut other = Pool::new(2);
        parts.iter().rev().for_each(|(part, claim)| other.add(part, *claim, 1));
        assert_eq!(pool, other, "in any order");
        parts.iter().for_each(|(part, claim)| pool.take(part, *claim, 1));
        assert_eq!(pool, Pool::new(2));
    }

    #[test]
    fn a_replica_is_as_fast_as_its_slowest_part() {
        let (bound, _) = part(&peer(1e9, 1e4));
        let takes = takes(1, &peer(1e9, 1e4));
        assert!((bound.rate() - 1.0 / takes.up).abs() < 1e-6 && (bound.claim() - 1.0 / takes.compute).abs() < 1e-6);
        assert!((bound.sends() - 1.0).abs() < 1e-6 && bound.slowed() == bound.rate());
        let (free, _) = part(&peer(1e8, 1e9));
        assert_eq!(free.slowed(), 0.0);
        assert!((free.computes() - 1.0).abs() < 1e-6 && (free.rate() - free.claim()).abs() < 1e-6);
    }

    #[test]
    fn a_replica_has_its_part_of_its_peer() {
        let peer = peer(1e8, 1e9);
        let each = [1, 2].map(|stage| takes(stage, &peer));
        let whole = Whole::of(each.into_iter());
        let mut pool = Pool::new(2);
        pool.add(&Part::of(&peer, each[0], &whole, true), Claim::of(each[0].compute, 2), 1);
        let (alone, _) = part(&peer);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(near(pool.sum.rate(), 0.5 * alone.rate()) && near(pool.sum.claim(), 0.5 * alone.claim()));
        assert!(near(pool.planned(), 0.5 * alone.claim()) && pool.sum.share() == 0.5);
        assert!(near(pool.slowest(), each[0].slowest()) && near(pool.compute(), each[0].compute));
        assert!((pool.sum.whole() - 1.0 / (each[0].compute + each[1].compute)).abs() < 1e-6);
        assert!(near(pool.sum.device(), 1.0), "both at full rate are all that it can do");
        assert_eq!(pool.onward(), 1.0);
    }

    #[test]
    fn those_who_will_serve_are_planned_with() {
        let (part, claim) = part(&peer(1e9, 1e6));
        let mut pool = Pool::new(0);
        pool.expect(claim);
        assert_eq!((pool.planned(), pool.serving, pool.fetching), (part.claim(), 0, 1));
        pool.expect_no_more(claim);
        pool.add(&part, claim, 0);
        assert_eq!((pool.planned(), pool.serving, pool.expected()), (part.claim(), 1, 1));
    }
}
