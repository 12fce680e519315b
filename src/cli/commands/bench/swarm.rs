//! `skein bench swarm`: tokens/s of peers that are processes of their own, beside one process on the same cores. In: a model,
//! peers, stages. Out: both rates, their ratio, measured in turn so that a noisy machine disturbs both, and what the peers sent
//! each other for it.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use skein_pipeline::{
    model::{StageModel, frozen, init},
    peer::io::Command,
    plan::partition,
};
use skein_protocol::{
    Manifest,
    event::{Event, Record},
    hash::{self, Digest},
    run::{Lora, Method, Weights},
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::timeout,
};

use super::{other, quantile, scratch, shape};
use crate::{
    cli::{
        args::BenchSwarm,
        context::Context,
        failure::{Failure, Report},
        local::{LocalSwarm, Start},
        session, show,
        table::{Column, Table},
    },
    corpus::Corpus,
    node::{Order, Serve},
};

const FABLES: usize = 1 << 20;
const SEED: u64 = 1;
/// Micro-batches that are completed before the measurement begins.
const WARM: u32 = 8;
/// The next micro-batch does not come after this.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Serialize)]
struct Measured {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lora_rank: Option<u32>,
    peers: u16,
    stages: u16,
    threads_each: u16,
    /// Of the one process.
    single_threads: u16,
    cores: u16,
    seconds: u32,
    /// Of each round.
    rounds: Vec<f64>,
    single_rounds: Vec<f64>,
    /// Medians of the rounds.
    tokens_per_s: f64,
    single_tokens_per_s: f64,
    /// Median of the rounds' ratios.
    efficiency_percent: f64,
    /// Activations and gradients as they travelled from peer to peer, all of them together, for one step of the run.
    bytes_per_step: u64,
}

pub fn run(args: &BenchSwarm, context: &Context) -> Result<u8, Report> {
    if args.peers < args.stages {
        let message = format!("--peers {}: {} stages need at least as many peers", args.peers, args.stages);
        return Err(Failure::Usage { message }.into());
    }
    let whole = manifest(args, 1)?;
    let split = manifest(args, args.stages)?;
    let cores = context.machine.cores;
    let threads = match args.threads {
        0 => (cores / args.peers).max(1),
        threads => threads,
    };
    let corpus = Arc::new(Corpus::fables(SEED, FABLES));
    let runtime = session::runtime()?;
    let length = Duration::from_secs(u64::from(args.seconds.max(1)));
    // The same threads in all, where the cores allow it.
    let single = threads.saturating_mul(args.peers).min(cores).max(1);
    let (mut one, mut many, mut ratios, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        let lone = Members { peers: 0, stages: 1, threads: single };
        let (a, _) = runtime.block_on(tokens_per_s(&whole, lone, length, &corpus, context))?;
        let members = Members { peers: args.peers, stages: args.stages, threads };
        let (b, sent) = runtime.block_on(tokens_per_s(&split, members, length, &corpus, context))?;
        context.out.note(&format!(
            "round {round} of {}: one process {}, swarm {}",
            args.rounds,
            show::tokens_per_s(a),
            show::tokens_per_s(b)
        ));
        one.push(a);
        many.push(b);
        ratios.push(b / a);
        bytes.push(sent);
    }
    let median = |values: &[f64]| quantile(&mut values.to_vec(), 0.5).unwrap_or(0.0);
    let measured = Measured {
        model: shape::name(&args.shape, &split.0),
        lora_rank: args.lora_rank,
        peers: args.peers,
        stages: args.stages,
        threads_each: threads,
        single_threads: single,
        cores,
        seconds: args.seconds,
        tokens_per_s: median(&many),
        single_tokens_per_s: median(&one),
        efficiency_percent: 100.0 * median(&ratios),
        bytes_per_step: median(&bytes) as u64,
        rounds: many,
        single_rounds: one,
    };
    if context.out.style().json {
        context.out.document("bench-swarm", &measured);
        return Ok(0);
    }
    let columns = ["MODEL", "PEERS", "STAGES", "THREADS EACH", "SWARM", "ONE PROCESS", "EFFICIENCY", "SENT A STEP"];
    let mut table = Table::new(columns.into_iter().map(Column::Left).collect());
    table.row(vec![
        match measured.lora_rank {
            Some(rank) => format!("{}, LoRA rank {rank}", measured.model),
            None => measured.model,
        },
        measured.peers.to_string(),
        measured.stages.to_string(),
        threads.to_string(),
        show::tokens_per_s(measured.tokens_per_s),
        format!("{} ({single} threads)", show::tokens_per_s(measured.single_tokens_per_s)),
        format!("{:.0} %", measured.efficiency_percent),
        show::Bytes(measured.bytes_per_step).to_string(),
    ]);
    context.out.table(&table);
    Ok(0)
}

