//! The open sum of gradients and the optimizer over the flat buffer: mean, clip of each block's norm, AdamW, NAdamW or SGD.
//!
//! AdamW: Loshchilov and Hutter 2019. NAdamW: Dozat 2016, without a momentum schedule, with AdamW's decoupled decay. SGD has
//! momentum beta1 (0: none). Decay applies to matrices only. Chunks and sums are counted from the start of each block, so
//! that no bit depends on how the model is split into stages.

use multiversion::multiversion;
use skein_protocol::run::{Optimizer, OptimizerKind};

use super::{
    engine::{EngineError, Settings, StepReport, TrainState},
    kernel,
    product::Product,
};
use crate::model::StageModel;

/// Values that one unit of work covers: what fits the first cache a few times over.
const CHUNK: usize = 1 << 14;

/// A norm above this cannot be squared in f32.
const NORM_MAX: f64 = 1e18;

/// Moments below this are zero: they move nothing, and subnormal arithmetic is slow.
const MOMENT_MIN: f32 = 1e-30;

/// Part of one tensor.
#[derive(Clone, Debug)]
struct Segment {
    start: usize,
    len: usize,
    block: usize,
    decays: bool,
}

/// Open sum, optimizer state and rule of one stage.
#[derive(Clone, Debug)]
pub struct Master {
    values: usize,
    segments: Vec<Segment>,
    blocks: Vec<std::ops::Range<usize>>,
    rule: Optimizer,
    clip: f64,
    /// Empty or stale while `weight` is 0.
    sum: Vec<f32>,
    weight: f64,
    m: Vec<f32>,
    v: Vec<f32>,
    count: u64,
}

impl Master {
    pub fn new(model: &StageModel, settings: &Settings) -> Self {
        let mut segments = Vec::new();
        for param in model.params() {
            let (end, block, decays) = (param.range().end, param.block, param.is_matrix());
            let starts = param.range().step_by(CHUNK);
            segments.extend(starts.map(|start| Segment { start, len: CHUNK.min(end - start), block, decays }));
        }
        let mut master = Master {
            values: model.values(),
            segments,
            blocks: model.blocks().iter().map(|(_, range)| range.clone()).collect(),
            rule: settings.optimizer.clone(),
            clip: settings.clip,
            sum: Vec::new(),
            weight: 0.0,
            m: Vec::new(),
            v: Vec::new(),
            count: 0,
        };
        let (m, v) = moments(master.rule.kind, master.values);
        (master.m, master.v) = (vec![0.0; m], vec![0.0; v]);
        master
    }

    pub fn weight(&self) -> f64 {
        self.weight
    }

    pub fn drop_sum(&mut self) {
        self.weight = 0.0;
    }

