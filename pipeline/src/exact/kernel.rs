//! Element-wise kernels and reductions of the block, forward and backward, over rows of f32.
//!
//! Sums over a row run in 16 interleaved lanes and one fixed tree; nothing is fused. Dispatch at run time only changes how
//! many lanes one instruction holds, so the bits are the same on every CPU.

use multiversion::multiversion;
use skein_protocol::run::RopeScaling;

/// Partial sums of a reduction.
const LANES: usize = 16;

/// Probabilities below this are zero: their products would be subnormal, and subnormal arithmetic is slow.
pub const PROBABILITY_MIN: f32 = 1e-15;

/// `e^x` to about one unit in the last place, from multiplications and additions alone. Arguments are held within
/// [-80, 88]; a NaN stays one. Cephes' polynomial.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to the nearest whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -80.0 { -80.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_2e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    y * power
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn tree(s: [f32; LANES]) -> f32 {
    let mut s = s;
    let mut n = LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            s[i] += s[i + n];
        }
    }
    s[0]
}

/// Sum of `f(i)` for i in 0..n.
#[inline(always)]
fn sum_of(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut s = [0f32; LANES];
    let whole = n / LANES * LANES;
    let mut at = 0;
    while at < whole {
        for (i, s) in s.iter_mut().enumerate() {
            *s += f(at + i);
        }
        at += LANES;
    }
    for i in whole..n {
        s[i - whole] += f(i);
    }
    tree(s)
}

#[inline(always)]
fn max_of(x: &[f32]) -> f32 {
    let mut m = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    for (i, &v) in chunks.remainder().iter().enumerate() {
        m[i] = v;
    }
    for c in chunks {
        for (m, &v) in m.iter_mut().zip(c) {
            *m = if v > *m { v } else { *m };
        }
    }
    m.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// RMSNorm of rows as wide as `w`: `out = x * inv * w` with `inv = 1 / sqrt(mean(x^2) + eps)` kept a row.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn rms(x: &[f32], w: &[f32], eps: f32, out: &mut [f32], inv: &mut [f32]) {
    let d = w.len();
    for ((x, out), inv) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)).zip(inv) {
        let mean = sum_of(d, |i| x[i] * x[i]) / d as f32;
        *inv = 1.0 / (mean + eps).sqrt();
        for i in 0..d {
            out[i] = x[i] * *inv * w[i];
        }
    }
}

/// What [`rms_back`] also makes of a norm whose weight is trained.
pub struct NormBack<'a> {
    /// The output of [`rms`] again.
    pub out: &'a mut [f32],
    /// Overwritten by the gradient of the weight: the sum over rows of `g x inv`, in their order.
    pub weight: &'a mut [f32],
}

/// `to = from +` the gradient of [`rms`] for x, `g w inv - x inv^3 mean(x g w)`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
#[allow(clippy::too_many_arguments)]
pub fn rms_back(
    x: &[f32],
    w: &[f32],
    inv: &[f32],
    g: &[f32],
    from: &[f32],
    to: &mut [f32],
    mut trained: Option<NormBack<'_>>,
) {
    let d = w.len();
    if let Some(NormBack { weight, .. }) = &mut trained {
        weight.fill(0.0);
    }
    for (row, &inv) in inv.iter().enumerate() {
        let at = row * d..row * d + d;
        let (x, g, from, to) = (&x[at.clone()], &g[at.clone()], &from[at.clone()], &mut to[at.clone()]);
        let k = sum_of(d, |i| x[i] * g[i] * w[i]) * inv * inv * inv / d as f32;
        for i in 0..d {
            to[i] = from[i] + (g[i] * w[i] * inv - x[i] * k);
        }
        if let Some(NormBack { out, weight }) = &mut trained {
            let (out, weight) = (&mut out[at], &mut weight[..d]);
            for i in 0..d {
                let scaled = x[i] * inv;
                out[i] = scaled * w[i];
                weight[i] += g[i] * scaled;
            }
        }
    }
}

