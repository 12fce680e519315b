//! What must hold whatever the numbers are: of two worlds that differ in one thing, how their outcomes differ.
//!
//! Small swarms of the product's peers at protocol fidelity, three stages, modelled workers. Draws of the world (jitter, noise of
//! jobs, phases of ticks) fall in another order when a message is sent at another time, so throughputs of two worlds that ought
//! to be equal differ by a noise, which is stated.

use std::time::Duration;

use skein_protocol::event::Event;

use super::{Row, Table, mean};
use crate::{Plan, Role, Setup, Simulation, Small, worker::modelled::Device, world::Access};

const STAGES: u16 = 3;
const REPLICAS: usize = 2;
const WARM_S: f64 = 8.0;
const MEASURED_S: f64 = 20.0;
const SEEDS: u64 = 6;
/// A world with more bandwidth may be this much slower: what is drawn falls in another order.
const NOISE: f64 = 0.02;
/// Means of other seeds of one world lie this far apart at most.
const SPREAD: f64 = 0.03;
/// So do parts of the time that one peer works.
const PART: f64 = 0.05;

/// A world: homes of which one is slow, and everything that the checks change.
#[derive(Clone, Debug)]
struct World {
    /// Times all bandwidths; times everything that takes time.
    bandwidth: f64,
    slower: f64,
    /// Stages of the hosts in the order of their numbers, and the number of the slow one.
    hosts: Vec<u16>,
    slow: usize,
    /// Peers beside them: there without a task, and never started.
    idle: usize,
    never: usize,
}

impl World {
    fn new() -> Self {
        let hosts = (0..STAGES).flat_map(|stage| [stage; REPLICAS]).collect();
        World { bandwidth: 1.0, slower: 1.0, hosts, slow: 0, idle: 0, never: 0 }
    }

    fn simulation(&self, seed: u64) -> Simulation {
        let manifest = Small { in_flight_max: 12, ..Small::demo(STAGES) }.manifest();
        let time = |ms: f64| Duration::from_secs_f64(ms * self.slower / 1e3);
        let rate = |bytes: f64| (bytes * self.bandwidth / self.slower) as u64;
        let access = Access { delay: time(10.0), jitter: time(2.0), up: rate(10e6), down: rate(37.5e6) };
        let plan = |role: Role, speed: f64| {
            let device = Device { flops: speed * Device::CORE.flops / self.slower, ..Device::CORE };
            Plan::new(role).access(access).device(device).disk(0)
        };
        let mut peers = vec![plan(Role::feeder(), 1.0)];
        for (i, stage) in self.hosts.iter().enumerate() {
            peers.push(plan(Role::host(*stage), if i == self.slow { 0.1 } else { 0.2 }));
        }
        peers.extend((0..self.idle).map(|_| plan(Role::default(), 1.0)));
        peers.extend((0..self.never).map(|_| plan(Role::default(), 1.0).starts(Duration::from_secs(1_000_000))));
        Simulation::new(Setup::new(seed, manifest, peers))
    }

    fn run(&self, seed: u64) -> Outcome {
        let mut sim = self.simulation(seed);
        sim.run_for(Duration::from_secs_f64(WARM_S * self.slower));
        let before = completed(&sim);
        let slow = sim.busy(1 + self.slow);
        sim.run_for(Duration::from_secs_f64(MEASURED_S * self.slower));
        let seconds = MEASURED_S * self.slower;
        Outcome {
            rate: (completed(&sim) - before) as f64 / seconds,
            slow: (sim.busy(1 + self.slow) - slow).as_secs_f64() / seconds,
            digest: sim.digest().to_string(),
        }
    }

    /// Means over the seeds from `first` on.
    fn mean(&self, first: u64) -> (f64, f64) {
        let runs: Vec<Outcome> = (first..first + SEEDS).map(|seed| self.run(seed)).collect();
        let of = |what: fn(&Outcome) -> f64| mean(&runs.iter().map(what).collect::<Vec<_>>());
        (of(|run| run.rate), of(|run| run.slow))
    }
}

struct Outcome {
    /// Micro-batches a second.
    rate: f64,
    /// Part of the time that the slow peer works.
    slow: f64,
    digest: String,
}