    /// Adds `weight` times `grad` to the open sum, unless that is not finite. The buffer becomes the new sum, the old one takes
    /// its place: nothing is lost where the result cannot be used.
    pub fn add<P: Product>(&mut self, product: &P, grad: &mut Vec<f32>, weight: f32) -> Result<(), EngineError> {
        struct Work<'a> {
            to: &'a mut [f32],
            sum: Option<&'a [f32]>,
            finite: bool,
        }
        let sum = (self.weight != 0.0).then_some(&self.sum[..]);
        let mut work: Vec<Work<'_>> = (grad[..self.values].chunks_mut(CHUNK).enumerate())
            .map(|(i, to)| {
                let range = i * CHUNK..i * CHUNK + to.len();
                Work { to, sum: sum.map(|s| &s[range]), finite: true }
            })
            .collect();
        product.each(&mut work, |w| {
            match w.sum {
                Some(sum) => add_scaled(w.to, sum, weight),
                None if weight != 1.0 => scale(w.to, weight),
                None => {}
            }
            w.finite = kernel::finite(w.to);
        });
        if !work.iter().all(|w| w.finite) {
            return Err(EngineError::NotFinite("the gradient of the parameters"));
        }
        std::mem::swap(&mut self.sum, grad);
        self.weight += f64::from(weight);
        Ok(())
    }

    /// Writes the parameters after a step with the open sum into `new`, and begins a new sum. Where the report says that
    /// nothing was stepped, `new` is as `old`.
    pub fn step<P: Product>(&mut self, product: &P, old: &[f32], new: &mut [f32], lr: f64) -> StepReport {
        let weight = std::mem::take(&mut self.weight);
        if weight == 0.0 {
            new.copy_from_slice(old);
            return StepReport { norms: vec![0.0; self.blocks.len()], weight, finite: true };
        }
        let norms = self.norms(product, weight);
        if !finite_norms(&norms) {
            new.copy_from_slice(old);
            return StepReport { norms, weight, finite: false };
        }
        self.count += 1;
        self.update(product, old, new, lr, &scales(&norms, self.clip, weight));
        StepReport { norms, weight, finite: true }
    }

    /// Norm of each block of the mean gradient.
    fn norms<P: Product>(&self, product: &P, weight: f64) -> Vec<f64> {
        let mut parts: Vec<(usize, &[f32], f64)> = (self.blocks.iter().enumerate())
            .flat_map(|(b, range)| self.sum[range.clone()].chunks(CHUNK).map(move |c| (b, c, 0.0)))
            .collect();
        product.each(&mut parts, |(_, values, sum)| *sum = squares(values));
        let mut norms = vec![0.0; self.blocks.len()];
        parts.iter().for_each(|(b, _, sum)| norms[*b] += sum);
        norms.into_iter().map(|sum: f64| sum.sqrt() / weight).collect()
    }

    fn update<P: Product>(&mut self, product: &P, old: &[f32], new: &mut [f32], lr: f64, scales: &[f32]) {
        struct Work<'a> {
            new: &'a mut [f32],
            old: &'a [f32],
            g: &'a [f32],
            m: &'a mut [f32],
            v: &'a mut [f32],
            scale: f32,
            keep: f32,
        }
        let rule = Coefficients::new(&self.rule, lr, self.count);
        let (mut new, mut m, mut v) = (new, &mut self.m[..], &mut self.v[..]);
        let mut work = Vec::with_capacity(self.segments.len());
        for s in &self.segments {
            let range = s.start..s.start + s.len;
            let keep = if s.decays { (1.0 - lr * self.rule.decay) as f32 } else { 1.0 };
            work.push(Work {
                new: take(&mut new, s.len),
                old: &old[range.clone()],
                g: &self.sum[range],
                m: take(&mut m, s.len),
                v: take(&mut v, s.len),
                scale: scales[s.block],
                keep,
            });
        }
        match self.rule.kind {
            OptimizerKind::Sgd => product.each(&mut work, |w| sgd(w.new, w.old, w.g, w.m, w.scale, w.keep, &rule)),
            _ => product.each(&mut work, |w| adam(w.new, w.old, w.g, w.m, w.v, w.scale, w.keep, &rule)),
        }
    }

    /// `params` with this optimizer's state.
    pub fn state(&self, params: &[f32]) -> TrainState {
        TrainState { params: params.to_vec(), m: self.m.clone(), v: self.v.clone(), count: self.count }
    }

    /// Takes the optimizer's part of `state`, whose parameters are returned. The open sum is dropped.
    pub fn load(&mut self, state: TrainState) -> Result<Vec<f32>, EngineError> {
        check_state(&state, self.values, self.rule.kind)?;
        (self.m, self.v, self.count) = (state.m, state.v, state.count);
        self.drop_sum();
        Ok(state.params)
    }
}

/// Lengths of the two moments of `values` parameters.
pub(crate) fn moments(kind: OptimizerKind, values: usize) -> (usize, usize) {
    match kind {
        OptimizerKind::Adamw | OptimizerKind::Nadamw => (values, values),
        OptimizerKind::Sgd => (values, 0),
    }
}

/// Whether a step can be made with gradients of these norms.
pub(crate) fn finite_norms(norms: &[f64]) -> bool {
    norms.iter().all(|&n| n < NORM_MAX)
}

/// What each block's part of a sum is multiplied by: its mean, bounded by `clip` (0: not at all).
pub(crate) fn scales(norms: &[f64], clip: f64, weight: f64) -> Vec<f32> {
    let scales = norms.iter().map(|&n| if clip > 0.0 && n > clip { clip / n } else { 1.0 });
    scales.map(|s| (s / weight) as f32).collect()
}

/// Refuses a state that is not one of `values` parameters under this rule, or not finite.
pub(crate) fn check_state(state: &TrainState, values: usize, kind: OptimizerKind) -> Result<(), EngineError> {
    let (m, v) = moments(kind, values);
    for (what, got, wanted) in [
        ("parameters", state.params.len(), values),
        ("first moments", state.m.len(), m),
        ("second moments", state.v.len(), v),
    ] {
        if got != wanted {
            return Err(EngineError::BadInput(format!("the state has {got} {what}, the stage has {wanted}")));
        }
    }
    if ![&state.params, &state.m, &state.v].into_iter().all(|x| kernel::finite(x)) {
        return Err(EngineError::BadInput("the state holds values that are not finite".into()));
    }
    Ok(())
}

