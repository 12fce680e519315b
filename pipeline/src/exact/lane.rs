//! One lane: a fixed group of a micro-batch's sequences, with its own gradient buffer and work space.
//!
//! Lanes of one micro-batch may run at the same time; their gradients are added in the order of the lanes.

use super::{
    attention::Shape,
    block::{self, Tape, Weights},
    head,
    product::Product,
};
use crate::model::{LayerOffsets, StageModel};

/// What all lanes read.
pub struct Plan {
    pub layers: Vec<LayerOffsets>,
    pub embedding: bool,
    pub head: Option<head::Offsets>,
    /// Angles of positions `0..sequence`.
    pub rope: Vec<f32>,
}

impl Plan {
    pub fn new(model: &StageModel, sequence: usize) -> Self {
        let dims = model.dims();
        let head = model.head_offsets().filter(|_| model.head);
        Plan {
            layers: (0..model.layers as usize).map(|n| model.layer_offsets(n)).collect(),
            embedding: model.embedding,
            head: head.map(|(norm, matrix)| head::Offsets { norm, matrix, tied: model.tied() }),
            rope: super::kernel::rope_table(0..sequence, dims.head / 2, dims.theta),
        }
    }

    /// Values of a lane's tape: one a layer, and the output of the last.
    pub fn tape(&self, shape: &Shape) -> usize {
        self.layers.len() * Tape::values(shape) + shape.rows() * shape.dims.hidden
    }
}

/// A lane's part of the input.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    Tokens(&'a [u32]),
    Hidden(&'a [f32]),
}

/// Where a lane's backward starts.
#[derive(Clone, Copy)]
pub enum From<'a> {
    Gradient(&'a [f32]),
    /// Targets, and 1 / counted tokens of the whole micro-batch.
    Targets(&'a [u32], f32),
}

pub struct Lane<P> {
    product: P,
    /// Laid out as the parameters; all of it is written by a backward that computes gradients.
    pub grad: Vec<f32>,
    block: block::Scratch,
    head: head::Scratch,
    dx: Vec<f32>,
}

impl<P: Product> Lane<P> {
    pub fn new(product: P) -> Self {
        Lane {
            product,
            grad: Vec::new(),
            block: block::Scratch::default(),
            head: head::Scratch::default(),
            dx: Vec::new(),
        }
    }

    /// Runs all layers; the output is the last `rows * hidden` values of the tape.
    pub fn forward(&mut self, plan: &Plan, shape: &Shape, params: &[f32], input: Part<'_>, tape: &mut [f32]) {
        let d = shape.dims.hidden;
        let (len, x) = (Tape::values(shape), shape.rows() * d);
        self.block.reserve(shape, false);
        match input {
            Part::Hidden(hidden) => tape[..x].copy_from_slice(hidden),
            Part::Tokens(tokens) => {
                for (row, &token) in tape[..x].chunks_exact_mut(d).zip(tokens) {
                    row.copy_from_slice(&params[token as usize * d..][..d]);
                }
            }
        }
        for (n, at) in plan.layers.iter().enumerate() {
            let (here, next) = tape[n * len..].split_at_mut(len);
            let weights = Weights::new(shape, at, params);
            let mut layer = Tape::over(shape, here);
            let out = &mut next[..x];
            block::forward(&mut self.product, shape, &weights, &plan.rope, &mut layer, out, &mut self.block);
        }
    }

    /// Runs all layers backward over the tape of a forward. `out` becomes the input's gradient where there is one; `grad`
    /// says whether the parameters' gradients are wanted. Returns the sum of the losses (0 from a gradient).
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &mut self,
        plan: &Plan,
        shape: &Shape,
        params: &[f32],
        input: Part<'_>,
        tape: &mut [f32],
        from: From<'_>,
        grad: bool,
        out: &mut [f32],
    ) -> f64 {
        let d = shape.dims.hidden;
        let (len, x) = (Tape::values(shape), shape.rows() * d);
        self.block.reserve(shape, true);
        block::grow(&mut self.dx, x);
        if grad {
            block::grow(&mut self.grad, params.len());
            if plan.embedding {
                self.grad[..shape.dims.vocab * d].fill(0.0);
            }
        }
        let mut grad = grad.then_some(&mut self.grad[..]);
        let dx = &mut self.dx[..x];
        let mut loss = 0.0;
        match (from, plan.head) {
            (From::Targets(targets, scale), Some(at)) => {
                self.head.reserve(&shape.dims, shape.rows());
                let x = &tape[plan.layers.len() * len..][..x];
                let (product, scratch) = (&mut self.product, &mut self.head);
                let grad = grad.as_deref_mut();
                loss = head::loss(product, &shape.dims, at, params, x, targets, scale, dx, grad, scratch);
            }
            (From::Gradient(g), _) => dx.copy_from_slice(g),
            (From::Targets(..), None) => unreachable!("only the last stage is given targets"),
        }
        for (n, at) in plan.layers.iter().enumerate().rev() {
            let weights = Weights::new(shape, at, params);
            let layer = Tape::over(shape, &mut tape[n * len..][..len]);
            let (product, scratch) = (&mut self.product, &mut self.block);
            block::backward(product, shape, at, &weights, &plan.rope, &layer, dx, grad.as_deref_mut(), scratch);
        }
        match (input, grad) {
            (Part::Hidden(_), _) => out.copy_from_slice(dx),
            (Part::Tokens(tokens), Some(grad)) => {
                for (dx, &token) in dx.chunks_exact(d).zip(tokens) {
                    super::kernel::add(&mut grad[token as usize * d..][..d], dx);
                }
            }
            (Part::Tokens(_), None) => {}
        }
        loss
    }
}
