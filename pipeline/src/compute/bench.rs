//! How fast an engine is: tokens a second of forward and backward, milliseconds of a step. The planner's first guess and
//! the table of `skein bench` come from here.

#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use crate::exact::{Engine, EngineError, StageInput};

/// Medians over the micro-batches measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    pub forward_tokens_per_s: f64,
    /// Of a backward whose forward is held, the loss included at the last stage.
    pub backward_tokens_per_s: f64,
    pub step_ms: f64,
    /// Forward, backward and a step a micro-batch.
    pub tokens_per_s: f64,
}

/// Trains `engine` on `micro_batches` made-up micro-batches (after two that warm it up) and says how long each part took.
/// The engine's weights move: measure on one that is thrown away.
pub fn stage(engine: &mut dyn Engine, micro_batches: usize) -> Result<Speed, EngineError> {
    let (model, settings) = (engine.model().clone(), engine.settings().clone());
    let tokens = settings.sequence * settings.micro_batch;
    let hidden = model.config.hidden as usize;
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i.wrapping_mul(2_654_435_761) % model.config.vocab).collect();
    let x: Vec<f32> = (0..tokens * hidden).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    let g: Vec<f32> = x.iter().map(|v| v / tokens as f32).collect();
    let mut times = [const { Vec::<Duration>::new() }; 3];
    for i in 0..micro_batches.max(1) + 2 {
        let start = Instant::now();
        let input = if model.embedding { StageInput::Tokens(&ids) } else { StageInput::Hidden(&x) };
        engine.forward(0, input)?;
        let forward = start.elapsed();
        match model.head {
            true => _ = engine.loss_backward(0, &ids, 1.0)?,
            false => _ = engine.backward(0, &g, 1.0, false)?,
        }
        let backward = start.elapsed();
        engine.drop_kept(0);
        engine.step(1e-4)?;
        let step = start.elapsed();
        if i >= 2 {
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
        forward_tokens_per_s: tokens as f64 / forward,
        backward_tokens_per_s: tokens as f64 / backward,
        step_ms: step * 1e3,
        tokens_per_s: tokens as f64 / (forward + backward + step),
    })
}
