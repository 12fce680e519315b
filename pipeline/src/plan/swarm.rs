//! Who serves what, and what each peer can do, in numbers that plans are made of.
//!
//! In: what peers say they serve, and how fast. Out: throughputs of the stages, and an order in which one state of the swarm is
//! better than another: ascending throughputs are compared (the lexicographic rule of Petals' block choice), so that the weakest
//! stage counts first.

use std::collections::BTreeMap;

use skein_protocol::{
    PeerId, Stage,
    hash::{mix, scatter},
};

/// Throughputs nearer to each other than this are equal: they are sums in another order.
pub const ALIKE: f64 = 1.0 - 1e-9;

/// A claimed speed counts for at most so many times the median of all claims: one peer that boasts does not make its stage look
/// served.
const CREDIBLE: f64 = 8.0;

/// Who serves, or is about to: stage -> replica -> micro-batches a second (0 = unknown).
pub type Serving = BTreeMap<Stage, BTreeMap<PeerId, f64>>;

/// The same in one list.
pub type Row = (PeerId, Stage, f64);

pub fn rows(serving: &Serving) -> Vec<Row> {
    let of_stage = |(stage, peers): (&Stage, &BTreeMap<PeerId, f64>)| {
        let stage = *stage;
        peers.iter().map(move |(peer, speed)| (*peer, stage, *speed)).collect::<Vec<_>>()
    };
    serving.iter().flat_map(of_stage).collect()
}

/// What a stage takes of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of memory.
    pub memory: u64,
    /// Operations of forward and backward of one micro-batch.
    pub flops: u64,
}

/// A peer by its place among the names of all.
pub type Place = usize;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Swarm {
    /// Operations that each stage takes.
    flops: Vec<f64>,
    /// All who serve something, ascending.
    pub peers: Vec<PeerId>,
    /// Operations a second of each peer, all its stages together: its speeds are those of stages that share one device.
    pub power: Vec<f64>,
    /// Stages of one peer after the other, those of each ascending, and where each peer's end.
    stages: Vec<Stage>,
    ends: Vec<u32>,
    /// By stage: how many serve it.
    pub replicas: Vec<usize>,
}

impl Swarm {
    pub fn of(mut rows: Vec<Row>, costs: &[Cost]) -> Self {
        let flops: Vec<f64> = costs.iter().map(|cost| cost.flops.max(1) as f64).collect();
        rows.retain(|(_, stage, _)| usize::from(*stage) < flops.len());
        let name = |row: &Row| (row.0, row.1);
        if !rows.is_sorted_by_key(name) {
            rows.sort_unstable_by_key(name);
        }
        // Nobody counts twice by saying it twice.
        rows.dedup_by_key(|row| name(row));
        let (mut replicas, mut all) = (vec![0; flops.len()], Vec::with_capacity(rows.len()));
        for (_, stage, speed) in &mut rows {
            replicas[usize::from(*stage)] += 1;
            *speed *= flops[usize::from(*stage)];
            all.extend((*speed > 0.0).then_some(*speed));
        }
        let credible = CREDIBLE * median(all.clone());
        all.iter_mut().for_each(|power| *power = power.min(credible));
        let typical = mean(all.into_iter()).unwrap_or(1.0);
        let mut swarm = Swarm {
            flops,
            replicas,
            peers: Vec::with_capacity(rows.len()),
            power: Vec::with_capacity(rows.len()),
            stages: Vec::with_capacity(rows.len()),
            ends: Vec::with_capacity(rows.len()),
        };
        for of_peer in rows.chunk_by(|a, b| a.0 == b.0) {
            let known = of_peer.iter().map(|(.., power)| *power).filter(|power| *power > 0.0);
            swarm.peers.push(of_peer[0].0);
            swarm.power.push(alike(mean(known.map(|power| power.min(credible))).unwrap_or(typical)));
            swarm.stages.extend(of_peer.iter().map(|(_, stage, _)| *stage));
            swarm.ends.push(swarm.stages.len() as u32);
        }
        swarm
    }

