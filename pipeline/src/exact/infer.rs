//! Generation: a session's keys and values of every layer, grown piece by piece.
//!
//! A session keeps the weights of its first piece, so that cache and weights agree while training goes on. At most two such
//! versions are held besides the one in use: a new session joins the newer of them instead of pinning a third.

use std::sync::Arc;

use super::{
    attention::{self, BLOCK, Head},
    block::{self, HeadTape, Weights},
    engine::{EngineError, StageInput},
    head,
    input::check_tokens,
    kernel,
    product::{Matrix, Product},
    stage::{Held, StageEngine, params},
};
use crate::model::{Dims, lora::Site};

/// Versions that sessions may pin.
const PINNED_MAX: usize = 2;

pub struct Session {
    pub held: Arc<Held>,
    /// Positions in the cache.
    len: usize,
    /// `[position, kv]` of each layer.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl<P: Product> StageEngine<P> {
    pub(super) fn infer_piece(
        &mut self,
        id: u64,
        position: usize,
        input: StageInput<'_>,
    ) -> Result<Vec<f32>, EngineError> {
        let d = self.dims.hidden;
        let held = match self.sessions.get(&id) {
            Some(session) => session.held.clone(),
            None => pinned(&self.held, self.sessions.values().map(|s| &s.held), Held::number),
        };
        let mut x = match input {
            StageInput::Tokens(tokens) if self.model.embedding => {
                check_tokens(tokens, self.dims.vocab)?;
                let table = params(&held, self.frozen.as_deref(), &self.panels).flat;
                tokens.iter().flat_map(|&id| &table[id as usize * d..][..d]).copied().collect()
            }
            StageInput::Hidden(x) if !self.model.embedding && x.len().is_multiple_of(d) && kernel::finite(x) => {
                x.to_vec()
            }
            _ => return Err(EngineError::BadInput("the piece of a generation is not of this stage".into())),
        };
        let n = x.len() / d;
        let known = self.sessions.get(&id).map_or(0, |s| s.len);
        if n == 0 || position > known || position + n > self.dims.context {
            let text = format!("{n} tokens at {position} after {known} known, of {} at most", self.dims.context);
            return Err(EngineError::BadInput(text));
        }
        self.prepare(&held);
        let session = self.sessions.entry(id).or_insert_with(|| Session {
            held: held.clone(),
            len: 0,
            keys: vec![Vec::new(); self.plan.layers.len()],
            values: vec![Vec::new(); self.plan.layers.len()],
        });
        session.cut(position, self.dims.kv());
        let rope = kernel::rope_table(position..position + n, self.dims.head / 2, self.dims.theta, self.dims.scaling);
        let params = params(&held, self.frozen.as_deref(), &self.panels);
        for (layer, at) in self.plan.layers.iter().enumerate() {
            let cache = (&mut session.keys[layer], &mut session.values[layer]);
            let weights = Weights::new(&self.dims, at, self.plan.adapters.get(layer), params);
            piece(&mut self.product, &self.dims, &weights, &rope, position, cache, &mut x);
        }
        session.len = position + n;
        let out = match self.plan.head {
            Some(at) => head::logits(&mut self.product, &self.dims, at, params, &x[(n - 1) * d..]),
            None => x,
        };
        if !kernel::finite(&out) {
            return Err(EngineError::NotFinite("the output of a generation"));
        }
        Ok(out)
    }
}

/// The version for a new session: `current`, or the newest that sessions hold where these are as many as may be held.
pub(crate) fn pinned<'a, V: 'a>(
    current: &Arc<V>,
    held: impl Iterator<Item = &'a Arc<V>>,
    number: impl Fn(&V) -> u64,
) -> Arc<V> {
    let mut held: Vec<&Arc<V>> = held.collect();
    held.sort_by_key(|v| number(v));
    held.dedup_by_key(|v| number(v));
    match held.last() {
        Some(newest) if held.len() >= PINNED_MAX => Arc::clone(newest),
        _ => current.clone(),
    }
}

impl Session {
    /// Forgets what lies at `position` and after.
    fn cut(&mut self, position: usize, kv: usize) {
        self.len = position;
        for cache in self.keys.iter_mut().chain(&mut self.values) {
            cache.truncate(position * kv);
        }
    }
}

/// One layer over the new rows of `x`, in place; appends their keys and values to the cache.
fn piece<P: Product>(
    product: &mut P,
    d: &Dims,
    w: &Weights<'_>,
    rope: &[f32],
    position: usize,
    (keys, values): (&mut Vec<f32>, &mut Vec<f32>),
    x: &mut [f32],
) {
    let (hidden, hd, att, kv, width) = (d.hidden, d.head, d.q(), d.kv(), d.qkv());
    let n = x.len() / hidden;
    let seen = position + n;
    let (mut h, mut inv) = (vec![0.0; n * hidden], vec![0.0; n]);
    let (mut qkv, mut raw) = (vec![0.0; n * width], vec![0.0; HeadTape::values(d, n)]);
    let mut low = vec![0.0; n * d.ranks.into_iter().max().unwrap_or(0)];
    kernel::rms(x, w.input_norm, d.eps, &mut h, &mut inv);
    block::project(product, d, w, rope, &h, &mut qkv, &mut HeadTape::over(d, n, &mut raw), &mut low);
    for row in qkv.chunks_exact(width) {
        keys.extend_from_slice(&row[att..att + kv]);
        values.extend_from_slice(&row[att + kv..]);
    }
    let (mut p, mut out) = (vec![0.0; n.min(BLOCK) * seen], vec![0.0; n * att]);
    for head in 0..d.heads {
        let group = head / (d.heads / d.kv_heads) * hd;
        for first in (0..n).step_by(BLOCK) {
            let queries = Matrix::strided(&qkv[first * width + head * hd..], BLOCK.min(n - first), hd, width);
            let head_of = Head { queries, keys: &keys[group..], values: &values[group..], stride: kv };
            let to = &mut out[first * att + head * hd..];
            let scale = 1.0 / (hd as f32).sqrt();
            attention::attend(product, &head_of, position + first, w.sight, scale, &mut p, seen, to, att);
        }
    }
    product.product(x, hidden, true, Matrix::new(&out, n, att), w.output.forward(), 1.0);
    w.adapt(product, Site::Output, &out, &mut low, x, hidden);

    let (mut gu, mut act) = (vec![0.0; n * 2 * d.ffn], vec![0.0; n * d.ffn]);
    kernel::rms(x, w.mlp_norm, d.eps, &mut h, &mut inv);
    product.product(&mut gu, 2 * d.ffn, false, Matrix::new(&h, n, hidden), w.gate_up.forward(), 1.0);
    w.adapt(product, Site::GateUp, &h, &mut low, &mut gu, 2 * d.ffn);
    kernel::swiglu(&gu, d.ffn, &mut act);
    product.product(x, hidden, true, Matrix::new(&act, n, d.ffn), w.down.forward(), 1.0);
    w.adapt(product, Site::Down, &act, &mut low, x, hidden);
}
