//! The simulator beside the truth: swarms of real processes behind a forwarder that narrows their links, and the same swarms
//! simulated. In: nothing. Out: tokens/s of both, for every topology and every script of churn.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, rngs::StdRng};
use skein_pipeline::{
    compute::{Device, bench, engine},
    exact::Settings,
    model::{StageModel, cost, init},
    peer::io::Command,
    plan::partition,
};
use skein_protocol::{
    Manifest, Stage,
    event::Event,
    run::{Arithmetic, Codec, Entropy, Size, preset::preset},
};
use skein_simulations::{
    Fault, Plan, Role, Setup, Simulation,
    validate::Measured,
    worker::modelled,
    world::{Access, network::Fill},
};
use tokio::time::{Instant, sleep_until};

use crate::{
    cli::{
        commands::{bench::scratch, train::no_preset},
        context::Context,
        failure::{Failure, Report},
        local::{Behind, LocalSwarm, Start, Task},
        session, show,
    },
    corpus::Corpus,
    node::Order,
    shape::{Hub, Link},
};

const PEERS: usize = 8;
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// The feeder has a link that limits nothing.
const WIDE: Link = Link { up: 1 << 30, down: 1 << 30, delay: Duration::from_millis(5), loss: 0.0 };
const HOME: Link = Link { up: 4_000_000, down: 24_000_000, delay: Duration::from_millis(12), loss: 0.0 };
const NARROW: Link = Link { up: 2_000_000, ..HOME };
/// Time in which connections and windows grow.
const WARM: Duration = Duration::from_secs(40);
/// What is measured after it. Two dozen micro-batches are open, and two or three come out a second: over less time, runs that are
/// alike differ by a fifth.
const MEASURED: Duration = Duration::from_secs(90);
/// When simulated peers have come together and are fed: they have their narrow links from the start.
const FORMED: Duration = Duration::from_secs(60);
/// Part of a narrow uplink that is left for bodies, when connections to five others send over it in turn: control frames,
/// acknowledgements and headers take some, and so does what no window has grown to use. The one number that is fitted, to all rows.
pub const FILL: f64 = 0.86;
const SEED: u64 = 1;
const SEEDS: [u64; 3] = [1, 2, 3];

/// Who serves what, behind which link.
struct Topology {
    name: &'static str,
    stages: u16,
    link: fn(usize) -> Link,
}

const TOPOLOGIES: [Topology; 3] = [
    Topology { name: "2 stages, 4 replicas each", stages: 2, link: |_| HOME },
    Topology { name: "4 stages, 2 replicas each", stages: 4, link: |_| HOME },
    Topology {
        name: "4 stages, 2 replicas each, one of them with half the uplink",
        stages: 4,
        link: |peer| if peer < 4 { HOME } else { NARROW },
    },
];

/// What happens while it is measured, as parts of the time.
#[derive(Clone, Copy)]
enum Churn {
    Nothing,
    /// A peer is killed, and comes back.
    Restart {
        kill: f64,
        start: f64,
    },
    /// A peer leaves politely, and does not come back.
    Leave {
        at: f64,
    },
}

const SCRIPTS: [(&str, Churn); 3] = [
    ("nothing", Churn::Nothing),
    ("one is killed and comes back", Churn::Restart { kill: 0.2, start: 0.5 }),
    ("one leaves", Churn::Leave { at: 0.3 }),
];
/// Whom it befalls: the second replica of stage 0 or 1.
const VICTIM: usize = 5;

pub fn measure(context: &Context) -> Result<Vec<Measured>, Report> {
    let runtime = session::runtime()?;
    let mut rows = Vec::new();
    for topology in &TOPOLOGIES {
        let manifest = manifest(topology.stages)?;
        let flops = flops(&manifest)?;
        for (words, churn) in SCRIPTS {
            let (real, full) = runtime.block_on(real(&manifest, topology, churn, context))?;
            let ours: f64 = SEEDS.iter().map(|seed| simulated(&manifest, topology, churn, flops, *seed)).sum();
            let simulated = ours / SEEDS.len() as f64;
            context.out.note(&format!(
                "{}, {words}: simulated {}, measured {}; the fullest uplink carried {:.0} % of its rate",
                topology.name,
                show::tokens_per_s(simulated),
                show::tokens_per_s(real),
                100.0 * full
            ));
            rows.push(Measured {
                topology: topology.name.into(),
                churn: words.into(),
                simulated_tokens_per_s: simulated,
                measured_tokens_per_s: real,
            });
        }
    }
    Ok(rows)
}

