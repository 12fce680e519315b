//! Generation piece by piece gives what the training forward computes, over one stage or several.

use skein_pipeline::exact::{Engine, Exact, Piece, StageInput};
use skein_protocol::run::{ModelConfig, OptimizerKind, Window};

use crate::support::{batch, config, exact, settings, stage, train, whole};

fn nll(logits: &[f32], target: u32) -> f64 {
    let sum: f64 = logits.iter().map(|&v| f64::from(v).exp()).sum();
    sum.ln() - f64::from(logits[target as usize])
}

#[test]
fn one_token_at_a_time_gives_the_logits_of_the_whole_prefix_bit_for_bit() {
    let window = Some(Window { size: 4, from: 1 });
    let families = [
        config(),
        ModelConfig { qkv_bias: true, window, ..config() },
        ModelConfig { qk_norm: true, head: Some(6), window: Some(Window { size: 3, from: 0 }), ..config() },
    ];
    for config in families {
        // More than one block of queries.
        let n = 70;
        let mut engine = whole(&config, settings(n, 1, OptimizerKind::Adamw));
        let (tokens, targets) = batch(&config, n, 3);
        let mut sum = 0.0;
        for i in 0..n {
            let alone = engine.infer(1, i, StageInput::Tokens(&tokens[i..=i])).unwrap();
            engine.drop_session(2);
            let prefix = engine.infer(2, 0, StageInput::Tokens(&tokens[..=i])).unwrap();
            assert_eq!(alone, prefix, "position {i}");
            assert_eq!(alone.len(), 13);
            sum += nll(&alone, targets[i]);
        }
        engine.forward(0, StageInput::Tokens(&tokens)).unwrap();
        let lost = engine.loss_backward(0, &targets, 0.0).unwrap();
        assert!((lost.loss - sum).abs() < 1e-3, "{} {sum}", lost.loss);
    }
}

#[test]
fn stages_generate_together_and_a_piece_can_be_said_again() {
    let config = config();
    let settings = settings(16, 1, OptimizerKind::Adamw);
    let mut one = whole(&config, settings.clone());
    let mut stages: Vec<Exact> = (0..3).map(|i| exact(stage(&config, i, 1), settings.clone())).collect();
    let mut say = |position: usize, tokens: &[u32]| {
        let mut x = stages[0].infer(5, position, StageInput::Tokens(tokens)).unwrap();
        for stage in &mut stages[1..] {
            x = stage.infer(5, position, StageInput::Hidden(&x)).unwrap();
        }
        x
    };
    let (tokens, _) = batch(&config, 9, 1);
    assert_eq!(say(0, &tokens[..6]), one.infer(5, 0, StageInput::Tokens(&tokens[..6])).unwrap());
    let first = say(6, &tokens[6..]);
    assert_ne!(first, say(6, &[1, 1, 1]));
    assert_eq!(first, say(6, &tokens[6..]));
    assert_eq!(first, one.infer(5, 6, StageInput::Tokens(&tokens[6..])).unwrap());
}

#[test]
fn a_session_keeps_its_weights_while_training_goes_on() {
    let config = config();
    let mut engine = whole(&config, settings(6, 2, OptimizerKind::Adamw));
    let (tokens, _) = batch(&config, 6, 1);
    let before = engine.infer(1, 0, StageInput::Tokens(&tokens)).unwrap();
    for round in 0..4 {
        train(&mut engine, 0, &batch(&config, 12, round), 1.0);
        engine.step(0.05).unwrap();
        let session = 10 + u64::from(round);
        assert_ne!(engine.infer(session, 0, StageInput::Tokens(&tokens)).unwrap(), before);
    }
    assert_eq!(engine.infer(1, 0, StageInput::Tokens(&tokens)).unwrap(), before);
    engine.drop_session(1);
    assert_ne!(engine.infer(1, 0, StageInput::Tokens(&tokens)).unwrap(), before);
}

#[test]
fn pieces_that_leave_a_gap_or_the_context_are_refused() {
    let config = config();
    let mut engine = whole(&config, settings(6, 1, OptimizerKind::Adamw));
    assert!(engine.infer(1, 1, StageInput::Tokens(&[1])).is_err());
    assert!(engine.infer(1, 0, StageInput::Tokens(&[])).is_err());
    assert!(engine.infer(1, 0, StageInput::Tokens(&[13])).is_err());
    assert!(engine.infer(1, 0, StageInput::Tokens(&[1; 257])).is_err());
    engine.infer(1, 0, StageInput::Tokens(&[1; 256])).unwrap();
    assert!(engine.infer(1, 256, StageInput::Tokens(&[1])).is_err());
}

/// Sessions of different lengths, some with prompts and some with one token, in the same products.
#[test]
fn pieces_of_many_sessions_together_give_what_each_gives_alone() {
    let config = ModelConfig { window: Some(Window { size: 40, from: 1 }), ..config() };
    let settings = settings(16, 1, OptimizerKind::Adamw);
    let mut together = whole(&config, settings.clone());
    let mut alone = whole(&config, settings);
    let texts: Vec<Vec<u32>> = (0..5).map(|i| batch(&config, 20 + 31 * i, i as u32).0).collect();
    for round in 0..4 {
        // A prompt, then one token at a time; the first session begins anew in the last round.
        let piece = |i: usize| match round {
            0 => (0, &texts[i][..texts[i].len() - 3]),
            3 if i == 0 => (0, &texts[0][..5]),
            _ => (texts[i].len() - 4 + round, &texts[i][texts[i].len() - 4 + round..][..1]),
        };
        let pieces: Vec<Piece<'_>> = (0..5)
            .map(|i| {
                let (position, tokens) = piece(i);
                Piece { session: 9 - i as u64, position, input: StageInput::Tokens(tokens) }
            })
            .collect();
        let got = together.infer_all(&pieces);
        for (i, (piece, got)) in pieces.iter().zip(got).enumerate() {
            assert_eq!(got, alone.infer(piece.session, piece.position, piece.input), "round {round}, session {i}");
            assert!(got.is_ok());
        }
    }
    // What is wrong with one piece is told of it alone.
    let piece = |session, position| Piece { session, position, input: StageInput::Tokens(&[1]) };
    let got = together.infer_all(&[piece(20, 0), piece(21, 7), piece(20, 1)]);
    assert!(got[0].is_ok() && got[1].is_err() && got[2].is_err());
    assert_eq!(got[0], alone.infer(20, 0, StageInput::Tokens(&[1])));
}
