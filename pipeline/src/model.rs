//! What a stage computes: its layers, its parameters in their one canonical order, and what it costs.
//!
//! In: a manifest and a stage index. Out: names, shapes and offsets in one flat buffer, initial values, bytes, operations.
//! It knows no engine: every engine, averaging, checkpoints and exports read the same order from here.

pub mod cost;
pub mod init;
pub mod schedule;
pub mod state;

use std::ops::Range;

use skein_protocol::{
    Manifest, Stage,
    run::{Family, ModelConfig},
};

/// A manifest's model that no engine here can compute.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BadModel {
    #[error("family {0:?} is not built yet; this build trains the llama family")]
    Family(Family),
    #[error("{what} is {got}, it must be {wanted}")]
    Shape { what: &'static str, got: u64, wanted: String },
    #[error("stage {stage} does not exist, the run has {count}")]
    NoStage { stage: Stage, count: u16 },
    #[error("the split of the layers sums to {got}, the model has {layers}")]
    Split { got: u64, layers: u32 },
    #[error("the stage has more parameters than this machine can address")]
    TooLarge,
}

/// The part of a model whose gradient norm is bounded by itself, so that clipping does not depend on the split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Block {
    Embedding,
    /// Global index of the layer.
    Layer(u32),
    /// Final norm, and the head where it is a tensor of its own.
    Head,
}

/// One tensor: a slice of the stage's flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Hugging Face name, layers counted over the whole model.
    pub name: String,
    /// `[out, in]` for a matrix, `[n]` for a vector.
    pub shape: Vec<usize>,
    /// Of its first value in the flat buffer.
    pub offset: usize,
    /// Index into [`StageModel::blocks`].
    pub block: usize,
}

impl Param {
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.values()
    }

    /// Matrices decay, vectors (norms) do not.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() > 1
    }
}

/// Sizes of a layer, as numbers to index with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dims {
    /// Width of the residual stream.
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub context: usize,
    pub eps: f32,
    pub theta: f64,
}

impl Dims {
    /// Columns of q, k and v together.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head
    }

    /// Columns of k (or v).
    pub fn kv(&self) -> usize {
        self.kv_heads * self.head
    }
}

/// Where the tensors of one layer begin. q, k, v lie next to each other, as do gate and up: each group is one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerOffsets {
    pub input_norm: usize,
    /// `[(heads + 2 kv_heads) * head, hidden]`
    pub qkv: usize,
    /// `[hidden, heads * head]`
    pub output: usize,
    pub mlp_norm: usize,
    /// `[2 ffn, hidden]`
    pub gate_up: usize,
    /// `[hidden, ffn]`
    pub down: usize,
}

/// What one stage computes, and the canonical order of its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct StageModel {
    pub config: ModelConfig,
    /// Global index of the first layer.
    pub first_layer: u32,
    pub layers: u32,
    /// Token ids come in.
    pub embedding: bool,
    /// The loss comes out.
    pub head: bool,
    params: Vec<Param>,
    blocks: Vec<(Block, Range<usize>)>,
}

pub const EMBEDDING: &str = "model.embed_tokens.weight";
pub const FINAL_NORM: &str = "model.norm.weight";
pub const HEAD: &str = "lm_head.weight";

impl StageModel {
    /// Stage `stage` of `manifest`.
    pub fn of(manifest: &Manifest, stage: Stage) -> Result<Self, BadModel> {
        let count = manifest.stages.count;
        if stage >= count || usize::from(count) != manifest.stages.split.len() {
            return Err(BadModel::NoStage { stage, count });
        }
        let layers = manifest.model.config.layers;
        let got = manifest.stages.split.iter().map(|&n| u64::from(n)).sum();
        if got != u64::from(layers) {
            return Err(BadModel::Split { got, layers });
        }
        if manifest.model.family != Family::Llama {
            return Err(BadModel::Family(manifest.model.family));
        }
        let (first, n) = manifest.layers_of(stage);
        Self::new(manifest.model.config.clone(), first, n, stage == 0, stage + 1 == count)
    }

    /// All layers in one stage.
    pub fn whole(config: ModelConfig) -> Result<Self, BadModel> {
        let layers = config.layers;
        Self::new(config, 0, layers, true, true)
    }

