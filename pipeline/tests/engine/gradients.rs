//! Every gradient against finite differences of the loss, in every orientation the model has.

use std::sync::Arc;

use skein_pipeline::{
    exact::{Engine, EngineError, Exact, IGNORE, StageInput, StageWeights},
    model::{StageModel, frozen::Frozen, init},
};
use skein_protocol::run::{BasePrecision, Lora, ModelConfig, RopeScaling, Window};

use crate::support::{batch, config, plain, train, whole};

/// Mean loss of a batch at other parameters, without learning.
fn loss(engine: &mut dyn Engine, params: &[f32], batch: &(Vec<u32>, Vec<u32>)) -> f64 {
    engine.set_params(params.to_vec()).unwrap();
    train(engine, 99, batch, 0.0)
}

/// Weights of a whole model: norms away from 1, large enough that no path is nearly linear, embeddings that a small step hardly
/// turns.
fn crooked(model: &StageModel) -> Vec<f32> {
    let mut params = init::initial(model, 7);
    params[model.params()[0].range()].iter_mut().for_each(|v| *v *= 20.0);
    params.iter_mut().enumerate().for_each(|(i, v)| *v = *v * 1.7 + ((i * 37) % 11) as f32 / 40.0 - 0.12);
    params
}

fn gradients(config: &ModelConfig, sequence: usize, sequences: usize) {
    let model = StageModel::whole(config.clone()).unwrap();
    let params = crooked(&model);
    let engine = Exact::new(model, plain(sequence, sequences), params).unwrap();
    differences(config, engine, sequence, sequences);
}

/// The gradients of an engine's parameters against differences of its loss.
fn differences(config: &ModelConfig, mut engine: Exact, sequence: usize, sequences: usize) {
    let (model, params) = (engine.model().clone(), engine.params().to_vec());
    let batch = batch(config, sequence * sequences, 2);
    train(&mut engine, 0, &batch, 1.0);
    engine.step(0.0).unwrap();
    let gradient = engine.state().unwrap().m;
    assert_eq!(engine.params(), params, "a step of rate 0 moves nothing");

    for param in model.params() {
        let part = &gradient[param.range()];
        let zeros = part.iter().filter(|&&g| g == 0.0).count();
        assert_eq!(zeros, 0, "every parameter has a gradient, also {}", param.name);
        let norm = part.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let largest = (0..part.len()).max_by(|&a, &b| part[a].abs().total_cmp(&part[b].abs())).unwrap();
        let mut directions = vec![part.iter().map(|&g| (f64::from(g) / norm) as f32).collect::<Vec<_>>()];
        for at in [largest, part.len() / 3] {
            directions.push((0..part.len()).map(|i| f32::from(i == at)).collect());
        }
        for (n, direction) in directions.into_iter().enumerate() {
            let wanted: f64 = part.iter().zip(&direction).map(|(g, u)| f64::from(g * u)).sum();
            let e = 5e-4f32;
            let mut at = |sign: f32| {
                let mut moved = params.clone();
                let values = moved[param.range()].iter_mut().zip(&direction);
                values.for_each(|(p, u)| *p += sign * e * u);
                loss(&mut engine, &moved, &batch)
            };
            let got = (at(1.0) - at(-1.0)) / (2.0 * f64::from(e));
            let allowed = 1e-2 * wanted.abs() + 3e-4;
            assert!((got - wanted).abs() < allowed, "{} {n}: {wanted} by hand, {got} by difference", param.name);
        }
    }
}

#[test]
fn every_gradient_is_that_of_the_loss() {
    gradients(&config(), 23, 2);
}

#[test]
fn gradients_hold_over_more_than_one_block_of_queries() {
    gradients(&ModelConfig { layers: 1, ..config() }, 70, 1);
}

#[test]
fn a_tied_matrix_receives_both_gradients() {
    gradients(&ModelConfig { layers: 1, tie_embeddings: true, ..config() }, 20, 2);
}

#[test]
fn heads_without_groups_and_odd_widths_have_right_gradients() {
    gradients(&ModelConfig { layers: 1, hidden: 18, heads: 3, kv_heads: 3, ffn: 7, vocab: 5, ..config() }, 9, 3);
}

/// What only some families have: windows, biases, normalised heads of a width of their own, stretched positions.
#[test]
fn what_only_some_families_have_has_right_gradients() {
    let window = |size, from| Some(Window { size, from });
    let biased = ModelConfig { layers: 2, qkv_bias: true, window: window(5, 1), ..config() };
    gradients(&biased, 19, 2);
    let rope_scaling = Some(RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 16 });
    gradients(&ModelConfig { layers: 1, head: Some(6), qk_norm: true, rope_scaling, ..config() }, 20, 2);
    // A window that begins inside a block of queries, and one that ends before it.
    gradients(&ModelConfig { layers: 1, window: window(30, 0), ..config() }, 70, 1);
    gradients(&ModelConfig { layers: 1, window: window(3, 0), ..config() }, 70, 1);
}

