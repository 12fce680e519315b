//! Room in memory for bodies that arrive. In: the lane and size of a body that is wanted. Out: room, held until the node has the body.
//!
//! A quarter is for work that other stages wait for, the rest for what takes long: rounds, states, texts. So a few large bodies that
//! come slowly keep no gradient out. Of either a peer gets half at most, or one body that is larger. Knows no stream.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use skein_protocol::Lane;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of a permit.
const UNIT: u64 = 1024;

#[derive(Debug)]
pub struct Rooms {
    urgent: Room,
    rest: Room,
}

#[derive(Debug)]
struct Room {
    units: u32,
    free: Arc<Semaphore>,
    /// Bodies that wait for others to be read.
    waiting: AtomicUsize,
}

/// One peer's part of each room.
#[derive(Debug)]
pub struct Shares {
    urgent: Arc<Semaphore>,
    rest: Arc<Semaphore>,
}

/// Room, until the last copy of this is dropped.
#[derive(Clone, Debug)]
pub struct Held {
    _permits: Arc<[OwnedSemaphorePermit; 2]>,
}

/// Whether a body of this lane has its room apart from those that take long.
pub fn is_apart(lane: Lane) -> bool {
    match lane {
        Lane::Control | Lane::Gradient | Lane::Activation => true,
        Lane::Average | Lane::Generation | Lane::Bulk => false,
    }
}

impl Rooms {
    /// `total`: bytes of all bodies that are being read.
    pub fn new(total: u64) -> Rooms {
        let urgent = units(total / 4).max(1);
        Rooms { urgent: Room::new(urgent), rest: Room::new(units(total).saturating_sub(urgent).max(1)) }
    }

    /// The parts of a new peer.
    pub fn shares(&self) -> Shares {
        let half = |room: &Room| Arc::new(Semaphore::new(room.share() as usize));
        Shares { urgent: half(&self.urgent), rest: half(&self.rest) }
    }

    /// Room for a body, first in the peer's share and then in all. Waiting for it slows the sender down. A body that is larger than
    /// all of it gets all.
    pub async fn take(&self, shares: &Shares, lane: Lane, bytes: u64) -> Held {
        let (room, share) = if is_apart(lane) { (&self.urgent, &shares.urgent) } else { (&self.rest, &shares.rest) };
        let wanted = units(bytes);
        let own = permits(share, wanted.min(room.share())).await;
        let _waiting = Waiting::new(&room.waiting);
        let all = permits(&room.free, wanted.min(room.units)).await;
        Held { _permits: Arc::new([own, all]) }
    }

    /// Whether bodies of other peers wait for the room that one of this lane holds.
    pub fn is_waited_for(&self, lane: Lane) -> bool {
        let room = if is_apart(lane) { &self.urgent } else { &self.rest };
        room.waiting.load(Relaxed) > 0
    }

    /// Bytes that are taken.
    pub fn taken(&self) -> u64 {
        let taken = |room: &Room| u64::from(room.units).saturating_sub(room.free.available_permits() as u64);
        (taken(&self.urgent) + taken(&self.rest)) * UNIT
    }
}

impl Room {
    fn new(units: u32) -> Room {
        Room { units, free: Arc::new(Semaphore::new(units as usize)), waiting: AtomicUsize::new(0) }
    }

    fn share(&self) -> u32 {
        self.units.div_ceil(2)
    }
}

async fn permits(of: &Arc<Semaphore>, count: u32) -> OwnedSemaphorePermit {
    of.clone().acquire_many_owned(count).await.expect("these semaphores are never closed")
}

/// Counts who waits, also when it stops waiting.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn new(count: &AtomicUsize) -> Waiting<'_> {
        count.fetch_add(1, Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn units(bytes: u64) -> u32 {
    bytes.div_ceil(UNIT).min(u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_peer_gets_half_and_what_is_urgent_has_a_room_of_its_own() {
        let rooms = Rooms::new(256 * MIB);
        let (one, other) = (rooms.shares(), rooms.shares());
        let take = |shares, lane, bytes| rooms.take(shares, lane, bytes).now_or_never();
        let first = take(&one, Lane::Average, 96 * MIB).expect("half of the rest");
        assert!(take(&one, Lane::Bulk, 1).is_none(), "it has its share");
        let second = take(&other, Lane::Average, 96 * MIB).expect("the other half");
        assert_eq!(rooms.taken(), 192 * MIB);
        let third = rooms.shares();
        let mut waits = Box::pin(rooms.take(&third, Lane::Average, 100 * MIB));
        assert!(waits.as_mut().now_or_never().is_none() && rooms.is_waited_for(Lane::Bulk));
        for shares in [&one, &other] {
            let gradient = take(shares, Lane::Gradient, 32 * MIB);
            assert!(gradient.is_some() && !rooms.is_waited_for(Lane::Gradient));
        }
        drop((first, second.clone()));
        assert!(waits.as_mut().now_or_never().is_none(), "a copy holds the room");
        drop(second);
        assert!(waits.as_mut().now_or_never().is_some() && !rooms.is_waited_for(Lane::Bulk));
        assert_eq!(rooms.taken(), 0);
    }

    #[test]
    fn a_body_larger_than_a_share_or_than_all_gets_in_alone() {
        let rooms = Rooms::new(256 * MIB);
        let (one, other) = (rooms.shares(), rooms.shares());
        let large = rooms.take(&one, Lane::Average, 150 * MIB).now_or_never().expect("all is free");
        assert_eq!(rooms.taken(), 150 * MIB, "it is counted whole");
        assert!(rooms.take(&other, Lane::Average, 50 * MIB).now_or_never().is_none());
        drop(large);
        assert!(rooms.take(&one, Lane::Average, 500 * MIB).now_or_never().is_some());
    }
}