    pub fn new(
        config: ModelConfig,
        first_layer: u32,
        layers: u32,
        embedding: bool,
        head: bool,
    ) -> Result<Self, BadModel> {
        check(&config)?;
        let mut list = List::default();
        let (d, f, v) = (config.hidden, config.ffn, config.vocab);
        let head_size = d / config.heads;
        let kv = config.kv_heads * head_size;
        if embedding {
            list.add(Block::Embedding, EMBEDDING.into(), &[v, d])?;
        }
        for layer in first_layer..first_layer.checked_add(layers).ok_or(BadModel::TooLarge)? {
            let block = Block::Layer(layer);
            for (name, shape) in [
                ("input_layernorm", &[d][..]),
                ("self_attn.q_proj", &[d, d]),
                ("self_attn.k_proj", &[kv, d]),
                ("self_attn.v_proj", &[kv, d]),
                ("self_attn.o_proj", &[d, d]),
                ("post_attention_layernorm", &[d]),
                ("mlp.gate_proj", &[f, d]),
                ("mlp.up_proj", &[f, d]),
                ("mlp.down_proj", &[d, f]),
            ] {
                list.add(block, format!("model.layers.{layer}.{name}.weight"), shape)?;
            }
        }
        if head {
            list.add(Block::Head, FINAL_NORM.into(), &[d])?;
            if !(config.tie_embeddings && embedding) {
                list.add(Block::Head, HEAD.into(), &[v, d])?;
            }
        }
        Ok(StageModel { config, first_layer, layers, embedding, head, params: list.params, blocks: list.blocks })
    }

    /// In canonical order; offsets rise without gaps.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Each block and its slice of the flat buffer, in canonical order.
    pub fn blocks(&self) -> &[(Block, Range<usize>)] {
        &self.blocks
    }

    /// Length of the flat buffer.
    pub fn values(&self) -> usize {
        self.params.last().map_or(0, |p| p.range().end)
    }

    pub fn param(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|p| p.name == name)
    }

    /// Whether one tensor is both embedding and head here. Over more than one stage a tie is undone at the start.
    pub fn tied(&self) -> bool {
        self.config.tie_embeddings && self.embedding && self.head
    }

    pub fn dims(&self) -> Dims {
        let size = |n: u32| n as usize;
        let c = &self.config;
        Dims {
            hidden: size(c.hidden),
            heads: size(c.heads),
            kv_heads: size(c.kv_heads),
            head: size(c.hidden / c.heads),
            ffn: size(c.ffn),
            vocab: size(c.vocab),
            context: size(c.context),
            eps: c.norm_eps as f32,
            theta: c.rope_theta,
        }
    }

    /// Of the `n`th layer of this stage.
    pub fn layer_offsets(&self, n: usize) -> LayerOffsets {
        let first = usize::from(self.embedding) + n * 9;
        let at = |i: usize| self.params[first + i].offset;
        LayerOffsets { input_norm: at(0), qkv: at(1), output: at(4), mlp_norm: at(5), gate_up: at(6), down: at(8) }
    }

    /// Where the matrix of the head begins (the embedding's, where the two are tied), and the final norm.
    pub fn head_offsets(&self) -> Option<(usize, usize)> {
        let norm = self.param(FINAL_NORM)?.offset;
        let head = self.param(if self.tied() { EMBEDDING } else { HEAD })?.offset;
        Some((norm, head))
    }
}

#[derive(Default)]
struct List {
    params: Vec<Param>,
    blocks: Vec<(Block, Range<usize>)>,
}

impl List {
    fn add(&mut self, block: Block, name: String, shape: &[u32]) -> Result<(), BadModel> {
        let offset = self.params.last().map_or(0, |p| p.range().end);
        let values = shape.iter().try_fold(1u64, |n, &s| n.checked_mul(u64::from(s))).ok_or(BadModel::TooLarge)?;
        let end = (offset as u64).checked_add(values).filter(|&end| end <= isize::MAX as u64 / 16);
        let end = end.ok_or(BadModel::TooLarge)? as usize;
        match self.blocks.last_mut() {
            Some((last, range)) if *last == block => range.end = end,
            _ => self.blocks.push((block, offset..end)),
        }
        let shape = shape.iter().map(|&s| s as usize).collect();
        self.params.push(Param { name, shape, offset, block: self.blocks.len() - 1 });
        Ok(())
    }
}

