//! Chooses the stages that a peer serves. In: who serves what and how fast, what fits. Out: stages to take, most needed first.
//!
//! A joiner takes the stage with the least throughput, and another while its share of the work is not full: of S stages its
//! share is S times its part of the swarm's capacity, rounded up. Throughputs are compared in ascending order (the
//! lexicographic rule of Petals' block choice), so the weakest stage is always mended first.
//!
//! A replica moves by the same rule, but not by itself: each peer works out what all who see the same would do, until nobody
//! would do anything more, and moves only if that takes its move (Petals simulates so before a server moves; SWARM lets one
//! peer move in a period).

use std::collections::{BTreeMap, BTreeSet};

use skein_protocol::{
    PeerId, Stage,
    hash::{Digest, keyed},
};

/// A stage without a replica is taken over at once; a stage that is merely slower must be slower than this part of the best
/// before somebody takes it in addition: so nobody moves back and forth over noise.
const HYSTERESIS: f64 = 0.8;

/// Moves must leave the weakest stage that they change at less than this part of what it becomes: who goes computes nothing
/// for a while, and measured speeds waver by a few percent.
const GAIN: f64 = 0.9;

/// Moves that are thought out at once. The next ones are seen when these are done.
const MOVES_MAX: usize = 16;

/// Throughputs nearer to each other than this are equal: they are sums in another order.
const ALIKE: f64 = 1.0 - 1e-9;

/// A claimed speed counts for at most so many times the median of all claims: one peer that boasts does not make its stage look
/// served.
const CREDIBLE: f64 = 8.0;

/// Who serves, as the directory knows it: stage -> replica -> micro-batches a second (0 = unknown).
pub type Serving = BTreeMap<Stage, BTreeMap<PeerId, f64>>;

/// What a stage takes of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of memory.
    pub memory: u64,
    /// Operations of forward and backward of one micro-batch.
    pub flops: u64,
}

/// Stages that `me` should take, most needed first. `memory` is what is left of mine.
pub fn stages_for(me: PeerId, serving: &Serving, mine: &BTreeSet<Stage>, costs: &[Cost], memory: u64) -> Vec<Stage> {
    let swarm = Swarm::of(serving, costs);
    let others: Vec<f64> = swarm.power.iter().filter(|(peer, _)| **peer != me).map(|(_, power)| *power).collect();
    let mean = if others.is_empty() { 1.0 } else { others.iter().sum::<f64>() / others.len() as f64 };
    let my_power = swarm.power.get(&me).copied().unwrap_or(mean);
    let total = others.iter().sum::<f64>() + my_power;
    let share = (costs.len() as f64 * my_power / total).ceil() as usize;

    let mut throughput = swarm.throughputs();
    let mut taken = Vec::new();
    let mut left = memory;
    loop {
        let have = mine.len() + taken.len();
        let candidate = (0..costs.len() as Stage)
            .filter(|s| !mine.contains(s) && !taken.contains(s) && costs[usize::from(*s)].memory <= left)
            .min_by(|a, b| {
                let by_need = throughput[usize::from(*a)].total_cmp(&throughput[usize::from(*b)]);
                by_need.then_with(|| taste(me, *a).cmp(&taste(me, *b)))
            });
        let Some(stage) = candidate else { break };
        let at = usize::from(stage);
        let empty = throughput[at] <= 0.0;
        let best = throughput.iter().copied().fold(0.0, f64::max);
        let first = have == 0;
        let slower = throughput[at] < HYSTERESIS * best || mine.is_empty();
        if !(empty || first || (have < share && slower)) {
            break;
        }
        left -= costs[at].memory;
        throughput[at] += swarm.speed(my_power / (have + 1) as f64, stage);
        taken.push(stage);
    }
    taken
}

