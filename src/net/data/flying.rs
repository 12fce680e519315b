//! What of one connection's messages is on its way. In: messages that are begun, and that landed. Out: whether one more may be begun.
//! Knows no stream.
//!
//! What is on its way cannot go over a better connection any more, so it is bounded, in messages and in bytes. A lane counts what is
//! as urgent as itself or more so: a large body keeps nothing back that goes before it. And one message of a lane may always be on its
//! way, however large it is and however much goes before it: the order in which they leave is the priorities' affair.

use skein_protocol::Lane;

use super::outbox::Message;
use crate::net::gate;

type PerLane<T> = [T; Lane::ALL.len()];

#[derive(Debug)]
pub struct Flying {
    bytes_max: u64,
    counts: PerLane<usize>,
    bytes: PerLane<u64>,
}

impl Flying {
    /// `bytes_max`: of a lane and all before it, unless it has a single message.
    pub fn new(bytes_max: u64) -> Flying {
        Flying { bytes_max, counts: Default::default(), bytes: Default::default() }
    }

    /// Whether a message of `size` bytes may be begun.
    pub fn may(&self, lane: Lane, size: u64) -> bool {
        let count = self.counts[lane as usize];
        let before: u64 = self.bytes[..=lane as usize].iter().sum();
        count == 0 || (count < gate::flying_max(lane) && before + size <= self.bytes_max)
    }

    pub fn begun(&mut self, message: &Message) {
        self.counts[message.lane as usize] += 1;
        self.bytes[message.lane as usize] += message.size();
    }

    pub fn landed(&mut self, message: &Message) {
        self.counts[message.lane as usize] -= 1;
        self.bytes[message.lane as usize] -= message.size();
    }

    /// Messages of each lane.
    pub fn counts(&self) -> &PerLane<usize> {
        &self.counts
    }

    pub fn has(&self, lane: Lane) -> bool {
        self.counts[lane as usize] > 0
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn message(lane: Lane, bytes: u64) -> Message {
        Message { lane, frame: Bytes::new(), body: Some(Bytes::from(vec![0; bytes as usize])) }
    }

    #[test]
    fn a_round_larger_than_all_that_may_fly_keeps_nothing_urgent_back() {
        let mut flying = Flying::new(24 * MIB);
        assert!(flying.may(Lane::Average, 64 * MIB));
        let round = message(Lane::Average, 64 * MIB);
        flying.begun(&round);
        assert!(flying.may(Lane::Gradient, MIB) && flying.may(Lane::Activation, MIB));
        assert!(!flying.may(Lane::Average, 1), "the next one of the lane waits");
        assert!(flying.may(Lane::Bulk, MIB), "the first of a lane may go; its priority is its place");
        flying.landed(&round);
        assert!(flying.may(Lane::Average, 1));
    }

    #[test]
    fn a_round_is_begun_beside_small_bodies_that_never_end() {
        let mut flying = Flying::new(24 * MIB);
        let small = message(Lane::Gradient, MIB);
        for _ in 0..2 {
            flying.begun(&small);
        }
        assert!(flying.may(Lane::Average, 64 * MIB));
    }

    #[test]
    fn a_lane_is_bounded_in_messages_and_in_bytes() {
        let mut flying = Flying::new(24 * MIB);
        for _ in 0..gate::flying_max(Lane::Gradient) {
            assert!(flying.may(Lane::Gradient, 1));
            flying.begun(&message(Lane::Gradient, 1));
        }
        assert!(!flying.may(Lane::Gradient, 1));
        flying.begun(&message(Lane::Activation, 16 * MIB));
        assert!(flying.may(Lane::Activation, 7 * MIB) && !flying.may(Lane::Activation, 8 * MIB));
        assert!(flying.has(Lane::Activation) && !flying.has(Lane::Bulk));
    }
}