    /// Micro-batches a second of so many operations a second at a stage.
    pub fn speed(&self, power: f64, stage: Stage) -> f64 {
        power / self.flops[usize::from(stage)]
    }

    /// What a peer has for each of its stages, operations a second.
    pub fn share(&self, peer: Place) -> f64 {
        self.power[peer] / self.served(peer).len().max(1) as f64
    }

    /// Stages of a peer, ascending.
    pub fn served(&self, peer: Place) -> &[Stage] {
        let begin = peer.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.stages[begin as usize..self.ends[peer] as usize]
    }

    /// How many serve a stage.
    pub fn count(&self, stage: Stage) -> usize {
        self.replicas.get(usize::from(stage)).copied().unwrap_or(0)
    }

    /// What a peer serves, ascending.
    pub fn stages_of(&self, peer: PeerId) -> &[Stage] {
        self.peers.binary_search(&peer).map_or(&[], |place| self.served(place))
    }

    /// Two hashes that tell it from others: who serves which stages, and that with what power.
    pub fn marks(&self) -> (u64, u64) {
        let step = |mark: u64, number: u64| mix(mark.wrapping_add(1).rotate_left(32) ^ number);
        let peers = self.peers.iter().fold(0, |mark, peer| scatter(&peer.0, mark));
        let stages = self.stages.iter().map(|stage| u64::from(*stage)).fold(peers, step);
        let placed = self.ends.iter().map(|end| u64::from(*end)).fold(stages, step);
        (placed, self.power.iter().map(|power| power.to_bits()).fold(placed, step))
    }

    /// Operations of a micro-batch through all stages, and operations a second of all peers.
    pub fn totals(&self) -> (f64, f64) {
        (self.flops.iter().sum(), self.power.iter().sum())
    }

    /// By stage, micro-batches a second.
    pub fn throughputs(&self) -> Vec<f64> {
        let mut power = vec![0.0; self.flops.len()];
        for peer in 0..self.peers.len() {
            self.served(peer).iter().for_each(|stage| power[usize::from(*stage)] += self.share(peer));
        }
        power.iter().zip(&self.flops).map(|(power, flops)| power / flops).collect()
    }
}

/// Whether the first place in which two ascending throughputs differ is weaker in `a` than `part` of what it is in `b`.
pub fn is_weaker(a: &[f64], b: &[f64], part: f64) -> bool {
    let differ = |(a, b): &(&f64, &f64)| a.min(**b) < ALIKE * a.max(**b);
    a.iter().zip(b).find(differ).is_some_and(|(a, b)| *a < part * b)
}

pub fn ascending(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// To the nearest quarter of an octave: peers measure each other a little differently, and are to come to the same list.
fn alike(power: f64) -> f64 {
    if power > 0.0 { libm::exp2(libm::round(libm::log2(power) * 4.0) / 4.0) } else { power }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}

fn median(mut values: Vec<f64>) -> f64 {
    let middle = values.len() / 2;
    if values.is_empty() { 0.0 } else { *values.select_nth_unstable_by(middle, f64::total_cmp).1 }
}

/// Swarms for the tests of what is planned for them.
#[cfg(test)]
pub mod made_up {
    use super::*;

    pub const ME: PeerId = PeerId([9; 32]);

    pub fn costs<const N: usize>(memory: [u64; N]) -> Vec<Cost> {
        memory.into_iter().map(|memory| Cost { memory, flops: 1 }).collect()
    }

    pub fn serving(of: &[&[u8]]) -> Serving {
        let replicas = |peers: &[u8]| peers.iter().map(|p| (PeerId([*p; 32]), 10.0)).collect();
        of.iter().enumerate().map(|(stage, peers)| (stage as Stage, replicas(peers))).collect()
    }

    pub fn see(serving: &Serving, costs: &[Cost]) -> Swarm {
        Swarm::of(rows(serving), costs)
    }
}
