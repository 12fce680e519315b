//! The lanes of a micro-batch together: forward, and a backward in phases.
//!
//! A forward is one phase: every lane runs all layers. A backward alternates: every lane runs one layer, then the gradients of
//! that layer's weights are made from what all lanes left. Each worker makes other rows of them and adds the lanes in their
//! order, so that one buffer holds the gradient, and its bits depend on the cut into lanes alone.
//! In: shapes, weights, tape. Out: tape, or the loss, the input's gradient and the parameters'.

use std::sync::{Mutex, PoisonError};

use super::{
    attention::Shape,
    block::{self, Tape, Tensor},
    head, kernel,
    lane::{From, Lane, Part, Plan},
    product::Product,
    weights::Params,
};

/// Rows of one gradient's matrix that are made in one piece. A multiple of every tile's height.
const PIECE_ROWS: usize = 480;

/// One lane with its part of a micro-batch.
pub struct Share<'a, P> {
    lane: &'a mut Lane<P>,
    shape: Shape,
    input: Part<'a>,
    /// Of each token of its sequences where its record begins.
    begins: &'a [u32],
    tape: &'a mut [f32],
}

impl<'a, P: Product> Share<'a, P> {
    pub fn new(lane: &'a mut Lane<P>, shape: Shape, input: Part<'a>, begins: &'a [u32], tape: &'a mut [f32]) -> Self {
        Share { lane, shape, input, begins, tape }
    }
}

/// Runs all layers over every share's input into its tape.
pub fn forward<P: Product>(pool: &P, plan: &Plan, params: Params<'_>, shares: &mut [Share<'_, P>]) {
    pool.each(shares, |s| s.lane.forward(plan, &s.shape, params, s.input, s.begins, s.tape));
}

