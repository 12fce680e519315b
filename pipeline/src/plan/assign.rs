//! Chooses the stages that a peer serves. In: who serves what and how fast, what fits. Out: stages to take, most needed first.
//!
//! A joiner takes the stage with the least throughput, and another while its share of the work is not full: of S stages its
//! share is S times its part of the swarm's capacity, rounded up.

use std::collections::BTreeSet;

use skein_protocol::{PeerId, Stage, hash::scatter};

use super::swarm::{Cost, Swarm};

/// A stage without a replica is taken over at once; a stage that is merely slower must be slower than this part of the best
/// before somebody takes it in addition: so nobody moves back and forth over noise.
pub const HYSTERESIS: f64 = 0.8;

/// Stages that `me` should take, most needed first. `memory` is what is left of mine.
pub fn stages_for(me: PeerId, swarm: &Swarm, mine: &BTreeSet<Stage>, costs: &[Cost], memory: u64) -> Vec<Stage> {
    let others = || swarm.peers.iter().zip(&swarm.power).filter(|(peer, _)| **peer != me).map(|(_, power)| *power);
    let (count, sum) = (others().count(), others().sum::<f64>());
    let mean = if count == 0 { 1.0 } else { sum / count as f64 };
    let my_power = swarm.peers.binary_search(&me).map_or(mean, |at| swarm.power[at]);
    let total = sum + my_power;
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
pub(super) fn taste(me: PeerId, stage: Stage) -> u64 {
    scatter(&me.0, stage.into())
}

#[cfg(test)]
mod tests {
    use super::{
        super::swarm::{
            Serving,
            made_up::{ME, costs, see, serving},
        },
        *,
    };
    use std::collections::BTreeMap;

    fn stages_for(me: PeerId, serving: &Serving, mine: &BTreeSet<Stage>, costs: &[Cost], memory: u64) -> Vec<Stage> {
        super::stages_for(me, &see(serving, costs), mine, costs, memory)
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
