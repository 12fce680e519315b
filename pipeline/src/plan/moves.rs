//! Which replicas are to go to another stage. In: who serves what and how fast, who may go. Out: moves, the first the most
//! pressing.
//!
//! A peer does not decide by itself: each works out what all who see the same would do, until nobody would do anything more, and
//! moves only if that takes its move (Petals simulates so before a server moves; SWARM lets one peer move in a period).

use std::{collections::BTreeSet, convert::Infallible, ops::ControlFlow, time::Duration};

use skein_protocol::{Instant, PeerId, Stage};

use super::{
    assign::taste,
    swarm::{ALIKE, Cost, Place, Swarm, ascending, is_weaker},
};

/// Moves must leave the weakest stage that they change at less than this part of what it becomes: who goes computes nothing
/// for a while, and measured speeds waver by a few percent.
pub const GAIN: f64 = 0.9;

/// Moves that are thought out at once. The next ones are seen when these are done.
pub const MOVES_MAX: usize = 16;

/// While the same peers serve the same stages, speeds that changed are thought over this often; among more peers than these up
/// to so many times as seldom, since some speed always changes, and one counts for less.
const THOUGHT: Duration = Duration::from_secs(5);
const THOUGHT_PEERS: usize = 64;
const THOUGHT_SLOWEST: u32 = 4;

/// A replica that would help more at another stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub from: Stage,
    pub to: Stage,
    /// Nobody serves `to`.
    pub is_empty: bool,
}

/// The moves that all peers who see the same come to, one after the other, until no more makes the swarm better. Nothing unless
/// the weakest stage that they change ends up better by more than the hysteresis.
///
/// Each move is the best of all peers' by the ascending throughputs of the stages; among equals a hash decides, so that all
/// name the same peer. `stays` tells who does not go; a stage is never left by its last replica. A peer moves at most once.
/// Whoever is not in the list stays: what others will do makes its own move needless.
pub fn moves(swarm: &Swarm, costs: &[Cost], stays: impl Fn(PeerId) -> bool) -> Vec<(PeerId, Move)> {
    list(swarm, costs, None, stays)
}

/// What a peer can tell of itself: the stages it may leave, and all of its memory.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    pub me: PeerId,
    pub free: &'a BTreeSet<Stage>,
    pub memory: u64,
}

impl Own<'_> {
    /// Whether it can leave one stage and go to `to`.
    pub fn may_go_to(&self, to: Stage, swarm: &Swarm, costs: &[Cost]) -> bool {
        let used = memory(swarm.stages_of(self.me), costs);
        self.free.iter().any(|from| *from != to && self.fits(used, *from, to, costs))
    }

    fn fits(&self, used: u64, from: Stage, to: Stage, costs: &[Cost]) -> bool {
        let left = used.saturating_sub(costs[usize::from(from)].memory);
        costs[usize::from(to)].memory <= self.memory.saturating_sub(left)
    }
}

fn memory(stages: &[Stage], costs: &[Cost]) -> u64 {
    stages.iter().map(|stage| costs[usize::from(*stage)].memory).fold(0, u64::saturating_add)
}

/// The swarm's moves, as far as one peer can tell: of others it knows only who was named and did not go. It looks often, and
/// mostly nothing has changed.
#[derive(Debug, Default)]
pub struct Foresight {
    seen_at: Instant,
    /// What was seen: where everybody is, and with what power.
    seen: (u64, u64),
    /// The same itself, where somebody is to move.
    swarm: Swarm,
    free: BTreeSet<Stage>,
    /// The moves, and those when all who were named before stay.
    lists: Vec<Vec<(PeerId, Move)>>,
}

impl Foresight {
    /// The moves if everybody goes.
    pub fn see(&mut self, now: Instant, own: Own<'_>, swarm: &Swarm, costs: &[Cost]) -> &[(PeerId, Move)] {
        let seen = swarm.marks();
        let crowd = ((swarm.peers.len() / THOUGHT_PEERS) as u32).clamp(1, THOUGHT_SLOWEST);
        let holds = seen == self.seen || now.since(self.seen_at) < THOUGHT * crowd && seen.0 == self.seen.0;
        if !holds || *own.free != self.free || self.lists.is_empty() {
            let first = list(swarm, costs, Some(own), |_| false);
            let swarm = if first.is_empty() { Swarm::default() } else { swarm.clone() };
            *self = Foresight { seen_at: now, seen, swarm, free: own.free.clone(), lists: vec![first] };
        }
        &self.lists[0]
    }

