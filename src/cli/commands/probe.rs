//! `skein probe`: what this machine can give, measured, as a file that a scenario can name in the place of a device.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use skein_pipeline::{
    compute::{bench, engine},
    exact::Settings,
    model::{StageModel, cost, init},
};
use skein_protocol::{codec, run::preset::preset};
use skein_simulations::world::devices::{CodecSpeed, PROBE, Probe};
use sysinfo::System;

use super::bench::loopback_rate;
use crate::{
    cli::{
        args,
        context::Context,
        failure::{Failure, Report},
        session::Chosen,
        show,
        table::{Column, Table},
    },
    home::{
        HomeError,
        file::{self, Reader},
    },
    node,
};

/// Sizes of the model that is trained for a moment.
const PRESET: &str = "tiny";
const STEPS: usize = 4;
/// Turns, of which the median counts; what they differ by is the noise.
const TURNS: usize = 3;
/// Bytes that are written to the disk and read again.
const ON_DISK: usize = 256 << 20;
const LOOPBACK_FOR: Duration = Duration::from_millis(700);

pub fn run(args: &args::Probe, context: &Context) -> Result<u8, Report> {
    let out = &context.out;
    let no_file = |error: HomeError| unwritable(&args.out, error);
    if args.out.is_dir() {
        return Err(Failure::NoFile { path: args.out.display().to_string(), error: "it is a folder".into() }.into());
    }
    file::probe(file::parent(&args.out)).map_err(no_file)?;
    out.note("measuring: computing, the disk, codecs, a link between two processes; about half a minute");
    let (flops, noise) = compute(context)?;
    let (disk_read, disk_write) = disk(context.home.data())?;
    let probe = Probe {
        probe: PROBE,
        device: args.name.clone().unwrap_or_else(processor),
        memory: context.node.give.memory_bytes(&context.machine),
        flops,
        noise,
        disk_read,
        disk_write,
        loopback: loopback_rate(LOOPBACK_FOR)?,
        codecs: codecs(),
        watts: None,
    };
    let text = serde_json::to_string_pretty(&probe).expect("a probe is plain data");
    file::write(&args.out, text.as_bytes(), Reader::Anyone).map_err(no_file)?;
    if out.style().json {
        out.document("probe", &probe);
        return Ok(0);
    }
    let mut table = Table::new(vec![Column::Left("WHAT"), Column::Left("MEASURED")]);
    let mut row = |what: &str, measured: String| table.row(vec![what.into(), measured]);
    row("device", probe.device.clone());
    row("memory that it gives", show::Bytes(probe.memory).to_string());
    row("forward and backward", format!("{:.0} GFLOP/s, +- {:.0} %", probe.flops / 1e9, 100.0 * probe.noise));
    row("disk, read and written", format!("{}, {}", show::rate(probe.disk_read), show::rate(probe.disk_write)));
    row("loopback", show::rate(probe.loopback));
    for (codec, speed) in &probe.codecs {
        row(codec, format!("{} in, {} out", show::rate(speed.encode), show::rate(speed.decode)));
    }
    out.table(&table);
    let file = args.out.display();
    out.done(&format!("{file}   in a scenario: [peers] devices = {{ \"{file}\" = 1.0 }}"));
    Ok(0)
}

/// A file that somebody named is no file of a home: what to do is to name another.
fn unwritable(path: &Path, error: HomeError) -> Report {
    match error {
        HomeError::Denied { source, .. } => {
            let error = match source.kind() {
                ErrorKind::AlreadyExists | ErrorKind::NotADirectory => "a part of its path is a file, no folder".into(),
                _ => source.to_string(),
            };
            Failure::NoFile { path: path.display().to_string(), error }.into()
        }
        other => other.into(),
    }
}

/// Operations a second, and by what part turns differ.
fn compute(context: &Context) -> Result<(f64, f64), Report> {
    let other = |error: &dyn std::fmt::Display| Report::from(Failure::Other { message: error.to_string() });
    let manifest = preset(PRESET).ok_or_else(|| super::train::no_preset(PRESET))?;
    let model = StageModel::whole(manifest.model.config.clone()).map_err(|error| other(&error))?;
    let device = Chosen::look(context)?.of(&manifest);
    let chosen = manifest.train.arithmetic.iter().copied().find(|arithmetic| device.computes(*arithmetic));
    let arithmetic = chosen.unwrap_or(skein_protocol::run::Arithmetic::F32);
    let a_micro_batch: u64 = (0..manifest.stages.count).map(|stage| cost::stage_flops(&manifest, stage)).sum();
    let mut paces = Vec::new();
    for _ in 0..TURNS {
        let params = init::initial(&model, manifest.train.seed);
        let made = engine(device, arithmetic, model.clone(), Settings::of(&manifest), params);
        let mut made = made.map_err(|error| other(&error))?;
        let speed = bench::stage(made.as_mut(), STEPS, None).map_err(|error| other(&error))?;
        paces.push(a_micro_batch as f64 * 1e3 / (speed.forward_ms + speed.backward_ms));
    }
    paces.sort_by(f64::total_cmp);
    let median = paces[TURNS / 2];
    Ok((median, (paces[TURNS - 1] - paces[0]) / 2.0 / median))
}

/// Bytes a second: of reading what was just written (the system may still have it), and of writing to the platter.
fn disk(dir: &Path) -> Result<(f64, f64), Report> {
    file::make_dir(dir)?;
    let refused = |error| Report::from(file::refused(dir, ON_DISK as u64, error));
    let mut written = tempfile::Builder::new().prefix(".skein-probe-").tempfile_in(dir).map_err(refused)?;
    let piece: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let began = Instant::now();
    for _ in 0..ON_DISK / piece.len() {
        written.write_all(&piece).map_err(refused)?;
    }
    written.as_file().sync_all().map_err(refused)?;
    let wrote = began.elapsed();
    let mut back = File::open(written.path()).map_err(refused)?;
    let mut buffer = piece;
    let began = Instant::now();
    while back.read(&mut buffer).map_err(refused)? > 0 {}
    let pace = |took: Duration| ON_DISK as f64 / took.as_secs_f64().max(1e-6);
    Ok((pace(began.elapsed()), pace(wrote)))
}

/// Bytes of f32 a second that each codec takes and gives.
fn codecs() -> BTreeMap<String, CodecSpeed> {
    let pace = |seconds_a_value: f64| 4.0 / seconds_a_value.max(1e-12);
    let measured = node::costs().0.into_iter().zip(codec::ALL);
    let speed =
        |cost: skein_pipeline::flow::coding::Cost| CodecSpeed { encode: pace(cost.encode), decode: pace(cost.decode) };
    measured.map(|(cost, codec)| (format!("{codec:?}").to_lowercase(), speed(cost))).collect()
}

fn processor() -> String {
    let mut system = System::new();
    system.refresh_cpu_all();
    system.cpus().first().map_or_else(|| "this machine".into(), |cpu| cpu.brand().trim().to_string())
}
