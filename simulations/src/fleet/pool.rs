//! The replicas of one stage, as sums: what each adds is added when it begins to serve and taken off when it goes or its owner
//! sits down, so replicas to which nothing happens cost nothing.
//!
//! Sums are of integers (billionths), so they do not depend on the order in which replicas came, and taking off undoes adding.

use skein_protocol::Stage;

use super::{
    load::{Load, Takes},
    setup::Peer,
};

/// One of what is summed as so many.
const UNIT: f64 = 1e9;

/// What one replica adds, or all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Micro-batches a second, with overlap of device and links; and by the device alone, as it claims.
    rate: u64,
    claim: u64,
    /// Of its time at full rate: device, uplink and downlink at work, the device at work while the uplink is.
    computes: u64,
    sends: u64,
    receives: u64,
    both: u64,
    /// Rate of those bound by their uplink; time in which those bound by their downlink wait for it, at full rate.
    slowed: u64,
    starved: u64,
    /// Bytes a second of the uplink, microseconds to the backbone.
    up: u64,
    delay_us: u64,
}

fn units(of: f64) -> u64 {
    (of * UNIT) as u64
}

fn number(units: u64) -> f64 {
    units as f64 / UNIT
}

impl Part {
    pub fn of(load: &Load, stage: Stage, peer: &Peer, speed: f64) -> Part {
        let takes = load.takes(stage, peer, speed);
        let Takes { compute, up, down } = takes;
        let rate = 1.0 / takes.slowest();
        let by_up = up > compute && up >= down;
        let by_down = down > compute && down > up;
        Part {
            rate: units(rate),
            claim: units(1.0 / compute),
            computes: units(rate * compute),
            sends: units(rate * up),
            receives: units(rate * down),
            both: units(rate * compute * rate * up),
            slowed: if by_up { units(rate) } else { 0 },
            starved: if by_down { units(1.0 - rate * compute) } else { 0 },
            up: peer.up as u64,
            delay_us: u64::from(peer.delay_us),
        }
    }

    fn merge(&self, other: &Part, with: impl Fn(u64, u64) -> u64) -> Part {
        Part {
            rate: with(self.rate, other.rate),
            claim: with(self.claim, other.claim),
            computes: with(self.computes, other.computes),
            sends: with(self.sends, other.sends),
            receives: with(self.receives, other.receives),
            both: with(self.both, other.both),
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

    pub fn computes(&self) -> f64 {
        number(self.computes)
    }

    pub fn sends(&self) -> f64 {
        number(self.sends)
    }

    pub fn receives(&self) -> f64 {
        number(self.receives)
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

    pub fn add(&mut self, part: &Part, region: u8) {
        self.sum = self.sum.merge(part, |a, b| a + b);
        self.serving += 1;
        self.planned += part.claim;
        self.count(region, 1);
    }

    pub fn take(&mut self, part: &Part, region: u8) {
        self.sum = self.sum.merge(part, |a, b| a - b);
        self.serving -= 1;
        self.planned -= part.claim;
        self.count(region, u32::MAX);
    }

    fn count(&mut self, region: u8, by: u32) {
        if let Some(count) = self.regions.get_mut(usize::from(region)) {
            *count = count.wrapping_add(by);
        }
    }

    /// Somebody begins to fetch the state, or is done with it, or goes.
    pub fn expect(&mut self, part: &Part) {
        self.fetching += 1;
        self.planned += part.claim;
    }

    pub fn expect_no_more(&mut self, part: &Part) {
        self.fetching -= 1;
        self.planned -= part.claim;
    }

    /// Micro-batches a second by what all that serve or will soon say of themselves.
    pub fn planned(&self) -> f64 {
        number(self.planned)
    }

    /// Of each micro-batch, at a replica that is chosen in proportion to its rate.
    fn each(&self, of_full_time: f64) -> f64 {
        if self.sum.rate == 0 { 0.0 } else { of_full_time / self.sum.rate() }
    }

    /// Seconds of a micro-batch at the slowest part of a replica.
    pub fn slowest(&self) -> f64 {
        self.each(f64::from(self.serving))
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
    use super::*;
    use crate::Small;

    fn peer(flops: f32, up: f32) -> Peer {
        let down = 10.0 * up;
        Peer { flops, up, down, delay_us: 7, memory_mib: 1 << 14, place: None, device: 0, access: 0, region: 1 }
    }

    fn load() -> Load {
        Load::of(&Small { round_every: 0, ..Small::demo(4) }.manifest(), None)
    }

    #[test]
    fn what_is_taken_off_was_never_there() {
        let parts = [(1e8, 1e6), (3.7e8, 2e5), (9.1e7, 3e6)].map(|(f, u)| Part::of(&load(), 1, &peer(f, u), 1.0));
        let mut pool = Pool::new(2);
        parts.iter().for_each(|part| pool.add(part, 1));
        let mut other = Pool::new(2);
        parts.iter().rev().for_each(|part| other.add(part, 1));
        assert_eq!(pool, other, "in any order");
        parts.iter().for_each(|part| pool.take(part, 1));
        assert_eq!(pool, Pool::new(2));
    }

    #[test]
    fn a_replica_is_as_fast_as_its_slowest_part() {
        let load = load();
        let takes = load.takes(1, &peer(1e9, 1e4), 1.0);
        let bound = Part::of(&load, 1, &peer(1e9, 1e4), 1.0);
        assert!((bound.rate() - 1.0 / takes.up).abs() < 1e-6 && (bound.claim() - 1.0 / takes.compute).abs() < 1e-6);
        assert!((bound.sends() - 1.0).abs() < 1e-6 && bound.slowed() == bound.rate());
        let free = Part::of(&load, 1, &peer(1e8, 1e9), 1.0);
        assert_eq!(free.slowed(), 0.0);
        assert!((free.computes() - 1.0).abs() < 1e-6 && (free.rate() - free.claim()).abs() < 1e-6);
    }

    #[test]
    fn those_who_will_serve_are_planned_with() {
        let part = Part::of(&load(), 1, &peer(1e9, 1e6), 1.0);
        let mut pool = Pool::new(0);
        pool.expect(&part);
        assert_eq!((pool.planned(), pool.serving, pool.fetching), (part.claim(), 0, 1));
        pool.expect_no_more(&part);
        pool.add(&part, 0);
        assert_eq!((pool.planned(), pool.serving, pool.fetching), (part.claim(), 1, 0));
    }
}