/// Heads in the rows of a wider matrix: rows `width` wide, `count` heads side by side from column `first` on.
#[derive(Clone, Copy)]
pub struct Heads {
    pub width: usize,
    pub first: usize,
    pub count: usize,
}

/// RMSNorm of every head of `x`, in place, by `w` as wide as a head. What came in goes to `raw`, `[rows * count, head]`, and the
/// factors to `inv`, `[rows * count]`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn rms_heads(x: &mut [f32], at: Heads, w: &[f32], eps: f32, raw: &mut [f32], inv: &mut [f32]) {
    let d = w.len();
    let rows = x.chunks_exact_mut(at.width).zip(raw.chunks_exact_mut(at.count * d)).zip(inv.chunks_exact_mut(at.count));
    for ((row, raw), inv) in rows {
        let heads = row[at.first..][..at.count * d].chunks_exact_mut(d);
        for ((x, raw), inv) in heads.zip(raw.chunks_exact_mut(d)).zip(inv) {
            raw.copy_from_slice(x);
            let mean = sum_of(d, |i| raw[i] * raw[i]) / d as f32;
            *inv = 1.0 / (mean + eps).sqrt();
            for i in 0..d {
                x[i] = raw[i] * *inv * w[i];
            }
        }
    }
}

/// Turns the gradient `g` of what [`rms_heads`] gave into that of what came in, in place. `weight`: overwritten by the gradient
/// of `w`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn rms_heads_back(g: &mut [f32], at: Heads, w: &[f32], raw: &[f32], inv: &[f32], mut weight: Option<&mut [f32]>) {
    let d = w.len();
    if let Some(weight) = &mut weight {
        weight.fill(0.0);
    }
    let rows = g.chunks_exact_mut(at.width).zip(raw.chunks_exact(at.count * d)).zip(inv.chunks_exact(at.count));
    for ((row, raw), inv) in rows {
        let heads = row[at.first..][..at.count * d].chunks_exact_mut(d);
        for ((g, x), &inv) in heads.zip(raw.chunks_exact(d)).zip(inv) {
            let k = sum_of(d, |i| x[i] * g[i] * w[i]) * inv * inv * inv / d as f32;
            if let Some(weight) = &mut weight {
                let weight = &mut weight[..d];
                for i in 0..d {
                    weight[i] += g[i] * (x[i] * inv);
                }
            }
            for i in 0..d {
                g[i] = g[i] * w[i] * inv - x[i] * k;
            }
        }
    }
}

/// Adds `bias` to every row of `x`.
pub fn add_rows(x: &mut [f32], bias: &[f32]) {
    x.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
}

/// Rotates the first `heads` heads of each row of `x` (rows `width` wide, heads of `2 * half`): pairs `(i, i + half)`, by
/// the angles of the row's position. `table` holds `half` cosines and then `half` sines a position; `sign` -1 turns back.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn rope(x: &mut [f32], width: usize, heads: usize, half: usize, table: &[f32], sign: f32) {
    let positions = table.chunks_exact(2 * half).cycle();
    for (row, angles) in x.chunks_exact_mut(width).zip(positions) {
        let (cos, sin) = angles.split_at(half);
        for head in row.chunks_exact_mut(2 * half).take(heads) {
            let (a, b) = head.split_at_mut(half);
            for i in 0..half {
                let (x, y, s) = (a[i], b[i], sign * sin[i]);
                a[i] = x * cos[i] - y * s;
                b[i] = y * cos[i] + x * s;
            }
        }
    }
}

/// Softmax of row i of `p` over its columns `from[i]..first + i + 1`; the others, up to `cols`, become zero.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn softmax_causal(p: &mut [f32], stride: usize, cols: usize, first: usize, from: &[u32]) {
    for (i, (row, &from)) in p.chunks_mut(stride).zip(from).enumerate() {
        let (from, end) = (from as usize, (first + i + 1).min(cols));
        row[..from].fill(0.0);
        row[end..cols].fill(0.0);
        let seen = &mut row[from..end];
        let max = max_of(seen);
        for v in seen.iter_mut() {
            *v = exp(*v - max);
        }
        let inv = 1.0 / sum_of(seen.len(), |i| seen[i]);
        for v in seen {
            let p = *v * inv;
            *v = if p < PROBABILITY_MIN { 0.0 } else { p };
        }
    }
}