    /// The move of `own` in what was seen, when those who were named were passed over up to `passes` times without naming it.
    pub fn move_of(&mut self, own: Own<'_>, costs: &[Cost], passes: usize) -> Option<Move> {
        for pass in 0..=passes {
            if pass == self.lists.len() {
                let stays: BTreeSet<PeerId> = self.lists.iter().flatten().map(|(peer, _)| *peer).collect();
                self.lists.push(list(&self.swarm, costs, Some(own), |peer| stays.contains(&peer)));
            }
            let list = self.lists.get(pass)?;
            if list.is_empty() {
                return None;
            }
            if let Some((_, what)) = list.iter().find(|(peer, _)| *peer == own.me) {
                return Some(*what);
            }
        }
        None
    }
}

/// Peers that serve the same with the same power: the stages would stand the same, whoever of them moves.
struct Alike<'a> {
    served: &'a [Stage],
    /// For each of its stages, operations a second.
    share: f64,
    /// Micro-batches a second at each of its stages.
    speeds: Vec<f64>,
    peers: Vec<Place>,
    is_me: bool,
}

fn classes<'a>(swarm: &'a Swarm, me: Option<PeerId>, stays: impl Fn(PeerId) -> bool) -> Vec<Alike<'a>> {
    let mut all: Vec<(bool, &[Stage], u64, Place)> = Vec::with_capacity(swarm.peers.len());
    for (place, peer) in swarm.peers.iter().enumerate() {
        let is_me = me == Some(*peer);
        if is_me || !stays(*peer) {
            all.push((is_me, swarm.served(place), swarm.power[place].to_bits(), place));
        }
    }
    all.sort_unstable();
    let alike = |of: &[(bool, &'a [Stage], u64, Place)]| {
        let (is_me, served, _, first) = of[0];
        let share = swarm.share(first);
        let speeds = served.iter().map(|stage| swarm.speed(share, *stage)).collect();
        Alike { served, share, speeds, peers: of.iter().map(|(.., place)| *place).collect(), is_me }
    };
    all.chunk_by(|a, b| (a.0, a.1, a.2) == (b.0, b.1, b.2)).map(alike).collect()
}

fn list(swarm: &Swarm, costs: &[Cost], own: Option<Own<'_>>, stays: impl Fn(PeerId) -> bool) -> Vec<(PeerId, Move)> {
    let mut throughput = swarm.throughputs();
    if !could_gain(swarm, &throughput) {
        return Vec::new();
    }
    let before = ascending(&throughput);
    let mut replicas = swarm.replicas.clone();
    let mut classes = classes(swarm, own.map(|own| own.me), stays);
    let mut list: Vec<(PeerId, Move)> = Vec::new();
    while list.len() < MOVES_MAX {
        let search = Search { swarm, costs, own, replicas: &replicas, throughput: &throughput };
        let Some((class, what)) = search.best(&classes) else { break };
        let taste = |at: &usize| taste(swarm.peers[classes[class].peers[*at]], what.to);
        let Some(chosen) = (0..classes[class].peers.len()).min_by_key(taste) else { break };
        let peer = classes[class].peers.remove(chosen);
        let share = classes[class].share;
        throughput[usize::from(what.from)] -= swarm.speed(share, what.from);
        throughput[usize::from(what.to)] += swarm.speed(share, what.to);
        replicas[usize::from(what.from)] -= 1;
        replicas[usize::from(what.to)] += 1;
        list.push((swarm.peers[peer], what));
    }
    if is_weaker(&before, &ascending(&throughput), GAIN) { list } else { Vec::new() }
}

