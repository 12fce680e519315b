//! Chooses the stages that a peer serves. In: who serves what and how fast, what fits. Out: stages to take, most needed first.
//!
//! A joiner takes the stage with the least throughput, and another while its share of the work is not full: of S stages its
//! share is S times its part of the swarm's capacity, rounded up. Throughputs are compared in ascending order (the
//! lexicographic rule of Petals' block choice), so the weakest stage is always mended first.

use std::collections::{BTreeMap, BTreeSet};

use skein_protocol::{
    PeerId, Stage,
    hash::{Digest, keyed},
};

/// A stage without a replica is taken over at once; a stage that is merely slower must be slower than this part of the best
/// before somebody takes it in addition: so nobody moves back and forth over noise.
const HYSTERESIS: f64 = 0.8;

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

/// The best move of `me` away from one of the stages `free` that somebody else serves too. `memory` is all of mine. Nothing
/// unless the weakest stage that it changes gains by more than the hysteresis.
pub fn move_for(me: PeerId, serving: &Serving, free: &BTreeSet<Stage>, costs: &[Cost], memory: u64) -> Option<Move> {
    let stages = costs.len() as Stage;
    let is_mine = |stage: &Stage| serving.get(stage).is_some_and(|peers| peers.contains_key(&me));
    let mine: BTreeSet<Stage> = (0..stages).filter(is_mine).collect();
    let used: u64 = mine.iter().map(|stage| costs[usize::from(*stage)].memory).sum();
    let swarm = Swarm::of(serving, costs);
    let power = swarm.power.get(&me)? / mine.len() as f64;
    let mut before = swarm.throughputs();
    let mut best: Option<(Vec<f64>, Move)> = None;
    for &from in free.iter().filter(|stage| mine.contains(stage) && serving[*stage].len() > 1) {
        let room = memory.saturating_sub(used - costs[usize::from(from)].memory);
        for to in (0..stages).filter(|to| !mine.contains(to) && costs[usize::from(*to)].memory <= room) {
            let mut after = before.clone();
            after[usize::from(from)] -= swarm.speed(power, from);
            after[usize::from(to)] += swarm.speed(power, to);
            after.sort_by(f64::total_cmp);
            if best.as_ref().is_none_or(|(best, _)| is_weaker(best, &after, 1.0)) {
                let is_empty = serving.get(&to).is_none_or(BTreeMap::is_empty);
                best = Some((after, Move { from, to, is_empty }));
            }
        }
    }
    before.sort_by(f64::total_cmp);
    best.filter(|(after, _)| is_weaker(&before, after, HYSTERESIS)).map(|(_, what)| what)
}

/// Whether the first place in which two ascending throughputs differ is weaker in `a` than `part` of what it is in `b`.
fn is_weaker(a: &[f64], b: &[f64], part: f64) -> bool {
    a.iter().zip(b).find(|(a, b)| a != b).is_some_and(|(a, b)| *a < part * b)
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
            mean(&known).unwrap_or(typical)
        };
        let power = powers.into_iter().map(|(peer, known)| (peer, of_peer(known))).collect();
        Swarm { serving, costs, power }
    }

    /// Micro-batches a second of so many operations a second at a stage.
    fn speed(&self, power: f64, stage: Stage) -> f64 {
        power / self.costs[usize::from(stage)].flops.max(1) as f64
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