/// Backward of a softmax: `s = p (s - sum(p s))` a row, over `cols` columns. Rows lie `p_stride` and `s_stride` apart.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn softmax_back(p: &[f32], p_stride: usize, s: &mut [f32], s_stride: usize, cols: usize) {
    for (p, s) in p.chunks(p_stride).zip(s.chunks_mut(s_stride)) {
        let (p, s) = (&p[..cols], &mut s[..cols]);
        let dot = sum_of(cols, |j| p[j] * s[j]);
        for j in 0..cols {
            s[j] = p[j] * (s[j] - dot);
        }
    }
}

/// `out = silu(gate) * up`; a row of `gu` holds the gate's `f` values, then up's.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn swiglu(gu: &[f32], f: usize, out: &mut [f32]) {
    for (gu, out) in gu.chunks_exact(2 * f).zip(out.chunks_exact_mut(f)) {
        let (g, u) = gu.split_at(f);
        for i in 0..f {
            out[i] = g[i] * sigmoid(g[i]) * u[i];
        }
    }
}

/// Backward of [`swiglu`]: `dgu` from `da`; `out` becomes the forward's output again.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn swiglu_back(gu: &[f32], f: usize, da: &[f32], dgu: &mut [f32], out: &mut [f32]) {
    let rows = gu.chunks_exact(2 * f).zip(da.chunks_exact(f));
    for ((gu, da), (dgu, out)) in rows.zip(dgu.chunks_exact_mut(2 * f).zip(out.chunks_exact_mut(f))) {
        let (g, u) = gu.split_at(f);
        let (dg, du) = dgu.split_at_mut(f);
        for i in 0..f {
            let s = sigmoid(g[i]);
            let silu = g[i] * s;
            out[i] = silu * u[i];
            du[i] = da[i] * silu;
            dg[i] = da[i] * u[i] * (s + silu * (1.0 - s));
        }
    }
}

/// Softmax cross-entropy of one row of logits, which becomes `scale` times its gradient. Returns the loss, nats.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn cross_entropy(row: &mut [f32], target: usize, scale: f32) -> f64 {
    let max = max_of(row);
    let correct = row[target] - max;
    for v in row.iter_mut() {
        *v = exp(*v - max);
    }
    let sum = sum_of(row.len(), |i| row[i]);
    let inv = 1.0 / sum;
    for v in row.iter_mut() {
        let p = *v * inv;
        *v = if p < PROBABILITY_MIN { 0.0 } else { p * scale };
    }
    row[target] -= scale;
    libm::log(f64::from(sum)) - f64::from(correct)
}

/// `to += from`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn add(to: &mut [f32], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// Whether no value is infinite or NaN.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
pub fn finite(x: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    x.chunks(1024).all(|c| c.iter().fold(0u32, |bad, v| bad | u32::from(v.to_bits() & EXPONENT == EXPONENT)) == 0)
}

/// Cosines and sines of rotary position embedding, `half` of each a position, for [`rope`]. Frequencies
/// `theta^(-i / half)`, scaled, and angles are rounded to f32 as models trained elsewhere expect.
pub fn rope_table(
    positions: std::ops::Range<usize>,
    half: usize,
    theta: f64,
    scaling: Option<RopeScaling>,
) -> Vec<f32> {
    let frequency = |i: usize| scaled(libm::pow(theta, -(i as f64) / half as f64) as f32, scaling);
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let mut table = Vec::with_capacity(positions.len() * 2 * half);
    for position in positions {
        let angle = |f: &f32| f64::from(position as f32 * f);
        table.extend(frequencies.iter().map(|f| libm::cos(angle(f)) as f32));
        table.extend(frequencies.iter().map(|f| libm::sin(angle(f)) as f32));
    }
    table
}