/// A manifest, and what it names by its hash.
type Run = (Manifest, Vec<(Digest, Vec<u8>)>);

fn manifest(args: &BenchSwarm, stages: u16) -> Result<Run, Report> {
    let mut manifest = shape::manifest(&args.shape)?;
    manifest.stages.count = stages;
    manifest.stages.split = partition::of(&manifest, stages).ok_or_else(|| {
        let message = format!("--stages {stages}: the model has {} layers", manifest.model.config.layers);
        Report::from(Failure::Usage { message })
    })?;
    let mut shelf = Vec::new();
    if let Some(rank) = args.lora_rank {
        let targets = ["q", "k", "v", "o"].map(str::to_string).to_vec();
        let lora = Lora { rank, alpha: 2 * rank, targets, dropout_percent: 0, base: args.base_precision };
        (manifest.train.method, manifest.train.lora) = (Method::Lora, Some(lora));
        for stage in 0..stages {
            let model = StageModel::of(&manifest, stage).map_err(other)?;
            let Some(beside) = model.frozen() else { continue };
            let bytes = frozen::encode(beside, &init::initial(beside, SEED), args.base_precision).map_err(other)?;
            shelf.push((hash::blob(&[&bytes]), bytes));
        }
        let stages = shelf.iter().map(|(blob, _)| *blob).collect();
        manifest.model.weights = Weights::Blob { blob: Digest::default(), sources: Vec::new(), stages };
    }
    Ok((manifest, shelf))
}

/// Who trains: so many peers in processes of their own, or (0) this process alone.
#[derive(Clone, Copy)]
struct Members {
    peers: u16,
    stages: u16,
    threads: u16,
}

/// Tokens a second, and bytes that the peers sent each other for one step.
async fn tokens_per_s(
    (manifest, shelf): &Run,
    members: Members,
    length: Duration,
    corpus: &Arc<Corpus>,
    context: &Context,
) -> Result<(f64, f64), Report> {
    let folder = scratch()?;
    let homes: &Path = folder.path();
    let alone = members.peers == 0;
    let start = Start {
        serve: if alone { Serve::Stages((0..members.stages).collect()) } else { Serve::Nothing },
        threads: members.threads,
        shelf: shelf.clone(),
        seed: SEED,
        ..Start::new("bench", manifest.clone(), corpus.clone(), homes)
    };
    let mut swarm = LocalSwarm::start(start, context).await?;
    swarm.add_all(members.peers, members.stages, members.threads)?;
    swarm.form().await?;
    let mut records = swarm.node.records();
    let orders = swarm.node.orders();
    let _ = orders.send(Order::Command(Command::Feed)).await;
    for _ in 0..WARM {
        completed(&mut records).await?;
    }
    let (began, mut tokens) = (Instant::now(), 0);
    while began.elapsed() < length {
        tokens += u64::from(completed(&mut records).await?);
    }
    let rate = tokens as f64 / began.elapsed().as_secs_f64();
    let (peers, late) = swarm.end().await;
    for late in late {
        context.out.warn(&format!("peer {late} did not leave in time and was ended"));
    }
    let per_step = f64::from(manifest.train.micro_batches_per_step);
    let records = peers.iter().flat_map(|peer| peer.records());
    Ok((rate, per_step * sent_an_id(records)))
}

/// Mean bytes of activations and gradients of a micro-batch, as the event logs of the peers have them.
fn sent_an_id(records: impl Iterator<Item = Record>) -> f64 {
    let mut ids = BTreeSet::new();
    let mut all = 0;
    for record in records {
        if let Event::SentForward { id, bytes, .. } | Event::SentBackward { id, bytes, .. } = record.event {
            ids.insert(id);
            all += bytes;
        }
    }
    all as f64 / ids.len().max(1) as f64
}

/// Tokens of the next micro-batch that is completed.
async fn completed(records: &mut Receiver<Record>) -> Result<u32, Report> {
    loop {
        match timeout(PATIENCE, records.recv()).await {
            Ok(Ok(Record { event: Event::Completed { tokens, .. }, .. })) => return Ok(tokens),
            Ok(Ok(_)) => {}
            Ok(Err(RecvError::Lagged(missed))) => return Err(other(format!("{missed} events were missed"))),
            Ok(Err(RecvError::Closed)) => return Err(other("the feeder stopped")),
            Err(_) => return Err(other(format!("no micro-batch was completed within {}", show::Span(PATIENCE)))),
        }
    }
}
