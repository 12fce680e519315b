//! `skein bench memory`: what serving peers hold at most, beside what their own account says. In: widths of a model, how long to
//! train it. Out: a line a peer. The peers are processes of this program that train two stages, give their state to a joiner
//! each, and average with it.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use skein_pipeline::{model::cost, peer::io::Command};
use skein_protocol::{Manifest, Stage, run::preset::preset};
use tokio::{task::spawn_blocking, time::sleep};

use super::{other, scratch, used};
use crate::{
    cli::{
        args::BenchMemory,
        commands::train::no_preset,
        context::Context,
        failure::Report,
        local::{LocalSwarm, Start, Task},
        session,
        show::{About, Bytes, Span},
        table::{Column, Table},
    },
    corpus::Corpus,
    home::Home,
    node::{
        Order,
        memory::{Account, BESIDE},
    },
    watch::{Client, State},
};

/// Sizes that are not given come from here.
const PRESET: &str = "tiny";
const LAYERS: u32 = 8;
const STAGES: u16 = 2;
/// Values of an attention head.
const HEAD: u32 = 32;
/// Micro-batches that a stage has done when the joiners come.
const BEFORE: u64 = 6;
const LOOK: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, Serialize)]
struct Measured {
    parameters: u64,
    peers: Vec<Peer>,
}

#[derive(Debug, Serialize)]
struct Peer {
    stage: Stage,
    parameters: u64,
    rounds: u64,
    /// Bytes at most of a peer with this stage, as admission plans them.
    planned: u64,
    /// The last look at it.
    account: Account,
    /// Bytes that are resident beside what is accounted for, as it is stated.
    beside: u64,
    /// How much more was resident at most than the most that was accounted for and `beside`, of the former.
    off_percent: f64,
}

pub fn run(args: &BenchMemory, context: &Context) -> Result<u8, Report> {
    let runtime = session::runtime()?;
    let mut all = Vec::new();
    for width in &args.widths {
        let manifest = manifest(*width)?;
        let peers = runtime.block_on(measure(&manifest, args.rounds, context))?;
        let parameters = (0..STAGES).map(|stage| cost::stage_parameters(&manifest, stage)).sum();
        all.push(Measured { parameters, peers });
    }
    if context.out.style().json {
        context.out.document("bench-memory", &all);
        return Ok(0);
    }
    let columns = ["MODEL", "STAGE", "ROUNDS", "PLANNED", "ACCOUNT", "BESIDE", "RESIDENT", "OFF"];
    let mut table = Table::new(columns.into_iter().map(Column::Left).collect());
    for Measured { parameters, peers } in all {
        for peer in peers {
            table.row(vec![
                About(parameters as f64).to_string(),
                format!("{}, {}", peer.stage, About(peer.parameters as f64)),
                peer.rounds.to_string(),
                Bytes(peer.planned).to_string(),
                Bytes(peer.account.most).to_string(),
                Bytes(peer.beside).to_string(),
                Bytes(peer.account.resident_most).to_string(),
                format!("{:+.1} %", peer.off_percent),
            ]);
        }
    }
    context.out.table(&table);
    Ok(0)
}

/// A model of this width in two stages, of which a round comes every second step.
fn manifest(width: u32) -> Result<Manifest, Report> {
    let mut manifest = preset(PRESET).ok_or_else(|| no_preset(PRESET))?;
    let (config, train) = (&mut manifest.model.config, &mut manifest.train);
    (config.hidden, config.layers, config.ffn) = (width, LAYERS, width * 8 / 3);
    (config.heads, config.kv_heads) = (width / HEAD, width / HEAD);
    (train.sequence, train.micro_batch, train.micro_batches_per_step, train.in_flight_max) = (128, 4, 2, 8);
    manifest.averaging.every = 2;
    manifest.stages.count = STAGES;
    manifest.stages.split = vec![LAYERS / u32::from(STAGES); usize::from(STAGES)];
    Ok(manifest)
}

async fn measure(manifest: &Manifest, rounds: u64, context: &Context) -> Result<Vec<Peer>, Report> {
    let folder = scratch()?;
    let start = Start {
        watched: true,
        ..Start::new("bench", manifest.clone(), Arc::new(Corpus::fables(1, 1 << 20)), folder.path())
    };
    let mut swarm = LocalSwarm::start(start, context).await?;
    swarm.add_all(STAGES, STAGES, 1)?;
    swarm.form().await?;
    let _ = swarm.node.orders().send(Order::Command(Command::Feed)).await;
    until(&swarm, |state| state.mine.iter().any(|mine| mine.micro_batches >= BEFORE)).await?;
    (0..STAGES).try_for_each(|stage| swarm.add(Task::Host(stage), 1))?;
    swarm.form().await?;
    let states = until(&swarm, |state| state.mine.iter().any(|mine| mine.rounds >= rounds)).await?;
    for late in swarm.end().await.1 {
        context.out.warn(&format!("peer {late} did not leave in time and was ended"));
    }
    let peers = states.into_iter().filter_map(|state| {
        let (mine, account) = (state.mine.first()?, state.memory);
        let over = account.resident_most as f64 - (account.most + BESIDE) as f64;
        Some(Peer {
            stage: mine.stage,
            parameters: cost::stage_parameters(manifest, mine.stage),
            rounds: mine.rounds,
            planned: cost::memory(manifest, mine.stage).peak(),
            beside: BESIDE,
            off_percent: 100.0 * over / (account.most + BESIDE) as f64,
            account,
        })
    });
    Ok(peers.collect())
}

/// Looks at all peers until each of them is as wanted.
async fn until(swarm: &LocalSwarm, wanted: impl Fn(&State) -> bool) -> Result<Vec<State>, Report> {
    let (began, mut most) = (Instant::now(), vec![0; swarm.peers.len()]);
    loop {
        let homes: Vec<PathBuf> = swarm.peers.iter().map(|peer| peer.home.clone()).collect();
        let look = |home: &PathBuf| Client::find(&Home::at(home).control_file()).and_then(|client| client.state());
        let states =
            spawn_blocking(move || homes.iter().map(look).collect::<Result<Vec<_>, _>>()).await.map_err(other)?;
        let mut states = states?;
        for ((state, peer), most) in states.iter_mut().zip(&swarm.peers).zip(&mut most) {
            // Where a process cannot see the most that it ever held, it is what was seen of it.
            *most = used(peer.pid()).map_or(0, |used| used.resident).max(*most);
            if state.memory.resident_most == 0 {
                state.memory.resident_most = *most;
            }
        }
        if states.iter().all(&wanted) {
            return Ok(states);
        }
        if began.elapsed() > PATIENCE {
            return Err(other(format!("the peers did not get so far within {}", Span(PATIENCE))));
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use skein_protocol::run::check::check;

    use super::manifest;

    #[test]
    fn models_of_all_widths_may_be_trained() {
        for width in [32, 320, 512, 768] {
            let problems = check(&manifest(width).unwrap());
            assert!(problems.is_empty(), "{width}: {problems:?}");
        }
    }
}
