//! `skein bench stage`: how fast a model is trained by one process. In: a preset. Out: tokens/s of each part.

use serde::Serialize;
use skein_pipeline::{
    compute::{Device, bench, engine},
    exact::Settings,
    model::{StageModel, init},
};
use skein_protocol::run::{Arithmetic, preset::preset};

use super::other;
use crate::cli::{
    args::BenchStage,
    commands::train::no_preset,
    context::Context,
    failure::Report,
    show::{self, About},
    table::{Column, Table},
};

#[derive(Serialize)]
struct Measured {
    preset: String,
    stage: Option<u16>,
    parameters: u64,
    threads: u16,
    forward_tokens_per_s: f64,
    backward_tokens_per_s: f64,
    step_ms: f64,
    tokens_per_s: f64,
}

/// Tokens/s of forward, backward and step.
pub fn run(args: &BenchStage, context: &Context) -> Result<u8, Report> {
    let manifest = preset(&args.preset).ok_or_else(|| no_preset(&args.preset))?;
    let model = match args.stage {
        Some(stage) => StageModel::of(&manifest, stage),
        None => StageModel::whole(manifest.model.config.clone()),
    };
    let model = model.map_err(other)?;
    let parameters = model.values() as u64;
    let params = init::initial(&model, manifest.train.seed);
    let device = Device::Cpu { threads: usize::from(args.threads.max(1)) };
    let made = engine(device, Arithmetic::F32, model, Settings::of(&manifest), params);
    let mut engine = made.map_err(other)?;
    let speed = bench::stage(engine.as_mut(), args.micro_batches as usize).map_err(other)?;
    let measured = Measured {
        preset: args.preset.clone(),
        stage: args.stage,
        parameters,
        threads: args.threads.max(1),
        forward_tokens_per_s: speed.forward_tokens_per_s,
        backward_tokens_per_s: speed.backward_tokens_per_s,
        step_ms: speed.step_ms,
        tokens_per_s: speed.tokens_per_s,
    };
    if context.out.style().json {
        context.out.document("bench", &measured);
        return Ok(0);
    }
    let columns = ["MODEL", "PARAMETERS", "THREADS", "FORWARD", "BACKWARD", "STEP", "TOGETHER"];
    let mut table = Table::new(columns.into_iter().map(Column::Left).collect());
    let name = args.stage.map_or(measured.preset.clone(), |stage| format!("{} stage {stage}", measured.preset));
    table.row(vec![
        name,
        About(parameters as f64).to_string(),
        measured.threads.to_string(),
        show::tokens_per_s(speed.forward_tokens_per_s),
        show::tokens_per_s(speed.backward_tokens_per_s),
        format!("{:.1} ms", speed.step_ms),
        show::tokens_per_s(speed.tokens_per_s),
    ]);
    context.out.table(&table);
    Ok(0)
}
