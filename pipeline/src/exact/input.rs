//! What may come into an engine: inputs, targets and parameters, checked before anything is computed with them.

use skein_protocol::wire::Starts;

use super::{
    engine::{EngineError, IGNORE, Settings, StageInput},
    kernel,
    lane::Part,
};
use crate::model::{StageModel, frozen::Frozen};

/// The input of a kept forward.
pub struct Input {
    pub rows: Rows,
    /// Of each token the place in its sequence at which its record begins; empty: each sequence is one record.
    pub begins: Vec<u32>,
}

pub enum Rows {
    Tokens(Vec<u32>),
    /// `[tokens, hidden]`
    Hidden(Vec<f32>),
}

impl Input {
    /// A copy of an input that is what this stage takes, and its sequences.
    ///
    /// # Errors
    /// [`EngineError::BadInput`]: of another stage, outside the vocabulary, not finite, not whole sequences, or with records that
    /// begin where none can.
    pub fn checked(
        model: &StageModel,
        settings: &Settings,
        input: StageInput<'_>,
        starts: &Starts,
    ) -> Result<(Self, usize), EngineError> {
        let (t, max) = (settings.sequence, settings.micro_batch);
        let dims = model.dims();
        let (tokens, whole, rows) = match input {
            StageInput::Tokens(tokens) if model.embedding => {
                check_tokens(tokens, dims.vocab)?;
                (tokens.len(), true, Rows::Tokens(tokens.to_vec()))
            }
            StageInput::Hidden(x) if !model.embedding => {
                if !kernel::finite(x) {
                    return Err(EngineError::BadInput("the activation is not finite".into()));
                }
                let tokens = x.len() / dims.hidden;
                (tokens, x.len() == tokens * dims.hidden, Rows::Hidden(x.to_vec()))
            }
            StageInput::Tokens(_) => return Err(EngineError::BadInput("token ids go to the first stage only".into())),
            StageInput::Hidden(_) => return Err(EngineError::BadInput("the first stage takes token ids".into())),
        };
        let sequences = tokens / t;
        if !whole || tokens % t != 0 || sequences == 0 || sequences > max {
            let text = format!("{tokens} tokens are not 1 to {max} sequences of {t}");
            return Err(EngineError::BadInput(text));
        }
        starts.check(tokens, t).map_err(|error| EngineError::BadInput(error.to_string()))?;
        Ok((Input { rows, begins: begins(starts, tokens, t) }, sequences))
    }

    /// [`Input::begins`] of some sequences of `t` tokens each.
    pub(super) fn begins(&self, sequences: std::ops::Range<usize>, t: usize) -> &[u32] {
        self.begins.get(sequences.start * t..sequences.end * t).unwrap_or_default()
    }

    /// Some sequences of it, of `t` tokens each.
    pub(super) fn part(&self, sequences: std::ops::Range<usize>, t: usize, hidden: usize) -> Part<'_> {
        match &self.rows {
            Rows::Tokens(tokens) => Part::Tokens(&tokens[sequences.start * t..sequences.end * t]),
            Rows::Hidden(x) => Part::Hidden(&x[sequences.start * t * hidden..sequences.end * t * hidden]),
        }
    }
}

/// [`Input::begins`] of `starts`, which were checked.
fn begins(starts: &Starts, tokens: usize, t: usize) -> Vec<u32> {
    if starts.is_empty() {
        return Vec::new();
    }
    let mut begins = vec![0; tokens];
    for (n, &start) in starts.places().iter().enumerate() {
        let start = start as usize;
        let next = starts.places().get(n + 1).map_or(tokens, |next| *next as usize);
        let end = next.min((start / t + 1) * t);
        begins[start..end].fill((start % t) as u32);
    }
    begins
}

pub fn check_settings(settings: &Settings) -> Result<(), EngineError> {
    match settings.sequence == 0 || settings.micro_batch == 0 {
        true => Err(EngineError::BadInput("a micro-batch has at least one sequence of one token".into())),
        false => Ok(()),
    }
}

pub fn check_rate(lr: f64) -> Result<(), EngineError> {
    match lr.is_finite() && lr >= 0.0 {
        true => Ok(()),
        false => Err(EngineError::BadInput(format!("the learning rate is {lr}"))),
    }
}

/// Refuses a gradient that has not the size of the forward's output, or is not finite.
pub fn check_gradient(gradient: &[f32], wanted: usize) -> Result<(), EngineError> {
    if gradient.len() != wanted {
        let text = format!("the gradient has {} values, the forward's output had {wanted}", gradient.len());
        return Err(EngineError::BadInput(text));
    }
    match kernel::finite(gradient) {
        true => Ok(()),
        false => Err(EngineError::BadInput("the gradient is not finite".into())),
    }
}

pub fn check_tokens(tokens: &[u32], vocab: usize) -> Result<(), EngineError> {
    match tokens.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => Err(EngineError::BadInput(format!("token {id} is outside the vocabulary of {vocab}"))),
        None => Ok(()),
    }
}

/// Refuses parameters that are not those of `model`, or not finite.
pub fn check_params(model: &StageModel, params: &[f32]) -> Result<(), EngineError> {
    if params.len() != model.values() {
        let text = format!("{} parameters were given, the stage has {}", params.len(), model.values());
        return Err(EngineError::BadInput(text));
    }
    if !kernel::finite(params) {
        return Err(EngineError::BadInput("the parameters are not finite".into()));
    }
    Ok(())
}

/// As [`check_params`], of what is frozen beside them too, whose values were looked at when they were opened.
pub fn check_weights(model: &StageModel, params: &[f32], frozen: Option<&Frozen>) -> Result<(), EngineError> {
    check_params(model, params)?;
    match (model.frozen(), frozen) {
        (None, None) => Ok(()),
        (Some(model), Some(frozen)) if frozen.values() == model.values() => Ok(()),
        (Some(model), Some(frozen)) => {
            let text = format!("{} frozen weights were given, the stage has {}", frozen.values(), model.values());
            Err(EngineError::BadInput(text))
        }
        (Some(_), None) => Err(EngineError::BadInput("adapters without the weights beside them".into())),
        (None, Some(_)) => Err(EngineError::BadInput("frozen weights of a stage that trains its own".into())),
    }
}

/// Counted tokens, after every target was checked.
pub fn check_targets(targets: &[u32], tokens: usize, vocab: usize) -> Result<u32, EngineError> {
    if targets.len() != tokens {
        return Err(EngineError::BadInput(format!("{} targets for {tokens} tokens", targets.len())));
    }
    let counted: Vec<u32> = targets.iter().copied().filter(|&t| t != IGNORE).collect();
    check_tokens(&counted, vocab)?;
    Ok(counted.len() as u32)
}