/// Runs all layers backward over the tapes of a forward. `from`: of each share. `out` becomes the input's gradient where there
/// is one. `grad`: the whole buffer, overwritten; without it the parameters' gradients are not computed. Returns the sum of the
/// losses (0 from a gradient).
pub fn backward<P: Product>(
    pool: &P,
    plan: &Plan,
    params: Params<'_>,
    shares: &mut [Share<'_, P>],
    from: &[From<'_>],
    mut grad: Option<&mut [f32]>,
    out: &mut [f32],
) -> f64 {
    let train = grad.is_some();
    let Some(dims) = shares.first().map(|s| s.shape.dims) else { return 0.0 };
    shares.iter_mut().zip(from).for_each(|(s, from)| s.lane.begin(&s.shape, *from));
    if let Some(grad) = grad.as_deref_mut()
        && plan.embedding
        && plan.adapters.is_empty()
    {
        grad[..dims.vocab * dims.hidden].fill(0.0);
    }
    let loss = match plan.head {
        Some(at) => {
            let grad = grad.as_deref_mut().filter(|_| plan.adapters.is_empty());
            losses(pool, at, params, shares, from, grad)
        }
        None => 0.0,
    };
    for (n, at) in plan.layers.iter().enumerate().rev() {
        pool.each(shares, |s| s.lane.layer(plan, n, &s.shape, params, s.begins, s.tape, train));
        if let Some(grad) = grad.as_deref_mut() {
            let places = match plan.adapters.get(n) {
                Some(adapters) => Tensor::adapters(adapters),
                None => Tensor::all(&dims, at),
            };
            let matrices: Vec<_> = places.iter().map(|&(_, at, rows, cols)| (at, rows, cols)).collect();
            let pieces = cut(grad, &matrices);
            made(pool, shares, pieces, |lane, product, left, piece| {
                let len = Tape::values(&left.shape);
                let tape = &left.tape[n * len..][..len];
                let tensor = places[piece.matrix].0;
                tensor.gradient(product, &left.shape, tape, left.block, piece.first, lane > 0, piece.to);
            });
        }
    }
    let mut rest = out;
    for share in shares {
        let n = share.shape.rows() * dims.hidden;
        let dx = &share.lane.block.gradient()[..n];
        match (share.input, grad.as_deref_mut()) {
            (Part::Hidden(_), _) => {
                let (to, left) = std::mem::take(&mut rest).split_at_mut(n);
                rest = left;
                to.copy_from_slice(dx);
            }
            (Part::Tokens(tokens), Some(grad)) if plan.adapters.is_empty() => {
                for (dx, &token) in dx.chunks_exact(dims.hidden).zip(tokens) {
                    kernel::add(&mut grad[token as usize * dims.hidden..][..dims.hidden], dx);
                }
            }
            (Part::Tokens(_), _) => {}
        }
    }
    loss
}

/// Losses of every share's targets, the gradients of final norm and head, and where the layers' backward begins.
fn losses<P: Product>(
    pool: &P,
    at: head::Offsets,
    params: Params<'_>,
    shares: &mut [Share<'_, P>],
    from: &[From<'_>],
    mut grad: Option<&mut [f32]>,
) -> f64 {
    let Some(dims) = shares.first().map(|s| s.shape.dims) else { return 0.0 };
    let train = grad.is_some();
    if let Some(grad) = grad.as_deref_mut() {
        grad[at.norm..][..dims.hidden].fill(0.0);
    }
    let chunks = |s: &Share<'_, P>| s.shape.rows().div_ceil(head::chunk_rows(dims.vocab, s.shape.rows()));
    let mut loss = 0.0;
    for chunk in 0..shares.iter().map(chunks).max().unwrap_or(0) {
        let mut work: Vec<_> = shares.iter_mut().zip(from).map(|(share, from)| (share, from, 0.0)).collect();
        pool.each(&mut work, |(s, from, loss)| {
            if let From::Targets(targets, scale) = **from {
                *loss = s.lane.loss(&s.shape, at, params, s.tape, (targets, scale), chunk, train);
            }
        });
        loss += work.iter().map(|(.., loss)| loss).sum::<f64>();
        if let Some(grad) = grad.as_deref_mut() {
            shares.iter().for_each(|s| head::norm_gradient(&s.lane.head, &mut grad[at.norm..][..dims.hidden]));
            let add = at.tied || chunk > 0;
            let pieces = cut(grad, &[(at.matrix, dims.vocab, dims.hidden)]);
            made(pool, shares, pieces, |lane, product, left, piece| {
                head::matrix_gradient(product, &dims, left.head, piece.first, add || lane > 0, piece.to);
            });
        }
    }
    loss
}

/// Rows of one matrix of the gradient.
struct Piece<'a> {
    matrix: usize,
    /// Its first row.
    first: usize,
    to: &'a mut [f32],
}

/// Cuts the matrices `(place, rows, columns)`, which follow each other in `grad`, into pieces.
fn cut<'a>(grad: &'a mut [f32], matrices: &[(usize, usize, usize)]) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    let (mut rest, mut end) = (grad, 0);
    for (matrix, &(at, rows, cols)) in matrices.iter().enumerate() {
        let (here, left) = std::mem::take(&mut rest)[at - end..].split_at_mut(rows * cols);
        (rest, end) = (left, at + rows * cols);
        let parts = here.chunks_mut(PIECE_ROWS * cols).enumerate();
        pieces.extend(parts.map(|(i, to)| Piece { matrix, first: i * PIECE_ROWS, to }));
    }
    pieces
}

/// What a lane's last phase left, for all workers to read.
struct Left<'a> {
    shape: Shape,
    block: &'a block::Scratch,
    head: &'a head::Scratch,
    tape: &'a [f32],
}

/// Makes every piece, with the products of the lanes as work space: `make(lane, product, what the lane left, piece)` for each
/// piece and lane, the lanes of a piece in their order.
fn made<P: Product>(
    pool: &P,
    shares: &mut [Share<'_, P>],
    mut pieces: Vec<Piece<'_>>,
    make: impl Fn(usize, &mut P, &Left<'_>, &mut Piece<'_>) + Sync,
) {
    let (mut products, mut left) = (Vec::with_capacity(shares.len()), Vec::with_capacity(shares.len()));
    for Share { lane, shape, tape, .. } in shares {
        let Lane { product, block, head } = &mut **lane;
        products.push(product);
        left.push(Left { shape: *shape, block, head, tape });
    }
    // The largest first: the last to end is then a small one.
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.to.len()));
    let idle = Mutex::new(products);
    pool.each(&mut pieces, |piece| {
        let taken = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut made = |product: &mut P| left.iter().enumerate().for_each(|(i, left)| make(i, product, left, piece));
        match taken {
            Some(product) => {
                made(product);
                idle.lock().unwrap_or_else(PoisonError::into_inner).push(product);
            }
            // More workers than lanes.
            None => made(&mut pool.clone()),
        }
    });
}
