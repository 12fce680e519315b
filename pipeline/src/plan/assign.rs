//! Chooses the stages that a peer serves. In: who serves what and how fast, what fits. Out: stages to take, most needed first.
//!
//! A joiner takes the stage with the least throughput, and another while its share of the work is not full: of S stages its
//! share is S times its part of the swarm's capacity, rounded up. Throughputs are compared in ascending order (the
//! lexicographic rule of Petals' block choice), so the weakest stage is always mended first.

use std::collections::{BTreeMap, BTreeSet};

use skein_protocol::{PeerId, Stage};

/// A stage without a replica is taken over at once; a stage that is merely slower must be slower than this part of the best
/// before somebody takes it in addition: so nobody moves back and forth over noise.
const HYSTERESIS: f64 = 0.8;

/// Who serves, as the directory knows it: stage -> replica -> micro-batches a second (0 = unknown).
pub type Serving = BTreeMap<Stage, BTreeMap<PeerId, f64>>;

/// Stages that `me` should take, most needed first. `need[stage]` is the memory of a stage, `memory` what is left of mine.
pub fn stages_for(
    me: PeerId,
    stages: u16,
    serving: &Serving,
    mine: &BTreeSet<Stage>,
    need: &[u64],
    memory: u64,
) -> Vec<Stage> {
    let capacity = capacities(serving);
    let others: Vec<f64> = capacity.iter().filter(|(peer, _)| **peer != me).map(|(_, c)| *c).collect();
    let mean = if others.is_empty() { 1.0 } else { others.iter().sum::<f64>() / others.len() as f64 };
    let my_capacity = capacity.get(&me).copied().unwrap_or(mean);
    let total = others.iter().sum::<f64>() + my_capacity;
    let share = (f64::from(stages) * my_capacity / total).ceil() as usize;

    let mut throughput = throughputs(stages, serving, &capacity);
    let mut taken = Vec::new();
    let mut left = memory;
    loop {
        let have = mine.len() + taken.len();
        let candidate = (0..stages)
            .filter(|s| !mine.contains(s) && !taken.contains(s))
            .filter(|s| need.get(usize::from(*s)).is_some_and(|bytes| *bytes <= left))
            .min_by(|a, b| throughput[usize::from(*a)].total_cmp(&throughput[usize::from(*b)]).then(a.cmp(b)));
        let Some(stage) = candidate else { break };
        let empty = throughput[usize::from(stage)] <= 0.0;
        let best = throughput.iter().copied().fold(0.0, f64::max);
        let first = have == 0;
        let slower = throughput[usize::from(stage)] < HYSTERESIS * best || mine.is_empty();
        if !(empty || first || (have < share && slower)) {
            break;
        }
        left -= need[usize::from(stage)];
        throughput[usize::from(stage)] += my_capacity / (have + 1) as f64;
        taken.push(stage);
    }
    taken
}

/// What each peer could do if it served one stage only: its speeds are those of stages that share one device.
fn capacities(serving: &Serving) -> BTreeMap<PeerId, f64> {
    let mut speeds: BTreeMap<PeerId, Vec<f64>> = BTreeMap::new();
    for (peer, speed) in serving.values().flatten() {
        speeds.entry(*peer).or_default().push(*speed);
    }
    let known: Vec<f64> = speeds.values().flatten().copied().filter(|speed| *speed > 0.0).collect();
    let typical = if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
    speeds
        .into_iter()
        .map(|(peer, speeds)| {
            let known: Vec<f64> = speeds.iter().copied().filter(|speed| *speed > 0.0).collect();
            let capacity = if known.is_empty() { typical } else { known.iter().sum::<f64>() / known.len() as f64 };
            (peer, capacity)
        })
        .collect()
}

fn throughputs(stages: u16, serving: &Serving, capacity: &BTreeMap<PeerId, f64>) -> Vec<f64> {
    let served = |peer: &PeerId| serving.values().filter(|peers| peers.contains_key(peer)).count().max(1) as f64;
    (0..stages)
        .map(|stage| {
            let replicas = serving.get(&stage).into_iter().flat_map(|peers| peers.keys());
            replicas.map(|peer| capacity.get(peer).copied().unwrap_or(0.0) / served(peer)).sum()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: PeerId = PeerId([9; 32]);

    fn serving(of: &[&[u8]]) -> Serving {
        let replicas = |peers: &[u8]| peers.iter().map(|p| (PeerId([*p; 32]), 10.0)).collect();
        of.iter().enumerate().map(|(stage, peers)| (stage as Stage, replicas(peers))).collect()
    }

    #[test]
    fn the_first_peer_of_a_run_takes_every_stage_that_fits() {
        assert_eq!(stages_for(ME, 3, &Serving::new(), &BTreeSet::new(), &[1; 3], 3), vec![0, 1, 2]);
        assert_eq!(stages_for(ME, 3, &Serving::new(), &BTreeSet::new(), &[1; 3], 2), vec![0, 1]);
    }

    #[test]
    fn a_joiner_mends_the_weakest_stage_first() {
        let swarm = serving(&[&[1, 2], &[3], &[4, 5]]);
        assert_eq!(stages_for(ME, 3, &swarm, &BTreeSet::new(), &[1; 3], 9), vec![1]);
    }

    #[test]
    fn the_second_of_two_equal_peers_takes_half() {
        let swarm = serving(&[&[1], &[1], &[1]]);
        assert_eq!(stages_for(ME, 3, &swarm, &BTreeSet::new(), &[1; 3], 9), vec![0, 1]);
    }

    #[test]
    fn a_stage_that_does_not_fit_is_left_to_others() {
        let swarm = serving(&[&[1, 2], &[3], &[4, 5]]);
        assert_eq!(stages_for(ME, 3, &swarm, &BTreeSet::new(), &[1, 99, 1], 9), vec![0]);
        assert!(stages_for(ME, 3, &swarm, &BTreeSet::new(), &[99; 3], 9).is_empty());
    }

    #[test]
    fn an_empty_stage_is_taken_by_who_has_room_and_nothing_moves_over_noise() {
        let mut swarm = serving(&[&[9], &[3], &[]]);
        let mine = BTreeSet::from([0]);
        assert_eq!(stages_for(ME, 3, &swarm, &mine, &[1; 3], 9), vec![2]);
        swarm = serving(&[&[9], &[3], &[4]]);
        assert!(stages_for(ME, 3, &swarm, &mine, &[1; 3], 9).is_empty());
    }
}
