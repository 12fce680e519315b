//! The optimizer on the device: the rule of `exact::optimizer`, in its order, over the tensors of the open sum.
//!
//! On the host a step would move 8 bytes a parameter over the bus and wait for the processor's memory, which takes longer than
//! a micro-batch does on the device. Here the host reads one number a tensor, for the norms. A step that fails changes
//! nothing. Tiny moments stay what they are: subnormal numbers cost a card nothing.

use candle_core::{D, Device, Tensor};
use skein_protocol::run::{Optimizer as Rule, OptimizerKind};

use super::{Result, weights::Layout};
use crate::exact::{
    Settings, StepReport, TrainState,
    optimizer::{Coefficients, check_state, finite_norms, moments, scales},
};

pub struct Optimizer {
    rule: Rule,
    clip: f64,
    /// In the order of the places; nothing where the rule has no such moment.
    m: Vec<Tensor>,
    v: Vec<Tensor>,
    count: u64,
}

/// What a step gives, all of it new.
pub struct Step {
    pub weights: Vec<Tensor>,
    m: Vec<Tensor>,
    v: Vec<Tensor>,
}

impl Optimizer {
    pub fn new(settings: &Settings, layout: &Layout, device: &Device) -> Result<Self> {
        let zeros = || layout.places.iter().map(|place| place.zeros(device)).collect::<Result<Vec<_>>>();
        let v = if moments(settings.optimizer.kind, 1).1 > 0 { zeros()? } else { Vec::new() };
        Ok(Optimizer { rule: settings.optimizer.clone(), clip: settings.clip, m: zeros()?, v, count: 0 })
    }

    /// A step from `old` with the mean of `sum`, whose weights sum to `weight`; nothing where a norm is too large for one.
    pub fn step(
        &self,
        layout: &Layout,
        blocks: usize,
        old: &[Tensor],
        sum: &[Tensor],
        weight: f64,
        lr: f64,
    ) -> Result<(StepReport, Option<Step>)> {
        let norms = norms(layout, blocks, sum, weight)?;
        if !finite_norms(&norms) {
            return Ok((StepReport { norms, weight, finite: false }, None));
        }
        let scales = scales(&norms, self.clip, weight);
        let rule = Coefficients::new(&self.rule, lr, self.count + 1);
        let mut step = Step { weights: Vec::new(), m: Vec::new(), v: Vec::new() };
        for (i, place) in layout.places.iter().enumerate() {
            let g = (&sum[i] * f64::from(scales[place.block]))?;
            let kept = match place.is_matrix() {
                true => (&old[i] * (1.0 - lr * self.rule.decay))?,
                false => old[i].clone(),
            };
            let moved = match self.rule.kind {
                OptimizerKind::Sgd => {
                    let next = ((&self.m[i] * f64::from(rule.beta1))? + g)?;
                    let moved = (&next * f64::from(rule.lr))?;
                    step.m.push(next);
                    moved
                }
                OptimizerKind::Adamw | OptimizerKind::Nadamw => {
                    let next = ((&self.m[i] * f64::from(rule.beta1))? + (&g * f64::from(rule.beta1_rest))?)?;
                    let square = (&self.v[i] * f64::from(rule.beta2))?;
                    let square = (square + (g.sqr()? * f64::from(rule.beta2_rest))?)?;
                    let mut up = (&next * f64::from(rule.moment))?;
                    if rule.gradient != 0.0 {
                        up = (up + (g * f64::from(rule.gradient))?)?;
                    }
                    let root = (&square * f64::from(rule.square))?.sqrt()?.affine(1.0, f64::from(rule.eps))?;
                    step.m.push(next);
                    step.v.push(square);
                    (up / root)?
                }
            };
            step.weights.push((kept - moved)?);
        }
        Ok((StepReport { norms, weight, finite: true }, Some(step)))
    }

    /// Takes the moments of a step whose weights came into use.
    pub fn take(&mut self, step: Step) {
        (self.m, self.v, self.count) = (step.m, step.v, self.count + 1);
    }

    /// `params` with this optimizer's state.
    ///
    /// # Errors
    /// The device can be read no more.
    pub fn state(&self, layout: &Layout, params: &[f32]) -> Result<TrainState> {
        let (m, v) = (layout.flat(&self.m)?, layout.flat(&self.v)?);
        Ok(TrainState { params: params.to_vec(), m, v, count: self.count })
    }

    /// This optimizer in another state.
    pub fn loaded(&self, layout: &Layout, device: &Device, state: &TrainState) -> Result<Self> {
        check_state(state, layout.values(), self.rule.kind)?;
        let upload = |flat: &[f32]| match flat.is_empty() {
            true => Ok(Vec::new()),
            false => layout.places.iter().map(|place| place.upload(flat, device)).collect::<Result<Vec<_>>>(),
        };
        let (m, v) = (upload(&state.m)?, upload(&state.v)?);
        Ok(Optimizer { rule: self.rule.clone(), clip: self.clip, m, v, count: state.count })
    }
}

/// Norm of each block of the mean gradient.
fn norms(layout: &Layout, blocks: usize, sum: &[Tensor], weight: f64) -> Result<Vec<f64>> {
    let squares = |x: &Tensor| Ok(x.sqr()?.sum(D::Minus1)?.sum_all()?);
    let squares = Tensor::stack(&sum.iter().map(squares).collect::<Result<Vec<_>>>()?, 0)?.to_vec1::<f32>()?;
    let mut norms = vec![0.0; blocks];
    layout.places.iter().zip(squares).for_each(|(place, square)| norms[place.block] += f64::from(square));
    Ok(norms.into_iter().map(|sum: f64| sum.sqrt() / weight).collect())
}
