//! Adapters beside frozen weights: these come from whoever has them, each peer's own or by their hash; only adapters are trained,
//! averaged, saved and given to those who join.

use std::collections::BTreeMap;

use skein_pipeline::{
    flow::held_out::HeldOut,
    model::{StageModel, cost, frozen, init},
};
use skein_protocol::{
    Manifest, PeerId,
    event::Event,
    hash::{self, Digest},
    run::{BasePrecision, Lora, Method, Weights},
};
use skein_simulations::{
    Fault, Plan, Role, Setup, Simulation, Small,
    checker::Line,
    worker::learning::Learning,
    world::{Corpus, Payload},
};

use crate::common::{assert_sound, seconds};

/// A run of adapters beside weights that are drawn, and the bytes of these.
fn beside_frozen(stages: u16) -> (Manifest, Vec<(Digest, Payload)>) {
    let mut manifest = Small { hidden: 32, ..Small::tiny(stages) }.manifest();
    manifest.train.method = Method::Lora;
    let targets = ["q", "v", "gate", "up", "down"].map(str::to_string).to_vec();
    manifest.train.lora = Some(Lora { rank: 4, alpha: 8, targets, dropout_percent: 0, base: BasePrecision::Int8 });
    let mut shelf = Vec::new();
    for stage in 0..stages {
        let model = StageModel::of(&manifest, stage).unwrap();
        let beside = model.frozen().expect("adapters stand beside something");
        let bytes = frozen::encode(beside, &init::initial(beside, 9), BasePrecision::Int8).unwrap();
        shelf.push((hash::blob(&[&bytes]), Payload::Real(bytes.into())));
    }
    let hashes = shelf.iter().map(|(blob, _)| *blob).collect();
    manifest.model.weights = Weights::Blob { blob: Digest([5; 32]), sources: vec![], stages: hashes };
    (manifest, shelf)
}

/// An owner that serves everything, and friends that join a second apart, the first of which is killed and comes back.
fn four_peers(seed: u64) -> Simulation {
    let (manifest, shelf) = beside_frozen(3);
    let friend = |n: u64| Plan::new(Role::joiner()).starts(seconds(n));
    let owner = Plan { bootstrap: vec![], ..Plan::new(Role::alone(3)) };
    let setup = Setup {
        corpus: Corpus::Cycle { period: 11 },
        make_worker: Learning::make(),
        shelf,
        held_out: HeldOut { every: 6 },
        ..Setup::new(seed, manifest, vec![owner, friend(1), friend(2), friend(3)])
    };
    let mut sim = Simulation::new(setup);
    sim.at(seconds(12), Fault::Kill(1));
    sim.at(seconds(20), Fault::Start(1));
    sim
}

fn losses(sim: &Simulation) -> Vec<f64> {
    let of = |line: &Line| match &line.record.event {
        Event::Completed { loss, .. } => Some(f64::from(*loss)),
        _ => None,
    };
    sim.lines().iter().filter_map(of).collect()
}

#[test]
fn friends_get_the_frozen_weights_train_adapters_and_lose_none_of_them_in_a_kill() {
    let mut sim = four_peers(3);
    sim.run_for(seconds(40));
    let summary = assert_sound(&sim, "adapters");
    let mut shelved: BTreeMap<PeerId, u64> = BTreeMap::new();
    for line in sim.lines() {
        if let Event::Shelved { bytes, .. } = line.record.event {
            *shelved.entry(line.record.peer).or_default() += bytes;
        }
    }
    assert_eq!(shelved.len(), 3, "each friend fetched what stands beside its adapters: {shelved:?}");
    let whole: u64 = (0..3).map(|stage| frozen::bytes_max(cost::frozen_bytes(sim.manifest(), stage))).sum();
    assert!(
        shelved.values().all(|bytes| *bytes <= whole),
        "none fetched a stage twice, the killed one either: {shelved:?}"
    );
    let losses = losses(&sim);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&losses[..20]), mean(&losses[losses.len() - 20..]));
    assert!(last < first - 0.5, "adapters learn: {first} to {last} over {}", summary.completed);
    // A state that travels is one of adapters: far smaller than the weights beside them.
    let states = sim.lines().iter().filter_map(|line| match line.record.event {
        Event::Fetched { bytes, .. } => Some(bytes),
        _ => None,
    });
    let most = states.max().expect("friends fetched states");
    let adapters = (0..3).map(|stage| cost::state_bytes_max(sim.manifest(), stage)).max().unwrap();
    assert!(most <= adapters, "{most} bytes of {adapters}");
}

#[test]
fn the_same_seed_learns_the_same_adapters() {
    let of = |seed| {
        let mut sim = four_peers(seed);
        sim.run_for(seconds(15));
        (losses(&sim), sim.params(0, 0).map(<[f32]>::to_vec))
    };
    assert!(of(4) == of(4));
}
