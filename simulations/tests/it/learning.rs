//! Real weights under virtual time: the same bits whatever the split, joins that do not throw the model back, poison that goes
//! nowhere.

use std::{collections::BTreeMap, time::Duration};

use skein_pipeline::{
    exact::{Engine, Exact, Settings, StageInput},
    model::StageModel,
    worker::Blobs,
};
use skein_protocol::{
    Manifest,
    event::{Event, RoundOutcome, Severity},
};
use skein_simulations::{
    Fault, Plan, Role, Setup, Simulation, Small,
    checker::Line,
    worker::{learning::Learning, modelled::Device},
    world::{Corpus, Payload, Store},
};

use crate::common::{assert_sound, seconds, swarm};

const CYCLE: Corpus = Corpus::Cycle { period: 11 };

fn learning(seed: u64, manifest: Manifest, peers: Vec<Plan>) -> Simulation {
    learning_from(CYCLE, seed, manifest, peers)
}

fn learning_from(corpus: Corpus, seed: u64, manifest: Manifest, peers: Vec<Plan>) -> Simulation {
    Simulation::new(Setup { corpus, make_worker: Learning::make(), ..Setup::new(seed, manifest, peers) })
}

/// One peer that feeds and serves everything.
fn lone(stages: u16) -> Vec<Plan> {
    vec![Plan { bootstrap: vec![], ..Plan::new(Role::alone(stages)) }]
}

// ---- the same bits -------------------------------------------------------------------------------------------------------

/// Losses by (step, index), and the weights of all stages one after the other, as bits.
type Learned = (BTreeMap<(u32, u16), u32>, Vec<u32>);

/// Trains 50 steps in lock-step; `hosts[stage]` serves that stage.
fn lock_step(corpus: Corpus, stages: u16, peers: Vec<Plan>, hosts: &[usize]) -> Learned {
    let mut manifest = Small { hidden: 32, ..Small::tiny(stages) }.lock_step().manifest();
    manifest.run.ends.steps = Some(50);
    let mut sim = learning_from(corpus, 5, manifest, peers);
    assert!(sim.run_completed(seconds(600), 200), "{:#?}", sim.summary());
    sim.run_for(seconds(5));
    let summary = assert_sound(&sim, "lock-step");
    assert_eq!((summary.completed, summary.steps), (200, 50 * u64::from(stages)));
    let losses = sim.lines().iter().filter_map(|line| match &line.record.event {
        Event::Completed { id, loss, .. } => Some(((id.step, id.index), loss.to_bits())),
        _ => None,
    });
    let weights = hosts.iter().zip(0..).flat_map(|(peer, stage)| {
        let params = sim.params(*peer, stage).expect("it serves the stage");
        params.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    });
    (losses.collect(), weights.collect())
}

#[test]
fn in_lock_step_three_peers_three_stages_and_one_stage_give_the_same_bits() {
    let whole = lock_step(CYCLE, 1, lone(1), &[0]);
    let split = lock_step(CYCLE, 3, lone(3), &[0, 0, 0]);
    let spread = lock_step(CYCLE, 3, swarm(3, 1), &[1, 2, 3]);
    let losses: Vec<f32> = whole.0.values().map(|bits| f32::from_bits(*bits)).collect();
    assert!(losses[196] < losses[0] - 0.5, "it learns: {} to {}", losses[0], losses[196]);
    assert!(whole == split, "three stages in one peer differ from one stage");
    assert!(split == spread, "three peers differ from one");
}

#[test]
fn of_packed_records_all_stages_know_where_they_begin() {
    let packed = || Corpus::Packed { period: 11, record: 5 };
    let whole = lock_step(packed(), 1, lone(1), &[0]);
    let spread = lock_step(packed(), 3, swarm(3, 1), &[1, 2, 3]);
    assert!(whole == spread, "three peers differ from one");
    let (joined, apart) = (lock_step(CYCLE, 1, lone(1), &[0]), whole);
    assert_ne!(joined.0[&(0, 0)], apart.0[&(0, 0)], "the same tokens, as one record a sequence");
}

// ---- alone, then joined --------------------------------------------------------------------------------------------------

/// Mean loss of the weights of a one-stage model over batches that are never trained on.
fn loss_of(manifest: &Manifest, params: &[f32]) -> f64 {
    let model = StageModel::of(manifest, 0).unwrap();
    let mut engine = Exact::new(model, Settings::of(manifest), params.to_vec()).unwrap();
    let words = |payload: Payload| -> Vec<u32> {
        let mut store = Store::default();
        let blob = store.insert(payload);
        let bytes = store.get(blob).expect("real data");
        bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    };
    let (mut loss, mut tokens) = (0.0, 0);
    for index in 0..16 {
        let (input, labels) = CYCLE.records(manifest, 1_000_000 + index);
        engine.forward(index, StageInput::Tokens(&words(input))).unwrap();
        let lost = engine.loss_backward(index, &words(labels), 0.0).unwrap();
        (loss, tokens) = (loss + lost.loss, tokens + lost.tokens);
    }
    loss / f64::from(tokens)
}

