//! `skein bench average`: how long one averaging round takes among replicas that are processes of their own. In: how many, and how
//! large. Out: seconds of a round, beside what others were measured to take.
//!
//! Each replica is the network, the worker's thread and the machine of averaging as a peer has them; only the flow of
//! micro-batches around them is left out.

mod replica;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use serde::Serialize;
use skein_pipeline::model::StageModel;
use skein_protocol::{
    Manifest,
    run::{Arithmetic, preset::preset},
};

use super::{other, quantile};
use crate::cli::{
    args::BenchAverage,
    context::Context,
    failure::Report,
    session, show,
    table::{Column, Table},
};

/// Rounds whose time is taken, after one that warms up.
const ROUNDS: u32 = 7;
/// Of 4 peers with 40 MB each, measured elsewhere on two such cores: a round of hivemind 1.1.12, and gloo's all-reduce.
const HIVEMIND_S: f64 = 1.005;
const GLOO_S: f64 = 0.077;

#[derive(Clone, Debug, Serialize)]
struct Measured {
    replicas: u16,
    /// Of f32 parameters at each replica.
    bytes: u64,
    rounds: u32,
    /// From the step that makes a round due at all replicas until the last of them has ended its round. Median.
    round_s: Option<f64>,
    round_s_p95: Option<f64>,
    /// From a replica's proposal to the end of its round. Median over all replicas and rounds.
    exchange_s: Option<f64>,
    /// Rounds of single replicas that found no partner, of all: pairs form without a leader.
    skipped: u32,
    all: u32,
    /// Milliseconds of the worker: encoding, computing the result, adopting it. Medians.
    snapshot_ms: Option<f64>,
    prepare_ms: Option<f64>,
    adopt_ms: Option<f64>,
    /// Measured elsewhere, with 4 peers of 40 MB.
    hivemind_s: f64,
    gloo_s: f64,
}

pub fn run(args: &BenchAverage, context: &Context) -> Result<u8, Report> {
    if let Some(seed) = args.replica {
        return session::runtime()?.block_on(replica::run(context, manifest(args.mib), seed));
    }
    let measured = measure(args)?;
    if context.out.style().json {
        context.out.document("bench-average", &measured);
        return Ok(0);
    }
    let columns = [
        "REPLICAS",
        "EACH",
        "ROUND",
        "P95",
        "ENCODING",
        "COMPUTING",
        "ADOPTING",
        "WITHOUT PARTNER",
        "HIVEMIND*",
        "GLOO*",
    ];
    let mut table = Table::new(columns.into_iter().map(Column::Left).collect());
    let seconds = |value: Option<f64>| value.map_or_else(|| "-".into(), |s| format!("{s:.3} s"));
    table.row(vec![
        measured.replicas.to_string(),
        show::Bytes(measured.bytes).to_string(),
        seconds(measured.round_s),
        seconds(measured.round_s_p95),
        super::millis(measured.snapshot_ms),
        super::millis(measured.prepare_ms),
        super::millis(measured.adopt_ms),
        format!("{} of {}", measured.skipped, measured.all),
        seconds(Some(HIVEMIND_S)),
        seconds(Some(GLOO_S)),
    ]);
    context.out.table(&table);
    context.out.note("* measured elsewhere: 4 peers of 40 MB on two cores");
    Ok(0)
}

/// A model of one stage whose parameters take about `mib` MiB as f32, and steps that take no time beside a round.
fn manifest(mib: u32) -> Manifest {
    let mut manifest = preset("tiny").expect("it is one of ours");
    manifest.train.arithmetic = vec![Arithmetic::F32];
    (manifest.train.sequence, manifest.train.micro_batch, manifest.train.micro_batches_per_step) = (16, 1, 1);
    manifest.averaging.every = 1;
    manifest.stages.count = 1;
    let mut layers = 1;
    loop {
        manifest.model.config.layers = layers;
        manifest.stages.split = vec![layers];
        let enough = |manifest: &Manifest| {
            StageModel::of(manifest, 0).is_ok_and(|model| 4 * model.values() as u64 >= u64::from(mib) << 20)
        };
        if layers >= 512 || enough(&manifest) {
            return manifest;
        }
        layers += 1;
    }
}

/// What a replica prints after a round.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
struct Told {
    /// Seconds from the proposal; nothing where no partner was found.
    exchange_s: Option<f64>,
    snapshot_ms: f64,
    prepare_ms: f64,
    adopt_ms: f64,
}

struct Replica {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Replica {
    fn start(seed: u64, mib: u32) -> Result<Replica, Report> {
        let mut command = Command::new(std::env::current_exe().map_err(other)?);
        command.args(["bench", "average", "--replica", &seed.to_string(), "--mib", &mib.to_string()]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(other)?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok(Replica { process, stdin, stdout: BufReader::new(stdout) }),
            _ => Err(other("a replica has no pipes")),
        }
    }

    fn say(&mut self, line: &str) -> Result<(), Report> {
        writeln!(self.stdin, "{line}").map_err(other)
    }

    fn hear(&mut self) -> Result<String, Report> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line).map_err(other)? {
            0 => Err(other("a replica ended")),
            _ => Ok(line.trim().to_string()),
        }
    }
}

fn measure(args: &BenchAverage) -> Result<Measured, Report> {
    let starting = (1..=u64::from(args.replicas)).map(|seed| Replica::start(seed, args.mib));
    let mut replicas = starting.collect::<Result<Vec<_>, _>>()?;
    let addresses = replicas.iter_mut().map(Replica::hear).collect::<Result<Vec<_>, _>>()?;
    for replica in &mut replicas {
        replica.say(&addresses.join(" "))?;
    }
    let (mut rounds, mut told) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        for replica in &mut replicas {
            replica.say("train")?;
        }
        // All have trained and stand still.
        for replica in &mut replicas {
            replica.hear()?;
        }
        let began = Instant::now();
        for replica in &mut replicas {
            replica.say("due")?;
        }
        let ended = replicas.iter_mut().map(Replica::hear).collect::<Result<Vec<_>, _>>()?;
        let took: Duration = began.elapsed();
        if round > 0 {
            rounds.push(took.as_secs_f64());
            for line in ended {
                told.push(serde_json::from_str::<Told>(&line).map_err(other)?);
            }
        }
    }
    let mut exchanges: Vec<f64> = told.iter().filter_map(|told| told.exchange_s).collect();
    let median = |of: fn(&Told) -> f64| {
        let met = told.iter().filter(|told| told.exchange_s.is_some());
        quantile(&mut met.map(of).collect::<Vec<_>>(), 0.5)
    };
    let (all, met) = (told.len() as u32, exchanges.len() as u32);
    let values = StageModel::of(&manifest(args.mib), 0).map_err(other)?.values();
    Ok(Measured {
        replicas: args.replicas,
        bytes: 4 * values as u64,
        rounds: ROUNDS,
        round_s: quantile(&mut rounds, 0.5),
        round_s_p95: quantile(&mut rounds, 0.95),
        exchange_s: quantile(&mut exchanges, 0.5),
        skipped: all - met,
        all,
        snapshot_ms: median(|told| told.snapshot_ms),
        prepare_ms: median(|told| told.prepare_ms),
        adopt_ms: median(|told| told.adopt_ms),
        hivemind_s: HIVEMIND_S,
        gloo_s: GLOO_S,
    })
}
