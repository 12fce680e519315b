//! `skein bench peer`: how long a process takes until it serves, what it holds in memory when idle, and how fast a key is stored
//! and found in a hash table of peers. In: how many. Out: the figures.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use skein_protocol::{Lane, PeerId, hash, key::Key, run::preset::preset};
use tokio::{sync::mpsc, time::timeout};

use super::{millis, other, quantile, scratch, used};
use crate::{
    cli::{
        args::BenchPeer,
        commands::train::no_preset,
        context::Context,
        failure::Report,
        local::{self, LocalSwarm, Start, Task},
        session, show,
        table::{Column, Table},
    },
    corpus::Corpus,
    net::{self, Admit, Net, NetConfig, NetEvent, Verdict},
};

/// The demo's model: a stage of it weighs little, so that what is measured is the peer.
const PRESET: &str = "demo";
const PATIENCE: Duration = Duration::from_secs(20);
/// A peer that has served nothing for so long is idle.
const IDLE: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug, Serialize)]
struct Measured {
    /// Milliseconds from the start of the process until the run's owner counts it as serving.
    start_ms: Vec<f64>,
    start_ms_median: Option<f64>,
    /// Bytes resident of a peer that holds one stage of the demo's model and has nothing to do.
    idle_resident: u64,
    table_peers: u16,
    /// Milliseconds until a network (sockets, table) of this process listens.
    table_start_ms_median: Option<f64>,
    /// Milliseconds until the nearest peers have a provider record.
    store_ms_median: Option<f64>,
    store_ms_p95: Option<f64>,
    /// Milliseconds until the first provider is known to another peer.
    find_ms_median: Option<f64>,
    find_ms_p95: Option<f64>,
    found: u32,
    keys: u32,
}

pub fn run(args: &BenchPeer, context: &Context) -> Result<u8, Report> {
    let runtime = session::runtime()?;
    let (mut starts, idle_resident) = runtime.block_on(starts(args.starts, context))?;
    let mut table = runtime.block_on(hash_table(args.peers, args.keys))?;
    let measured = Measured {
        start_ms: starts.clone(),
        start_ms_median: quantile(&mut starts, 0.5),
        idle_resident,
        table_peers: args.peers,
        table_start_ms_median: quantile(&mut table.starts, 0.5),
        store_ms_median: quantile(&mut table.stores, 0.5),
        store_ms_p95: quantile(&mut table.stores, 0.95),
        find_ms_median: quantile(&mut table.finds, 0.5),
        find_ms_p95: quantile(&mut table.finds, 0.95),
        found: table.finds.len() as u32,
        keys: args.keys,
    };
    if context.out.style().json {
        context.out.document("bench-peer", &measured);
        return Ok(0);
    }
    let mut rows = Table::new(vec![Column::Left("WHAT"), Column::Left("MEDIAN"), Column::Left("P95")]);
    let mut row = |what: String, median: String, p95: String| rows.row(vec![what, median, p95]);
    let slowest = quantile(&mut starts, 0.95);
    row("start of a process until it serves".into(), millis(measured.start_ms_median), millis(slowest));
    row("resident, idle".into(), show::Bytes(idle_resident).to_string(), "-".into());
    let peers = format!("among {} peers", args.peers);
    row(format!("start of a network {peers}"), millis(measured.table_start_ms_median), "-".into());
    row(format!("store a key {peers}"), millis(measured.store_ms_median), millis(measured.store_ms_p95));
    row(format!("find a key {peers}"), millis(measured.find_ms_median), millis(measured.find_ms_p95));
    row("found".into(), format!("{} of {}", measured.found, measured.keys), "-".into());
    context.out.table(&rows);
    Ok(0)
}

