//! Adapters of low rank beside frozen matrices, `y = W x + (alpha / rank) B A x` (LoRA, Hu et al. 2021): only A and B are trained,
//! averaged and saved. In: a stage's model and which of its matrices have adapters. Out: where these lie in the flat buffer.
//!
//! Matrices that read the same input lie next to each other in the stage's buffer; so do their A's, which are one matrix here.

use skein_protocol::run::{Lora, ModelConfig};

use super::StageModel;

/// Matrices that read the same input and give neighbouring columns, as [`super::LayerOffsets`] groups them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    Qkv,
    Output,
    GateUp,
    Down,
}

impl Site {
    pub const ALL: [Site; 4] = [Site::Qkv, Site::Output, Site::GateUp, Site::Down];

    /// What a run calls each of its matrices, its name in a layer, and its rows.
    fn matrices(self, c: &ModelConfig) -> Vec<(&'static str, &'static str, u32)> {
        let (q, kv) = (c.heads * c.head(), c.kv_heads * c.head());
        match self {
            Site::Qkv => {
                vec![("q", "self_attn.q_proj", q), ("k", "self_attn.k_proj", kv), ("v", "self_attn.v_proj", kv)]
            }
            Site::Output => vec![("o", "self_attn.o_proj", c.hidden)],
            Site::GateUp => vec![("gate", "mlp.gate_proj", c.ffn), ("up", "mlp.up_proj", c.ffn)],
            Site::Down => vec![("down", "mlp.down_proj", c.hidden)],
        }
    }

    fn input(self, c: &ModelConfig) -> u32 {
        match self {
            Site::Qkv | Site::GateUp => c.hidden,
            Site::Output => c.heads * c.head(),
            Site::Down => c.ffn,
        }
    }
}

/// The adapters of one site of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub site: Site,
    /// Where the A's begin in the flat buffer: together `[rank * parts, input]`.
    pub a: usize,
    pub input: usize,
    pub rank: usize,
    /// `alpha / rank`
    pub scale: f32,
    pub parts: Vec<Part>,
}

impl Adapter {
    /// Rows of the A's together.
    pub fn ranks(&self) -> usize {
        self.rank * self.parts.len()
    }
}

/// One matrix' B.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins in the flat buffer: `[width, rank]`.
    pub b: usize,
    /// First of its columns in what the site gives.
    pub first: usize,
    pub width: usize,
}

/// Tensors of one layer's adapters in canonical order: name in the layer, shape. For each site its A's, then its B's.
pub(super) fn tensors(config: &ModelConfig, lora: &Lora) -> Vec<(String, [u32; 2])> {
    let mut tensors = Vec::new();
    for site in Site::ALL {
        let chosen = chosen(site, config, lora);
        tensors
            .extend(chosen.iter().map(|(name, ..)| (format!("{name}.lora_A.weight"), [lora.rank, site.input(config)])));
        tensors.extend(chosen.iter().map(|(name, _, rows)| (format!("{name}.lora_B.weight"), [*rows, lora.rank])));
    }
    tensors
}

/// The adapters of one layer, whose tensors begin at `start`.
pub(super) fn adapters(config: &ModelConfig, lora: &Lora, start: usize) -> [Option<Adapter>; 4] {
    let (rank, mut at) = (lora.rank as usize, start);
    Site::ALL.map(|site| {
        let (chosen, input) = (chosen(site, config, lora), site.input(config) as usize);
        let a = at;
        at += chosen.len() * rank * input;
        let parts: Vec<Part> = chosen
            .into_iter()
            .map(|(_, first, rows)| {
                let part = Part { b: at, first, width: rows as usize };
                at += part.width * rank;
                part
            })
            .collect();
        let scale = (f64::from(lora.alpha) / f64::from(lora.rank)) as f32;
        (!parts.is_empty()).then_some(Adapter { site, a, input, rank, scale, parts })
    })
}

/// Adds to the matrices in `frozen` what the adapters `params` of `model` make of their inputs: `W + (alpha / rank) B A`.
///
/// # Panics
/// If the model has no adapters, or the buffers are of another.
pub fn merge(model: &StageModel, params: &[f32], frozen: &mut [f32]) {
    for n in 0..model.layers as usize {
        let at = model.layer_offsets(n);
        let sites = model.adapters(n).expect("a model with adapters");
        for adapter in sites.iter().flatten() {
            let site = match adapter.site {
                Site::Qkv => at.qkv,
                Site::Output => at.output,
                Site::GateUp => at.gate_up,
                Site::Down => at.down,
            };
            for (i, part) in adapter.parts.iter().enumerate() {
                let a = &params[adapter.a + i * adapter.rank * adapter.input..][..adapter.rank * adapter.input];
                let b = &params[part.b..][..part.width * adapter.rank];
                let rows = &mut frozen[site + part.first * adapter.input..][..part.width * adapter.input];
                for (row, b) in rows.chunks_exact_mut(adapter.input).zip(b.chunks_exact(adapter.rank)) {
                    for (&b, a) in b.iter().zip(a.chunks_exact(adapter.input)) {
                        row.iter_mut().zip(a).for_each(|(w, a)| *w += adapter.scale * b * a);
                    }
                }
            }
        }
    }
}

/// Of a site's matrices those that have adapters: name, first column, rows.
fn chosen(site: Site, config: &ModelConfig, lora: &Lora) -> Vec<(&'static str, usize, u32)> {
    let mut first = 0;
    let placed = site.matrices(config).into_iter().map(|(word, name, rows)| {
        let here = first;
        first += rows as usize;
        (word, (name, here, rows))
    });
    placed.filter(|(word, _)| lora.targets.iter().any(|target| target == word)).map(|(_, matrix)| matrix).collect()
}
