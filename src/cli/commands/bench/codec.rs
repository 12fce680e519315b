//! `skein bench codec`: what each codec does to a tensor, on one core, beside a plain copy of it; with `--loss`, what it does to
//! a run. In: a size, or a number of steps. Out: a table.

use std::{hint::black_box, time::Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;
use skein_pipeline::{
    compute::{Device, OnDevice},
    model::cost,
};
use skein_protocol::{
    Manifest,
    codec::{self, BadTensor, decode_into, encode_into},
    run::{Codec, Ends, ScheduleKind, Weights, preset::preset},
};

use super::{
    loss::{Recipe, learn},
    other, quantile,
};
use crate::{
    cli::{
        args::BenchCodec,
        context::Context,
        failure::Report,
        progress::{Progress, Unit},
        table::{Column, Table},
    },
    corpus::fables,
};

pub fn run(args: &BenchCodec, context: &Context) -> Result<u8, Report> {
    match args.loss {
        true => run_loss(args, context),
        false => run_speed(args, context),
    }
}

#[derive(Serialize)]
struct Measured {
    mib: u32,
    rounds: u32,
    /// A plain copy of the f32 values.
    copy_gb_per_s: f64,
    codecs: Vec<Row>,
}

/// GB/s of f32, on one core, medians.
#[derive(Serialize)]
struct Row {
    codec: Codec,
    /// Of the bytes as f32.
    bytes_ratio: f64,
    encode_gb_per_s: f64,
    /// The check for values that are not finite or absurdly large included.
    decode_gb_per_s: f64,
    error_rms_relative: f64,
    error_max: f64,
    zstd_bytes_ratio: f64,
    /// Of the bytes without it.
    zstd_saves_percent: f64,
    zstd_encode_gb_per_s: f64,
    zstd_decode_gb_per_s: f64,
}

fn run_speed(args: &BenchCodec, context: &Context) -> Result<u8, Report> {
    let values = normal((args.mib as usize) << 18);
    let rounds = args.rounds as usize;
    let mut back = vec![0.0; values.len()];
    let mut copies = Vec::new();
    let mut benches: Vec<Bench> = codec::ALL.into_iter().map(|codec| Bench { codec, ..Bench::default() }).collect();
    for _ in 0..rounds {
        let began = Instant::now();
        black_box(&mut back).copy_from_slice(black_box(&values));
        copies.push(began.elapsed().as_secs_f64());
        benches.iter_mut().try_for_each(|bench| bench.round(&values, &mut back)).map_err(other)?;
    }
    let bytes = 4.0 * values.len() as f64;
    let codecs = benches.iter_mut().map(|bench| bench.row(bytes)).collect();
    let measured = Measured { mib: args.mib, rounds: args.rounds, copy_gb_per_s: pace(bytes, &mut copies), codecs };
    if context.out.style().json {
        context.out.document("bench-codec", &measured);
        return Ok(0);
    }
    let columns = ["CODEC", "BYTES", "ENCODE", "DECODE", "ERROR", "LARGEST", "ZSTD SAVES", "ENCODE", "DECODE"];
    let mut table = Table::new(columns.into_iter().map(Column::Right).collect());
    let speed = |speed: f64| format!("{speed:.1} GB/s");
    for row in &measured.codecs {
        table.row(vec![
            format!("{:?}", row.codec).to_lowercase(),
            format!("{:.3}", row.bytes_ratio),
            speed(row.encode_gb_per_s),
            speed(row.decode_gb_per_s),
            format!("{:.1e}", row.error_rms_relative),
            format!("{:.3}", row.error_max),
            format!("{:.1} %", row.zstd_saves_percent),
            speed(row.zstd_encode_gb_per_s),
            speed(row.zstd_decode_gb_per_s),
        ]);
    }
    let mut copy = vec![String::new(); columns.len()];
    (copy[0], copy[2]) = ("copy".into(), speed(measured.copy_gb_per_s));
    table.row(copy);
    context.out.table(&table);
    Ok(0)
}

/// One codec: seconds of each round, and what came of the last.
struct Bench {
    codec: Codec,
    encode: Vec<f64>,
    decode: Vec<f64>,
    pack: Vec<f64>,
    unpack: Vec<f64>,
    plain: Vec<u8>,
    packed: Vec<u8>,
    error: (f64, f64),
}

impl Default for Bench {
    fn default() -> Self {
        let none = Vec::new;
        let (encode, decode, pack, unpack) = (none(), none(), none(), none());
        let (plain, packed) = (Vec::new(), Vec::new());
        Bench { codec: Codec::F32, encode, decode, pack, unpack, plain, packed, error: (0.0, 0.0) }
    }
}

impl Bench {
    fn round(&mut self, values: &[f32], back: &mut [f32]) -> Result<(), BadTensor> {
        let codec = self.codec;
        let timed = |times: &mut Vec<f64>, work: &mut dyn FnMut() -> Result<(), BadTensor>| {
            let began = Instant::now();
            let outcome = work();
            times.push(began.elapsed().as_secs_f64());
            outcome
        };
        timed(&mut self.encode, &mut || encode_into(black_box(values), codec, false, &mut self.plain))?;
        timed(&mut self.decode, &mut || decode_into(black_box(&self.plain), back, &[codec]))?;
        self.error = error(values, back);
        timed(&mut self.pack, &mut || encode_into(black_box(values), codec, true, &mut self.packed))?;
        timed(&mut self.unpack, &mut || decode_into(black_box(&self.packed), back, &[codec]))
    }

    fn row(&mut self, bytes: f64) -> Row {
        let (plain, packed) = (self.plain.len() as f64, self.packed.len() as f64);
        Row {
            codec: self.codec,
            bytes_ratio: plain / bytes,
            encode_gb_per_s: pace(bytes, &mut self.encode),
            decode_gb_per_s: pace(bytes, &mut self.decode),
            error_rms_relative: self.error.0,
            error_max: self.error.1,
            zstd_bytes_ratio: packed / bytes,
            zstd_saves_percent: 100.0 * (1.0 - packed / plain),
            zstd_encode_gb_per_s: pace(bytes, &mut self.pack),
            zstd_decode_gb_per_s: pace(bytes, &mut self.unpack),
        }
    }
}

/// GB/s at the median.
fn pace(bytes: f64, seconds: &mut [f64]) -> f64 {
    bytes / quantile(seconds, 0.5).unwrap_or(f64::INFINITY).max(1e-9) / 1e9
}

/// Relative root mean square of the error, and the largest.
fn error(values: &[f32], back: &[f32]) -> (f64, f64) {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let lost: f64 = values.iter().zip(back).map(|(a, b)| square(a - b)).sum();
    let size: f64 = values.iter().map(|v| square(*v)).sum();
    let largest = values.iter().zip(back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    ((lost / size.max(f64::MIN_POSITIVE)).sqrt(), f64::from(largest))
}

/// Values of a normal distribution of standard deviation 1.
fn normal(count: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(7);
    let pairs = (0..count.div_ceil(2)).flat_map(|_| {
        let (radius, angle) = (1.0 - rng.random::<f64>(), rng.random::<f64>() * std::f64::consts::TAU);
        let radius = (-2.0 * radius.ln()).sqrt();
        [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
    });
    pairs.take(count).collect()
}

#[derive(Serialize)]
struct Losses {
    /// Of one replica, and tokens of its steps.
    parameters: u64,
    tokens_a_step: u64,
    stages: u16,
    steps: u32,
    seeds: u32,
    rows: Vec<LossRow>,
}

#[derive(Serialize)]
struct LossRow {
    /// What travels in the codecs: activations and gradients between three stages, or the differences of two replicas.
    what: &'static str,
    forward: Codec,
    backward: Codec,
    averaging: Option<Codec>,
    error_feedback: bool,
    /// Mean over the seeds.
    loss: f64,
    /// Above the training of the same seed in f32: mean over the seeds, and its standard error.
    above_f32_percent: f64,
    standard_error_percent: Option<f64>,
}

/// In groups: the first of each is in f32, what the others are compared with.
const RECIPES: [(&str, &[Recipe]); 2] = [
    (
        "activations, gradients",
        &[
            hops(Codec::F32, Codec::F32),
            hops(Codec::Bf16, Codec::Bf16),
            hops(Codec::Int8, Codec::Bf16),
            hops(Codec::Int8, Codec::Int8),
            hops(Codec::Int4, Codec::Bf16),
        ],
    ),
    (
        "differences of averaging",
        &[
            rounds(Codec::F32, false),
            rounds(Codec::Bf16, false),
            rounds(Codec::Int8, false),
            rounds(Codec::Int4, false),
            rounds(Codec::Int4, true),
            rounds(Codec::Sparse, true),
        ],
    ),
];

const fn hops(forward: Codec, backward: Codec) -> Recipe {
    Recipe { forward, backward, averaging: None }
}

const fn rounds(codec: Codec, fed_back: bool) -> Recipe {
    Recipe { forward: Codec::F32, backward: Codec::F32, averaging: Some((codec, fed_back)) }
}

fn run_loss(args: &BenchCodec, context: &Context) -> Result<u8, Report> {
    let manifest = small(args.steps, 0);
    let mut measured = Losses {
        parameters: (0..manifest.stages.count).map(|stage| cost::stage_parameters(&manifest, stage)).sum(),
        tokens_a_step: u64::from(manifest.train.micro_batches_per_step) * manifest.tokens_per_micro_batch(),
        stages: manifest.stages.count,
        steps: args.steps,
        seeds: args.seeds,
        rows: Vec::new(),
    };
    let total = RECIPES.iter().map(|(_, recipes)| recipes.len() as u64).sum::<u64>() * u64::from(args.seeds);
    let progress = Progress::start(&context.out, "training", total, Unit::Things);
    let mut done = 0;
    for (what, recipes) in RECIPES {
        let mut of_f32: Option<Vec<f64>> = None;
        for recipe in recipes {
            let losses = (0..args.seeds).map(|seed| {
                let loss = ended_at(*recipe, args.steps, seed.into());
                done += 1;
                progress.at(done);
                loss
            });
            let losses = losses.collect::<Result<Vec<f64>, _>>().map_err(other)?;
            let base = of_f32.get_or_insert_with(|| losses.clone());
            // Paired by seed: the same weights at first, the same text in the same order.
            let above: Vec<f64> = losses.iter().zip(base).map(|(loss, base)| 100.0 * (loss / *base - 1.0)).collect();
            let (averaging, error_feedback) = recipe.averaging.map_or((None, false), |(codec, fed)| (Some(codec), fed));
            let Recipe { forward, backward, .. } = *recipe;
            measured.rows.push(LossRow {
                what,
                forward,
                backward,
                averaging,
                error_feedback,
                loss: mean(&losses),
                above_f32_percent: mean(&above),
                standard_error_percent: standard_error(&above),
            });
        }
    }
    if context.out.style().json {
        context.out.document("bench-codec-loss", &measured);
        return Ok(0);
    }
    let columns = ["WHAT", "CODEC", "LOSS", "AGAINST F32", "STANDARD ERROR"];
    let mut table = Table::new(columns.into_iter().map(Column::Left).collect());
    let name = |codec: Codec| format!("{codec:?}").to_lowercase();
    for row in &measured.rows {
        let codec = match row.averaging {
            Some(codec) if row.error_feedback => format!("{} + error feedback", name(codec)),
            Some(codec) => name(codec),
            None => format!("{}, {}", name(row.forward), name(row.backward)),
        };
        let above = format!("{:+.2} %", row.above_f32_percent);
        let error = row.standard_error_percent.map_or_else(|| "-".into(), |error| format!("{error:.2} %"));
        table.row(vec![row.what.into(), codec, format!("{:.4}", row.loss), above, error]);
    }
    context.out.table(&table);
    Ok(0)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Of the mean; nothing of fewer than two values.
fn standard_error(values: &[f64]) -> Option<f64> {
    let (n, mean) = (values.len() as f64, mean(values));
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt())
}

/// The demo's model, narrower, so that many seeds take minutes; its rate falls to nothing, or what is left at the end would be
/// the noise of the last steps rather than what was learned.
fn small(steps: u32, seed: u64) -> Manifest {
    let mut manifest = preset("demo").expect("the demo is a preset");
    let config = &mut manifest.model.config;
    (config.hidden, config.ffn, config.heads, config.kv_heads) = (64, 176, 4, 4);
    manifest.model.weights = Weights::Seed { init_seed: seed + 1 };
    (manifest.train.sequence, manifest.train.micro_batch, manifest.train.micro_batches_per_step) = (64, 4, 2);
    manifest.run.ends = Ends { steps: Some(steps.into()), ..Ends::default() };
    manifest.optimizer.schedule.kind = ScheduleKind::Linear;
    manifest.optimizer.schedule.final_percent = 0;
    manifest
}

/// The mean loss of the last eighth of the steps.
fn ended_at(recipe: Recipe, steps: u32, seed: u64) -> Result<f64, String> {
    let manifest = small(steps, seed);
    let replicas = if recipe.averaging.is_some() { 2 } else { 1 };
    let tokens =
        u64::from(steps) * u64::from(manifest.train.micro_batches_per_step) * manifest.tokens_per_micro_batch();
    let (text, _) = fables::expand(seed + 1, (replicas * tokens) as usize + 1);
    let losses = learn(&manifest, recipe, text.as_bytes(), steps, || OnDevice::new(Device::Cpu { threads: 1 }))?;
    Ok(mean(&losses[losses.len() - losses.len().div_ceil(8)..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_codec_is_measured_and_is_what_it_says() {
        let values = normal(100_000);
        let mut back = vec![0.0; values.len()];
        for (codec, ratio) in codec::ALL.into_iter().zip([1.0, 0.5, 0.258, 0.141, 0.065, 0.508]) {
            let mut bench = Bench { codec, ..Bench::default() };
            bench.round(&values, &mut back).unwrap();
            let row = bench.row(4e5);
            assert!((row.bytes_ratio / ratio - 1.0).abs() < 0.01, "{codec:?} {}", row.bytes_ratio);
            assert!(row.encode_gb_per_s > 0.0 && row.zstd_decode_gb_per_s > 0.0);
            assert!(row.zstd_bytes_ratio <= row.bytes_ratio);
        }
    }

    #[test]
    fn the_same_training_is_the_same_loss_and_a_codec_changes_it() {
        let ended = |forward| ended_at(hops(forward, Codec::F32), 4, 0).unwrap();
        let loss = ended(Codec::F32);
        assert!((3.0..8.0).contains(&loss), "{loss}");
        assert_eq!(loss.to_bits(), ended(Codec::F32).to_bits());
        assert_ne!(loss.to_bits(), ended(Codec::Int4).to_bits());
        assert!(ended_at(rounds(Codec::Int4, true), 7, 0).unwrap().is_finite());
        assert_ne!(loss.to_bits(), ended_at(hops(Codec::F32, Codec::F32), 4, 1).unwrap().to_bits(), "another seed");
    }

    #[test]
    fn the_error_of_a_mean_falls_with_the_root_of_the_count() {
        assert_eq!((standard_error(&[]), standard_error(&[3.0])), (None, None));
        assert_eq!(standard_error(&[1.0, 3.0]), Some(1.0));
        let many = [1.0, 3.0].repeat(50);
        assert!((standard_error(&many).unwrap() - 0.1).abs() < 1e-3);
    }
}
