//! Which weights a backward uses, what is kept and for how long, and states that travel.

use skein_pipeline::exact::{Engine, Exact, StageInput};
use skein_protocol::run::{OptimizerKind, Recompute};

use crate::support::{batch, bits, config, exact, plain, settings, stage, train, whole};

/// A middle stage that learns from a gradient of ones.
fn middle() -> (Exact, Vec<f32>, Vec<f32>) {
    let engine = exact(stage(&config(), 1, 1), settings(6, 2, OptimizerKind::Adamw));
    let x = (0..12 * 16).map(|i| ((i * 31) % 17) as f32 / 10.0 - 0.8).collect();
    let g = (0..12 * 16).map(|i| ((i * 13) % 19) as f32 / 100.0 - 0.1).collect();
    (engine, x, g)
}

fn learn(engine: &mut Exact, key: u64, x: &[f32], g: &[f32]) {
    engine.forward(key, StageInput::Hidden(x)).unwrap();
    engine.backward(key, g, 1.0, false).unwrap();
    engine.drop_kept(key);
    engine.step(0.05).unwrap();
}

#[test]
fn a_backward_uses_the_weights_of_its_forward_for_one_step_and_todays_after_two() {
    let (mut engine, x, g) = middle();
    let fresh = |engine: &Exact| {
        let mut other = exact(stage(&config(), 1, 1), settings(6, 2, OptimizerKind::Adamw));
        other.load(engine.state().unwrap()).unwrap();
        other.forward(0, StageInput::Hidden(&x)).unwrap();
        other.backward(0, &g, 0.0, false).unwrap()
    };
    let at_forward = fresh(&engine);
    for key in [1, 2, 3] {
        engine.forward(key, StageInput::Hidden(&x)).unwrap();
    }
    learn(&mut engine, 9, &x, &g);
    let after_one = fresh(&engine);
    assert_ne!(after_one, at_forward);
    assert_eq!(engine.backward(1, &g, 0.0, false).unwrap(), at_forward);
    assert_eq!(engine.backward(2, &g, 0.0, true).unwrap(), after_one, "recomputed on demand");
    // An adoption is a new version as a step is.
    let moved: Vec<f32> = engine.params().iter().map(|p| p * 0.9).collect();
    engine.set_params(moved).unwrap();
    let after_two = fresh(&engine);
    assert_eq!(engine.backward(3, &g, 0.0, false).unwrap(), after_two);
    // The input stays until it is dropped, so the same question has an answer again.
    assert_eq!(engine.backward(3, &g, 0.0, false).unwrap(), after_two);
    assert_eq!(engine.kept(), [1, 2, 3]);
    engine.drop_kept(3);
    assert!(engine.backward(3, &g, 0.0, false).is_err());
}

#[test]
fn keeping_only_inputs_gives_the_same_bits() {
    let config = config();
    let run = |recompute, kept_bytes_max| {
        let mut settings = settings(6, 2, OptimizerKind::Adamw);
        (settings.recompute, settings.kept_bytes_max) = (recompute, kept_bytes_max);
        let mut engine = whole(&config, settings);
        for step in 0..3 {
            train(&mut engine, 0, &batch(&config, 12, step), 1.0);
            engine.step(0.01).unwrap();
        }
        bits(engine.params())
    };
    let kept = run(Recompute::WhenNeeded, u64::MAX);
    assert_eq!(kept, run(Recompute::Always, u64::MAX));
    assert_eq!(kept, run(Recompute::WhenNeeded, 100));
}

#[test]
fn a_state_goes_on_where_it_was_taken() {
    for kind in [OptimizerKind::Adamw, OptimizerKind::Nadamw, OptimizerKind::Sgd] {
        let config = config();
        let mut engine = whole(&config, settings(6, 2, kind));
        let learn = |engine: &mut Exact, from: u32| {
            for step in from..from + 3 {
                train(engine, 0, &batch(&config, 12, step), 1.0);
                engine.step(0.01).unwrap();
            }
        };
        learn(&mut engine, 0);
        let state = engine.state().unwrap();
        learn(&mut engine, 3);
        let mut other = whole(&config, settings(6, 2, kind));
        train(&mut other, 0, &batch(&config, 12, 9), 1.0);
        other.load(state).unwrap();
        assert_eq!(other.sum_weight(), 0.0, "an open sum does not survive");
        learn(&mut other, 3);
        assert_eq!(bits(engine.params()), bits(other.params()));
        assert_eq!(engine.state().unwrap(), other.state().unwrap());
    }
}

#[test]
fn a_dropped_sum_leaves_nothing() {
    let config = config();
    let mut engine = whole(&config, plain(6, 1));
    train(&mut engine, 0, &batch(&config, 6, 1), 1.0);
    engine.drop_sum();
    train(&mut engine, 0, &batch(&config, 6, 2), 1.0);
    engine.step(0.0).unwrap();
    let mut other = whole(&config, plain(6, 1));
    train(&mut other, 0, &batch(&config, 6, 2), 1.0);
    other.step(0.0).unwrap();
    assert_eq!(engine.state().unwrap().m, other.state().unwrap().m);
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let config = config();
    let mut engine = whole(&config, settings(6, 1, OptimizerKind::Adamw));
    let good = engine.state().unwrap();
    for spoil in [0, 1, 2] {
        let mut state = good.clone();
        match spoil {
            0 => _ = state.params.pop(),
            1 => state.v = Vec::new(),
            _ => state.m[5] = f32::NAN,
        }
        assert!(engine.load(state).is_err());
    }
    assert_eq!(engine.state().unwrap(), good);
}