/// Adapters beside frozen weights, of which nothing moves.
#[test]
fn adapters_have_right_gradients_and_nothing_else_has_any() {
    for (config, targets) in [
        (config(), &["q", "k", "v", "o", "gate", "up", "down"][..]),
        (ModelConfig { tie_embeddings: true, qkv_bias: true, ..config() }, &["v", "up"]),
        (ModelConfig { qk_norm: true, head: Some(6), ..config() }, &["q", "o", "down"]),
    ] {
        let frozen = StageModel::whole(config.clone()).unwrap();
        let weights = Arc::new(Frozen::of(&frozen, &crooked(&frozen), BasePrecision::AsIs).unwrap());
        let targets = targets.iter().map(|target| target.to_string()).collect();
        let lora = Lora { rank: 3, alpha: 6, targets, dropout_percent: 0, base: BasePrecision::AsIs };
        let model = StageModel::adapted(frozen, lora).unwrap();
        let mut params = init::initial(&model, 7);
        params.iter_mut().enumerate().for_each(|(i, v)| *v = *v / 2.0 + ((i * 29) % 13) as f32 / 60.0 - 0.1);
        let weights = StageWeights { params, frozen: Some(weights) };
        // More than one lane.
        let engine = Exact::new(model, plain(40, 13), weights).unwrap();
        differences(&config, engine, 40, 13);
    }
}

#[test]
fn ignored_targets_neither_count_nor_pull() {
    let config = config();
    let mut engine = whole(&config, plain(6, 1));
    let (tokens, mut targets) = batch(&config, 6, 1);
    engine.forward(0, StageInput::Tokens(&tokens)).unwrap();
    let all = engine.loss_backward(0, &targets, 0.0).unwrap();
    assert_eq!(all.tokens, 6);
    targets[1..].fill(IGNORE);
    let first = engine.loss_backward(0, &targets, 1.0).unwrap();
    assert!(first.tokens == 1 && first.loss < all.loss && first.loss > 0.0);
    // The first token's loss depends on no later token, so their embeddings do not move.
    engine.step(0.0).unwrap();
    let gradient = engine.state().unwrap().m;
    let moved = |t: u32| gradient[t as usize * 16..][..16].iter().any(|&g| g != 0.0);
    assert!(moved(tokens[0]) && !moved(tokens[3]));
    targets.fill(IGNORE);
    let none = engine.loss_backward(0, &targets, 0.0).unwrap();
    assert_eq!((none.tokens, none.loss), (0, 0.0));
}

/// Tokens and targets.
type Sample = (Vec<u32>, Vec<u32>);

#[test]
fn weights_scale_what_is_added_and_the_mean_is_over_them() {
    let config = config();
    let (one, other) = (batch(&config, 12, 1), batch(&config, 12, 2));
    let gradient = |parts: &[(&Sample, f32)]| {
        let mut engine = whole(&config, plain(6, 2));
        parts.iter().for_each(|(batch, weight)| _ = train(&mut engine, 0, batch, *weight));
        let report = engine.step(0.0).unwrap();
        (engine.state().unwrap().m, report.weight)
    };
    let (a, b) = (gradient(&[(&one, 1.0)]).0, gradient(&[(&other, 1.0)]).0);
    let (mixed, weight) = gradient(&[(&one, 1.0), (&other, 0.5), (&one, 0.0)]);
    assert_eq!(weight, 1.5);
    for i in 0..a.len() {
        let wanted = (a[i] + 0.5 * b[i]) / 1.5;
        assert!((mixed[i] - wanted).abs() <= 1e-5 * wanted.abs() + 1e-7, "{i}: {} {wanted}", mixed[i]);
    }
}

#[test]
fn what_is_wrong_with_an_input_is_said_and_changes_nothing() {
    let config = config();
    let mut engine = whole(&config, plain(6, 2));
    let before = engine.params().to_vec();
    let bad = |r: Result<Vec<f32>, EngineError>| matches!(r, Err(EngineError::BadInput(_)));
    assert!(bad(engine.forward(0, StageInput::Tokens(&[1; 7]))));
    assert!(bad(engine.forward(0, StageInput::Tokens(&[1; 18]))));
    assert!(bad(engine.forward(0, StageInput::Tokens(&[]))));
    assert!(bad(engine.forward(0, StageInput::Tokens(&[13; 6]))));
    assert!(bad(engine.forward(0, StageInput::Hidden(&[0.0; 96]))));
    assert_eq!(engine.loss_backward(0, &[1; 6], 1.0), Err(EngineError::NotKept(0)));
    engine.forward(0, StageInput::Tokens(&[1; 6])).unwrap();
    assert!(matches!(engine.loss_backward(0, &[1; 5], 1.0), Err(EngineError::BadInput(_))));
    assert!(matches!(engine.loss_backward(0, &[99; 6], 1.0), Err(EngineError::BadInput(_))));
    assert!(bad(engine.backward(0, &[0.0; 96], 1.0, false)));
    assert!(engine.set_params(vec![0.0; 3]).is_err());
    assert_eq!((engine.sum_weight(), engine.params()), (0.0, &before[..]));
    assert_eq!(engine.step(0.1).unwrap().weight, 0.0);
}

#[test]
fn what_overflows_is_an_error_and_is_never_added() {
    let config = config();
    let mut engine = whole(&config, plain(6, 1));
    let good = batch(&config, 6, 1);
    train(&mut engine, 0, &good, 1.0);
    let params = engine.params().to_vec();
    let down = engine.model().param("model.layers.1.mlp.down_proj.weight").unwrap().range();
    let mut huge = params.clone();
    huge[down].fill(3e38);
    engine.set_params(huge).unwrap();
    assert!(matches!(engine.forward(1, StageInput::Tokens(&good.0)), Err(EngineError::NotFinite(_))));
    assert_eq!((engine.kept(), engine.sum_weight()), (vec![], 1.0));
    engine.set_params(params.clone()).unwrap();
    train(&mut engine, 0, &good, 1.0);
    assert_eq!(engine.sum_weight(), 2.0);
}
