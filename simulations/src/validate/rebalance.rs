//! What it costs not to move peers between stages while they come and go, after SWARM (Ryabinin et al., 2023): throughput as a
//! part of the best that any placement of the same peers would have.
//!
//! Peers are alike and serve one stage each; a newcomer takes the stage that the product's plan gives it, and moves are those
//! of the product's plan. Between two events all throughputs stand, so a trace is a sum.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use skein_pipeline::plan::{
    assign,
    moves::{self, Move},
    swarm::{self, Cost, Serving, rows},
};
use skein_protocol::{
    PeerId, Stage,
    rng::{Purpose, Streams},
};

use super::{Row, Table, mean};

const STAGES: Stage = 4;
const HOURS: f64 = 32.0;
/// Mean life of an instance, of the trace of p3 instances that Bamboo's authors recorded.
const LIFE_H: f64 = 1.64;
/// Removals within one minute: mean 2.1, at most 6.
const BURST: [f64; 6] = [0.47, 0.22, 0.14, 0.09, 0.05, 0.03];
/// Instances that the trace has on average, and at most.
const PEERS: f64 = 24.0;
const PEERS_MAX: usize = 36;
/// Whoever moves computes nothing for so long: it finishes, fetches the other stage, and begins.
const MOVE_S: f64 = 45.0;

#[derive(Clone, Copy, Debug)]
enum Change {
    Comes(u32),
    Goes(u32),
}

/// Comings and goings by time in seconds, and how many went in each burst.
fn trace(seed: u64) -> (Vec<(f64, Change)>, Vec<usize>) {
    let mut rng = Streams::new(seed, PeerId([0x5a; 32])).stream(Purpose::Churn);
    let exponential = |rng: &mut ChaCha8Rng, mean: f64| -mean * libm::log(1.0 - rng.random::<f64>());
    let burst_mean: f64 = (1..).zip(BURST).map(|(n, part)| f64::from(n) * part).sum();
    let mut alive: Vec<u32> = (0..PEERS as u32).collect();
    let mut changes: Vec<(f64, Change)> = alive.iter().map(|peer| (0.0, Change::Comes(*peer))).collect();
    let (mut now, mut next, mut bursts) = (0.0, PEERS as u32, Vec::new());
    loop {
        // So many lives end in bursts, and as many peers come, one by one. Both have no memory, so they are drawn anew.
        let goes = exponential(&mut rng, burst_mean * LIFE_H * 3600.0 / alive.len().max(1) as f64);
        let comes = exponential(&mut rng, LIFE_H * 3600.0 / PEERS);
        now += goes.min(comes);
        if now >= HOURS * 3600.0 {
            // Removals of one burst are a second apart, and others may fall between.
            changes.sort_by(|(a, _), (b, _)| a.total_cmp(b));
            return (changes, bursts);
        }
        if goes <= comes {
            let mut draw = rng.random::<f64>();
            let is_it = |part: &f64| {
                draw -= part;
                draw < 0.0
            };
            let size = (BURST.iter().position(is_it).unwrap_or(BURST.len() - 1) + 1).min(alive.len());
            for i in 0..size {
                let peer = alive.swap_remove(rng.random_range(0..alive.len()));
                changes.push((now + i as f64, Change::Goes(peer)));
            }
            bursts.push(size);
        } else if alive.len() < PEERS_MAX {
            alive.push(next);
            changes.push((now, Change::Comes(next)));
            next += 1;
        }
    }
}

/// How moves are made.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Policy {
    /// Newcomers take a stage at random.
    Blind,
    Never,
    /// Every so many seconds, one peer of those that the plan names.
    One(f64),
    /// Every so many seconds, all that the plan names.
    All(f64),
}

struct Swarm {
    serving: Serving,
    /// Peers that moved and do not compute yet, and from when they do.
    busy: BTreeMap<PeerId, f64>,
    costs: Vec<Cost>,
    moves: u32,
}

fn id(peer: u32) -> PeerId {
    let mut name = [0; 32];
    name[..4].copy_from_slice(&peer.to_be_bytes());
    // A hash decides among equals: names must not be in the order of coming.
    PeerId(skein_protocol::hash::keyed("skein validation peer 1", &[&name]).0)
}

