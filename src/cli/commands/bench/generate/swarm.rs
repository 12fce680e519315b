//! The same model cut into stages, each in a process of its own: how fast it answers one reader and many, and how long a reader waits
//! where a replica is killed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use skein_pipeline::plan::partition;
use skein_protocol::{Manifest, PeerId};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::super::{millis, other, scratch};
use crate::{
    cli::{
        args::BenchGenerate,
        context::Context,
        failure::{Failure, Report},
        local::{LocalSwarm, Serving, Start},
        session, show,
        table::{Column, Table},
    },
    corpus::Corpus,
    node::{
        Order,
        generate::{Ask, Said, Sampling, Why},
    },
};

/// The next token does not come after this.
const PATIENCE: Duration = Duration::from_secs(60);
/// A replica is killed when so many tokens were said.
const KILLED_AT: u32 = 16;
/// Of an answer in which one is: long enough that the kill is not its end.
pub const TOKENS_MIN: u32 = 3 * KILLED_AT;
/// Replicas that a killed one leaves behind are known by then.
const SETTLED: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
pub struct Through {
    pub stages: u16,
    pub replicas: u16,
    /// One reader, after the first token.
    pub tokens_per_s: f64,
    pub first_token_ms: f64,
    pub clients_tokens_per_s: f64,
    /// Of the readers of which a replica is killed, one a stage: the longest wait between two tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gaps_ms: Vec<f64>,
}

impl Through {
    pub fn table(&self) -> Table {
        let names = ["STAGES", "REPLICAS", "FIRST TOKEN", "ANSWER", "ALL ANSWERS", "LONGEST WAIT AFTER A KILL"];
        let mut table = Table::new(names.into_iter().map(Column::Left).collect());
        table.row(vec![
            self.stages.to_string(),
            self.replicas.to_string(),
            millis(Some(self.first_token_ms)),
            show::tokens_per_s(self.tokens_per_s),
            show::tokens_per_s(self.clients_tokens_per_s),
            millis(self.gaps_ms.iter().copied().reduce(f64::max)),
        ]);
        table
    }
}

/// One answer: when its tokens came.
struct Answer {
    asked: Instant,
    tokens: Vec<Instant>,
}

impl Answer {
    fn longest_gap(&self) -> Duration {
        self.tokens.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default()
    }
}

pub fn measure(
    args: &BenchGenerate,
    mut manifest: Manifest,
    stages: u16,
    context: &Context,
) -> Result<Through, Report> {
    manifest.stages.count = stages;
    manifest.stages.split = partition::of(&manifest, stages).ok_or_else(|| {
        let message = format!("--stages {stages}: the model has {} layers", manifest.model.config.layers);
        Report::from(Failure::Usage { message })
    })?;
    session::runtime()?.block_on(through(args, manifest, stages, context))
}

async fn through(args: &BenchGenerate, manifest: Manifest, stages: u16, context: &Context) -> Result<Through, Report> {
    let folder = scratch()?;
    let vocab = manifest.model.config.vocab;
    // One reader is computed for at one stage after the other: each may have all of them.
    let threads = args.threads.max(1);
    let start = Start::new("bench", manifest, Arc::new(Corpus::fables(1, 1 << 16)), folder.path());
    let mut swarm = LocalSwarm::start(start, context).await?;
    swarm.add_all(stages.saturating_mul(args.replicas), stages, threads)?;
    swarm.form().await?;
    let orders = swarm.node.orders();
    let prompt = |reader: u32, len: u32| (0..len).map(|at| token(reader, at, vocab)).collect::<Vec<_>>();
    // The first prompts also pack the weights, of every replica.
    for reader in 0..4 * u32::from(args.replicas) {
        answer(&orders, prompt(reader, args.prompt), 2, |_, _| {}).await?;
    }
    let alone = answer(&orders, prompt(0, args.prompt), args.tokens, |_, _| {}).await?;
    let rest = alone.tokens.last().zip(alone.tokens.first()).map_or(Duration::ZERO, |(last, first)| *last - *first);
    let readers =
        (0..args.clients).map(|reader| answer(&orders, prompt(reader, args.prompt.min(32)), args.tokens, |_, _| {}));
    let all = futures::future::try_join_all(readers).await?;
    let mut gaps_ms = Vec::new();
    if args.replicas > 1 {
        for stage in 0..stages {
            let told = answer(&orders, prompt(7, args.prompt), args.tokens.max(TOKENS_MIN), |route, said| {
                let victim = route.get(usize::from(stage)).filter(|_| said == KILLED_AT as usize);
                let peer = swarm.peers.iter_mut().find(|peer| Some(&peer.peer) == victim);
                peer.into_iter().for_each(Serving::kill);
            });
            let told = told.await?;
            gaps_ms.push(told.longest_gap().as_secs_f64() * 1e3);
            context.out.note(&format!("stage {stage}: {} after a kill", show::Span(told.longest_gap())));
            sleep(SETTLED).await;
        }
    }
    let through = Through {
        stages,
        replicas: args.replicas,
        tokens_per_s: f64::from(args.tokens.saturating_sub(1)) / rest.as_secs_f64().max(1e-9),
        first_token_ms: alone.tokens.first().map_or(f64::NAN, |first| (*first - alone.asked).as_secs_f64() * 1e3),
        clients_tokens_per_s: together(&all),
        gaps_ms,
    };
    swarm.end().await;
    Ok(through)
}

/// Tokens a second from when all readers have their first.
fn together(all: &[Answer]) -> f64 {
    let begins = all.iter().filter_map(|answer| answer.tokens.first()).max();
    let ends = all.iter().filter_map(|answer| answer.tokens.last()).max();
    let Some((begins, ends)) = begins.zip(ends) else { return 0.0 };
    let tokens = all.iter().flat_map(|answer| &answer.tokens).filter(|at| *at > begins).count();
    tokens as f64 / (*ends - *begins).as_secs_f64().max(1e-9)
}

fn token(reader: u32, at: u32, vocab: u32) -> u32 {
    (reader * 977 + at).wrapping_mul(2_654_435_761) % vocab
}

/// Asks, and waits for the whole of it. `sees`: who computes, and how many tokens were said.
async fn answer(
    orders: &mpsc::Sender<Order>,
    prompt: Vec<u32>,
    tokens_max: u32,
    mut sees: impl FnMut(&[PeerId], usize),
) -> Result<Answer, Report> {
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 1 };
    let ask = Ask::new(prompt, tokens_max, sampling);
    let (reply, mut said) = mpsc::unbounded_channel();
    let mut answer = Answer { asked: Instant::now(), tokens: Vec::new() };
    let _ = orders.send(Order::Generate { ask, reply }).await;
    let mut route = Vec::new();
    loop {
        match timeout(PATIENCE, said.recv()).await {
            Ok(Some(Said::Route(by))) => route = by,
            Ok(Some(Said::Token(..))) => {
                answer.tokens.push(Instant::now());
                sees(&route, answer.tokens.len());
            }
            Ok(Some(Said::Replayed)) => {}
            Ok(Some(Said::Ended(Why::Length))) => return Ok(answer),
            Ok(Some(Said::Ended(why))) => return Err(other(format!("an answer ended early: {why:?}"))),
            Ok(None) => return Err(other("the swarm ended")),
            Err(_) => return Err(other(format!("no token came within {}", show::Span(PATIENCE)))),
        }
    }
}