/// Among stages that need help alike peers differ in where they begin: a crowd that comes at once spreads.
fn taste(me: PeerId, stage: Stage) -> Digest {
    keyed("skein taste 1", &[&me.0, &stage.to_le_bytes()])
}

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
/// name the same peer. `may` tells who can go from where to where; a stage is never left by its last replica. A peer moves at
/// most once. Whoever is not in the list stays: what others will do makes its own move needless.
pub fn moves(serving: &Serving, costs: &[Cost], may: &dyn Fn(PeerId, Stage, Stage) -> bool) -> Vec<(PeerId, Move)> {
    let swarm = Swarm::of(serving, costs);
    let mut throughput = swarm.throughputs();
    if !swarm.could_gain(&throughput) {
        return Vec::new();
    }
    let before = ascending(&throughput);
    let mut serving = serving.clone();
    let mut list: Vec<(PeerId, Move)> = Vec::new();
    while list.len() < MOVES_MAX {
        let has_moved = |peer: PeerId| list.iter().any(|(other, _)| *other == peer);
        let may_still = |peer: PeerId, from: Stage, to: Stage| !has_moved(peer) && may(peer, from, to);
        let Some((peer, what, after)) = swarm.best_move(&serving, &throughput, &may_still) else { break };
        throughput = after;
        serving.entry(what.from).or_default().remove(&peer);
        serving.entry(what.to).or_default().insert(peer, 0.0);
        list.push((peer, what));
    }
    if is_weaker(&before, &ascending(&throughput), GAIN) { list } else { Vec::new() }
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
    pub fn may_go_to(&self, to: Stage, serving: &Serving, costs: &[Cost]) -> bool {
        let used = self.used(serving, costs);
        self.free.iter().any(|from| *from != to && self.fits(used, *from, to, costs))
    }

    /// Memory of what it serves.
    fn used(&self, serving: &Serving, costs: &[Cost]) -> u64 {
        let mine = serving.iter().filter(|(_, peers)| peers.contains_key(&self.me));
        mine.map(|(stage, _)| costs[usize::from(*stage)].memory).sum()
    }

    fn fits(&self, used: u64, from: Stage, to: Stage, costs: &[Cost]) -> bool {
        let left = used.saturating_sub(costs[usize::from(from)].memory);
        costs[usize::from(to)].memory <= self.memory.saturating_sub(left)
    }
}

/// The swarm's moves, as far as `me` can tell: of others it knows only those in `stays`, who do not move.
pub fn moves_seen_by(me: Own<'_>, serving: &Serving, costs: &[Cost], stays: &BTreeSet<PeerId>) -> Vec<(PeerId, Move)> {
    let used = me.used(serving, costs);
    moves(serving, costs, &|peer, from, to| {
        if peer == me.me { me.free.contains(&from) && me.fits(used, from, to, costs) } else { !stays.contains(&peer) }
    })
}

/// Whether the first place in which two ascending throughputs differ is weaker in `a` than `part` of what it is in `b`.
fn is_weaker(a: &[f64], b: &[f64], part: f64) -> bool {
    let differ = |(a, b): &(&f64, &f64)| a.min(**b) < ALIKE * a.max(**b);
    a.iter().zip(b).find(differ).is_some_and(|(a, b)| *a < part * b)
}

fn ascending(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// A move that could be made, and how the stages would stand then.
struct Candidate {
    /// Ascending throughputs.
    order: Vec<f64>,
    rank: Digest,
    peer: PeerId,
    what: Move,
    /// Throughputs by stage.
    after: Vec<f64>,
}

/// Who serves what, and what each peer can do.
struct Swarm<'a> {
    serving: &'a Serving,
    costs: &'a [Cost],
    /// Operations a second of each peer, all its stages together: its speeds are those of stages that share one device.
    power: BTreeMap<PeerId, f64>,
}

impl<'a> Swarm<'a> {
    fn of(serving: &'a Serving, costs: &'a [Cost]) -> Self {
        let mut powers: BTreeMap<PeerId, Vec<f64>> = BTreeMap::new();
        for (stage, peers) in serving {
            let flops = costs.get(usize::from(*stage)).map_or(1, |cost| cost.flops.max(1)) as f64;
            for (peer, speed) in peers {
                let known = powers.entry(*peer).or_default();
                known.extend((*speed > 0.0).then_some(speed * flops));
            }
        }
        let mut all: Vec<f64> = powers.values().flatten().copied().collect();
        let credible = CREDIBLE * median(all.clone());
        all.iter_mut().for_each(|power| *power = power.min(credible));
        let typical = mean(&all).unwrap_or(1.0);
        let of_peer = |known: Vec<f64>| {
            let known: Vec<f64> = known.into_iter().map(|power| power.min(credible)).collect();
            alike(mean(&known).unwrap_or(typical))
        };
        let power = powers.into_iter().map(|(peer, known)| (peer, of_peer(known))).collect();
        Swarm { serving, costs, power }
    }

    /// Micro-batches a second of so many operations a second at a stage.
    fn speed(&self, power: f64, stage: Stage) -> f64 {
        power / self.costs[usize::from(stage)].flops.max(1) as f64
    }

