//! Connections between processes, and who hears whom. In: processes that start, stop and pause, partitions. Out: alarms for
//! silences that begin. It knows no bytes and no delays.

use std::collections::BTreeSet;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::engine::{SECOND, Time};

/// Which process of which peer: a restart is another one.
pub type ProcessId = (usize, u32);

/// Name of a connection; never used again.
pub type ConnectionId = u64;

#[derive(Clone, Debug)]
struct Side {
    process: ProcessId,
    up: bool,
    silent_since: Option<Time>,
    /// Changes whenever a silence begins or ends: an old alarm finds another number.
    watch: u64,
    /// Arrival of the last ordered message at this side.
    ordered_at: Time,
}

#[derive(Clone, Debug)]
struct Connection {
    id: ConnectionId,
    /// It goes through a relay.
    relayed: bool,
    /// In the order of the peers' numbers.
    sides: [Side; 2],
}

/// A silence begins: look at `at` whether it lasted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    pub at: Time,
    pub connection: ConnectionId,
    /// Who will have heard nothing, of whom.
    pub of: usize,
    pub from: usize,
    pub watch: u64,
}

/// Silence of this is death on a connection that is not in use, as in the product (`net/data/silence`).
const REST: Time = 20 * SECOND;

/// No connection: there are never so many.
const NONE: u32 = u32::MAX;

pub(super) struct Connections {
    /// The running process of each peer, and whether it is suspended.
    running: Vec<Option<u32>>,
    paused: Vec<bool>,
    connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    /// By peer: where its connection to each other peer is, [`NONE`] where there is none. Each message asks several times.
    of: Vec<Vec<u32>>,
    blocked: BTreeSet<(usize, usize)>,
    next: ConnectionId,
    /// Whose connections each peer uses.
    used: Vec<BTreeSet<usize>>,
    /// Silence of this is death where a connection is in use.
    idle: Time,
}

impl Connections {
    pub fn new(peers: usize, idle: Time) -> Self {
        Connections {
            running: vec![None; peers],
            paused: vec![false; peers],
            connections: Vec::new(),
            free: Vec::new(),
            of: vec![vec![NONE; peers]; peers],
            blocked: BTreeSet::new(),
            next: 0,
            used: vec![BTreeSet::new(); peers],
            idle,
        }
    }

    // ---- processes -------------------------------------------------------------------------------------------------------

    pub fn start(&mut self, peer: usize, process: u32) {
        self.running[peer] = Some(process);
        self.used[peer].clear();
        self.paused[peer] = false;
    }

    pub fn stop(&mut self, now: Time, peer: usize, rng: &mut ChaCha8Rng) -> Vec<Alarm> {
        self.running[peer] = None;
        self.paused[peer] = false;
        self.refresh_all(now, peer, rng)
    }

    pub fn set_paused(&mut self, now: Time, peer: usize, paused: bool, rng: &mut ChaCha8Rng) -> Vec<Alarm> {
        self.paused[peer] = paused;
        self.refresh_all(now, peer, rng)
    }

    // ---- partitions ------------------------------------------------------------------------------------------------------

    pub fn block(&mut self, now: Time, from: usize, to: usize, rng: &mut ChaCha8Rng) -> Vec<Alarm> {
        self.blocked.insert((from, to));
        self.refresh(now, from, to, rng)
    }

    pub fn unblock(&mut self, now: Time, from: usize, to: usize, rng: &mut ChaCha8Rng) -> Vec<Alarm> {
        self.blocked.remove(&(from, to));
        self.refresh(now, from, to, rng)
    }

    pub fn is_blocked(&self, from: usize, to: usize) -> bool {
        !self.blocked.is_empty() && self.blocked.contains(&(from, to))
    }

    // ---- connections -----------------------------------------------------------------------------------------------------

    fn between(&self, a: usize, b: usize) -> Option<&Connection> {
        self.connections.get(self.of[a][b] as usize)?.as_ref()
    }

    fn side(&self, of: usize, other: usize) -> Option<&Side> {
        self.between(of, other).map(|connection| &connection.sides[usize::from(of > other)])
    }

    fn side_mut(&mut self, of: usize, other: usize) -> Option<&mut Side> {
        let connection = self.connections.get_mut(self.of[of][other] as usize)?.as_mut()?;
        Some(&mut connection.sides[usize::from(of > other)])
    }

    pub fn connection(&self, of: usize, other: usize) -> Option<ConnectionId> {
        let connection = self.between(of, other)?;
        let side = &connection.sides[usize::from(of > other)];
        (side.up && self.running[of] == Some(side.process.1)).then_some(connection.id)
    }

    pub fn is_relayed(&self, a: usize, b: usize) -> bool {
        self.between(a, b).is_some_and(|connection| connection.relayed)
    }

    /// Those to whom there is a connection, whether `of` takes it for one or not.
    fn others(&self, of: usize) -> impl Iterator<Item = usize> {
        (0..).zip(&self.of[of]).filter(|(_, at)| **at != NONE).map(|(other, _)| other)
    }

    pub fn neighbours(&self, of: usize) -> Vec<usize> {
        self.others(of).filter(|other| self.connection(of, *other).is_some()).collect()
    }

    pub fn is_alone(&self, of: usize) -> bool {
        !self.others(of).any(|other| self.connection(of, other).is_some())
    }

    pub fn reaches(&self, a: usize, b: usize) -> bool {
        let awake = |peer: usize| self.running[peer].is_some() && !self.paused[peer];
        awake(a) && awake(b) && !self.is_blocked(a, b) && !self.is_blocked(b, a)
    }