/// Milliseconds of each start, one after the other, and the memory of the first peer once it is idle.
async fn starts(count: u16, context: &Context) -> Result<(Vec<f64>, u64), Report> {
    let folder = scratch()?;
    let manifest = preset(PRESET).ok_or_else(|| no_preset(PRESET))?;
    let stages = manifest.stages.count;
    let start = Start::new("bench", manifest, Arc::new(Corpus::fables(1, 1 << 16)), folder.path());
    let mut swarm = LocalSwarm::start(start, context).await?;
    let mut snapshots = swarm.node.state();
    let mut all = Vec::new();
    for number in 0..count {
        let began = Instant::now();
        swarm.add(Task::Host(number % stages), 1)?;
        let peer = swarm.peers.last().map(|peer| peer.peer);
        let serves = timeout(PATIENCE, async {
            let mut here = || {
                let state = snapshots.borrow_and_update();
                let mut replicas = state.iter().flat_map(|state| &state.peer.stages).flat_map(|stage| &stage.replicas);
                replicas.any(|replica| Some(*replica) == peer)
            };
            while !here() {
                tokio::time::sleep(LOOK).await;
            }
        });
        serves.await.map_err(|_| other("a peer that was started does not serve"))?;
        all.push(began.elapsed().as_secs_f64() * 1e3);
    }
    tokio::time::sleep(IDLE).await;
    let resident = swarm.peers.first().and_then(|peer| used(peer.pid())).map_or(0, |used| used.resident);
    local::part(&mut swarm.peers).await;
    swarm.node.drain().await;
    let _ = timeout(PATIENCE, swarm.node.wait()).await;
    Ok((all, resident))
}

/// Milliseconds of each.
#[derive(Default)]
struct Times {
    starts: Vec<f64>,
    stores: Vec<f64>,
    finds: Vec<f64>,
}

struct Nobody;

impl Admit for Nobody {
    fn admit(&self, _: PeerId, _: Lane, _: &[u8], _: u64) -> Verdict {
        Verdict::Refuse { code: net::Code::Busy, severity: None }
    }
}

/// One peer of the table.
struct Member {
    net: Net,
    events: mpsc::Receiver<NetEvent>,
}

impl Member {
    async fn until<T>(&mut self, mut wanted: impl FnMut(NetEvent) -> Option<T>) -> Result<T, Report> {
        loop {
            match timeout(PATIENCE, self.events.recv()).await {
                Ok(Some(event)) => {
                    if let Some(found) = wanted(event) {
                        return Ok(found);
                    }
                }
                _ => return Err(other("the hash table does not answer")),
            }
        }
    }
}

/// A table of peers in this process, each with sockets of its own; every key is stored by one and looked up by another.
async fn hash_table(peers: u16, keys: u32) -> Result<Times, Report> {
    let mut times = Times::default();
    let mut members: Vec<Member> = Vec::new();
    let mut bootstrap = Vec::new();
    for _ in 0..peers {
        let began = Instant::now();
        let key = Key::from_secret(rand::random());
        let config = NetConfig { bootstrap: bootstrap.clone(), ..NetConfig::loopback(key) };
        let (net, events) = net::start(config, Arc::new(Nobody)).await.map_err(other)?;
        let mut member = Member { net, events };
        let address = member.until(|event| match event {
            NetEvent::Listening { address } => Some(address),
            _ => None,
        });
        let address = address.await?;
        times.starts.push(began.elapsed().as_secs_f64() * 1e3);
        if bootstrap.is_empty() {
            bootstrap.push(address);
        } else {
            member.until(|event| matches!(event, NetEvent::Up { .. }).then_some(())).await?;
        }
        members.push(member);
    }
    let mut known = BTreeMap::new();
    for number in 0..keys {
        let key = hash::keyed("skein bench key 1", &[&number.to_le_bytes()]).0;
        let at = number as usize % members.len();
        let provider = members[at].net.me();
        let began = Instant::now();
        members[at].net.provide(key);
        members[at].until(|event| matches!(event, NetEvent::Provided { key: of } if of == key).then_some(())).await?;
        times.stores.push(began.elapsed().as_secs_f64() * 1e3);
        known.insert(number, (key, provider));
    }
    for (number, (key, provider)) in known {
        // Whoever asks is another one than the provider, and not always its neighbour.
        let others = members.len() - 1;
        let at = (number as usize + 1 + (number as usize / members.len()) % others) % members.len();
        let request = u64::from(number);
        let began = Instant::now();
        members[at].net.lookup(request, key);
        let found = members[at].until(|event| match event {
            NetEvent::Found { request: of, peers, done } if of == request => {
                let here = peers.iter().any(|(peer, _)| *peer == provider);
                (here || done).then_some(here)
            }
            _ => None,
        });
        if found.await? {
            times.finds.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    for member in members {
        member.net.shutdown().await;
    }
    Ok(times)
}
