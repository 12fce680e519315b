//! `skein bench stage`: how fast a model is trained by one process. In: sizes, a text. Out: milliseconds of each part,
//! and the same of PyTorch where a Python has it.

use std::path::Path;

use serde::Serialize;
use skein_pipeline::{
    compute::{
        Device,
        bench::{self, Speed},
        engine, instructions,
    },
    exact::Settings,
    model::{
        StageModel,
        cost::{self, Flops},
        init,
    },
};
use skein_protocol::{Manifest, run::Arithmetic};

use super::{other, quantile, shape, torch};
use crate::{
    cli::{
        args::BenchStage,
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
    arithmetic: Arithmetic,
    forward_ms: f64,
    backward_ms: f64,
    step_ms: f64,
    tokens_per_s: f64,
    /// Of the matrix products that forward and backward need, over the time of both.
    gflops: f64,
    #[serde(flatten)]
    beside: Option<Beside>,
}

/// The same model in PyTorch, measured in turns with ours.
#[derive(Serialize)]
struct Beside {
    torch: String,
    torch_tokens_per_s: f64,
    /// Ours of theirs: median of the turns.
    ratio_percent: f64,
    ratios_percent: Vec<f64>,
}

/// Milliseconds of forward, backward and step: of several turns, medians.
pub fn run(args: &BenchStage, context: &Context) -> Result<u8, Report> {
    let manifest = shape::manifest(&args.shape)?;
    let model = match args.stage {
        Some(stage) => StageModel::of(&manifest, stage),
        None => StageModel::whole(manifest.model.config.clone()),
    };
    let model = model.map_err(other)?;
    let text = args.data.as_deref().map(|file| text(file, manifest.model.config.vocab)).transpose()?;
    let threads = args.threads.max(1);
    let device = named_device(args.device, Device::Cpu { threads: usize::from(threads) })?;
    let arithmetic = args.arithmetic;
    let (mut ours, mut theirs, mut version) = (Vec::new(), Vec::new(), String::new());
    for _ in 0..args.rounds {
        ours.push(turn(args, device, &manifest, &model, text.as_deref())?);
        if let Some(python) = &args.torch {
            let turn = torch::stage(python, &manifest, threads, args.steps, args.data.as_deref())?;
            if turn.params != model.values() as u64 {
                let message = format!(
                    "--torch: its model has {} parameters, this one {}: it has as many heads of keys as of queries, and a head of its own",
                    turn.params,
                    model.values()
                );
                return Err(Failure::Usage { message }.into());
            }
            theirs.push(turn.tokens_per_s);
            version = turn.torch;
        }
    }
    let median = |of: &dyn Fn(&Speed) -> f64| {
        quantile(&mut ours.iter().map(of).collect::<Vec<f64>>(), 0.5).expect("there is at least one turn")
    };
    let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| 100.0 * ours.tokens_per_s / theirs).collect();
    let ratio = quantile(&mut ratios.clone(), 0.5);
    let beside = quantile(&mut theirs, 0.5).zip(ratio).map(|(torch_tokens_per_s, ratio_percent)| Beside {
        torch: version,
        torch_tokens_per_s,
        ratio_percent,
        ratios_percent: ratios,
    });
    let Flops { layer, head } = cost::flops(&manifest.model.config, u64::from(manifest.train.sequence));
    let a_token = u64::from(model.layers) * layer + if model.head { head } else { 0 };
    let flops = 3 * manifest.tokens_per_micro_batch() * a_token;
    let name = shape::name(&args.shape, &manifest);
    let measured = Measured {
        model: args.stage.map_or(name.clone(), |stage| format!("{name}, stage {stage}")),
        params: model.values() as u64,
        threads,
        engine: computes(device, arithmetic),
        arithmetic,
        forward_ms: median(&|speed| speed.forward_ms),
        backward_ms: median(&|speed| speed.backward_ms),
        step_ms: median(&|speed| speed.step_ms),
        tokens_per_s: median(&|speed| speed.tokens_per_s),
        gflops: flops as f64 / median(&|speed| speed.forward_ms + speed.backward_ms) / 1e6,
        beside,
    };
    if context.out.style().json {
        context.out.document("bench", &measured);
    } else {
        context.out.table(&table(&measured));
    }
    Ok(0)
}

/// Trains a fresh engine.
fn turn(
    args: &BenchStage,
    device: Device,
    manifest: &Manifest,
    model: &StageModel,
    text: Option<&[u32]>,
) -> Result<Speed, Report> {
    let params = init::initial(model, manifest.train.seed);
    let made = engine(device, args.arithmetic, model.clone(), Settings::of(manifest), params);
    bench::stage(made.map_err(other)?.as_mut(), args.steps as usize, text).map_err(other)
}

fn table(measured: &Measured) -> Table {
    let sizes = ["MODEL", "PARAMETERS", "THREADS", "ENGINE", "ARITHMETIC"];
    let times = ["FORWARD", "BACKWARD", "STEP", "PRODUCTS", "TOGETHER"];
    let beside = ["PYTORCH", "OF IT", "IN TURNS"].into_iter().filter(|_| measured.beside.is_some());
    let mut table = Table::new(sizes.into_iter().chain(times).chain(beside).map(Column::Left).collect());
    let mut row = vec![
        measured.model.clone(),
        About(measured.params as f64).to_string(),
        measured.threads.to_string(),
        measured.engine.clone(),
        format!("{:?}", measured.arithmetic).to_lowercase(),
        format!("{:.1} ms", measured.forward_ms),
        format!("{:.1} ms", measured.backward_ms),
        format!("{:.1} ms", measured.step_ms),
        format!("{:.0} GFLOP/s", measured.gflops),
        show::tokens_per_s(measured.tokens_per_s),
    ];
    if let Some(beside) = &measured.beside {
        let turns: Vec<String> = beside.ratios_percent.iter().map(|ratio| format!("{ratio:.0}")).collect();
        row.extend([
            show::tokens_per_s(beside.torch_tokens_per_s),
            format!("{:.0} %", beside.ratio_percent),
            turns.join(", "),
        ]);
    }
    table.row(row);
    table
}

/// What computes, on the processor with which instructions.
fn computes(device: Device, arithmetic: Arithmetic) -> String {
    match device {
        Device::Cpu { .. } => format!("{device}, {}", instructions(arithmetic)),
        _ => device.to_string(),
    }
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
        assert_eq!(computes(Device::Cuda(1), Arithmetic::Bf16), "cuda:1");
        assert!(computes(cpu, Arithmetic::Repeatable).starts_with("cpu, "));
    }
}
