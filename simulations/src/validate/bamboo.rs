//! Training on spot instances that go away, by the rules of Bamboo's simulator (Thorpe et al., "Bamboo", NSDI 2023): pipelines
//! in which every node can stand in for its successor, until both are gone.
//!
//! Instances come and go by hourly draws. Twelve make a pipeline; those left over wait. Whoever goes is stood in for, which
//! slows all down; if nobody can, or if too many stand in, all meet anew (a rendezvous) and pipelines are formed afresh.
//! Written from the rules of their public code and its inputs; the draws are ours.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use skein_protocol::{
    PeerId,
    rng::{Purpose, Streams},
};

use super::{Row, Table, mean};

const NODES: usize = 48;
const STAGES: usize = 12;
const SAMPLES: f64 = 264.0;
const STEPS: u32 = 22_194;
/// Milliseconds of a step with 1 to 4 pipelines.
const STEP: [u64; 4] = [4310, 2390, 1805, 1450];
const HOUR: u64 = 3_600_000;
const CREATION: u64 = 45_000;
const GLOBAL: u64 = 30_000;
const LOCAL: u64 = 20_000;
/// While somebody stands in for another.
const SLOWDOWN: f64 = 1.5;
const DOLLARS: f64 = 0.91;
/// Of the nodes that may not fail, no more than this part.
const RISK: f64 = 0.05;

/// In the order in which things at one moment happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Add(u32),
    Remove(u32),
    /// The next hour is drawn.
    Draw,
    Ready(u32),
    Met {
        global: bool,
    },
    Step {
        meeting: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Stopped,
    Meeting,
    Running,
}

/// Pipeline and stage.
type Place = (usize, usize);

#[derive(Clone, Debug)]
struct Node {
    since: u64,
    ready: bool,
    /// Works at these places: none while it waits, two while it stands in.
    places: Vec<Place>,
    running: bool,
}

/// What comes of one run.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    preemptions: f64,
    life_h: f64,
    fatal: f64,
    nodes: f64,
    samples_per_s: f64,
    dollars_per_h: f64,
    value: f64,
}

struct Cloud {
    rng: ChaCha8Rng,
    /// Chance of an instance that is asked for to come, by hour of the day; of one that runs to go within an hour.
    comes: Vec<f64>,
    goes: f64,
    queue: BinaryHeap<Reverse<(u64, What)>>,
    nodes: BTreeMap<u32, Node>,
    next: u32,
    status: Status,
    meeting: u32,
    gathered: Vec<u32>,
    waiting: usize,
    pipelines: usize,
    stages: usize,
    overloaded: usize,
    step: u64,
    /// Steps done and the time when the first node was lost since the last meeting, and whether its price was paid.
    loss: Option<(u32, u64, bool)>,
    steps: u32,
    fatal: u32,
    lives: Vec<f64>,
    removed: u32,
    began: Option<u64>,
    /// Node-milliseconds until `seen`.
    node_ms: f64,
    seen: u64,
    step_from: (u64, f64),
    value: f64,
}

impl Cloud {
    fn new(seed: u64, goes: f64) -> Self {
        let mut rng = Streams::new(seed, PeerId([0xba; 32])).stream(Purpose::Churn);
        let comes = (0..24).map(|_| rng.random::<f64>()).collect();
        let mut cloud = Cloud {
            rng,
            comes,
            goes,
            queue: BinaryHeap::new(),
            nodes: BTreeMap::new(),
            next: 0,
            status: Status::Stopped,
            meeting: 0,
            gathered: Vec::new(),
            waiting: 0,
            pipelines: 0,
            stages: 0,
            overloaded: 0,
            step: 0,
            loss: None,
            steps: 0,
            fatal: 0,
            lives: Vec::new(),
            removed: 0,
            began: None,
            node_ms: 0.0,
            seen: 0,
            step_from: (0, 0.0),
            value: 0.0,
        };
        for _ in 0..NODES {
            if cloud.comes[0] > cloud.rng.random() {
                cloud.plan_add(0);
            }
        }
        cloud.plan(0, What::Draw);
        cloud
    }

