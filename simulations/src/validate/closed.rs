//! What has a formula: transfers, the bubble of a pipeline, averaging in groups, gradients that come late.

use std::{f64::consts::PI, time::Duration};

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use skein_gossip::kernel::noloco::{self, Rule, Side};
use skein_pipeline::model::cost;
use skein_protocol::{
    Lane, PeerId,
    event::Event,
    rng::{Purpose, Streams},
};

use super::{Row, Table, mean};
use crate::{
    Plan, Role, Setup, Simulation, Small,
    worker::modelled::Device,
    world::{
        Access, Network,
        network::{Flows, Place, Sharing, Terrain, flows::EQUAL},
    },
};

fn stream(seed: u64, purpose: Purpose) -> ChaCha8Rng {
    Streams::new(seed, PeerId([0xcf; 32])).stream(purpose)
}

// ---- transfers -----------------------------------------------------------------------------------------------------------

/// A model of one flow alone on its way.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Flow {
    /// Times the delay of the way.
    delay: f64,
    /// Part of the bandwidth that payload gets.
    bandwidth: f64,
    /// Acknowledgements take this part of the bandwidth on the way back, which is the same.
    crossing: f64,
    /// Bytes that may be unacknowledged.
    window: f64,
}

impl Flow {
    /// Nothing but delay and bandwidth.
    const NAIVE: Flow = Flow { delay: 1.0, bandwidth: 1.0, crossing: 0.0, window: f64::INFINITY };
    /// Casanova and Marchal's model with the window of its TCP.
    const CM02: Flow = Flow { window: 4_194_304.0, ..Flow::NAIVE };
    /// Legrand and Velho's factors, fitted to a packet simulator, with cross-traffic.
    const LV08: Flow = Flow { delay: 13.01, bandwidth: 0.97, crossing: 0.05, ..Flow::CM02 };

    /// Seconds of `bytes` over a way of `delay` seconds and `rate` bytes a second.
    fn time(&self, bytes: f64, delay: f64, rate: f64) -> f64 {
        let delay = self.delay * delay;
        let share = self.bandwidth * rate / (1.0 + self.crossing);
        let window = if delay > 0.0 { self.window / (2.0 * delay) } else { f64::INFINITY };
        delay + bytes / share.min(window)
    }
}

pub fn flows() -> Table {
    let mut rows = vec![
        Row::absolute("LV08, 100 kB over 10 ms and 1 Mbit/s, s", Flow::LV08.time(1e5, 0.01, 125e3), 0.996079, 6, 5e-6),
        Row::absolute("without factors, the same, s", Flow::NAIVE.time(1e5, 0.01, 125e3), 0.81, 6, 5e-6),
    ];
    for (what, delay, theirs, decimals, bound) in [
        ("0", 0.0, 1.0, 5, 5e-6),
        ("10 us", 1e-5, 1.00001, 5, 5e-6),
        ("1 ms", 1e-3, 4.77, 2, 0.005),
        ("100 ms", 0.1, 476.9, 1, 0.05),
    ] {
        let ours = Flow::CM02.time(1e10, delay, 1e10);
        rows.push(Row::absolute(format!("CM02, 10 GB over 10 GB/s and {what}, s"), ours, theirs, decimals, bound));
    }
    Table {
        title: "One transfer: SimGrid's vectors".into(),
        source: "SimGrid, documentation and tests of the network models LV08 and CM02".into(),
        how: vec![
            "LV08: 13.01 delay + bytes x 1.05 / (0.97 bandwidth), where 1.05 is the cross-traffic of acknowledgements. CM02: at \
             most window / (2 delay) bytes a second, window 4,194,304 B."
                .into(),
        ],
        bound: "to the digits that are published.".into(),
        rows,
    }
}

/// Seconds of a body of `bytes` alone on its way from peer 0 to peer 1, each with this access, over a connection that is warm.
fn over_our_network(bytes: u64, access: Access) -> f64 {
    let place = Place { access, region: 0, relayed: false };
    let mut network = Network::new(Terrain::of(vec![place; 2]), Duration::from_secs(2), stream(1, Purpose::Link));
    let mut flows = Flows::new(Sharing::Exact, EQUAL, &network.rates());
    flows.begin(0, 0, 1, Lane::Bulk, bytes, (), network.cap(0, 1), 0);
    let mut left = 0;
    while let Some(at) = flows.next_at() {
        if flows.step(at).is_some() {
            left = at;
        }
    }
    (left + network.delay(0, 1)) as f64 / 1e9
}

