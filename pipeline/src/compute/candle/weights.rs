//! One version of the weights on the device: a tensor of f32 for each matrix and vector, and what products read of them. Where
//! adapters are what is trained, these are the version, and all versions share what is frozen beside them.
//!
//! q, k and v lie next to each other in the canonical order, as do their biases, the norms of q's and k's heads, and gate and up:
//! each group is one tensor. Tensors are never written again, so whoever refers to a version computes with what it was.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::{
    Result,
    adapters::{Site, SitePlaces},
    frozen::{Frozen, Operand},
    operators::Precision,
};
use crate::model::{StageModel, lora};

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

    pub fn shape(&self) -> &[usize] {
        &self.shape
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

/// Where all tensors of a stage lie, in canonical order: the embedding, those of each layer, final norm and head.
pub struct Layout {
    pub places: Vec<Place>,
    pub embedding: Option<usize>,
    /// Of each layer; none, where the places are those of adapters.
    layers: Vec<LayerPlaces>,
    /// Of each layer, one a [`lora::Site`]; none, where all weights are trained.
    adapters: Vec<[Option<SitePlaces>; 4]>,
    /// Final norm, and the matrix of the head (the embedding, where the two are tied).
    pub head: Option<(usize, usize)>,
}

impl Layout {
    /// Of what is trained.
    pub fn of(model: &StageModel) -> Self {
        match model.frozen() {
            None => Self::of_all(model),
            Some(_) => Self::of_adapters(model),
        }
    }

    /// The A's of a site are one matrix, each B is one.
    fn of_adapters(model: &StageModel) -> Self {
        let mut places: Vec<Place> = Vec::new();
        for layer in 0..model.layers as usize {
            let sites = model.adapters(layer).expect("a model with adapters");
            for adapter in sites.iter().flatten() {
                let block = |at: usize| {
                    let of = model.params().iter().find(|param| param.offset == at);
                    of.expect("a tensor begins there").block
                };
                let shape = vec![adapter.ranks(), adapter.input];
                places.push(Place { offset: adapter.a, shape, block: block(adapter.a) });
                let b = |part: &lora::Part| Place {
                    offset: part.b,
                    shape: vec![part.width, adapter.rank],
                    block: block(part.b),
                };
                places.extend(adapter.parts.iter().map(b));
            }
        }
        let place_of = |offset: usize| places.partition_point(|place| place.offset < offset);
        let site = |adapter: &lora::Adapter| SitePlaces::of(adapter, place_of);
        let layer = |n: usize| {
            let sites = model.adapters(n).expect("a model with adapters");
            sites.each_ref().map(|adapter| adapter.as_ref().map(site))
        };
        let adapters = (0..model.layers as usize).map(layer).collect();
        Layout { embedding: None, layers: Vec::new(), adapters, head: None, places }
    }

    fn of_all(model: &StageModel) -> Self {
        // Each of these goes on where the tensor before it ends.
        const JOINED: [&str; 6] =
            ["k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias", "k_norm.weight", "up_proj.weight"];
        let mut places: Vec<Place> = Vec::new();
        for param in model.params() {
            let joined = JOINED.iter().any(|name| param.name.ends_with(name));
            match places.last_mut().filter(|_| joined) {
                Some(place) => place.shape[0] += param.shape[0],
                None => places.push(Place { offset: param.offset, shape: param.shape.clone(), block: param.block }),
            }
        }
        let place_of = |offset: usize| places.partition_point(|place| place.offset < offset);
        let layer = |n: usize| {
            let at = model.layer_offsets(n);
            LayerPlaces {
                input_norm: place_of(at.input_norm),
                qkv: place_of(at.qkv),
                qkv_bias: at.qkv_bias.map(place_of),
                qk_norm: at.qk_norm.map(place_of),
                output: place_of(at.output),
                mlp_norm: place_of(at.mlp_norm),
                gate_up: place_of(at.gate_up),
                down: place_of(at.down),
                window: at.window,
            }
        };
        let layers = (0..model.layers as usize).map(layer).collect();
        let head = model.head_offsets().filter(|_| model.head);
        let head = head.map(|(norm, matrix)| (place_of(norm), place_of(matrix)));
        Layout { embedding: model.embedding.then_some(0), layers, adapters: Vec::new(), head, places }
    }

    /// What the tokens of each layer see.
    pub fn windows(&self) -> impl Iterator<Item = Option<usize>> + '_ {
        self.layers.iter().map(|layer| layer.window)
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
    pub fn multiplied(&self, place: usize) -> bool {
        let looked_up = self.embedding == Some(place) && self.head.is_none_or(|(_, matrix)| matrix != place);
        self.places[place].is_matrix() && !looked_up
    }
}

pub struct Weights {
    pub number: u64,
    /// f32, of what is trained.
    pub master: Vec<Tensor>,
    /// What products read; elsewhere the master.
    operands: Vec<Tensor>,
}

/// Weights as a forward or a backward reads them.
#[derive(Clone, Copy)]
pub struct Reading<'a> {
    pub layout: &'a Layout,
    pub weights: &'a Weights,
    pub frozen: Option<&'a Frozen>,
    pub precision: Precision,
}

