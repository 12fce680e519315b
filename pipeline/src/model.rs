//! What a stage computes: its layers, its parameters in their one canonical order, and what it costs.
//!
//! In: a manifest and a stage index. Out: names, shapes and offsets in one flat buffer, initial values, bytes, operations.
//! It knows no engine: every engine, averaging, checkpoints and exports read the same order from here.

pub mod cost;
pub mod frozen;
pub mod init;
pub mod lora;
pub mod schedule;
pub mod state;

use std::ops::Range;

use skein_protocol::{
    Manifest, Stage,
    run::{Lora, ModelConfig, RopeScaling, Window},
};

use self::lora::Adapter;

/// A manifest's model that no engine here can compute.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BadModel {
    #[error("{what} is {got}, it must be {wanted}")]
    Shape { what: &'static str, got: u64, wanted: String },
    #[error("stage {stage} does not exist, the run has {count}")]
    NoStage { stage: Stage, count: u16 },
    #[error("the split of the layers sums to {got}, the model has {layers}")]
    Split { got: u64, layers: u32 },
    #[error("the stage has more parameters than this machine can address")]
    TooLarge,
    #[error("adapters of rank {rank} beside {targets:?}: a rank of 1 or more, and some of q, k, v, o, gate, up, down")]
    Adapters { rank: u32, targets: Vec<String> },
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

    /// Matrices decay, vectors (norms, biases) do not.
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
    pub scaling: Option<RopeScaling>,
    /// Each head of q and k is normalised.
    pub qk_norm: bool,
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    /// Rows of the A's at each [`lora::Site`]; 0 where there are no adapters.
    pub ranks: [usize; 4],
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

    /// Columns of q (or of what the attention gives).
    pub fn q(&self) -> usize {
        self.heads * self.head
    }
}

/// Where the tensors of one layer begin. q, k, v lie next to each other, as do gate and up: each group is one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerOffsets {
    pub input_norm: usize,
    /// `[(heads + 2 kv_heads) * head, hidden]`
    pub qkv: usize,
    /// `[(heads + 2 kv_heads) * head]`, where there is one.
    pub qkv_bias: Option<usize>,
    /// `[head]` of q, then as many of k, where heads are normalised.
    pub qk_norm: Option<usize>,
    /// `[hidden, heads * head]`
    pub output: usize,
    pub mlp_norm: usize,
    /// `[2 ffn, hidden]`
    pub gate_up: usize,
    /// `[hidden, ffn]`
    pub down: usize,
    /// Tokens that a token of this layer sees, itself among them; nothing: all before it.
    pub window: Option<usize>,
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
    adapted: Option<Box<Adapted>>,
}

/// What stands beside the parameters where these are adapters.
#[derive(Clone, Debug, PartialEq)]
struct Adapted {
    lora: Lora,
    frozen: StageModel,
    layers: Vec<[Option<Adapter>; 4]>,
}

pub const EMBEDDING: &str = "model.embed_tokens.weight";
pub const FINAL_NORM: &str = "model.norm.weight";
pub const HEAD: &str = "lm_head.weight";

