//! Connections, and who is behind them: the hello, incarnations, and who was declared dead.
//!
//! In: connections that stand or fall, hellos. Out: whom to greet, whom to fence. It knows nothing of stages.

use std::{collections::BTreeSet, time::Duration};

use skein_gossip::sorted::Sorted;
use skein_protocol::{Incarnation, Instant, PeerId};

/// Peers that are remembered after they are gone.
const REMEMBERED: usize = 1024;
/// A peer that could not be reached is tried again after this, doubled up to [`DIAL_PAUSE_MAX`].
const DIAL_PAUSE: Duration = Duration::from_millis(500);
const DIAL_PAUSE_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
struct Neighbour {
    peer: PeerId,
    connected: bool,
    /// Known once it said hello on this connection.
    incarnation: Option<Incarnation>,
    last_incarnation: Incarnation,
    /// Incarnations up to this one had confirmed work that went to somebody else.
    dead: Option<Incarnation>,
    dial_at: Instant,
    dial_pause: Duration,
    seen: Instant,
}

impl Neighbour {
    fn new(peer: PeerId) -> Self {
        Neighbour {
            peer,
            connected: false,
            incarnation: None,
            last_incarnation: 0,
            dead: None,
            dial_at: Instant::ZERO,
            dial_pause: Duration::ZERO,
            seen: Instant::ZERO,
        }
    }

    fn is_up(&self) -> bool {
        self.connected && self.incarnation.is_some_and(|incarnation| self.dead.is_none_or(|dead| incarnation > dead))
    }

    fn is_gone(&self) -> bool {
        !self.connected && self.dial_pause >= DIAL_PAUSE * 4
    }
}

#[derive(Debug, Default)]
pub struct Neighbours {
    /// In the order of their names.
    peers: Sorted<Neighbour>,
}

/// What a hello means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// A new acquaintance.
    Known,
    /// The same incarnation, after its connection was lost.
    Again,
    /// The peer restarted: its former incarnation is lost.
    Restarted(Incarnation),
    /// This incarnation was declared dead, and work of it went elsewhere: it must fence itself.
    Dead,
    /// Older than one that was seen: a late word of a former life.
    Stale,
}

impl Neighbours {
    fn find(&self, peer: PeerId) -> Result<usize, usize> {
        self.peers.find(peer.start(), |neighbour| neighbour.peer.cmp(&peer))
    }

    fn get(&self, peer: PeerId) -> Option<&Neighbour> {
        self.find(peer).ok().map(|place| &self.peers.items()[place])
    }

    fn get_mut(&mut self, peer: PeerId) -> Option<&mut Neighbour> {
        self.find(peer).ok().map(|place| &mut self.peers.items_mut()[place])
    }

    /// It is remembered from now on.
    fn remembered(&mut self, peer: PeerId) -> &mut Neighbour {
        let found = self.find(peer);
        let place = found.unwrap_or_else(|place| place);
        if found.is_err() {
            self.peers.put(found, peer.start(), Neighbour::new(peer));
        }
        &mut self.peers.items_mut()[place]
    }

    pub fn on_up(&mut self, now: Instant, peer: PeerId) {
        self.make_room();
        let neighbour = self.remembered(peer);
        neighbour.connected = true;
        neighbour.incarnation = None;
        neighbour.dial_pause = Duration::ZERO;
        neighbour.seen = now;
    }

    /// The incarnation that was lost, if it had said hello.
    pub fn on_lost(&mut self, now: Instant, peer: PeerId) -> Option<Incarnation> {
        let neighbour = self.get_mut(peer)?;
        neighbour.connected = false;
        neighbour.dial_at = now;
        neighbour.seen = now;
        neighbour.incarnation.take()
    }

    pub fn on_hello(&mut self, now: Instant, peer: PeerId, incarnation: Incarnation) -> Greeting {
        let neighbour = self.remembered(peer);
        neighbour.connected = true;
        neighbour.seen = now;
        if incarnation < neighbour.last_incarnation {
            return Greeting::Stale;
        }
        let before = neighbour.last_incarnation;
        neighbour.last_incarnation = incarnation;
        neighbour.incarnation = Some(incarnation);
        match neighbour.dead {
            Some(dead) if incarnation <= dead => Greeting::Dead,
            _ if before > 0 && before < incarnation => Greeting::Restarted(before),
            _ if before == incarnation && before > 0 => Greeting::Again,
            _ => Greeting::Known,
        }
    }

    /// Confirmed work of this incarnation went to somebody else: it must not count it any more. Nothing: of the latest one.
    pub fn declare_dead(&mut self, peer: PeerId, incarnation: Option<Incarnation>) {
        if let Some(neighbour) = self.get_mut(peer) {
            neighbour.dead = neighbour.dead.max(Some(incarnation.unwrap_or(neighbour.last_incarnation)));
        }
    }

