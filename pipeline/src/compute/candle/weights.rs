//! One version of the weights on the device: a tensor of f32 for each matrix and vector, and what products read of them.
//!
//! q, k and v lie next to each other in the canonical order, as do gate and up: each group is one matrix. Tensors are never
//! written again, so whoever refers to a version computes with what it was.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::{Result, operators::Precision};
use crate::model::StageModel;

/// Tensors of one layer.
const LAYER: usize = 6;

/// One tensor: a slice of the flat buffer.
pub struct Place {
    offset: usize,
    /// `[out, in]` for a matrix, `[n]` for a vector.
    shape: Vec<usize>,
    /// Index into [`StageModel::blocks`].
    pub block: usize,
}

impl Place {
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.shape.iter().product::<usize>()
    }

    /// Matrices decay, vectors (norms) do not.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() > 1
    }

    pub fn zeros(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::zeros(&self.shape[..], candle_core::DType::F32, device)?)
    }

    /// This tensor's part of a flat buffer, on the device.
    pub fn upload(&self, flat: &[f32], device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&flat[self.range()], &self.shape[..], device)?)
    }
}

/// Where all tensors of a stage lie, in canonical order: the embedding, six a layer, final norm and head.
pub struct Layout {
    pub places: Vec<Place>,
    pub embedding: Option<usize>,
    /// The first of the first layer.
    layers: usize,
    /// Final norm, and the matrix of the head (the embedding, where the two are tied).
    pub head: Option<(usize, usize)>,
}

impl Layout {
    pub fn of(model: &StageModel) -> Self {
        let layers = usize::from(model.embedding);
        // Of a layer's nine tensors the second to fourth and the seventh and eighth are one matrix.
        let joins = |i: usize| {
            let in_layer = i.checked_sub(layers).filter(|i| *i < 9 * model.layers as usize);
            in_layer.is_some_and(|i| matches!(i % 9, 2 | 3 | 7))
        };
        let mut places: Vec<Place> = Vec::new();
        for (i, param) in model.params().iter().enumerate() {
            match places.last_mut().filter(|_| joins(i)) {
                Some(place) => place.shape[0] += param.shape[0],
                None => {
                    places.push(Place { offset: param.offset, shape: param.shape.clone(), block: param.block });
                }
            }
        }
        let norm = layers + LAYER * model.layers as usize;
        let head = model.head.then(|| (norm, if model.tied() { 0 } else { norm + 1 }));
        Layout { places, embedding: model.embedding.then_some(0), layers, head }
    }

    /// Length of the flat buffer.
    pub fn values(&self) -> usize {
        self.places.last().map_or(0, |place| place.range().end)
    }

    /// The flat buffer of tensors in the order of the places.
    pub fn flat(&self, tensors: &[Tensor]) -> Result<Vec<f32>> {
        let mut flat = Vec::with_capacity(self.values());
        for tensor in tensors {
            flat.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(flat)
    }

    /// Whether products read this tensor: of vectors and of an embedding that is no head they do not.
    fn multiplied(&self, place: usize) -> bool {
        let looked_up = self.embedding == Some(place) && self.head.is_none_or(|(_, matrix)| matrix != place);
        self.places[place].is_matrix() && !looked_up
    }
}

pub struct Weights {
    pub number: u64,
    /// f32.
    pub master: Vec<Tensor>,
    /// What products read; elsewhere the master.
    operands: Vec<Tensor>,
}

/// The weights of one layer, as they are read.
pub struct Layer<'a> {
    /// Place of its first tensor; the others follow in this order.
    pub first: usize,
    pub input_norm: &'a Tensor,
    pub qkv: &'a Tensor,
    pub output: &'a Tensor,
    pub mlp_norm: &'a Tensor,
    pub gate_up: &'a Tensor,
    pub down: &'a Tensor,
}

impl Weights {
    pub fn new(layout: &Layout, number: u64, master: Vec<Tensor>, precision: Precision) -> Result<Self> {
        let operand = |(i, tensor): (usize, &Tensor)| match layout.multiplied(i) {
            true => precision.operand(tensor),
            false => Ok(tensor.clone()),
        };
        let operands = master.iter().enumerate().map(operand).collect::<Result<_>>()?;
        Ok(Weights { number, master, operands })
    }

    pub fn upload(layout: &Layout, number: u64, params: &[f32], precision: Precision, device: &Device) -> Result<Self> {
        let master = layout.places.iter().map(|place| place.upload(params, device)).collect::<Result<_>>()?;
        Self::new(layout, number, master, precision)
    }

    pub fn layer(&self, layout: &Layout, n: usize) -> Layer<'_> {
        let first = layout.layers + LAYER * n;
        let w = |i: usize| &self.operands[first + i];
        Layer { first, input_norm: w(0), qkv: w(1), output: w(2), mlp_norm: w(3), gate_up: w(4), down: w(5) }
    }

    /// Final norm and matrix of a head.
    pub fn head(&self, (norm, matrix): (usize, usize)) -> (&Tensor, &Tensor) {
        (&self.operands[norm], &self.operands[matrix])
    }
}