    fn plan(&mut self, at: u64, what: What) {
        self.queue.push(Reverse((at, what)));
    }

    fn plan_add(&mut self, at: u64) -> u32 {
        self.next += 1;
        self.plan(at, What::Add(self.next));
        self.next
    }

    /// A moment of the hour that begins now, with this chance.
    fn moment(&mut self, now: u64, chance: f64) -> Option<u64> {
        (chance > self.rng.random()).then(|| now + 1000 * self.rng.random_range(0..3600))
    }

    fn run(mut self) -> Run {
        let mut now = 0;
        while self.steps < STEPS {
            let Some(Reverse((at, what))) = self.queue.pop() else { break };
            now = at;
            self.node_ms += (now - self.seen) as f64 * self.nodes.len() as f64;
            self.seen = now;
            match what {
                What::Add(id) => {
                    self.nodes.insert(id, Node { since: now, ready: false, places: Vec::new(), running: false });
                    self.plan(now + CREATION, What::Ready(id));
                }
                What::Remove(id) => self.on_removed(now, id),
                What::Draw => self.draw(now),
                What::Ready(id) => self.on_ready(now, id),
                What::Met { global } => self.on_met(now, global),
                What::Step { meeting } if meeting == self.meeting => self.on_step(now),
                What::Step { .. } => {}
            }
        }
        self.lives.extend(self.nodes.values().map(|node| (now - node.since) as f64 / HOUR as f64));
        let trained = (now - self.began.unwrap_or(0)) as f64;
        let nodes = self.node_ms / now.max(1) as f64;
        Run {
            preemptions: f64::from(self.removed),
            life_h: mean(&self.lives),
            fatal: f64::from(self.fatal),
            nodes,
            samples_per_s: SAMPLES * f64::from(self.steps) / (trained / 1e3),
            dollars_per_h: nodes * DOLLARS,
            value: self.value / trained,
        }
    }

    /// Who goes and who comes within the next hour.
    fn draw(&mut self, now: u64) {
        self.plan(now + HOUR, What::Draw);
        let comes = self.comes[(now / HOUR % 24) as usize];
        let there: Vec<u32> = self.nodes.keys().copied().collect();
        let mut removals: BinaryHeap<Reverse<(u64, u32)>> = BinaryHeap::new();
        for id in &there {
            removals.extend(self.moment(now, self.goes).map(|at| Reverse((at, *id))));
        }
        let asked = NODES - there.len().min(NODES) + removals.len();
        let additions: Vec<u64> = (0..asked).filter_map(|_| self.moment(now, comes)).collect();
        let mut additions: BinaryHeap<Reverse<u64>> = additions.into_iter().map(Reverse).collect();
        let mut count = there.len();
        loop {
            let removal = removals.peek().map(|Reverse((at, _))| *at);
            let addition = additions.peek().map(|Reverse(at)| *at);
            if removal.is_some_and(|at| addition.is_none_or(|other| at < other)) {
                let Some(Reverse((at, id))) = removals.pop() else { break };
                self.plan(at, What::Remove(id));
                count -= 1;
            } else {
                let Some(Reverse(at)) = additions.pop() else { break };
                if count == NODES {
                    continue;
                }
                let id = self.plan_add(at);
                count += 1;
                // It may go in the same hour, if that moment is not before it came.
                let goes = self.moment(now, self.goes).filter(|goes| *goes >= at);
                removals.extend(goes.map(|goes| Reverse((goes, id))));
            }
        }
    }

