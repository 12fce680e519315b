//! One lane: a fixed group of a micro-batch's sequences, with a product and work space of its own.
//!
//! Lanes of one micro-batch may run at the same time, a layer of a backward apart: see [`super::lanes`].

use super::{
    attention::Shape,
    block::{self, Tape, Weights},
    head,
    product::Product,
    weights::Params,
};
use crate::model::{Dims, LayerOffsets, StageModel, lora::Adapter};

/// What all lanes read.
pub struct Plan {
    pub layers: Vec<LayerOffsets>,
    /// Of each layer, where they are what is trained; else none.
    pub adapters: Vec<[Option<Adapter>; 4]>,
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
            adapters: (0..model.layers as usize).filter_map(|n| model.adapters(n).cloned()).collect(),
            embedding: model.embedding,
            head: head.map(|(norm, matrix)| head::Offsets { norm, matrix, tied: model.tied() }),
            rope: super::kernel::rope_table(0..sequence, dims.head / 2, dims.theta, dims.scaling),
        }
    }

    /// Every matrix that products read: where it begins, its rows and columns. In the order of their places.
    pub fn matrices<'a>(&'a self, dims: &'a Dims) -> impl Iterator<Item = (usize, usize, usize)> + 'a {
        let layers = self.layers.iter().flat_map(move |at| block::Tensor::all(dims, at));
        let matrices = layers.filter(|(tensor, ..)| tensor.is_matrix()).map(|(_, at, rows, cols)| (at, rows, cols));
        // A tied head lies before the layers, any other after them.
        let head = self.head.map(|at| (at.matrix, dims.vocab, dims.hidden));
        let (first, last) = (head.filter(|_| self.tied()), head.filter(|_| !self.tied()));
        first.into_iter().chain(matrices).chain(last)
    }

    fn tied(&self) -> bool {
        self.head.is_some_and(|at| at.tied)
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
    pub product: P,
    pub block: block::Scratch,
    pub head: head::Scratch,
}

impl<P: Product> Lane<P> {
    pub fn new(product: P) -> Self {
        Lane { product, block: block::Scratch::default(), head: head::Scratch::default() }
    }

    /// Runs all layers; the output is the last `rows * hidden` values of the tape. `begins`:
    /// [`Sight::begins`](super::attention::Sight::begins).
    pub fn forward(
        &mut self,
        plan: &Plan,
        shape: &Shape,
        params: Params<'_>,
        input: Part<'_>,
        begins: &[u32],
        tape: &mut [f32],
    ) {
        let d = shape.dims.hidden;
        let (len, x) = (Tape::values(shape), shape.rows() * d);
        self.block.reserve(shape, false);
        match input {
            Part::Hidden(hidden) => tape[..x].copy_from_slice(hidden),
            Part::Tokens(tokens) => {
                for (row, &token) in tape[..x].chunks_exact_mut(d).zip(tokens) {
                    params.embedding(token, row);
                }
            }
        }
        for (n, at) in plan.layers.iter().enumerate() {
            let (here, next) = tape[n * len..].split_at_mut(len);
            let weights = Weights::new(&shape.dims, at, plan.adapters.get(n), params);
            let mut layer = Tape::over(shape, here);
            let out = &mut next[..x];
            block::forward(&mut self.product, shape, &weights, &plan.rope, begins, &mut layer, out, &mut self.block);
        }
    }

    /// Makes room for a backward, and takes the gradient where it begins with one.
    pub fn begin(&mut self, shape: &Shape, from: From<'_>) {
        self.block.reserve(shape, true);
        match from {
            From::Gradient(g) => self.block.gradient()[..g.len()].copy_from_slice(g),
            From::Targets(..) => self.head.reserve(&shape.dims, shape.rows()),
        }
    }

    /// Loss of one chunk of rows, and its part of the gradient of the last layer's output.
    #[allow(clippy::too_many_arguments)]
    pub fn loss(
        &mut self,
        shape: &Shape,
        at: head::Offsets,
        params: Params<'_>,
        tape: &[f32],
        (targets, scale): (&[u32], f32),
        chunk: usize,
        train: bool,
    ) -> f64 {
        let x = &tape[tape.len() - shape.rows() * shape.dims.hidden..];
        let (product, scratch, dx) = (&mut self.product, &mut self.head, self.block.gradient());
        head::loss(product, &shape.dims, at, params, x, targets, chunk, scale, dx, train, scratch)
    }

    /// Backward of layer `n`.
    #[allow(clippy::too_many_arguments)]
    pub fn layer(
        &mut self,
        plan: &Plan,
        n: usize,
        shape: &Shape,
        params: Params<'_>,
        begins: &[u32],
        tape: &mut [f32],
        train: bool,
    ) {
        let len = Tape::values(shape);
        let weights = Weights::new(&shape.dims, &plan.layers[n], plan.adapters.get(n), params);
        let layer = Tape::over(shape, &mut tape[n * len..][..len]);
        block::backward(&mut self.product, shape, &weights, &plan.rope, begins, &layer, train, &mut self.block);
    }
}