    /// Connected, greeted, and not declared dead.
    pub fn is_up(&self, peer: PeerId) -> bool {
        self.get(peer).is_some_and(Neighbour::is_up)
    }

    pub fn is_connected(&self, peer: PeerId) -> bool {
        self.get(peer).is_some_and(|neighbour| neighbour.connected)
    }

    /// Greeted and connected.
    pub fn up(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.those(Neighbour::is_up)
    }

    pub fn connected(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.those(|neighbour| neighbour.connected)
    }

    /// Those of `peers` to whom no connection stands.
    pub fn missing(&self, peers: &BTreeSet<PeerId>) -> Vec<PeerId> {
        // Both are in the same order: one walk beside the other.
        let mut connected = self.connected().peekable();
        let is_missing = |peer: &&PeerId| {
            while connected.next_if(|connected| connected < *peer).is_some() {}
            connected.peek() != Some(*peer)
        };
        peers.iter().filter(is_missing).copied().collect()
    }

    /// Whether `peer` may be dialled now; if so, the next time is later.
    pub fn may_dial(&mut self, now: Instant, peer: PeerId) -> bool {
        self.make_room();
        let neighbour = self.remembered(peer);
        if neighbour.connected || neighbour.dial_at > now {
            return false;
        }
        neighbour.dial_pause = (neighbour.dial_pause * 2).clamp(DIAL_PAUSE, DIAL_PAUSE_MAX);
        neighbour.dial_at = now + neighbour.dial_pause;
        neighbour.seen = now;
        true
    }

    /// Dialled again and again, and never there: whatever is said of it, it is not to be counted on.
    pub fn is_gone(&self, peer: PeerId) -> bool {
        self.get(peer).is_some_and(Neighbour::is_gone)
    }

    /// All of whom [`Self::is_gone`] is true, in the order of their names.
    pub fn gone(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.those(Neighbour::is_gone)
    }

    fn those(&self, which: fn(&Neighbour) -> bool) -> impl Iterator<Item = PeerId> + '_ {
        self.peers.items().iter().filter(move |neighbour| which(neighbour)).map(|neighbour| neighbour.peer)
    }

    /// Forgets whoever is gone longest.
    fn make_room(&mut self) {
        if self.peers.items().len() < REMEMBERED {
            return;
        }
        let gone = self.peers.items().iter().enumerate().filter(|(_, neighbour)| !neighbour.connected);
        if let Some((oldest, _)) = gone.min_by_key(|(_, neighbour)| neighbour.seen) {
            self.peers.remove(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PeerId = PeerId([1; 32]);

    #[test]
    fn a_restart_ends_the_former_incarnation_and_a_late_hello_is_stale() {
        let mut neighbours = Neighbours::default();
        neighbours.on_up(Instant(0), P);
        assert!(!neighbours.is_up(P), "not before its hello");
        assert_eq!(neighbours.on_hello(Instant(0), P, 3), Greeting::Known);
        assert!(neighbours.is_up(P));
        assert_eq!(neighbours.on_hello(Instant(1), P, 4), Greeting::Restarted(3));
        assert_eq!(neighbours.on_hello(Instant(2), P, 3), Greeting::Stale);
    }

    #[test]
    fn who_was_declared_dead_comes_back_only_as_a_new_incarnation() {
        let mut neighbours = Neighbours::default();
        neighbours.on_up(Instant(0), P);
        neighbours.on_hello(Instant(0), P, 3);
        neighbours.declare_dead(P, None);
        assert!(!neighbours.is_up(P));
        assert_eq!(neighbours.on_lost(Instant(1), P), Some(3));
        neighbours.on_up(Instant(2), P);
        assert_eq!(neighbours.on_hello(Instant(2), P, 3), Greeting::Dead);
        assert_eq!(neighbours.on_hello(Instant(3), P, 4), Greeting::Restarted(3));
        assert!(neighbours.is_up(P));
    }

    #[test]
    fn a_restart_outlives_the_death_of_its_former_life() {
        let mut neighbours = Neighbours::default();
        neighbours.on_up(Instant(0), P);
        neighbours.on_hello(Instant(0), P, 3);
        assert_eq!(neighbours.on_hello(Instant(1), P, 4), Greeting::Restarted(3));
        neighbours.declare_dead(P, Some(3));
        assert!(neighbours.is_up(P));
    }

    #[test]
    fn dials_back_off() {
        let mut neighbours = Neighbours::default();
        assert!(neighbours.may_dial(Instant(0), P));
        assert!(!neighbours.may_dial(Instant(0), P));
        assert!(neighbours.may_dial(Instant(0) + DIAL_PAUSE, P));
        assert!(!neighbours.may_dial(Instant(0) + DIAL_PAUSE * 2, P));
    }
}