    fn on_removed(&mut self, now: u64, id: u32) {
        let Some(node) = self.nodes.remove(&id) else { return };
        self.removed += 1;
        self.lives.push((now - node.since) as f64 / HOUR as f64);
        if node.running {
            let stands_in = node.places.len() > 1;
            self.overloaded -= usize::from(stands_in);
            if stands_in || !self.stand_in(node.places[0]) {
                self.fatal += 1;
                return self.meet(now, true);
            }
        }
        if self.status == Status::Running && self.loss.is_none() {
            self.loss = Some((self.steps, now, false));
            self.step = (self.step as f64 * SLOWDOWN) as u64;
        }
    }

    /// Who comes before a place takes it too. Not, if that one stands in already; if it is not there at all, nobody notices.
    fn stand_in(&mut self, place: Place) -> bool {
        let Some(last) = self.stages.checked_sub(1) else { return true };
        let before = (place.0, place.1.checked_sub(1).unwrap_or(last));
        let Some(node) = self.nodes.values_mut().find(|node| node.places.contains(&before)) else { return true };
        if node.places.len() > 1 {
            return false;
        }
        node.places.push(place);
        self.overloaded += usize::from(node.running);
        true
    }

    fn on_ready(&mut self, now: u64, id: u32) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.ready = true;
        match self.status {
            Status::Stopped => self.meet(now, true),
            Status::Meeting => self.gathered.push(id),
            Status::Running => self.waiting += 1,
        }
    }

    fn meet(&mut self, now: u64, global: bool) {
        self.status = Status::Meeting;
        self.gathered = self.nodes.iter().filter(|(_, node)| node.ready).map(|(id, _)| *id).collect();
        self.plan(now + if global { GLOBAL } else { LOCAL }, What::Met { global });
    }

    fn on_met(&mut self, now: u64, global: bool) {
        if self.gathered.iter().any(|id| !self.nodes.contains_key(id)) {
            return self.meet(now, global);
        }
        let gathered = std::mem::take(&mut self.gathered);
        self.pipelines = gathered.len() / STAGES;
        self.stages = if self.pipelines > 0 { STAGES } else { 0 };
        for (i, id) in gathered.iter().enumerate() {
            let Some(node) = self.nodes.get_mut(id) else { continue };
            node.running = i < self.pipelines * STAGES;
            node.places = if node.running { vec![(i / STAGES, i % STAGES)] } else { Vec::new() };
        }
        self.waiting = gathered.len() - self.pipelines * STAGES;
        self.overloaded = self.nodes.values().filter(|node| node.running && node.places.len() > 1).count();
        self.loss = None;
        self.meeting += 1;
        if self.pipelines == 0 {
            self.status = Status::Stopped;
            return;
        }
        self.status = Status::Running;
        self.step = STEP[self.pipelines.min(4) - 1];
        self.plan(now + self.step, What::Step { meeting: self.meeting });
        if self.began.is_none() {
            self.began = Some(now);
            self.step_from = (now, self.node_ms);
        }
    }

    fn on_step(&mut self, now: u64) {
        let meeting = self.meeting;
        if let Some((steps, at, paid)) = self.loss
            && !paid
            && steps == self.steps
        {
            // The rest of the step in which the node was lost goes on slowly.
            self.loss = Some((steps, at, true));
            let more = ((now - at) as f64 * (SLOWDOWN - 1.0)) as u64;
            return self.plan(now + more, What::Step { meeting });
        }
        self.steps += 1;
        let (from, node_ms) = self.step_from;
        let dollars_per_h = (self.node_ms - node_ms) / (now - from).max(1) as f64 * DOLLARS;
        self.value += SAMPLES * 1e3 / dollars_per_h.max(f64::MIN_POSITIVE);
        self.step_from = (now, self.node_ms);
        if self.must_meet() {
            self.meet(now, false);
        } else {
            self.plan(now + self.step, What::Step { meeting });
        }
    }

    fn must_meet(&self) -> bool {
        let (overloaded, waiting) = (self.overloaded, self.waiting);
        let active = (self.pipelines * self.stages).saturating_sub(overloaded);
        let is_replaceable = overloaded > 0 && waiting >= overloaded;
        let is_risky = overloaded > 0 && 2.0 * overloaded as f64 / active as f64 > RISK;
        is_replaceable || is_risky || (active + waiting) / STAGES > self.pipelines
    }
}