    /// Whether any placement could lift the weakest stage by the hysteresis: if all power were spread over the stages by their
    /// costs, each would have the same throughput. This spares nearly all swarms the search for moves.
    fn could_gain(&self, throughput: &[f64]) -> bool {
        let power: f64 = self.power.values().sum();
        let flops: f64 = self.costs.iter().map(|cost| cost.flops.max(1) as f64).sum();
        let weakest = throughput.iter().copied().fold(f64::INFINITY, f64::min);
        weakest < GAIN * power / flops.max(1.0)
    }

    /// The move after which the ascending throughputs are largest, and the throughputs then. Nothing if none is better than
    /// staying.
    fn best_move(
        &self,
        serving: &Serving,
        throughput: &[f64],
        may: &dyn Fn(PeerId, Stage, Stage) -> bool,
    ) -> Option<(PeerId, Move, Vec<f64>)> {
        // A peer helps most at the weakest stage that it can go to.
        let mut by_need: Vec<Stage> = (0..self.costs.len() as Stage).collect();
        by_need.sort_by(|a, b| throughput[usize::from(*a)].total_cmp(&throughput[usize::from(*b)]));
        let serves = |stage: Stage, peer: PeerId| serving.get(&stage).is_some_and(|peers| peers.contains_key(&peer));
        let mut best: Option<Candidate> = None;
        for (&from, peers) in serving.iter().filter(|(_, peers)| peers.len() > 1) {
            for &peer in peers.keys() {
                let can = |to: &Stage| !serves(*to, peer) && may(peer, from, *to);
                let Some(to) = by_need.iter().copied().find(can) else { continue };
                let power = self.power.get(&peer).copied().unwrap_or(0.0) / self.served(serving, peer);
                let mut after = throughput.to_vec();
                after[usize::from(from)] -= self.speed(power, from);
                after[usize::from(to)] += self.speed(power, to);
                let order = ascending(&after);
                let is_better = |best: &[f64], rank: Digest| {
                    is_weaker(best, &order, ALIKE) || (!is_weaker(&order, best, ALIKE) && taste(peer, to) < rank)
                };
                if best.as_ref().is_none_or(|best| is_better(&best.order, best.rank)) {
                    let is_empty = serving.get(&to).is_none_or(BTreeMap::is_empty);
                    let what = Move { from, to, is_empty };
                    best = Some(Candidate { order, rank: taste(peer, to), peer, what, after });
                }
            }
        }
        let Candidate { order, peer, what, after, .. } = best?;
        is_weaker(&ascending(throughput), &order, ALIKE).then_some((peer, what, after))
    }

    fn served(&self, serving: &Serving, peer: PeerId) -> f64 {
        serving.values().filter(|peers| peers.contains_key(&peer)).count().max(1) as f64
    }

    fn throughputs(&self) -> Vec<f64> {
        let served = |peer: &PeerId| self.serving.values().filter(|peers| peers.contains_key(peer)).count().max(1);
        let of_stage = |stage: Stage| {
            let replicas = self.serving.get(&stage).into_iter().flat_map(BTreeMap::keys);
            let powers = replicas.map(|peer| self.power.get(peer).copied().unwrap_or(0.0) / served(peer) as f64);
            self.speed(powers.sum(), stage)
        };
        (0..self.costs.len() as Stage).map(of_stage).collect()
    }
}

