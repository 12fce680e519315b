//! Generation: a session's keys and values of every layer, grown piece by piece.
//!
//! A session keeps the weights of its first piece, so that cache and weights agree while training goes on. At most two such
//! versions are held besides the one in use: a new session joins the newer of them instead of pinning a third.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::{
    attention::{BLOCK, Head, Sight, attend},
    block::{self, HeadTape, Weights, grow},
    engine::{EngineError, Piece, StageInput},
    head,
    input::check_tokens,
    kernel,
    product::{COLUMNS, Matrix, Product},
    stage::{Held, StageEngine, params},
    weights::{Params, Weight},
};
use crate::model::{Dims, lora::Site};

/// Versions that sessions may pin.
const PINNED_MAX: usize = 2;

/// Values of the widest buffer that are kept for the next call: 16 MiB.
const ROOM_MAX: usize = 4 << 20;

/// Parts of a product: more than most machines have cores to spare, and few enough that each is worth a thread's while.
const PARTS: usize = 8;

pub struct Session {
    pub held: Arc<Held>,
    /// Positions in the cache.
    len: usize,
    /// `[position, kv]` of each layer.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

/// A piece that was checked: its rows among those of all pieces.
struct Begun {
    session: u64,
    position: usize,
    rows: Range<usize>,
}

impl<P: Product> StageEngine<P> {
    /// One result a piece. Pieces whose sessions use the same weights are rows of the same products; a session has one piece.
    pub(super) fn infer_together(&mut self, pieces: &[Piece<'_>]) -> Vec<Result<Vec<f32>, EngineError>> {
        let mut results: Vec<Option<Result<Vec<f32>, EngineError>>> = vec![None; pieces.len()];
        let mut by_version: BTreeMap<u64, (Arc<Held>, Vec<usize>)> = BTreeMap::new();
        for (i, piece) in pieces.iter().enumerate() {
            let again = pieces[..i].iter().any(|other| other.session == piece.session);
            match if again { Err(twice()) } else { self.begin(piece) } {
                Ok(held) => by_version.entry(held.number()).or_insert_with(|| (held, Vec::new())).1.push(i),
                Err(error) => results[i] = Some(Err(error)),
            }
        }
        for (held, group) in by_version.into_values() {
            let pieces: Vec<&Piece<'_>> = group.iter().map(|&i| &pieces[i]).collect();
            let outputs = self.infer_with(&held, &pieces);
            group.into_iter().zip(outputs).for_each(|(i, output)| results[i] = Some(output));
        }
        results.into_iter().map(|result| result.expect("every piece was refused or computed")).collect()
    }

    /// Checks a piece, opens its session, and forgets what the session knew from there on.
    fn begin(&mut self, piece: &Piece<'_>) -> Result<Arc<Held>, EngineError> {
        let (d, Piece { session: id, position, input }) = (self.dims.hidden, *piece);
        let n = match input {
            StageInput::Tokens(tokens) if self.model.embedding => {
                check_tokens(tokens, self.dims.vocab)?;
                tokens.len()
            }
            StageInput::Hidden(x) if !self.model.embedding && x.len().is_multiple_of(d) && kernel::finite(x) => {
                x.len() / d
            }
            _ => return Err(EngineError::BadInput("the piece of a generation is not of this stage".into())),
        };
        let known = self.sessions.get(&id).map_or(0, |s| s.len);
        if n == 0 || position > known || position + n > self.dims.context {
            let text = format!("{n} tokens at {position} after {known} known, of {} at most", self.dims.context);
            return Err(EngineError::BadInput(text));
        }
        let held = match self.sessions.get(&id) {
            Some(session) => session.held.clone(),
            None => pinned(&self.held, self.sessions.values().map(|s| &s.held), Held::number),
        };
        let layers = self.plan.layers.len();
        let session = self.sessions.entry(id).or_insert_with(|| Session {
            held: held.clone(),
            len: 0,
            keys: vec![Vec::new(); layers],
            values: vec![Vec::new(); layers],
        });
        session.cut(position, self.dims.kv());
        Ok(held)
    }

    fn infer_with(&mut self, held: &Arc<Held>, pieces: &[&Piece<'_>]) -> Vec<Result<Vec<f32>, EngineError>> {
        let d = self.dims.hidden;
        self.prepare(held);
        let params = params(held, self.frozen.as_deref(), &self.panels);
        let (mut x, mut rope, mut begun) = (Vec::new(), Vec::new(), Vec::with_capacity(pieces.len()));
        for piece in pieces {
            let first = x.len() / d;
            match piece.input {
                StageInput::Tokens(tokens) => {
                    x.resize(x.len() + tokens.len() * d, 0.0);
                    let rows = x[first * d..].chunks_exact_mut(d);
                    rows.zip(tokens).for_each(|(row, &id)| params.embedding(id, row));
                }
                StageInput::Hidden(hidden) => x.extend_from_slice(hidden),
            }
            let rows = first..x.len() / d;
            let positions = piece.position..piece.position + rows.len();
            rope.extend(kernel::rope_table(positions, self.dims.head / 2, self.dims.theta, self.dims.scaling));
            begun.push(Begun { session: piece.session, position: piece.position, rows });
        }
        for (layer, at) in self.plan.layers.iter().enumerate() {
            let weights = Weights::new(&self.dims, at, self.plan.adapters.get(layer), params);
            let (sessions, room) = (&mut self.sessions, &mut self.room);
            through(&mut self.product, &self.dims, &weights, &rope, layer, &begun, sessions, room, &mut x);
        }
        // Of a long prompt much would stay for nothing.
        if self.room.gu.len().max(self.room.p.len()) > ROOM_MAX {
            self.room = Room::default();
        }
        let outputs = match self.plan.head {
            Some(at) => {
                let last: Vec<f32> =
                    begun.iter().flat_map(|piece| &x[(piece.rows.end - 1) * d..piece.rows.end * d]).copied().collect();
                let logits = logits(&self.product, &self.dims, at, params, &last, &mut self.room.tiles);
                logits.chunks_exact(self.dims.vocab).map(<[f32]>::to_vec).collect()
            }
            None => begun.iter().map(|piece| x[piece.rows.start * d..piece.rows.end * d].to_vec()).collect::<Vec<_>>(),
        };
        let finish = |(piece, output): (Begun, Vec<f32>)| {
            if let Some(session) = self.sessions.get_mut(&piece.session) {
                session.len = piece.position + piece.rows.len();
            }
            match kernel::finite(&output) {
                true => Ok(output),
                false => Err(EngineError::NotFinite("the output of a generation")),
            }
        };
        begun.into_iter().zip(outputs).map(finish).collect()
    }
}

fn twice() -> EngineError {
    EngineError::BadInput("two pieces of one generation at a time".into())
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

/// Work space of a layer, for all rows of a call. A buffer only grows.
#[derive(Default)]
pub struct Room {
    /// Output of a norm, and its factors.
    h: Vec<f32>,
    inv: Vec<f32>,
    qkv: Vec<f32>,
    /// [`HeadTape`], and what the A's of adapters give.
    raw: Vec<f32>,
    low: Vec<f32>,
    /// Probabilities of every block of queries, and the output of the attention.
    p: Vec<f32>,
    att: Vec<f32>,
    /// What is added to the stream.
    add: Vec<f32>,
    gu: Vec<f32>,
    act: Vec<f32>,
    /// Of frozen matrices, one for each part of a product.
    tiles: [Vec<f32>; PARTS],
}

impl Room {
    fn reserve(&mut self, d: &Dims, n: usize) {
        grow(&mut self.h, n * d.hidden);
        grow(&mut self.inv, n);
        grow(&mut self.qkv, n * d.qkv());
        grow(&mut self.raw, HeadTape::values(d, n));
        grow(&mut self.low, n * d.ranks.into_iter().max().unwrap_or(0));
        grow(&mut self.att, n * d.q());
        grow(&mut self.add, n * d.hidden);
        grow(&mut self.gu, n * 2 * d.ffn);
        grow(&mut self.act, n * d.ffn);
    }
}

/// One layer over the rows of all pieces, in place; appends their keys and values to their sessions' caches.
#[allow(clippy::too_many_arguments)]
fn through<P: Product>(
    product: &mut P,
    d: &Dims,
    w: &Weights<'_>,
    rope: &[f32],
    layer: usize,
    pieces: &[Begun],
    sessions: &mut BTreeMap<u64, Session>,
    room: &mut Room,
    x: &mut [f32],
) {
    let (hidden, att, kv, width) = (d.hidden, d.q(), d.kv(), d.qkv());
    let n = x.len() / hidden;
    room.reserve(d, n);
    let (h, inv) = (&mut room.h[..n * hidden], &mut room.inv[..n]);
    let (qkv, out, add) = (&mut room.qkv[..n * width], &mut room.att[..n * att], &mut room.add[..n * hidden]);
    let (gu, act) = (&mut room.gu[..n * 2 * d.ffn], &mut room.act[..n * d.ffn]);
    let mut heads = HeadTape::over(d, n, &mut room.raw);
    let low = |site: Site| n * d.ranks[site as usize];

    kernel::rms(x, w.input_norm, d.eps, h, inv);
    wide(product, qkv, h, w.qkv, &mut room.tiles);
    block::turn(product, d, w, rope, h, qkv, &mut heads, &mut room.low[..low(Site::Qkv)]);
    for piece in pieces {
        let Some(session) = sessions.get_mut(&piece.session) else { continue };
        for cache in [&mut session.keys[layer], &mut session.values[layer]] {
            room_for(cache, piece.rows.len() * kv);
        }
        for row in qkv[piece.rows.start * width..piece.rows.end * width].chunks_exact(width) {
            session.keys[layer].extend_from_slice(&row[att..att + kv]);
            session.values[layer].extend_from_slice(&row[att + kv..]);
        }
    }
    attention(product, d, w, layer, pieces, sessions, qkv, &mut room.p, out);
    wide(product, add, out, w.output, &mut room.tiles);
    w.adapt(product, Site::Output, out, &mut room.low[..low(Site::Output)], add, hidden);
    kernel::add(x, add);

    kernel::rms(x, w.mlp_norm, d.eps, h, inv);
    wide(product, gu, h, w.gate_up, &mut room.tiles);
    w.adapt(product, Site::GateUp, h, &mut room.low[..low(Site::GateUp)], gu, 2 * d.ffn);
    kernel::swiglu(gu, d.ffn, act);
    wide(product, add, act, w.down, &mut room.tiles);
    w.adapt(product, Site::Down, act, &mut room.low[..low(Site::Down)], add, hidden);
    kernel::add(x, add);
}

/// Room for more values: a quarter more than there are, where a vector by itself would take as much again.
fn room_for(cache: &mut Vec<f32>, more: usize) {
    if cache.capacity() - cache.len() < more {
        cache.reserve_exact(more.max(cache.len() / 4));
    }
}

/// What the attention of every piece gives, into `out [rows, heads * head]`: blocks of queries against their session's cache.
#[allow(clippy::too_many_arguments)]
fn attention<P: Product>(
    product: &P,
    d: &Dims,
    w: &Weights<'_>,
    layer: usize,
    pieces: &[Begun],
    sessions: &BTreeMap<u64, Session>,
    qkv: &[f32],
    p: &mut Vec<f32>,
    out: &mut [f32],
) {
    struct Work<'a> {
        session: &'a Session,
        /// First of its rows among all, and where that stands in its text.
        row: usize,
        first: usize,
        p: &'a mut [f32],
        out: &'a mut [f32],
    }
    let (hd, att, kv, width) = (d.head, d.q(), d.kv(), d.qkv());
    // Row, number of rows and position of each block.
    let blocks = |piece: &Begun| {
        let (rows, position) = (piece.rows.clone(), piece.position);
        let block = move |row: usize| (row, BLOCK.min(rows.end - row), position + row - rows.start);
        piece.rows.clone().step_by(BLOCK).map(block)
    };
    grow(p, pieces.iter().flat_map(blocks).map(|(_, n, first)| n * (first + n)).sum());
    let (mut work, mut rest, mut rest_of_p) = (Vec::new(), out, &mut p[..]);
    for piece in pieces {
        let Some(session) = sessions.get(&piece.session) else { continue };
        for (row, n, first) in blocks(piece) {
            let (out, left) = std::mem::take(&mut rest).split_at_mut(n * att);
            let (p, left_of_p) = std::mem::take(&mut rest_of_p).split_at_mut(n * (first + n));
            (rest, rest_of_p) = (left, left_of_p);
            work.push(Work { session, row, first, p, out });
        }
    }
    product.each(&mut work, |Work { session, row, first, p, out }| {
        let n = out.len() / att;
        let seen = *first + n;
        let mut product = product.clone();
        for head in 0..d.heads {
            let group = head / (d.heads / d.kv_heads) * hd;
            let queries = Matrix::strided(&qkv[*row * width + head * hd..], n, hd, width);
            let (keys, values) = (&session.keys[layer][group..], &session.values[layer][group..]);
            let head_of = Head { queries, keys, values, stride: kv };
            let scale = 1.0 / (hd as f32).sqrt();
            let sight = Sight { window: w.window, begins: &[] };
            attend(&mut product, &head_of, *first, sight, scale, p, seen, &mut out[head * hd..], att);
        }
    });
}

/// `out = x w^T` of all rows of `x`, parted among the threads: by rows where there are many; else by columns, since with few rows
/// what counts is how fast the weights are read.
fn wide<P: Product>(product: &P, out: &mut [f32], x: &[f32], w: Weight<'_>, tiles: &mut [Vec<f32>; PARTS]) {
    /// Fewer rows than these leave a product waiting for the weights.
    const ROWS: usize = 48;
    let (input, cols) = (w.cols, w.rows);
    let rows = x.len() / input;
    if rows >= 2 * ROWS {
        let step = rows.div_ceil(PARTS).max(ROWS);
        let parts = out.chunks_mut(step * cols).zip(x.chunks(step * input));
        let mut parts: Vec<_> = parts.zip(tiles).collect();
        product.each(&mut parts, |((out, x), tile)| w.forward(&mut product.clone(), out, false, x, tile));
        return;
    }
    let step = cols.div_ceil(PARTS).next_multiple_of(COLUMNS);
    let part = |start: usize| {
        let cols = start..cols.min(start + step);
        let buffer = vec![0.0; rows * cols.len()];
        (cols, buffer)
    };
    let mut parts: Vec<_> = (0..cols).step_by(step).map(part).zip(tiles).collect();
    product.each(&mut parts, |((cols, part), tile)| {
        w.columns(&mut product.clone(), part, x, cols.clone(), tile);
    });
    for ((cols_of, part), _) in parts {
        for (out, part) in out.chunks_exact_mut(cols).zip(part.chunks_exact(cols_of.len())) {
            out[cols_of.clone()].copy_from_slice(part);
        }
    }
}

/// Logits of the rows of `x`, `[rows, vocab]`.
fn logits<P: Product>(
    product: &P,
    d: &Dims,
    at: head::Offsets,
    params: Params<'_>,
    x: &[f32],
    tiles: &mut [Vec<f32>; PARTS],
) -> Vec<f32> {
    let (mut h, mut inv) = (vec![0.0; x.len()], vec![0.0; x.len() / d.hidden]);
    kernel::rms(x, params.vector(at.norm, d.hidden), d.eps, &mut h, &mut inv);
    let mut out = vec![0.0; x.len() / d.hidden * d.vocab];
    wide(product, &mut out, &h, params.weight(at.matrix, d.vocab, d.hidden), tiles);
    out
}