/// Whether any placement could lift the weakest stage by the hysteresis: if all power were spread over the stages by their
/// costs, each would have the same throughput. This spares nearly all swarms the search for moves.
fn could_gain(swarm: &Swarm, throughput: &[f64]) -> bool {
    let (flops, power) = swarm.totals();
    let weakest = throughput.iter().copied().fold(f64::INFINITY, f64::min);
    weakest < GAIN * power / flops.max(1.0)
}

/// How the stages stand in the midst of a list.
struct Search<'a> {
    swarm: &'a Swarm,
    costs: &'a [Cost],
    own: Option<Own<'a>>,
    replicas: &'a [usize],
    throughput: &'a [f64],
}

impl Search<'_> {
    /// The move after which the ascending throughputs are largest, and the class that makes it. Nothing if none is better than
    /// staying. Of moves that are equally good that of the peer that a hash prefers.
    fn best(&self, classes: &[Alike<'_>]) -> Option<(usize, Move)> {
        let mut by_need: Vec<Stage> = (0..self.replicas.len() as Stage).collect();
        by_need.sort_by(|a, b| self.throughput[usize::from(*a)].total_cmp(&self.throughput[usize::from(*b)]));
        let now: Vec<f64> = by_need.iter().map(|stage| self.throughput[usize::from(*stage)]).collect();
        let mut best = now.clone();
        let mut equals: Vec<(usize, Move)> = Vec::new();
        for (class, alike) in classes.iter().enumerate().filter(|(_, alike)| !alike.peers.is_empty()) {
            let leaves = alike.served.iter().copied().zip(alike.speeds.iter().copied());
            for (from, speed) in leaves.filter(|(from, _)| self.replicas[usize::from(*from)] > 1) {
                // Who is needed where it is would leave the swarm weaker than it stands.
                let less = self.throughput[usize::from(from)] - speed;
                if less < ALIKE * now[0] {
                    continue;
                }
                // A peer helps most at the weakest stage that it can go to.
                let Some(to) = by_need.iter().copied().find(|to| self.may(alike, from, *to)) else { continue };
                let more = self.throughput[usize::from(to)] + self.swarm.speed(alike.share, to);
                let change = [(from, less), (to, more)];
                // Nearly always the first places tell.
                let mut places = best.iter();
                let differ = |after: f64| match places.next() {
                    Some(best) if after.min(*best) < ALIKE * after.max(*best) => ControlFlow::Break(after > *best),
                    _ => ControlFlow::Continue(()),
                };
                let is_better = match self.after(&now, change, differ) {
                    ControlFlow::Break(false) => continue,
                    ControlFlow::Break(true) => true,
                    ControlFlow::Continue(()) => false,
                };
                if is_better {
                    best.clear();
                    let ControlFlow::Continue(()) = self.after(&now, change, |after| {
                        best.push(after);
                        ControlFlow::<Infallible>::Continue(())
                    });
                    equals.clear();
                }
                if is_better || !equals.is_empty() {
                    equals.push((class, Move { from, to, is_empty: self.replicas[usize::from(to)] == 0 }));
                }
            }
        }
        let preferred = |(class, what): &(usize, Move)| {
            classes[*class].peers.iter().map(|peer| taste(self.swarm.peers[*peer], what.to)).min()
        };
        if equals.len() > 1 { equals.into_iter().min_by_key(preferred) } else { equals.pop() }
    }

    fn may(&self, alike: &Alike<'_>, from: Stage, to: Stage) -> bool {
        // What this peer may not serve it plans for nobody.
        if alike.served.contains(&to) || self.costs[usize::from(to)].memory == u64::MAX {
            return false;
        }
        let Some(own) = self.own.filter(|_| alike.is_me) else { return true };
        own.free.contains(&from) && own.fits(memory(alike.served, self.costs), from, to, self.costs)
    }

    /// Goes through the ascending throughputs after a move: those of `now` without two, and the two others that it leads to.
    fn after<B>(
        &self,
        now: &[f64],
        [(from, less), (to, more)]: [(Stage, f64); 2],
        mut see: impl FnMut(f64) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut gone = [from, to].map(|stage| Some(self.throughput[usize::from(stage)]));
        let come = [less.min(more), less.max(more)];
        let mut come = &come[..];
        for value in now.iter().copied() {
            if let Some(gone) = gone.iter_mut().find(|gone| **gone == Some(value)) {
                *gone = None;
                continue;
            }
            while let Some((first, rest)) = come.split_first().filter(|(first, _)| **first <= value) {
                see(*first)?;
                come = rest;
            }
            see(value)?;
        }
        come.iter().try_for_each(|come| see(*come))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{
        super::swarm::{
            Serving,
            made_up::{ME, costs, see, serving},
        },
        *,
    };

    /// The move of `me` if nobody else can move.
    fn move_for(me: PeerId, serving: &Serving, free: &BTreeSet<Stage>, costs: &[Cost], memory: u64) -> Option<Move> {
        let own = Own { me, free, memory };
        list(&see(serving, costs), costs, Some(own), |_| true).first().map(|(_, what)| *what)
    }

    fn counts(serving: &Serving) -> Vec<usize> {
        serving.values().map(BTreeMap::len).collect()
    }

    /// A swarm of equal peers, so many at each stage.
    fn crowd(counts: &[usize]) -> Serving {
        let mut next = 0u8;
        let mut some = |count: &usize| {
            next += *count as u8;
            (next - *count as u8..next).map(|peer| (PeerId([peer; 32]), 10.0)).collect()
        };
        counts.iter().enumerate().map(|(stage, count)| (stage as Stage, some(count))).collect()
    }

    fn do_moves(serving: &Serving, list: &[(PeerId, Move)]) -> Serving {
        let mut after = serving.clone();
        for (peer, Move { from, to, .. }) in list {
            let speed = after.get_mut(from).and_then(|peers| peers.remove(peer)).expect("it served there");
            after.entry(*to).or_default().insert(*peer, speed);
        }
        after
    }

    #[test]
    fn all_who_see_the_same_move_as_far_as_it_helps_and_then_nobody_moves() {
        let equal = costs([1; 4]);
        for before in [[2, 6, 8, 8], [0, 0, 12, 12], [1, 9, 2, 12], [0, 3, 0, 21]] {
            let swarm = crowd(&before);
            let list = moves(&see(&swarm, &equal), &equal, |_| false);
            let after = do_moves(&swarm, &list);
            assert_eq!(counts(&after), [6; 4], "{before:?}");
            let movers: BTreeSet<PeerId> = list.iter().map(|(peer, _)| *peer).collect();
            assert_eq!(movers.len(), list.len(), "{before:?}: somebody moves twice");
            assert_eq!(moves(&see(&after, &equal), &equal, |_| false), [], "{before:?}");
        }
    }

    #[test]
    fn one_move_that_helps_little_is_made_when_two_together_help() {
        // Four of six and then five: neither alone lifts the weakest by enough to be worth two moves later.
        assert_eq!(moves(&see(&crowd(&[4, 6, 7, 7]), &costs([1; 4])), &costs([1; 4]), |_| false).len(), 2);
        assert_eq!(
            moves(&see(&crowd(&[19, 20, 20, 21]), &costs([1; 4])), &costs([1; 4]), |_| false),
            [],
            "a twentieth"
        );
    }

    #[test]
    fn who_can_not_move_is_passed_over() {
        let swarm = crowd(&[3, 1]);
        let first = moves(&see(&swarm, &costs([1; 2])), &costs([1; 2]), |_| false);
        assert_eq!(first.len(), 1);
        let stays = BTreeSet::from([first[0].0]);
        let second = moves(&see(&swarm, &costs([1; 2])), &costs([1; 2]), |peer| stays.contains(&peer));
        assert!(second.len() == 1 && second[0].0 != first[0].0, "{second:?}");
        assert_eq!(
            moves(&see(&crowd(&[1, 0]), &costs([1; 2])), &costs([1; 2]), |_| false),
            [],
            "the last replica stays"
        );
    }

    #[test]
    fn a_replica_too_many_moves_to_the_weakest_stage_and_none_moves_over_noise() {
        let free = BTreeSet::from([0]);
        let swarm = serving(&[&[9, 1, 2], &[3, 4], &[]]);
        let to_2 = Some(Move { from: 0, to: 2, is_empty: true });
        assert_eq!(move_for(ME, &swarm, &free, &costs([1; 3]), 1), to_2);
        assert_eq!(move_for(ME, &swarm, &BTreeSet::new(), &costs([1; 3]), 1), None, "it is pinned");
        assert_eq!(move_for(ME, &swarm, &free, &costs([1, 1, 2]), 1), None, "it does not fit");
        assert_eq!(move_for(ME, &serving(&[&[9], &[3, 4], &[]]), &free, &costs([1; 3]), 1), None, "it is the only one");
        let slow = serving(&[&[9, 1, 2], &[3]]);
        assert_eq!(move_for(ME, &slow, &free, &costs([1; 2]), 1), Some(Move { from: 0, to: 1, is_empty: false }));
        // Afterwards nobody has a reason to move back.
        assert_eq!(move_for(PeerId([1; 32]), &serving(&[&[1, 2], &[3, 9]]), &free, &costs([1; 2]), 1), None);
        assert_eq!(
            move_for(ME, &serving(&[&[9, 1], &[3]]), &free, &costs([1; 2]), 1),
            None,
            "the other would be as weak"
        );
    }

    #[test]
    fn a_stage_that_costs_more_is_not_taken_for_a_weak_one_because_its_replicas_are_slow() {
        // Three equal peers a stage; the second stage takes twice the operations. A move to it would leave the first weaker.
        let costs = [Cost { memory: 1, flops: 1 }, Cost { memory: 1, flops: 2 }];
        let peers = |peers: [u8; 3], speed: f64| peers.into_iter().map(|p| (PeerId([p; 32]), speed)).collect();
        let swarm = Serving::from([(0, peers([9, 1, 2], 10.0)), (1, peers([3, 4, 5], 5.0))]);
        assert_eq!(
            move_for(ME, &swarm, &BTreeSet::from([0]), &costs, 1),
            Some(Move { from: 0, to: 1, is_empty: false })
        );
        let swarm =
            Serving::from([(0, peers([9, 1, 6], 10.0)), (1, (10..16u8).map(|p| (PeerId([p; 32]), 5.0)).collect())]);
        assert_eq!(move_for(ME, &swarm, &BTreeSet::from([0]), &costs, 1), None);
        assert_eq!(move_for(PeerId([10; 32]), &swarm, &BTreeSet::from([1]), &costs, 1), None);
    }

    #[test]
    fn who_was_named_and_did_not_go_is_passed_over_and_what_was_seen_holds_for_a_while() {
        let (swarm, equal) = (crowd(&[6, 1]), costs([1; 2]));
        let first: Vec<PeerId> = moves(&see(&swarm, &equal), &equal, |_| false).iter().map(|(peer, _)| *peer).collect();
        let me = *swarm[&0].keys().find(|peer| !first.contains(peer)).expect("two of six go");
        let free = BTreeSet::from([0]);
        let own = Own { me, free: &free, memory: 1 };
        let mut foresight = Foresight::default();
        let seen: Vec<PeerId> =
            foresight.see(Instant(0), own, &see(&swarm, &equal), &equal).iter().map(|(peer, _)| *peer).collect();
        assert_eq!(seen, first);
        assert_eq!(foresight.move_of(own, &equal, 0), None);
        assert_eq!(foresight.move_of(own, &equal, 8), Some(Move { from: 0, to: 1, is_empty: false }));
        // Other speeds are thought over after a while, another place at once.
        let mut slow = swarm.clone();
        slow.get_mut(&0).expect("it is served").values_mut().for_each(|speed| *speed /= 6.0);
        let soon = Instant(0) + THOUGHT / 2;
        assert_eq!(foresight.see(soon, own, &see(&slow, &equal), &equal).len(), first.len());
        assert_eq!(foresight.see(Instant(0) + THOUGHT, own, &see(&slow, &equal), &equal), []);
        let again = foresight.see(Instant(0) + THOUGHT, own, &see(&swarm, &equal), &equal).len();
        assert_eq!(again, 0, "the speeds of a moment ago");
        assert!(!foresight.see(Instant(0) + THOUGHT, own, &see(&crowd(&[6, 0]), &equal), &equal).is_empty());
    }
}