/// To the nearest quarter of an octave: peers measure each other a little differently, and are to come to the same list.
fn alike(power: f64) -> f64 {
    if power > 0.0 { libm::exp2(libm::round(libm::log2(power) * 4.0) / 4.0) } else { power }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: PeerId = PeerId([9; 32]);

    fn costs<const N: usize>(memory: [u64; N]) -> Vec<Cost> {
        memory.into_iter().map(|memory| Cost { memory, flops: 1 }).collect()
    }

    fn serving(of: &[&[u8]]) -> Serving {
        let replicas = |peers: &[u8]| peers.iter().map(|p| (PeerId([*p; 32]), 10.0)).collect();
        of.iter().enumerate().map(|(stage, peers)| (stage as Stage, replicas(peers))).collect()
    }

    /// The move of `me` if nobody else can move.
    fn move_for(me: PeerId, serving: &Serving, free: &BTreeSet<Stage>, costs: &[Cost], memory: u64) -> Option<Move> {
        let others = serving.values().flat_map(BTreeMap::keys).copied().filter(|peer| *peer != me).collect();
        moves_seen_by(Own { me, free, memory }, serving, costs, &others).first().map(|(_, what)| *what)
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
            let list = moves(&swarm, &equal, &|_, _, _| true);
            let after = do_moves(&swarm, &list);
            assert_eq!(counts(&after), [6; 4], "{before:?}");
            let movers: BTreeSet<PeerId> = list.iter().map(|(peer, _)| *peer).collect();
            assert_eq!(movers.len(), list.len(), "{before:?}: somebody moves twice");
            assert_eq!(moves(&after, &equal, &|_, _, _| true), [], "{before:?}");
        }
    }

    #[test]
    fn one_move_that_helps_little_is_made_when_two_together_help() {
        // Four of six and then five: neither alone lifts the weakest by enough to be worth two moves later.
        assert_eq!(moves(&crowd(&[4, 6, 7, 7]), &costs([1; 4]), &|_, _, _| true).len(), 2);
        assert_eq!(moves(&crowd(&[19, 20, 20, 21]), &costs([1; 4]), &|_, _, _| true), [], "a twentieth");
    }

    #[test]
    fn who_can_not_move_is_passed_over() {
        let swarm = crowd(&[3, 1]);
        let first = moves(&swarm, &costs([1; 2]), &|_, _, _| true);
        assert_eq!(first.len(), 1);
        let stays = BTreeSet::from([first[0].0]);
        let second = moves(&swarm, &costs([1; 2]), &|peer, _, _| !stays.contains(&peer));
        assert!(second.len() == 1 && second[0].0 != first[0].0, "{second:?}");
        assert_eq!(moves(&crowd(&[1, 0]), &costs([1; 2]), &|_, _, _| true), [], "the last replica stays");
    }

    #[test]
    fn the_first_peer_of_a_run_takes_every_stage_that_fits() {
        let taken = |memory| {
            let stages = stages_for(ME, &Serving::new(), &BTreeSet::new(), &costs([1; 3]), memory);
            (stages.len(), stages.into_iter().collect::<BTreeSet<_>>().len())
        };
        assert_eq!((taken(3), taken(2)), ((3, 3), (2, 2)));
    }

    #[test]
    fn a_crowd_that_comes_at_once_spreads() {
        let first = |peer: u8| stages_for(PeerId([peer; 32]), &Serving::new(), &BTreeSet::new(), &costs([1; 3]), 1)[0];
        let counts = (0..60).fold([0; 3], |mut counts, peer| {
            counts[usize::from(first(peer))] += 1;
            counts
        });
        assert!(counts.iter().all(|count| (10..=30).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_joiner_mends_the_weakest_stage_first() {
        let swarm = serving(&[&[1, 2], &[3], &[4, 5]]);
        assert_eq!(stages_for(ME, &swarm, &BTreeSet::new(), &costs([1; 3]), 9), vec![1]);
    }

    #[test]
    fn the_second_of_two_equal_peers_takes_half() {
        let swarm = serving(&[&[1], &[1], &[1]]);
        assert_eq!(stages_for(ME, &swarm, &BTreeSet::new(), &costs([1; 3]), 9).len(), 2);
    }

    #[test]
    fn a_stage_that_does_not_fit_is_left_to_others() {
        let swarm = serving(&[&[1, 2], &[3], &[4, 5]]);
        assert_eq!(
            stages_for(ME, &swarm, &BTreeSet::new(), &costs([1, 99, 1]), 9).iter().filter(|s| **s != 1).count(),
            1
        );
        assert!(stages_for(ME, &swarm, &BTreeSet::new(), &costs([99; 3]), 9).is_empty());
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
    fn a_boast_does_not_make_a_stage_look_served() {
        let mut swarm = serving(&[&[1], &[2, 3]]);
        let joins = |swarm: &Serving| stages_for(ME, swarm, &BTreeSet::new(), &costs([1; 2]), 1);
        assert_eq!(joins(&swarm), vec![0]);
        swarm.insert(0, BTreeMap::from([(PeerId([1; 32]), 1e12)]));
        swarm.insert(1, (2..16u8).map(|peer| (PeerId([peer; 32]), 10.0)).collect());
        assert_eq!(joins(&swarm), vec![0], "fourteen honest peers against one that boasts");
    }

    #[test]
    fn an_empty_stage_is_taken_by_who_has_room_and_nothing_moves_over_noise() {
        let mut swarm = serving(&[&[9], &[3], &[]]);
        let mine = BTreeSet::from([0]);
        assert_eq!(stages_for(ME, &swarm, &mine, &costs([1; 3]), 9), vec![2]);
        swarm = serving(&[&[9], &[3], &[4]]);
        assert!(stages_for(ME, &swarm, &mine, &costs([1; 3]), 9).is_empty());
    }
}
