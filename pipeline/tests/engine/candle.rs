//! Two engines that share no arithmetic: the one by hand and the one on candle's autograd.

use candle_core::Device;
use skein_pipeline::{
    compute::candle::Candle,
    exact::{Engine, EngineError, Exact, IGNORE, StageInput},
    model::{StageModel, init},
};
use skein_protocol::run::{ModelConfig, OptimizerKind};

use crate::support::{SEED, batch, config, plain, settings, stage, train};

fn both(model: &StageModel, settings: &skein_pipeline::exact::Settings) -> [Box<dyn Engine>; 2] {
    let params = init::initial(model, SEED);
    let candle = Candle::new(model.clone(), settings.clone(), params.clone(), &Device::Cpu).unwrap();
    let hand = Exact::new(model.clone(), settings.clone(), params).unwrap();
    [Box::new(hand), Box::new(candle)]
}

/// Largest difference, against the largest value.
fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn losses_and_weights_agree_over_six_steps() {
    for config in [config(), ModelConfig { tie_embeddings: true, kv_heads: 4, ..config() }] {
        let model = StageModel::whole(config.clone()).unwrap();
        // SGD: a step shows the gradient's size, which Adam would hide.
        let [mut hand, mut candle] = both(&model, &settings(32, 3, OptimizerKind::Sgd));
        for step in 0..6 {
            let batch = batch(&config, 96, step);
            let (a, b) = (train(&mut *hand, 0, &batch, 1.0), train(&mut *candle, 0, &batch, 1.0));
            assert!((a - b).abs() < 1e-4 * a, "step {step}: {a} {b}");
            let (a, b) = (hand.step(0.5).unwrap(), candle.step(0.5).unwrap());
            for (a, b) in a.norms.iter().zip(&b.norms) {
                assert!((a - b).abs() < 1e-4 * a, "step {step}: {a} {b}");
            }
        }
        for param in model.params() {
            let far = far(&hand.params()[param.range()], &candle.params()[param.range()]);
            assert!(far < 1e-4, "{}: {far}", param.name);
        }
    }
}

#[test]
fn a_middle_stage_passes_on_the_same_activations_and_gradients() {
    let model = stage(&config(), 1, 1);
    let [mut hand, mut candle] = both(&model, &plain(16, 2));
    let x: Vec<f32> = (0..32 * 16).map(|i| ((i * 31) % 17) as f32 / 10.0 - 0.8).collect();
    let g: Vec<f32> = (0..32 * 16).map(|i| ((i * 13) % 19) as f32 / 100.0 - 0.1).collect();
    let forward = |e: &mut Box<dyn Engine>| e.forward(3, StageInput::Hidden(&x)).unwrap();
    assert!(far(&forward(&mut hand), &forward(&mut candle)) < 1e-5);
    for recompute in [false, true] {
        let back = |e: &mut Box<dyn Engine>| e.backward(3, &g, 0.5, recompute).unwrap();
        assert!(far(&back(&mut hand), &back(&mut candle)) < 1e-5);
    }
    for engine in [&mut hand, &mut candle] {
        assert_eq!(engine.step(0.0).unwrap().weight, 1.0);
    }
    let (a, b) = (hand.state(), candle.state());
    for param in model.params() {
        let far = far(&a.m[param.range()], &b.m[param.range()]);
        assert!(far < 1e-4, "gradient of {}: {far}", param.name);
    }
}

#[test]
fn ignored_targets_and_generation_agree() {
    let config = config();
    let model = StageModel::whole(config.clone()).unwrap();
    let [mut hand, mut candle] = both(&model, &plain(16, 1));
    let (tokens, mut targets) = batch(&config, 16, 4);
    targets[3..9].fill(IGNORE);
    let lost = |e: &mut Box<dyn Engine>| {
        e.forward(0, StageInput::Tokens(&tokens)).unwrap();
        e.loss_backward(0, &targets, 1.0).unwrap()
    };
    let (a, b) = (lost(&mut hand), lost(&mut candle));
    assert!(a.tokens == 10 && b.tokens == 10 && (a.loss - b.loss).abs() < 1e-4);
    for (position, end) in [(0, 7), (7, 8), (8, 9), (5, 11)] {
        let say = |e: &mut Box<dyn Engine>| e.infer(1, position, StageInput::Tokens(&tokens[position..end])).unwrap();
        assert!(far(&say(&mut hand), &say(&mut candle)) < 1e-4, "{position}");
    }
}

#[test]
fn a_kept_graph_uses_the_weights_of_its_forward() {
    let config = config();
    let model = stage(&config, 0, 2);
    let [_, mut candle] = both(&model, &plain(8, 1));
    let (tokens, _) = batch(&config, 8, 1);
    let g = vec![0.01; 8 * 16];
    let gradient = |e: &mut Box<dyn Engine>, key| {
        e.backward(key, &g, 1.0, false).unwrap();
        e.step(0.0).unwrap();
        e.state().m
    };
    for key in 1..4 {
        candle.forward(key, StageInput::Tokens(&tokens)).unwrap();
    }
    let first = gradient(&mut candle, 1);
    // The step was of rate 0, but it made a version: the second is held, and after the next the third is not.
    let moved: Vec<f32> = candle.params().iter().map(|p| p * 1.1).collect();
    candle.forward(5, StageInput::Tokens(&tokens)).unwrap();
    candle.set_params(moved.clone()).unwrap();
    assert_eq!(gradient(&mut candle, 5), first);
    assert_ne!(gradient(&mut candle, 3), first);
    assert_eq!(candle.backward(9, &g, 1.0, false), Err(EngineError::NotKept(9)));
}