impl Swarm {
    fn new() -> Self {
        let serving = (0..STAGES).map(|stage| (stage, BTreeMap::new())).collect();
        let costs = vec![Cost { memory: 1, flops: 1 }; usize::from(STAGES)];
        Swarm { serving, busy: BTreeMap::new(), costs, moves: 0 }
    }

    fn seen(&self) -> swarm::Swarm {
        swarm::Swarm::of(rows(&self.serving), &self.costs)
    }

    fn change(&mut self, change: Change, is_blind: bool) {
        match change {
            Change::Comes(peer) => {
                let stages = match is_blind {
                    true => vec![Stage::from(id(peer).0[0]) % STAGES],
                    false => assign::stages_for(id(peer), &self.seen(), &BTreeSet::new(), &self.costs, 1),
                };
                for stage in stages {
                    self.serving.entry(stage).or_default().insert(id(peer), 1.0);
                }
            }
            Change::Goes(peer) => {
                self.serving.values_mut().for_each(|peers| {
                    peers.remove(&id(peer));
                });
                self.busy.remove(&id(peer));
            }
        }
    }

    fn rebalance(&mut self, now: f64, most: usize) {
        let rests = |peer: PeerId| self.busy.contains_key(&peer);
        let list = moves::moves(&self.seen(), &self.costs, rests);
        for (peer, Move { from, to, .. }) in list.into_iter().take(most) {
            if let Some(speed) = self.serving.get_mut(&from).and_then(|peers| peers.remove(&peer)) {
                self.serving.entry(to).or_default().insert(peer, speed);
                self.busy.insert(peer, now + MOVE_S);
                self.moves += 1;
            }
        }
    }

    /// Of the weakest stage, and the best that so many peers could do.
    fn throughput(&self) -> (f64, f64) {
        let works = |peer: &&PeerId| !self.busy.contains_key(*peer);
        let now = self.serving.values().map(|peers| peers.keys().filter(works).count()).min().unwrap_or(0);
        let all: usize = self.serving.values().map(BTreeMap::len).sum();
        (now as f64, (all / usize::from(STAGES)) as f64)
    }
}

/// Percent of the optimum over the whole trace, in its last hour, and moves made.
fn run(seed: u64, policy: Policy) -> (f64, f64, f64) {
    let mut swarm = Swarm::new();
    let mut changes = trace(seed).0.into_iter().peekable();
    let (period, most) = match policy {
        Policy::Blind | Policy::Never => (f64::INFINITY, 0),
        Policy::One(period) => (period, 1),
        Policy::All(period) => (period, usize::MAX),
    };
    let end = HOURS * 3600.0;
    let (mut now, mut next_period) = (0.0, period);
    let (mut whole, mut last) = ((0.0, 0.0), (0.0, 0.0));
    while now < end {
        let change = changes.peek().map_or(f64::INFINITY, |(at, _)| *at);
        let ready = swarm.busy.values().copied().fold(f64::INFINITY, f64::min);
        let at = change.min(ready).min(next_period).min(end);
        let (ours, best) = swarm.throughput();
        whole = (whole.0 + ours * (at - now), whole.1 + best * (at - now));
        let in_last = (at - now.max(end - 3600.0)).max(0.0);
        last = (last.0 + ours * in_last, last.1 + best * in_last);
        now = at;
        swarm.busy.retain(|_, until| *until > now);
        if change <= now
            && let Some((_, change)) = changes.next()
        {
            swarm.change(change, policy == Policy::Blind);
        } else if next_period <= now {
            next_period += period;
            swarm.rebalance(now, most);
        }
    }
    (100.0 * whole.0 / whole.1, 100.0 * last.0 / last.1, f64::from(swarm.moves))
}

const SEEDS: u64 = 10;