#[test]
fn a_joiner_after_long_solitude_does_not_throw_the_model_back() {
    const H: u32 = 5;
    let manifest = Small { round_every: H, ..Small::tiny(1) }.manifest();
    let never = seconds(1_000_000);
    // So slow that joining takes a few steps only.
    let slow = Device { flops: 2e7, ..Device::CORE };
    let host = || Plan::new(Role::host(0)).device(slow);
    let peers = vec![Plan::new(Role::feeder()), host(), host().starts(never)];
    let mut sim = learning(7, manifest, peers);
    let stepped = |line: &Line| matches!(line.record.event, Event::Stepped { own_step, .. } if own_step == 10 * H);
    assert!(sim.run_until(seconds(600), stepped).is_some());
    let manifest = sim.manifest().clone();
    sim.act(Fault::Start(2));
    let serving = |line: &Line| matches!(line.record.event, Event::Serving { version, .. } if version.own_step > 0);
    assert!(sim.run_until(seconds(60), serving).is_some());
    let joined = sim.now();
    let rounds = |sim: &Simulation| {
        let lines = sim.lines().iter().filter(|line| u128::from(line.at) > joined.as_nanos());
        lines.filter(|line| matches!(line.record.event, Event::Round { partner: Some(_), .. })).count()
    };
    // Looks so often that a round shows by itself, apart from the steps around it.
    let losses = |sim: &Simulation| [1, 2].map(|peer| loss_of(&manifest, sim.params(peer, 0).unwrap()));
    let mut before = losses(&sim);
    let (alone, mut rise) = (before[0], 0.0f64);
    let mut looks_left = 200;
    while looks_left > 0 {
        // The adoption is asked of the worker when the round ends.
        looks_left -= u32::from(rounds(&sim) >= 2);
        sim.run_for(Duration::from_millis(1));
        let now = losses(&sim);
        rise = rise.max(now[0] - before[0]).max(now[1] - before[1]);
        before = now;
        assert!(sim.now() < joined + seconds(10), "{:#?}", sim.summary());
    }
    let outcomes: Vec<RoundOutcome> = sim
        .lines()
        .iter()
        .filter_map(|line| match line.record.event {
            Event::Round { outcome, partner: Some(_), .. } => Some(outcome),
            _ => None,
        })
        .collect();
    assert!(outcomes.iter().all(|outcome| *outcome == RoundOutcome::Both), "{outcomes:?}");
    let fresh = loss_of(&manifest, &skein_pipeline::model::init::initial(&StageModel::of(&manifest, 0).unwrap(), 7));
    println!("untrained {fresh}, alone {alone}, greatest rise {rise}, after the round {before:?}");
    assert!(alone < fresh - 0.5, "it learned alone: {fresh} to {alone}");
    assert!(rise < 0.1 * (fresh - alone), "untrained {fresh}, alone {alone}, a rise of {rise}");
    assert!(before.iter().all(|loss| *loss < alone), "alone {alone}, after the round {before:?}");
    assert_sound(&sim, "joined");
}

// ---- poison --------------------------------------------------------------------------------------------------------------

/// Peer `liar` of a 3x2 swarm sends something that is not finite once: who blames whom, and which ids are voided.
fn poisoned(liar: usize) {
    let mut sim = learning(11, Small::tiny(3).manifest(), swarm(3, 2));
    assert!(sim.run_completed(seconds(60), 20));
    sim.act(Fault::Poison(liar));
    assert!(sim.run_completed(seconds(60), 60), "{:#?}", sim.summary());
    let blames: Vec<_> = sim.blames.iter().filter(|blame| blame.severity > Severity::Odd).collect();
    assert_eq!(blames.len(), 1, "{blames:?}");
    assert_eq!(blames[0].of, sim.id(liar), "{blames:?}");
    let summary = assert_sound(&sim, "poisoned");
    assert_eq!(summary.voided, 1);
    for (peer, stage) in (1..7).zip([0, 0, 1, 1, 2, 2]) {
        assert!(sim.params(peer, stage).unwrap().iter().all(|value| value.is_finite()), "weights of peer {peer}");
    }
}

#[test]
fn an_activation_that_is_not_finite_is_refused_and_its_sender_blamed() {
    poisoned(1);
    poisoned(4);
}

#[test]
fn a_gradient_that_is_not_finite_is_refused_and_its_sender_blamed() {
    poisoned(5);
}