/// A model whose activations are large beside its arithmetic, so that links limit it on any machine.
fn manifest(stages: u16) -> Result<Manifest, Report> {
    let mut manifest = preset("tiny").ok_or_else(|| no_preset("tiny"))?;
    let (config, train) = (&mut manifest.model.config, &mut manifest.train);
    (config.hidden, config.layers, config.ffn) = (128, 4, 256);
    (config.heads, config.kv_heads) = (4, 4);
    (train.sequence, train.micro_batch, train.micro_batches_per_step, train.in_flight_max) = (128, 4, 16, 24);
    manifest.codecs.forward = vec![Codec::Int8];
    manifest.codecs.backward = vec![Codec::Bf16];
    // Simulated bodies have a size and no contents: what zstd would make of them nobody knows.
    manifest.codecs.entropy = Entropy::None;
    manifest.averaging.every = 8;
    manifest.admission.memory_min = Size(0);
    manifest.stages.count = stages;
    manifest.stages.split = partition::of(&manifest, stages)
        .ok_or_else(|| Report::from(Failure::Other { message: format!("{stages} stages do not fit the model") }))?;
    Ok(manifest)
}

/// What one thread of this machine does of this model.
fn flops(manifest: &Manifest) -> Result<f64, Report> {
    let other = |error: &dyn std::fmt::Display| Report::from(Failure::Other { message: error.to_string() });
    let model = StageModel::whole(manifest.model.config.clone()).map_err(|error| other(&error))?;
    let params = init::initial(&model, SEED);
    let device = Device::Cpu { threads: 1 };
    let mut made =
        engine(device, Arithmetic::F32, model, Settings::of(manifest), params).map_err(|error| other(&error))?;
    let speed = bench::stage(made.as_mut(), 12, None).map_err(|error| other(&error))?;
    let all: u64 = (0..manifest.stages.count).map(|stage| cost::stage_flops(manifest, stage)).sum();
    Ok(all as f64 * 1e3 / (speed.forward_ms + speed.backward_ms))
}

fn stage_of(peer: usize, stages: u16) -> Stage {
    (peer % usize::from(stages)) as Stage
}

// ---- real ----------------------------------------------------------------------------------------------------------------

/// A port that is free for both protocols, and none of those that systems give to whoever asks for any.
fn free_port(rng: &mut StdRng) -> Result<u16, Report> {
    let is_free = |port: &u16| {
        let at = (Ipv4Addr::LOCALHOST, *port);
        UdpSocket::bind(at).is_ok() && TcpListener::bind(at).is_ok()
    };
    let some = (0..50).map(|_| rng.random_range(PORTS)).find(is_free);
    some.ok_or_else(|| Report::from(Failure::Other { message: "no port is free".into() }))
}