pub fn network() -> Table {
    let access = |delay_ms: f64, rate: f64| Access {
        delay: Duration::from_secs_f64(delay_ms / 2e3),
        jitter: Duration::ZERO,
        up: rate as u64,
        down: rate as u64,
    };
    let row = |what: &str, bytes: f64, delay_ms: f64, rate: f64| {
        let ours = over_our_network(bytes as u64, access(delay_ms, rate));
        Row::relative(what, ours, Flow::NAIVE.time(bytes, delay_ms / 1e3, rate), 6, 0.001)
    };
    Table {
        title: "One transfer over our network".into(),
        source: "delay + bytes / bandwidth".into(),
        how: vec![
            "A body alone on its way, at protocol fidelity. SimGrid's LV08 factors are not applied: they were fitted to TCP Reno \
             with short queues, and say 0.996 s for the first row."
                .into(),
        ],
        bound: "0.1%.".into(),
        rows: vec![
            row("100 kB over 10 ms and 1 Mbit/s, s", 1e5, 10.0, 125e3),
            row("100 MB over 50 ms and 20 Mbit/s, s", 1e8, 50.0, 2.5e6),
            row("1 MB over 1 ms and 10 Gbit/s, s", 1e6, 1.0, 1.25e9),
        ],
    }
}

// ---- the pipeline's bubble -----------------------------------------------------------------------------------------------

/// Seconds that a stage computes for one micro-batch, there and back.
const STAGE_S: f64 = 0.3;

/// Part of the time that `stages` equally fast stages stand still while `m` micro-batches go through an empty pipeline.
fn idle(stages: u16, m: u64) -> f64 {
    // A feeder begins with two for each stage: so many feeders that all are fed at once.
    let feeders = m.div_ceil(2 * u64::from(stages)).max(1);
    let small = Small { in_flight_max: 64, micro_batches_per_step: m as u32, round_every: 0, ..Small::demo(stages) };
    let manifest = small.manifest();
    let near = Access { delay: Duration::from_micros(20), jitter: Duration::ZERO, up: 1 << 34, down: 1 << 34 };
    let host = |stage: u16| {
        let flops = cost::stage_flops(&manifest, stage) as f64 / STAGE_S;
        Plan::new(Role::host(stage)).device(Device { flops, noise: 0.0 })
    };
    let peers = (0..feeders).map(|_| Plan::new(Role::feeder())).chain((0..stages).map(host));
    let peers = peers.map(|plan| plan.disk(0).access(near)).collect();
    let setup = Setup { records: Some(m / feeders), ..Setup::new(7, manifest.clone(), peers) };
    let mut sim = Simulation::new(setup);
    let all = sim.run_completed(Duration::from_secs(120), m as usize);
    // The first stage works at the first forward, and the last gradient is added there.
    let at = |wanted: fn(&Event) -> bool| -> Vec<u64> {
        sim.lines().iter().filter(|line| wanted(&line.record.event)).map(|line| line.at).collect()
    };
    let first = at(|event| matches!(event, Event::Accepted { stage: 0, .. })).into_iter().min();
    let last = at(|event| matches!(event, Event::Added { stage: 0, .. })).into_iter().max();
    match (first, last) {
        (Some(first), Some(last)) if all && last > first => 1.0 - m as f64 * STAGE_S / ((last - first) as f64 / 1e9),
        _ => f64::NAN,
    }
}

pub fn bubble() -> Table {
    let row = |(p, m): (u16, u64)| {
        let theirs = f64::from(p - 1) / (m as f64 + f64::from(p - 1));
        let ours = idle(p, m);
        Row::absolute(format!("p = {p} stages, m = {m} micro-batches"), ours, theirs, 4, 0.01)
    };
    Table {
        title: "The bubble of a pipeline".into(),
        source: "Huang et al., \"GPipe\", 2019: (p - 1) / (m + p - 1)".into(),
        how: vec![
            "Our peers never flush: steps follow each other without a bubble, and the formula applies where a pipeline is filled \
             once and emptied once. So a run has m micro-batches in all, all of them fed at once, over p stages at one peer each \
             that compute equally long, with hardly any delay."
                .into(),
            "Ours is 1 - m x 0.3 s / (time from the first forward to the last gradient at stage 0). Our stages take turns between \
             forward and backward as 1F1B does, whose bubble is GPipe's."
                .into(),
        ],
        bound: "0.01 of the time.".into(),
        rows: [(2, 4), (2, 16), (3, 8), (4, 4), (4, 16), (4, 32)].map(row).into(),
    }
}

// ---- averaging in groups -------------------------------------------------------------------------------------------------

const ROUNDS: usize = 400;

/// By how much the variance of `peers` values falls when all average in random groups of `of_group`.
fn ratio(peers: usize, of_group: usize) -> f64 {
    let mut rng = stream((peers * 1000 + of_group) as u64, Purpose::Pairing);
    let variance = |values: &[f64]| {
        let middle = mean(values);
        values.iter().map(|value| (value - middle) * (value - middle)).sum::<f64>()
    };
    let mut order: Vec<usize> = (0..peers).collect();
    let mut sum = 0.0;
    for _ in 0..ROUNDS {
        // Any values will do; these are of one kind from round to round, so that no round counts more than another.
        let mut values: Vec<f64> = (0..peers).map(|i| i as f64).collect();
        values.shuffle(&mut rng);
        let before = variance(&values);
        order.shuffle(&mut rng);
        for group in order.chunks(of_group) {
            let mean =
                if of_group == 2 { pair(values[group[0]], values[group[1]]) } else { group_mean(&values, group) };
            group.iter().for_each(|i| values[*i] = mean);
        }
        sum += variance(&values) / before;
    }
    sum / ROUNDS as f64
}