impl StageModel {
    /// Stage `stage` of `manifest`: all of its weights, or the adapters beside them.
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
        let (first, n) = manifest.layers_of(stage);
        let all = Self::new(manifest.model.config.clone(), first, n, stage == 0, stage + 1 == count)?;
        match manifest.lora() {
            Some(lora) => Self::adapted(all, lora.clone()),
            None => Ok(all),
        }
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
        let head_size = config.head();
        let width = |heads: u32| heads.checked_mul(head_size).ok_or(BadModel::TooLarge);
        let (q, kv) = (width(config.heads)?, width(config.kv_heads)?);
        if embedding {
            list.add(Block::Embedding, EMBEDDING.into(), &[v, d])?;
        }
        for layer in first_layer..first_layer.checked_add(layers).ok_or(BadModel::TooLarge)? {
            let mut add = |name: &str, shape: &[u32]| {
                list.add(Block::Layer(layer), format!("model.layers.{layer}.{name}"), shape)
            };
            add("input_layernorm.weight", &[d])?;
            add("self_attn.q_proj.weight", &[q, d])?;
            add("self_attn.k_proj.weight", &[kv, d])?;
            add("self_attn.v_proj.weight", &[kv, d])?;
            if config.qkv_bias {
                add("self_attn.q_proj.bias", &[q])?;
                add("self_attn.k_proj.bias", &[kv])?;
                add("self_attn.v_proj.bias", &[kv])?;
            }
            if config.qk_norm {
                add("self_attn.q_norm.weight", &[head_size])?;
                add("self_attn.k_norm.weight", &[head_size])?;
            }
            add("self_attn.o_proj.weight", &[d, q])?;
            add("post_attention_layernorm.weight", &[d])?;
            add("mlp.gate_proj.weight", &[f, d])?;
            add("mlp.up_proj.weight", &[f, d])?;
            add("mlp.down_proj.weight", &[d, f])?;
        }
        if head {
            list.add(Block::Head, FINAL_NORM.into(), &[d])?;
            if !(config.tie_embeddings && embedding) {
                list.add(Block::Head, HEAD.into(), &[v, d])?;
            }
        }
        let List { params, blocks } = list;
        Ok(StageModel { config, first_layer, layers, embedding, head, params, blocks, adapted: None })
    }

    /// Adapters beside the matrices of `frozen`: its parameters are the adapters alone.
    pub fn adapted(frozen: StageModel, lora: Lora) -> Result<Self, BadModel> {
        let tensors = lora::tensors(&frozen.config, &lora);
        if lora.rank == 0 || tensors.is_empty() {
            return Err(BadModel::Adapters { rank: lora.rank, targets: lora.targets });
        }
        let (mut list, mut starts) = (List::default(), Vec::new());
        for layer in frozen.first_layer..frozen.first_layer + frozen.layers {
            starts.push(list.params.last().map_or(0, |p| p.range().end));
            for (name, shape) in &tensors {
                list.add(Block::Layer(layer), format!("model.layers.{layer}.{name}"), shape)?;
            }
        }
        let layers = starts.into_iter().map(|start| lora::adapters(&frozen.config, &lora, start)).collect();
        let List { params, blocks } = list;
        let StageModel { first_layer, layers: count, embedding, head, .. } = frozen;
        let config = frozen.config.clone();
        let adapted = Some(Box::new(Adapted { lora, frozen, layers }));
        Ok(StageModel { config, first_layer, layers: count, embedding, head, params, blocks, adapted })
    }

    /// What is not trained, where the parameters are adapters.
    pub fn frozen(&self) -> Option<&StageModel> {
        self.adapted.as_ref().map(|adapted| &adapted.frozen)
    }

    /// The adapters of a run, where its parameters are such.
    pub fn lora(&self) -> Option<&Lora> {
        self.adapted.as_ref().map(|adapted| &adapted.lora)
    }

    /// Of the `n`th layer of this stage, one a [`lora::Site`].
    pub fn adapters(&self, n: usize) -> Option<&[Option<Adapter>; 4]> {
        self.adapted.as_ref().map(|adapted| &adapted.layers[n])
    }

    /// Where the layers' own tensors lie: in a buffer of its own, where the parameters are adapters.
    fn base(&self) -> &StageModel {
        self.frozen().unwrap_or(self)
    }

    /// What is trained, in canonical order; offsets rise without gaps.
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
            head: size(c.head()),
            ffn: size(c.ffn),
            vocab: size(c.vocab),
            context: size(c.context),
            eps: c.norm_eps as f32,
            theta: c.rope_theta,
            scaling: c.rope_scaling,
            qk_norm: c.qk_norm,
            qkv_bias: c.qkv_bias,
            ranks: match self.adapters(0) {
                Some(sites) => sites.each_ref().map(|adapter| adapter.as_ref().map_or(0, Adapter::ranks)),
                None => [0; 4],
            },
        }
    }

    /// Of the `n`th layer of this stage, in the buffer of what is frozen where the parameters are adapters.
    pub fn layer_offsets(&self, n: usize) -> LayerOffsets {
        let (bias, norm) = (3 * usize::from(self.config.qkv_bias), 2 * usize::from(self.config.qk_norm));
        let first = usize::from(self.embedding) + n * (9 + bias + norm);
        let params = &self.base().params;
        let at = |i: usize| params[first + i].offset;
        let rest = 4 + bias + norm;
        LayerOffsets {
            input_norm: at(0),
            qkv: at(1),
            qkv_bias: self.config.qkv_bias.then(|| at(4)),
            qk_norm: self.config.qk_norm.then(|| at(4 + bias)),
            output: at(rest),
            mlp_norm: at(rest + 1),
            gate_up: at(rest + 2),
            down: at(rest + 4),
            window: self.config.window.and_then(|window| self.window_of(window, n)),
        }
    }

    fn window_of(&self, window: Window, n: usize) -> Option<usize> {
        (self.first_layer as usize + n >= window.from as usize).then_some(window.size as usize)
    }

    /// Where the matrix of the head begins (the embedding's, where the two are tied), and the final norm.
    pub fn head_offsets(&self) -> Option<(usize, usize)> {
        let base = self.base();
        let norm = base.param(FINAL_NORM)?.offset;
        let head = base.param(if self.tied() { EMBEDDING } else { HEAD })?.offset;
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
    if c.head.is_none() && !c.hidden.is_multiple_of(c.heads) {
        return bad("model.config.hidden", c.hidden, format!("a multiple of heads ({})", c.heads));
    }
    if c.head() == 0 || !c.head().is_multiple_of(2) {
        return bad("model.config.head", c.head(), "even".into());
    }
    if c.window.is_some_and(|window| window.size == 0) {
        return bad("model.config.window.size", 0, "above 0".into());
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
            head: None,
            rope_scaling: None,
            window: None,
            qkv_bias: false,
            qk_norm: false,
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
    fn biases_and_norms_of_heads_lie_behind_what_they_belong_to() {
        let window = Some(Window { size: 5, from: 1 });
        let config = ModelConfig { head: Some(6), qkv_bias: true, qk_norm: true, window, ..tiny() };
        let whole = StageModel::whole(config.clone()).unwrap();
        let (qkv, first) = ((4 + 2 + 2) * 6, 11 * 16 + 16);
        for n in 0..3 {
            let at = whole.layer_offsets(n);
            let start = 11 * 16 + n * (at.down + 16 * 24 - at.input_norm);
            assert_eq!((at.input_norm, at.qkv), (start, start + 16));
            assert_eq!(at.qkv_bias, Some(at.qkv + qkv * 16));
            assert_eq!(at.qk_norm, Some(at.qkv + qkv * 16 + qkv));
            assert_eq!(at.output, at.qkv + qkv * 16 + qkv + 12);
            assert_eq!(at.window, (n > 0).then_some(5));
        }
        assert_eq!(whole.layer_offsets(0).qkv, first);
        // A window is counted over the whole model.
        let last = StageModel::new(config, 1, 2, false, true).unwrap();
        assert_eq!(last.layer_offsets(0).window, Some(5));
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
