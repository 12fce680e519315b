//! What stands beside adapters, on the device: tensors as products read them, or the blocks they are written in, of which a product
//! makes a matrix that is gone after it.

use candle_core::{
    DType, Tensor,
    quantized::{GgmlDType, QTensor, ggml_file::qtensor_from_ggml},
};

use super::{Result, operators::Precision, weights::Layout};
use crate::model::frozen::{self, Form};

/// All versions of the adapters share it.
pub struct Frozen {
    pub layout: Layout,
    held: Vec<Held>,
    /// What tokens are looked up in, where that is not held as it is: where it is the head's matrix too, in another precision.
    looked_up: Option<Held>,
}

enum Held {
    Tensor(Tensor),
    Blocks(QTensor),
}

/// A matrix that stays as it is, or one that is trained.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    Tensor(&'a Tensor),
    Blocks(&'a QTensor, Precision),
}

impl Operand<'_> {
    /// `[out, in]`, as products read it.
    pub fn read(self) -> Result<Tensor> {
        match self {
            Operand::Tensor(tensor) => Ok(tensor.clone()),
            Operand::Blocks(blocks, precision) => precision.operand(&blocks.dequantize(&blocks.device())?),
        }
    }

    pub fn rows(self) -> Result<usize> {
        match self {
            Operand::Tensor(tensor) => Ok(tensor.dim(0)?),
            Operand::Blocks(blocks, _) => Ok(blocks.shape().dims2()?.0),
        }
    }
}

impl Frozen {
    pub fn upload(
        layout: Layout,
        weights: &frozen::Frozen,
        precision: Precision,
        device: &candle_core::Device,
    ) -> Result<Self> {
        let plain = |place: usize| {
            let mut values = vec![0.0; layout.places[place].range().len()];
            weights.read(layout.places[place].range().start, &mut values);
            Ok::<_, super::EngineError>(Tensor::from_vec(values, layout.places[place].shape(), device)?)
        };
        let held = |place: usize| {
            let (range, shape) = (layout.places[place].range(), layout.places[place].shape());
            let (form, bytes) = weights.written(range.start, range.len());
            let blocks = |kind: GgmlDType| Ok(Held::Blocks(qtensor_from_ggml(kind, &bytes, shape.to_vec(), device)?));
            match form {
                Form::Int8 => blocks(GgmlDType::Q8_0),
                Form::Int4 => blocks(GgmlDType::Q4_0),
                _ if layout.multiplied(place) => Ok(Held::Tensor(precision.operand(&plain(place)?)?)),
                _ => Ok(Held::Tensor(plain(place)?)),
            }
        };
        let held = (0..layout.places.len()).map(held).collect::<Result<Vec<_>>>()?;
        let looked_up = match layout.embedding.map(|place| (place, &held[place])) {
            Some((place, Held::Tensor(tensor))) if tensor.dtype() != DType::F32 => Some(Held::Tensor(plain(place)?)),
            _ => None,
        };
        Ok(Frozen { held, looked_up, layout })
    }

    /// Of a vector.
    pub fn vector(&self, place: usize) -> &Tensor {
        match &self.held[place] {
            Held::Tensor(tensor) => tensor,
            Held::Blocks(_) => unreachable!("only matrices are in blocks"),
        }
    }

    pub fn matrix(&self, place: usize, precision: Precision) -> Operand<'_> {
        match &self.held[place] {
            Held::Tensor(tensor) => Operand::Tensor(tensor),
            Held::Blocks(blocks) => Operand::Blocks(blocks, precision),
        }
    }

    /// The rows of the embedding for `ids [n]`, `[n, hidden]` in f32.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        match self.looked_up.as_ref().unwrap_or(&self.held[0]) {
            Held::Tensor(tensor) => Ok(tensor.index_select(ids, 0)?),
            Held::Blocks(blocks) => Ok(blocks.embedding(ids)?),
        }
    }
}