/// A frequency of rotary position embedding under [`RopeScaling`]: of Llama 3.1, with wave lengths `2 pi / f`.
fn scaled(frequency: f32, scaling: Option<RopeScaling>) -> f32 {
    match scaling {
        None => frequency,
        Some(RopeScaling::Linear { factor }) => frequency / factor as f32,
        Some(RopeScaling::Llama3 { factor, low, high, original }) => {
            let f = f64::from(frequency);
            let waves = f64::from(original) * f / (2.0 * std::f64::consts::PI);
            let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
            ((1.0 - kept) * f / factor + kept * f) as f32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_near_the_true_one_and_keeps_nan() {
        for i in -8000..8800 {
            let x = i as f32 / 100.0;
            let (got, wanted) = (f64::from(exp(x)), libm::exp(f64::from(x)));
            assert!((got / wanted - 1.0).abs() < 2e-7, "{x}: {got} {wanted}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1e30) < 2e-35 && exp(1e30) > 1e38);
    }

    #[test]
    fn a_softmax_sums_to_one_sees_no_later_key_and_has_no_subnormals() {
        let mut p: Vec<f32> = (0..4 * 40).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
        softmax_causal(&mut p, 40, 40, 20, &[0, 0, 5, 23]);
        for (i, row) in p.chunks(40).enumerate() {
            let sum: f32 = row.iter().sum();
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
            assert!(row[20 + i + 1..].iter().all(|&v| v == 0.0));
            assert!(row[..[0, 0, 5, 23][i]].iter().all(|&v| v == 0.0));
            assert!(row.iter().all(|&v| v == 0.0 || v >= PROBABILITY_MIN));
        }
    }

    #[test]
    fn the_loss_of_equal_logits_is_the_logarithm_of_their_number() {
        let mut row = vec![3.0; 50];
        let loss = cross_entropy(&mut row, 7, 2.0);
        assert!((loss - 50f64.ln()).abs() < 1e-6);
        assert!((row[0] - 0.04).abs() < 1e-6 && (row[7] + 1.96).abs() < 1e-6);
    }

    #[test]
    fn turning_there_and_back_changes_nothing_but_rounding() {
        let table = rope_table(5..8, 4, 10_000.0, None);
        let x: Vec<f32> = (0..3 * 20).map(|i| i as f32 / 10.0).collect();
        let mut y = x.clone();
        rope(&mut y, 20, 2, 4, &table, 1.0);
        assert!(y != x && y[16..20] == x[16..20]);
        rope(&mut y, 20, 2, 4, &table, -1.0);
        assert!(y.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn scaling_stretches_long_waves_and_leaves_short_ones() {
        let frequencies = |scaling| -> Vec<f32> {
            let table = rope_table(1..2, 16, 10_000.0, scaling);
            table[16..].iter().map(|sin| sin.asin()).collect()
        };
        let plain = frequencies(None);
        let ratio =
            |scaling| -> Vec<f32> { frequencies(Some(scaling)).iter().zip(&plain).map(|(s, p)| p / s).collect() };
        assert!(ratio(RopeScaling::Linear { factor: 4.0 })[1..].iter().all(|r| (r - 4.0).abs() < 1e-3));
        let ratios = ratio(RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64 });
        // Waves of 2 pi tokens stay, those of more than 64 are stretched eightfold, and between the two it rises.
        assert!((ratios[0] - 1.0).abs() < 1e-5 && (ratios[15] - 8.0).abs() < 1e-3, "{ratios:?}");
        assert!(ratios.windows(2).all(|w| w[1] >= w[0] - 1e-3), "{ratios:?}");
    }

    #[test]
    fn infinities_and_nan_are_seen_anywhere() {
        let mut x = vec![1.0; 3000];
        assert!(finite(&x));
        for (at, bad) in [(0, f32::NAN), (1500, f32::INFINITY), (2999, f32::NEG_INFINITY)] {
            x[at] = bad;
            assert!(!finite(&x));
            x[at] = f32::MAX;
        }
    }
}
