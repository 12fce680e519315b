//! SWARM's latency table (Ryabinin et al., "SWARM Parallelism", ICML 2023, table 3): how much of its time a worker computes when
//! the next stage is far away. One law explains its 20 cells, U = Tc / (Tc + Tx + RTT); our peers must follow it when they keep
//! one micro-batch open, and beat it when they keep as many as the product does.

use std::time::Duration;

use skein_pipeline::model::cost;

use super::{Row, Table};
use crate::{Plan, Role, Setup, Simulation, Small, worker::modelled::Device, world::Access};

/// A model of the table: milliseconds of compute and of transfer that fit its column, and percent of utilisation by round trip.
struct Column {
    name: &'static str,
    compute: f64,
    transfer: f64,
    percent: [f64; 5],
}

const ROUND_TRIPS: [f64; 5] = [0.0, 10.0, 50.0, 100.0, 200.0];
const COLUMNS: [Column; 4] = [
    Column { name: "base (768)", compute: 3.34, transfer: 15.3, percent: [18.0, 11.8, 4.88, 2.78, 1.53] },
    Column { name: "xxlarge (4096)", compute: 29.4, transfer: 64.3, percent: [32.1, 28.9, 20.1, 14.9, 10.1] },
    Column { name: "GPT-3 (12288)", compute: 235.6, transfer: 51.7, percent: [82.1, 79.3, 70.3, 60.2, 48.5] },
    Column { name: "SWARM's own", compute: 350.3, transfer: 40.8, percent: [89.5, 87.2, 79.5, 71.5, 59.2] },
];

fn law(compute: f64, transfer: f64, round_trip: f64) -> f64 {
    compute / (compute + transfer + round_trip)
}

/// Bytes of one body of activations of the model that stands for all of them: what counts is the time that it takes.
const BODY: f64 = 4.0 * 128.0 * 128.0 * 2.0;
/// Bytes beside the bodies that one micro-batch waits for: the labels of its 512 tokens, and frames.
const BESIDE: f64 = 2048.0;
/// What the modelled worker takes to begin and end a job, ms.
const JOB: f64 = 0.1;

fn ms(n: f64) -> Duration {
    Duration::from_secs_f64(n / 1e3)
}

/// Two stages at one peer each, the first of which feeds; milliseconds.
#[derive(Clone, Copy, Debug)]
struct Two {
    /// Of one micro-batch, there and back: at the first stage, and at the second.
    compute: [f64; 2],
    /// Of one body on a link.
    transfer: f64,
    round_trip: f64,
    in_flight: u32,
}

/// Micro-batches over which is measured.
const MEASURED: usize = 384;

struct Measured {
    /// Part of the time that each stage works.
    busy: [f64; 2],
    /// Milliseconds from one micro-batch to the next.
    apart: f64,
}

impl Measured {
    /// Utilisation with one micro-batch open, of both stages together: they never work at the same time. Without the round
    /// trips that our peers make beyond SWARM's, and with them.
    fn alone(&self, round_trip: f64) -> (f64, f64) {
        let all = self.busy[0] + self.busy[1];
        (all * self.apart / (self.apart - BEYOND * round_trip), all)
    }
}

/// Round trips of one micro-batch beyond SWARM's one a hop: the last stage asks the feeder for the labels, here at the peer of
/// the first stage, once it has the activations.
const BEYOND: f64 = 1.0;

impl Two {
    fn run(&self) -> Measured {
        let small = Small {
            in_flight_max: self.in_flight,
            // No step falls into what is measured: a step is no part of the law.
            micro_batches_per_step: 4096,
            staleness_bound: 64,
            round_every: 0,
            ..Small::demo(2)
        };
        let manifest = small.manifest();
        let rate = ((BODY + BESIDE / 2.0) / (self.transfer / 1e3)) as u64;
        // From peer to peer a message passes the access of both.
        let access = Access { delay: ms(self.round_trip / 4.0), jitter: Duration::ZERO, up: rate, down: 1 << 34 };
        let host = |stage: u16, jobs: f64| {
            let time = (self.compute[usize::from(stage)] - jobs * JOB) / 1e3;
            let flops = cost::stage_flops(&manifest, stage) as f64 / time;
            let role = Role { feeds: stage == 0, hosts: vec![stage], joins: false };
            Plan::new(role).device(Device { flops, noise: 0.0 }).disk(0).access(access)
        };
        // The first stage has a forward and a backward for each micro-batch, the last does both in one job; and each forgets what
        // it kept. Without disks nobody holds snapshots of others, which would share the links.
        let peers = vec![host(0, 3.0), host(1, 2.0)];
        let mut sim = Simulation::new(Setup::new(5, manifest.clone(), peers));
        let limit = Duration::from_secs(3600);
        let warm = sim.run_completed(limit, 128);
        let before = (sim.now(), [sim.busy(0), sim.busy(1)]);
        let all = warm && sim.run_completed(limit, MEASURED);
        let time = (sim.now() - before.0).as_secs_f64();
        let busy = |peer: usize| (sim.busy(peer) - before.1[peer]).as_secs_f64() / time;
        let busy = if all { [busy(0), busy(1)] } else { [f64::NAN; 2] };
        Measured { busy, apart: 1e3 * time / MEASURED as f64 }
    }
}