/// Tokens a second, and what part of its rate the fullest uplink carried, datagrams with all that is in them.
async fn real(manifest: &Manifest, topology: &Topology, churn: Churn, context: &Context) -> Result<(f64, f64), Report> {
    let other = |error: std::io::Error| Report::from(Failure::Other { message: error.to_string() });
    let mut rng: StdRng = rand::make_rng();
    let mut ports: Vec<u16> = Vec::new();
    while ports.len() <= PEERS {
        let port = free_port(&mut rng)?;
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    let inside = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let link = |place: usize| if place == 0 { WIDE } else { (topology.link)(place - 1) };
    // While the swarm forms, and while it ends, the links are wide: states of stages take their time, and nothing is measured.
    let wide = |place: usize| Link { up: WIDE.up, down: WIDE.down, ..link(place) };
    let ends: Vec<(SocketAddr, Link)> = ports.iter().enumerate().map(|(i, port)| (inside(*port), wide(i))).collect();
    let hub = Hub::start(&ends, None, SEED).await.map_err(other)?;
    let mut behind = Vec::new();
    for (place, port) in ports.iter().enumerate() {
        behind.push(Behind { port: *port, public: hub.address(place).map_err(other)? });
    }
    let folder = scratch()?;
    let start = Start {
        behind,
        seed: SEED,
        ..Start::new("simulate", manifest.clone(), Arc::new(Corpus::fables(SEED, 1 << 20)), folder.path())
    };
    let mut swarm = LocalSwarm::start(start, context).await?;
    swarm.add_all(PEERS as u16, topology.stages, 1)?;
    swarm.form().await?;
    for place in 0..=PEERS {
        hub.set_rates(place, link(place).up, link(place).down);
    }
    let mut records = swarm.node.records();
    let _ = swarm.node.orders().send(Order::Command(Command::Feed)).await;
    let begins = Instant::now() + WARM;
    let ends = begins + MEASURED;
    let at = |part: f64| begins + MEASURED.mul_f64(part);
    let mut script: Vec<(Instant, Act)> = match churn {
        Churn::Nothing => Vec::new(),
        Churn::Restart { kill, start } => vec![(at(start), Act::Start), (at(kill), Act::Kill)],
        Churn::Leave { at: part } => vec![(at(part), Act::Leave)],
    };
    let sent = || (0..=PEERS).map(|place| hub.passed(place).sent).collect::<Vec<_>>();
    let (mut tokens, mut before) = (0, None);
    loop {
        let next = script.last().map_or(ends, |(at, _)| *at);
        tokio::select! {
            record = records.recv() => match record {
                Ok(record) => {
                    let counts = Instant::now() >= begins;
                    if counts && before.is_none() {
                        before = Some(sent());
                    }
                    if let Event::Completed { tokens: more, .. } = record.event && counts {
                        tokens += u64::from(more);
                    }
                }
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(_) => break,
            },
            () = sleep_until(next) => match script.pop() {
                None => break,
                Some((_, Act::Kill)) => swarm.peers[VICTIM].kill(),
                Some((_, Act::Leave)) => swarm.peers[VICTIM].ask_to_leave(),
                Some((_, Act::Start)) => swarm.again(VICTIM, Task::Host(stage_of(VICTIM, topology.stages)), 1)?,
            },
        }
    }
    let rate = |place: usize, sent: u64| sent as f64 * 8.0 / MEASURED.as_secs_f64() / link(place).up as f64;
    let begun = before.unwrap_or_else(sent);
    let full = (1..=PEERS).map(|place| rate(place, sent()[place] - begun[place])).fold(0.0, f64::max);
    for place in 0..=PEERS {
        hub.set_rates(place, WIDE.up, WIDE.down);
    }
    for late in swarm.end().await.1 {
        context.out.warn(&format!("peer {late} did not leave in time and was ended"));
    }
    drop(hub);
    Ok((tokens as f64 / MEASURED.as_secs_f64(), full))
}

enum Act {
    Kill,
    Leave,
    Start,
}

// ---- simulated -----------------------------------------------------------------------------------------------------------

fn simulated(manifest: &Manifest, topology: &Topology, churn: Churn, flops: f64, seed: u64) -> f64 {
    let access = |link: Link| Access {
        delay: link.delay,
        jitter: Duration::from_micros(500),
        up: link.up / 8,
        down: link.down / 8,
    };
    let device = modelled::Device { flops, noise: 0.05 };
    let feeder = Plan::new(Role::default()).access(access(WIDE)).device(device);
    let host = |peer: usize| {
        let role = Role::host(stage_of(peer, topology.stages));
        Plan::new(role).access(access((topology.link)(peer))).device(device)
    };
    let plans = std::iter::once(feeder).chain((0..PEERS).map(host)).collect();
    let setup = Setup { fill: Fill::Part(FILL), ..Setup::new(seed, manifest.clone(), plans) };
    let mut sim = Simulation::new(setup);
    sim.at(FORMED, Fault::Command(0, Command::Feed));
    let begins = FORMED + WARM;
    let at = |part: f64| begins + MEASURED.mul_f64(part);
    match churn {
        Churn::Nothing => {}
        Churn::Restart { kill, start } => {
            sim.at(at(kill), Fault::Kill(VICTIM + 1));
            sim.at(at(start), Fault::Start(VICTIM + 1));
        }
        Churn::Leave { at: part } => sim.at(at(part), Fault::Command(VICTIM + 1, Command::Drain)),
    }
    sim.run_for(begins + MEASURED);
    let from = begins.as_nanos() as u64;
    let completed = sim.lines().iter().filter(|line| line.at >= from).map(|line| match line.record.event {
        Event::Completed { tokens, .. } => u64::from(tokens),
        _ => 0,
    });
    completed.sum::<u64>() as f64 / MEASURED.as_secs_f64()
}