/// The first `n` values of `rest`, or nothing where it is a moment that this optimizer does not have.
fn take<'a>(rest: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let all = std::mem::take(rest);
    let n = n.min(all.len());
    let (taken, left) = all.split_at_mut(n);
    *rest = left;
    taken
}

/// Constants of one step.
pub(crate) struct Coefficients {
    pub beta1: f32,
    pub beta1_rest: f32,
    pub beta2: f32,
    pub beta2_rest: f32,
    /// Of the first moment, learning rate and bias correction in it.
    pub moment: f32,
    /// Of the gradient itself (NAdamW).
    pub gradient: f32,
    /// Bias correction of the second moment.
    pub square: f32,
    pub eps: f32,
    pub lr: f32,
}

impl Coefficients {
    pub fn new(rule: &Optimizer, lr: f64, count: u64) -> Self {
        let t = count as f64;
        let (b1, b2) = (rule.beta1, rule.beta2);
        let corrected = |t: f64| 1.0 - libm::pow(b1, t);
        let (moment, gradient) = match rule.kind {
            OptimizerKind::Nadamw => (lr * b1 / corrected(t + 1.0), lr * (1.0 - b1) / corrected(t)),
            OptimizerKind::Adamw | OptimizerKind::Sgd => (lr / corrected(t), 0.0),
        };
        Coefficients {
            beta1: b1 as f32,
            beta1_rest: (1.0 - b1) as f32,
            beta2: b2 as f32,
            beta2_rest: (1.0 - b2) as f32,
            moment: moment as f32,
            gradient: gradient as f32,
            square: (1.0 / (1.0 - libm::pow(b2, t))) as f32,
            eps: rule.eps as f32,
            lr: lr as f32,
        }
    }
}

