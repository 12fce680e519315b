//! `skein bench simulate`: how fast the simulator is, at both fidelities. In: how many peers. Out: a table, or one document.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;
use skein_protocol::Lane;
use skein_simulations::{
    ask::{Unwatched, ask},
    engine::SECOND,
    fleet::{Fleet, Setup},
    scenario::{Document, Files, built_in, expand},
    world::network::{Flows as Links, Sharing, flows::EQUAL},
};

use super::{machine, other, used};
use crate::cli::{
    args::BenchSimulate,
    context::Context,
    failure::Report,
    show,
    table::{Column, Table},
};

/// Scenarios that are measured.
const PROTOCOL: &str = "home_upload";
const FLEET: &str = "hundred_thousand";
/// Peers whose links are shared by both ends, and exactly; bodies that are sent; bytes a second up and down.
const MANY: usize = 10_000;
const FEW: usize = 1_000;
const BODIES: u64 = 200_000;
const HOME: (u64, u64) = (2_500_000, 37_500_000);

#[derive(Debug, Serialize)]
struct Measured {
    machine: String,
    protocol: Protocol,
    /// As many peers as protocol fidelity takes.
    crowd: Protocol,
    sharing: Shared,
    fleet: Flows,
}

#[derive(Debug, Serialize)]
struct Protocol {
    peers: u32,
    simulated_s: f64,
    wall_s: f64,
    /// Facts that peers handled.
    events: u64,
    events_per_s: f64,
    /// Simulated seconds a second.
    times_real_time: f64,
    /// The most that this process held so far.
    resident_bytes: u64,
}

/// Links of homes that every peer fills with one body after the other.
#[derive(Debug, Serialize)]
struct Shared {
    peers: usize,
    flows_per_s: f64,
    exact_peers: usize,
    exact_flows_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Flows {
    peers: u64,
    simulated_s: f64,
    wall_s: f64,
    bytes_per_peer: f64,
    peer_updates_per_s: f64,
}

pub fn run(args: &BenchSimulate, context: &Context) -> Result<u8, Report> {
    let measured = Measured {
        machine: machine(),
        sharing: Shared {
            peers: MANY,
            flows_per_s: shared(MANY, Sharing::Local),
            exact_peers: FEW,
            exact_flows_per_s: shared(FEW, Sharing::Exact),
        },
        fleet: flows()?,
        protocol: protocol(args.peers, args.seconds)?,
        crowd: protocol(args.crowd, args.crowd_seconds)?,
    };
    if context.out.style().json {
        context.out.document("bench simulate", &measured);
        return Ok(0);
    }
    let columns = ["FIDELITY", "PEERS", "SIMULATED", "TOOK", "EVENTS/S", "TIMES REAL TIME", "MEMORY"];
    let mut table = Table::new(columns.map(Column::Left).into());
    for one in [&measured.protocol, &measured.crowd] {
        table.row(vec![
            "protocol".into(),
            one.peers.to_string(),
            show::Span(Duration::from_secs_f64(one.simulated_s)).to_string(),
            show::Span(Duration::from_secs_f64(one.wall_s)).to_string(),
            format!("{:.0}", one.events_per_s),
            times(one.times_real_time),
            show::Bytes(one.resident_bytes).to_string(),
        ]);
    }
    for (peers, sharing, rate) in [
        (measured.sharing.exact_peers, "exactly", measured.sharing.exact_flows_per_s),
        (measured.sharing.peers, "by both ends", measured.sharing.flows_per_s),
    ] {
        let row = [format!("links, {sharing}"), peers.to_string(), "-".into(), "-".into(), format!("{rate:.0} bodies")];
        table.row([&row[..], &["-".into(), "-".into()]].concat());
    }
    let fleet = &measured.fleet;
    table.row(vec![
        "fleet".into(),
        fleet.peers.to_string(),
        show::Span(Duration::from_secs_f64(fleet.simulated_s)).to_string(),
        show::Span(Duration::from_secs_f64(fleet.wall_s)).to_string(),
        format!("{:.0} peer updates", fleet.peer_updates_per_s),
        times(fleet.simulated_s / fleet.wall_s),
        format!("{:.0} bytes a peer", fleet.bytes_per_peer),
    ]);
    context.out.table(&table);
    context.out.note(&measured.machine);
    Ok(0)
}

/// Whole numbers, and below ten what would be rounded to nothing.
fn times(of: f64) -> String {
    if of < 10.0 { format!("{of:.1}") } else { format!("{of:.0}") }
}

fn document(name: &str, changes: &[String]) -> Result<Document, Report> {
    let text = built_in().iter().find(|(known, _)| *known == name).map_or("", |(_, text)| text);
    let mut document = Document::read(name, text).map_err(other)?;
    for change in changes {
        document.set(change).map_err(other)?;
    }
    Ok(document)
}

fn protocol(peers: u32, seconds: u32) -> Result<Protocol, Report> {
    let changes =
        [format!("peers={peers}"), format!("duration={seconds}s"), "fidelity=protocol".into(), "learning=none".into()];
    let document = document(PROTOCOL, &changes)?;
    let began = Instant::now();
    let outcome = ask(&document, &Files::new(), 1, &mut Unwatched).map_err(other)?;
    let wall_s = began.elapsed().as_secs_f64();
    Ok(Protocol {
        peers,
        simulated_s: outcome.simulated_s,
        wall_s,
        events: outcome.events,
        events_per_s: outcome.events as f64 / wall_s,
        times_real_time: outcome.simulated_s / wall_s,
        resident_bytes: used(std::process::id()).map_or(0, |used| used.resident),
    })
}

/// Bodies of about 2 MB that leave their senders, a second.
fn shared(peers: usize, sharing: Sharing) -> f64 {
    let mut rng = StdRng::seed_from_u64(1);
    let mut flows = Links::new(sharing, EQUAL, &vec![HOME; peers]);
    let mut send = |flows: &mut Links<()>, now: u64, from: usize| {
        let to = (from + rng.random_range(1..peers)) % peers;
        flows.begin(now, from, to, Lane::Activation, rng.random_range(1_000_000..3_000_000), (), u64::MAX, 0);
    };
    (0..peers).for_each(|from| send(&mut flows, 0, from));
    let (began, mut left) = (Instant::now(), 0);
    while left < BODIES
        && let Some(at) = flows.next_at()
    {
        if let Some(done) = flows.step(at) {
            left += 1;
            flows.close(at, done.from, done.to);
            send(&mut flows, at, done.from);
        }
    }
    left as f64 / began.elapsed().as_secs_f64()
}

fn flows() -> Result<Flows, Report> {
    let world = expand(&document(FLEET, &[])?, &Files::new(), 1).map_err(other)?;
    let (peers, simulated_s) = (world.people.len() as u64, world.duration as f64 / SECOND as f64);
    let mut fleet = Fleet::new(Setup::of(&world));
    drop(world);
    let began = Instant::now();
    while fleet.step() {}
    let wall_s = began.elapsed().as_secs_f64();
    Ok(Flows {
        peers,
        simulated_s,
        wall_s,
        bytes_per_peer: fleet.bytes() as f64 / peers as f64,
        peer_updates_per_s: fleet.peer_updates() as f64 / wall_s,
    })
}