    pub fn connect(&mut self, now: Time, a: usize, b: usize, relayed: bool) -> Vec<usize> {
        let lost = [a, b].into_iter().zip([b, a]).filter(|(x, y)| self.connection(*x, *y).is_some()).map(|(x, _)| x);
        let lost: Vec<usize> = lost.collect();
        self.next += 1;
        let side = |peer: usize| Side {
            process: (peer, self.running[peer].unwrap_or(0)),
            up: true,
            silent_since: None,
            watch: 0,
            ordered_at: now,
        };
        let connection = Connection { id: self.next, relayed, sides: [side(a.min(b)), side(a.max(b))] };
        let at = match self.of[a][b] {
            NONE => self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                (self.connections.len() - 1) as u32
            }),
            at => at,
        };
        self.connections[at as usize] = Some(connection);
        (self.of[a][b], self.of[b][a]) = (at, at);
        lost
    }

    pub fn close(&mut self, now: Time, of: usize, other: usize, rng: &mut ChaCha8Rng) -> Vec<Alarm> {
        if let Some(side) = self.side_mut(of, other) {
            side.up = false;
        }
        if self.between(of, other).is_some_and(|connection| connection.sides.iter().all(|side| !side.up)) {
            let at = self.of[of][other];
            self.connections[at as usize] = None;
            self.free.push(at);
            (self.of[of][other], self.of[other][of]) = (NONE, NONE);
            return Vec::new();
        }
        self.refresh(now, of, other, rng)
    }

    /// `at`, or as much later as keeps the order of what `to` gets from `from`.
    pub fn in_order(&mut self, at: Time, from: usize, to: usize) -> Time {
        let Some(side) = self.side_mut(to, from) else { return at };
        side.ordered_at = side.ordered_at.max(at).max(side.ordered_at + 1);
        side.ordered_at
    }

    // ---- silence ---------------------------------------------------------------------------------------------------------

    pub fn rings(&self, alarm: &Alarm) -> bool {
        self.connection(alarm.of, alarm.from) == Some(alarm.connection)
            && self
                .side(alarm.of, alarm.from)
                .is_some_and(|side| side.watch == alarm.watch && side.silent_since.is_some())
    }

    /// How long `of` bears the silence of `other`.
    fn patience(&self, of: usize, other: usize) -> Time {
        if self.used[of].contains(&other) { self.idle } else { REST.max(self.idle) }
    }

    /// What counted as silence at the former pace says nothing about the new one.
    pub fn set_used(&mut self, now: Time, of: usize, used: BTreeSet<usize>, rng: &mut ChaCha8Rng) -> Vec<Alarm> {
        let before = std::mem::replace(&mut self.used[of], used);
        let changed: Vec<usize> = before.symmetric_difference(&self.used[of]).copied().collect();
        changed.into_iter().filter_map(|other| self.begin_silence(now, of, other, rng)).collect()
    }

    /// A silence that lasts already begins anew.
    fn begin_silence(&mut self, now: Time, of: usize, other: usize, rng: &mut ChaCha8Rng) -> Option<Alarm> {
        let connection = self.connection(of, other)?;
        let patience = self.patience(of, other);
        let side = self.side_mut(of, other).filter(|side| side.silent_since.is_some())?;
        side.watch += 1;
        side.silent_since = Some(now);
        // The last packet before the silence is up to a keep-alive old.
        let early = rng.random_range(0..=patience / 16);
        Some(Alarm { at: now + patience - early, connection, of, from: other, watch: side.watch })
    }

    pub fn silent(&self, now: Time, of: usize) -> Vec<usize> {
        let silent = |other: &usize| {
            let patience = self.patience(of, *other);
            self.side(of, *other).is_some_and(|side| {
                side.up && side.silent_since.is_some_and(|since| now.saturating_sub(since) >= patience)
            })
        };
        self.neighbours(of).into_iter().filter(silent).collect()
    }

    fn refresh_all(&mut self, now: Time, peer: usize, rng: &mut ChaCha8Rng) -> Vec<Alarm> {
        let others: Vec<usize> = self.others(peer).collect();
        others.into_iter().flat_map(|other| self.refresh(now, peer, other, rng)).collect()
    }

    /// Looks at both directions of a connection: a silence that begins sets an alarm, one that ends forgets its own.
    fn refresh(&mut self, now: Time, a: usize, b: usize, rng: &mut ChaCha8Rng) -> Vec<Alarm> {
        let both = [self.refresh_direction(now, a, b, rng), self.refresh_direction(now, b, a, rng)];
        both.into_iter().flatten().collect()
    }

    fn refresh_direction(&mut self, now: Time, from: usize, to: usize, rng: &mut ChaCha8Rng) -> Option<Alarm> {
        let connection = self.between(from, to)?.id;
        let sender = self.side(from, to)?;
        let speaks = sender.up && self.running[from] == Some(sender.process.1) && !self.paused[from];
        let heard = speaks && !self.is_blocked(from, to);
        let patience = self.patience(to, from);
        let side = self.side_mut(to, from)?;
        if !side.up || heard == side.silent_since.is_none() {
            return None;
        }
        side.watch += 1;
        side.silent_since = (!heard).then_some(now);
        if heard {
            return None;
        }
        // The last packet before the silence is up to a keep-alive old.
        let early = rng.random_range(0..=patience / 16);
        Some(Alarm { at: now + patience - early, connection, of: to, from, watch: side.watch })
    }
}