#[inline(always)]
fn flush(x: f32) -> f32 {
    if x.abs() < MOMENT_MIN { 0.0 } else { x }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
#[allow(clippy::too_many_arguments)]
fn adam(
    new: &mut [f32],
    old: &[f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    scale: f32,
    keep: f32,
    c: &Coefficients,
) {
    let n = new.len();
    let (old, g, m, v) = (&old[..n], &g[..n], &mut m[..n], &mut v[..n]);
    for i in 0..n {
        let g = g[i] * scale;
        m[i] = flush(c.beta1 * m[i] + c.beta1_rest * g);
        v[i] = flush(c.beta2 * v[i] + c.beta2_rest * (g * g));
        let up = c.moment * m[i] + c.gradient * g;
        new[i] = old[i] * keep - up / ((v[i] * c.square).sqrt() + c.eps);
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
fn sgd(new: &mut [f32], old: &[f32], g: &[f32], m: &mut [f32], scale: f32, keep: f32, c: &Coefficients) {
    let n = new.len();
    let (old, g, m) = (&old[..n], &g[..n], &mut m[..n]);
    for i in 0..n {
        m[i] = flush(c.beta1 * m[i] + g[i] * scale);
        new[i] = old[i] * keep - c.lr * m[i];
    }
}

/// `to = sum + weight * to`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
fn add_scaled(to: &mut [f32], sum: &[f32], weight: f32) {
    for (to, sum) in to.iter_mut().zip(sum) {
        *to = sum + weight * *to;
    }
}

fn scale(to: &mut [f32], weight: f32) {
    if weight != 1.0 {
        to.iter_mut().for_each(|to| *to *= weight);
    }
}

/// Sum of squares in f64: 8 interleaved sums, then a tree.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "x86_64+avx"))]
fn squares(x: &[f32]) -> f64 {
    let mut s = [0f64; 8];
    let chunks = x.chunks_exact(8);
    for (s, &v) in s.iter_mut().zip(chunks.remainder()) {
        *s = f64::from(v) * f64::from(v);
    }
    for c in chunks {
        for (s, &v) in s.iter_mut().zip(c) {
            *s += f64::from(v) * f64::from(v);
        }
    }
    ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}

#[cfg(test)]
mod tests {
    use skein_protocol::run::{Recompute, Schedule};

    use super::*;
    use crate::{exact::FixedProduct, model::tests::tiny};

    fn settings(kind: OptimizerKind, clip: f64) -> Settings {
        Settings {
            sequence: 4,
            micro_batch: 1,
            clip,
            optimizer: Optimizer {
                kind,
                lr: 0.1,
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-8,
                decay: 0.5,
                schedule: Schedule::default(),
            },
            recompute: Recompute::WhenNeeded,
            kept_bytes_max: u64::MAX,
        }
    }

    /// One parameter of a layer stage, followed through steps in f64.
    fn follow(kind: OptimizerKind, wanted: impl Fn(usize, f64, &mut f64, &mut f64, f64) -> f64) {
        let model = StageModel::new(tiny(), 0, 1, false, false).unwrap();
        let mut master = Master::new(&model, &settings(kind, 0.0));
        let mut params = vec![0.3f32; model.values()];
        let (matrix, vector) = (model.params()[1].offset, model.params()[0].offset);
        let (mut m, mut v, mut x, mut y) = (0.0, 0.0, 0.3, 0.3);
        for t in 1..=5 {
            let g = [0.2, -0.4, 0.1, 0.0, 0.7][t - 1];
            for part in [0.5 * g, 1.5 * g] {
                master.add(&FixedProduct::default(), &mut vec![part; model.values()], 1.0).unwrap();
            }
            let mut new = vec![0.0; params.len()];
            let report = master.step(&FixedProduct::default(), &params, &mut new, 0.1);
            assert!(report.finite && report.weight == 2.0);
            params = new;
            let up = wanted(t, f64::from(g), &mut m, &mut v, 0.1);
            x = x * (1.0 - 0.1 * 0.5) - up;
            y -= up;
            assert!((f64::from(params[matrix]) - x).abs() < 1e-6, "{kind:?} {t}: {} {x}", params[matrix]);
            assert!((f64::from(params[vector]) - y).abs() < 1e-6, "{kind:?} {t}: vectors do not decay");
        }
    }

    #[test]
    fn each_optimizer_follows_its_formula() {
        let moments = |g: f64, m: &mut f64, v: &mut f64| {
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.99 * *v + 0.01 * g * g;
        };
        follow(OptimizerKind::Adamw, |t, g, m, v, lr| {
            moments(g, m, v);
            let t = t as i32;
            lr * (*m / (1.0 - 0.9f64.powi(t))) / ((*v / (1.0 - 0.99f64.powi(t))).sqrt() + 1e-8)
        });
        follow(OptimizerKind::Nadamw, |t, g, m, v, lr| {
            moments(g, m, v);
            let t = t as i32;
            let ahead = 0.9 * *m / (1.0 - 0.9f64.powi(t + 1)) + 0.1 * g / (1.0 - 0.9f64.powi(t));
            lr * ahead / ((*v / (1.0 - 0.99f64.powi(t))).sqrt() + 1e-8)
        });
        follow(OptimizerKind::Sgd, |_, g, m, _, lr| {
            *m = 0.9 * *m + g;
            lr * *m
        });
    }

    #[test]
    fn each_block_is_clipped_by_its_own_norm() {
        let model = StageModel::new(tiny(), 0, 2, false, false).unwrap();
        let mut settings = settings(OptimizerKind::Sgd, 1.0);
        settings.optimizer.decay = 0.0;
        let mut master = Master::new(&model, &settings);
        let mut grad = vec![0.0; model.values()];
        let second = model.blocks()[1].1.start;
        (grad[3], grad[second + 5]) = (4.0, 0.5);
        master.add(&FixedProduct::default(), &mut grad, 1.0).unwrap();
        let mut new = vec![0.0; model.values()];
        let report = master.step(&FixedProduct::default(), &vec![0.0; model.values()], &mut new, 1.0);
        assert_eq!(report.norms, [4.0, 0.5]);
        assert_eq!((new[3], new[second + 5]), (-1.0, -0.5));
    }

    #[test]
    fn what_is_not_finite_is_never_added_and_what_cannot_be_squared_never_stepped() {
        let model = StageModel::new(tiny(), 0, 1, false, false).unwrap();
        let product = FixedProduct::default();
        let mut master = Master::new(&model, &settings(OptimizerKind::Adamw, 1.0));
        let n = model.values();
        master.add(&product, &mut vec![1.0; n], 1.0).unwrap();
        let before = master.sum.clone();
        let mut bad = vec![1.0; n];
        bad[n - 1] = f32::NAN;
        assert!(master.add(&product, &mut bad, 1.0).is_err());
        assert_eq!((&master.sum, master.weight()), (&before, 1.0));
        assert!(master.add(&product, &mut vec![f32::MAX; n], 2.0).is_err());

        master.add(&product, &mut vec![1e30; n], 1.0).unwrap();
        let old = vec![0.5; n];
        let mut new = vec![0.0; n];
        let report = master.step(&product, &old, &mut new, 0.1);
        assert!(!report.finite && new == old && master.count == 0 && master.weight() == 0.0);
    }
}
