//! How fast an engine is: tokens a second of forward and backward, milliseconds of a step. The planner's first guess and
//! the table of `skein bench` come from here.

#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use crate::exact::{Engine, EngineError, StageInput};

/// Medians of one micro-batch's parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    pub forward_ms: f64,
    /// Of a backward whose forward is held, the loss included at the last stage.
    pub backward_ms: f64,
    pub step_ms: f64,
    /// Forward, backward and a step a micro-batch.
    pub tokens_per_s: f64,
}

/// Steps whose times are compared: those at the end, since a model that has learnt something makes other numbers than a fresh one.
const COMPARED: usize = 50;

/// Trains `engine` for `steps` micro-batches of `text` (at least two sequences of token ids; nothing: made-up ones), a step each,
/// and says how long each part took: medians of the last half of them, of at most 50. The engine's weights move: measure on one
/// that is thrown away.
pub fn stage(engine: &mut dyn Engine, steps: usize, text: Option<&[u32]>) -> Result<Speed, EngineError> {
    let (model, settings) = (engine.model().clone(), engine.settings().clone());
    let (sequence, tokens) = (settings.sequence, settings.sequence * settings.micro_batch);
    let hidden = model.config.hidden as usize;
    let made: Vec<u32> = match text {
        Some(_) => Vec::new(),
        None => (0..2 * tokens as u32 + 1).map(|i| i.wrapping_mul(2_654_435_761) % model.config.vocab).collect(),
    };
    let text = text.unwrap_or(&made);
    if text.len() < 2 * sequence {
        return Err(EngineError::BadInput(format!("{} tokens are less than two sequences of {sequence}", text.len())));
    }
    let x: Vec<f32> = (0..tokens * hidden).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    let g: Vec<f32> = x.iter().map(|v| v / tokens as f32).collect();
    let (mut ids, mut targets, mut at) = (Vec::new(), Vec::new(), 0);
    let mut times = [const { Vec::<Duration>::new() }; 3];
    let steps = steps.max(3);
    for i in 0..steps {
        ids.clear();
        targets.clear();
        for _ in 0..settings.micro_batch {
            // A stride that meets the text everywhere before it comes back.
            at = (at + 7919 * sequence) % (text.len() - sequence);
            ids.extend_from_slice(&text[at..at + sequence]);
            targets.extend_from_slice(&text[at + 1..at + sequence + 1]);
        }
        let start = Instant::now();
        let input = if model.embedding { StageInput::Tokens(&ids) } else { StageInput::Hidden(&x) };
        engine.forward(0, input)?;
        let forward = start.elapsed();
        match model.head {
            true => _ = engine.loss_backward(0, &targets, 1.0)?,
            false => _ = engine.backward(0, &g, 1.0, false)?,
        }
        let backward = start.elapsed();
        engine.drop_kept(0);
        engine.step(1e-3)?;
        let step = start.elapsed();
        if i >= (steps / 2).max(steps.saturating_sub(COMPARED)) {
            times[0].push(forward);
            times[1].push(backward - forward);
            times[2].push(step - backward);
        }
    }
    let [forward, backward, step] = times.map(|mut times| {
        times.sort();
        times[times.len() / 2].as_secs_f64().max(1e-9)
    });
    Ok(Speed {
        forward_ms: forward * 1e3,
        backward_ms: backward * 1e3,
        step_ms: step * 1e3,
        tokens_per_s: tokens as f64 / (forward + backward + step),
    })
}