fn completed(sim: &Simulation) -> usize {
    sim.lines().iter().filter(|line| matches!(line.record.event, Event::Completed { .. })).count()
}

pub fn metamorphic() -> Table {
    let base = World::new();
    let (rate, slow) = base.mean(1);
    let mut rows = Vec::new();
    let (other, slow_other) = base.mean(1 + SEEDS);
    rows.push(Row::relative("the same world, other seeds: micro-batches/s", other, rate, 3, SPREAD));
    rows.push(Row::absolute("the same: part of the time that the slow peer works", slow_other, slow, 3, PART));

    let mut before = (0.25, World { bandwidth: 0.25, ..base.clone() }.mean(1).0);
    for bandwidth in [0.5, 1.0, 4.0, 16.0] {
        let (now, _) = World { bandwidth, ..base.clone() }.mean(1);
        rows.push(Row {
            what: format!("bandwidth x {bandwidth} is not slower than x {}: micro-batches/s", before.0),
            ours: format!("{now:.3}"),
            theirs: format!("{:.3}", before.1),
            gap: format!("{:+.2}%", 100.0 * (now / before.1 - 1.0)),
            holds: Some(now >= (1.0 - NOISE) * before.1),
        });
        before = (bandwidth, now);
    }

    let (half, slow_half) = World { slower: 2.0, ..base.clone() }.mean(1);
    rows.push(Row::relative("everything takes twice as long: twice the micro-batches/s", 2.0 * half, rate, 3, SPREAD));
    rows.push(Row::absolute("the same: part of the time that the slow peer works", slow_half, slow, 3, PART));

    let (idle, _) = World { idle: 1, ..base.clone() }.mean(1);
    rows.push(Row::relative("with a peer that has no task: micro-batches/s", idle, rate, 3, SPREAD));
    let never = World { never: 1, ..base.clone() }.run(1).digest;
    let without = base.run(1).digest;
    rows.push(Row {
        what: "with a peer that never starts: digest of the history".into(),
        gap: if never == without { "equal".into() } else { "another".into() },
        holds: Some(never == without),
        ours: never.chars().take(11).collect(),
        theirs: without.chars().take(11).collect(),
    });

    // The slow peer serves stage 0 in both worlds, but is another number, as all are.
    let relabelled = World { hosts: vec![2, 1, 2, 0, 1, 0], slow: 3, ..base.clone() };
    let (other, slow_other) = relabelled.mean(1);
    rows.push(Row::relative("peers under other numbers: micro-batches/s", other, rate, 3, SPREAD));
    rows.push(Row::absolute("the same: part of the time that the slow peer works", slow_other, slow, 3, PART));
    Table {
        title: "Metamorphic checks".into(),
        source: "none: two worlds of ours beside each other".into(),
        how: vec![
            format!("{STAGES} stages, {REPLICAS} replicas each, one of them half as fast, a feeder; homes with 80 Mbit/s up and \
                     10 ms to the backbone; {MEASURED_S} simulated seconds after {WARM_S}, mean of {SEEDS} seeds."),
            "Twice as long: delays, jitter, bandwidths, devices and duration. What the product and the modelled worker fix \
             (heartbeats, ticks of 250 ms, timeouts, 0.1 ms a job, memory at 5 GB/s) stays as it is, so half the rate is not \
             exact. Links are fast \
             enough here that no body waits at its sender's uplink for longer than that sender waits for an acceptance (1.5 s \
             at first): beyond that the product sends again, and a world may stand still of it (24 open micro-batches at \
             10 Mbit/s up)."
                .into(),
            "Draws are keyed by peer where a process starts and where a job takes time, and drawn in the order of messages on \
             links. So a peer that never starts changes nothing at all, one that idles changes what is drawn for jitter."
                .into(),
        ],
        bound: format!(
            "more bandwidth at most {:.0}% slower; worlds that ought to be equal within {:.0}%, which is the spread of seeds; {PART} \
             for parts of the time.",
            100.0 * NOISE,
            100.0 * SPREAD
        ),
        rows,
    }
}
