//! One stage or three: the same losses and the same weights, bit for bit.

use skein_pipeline::exact::{Engine, Exact, StageInput};
use skein_protocol::run::{ModelConfig, OptimizerKind};

use crate::support::{batch, bits, config, exact, settings, stage, train, whole};

/// One micro-batch through a chain of stages. Returns the loss.
fn chain(stages: &mut [Exact], key: u64, batch: &(Vec<u32>, Vec<u32>)) -> f64 {
    let (last, before) = stages.split_last_mut().unwrap();
    let mut hidden = Vec::new();
    for (i, stage) in before.iter_mut().enumerate() {
        let input = if i == 0 { StageInput::Tokens(&batch.0) } else { StageInput::Hidden(&hidden) };
        hidden = stage.forward(key, input).unwrap();
    }
    assert!(last.forward(key, StageInput::Hidden(&hidden)).unwrap().is_empty());
    let lost = last.loss_backward(key, &batch.1, 1.0).unwrap();
    let mut gradient = lost.gradient;
    for stage in before.iter_mut().rev() {
        gradient = stage.backward(key, &gradient, 1.0, false).unwrap();
    }
    assert!(gradient.is_empty(), "token ids have no gradient");
    stages.iter_mut().for_each(|s| s.drop_kept(key));
    lost.loss / f64::from(lost.tokens)
}

fn three_equal_one(config: &ModelConfig, kind: OptimizerKind, sequence: usize, sequences: usize, steps: u64) -> f64 {
    let settings = settings(sequence, sequences, kind);
    let mut one = whole(config, settings.clone());
    let mut three: Vec<Exact> = (0..3).map(|i| exact(stage(config, i, 1), settings.clone())).collect();
    let mut loss = f64::NAN;
    for step in 0..steps {
        for index in 0..2 {
            let batch = batch(config, sequence * sequences, (2 * step + index) as u32 % 5);
            loss = train(&mut one, index, &batch, 1.0);
            let split = chain(&mut three, index, &batch);
            assert_eq!(loss.to_bits(), split.to_bits(), "loss at step {step}");
        }
        let lr = 3e-3 / (1.0 + step as f64 / 20.0);
        let report = one.step(lr).unwrap();
        let reports: Vec<_> = three.iter_mut().map(|s| s.step(lr).unwrap()).collect();
        assert_eq!(report.norms, reports.iter().flat_map(|r| r.norms.clone()).collect::<Vec<_>>());
    }
    let split: Vec<f32> = three.iter().flat_map(|s| s.params().to_vec()).collect();
    assert_eq!(bits(one.params()), bits(&split));
    loss
}

#[test]
fn three_stages_give_the_bits_of_one() {
    let loss = three_equal_one(&config(), OptimizerKind::Adamw, 16, 2, 50);
    assert!(loss < 2.2, "and learn: {loss}");
}

#[test]
fn three_stages_give_the_bits_of_one_with_nadamw() {
    three_equal_one(&config(), OptimizerKind::Nadamw, 16, 2, 50);
}

#[test]
fn three_stages_give_the_bits_of_one_when_lanes_share_a_micro_batch() {
    three_equal_one(&config(), OptimizerKind::Sgd, 128, 4, 3);
}

/// The same bits in debug and release, on every CPU.
#[test]
fn the_digest_of_trained_weights_does_not_move() {
    let config = config();
    let mut engine = whole(&config, settings(80, 7, OptimizerKind::Nadamw));
    for step in 0..4 {
        train(&mut engine, 0, &batch(&config, 560, step), 1.0);
        engine.step(3e-3).unwrap();
    }
    let bytes: Vec<u8> = engine.params().iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(skein_protocol::hash::keyed("test", &[&bytes]).short(16), "bf4149eeec21f5aa");
}