fn cells() -> impl Iterator<Item = (&'static Column, f64, f64)> {
    COLUMNS.iter().flat_map(|column| (0..5).map(move |i| (column, ROUND_TRIPS[i], column.percent[i])))
}

pub fn latency() -> Table {
    let mut rows = Vec::new();
    for (column, round_trip, percent) in cells() {
        let what = format!("{}, {round_trip} ms", column.name);
        let ours = 100.0 * law(column.compute, column.transfer, round_trip);
        rows.push(Row::relative(format!("law, {what}, %"), ours, percent, 2, 0.025));
        let half = [column.compute / 2.0; 2];
        let two = Two { compute: half, transfer: column.transfer / 2.0, round_trip, in_flight: 1 };
        let (ours, raw) = two.run().alone(round_trip);
        let row = Row::relative(format!("our peers, {what}, %"), 100.0 * ours, percent, 2, 0.025);
        let whole = law(column.compute, column.transfer, (1.0 + BEYOND) * round_trip);
        let gap = format!("{} (raw {:.2}, law {:.2})", row.gap, 100.0 * raw, 100.0 * whole);
        rows.push(Row { gap, holds: Some(row.holds == Some(true) && (raw / whole - 1.0).abs() < 0.025), ..row });
    }
    Table {
        title: "Utilisation without overlap: SWARM's latency table".into(),
        source: "Ryabinin et al., ICML 2023, table 3: one layer a stage, V100, 500 Mbit/s; Tc and Tx fitted to each column".into(),
        how: vec![
            "Two of our peers at protocol fidelity, one stage each, one micro-batch open. Tc is what both compute for it, Tx what \
             its activations and its gradient take on the links, RTT one round trip: there with the activations, back with the \
             gradient. Nothing overlaps, and utilisation is the part of the time in which either works."
                .into(),
            "Our protocol makes one round trip more than SWARM's law counts: the last stage asks the feeder (here the peer of the \
             first stage) for the labels once it has the activations. The column \"ours\" is without that round trip; \"raw\" is \
             what was measured, and \"law\" is Tc / (Tc + Tx + 2 RTT), which raw must meet as well. A feeder that is a peer of its \
             own adds one more, and the wait for its confirmation."
                .into(),
        ],
        bound: "2.5% of the published cell, for the law and for our peers, and 2.5% between raw and its law.".into(),
        rows,
    }
}

pub fn overlap() -> Table {
    let mut rows = Vec::new();
    for (column, round_trip, percent) in cells() {
        let two = Two { compute: [column.compute; 2], transfer: column.transfer, round_trip, in_flight: 64 };
        let busy = two.run().busy;
        let (ours, most) = (100.0 * busy[0].max(busy[1]), 100.0 * column.compute / column.compute.max(column.transfer));
        rows.push(Row {
            what: format!("{}, {round_trip} ms, %", column.name),
            ours: format!("{ours:.1}"),
            theirs: format!("{percent:.1}"),
            gap: format!("of {most:.1} possible"),
            holds: Some(ours > percent && ours > 0.95 * most),
        });
    }
    Table {
        title: "Utilisation with overlap".into(),
        source: "the same cells, and Tc / max(Tc, Tx), which no overlap can pass".into(),
        how: vec!["Each stage computes Tc and each body takes Tx on its link; the product's own window says how many micro-batches \
                   are open, at most 64."
            .into()],
        bound: "above the published cell, and above 95% of what is possible.".into(),
        rows,
    }
}

/// Widths of the model, and what a token of one layer computes and sends there: d^2 and d.
const WIDTHS: [f64; 5] = [512.0, 1024.0, 2048.0, 4096.0, 8192.0];

pub fn square_cube() -> Table {
    // A device and a link on which a width of 1024 computes as long as it sends.
    let (compute, transfer) = (10.0, 10.0);
    let mut rows = Vec::new();
    let mut before = (0.0, 0.0);
    for width in WIDTHS {
        let scale = width / 1024.0;
        let (tc, tx) = (compute * scale * scale, transfer * scale);
        let two = Two { compute: [tc / 2.0; 2], transfer: tx / 2.0, round_trip: 20.0, in_flight: 1 };
        let (ours, theirs) = (two.run().alone(20.0).0, law(tc, tx, 20.0));
        let row = Row::relative(format!("d = {width}, %"), 100.0 * ours, 100.0 * theirs, 2, 0.025);
        rows.push(Row { holds: Some(row.holds == Some(true) && ours > before.0 && theirs > before.1), ..row });
        before = (ours, theirs);
    }
    Table {
        title: "The square-cube law".into(),
        source: "Ryabinin et al., ICML 2023, section 3: a layer computes as d^2 and sends as d".into(),
        how: vec!["The same two stages with one micro-batch open, on one device and one link, for models of growing width: 10 ms of \
                   compute and of transfer at d = 1024, 20 ms of round trip; the labels' round trip is left out as above."
            .into()],
        bound: "within 2.5% of the law, and every doubling of d raises the utilisation.".into(),
        rows,
    }
}
