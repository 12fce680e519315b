//! `skein bench stage`: how fast a model is trained by one process. In: sizes, a text. Out: milliseconds of each part.

use std::path::Path;

use serde::Serialize;
use skein_pipeline::{
    compute::{Device, bench, engine},
    exact::{Instructions, Settings},
    model::{
        StageModel,
        cost::{self, Flops},
        init,
    },
};
use skein_protocol::{
    Manifest,
    run::{Arithmetic, preset::preset},
};

use super::other;
use crate::{
    cli::{
        args::{BenchArithmetic, BenchStage},
        commands::train::no_preset,
        context::Context,
        failure::{Failure, Report},
        session::named_device,
        show::{self, About},
        table::{Column, Table},
    },
    home::file::refused,
};

#[derive(Serialize)]
struct Measured {
    model: String,
    params: u64,
    threads: u16,
    /// What computes.
    engine: String,
    forward_ms: f64,
    backward_ms: f64,
    step_ms: f64,
    tokens_per_s: f64,
    /// Of the matrix products that forward and backward need, over the time of both.
    gflops: f64,
}

/// Milliseconds of forward, backward and step.
pub fn run(args: &BenchStage, context: &Context) -> Result<u8, Report> {
    let manifest = manifest(args)?;
    let model = match args.stage {
        Some(stage) => StageModel::of(&manifest, stage),
        None => StageModel::whole(manifest.model.config.clone()),
    };
    let model = model.map_err(other)?;
    let text = args.data.as_deref().map(|file| text(file, manifest.model.config.vocab)).transpose()?;
    let params = init::initial(&model, manifest.train.seed);
    let device = named_device(args.device, Device::Cpu { threads: usize::from(args.threads.max(1)) })?;
    let arithmetic = arithmetic(args.arithmetic, device);
    let (layers, head, values) = (model.layers, model.head, model.values() as u64);
    let made = engine(device, arithmetic, model, Settings::of(&manifest), params);
    let mut engine = made.map_err(other)?;
    let speed = bench::stage(engine.as_mut(), args.steps as usize, text.as_deref()).map_err(other)?;
    let Flops { layer, head: head_flops } = cost::flops(&manifest.model.config, u64::from(manifest.train.sequence));
    let a_token = u64::from(layers) * layer + if head { head_flops } else { 0 };
    let flops = 3 * manifest.tokens_per_micro_batch() * a_token;
    let measured = Measured {
        model: name(args, &manifest),
        params: values,
        threads: args.threads.max(1),
        engine: computes(device, arithmetic),
        forward_ms: speed.forward_ms,
        backward_ms: speed.backward_ms,
        step_ms: speed.step_ms,
        tokens_per_s: speed.tokens_per_s,
        gflops: flops as f64 / (speed.forward_ms + speed.backward_ms) / 1e6,
    };
    if context.out.style().json {
        context.out.document("bench", &measured);
        return Ok(0);
    }
    let columns = ["MODEL", "PARAMETERS", "THREADS", "ENGINE", "FORWARD", "BACKWARD", "STEP", "PRODUCTS", "TOGETHER"];
    let mut table = Table::new(columns.into_iter().map(Column::Left).collect());
    table.row(vec![
        measured.model,
        About(measured.params as f64).to_string(),
        measured.threads.to_string(),
        measured.engine,
        format!("{:.1} ms", speed.forward_ms),
        format!("{:.1} ms", speed.backward_ms),
        format!("{:.1} ms", speed.step_ms),
        format!("{:.0} GFLOP/s", measured.gflops),
        show::tokens_per_s(speed.tokens_per_s),
    ]);
    context.out.table(&table);
    Ok(0)
}

/// What was asked for, else what costs nothing on the device.
fn arithmetic(asked: Option<BenchArithmetic>, device: Device) -> Arithmetic {
    match (asked, device) {
        (Some(BenchArithmetic::F32), _) | (None, Device::Cuda(_) | Device::Metal(_)) => Arithmetic::F32,
        (Some(BenchArithmetic::Bf16), _) => Arithmetic::Bf16,
        (Some(BenchArithmetic::Repeatable), _) | (None, Device::Cpu { .. }) => Arithmetic::Repeatable,
    }
}

/// What computes, and in which arithmetic or with which instructions.
fn computes(device: Device, arithmetic: Arithmetic) -> String {
    match (device, arithmetic) {
        (Device::Cpu { .. }, Arithmetic::Repeatable) => format!("{device}, {:?}", Instructions::fixed()),
        _ => format!("{device}, {arithmetic:?}"),
    }
    .to_lowercase()
}

/// The preset with what was said otherwise.
fn manifest(args: &BenchStage) -> Result<Manifest, Report> {
    let mut manifest = preset(&args.preset).ok_or_else(|| no_preset(&args.preset))?;
    let (config, train) = (&mut manifest.model.config, &mut manifest.train);
    let sizes = [
        (args.hidden, &mut config.hidden),
        (args.layers, &mut config.layers),
        (args.ffn, &mut config.ffn),
        (args.vocab, &mut config.vocab),
        (args.sequence, &mut train.sequence),
        (args.batch, &mut train.micro_batch),
    ];
    for (given, size) in sizes {
        *size = given.unwrap_or(*size);
    }
    if let Some(heads) = args.heads {
        (config.heads, config.kv_heads) = (heads, heads);
    }
    config.context = config.context.max(train.sequence);
    let whole =
        config.hidden.checked_rem(config.heads) == Some(0) && config.heads.checked_rem(config.kv_heads) == Some(0);
    if !whole || config.hidden / config.heads % 2 != 0 {
        let message =
            format!("--hidden {} --heads {}: a head has an even number of values", config.hidden, config.heads);
        return Err(Failure::Usage { message }.into());
    }
    Ok(manifest)
}

fn name(args: &BenchStage, manifest: &Manifest) -> String {
    let config = &manifest.model.config;
    let sized = [args.hidden, args.layers, args.heads, args.ffn, args.vocab].iter().any(Option::is_some);
    let model = match sized {
        true => format!("{} wide, {} layers", config.hidden, config.layers),
        false => args.preset.clone(),
    };
    args.stage.map_or(model.clone(), |stage| format!("{model}, stage {stage}"))
}

/// The bytes of a file as token ids.
fn text(file: &Path, vocab: u32) -> Result<Vec<u32>, Report> {
    let bytes = std::fs::read(file).map_err(|error| refused(file, 0, error))?;
    if vocab < 256 {
        let message = format!("--data: its bytes are tokens, and a vocabulary of {vocab} has no room for 256");
        return Err(Failure::Usage { message }.into());
    }
    Ok(bytes.into_iter().map(u32::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bench_says_what_computed_and_in_what() {
        let cpu = Device::Cpu { threads: 2 };
        assert_eq!(arithmetic(None, cpu), Arithmetic::Repeatable);
        assert_eq!(arithmetic(None, Device::Cuda(1)), Arithmetic::F32);
        assert_eq!(arithmetic(Some(BenchArithmetic::Bf16), Device::Cuda(1)), Arithmetic::Bf16);
        assert_eq!(computes(Device::Cuda(1), Arithmetic::Bf16), "cuda:1, bf16");
        assert!(computes(cpu, Arithmetic::Repeatable).starts_with("cpu, "));
    }
}