pub fn rebalance() -> Table {
    let policies = [
        ("no moves, newcomers anywhere", Policy::Blind, None),
        ("no moves", Policy::Never, Some(82.7)),
        ("one move every 300 s", Policy::One(300.0), Some(95.8)),
        ("one move every 60 s", Policy::One(60.0), Some(97.6)),
        ("all named moves every 300 s", Policy::All(300.0), None),
        ("all named moves every 60 s", Policy::All(60.0), None),
    ];
    let of = |policy: Policy| -> (f64, f64, f64) {
        let runs: Vec<_> = (0..SEEDS).map(|seed| run(seed, policy)).collect();
        let of = |what: fn(&(f64, f64, f64)) -> f64| mean(&runs.iter().map(what).collect::<Vec<_>>());
        (of(|run| run.0), of(|run| run.1), of(|run| run.2))
    };
    let results: Vec<_> = policies.iter().map(|(_, policy, _)| of(*policy)).collect();
    let mut rows: Vec<Row> = Vec::new();
    for ((what, _, theirs), (whole, last, moves)) in policies.iter().zip(&results) {
        rows.push(Row {
            what: format!("{what}, % of the optimum"),
            ours: format!("{whole:.1} (last hour {last:.1}, {moves:.0} moves)"),
            theirs: theirs.map_or(String::new(), |theirs| format!("{theirs:.1}")),
            ..Row::default()
        });
    }
    let mut holds = |what: &str, ours: String, holds: bool| {
        rows.push(Row { what: what.into(), ours, holds: Some(holds), ..Row::default() });
    };
    let order = |a: usize, b: usize, c: usize| results[a].0 < results[b].0 && results[b].0 < results[c].0;
    let shown = |places: [usize; 3]| places.map(|i| format!("{:.1}", results[i].0)).join(" < ");
    holds("none < 300 s < 60 s, one move a period", shown([1, 2, 3]), order(1, 2, 3));
    holds("none < 300 s < 60 s, all named moves", shown([1, 4, 5]), order(1, 4, 5));
    holds(
        "at least 90% of the optimum at 300 s, one move a period",
        format!("{:.1}", results[2].0),
        results[2].0 >= 90.0,
    );
    let (life, burst, most) = statistics();
    rows.push(Row {
        what: "the trace: mean life, h".into(),
        ours: format!("{life:.2}"),
        theirs: "1.64".into(),
        ..Row::default()
    });
    rows.push(Row {
        what: "the trace: removals in a burst, mean and most".into(),
        ours: format!("{burst:.1}, {most}"),
        theirs: "2.1, 6".into(),
        ..Row::default()
    });
    Table {
        title: "Moving peers between stages while they come and go".into(),
        source: "Ryabinin et al., \"SWARM Parallelism\", ICML 2023: adaptive rebalancing over a 32 h log of preemptible instances"
            .into(),
        how: vec![
            format!("Their log is not public. Ours are {SEEDS} drawn traces of 32 h with the statistics of Bamboo's p3 trace: \
                     exponential lives, removals in bursts within a minute, comings one by one; {STAGES} stages, {PEERS:.0} peers \
                     on average, all alike. So cells are not compared; the order and the bound are."),
            "Newcomers and moves are decided by the product's plan (`assign::stages_for`, `moves::moves`: ascending throughputs, \
             worked out to a fixpoint, hysteresis of a tenth)."
                .into(),
            format!("Whoever moves computes nothing for {MOVE_S:.0} s. The optimum is floor(peers / stages) at every moment. Our \
                     newcomers go where they are needed most even without moves, so standing still loses less than in SWARM; the first row shows newcomers that go anywhere."),
        ],
        bound: "the order, and at least 90% of the optimum with one move every 300 s.".into(),
        rows,
    }
}

/// Mean life, mean and largest burst of the traces.
fn statistics() -> (f64, f64, usize) {
    let (mut hours, mut bursts) = (0.0, Vec::new());
    for (changes, of_trace) in (0..SEEDS).map(trace) {
        let (mut alive, mut before) = (0.0, 0.0);
        for (at, change) in changes {
            hours += alive * (at - before) / 3600.0;
            before = at;
            alive += if matches!(change, Change::Comes(_)) { 1.0 } else { -1.0 };
        }
        bursts.extend(of_trace);
    }
    let goings: usize = bursts.iter().sum();
    let most = bursts.iter().copied().max().unwrap_or(0);
    (hours / goings.max(1) as f64, goings as f64 / bursts.len().max(1) as f64, most)
}