fn group_mean(values: &[f64], group: &[usize]) -> f64 {
    group.iter().map(|i| values[*i]).sum::<f64>() / group.len() as f64
}

/// Two peers average with the product's kernel: no momentum, all the way to the mean.
fn pair(a: f64, b: f64) -> f64 {
    let rule = Rule { alpha: 0.0, beta: 0.0, gamma: 1.0 };
    let (first, second) = ([a as f32], [b as f32]);
    let side = |phi| Side { phi, d: &[0.0], samples: 1 };
    let (mut m, mut phi) = ([0.0], first);
    noloco::step(rule, side(&first), side(&second), true, &mut m, &mut phi);
    f64::from(phi[0])
}

pub fn groups() -> Table {
    let row = |(peers, of_group): (usize, usize)| {
        let groups = peers / of_group;
        let theirs = (groups - 1) as f64 / (peers - 1) as f64;
        let how = if of_group == 2 { " (the product's kernel)" } else { "" };
        let what = format!("{peers} peers in groups of {of_group}{how}");
        Row::relative(what, ratio(peers, of_group), theirs, 4, 0.05)
    };
    Table {
        title: "Averaging in random groups".into(),
        source:
            "Ryabinin et al., \"Moshpit SGD\", 2021: N peers in r groups keep (r - 1) / (N - 1) of the variance a round"
                .into(),
        how: vec![format!(
            "Mean of {ROUNDS} rounds. The product averages in pairs, so pairs go through its kernel (NoLoCo's step with \
                     alpha 0, gamma 1); larger groups are averaged here, to see the law."
        )],
        bound: "5%: the ratio of a finite number of rounds scatters.".into(),
        rows: [(64, 2), (16, 2), (64, 8), (100, 25), (1000, 10)].map(row).into(),
    }
}

// ---- gradients that come late --------------------------------------------------------------------------------------------

/// The largest stable learning rate (times the curvature) of descent on a parabola with gradients `delay` steps old.
fn limit(delay: u32) -> f64 {
    2.0 * libm::sin(PI / (2.0 * (2.0 * f64::from(delay) + 1.0)))
}

/// The same by trying.
fn limit_by_trying(delay: u32) -> f64 {
    let (mut low, mut high) = (0.0, 2.5);
    while high - low > 1e-6 {
        let middle = (low + high) / 2.0;
        if grows(middle, delay as usize) { high = middle } else { low = middle }
    }
    (low + high) / 2.0
}

/// Whether x[t + 1] = x[t] - rate x[t - delay] is larger after many steps than before.
fn grows(rate: f64, delay: usize) -> bool {
    const SETTLE: usize = 4_000;
    const STEPS: usize = 60_000;
    // Long enough for many turns of the slowest oscillation, which takes 2 (2 delay + 1) steps.
    let window = 100 * (delay + 1);
    let mut past = vec![1.0f64; delay + 1];
    let (mut early, mut late) = (0.0f64, 0.0f64);
    for step in 0..SETTLE + STEPS {
        let at = step % (delay + 1);
        let now = past[(at + delay) % (delay + 1)];
        let next = now - rate * past[at];
        past[at] = next;
        if next.abs() > 1e100 {
            return true;
        }
        if (SETTLE..SETTLE + window).contains(&step) {
            early = early.max(next.abs());
        }
        if step >= SETTLE + STEPS - window {
            late = late.max(next.abs());
        }
    }
    late > early
}

pub fn delayed() -> Table {
    let row = |(delay, theirs): (u32, f64)| {
        let decimals = if delay < 2 { 0 } else { 3 };
        let closed = limit(delay);
        let tried = limit_by_trying(delay);
        Row {
            what: format!("delay {delay}"),
            ours: format!("{tried:.5} (tried)"),
            theirs: format!("{closed:.5} (formula), {theirs:.decimals$} (published)"),
            gap: format!("{:+.1e}", tried / closed - 1.0),
            holds: Some((tried / closed - 1.0).abs() < 1e-4 && (closed - theirs).abs() < 5e-4),
        }
    };
    Table {
        title: "The largest stable step with late gradients".into(),
        source: "x[t+1] = x[t] - r L x[t-d] is stable while r L < 2 sin(pi / (2 (2 d + 1)))".into(),
        how: vec!["Found by halving an interval: 64,000 steps each, growing or not.".into()],
        bound: "4 digits.".into(),
        rows: [(0, 2.0), (1, 1.0), (2, 0.618), (4, 0.347), (8, 0.185), (16, 0.095), (32, 0.048)].map(row).into(),
    }
}