/// Their means of 40 seeds, by the chance to go within an hour.
const THEIRS: [(f64, Run); 5] = [
    (
        0.01,
        Run {
            preemptions: 4.8,
            life_h: 9.46,
            fatal: 0.0,
            nodes: 43.9,
            samples_per_s: 147.8,
            dollars_per_h: 39.92,
            value: 3.67,
        },
    ),
    (
        0.05,
        Run {
            preemptions: 26.7,
            life_h: 7.26,
            fatal: 0.12,
            nodes: 42.5,
            samples_per_s: 134.8,
            dollars_per_h: 38.65,
            value: 3.47,
        },
    ),
    (
        0.10,
        Run {
            preemptions: 56.8,
            life_h: 5.18,
            fatal: 0.10,
            nodes: 40.6,
            samples_per_s: 131.3,
            dollars_per_h: 36.92,
            value: 3.54,
        },
    ),
    (
        0.25,
        Run {
            preemptions: 143.1,
            life_h: 2.78,
            fatal: 0.50,
            nodes: 35.0,
            samples_per_s: 115.3,
            dollars_per_h: 31.86,
            value: 3.59,
        },
    ),
    (
        0.50,
        Run {
            preemptions: 348.1,
            life_h: 1.42,
            fatal: 2.77,
            nodes: 27.1,
            samples_per_s: 83.2,
            dollars_per_h: 24.69,
            value: 3.31,
        },
    ),
];

const SEEDS: u64 = 40;

pub fn bamboo() -> Table {
    let mut rows = Vec::new();
    for (goes, theirs) in THEIRS {
        // Every probability has its own worlds, as theirs have.
        let runs: Vec<Run> = (0..SEEDS).map(|seed| Cloud::new(1 + seed, goes).run()).collect();
        let of = |what: fn(&Run) -> f64| mean(&runs.iter().map(what).collect::<Vec<_>>());
        let mut row = |what: &str, of_run: fn(&Run) -> f64, decimals: usize, bound: Option<f64>| {
            let row = Row::relative(
                format!("p = {goes:.2}, {what}"),
                of(of_run),
                of_run(&theirs),
                decimals,
                bound.unwrap_or(1.0),
            );
            rows.push(Row { holds: bound.and(row.holds), ..row });
        };
        row("preemptions", |run| run.preemptions, 1, None);
        row("mean life, h", |run| run.life_h, 2, Some(0.05));
        row("fatal failures", |run| run.fatal, 2, None);
        row("nodes", |run| run.nodes, 1, Some(0.05));
        row("samples/s", |run| run.samples_per_s, 1, Some(0.10));
        row("$/h", |run| run.dollars_per_h, 2, Some(0.05));
        row("samples/s per $/h", |run| run.value, 2, Some(0.10));
    }
    Table {
        title: "Training on spot instances: Bamboo's simulator".into(),
        source: "Thorpe et al., \"Bamboo\", NSDI 2023, public simulator: BERT, 48 nodes, 40 seeds".into(),
        how: vec![
            format!("An event simulation of our own with their rules and inputs, {SEEDS} seeds a row; the draws are ours, so both \
                     sides are means of a sample."),
            "12 stages; steps of 4310, 2390, 1805, 1450 ms with 1 to 4 pipelines; 264 samples a step, 22,194 steps; 45 s to start \
             an instance; 30 s and 20 s for a meeting of all and of few; 1.5 times slower while somebody stands in."
                .into(),
            "Preemptions and fatal failures are shown without a bound: the first spread by the length of a run, the second are \
             few."
                .into(),
        ],
        bound: "lifetimes, nodes and price within 5%, throughput and value within 10%.".into(),
        rows,
    }
}