impl<'a> Reading<'a> {
    /// Where the layers' own tensors are.
    pub fn base(self) -> &'a Layout {
        self.frozen.map_or(self.layout, |frozen| &frozen.layout)
    }

    pub fn vector(self, place: usize) -> &'a Tensor {
        self.frozen.map_or_else(|| &self.weights.operands[place], |frozen| frozen.vector(place))
    }

    pub fn matrix(self, place: usize) -> Operand<'a> {
        match self.frozen {
            Some(frozen) => frozen.matrix(place, self.precision),
            None => Operand::Tensor(&self.weights.operands[place]),
        }
    }

    /// The rows of the embedding for `ids [n]`, `[n, hidden]` in f32.
    pub fn embed(self, ids: &Tensor) -> Result<Tensor> {
        match self.frozen {
            Some(frozen) => frozen.embed(ids),
            None => Ok(self.weights.master[0].index_select(ids, 0)?),
        }
    }

    pub fn layer(self, n: usize) -> Layer<'a> {
        let places = self.base().layers[n];
        let site = |places: &'a Option<SitePlaces>| {
            let (operands, precision) = (&self.weights.operands[..], self.precision);
            places.as_ref().map(|places| Site { places, operands, precision })
        };
        Layer {
            places,
            input_norm: self.vector(places.input_norm),
            qkv: self.matrix(places.qkv),
            qkv_bias: places.qkv_bias.map(|place| self.vector(place)),
            qk_norm: places.qk_norm.map(|place| self.vector(place)),
            output: self.matrix(places.output),
            mlp_norm: self.vector(places.mlp_norm),
            gate_up: self.matrix(places.gate_up),
            down: self.matrix(places.down),
            adapters: self.layout.adapters.get(n).map_or([None; 4], |sites| sites.each_ref().map(site)),
        }
    }
}

/// Where the tensors of one layer lie among the places.
#[derive(Clone, Copy)]
pub struct LayerPlaces {
    pub input_norm: usize,
    pub qkv: usize,
    pub qkv_bias: Option<usize>,
    pub qk_norm: Option<usize>,
    pub output: usize,
    pub mlp_norm: usize,
    pub gate_up: usize,
    pub down: usize,
    /// Tokens that a token sees; nothing: all before it.
    pub window: Option<usize>,
}

/// The weights of one layer, as they are read.
pub struct Layer<'a> {
    pub places: LayerPlaces,
    pub input_norm: &'a Tensor,
    pub qkv: Operand<'a>,
    pub qkv_bias: Option<&'a Tensor>,
    /// `[2 head]`: of q's heads, then of k's.
    pub qk_norm: Option<&'a Tensor>,
    pub output: Operand<'a>,
    pub mlp_norm: &'a Tensor,
    pub gate_up: Operand<'a>,
    pub down: Operand<'a>,
    /// Beside them, one a [`lora::Site`]: then these alone are trained.
    pub adapters: [Option<Site<'a>>; 4],
}

impl<'a> Layer<'a> {
    pub fn site(&self, site: lora::Site) -> Option<Site<'a>> {
        self.adapters[site as usize]
    }

    /// Whether its own matrices are trained.
    pub fn is_trained(&self) -> bool {
        self.adapters.iter().all(Option::is_none)
    }
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
}
