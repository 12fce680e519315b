//! `skein bench finetune`: how fast adapters are trained beside a frozen model, in one process. In: sizes, a rank. Out: milliseconds
//! of each part, and what a round of averaging carries.

use std::sync::Arc;

use serde::Serialize;
use skein_pipeline::{
    compute::{Device, bench, engine},
    exact::{Settings, StageWeights},
    model::{StageModel, frozen::Frozen, init},
};
use skein_protocol::run::{Arithmetic, BasePrecision, Lora};

use super::{other, shape, torch};
use crate::{
    cli::{
        args::BenchFinetune,
        context::Context,
        failure::Report,
        show::{self, Bytes, Count},
        table::{Column, Table},
    },
    node::memory,
};

#[derive(Serialize)]
struct Measured {
    model: String,
    params: u64,
    trained: u64,
    threads: u16,
    arithmetic: Arithmetic,
    base: BasePrecision,
    base_bytes: u64,
    tokens_per_s: f64,
    forward_ms: f64,
    backward_ms: f64,
    step_ms: f64,
    /// Of the adapters in f32: what a round carries before its codec.
    adapter_bytes: u64,
    peak_rss_bytes: Option<u64>,
    /// The same in PEFT, right after; and ours of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    torch_tokens_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_percent: Option<f64>,
}

pub fn run(args: &BenchFinetune, context: &Context) -> Result<u8, Report> {
    let manifest = shape::manifest(&args.shape)?;
    let frozen = StageModel::whole(manifest.model.config.clone()).map_err(other)?;
    let (rank, base) = (args.rank, args.base_precision);
    let weights = Arc::new(Frozen::of(&frozen, &init::initial(&frozen, 1), base).map_err(other)?);
    let lora = Lora { rank, alpha: 2 * rank, targets: args.targets.clone(), dropout_percent: 0, base };
    let (params, base_bytes) = (frozen.values() as u64, weights.bytes());
    let model = StageModel::adapted(frozen, lora).map_err(other)?;
    let trained = model.values() as u64;
    let adapters = StageWeights { params: init::initial(&model, 1), frozen: Some(weights) };
    let device = Device::Cpu { threads: usize::from(args.threads.max(1)) };
    let mut engine = engine(device, args.arithmetic, model, Settings::of(&manifest), adapters).map_err(other)?;
    let speed = bench::stage(engine.as_mut(), args.steps as usize, None).map_err(other)?;
    let theirs = match &args.torch {
        Some(python) => {
            let sizes = [
                args.threads.max(1).to_string(),
                manifest.train.sequence.to_string(),
                manifest.train.micro_batch.to_string(),
                args.rank.to_string(),
                args.targets.join(","),
                args.steps.to_string(),
            ];
            Some(torch::finetune(python, &manifest, sizes)?.tokens_per_s)
        }
        None => None,
    };
    let measured = Measured {
        model: shape::name(&args.shape, &manifest),
        params,
        trained,
        threads: args.threads.max(1),
        arithmetic: args.arithmetic,
        base,
        base_bytes,
        tokens_per_s: speed.tokens_per_s,
        forward_ms: speed.forward_ms,
        backward_ms: speed.backward_ms,
        step_ms: speed.step_ms,
        adapter_bytes: 4 * trained,
        peak_rss_bytes: memory::peak(),
        torch_tokens_per_s: theirs,
        ratio_percent: theirs.map(|theirs| 100.0 * speed.tokens_per_s / theirs),
    };
    if context.out.style().json {
        context.out.document("bench", &measured);
        return Ok(0);
    }
    let names = [
        "MODEL",
        "PARAMETERS",
        "TRAINED",
        "THREADS",
        "ARITHMETIC",
        "BASE",
        "FORWARD",
        "BACKWARD",
        "STEP",
        "TOGETHER",
        "A ROUND",
        "MEMORY",
    ];
    let beside = measured.torch_tokens_per_s.zip(measured.ratio_percent);
    let of_theirs: &[&str] = if beside.is_some() { &["PEFT", "OF IT"] } else { &[] };
    let mut table = Table::new(names.iter().chain(of_theirs).copied().map(Column::Left).collect());
    let mut row = vec![
        measured.model.clone(),
        Count(params).to_string(),
        Count(trained).to_string(),
        measured.threads.to_string(),
        format!("{:?}", measured.arithmetic).to_lowercase(),
        format!("{} {}", base.name(), Bytes(base_bytes)),
        format!("{:.1} ms", speed.forward_ms),
        format!("{:.1} ms", speed.backward_ms),
        format!("{:.1} ms", speed.step_ms),
        show::tokens_per_s(speed.tokens_per_s),
        Bytes(measured.adapter_bytes).to_string(),
        measured.peak_rss_bytes.map_or("-".into(), |most| Bytes(most).to_string()),
    ];
    if let Some((theirs, ratio)) = beside {
        row.extend([show::tokens_per_s(theirs), format!("{ratio:.0} %")]);
    }
    table.row(row);
    context.out.table(&table);
    Ok(0)
}