fn check(c: &ModelConfig) -> Result<(), BadModel> {
    let bad = |what, got: u32, wanted: String| Err(BadModel::Shape { what, got: u64::from(got), wanted });
    for (what, got) in [
        ("model.config.hidden", c.hidden),
        ("model.config.layers", c.layers),
        ("model.config.heads", c.heads),
        ("model.config.kv_heads", c.kv_heads),
        ("model.config.ffn", c.ffn),
        ("model.config.vocab", c.vocab),
        ("model.config.context", c.context),
    ] {
        if got == 0 {
            return bad(what, got, "above 0".into());
        }
    }
    if !c.hidden.is_multiple_of(c.heads) || !(c.hidden / c.heads).is_multiple_of(2) {
        return bad("model.config.hidden", c.hidden, format!("an even multiple of heads ({})", c.heads));
    }
    if !c.heads.is_multiple_of(c.kv_heads) {
        return bad("model.config.kv_heads", c.kv_heads, format!("a divisor of heads ({})", c.heads));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn tiny() -> ModelConfig {
        ModelConfig {
            hidden: 16,
            layers: 3,
            heads: 4,
            kv_heads: 2,
            ffn: 24,
            vocab: 11,
            context: 32,
            rope_theta: 10_000.0,
            tie_embeddings: false,
            norm_eps: 1e-5,
        }
    }

    #[test]
    fn the_order_is_gapless_and_names_count_layers_over_the_whole_model() {
        let whole = StageModel::whole(tiny()).unwrap();
        let mut at = 0;
        for p in whole.params() {
            assert_eq!(p.offset, at, "{}", p.name);
            at += p.values();
        }
        assert_eq!(at, whole.values());
        assert_eq!(whole.params().len(), 1 + 27 + 2);
        assert_eq!(whole.blocks().len(), 5);
        assert_eq!(whole.blocks().last().unwrap().1.end, at);

        let middle = StageModel::new(tiny(), 1, 1, false, false).unwrap();
        assert_eq!(middle.params()[1].name, "model.layers.1.self_attn.q_proj.weight");
        assert_eq!(middle.params()[2].shape, [8, 16]);
        let offsets = middle.layer_offsets(0);
        assert_eq!(offsets.qkv, 16);
        assert_eq!(offsets.output, 16 + 32 * 16);
    }

    #[test]
    fn the_stages_together_hold_every_tensor_of_the_whole_once() {
        let whole = StageModel::whole(tiny()).unwrap();
        let stages = [
            StageModel::new(tiny(), 0, 1, true, false).unwrap(),
            StageModel::new(tiny(), 1, 1, false, false).unwrap(),
            StageModel::new(tiny(), 2, 1, false, true).unwrap(),
        ];
        let names = |s: &StageModel| s.params().iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        assert_eq!(stages.iter().flat_map(names).collect::<Vec<_>>(), names(&whole));
        assert_eq!(stages.iter().map(StageModel::values).sum::<usize>(), whole.values());
    }

    #[test]
    fn a_tie_is_one_tensor_in_one_stage_and_two_over_more() {
        let config = ModelConfig { tie_embeddings: true, ..tiny() };
        let whole = StageModel::whole(config.clone()).unwrap();
        assert!(whole.tied() && whole.param(HEAD).is_none());
        assert_eq!(whole.head_offsets().unwrap().1, 0);
        let last = StageModel::new(config, 2, 1, false, true).unwrap();
        assert!(!last.tied() && last.param(HEAD).is_some());
    }

    #[test]
    fn shapes_that_no_engine_can_compute_are_refused() {
        for config in [
            ModelConfig { hidden: 0, ..tiny() },
            ModelConfig { heads: 3, ..tiny() },
            ModelConfig { kv_heads: 3, ..tiny() },
            ModelConfig { hidden: 12, heads: 4, ..tiny() },
        ] {
            assert!(matches!(StageModel::whole(config), Err(BadModel::Shape { .. })));
        }
        let huge = ModelConfig { hidden: 1 << 30, vocab: u32::MAX, heads: 1, kv_heads: 1, ..tiny() };
        assert_eq!(StageModel::whole(huge), Err(BadModel::TooLarge));
    }
}
