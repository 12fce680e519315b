//! What a fleet counts while time passes: sums, the series, the time of the devices, and what is written of it at the end.

use skein_protocol::Stage;

use super::{Fleet, Run, Standing, calibrated, flow::Flow, load::Load, pool::Pool, seconds};
use crate::{
    cost::{Use, Watts},
    engine::Time,
    outcome::{
        Came, Change, Ended, Fidelity, Learning, Outcome, PeerRow, SCHEMA, Sample, Shares, StageRow, Totals, Traffic,
    },
};

/// Intervals of the series.
const SAMPLES: u64 = 240;
/// Bytes of an id's tokens and labels, a token.
const TOKEN_BYTES: f64 = 8.0;

/// The fleet in one tick.
pub(super) struct View<'a> {
    pub load: &'a Load,
    pub pools: &'a [Pool],
    pub flow: &'a Flow,
    /// By stage: part of what goes on to the next one that takes no link.
    pub stays: &'a [f64],
    /// Peers that serve or fetch something, and those that serve.
    pub here: u32,
    pub serving: u32,
    /// At the end of the tick, and its length.
    pub now_s: f64,
    pub span_s: f64,
}

/// Flows that were summed: they become counts at the end.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    completed: f64,
    /// Of all stages together.
    perished: f64,
    refused: f64,
    resent: f64,
    rounds: f64,
    flops_useful: f64,
    flops_done: f64,
    activations: f64,
    gradients: f64,
    averaging: f64,
    weights: f64,
    control: f64,
    peer_s: f64,
    /// Staleness, weighted by micro-batches.
    staleness_p50: f64,
    staleness_p99: f64,
}

impl Sums {
    fn traffic(&self) -> Traffic {
        let [activations, gradients, averaging, weights, control] =
            [self.activations, self.gradients, self.averaging, self.weights, self.control].map(|bytes| bytes as u64);
        Traffic { activations, gradients, averaging, weights, control }
    }

    fn since(&self, before: &Sums) -> Traffic {
        let (a, b) = (self.traffic(), before.traffic());
        Traffic {
            activations: a.activations - b.activations,
            gradients: a.gradients - b.gradients,
            averaging: a.averaging - b.averaging,
            weights: a.weights - b.weights,
            control: a.control - b.control,
        }
    }
}

/// One stage, summed over time.
#[derive(Clone, Copy, Debug, Default)]
struct StageSums {
    replicas_s: f64,
    replicas_min: Option<u32>,
    busy_s: f64,
    sending_s: f64,
    receiving_s: f64,
    empty_s: f64,
    /// What died replicas took with them, since the last tick.
    perished: f64,
    /// In the open interval of the series.
    sample_busy_s: f64,
    sample_replicas_s: f64,
}

/// Seconds of devices by what they went to.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    computing: f64,
    upload: f64,
    download: f64,
    imbalance: f64,
    latency: f64,
    churn: f64,
    staleness: f64,
}

pub(super) struct Books {
    sums: Sums,
    stages: Vec<StageSums>,
    spent: Spent,
    joined: u64,
    left: u64,
    died: u64,
    moves: u64,
    open: f64,
    series: Vec<Sample>,
    sample: Sums,
    sample_at_s: f64,
    sample_every_s: f64,
    changes: Vec<Change>,
    rows_max: usize,
    /// Nothing is completed since then.
    still_since: Option<f64>,
    fastest_claim: f64,
}

impl Books {
    pub fn new(stages: usize, until: Time, tick: Time, rows_max: usize) -> Self {
        let every = (until / SAMPLES).next_multiple_of(tick.max(1)).max(tick);
        Books {
            sums: Sums::default(),
            stages: vec![StageSums::default(); stages],
            spent: Spent::default(),
            joined: 0,
            left: 0,
            died: 0,
            moves: 0,
            open: 0.0,
            series: Vec::new(),
            sample: Sums::default(),
            sample_at_s: 0.0,
            sample_every_s: seconds(every),
            changes: Vec::new(),
            rows_max,
            still_since: None,
            fastest_claim: 0.0,
        }
    }

    pub fn came(&mut self, at: Time, peer: u32, what: Came) {
        match what {
            Came::Joined => self.joined += 1,
            Came::Left => self.left += 1,
            Came::Died => self.died += 1,
        }
        if self.changes.len() < self.rows_max {
            self.changes.push(Change { at_s: seconds(at), peer, what });
        }
    }

    pub fn fetched(&mut self, bytes: f64) {
        self.sums.weights += bytes;
    }

    pub fn moved(&mut self) {
        self.moves += 1;
    }

    pub fn perish(&mut self, stage: usize, micro_batches: f64) {
        self.stages[stage].perished += micro_batches;
    }

    pub fn claims(&mut self, claim: f64) {
        self.fastest_claim = self.fastest_claim.max(claim);
    }

    /// Of a replica that ever served: no move helps by more.
    pub fn fastest_claim(&self) -> f64 {
        self.fastest_claim
    }

    /// Whether anything was ever completed.
    pub fn has_begun(&self) -> bool {
        self.sums.completed > 0.0
    }

    /// Since when nothing is completed, if so.
    pub fn still_since(&self) -> Option<f64> {
        self.still_since
    }

    /// Tokens up to the last sample, and peers that were there then.
    pub fn so_far(&self) -> (u64, u32) {
        (self.series.iter().map(|sample| sample.tokens).sum(), self.series.last().map_or(0, |sample| sample.alive))
    }

    pub fn bytes(&self) -> usize {
        self.changes.capacity() * size_of::<Change>() + self.series.capacity() * size_of::<Sample>()
    }

    pub fn sign(&self, hasher: &mut blake3::Hasher) {
        let Sums { completed, perished, refused, weights, flops_done, .. } = self.sums;
        for number in [completed, perished, refused, weights, flops_done, self.spent.churn, self.spent.latency] {
            hasher.update(&number.to_bits().to_le_bytes());
        }
        for count in [self.joined, self.left, self.died] {
            hasher.update(&count.to_le_bytes());
        }
    }

    /// A tick is over.
    pub fn pass(&mut self, view: &View<'_>) {
        let done = view.flow.rate * view.span_s;
        let stale = self.staleness(view);
        self.count(view, done, &stale);
        self.spend(view, done, &stale);
        self.open = view.flow.open;
        self.still_since = if done > 0.0 { None } else { self.still_since.or(Some(view.now_s - view.span_s)) };
        if view.now_s + 1e-9 >= self.sample_at_s + self.sample_every_s {
            self.close_sample(view);
        }
    }

    /// Own steps between a forward and its gradient's step, over all stages: median, 99th percentile, and the part of the work
    /// of each stage that is beyond the bound.
    fn staleness(&self, view: &View<'_>) -> Stale {
        let mut stale = Stale { p50: 0, p99: 0, refused: vec![0.0; view.pools.len()] };
        if view.flow.rate <= 0.0 {
            return stale;
        }
        // Own steps that a replica makes while it holds a micro-batch; adoptions of rounds count as well.
        let means = view.pools.iter().zip(&view.flow.stages).enumerate().map(|(at, (pool, stage))| {
            let last = at + 1 == view.pools.len();
            let steps = view.flow.rate / f64::from(pool.serving.max(1)) / view.load.per_step;
            let adoptions = view.load.every.map_or(0.0, |every| calibrated::ROUNDS_A_PERIOD / every);
            // The last stage runs forward and backward in one breath.
            if last { 0.0 } else { (stage.held - 0.5 * stage.sojourn).max(0.0) * steps * (1.0 + adoptions) }
        });
        let means: Vec<f64> = means.collect();
        let up_to = |steps: f64| means.iter().map(|mean| part_within(*mean, steps)).sum::<f64>() / means.len() as f64;
        let quantile = |part: f64| (0..10_000u32).find(|steps| up_to(f64::from(*steps)) >= part).unwrap_or(10_000);
        (stale.p50, stale.p99) = (quantile(0.5), quantile(0.99));
        let bound = f64::from(view.load.staleness_bound);
        for (refused, mean) in stale.refused.iter_mut().zip(&means) {
            *refused = 1.0 - part_within(*mean, bound);
        }
        stale
    }

    fn count(&mut self, view: &View<'_>, done: f64, stale: &Stale) {
        let View { load, pools, .. } = view;
        let sums = &mut self.sums;
        sums.completed += done;
        sums.flops_done += done * load.flops();
        sums.flops_useful += done * load.flops();
        sums.staleness_p50 += done * f64::from(stale.p50);
        sums.staleness_p99 += done * f64::from(stale.p99);
        sums.control += done * (TOKEN_BYTES * load.tokens + pools.len() as f64 * calibrated::CONTROL_BYTES);
        for (at, (pool, stage)) in pools.iter().zip(&load.stages).enumerate() {
            sums.activations += done * stage.sends[0] * (1.0 - view.stays[at]);
            let back = at.checked_sub(1).map_or(0.0, |before| view.stays[before]);
            sums.gradients += done * stage.sends[1] * (1.0 - back);
            if pool.serving > 1 {
                let taking_part = done * load.rounds;
                sums.averaging += taking_part * stage.round;
                sums.rounds += taking_part / 2.0;
            }
            let perished = std::mem::take(&mut self.stages[at].perished);
            let refused = done * stale.refused[at];
            sums.perished += perished;
            sums.refused += refused;
            sums.flops_useful -= (perished + refused) * stage.flops;
            let of = &mut self.stages[at];
            // What perished was at work that counts as lost to churn, at the speed of the pool.
            let lost_s = perished * pool.compute();
            self.spent.churn += lost_s;
            self.spent.computing -= lost_s;
            of.replicas_s += f64::from(pool.serving) * view.span_s;
            of.sample_replicas_s += f64::from(pool.serving) * view.span_s;
            of.replicas_min = Some(of.replicas_min.map_or(pool.serving, |min| min.min(pool.serving)));
            of.empty_s += if pool.serving == 0 { view.span_s } else { 0.0 };
        }
    }

    /// Where the time of the devices went in a tick.
    fn spend(&mut self, view: &View<'_>, done: f64, stale: &Stale) {
        let weakest = view.flow.stages.iter().map(|stage| stage.could).fold(f64::INFINITY, f64::min);
        let all_used: f64 = view.flow.stages.iter().map(|stage| stage.used).sum();
        let others = (view.pools.len() as f64 - 1.0).max(1.0);
        for (at, (pool, stage)) in view.pools.iter().zip(&view.flow.stages).enumerate() {
            let (sum, used) = (&pool.sum, stage.used.min(1.0));
            let there = sum.share();
            let busy = used * sum.computes();
            let refused = done * stale.refused[at] * pool.compute() / view.span_s;
            // The uplink sends while the device waits: as if the two knew nothing of each other below full load.
            let sending = used * sum.sends();
            let upload = (sending - used * used * sum.both()).max(0.0);
            let download = (used * sum.starved()).max(0.0);
            let rest = (there - busy - upload - download).max(0.0);
            // Of what is left a pool faster than the weakest waits for that one.
            let faster = if stage.could > 0.0 { 1.0 - weakest / stage.could } else { 0.0 };
            let idle = if stage.could > 0.0 { (1.0 - view.flow.rate / stage.could).max(1e-12) } else { 1.0 };
            let imbalance = if there > 0.0 { rest * (faster / idle).clamp(0.0, 1.0) } else { 0.0 };
            let spent = &mut self.spent;
            spent.computing += (busy - refused) * view.span_s;
            spent.staleness += refused * view.span_s;
            spent.upload += upload * view.span_s;
            spent.download += download * view.span_s;
            spent.imbalance += imbalance * view.span_s;
            spent.latency += (rest - imbalance) * view.span_s;
            // What its replicas' peers do for all of their stages, the others as these are in the mean.
            let beside = (all_used - stage.used) / others;
            let all = |whole: f64, own: f64| (stage.used * own + beside * (whole - own)) * view.span_s;
            let of = &mut self.stages[at];
            let at_work = all(sum.device(), sum.computes());
            of.busy_s += at_work;
            of.sample_busy_s += at_work;
            of.sending_s += all(sum.uplink(), sum.sends());
            of.receiving_s += all(sum.downlink(), sum.receives());
        }
        self.spent.churn += f64::from(view.here - view.serving) * view.span_s;
        self.sums.peer_s += f64::from(view.here) * view.span_s;
    }

    /// What was computed again since replicas died.
    pub fn again(&mut self, micro_batches: f64, flops: f64, seconds_at_device: f64) {
        self.sums.resent += micro_batches;
        self.sums.flops_done += calibrated::REDONE * micro_batches * flops;
        self.spent.churn += calibrated::REDONE * micro_batches * seconds_at_device;
        self.spent.latency -= calibrated::REDONE * micro_batches * seconds_at_device;
    }

    fn close_sample(&mut self, view: &View<'_>) {
        let (sums, before) = (self.sums, self.sample);
        let [completed, flops, useful] = [
            sums.completed - before.completed,
            sums.flops_done - before.flops_done,
            sums.flops_useful - before.flops_useful,
        ];
        let mean = |now: f64, then: f64| if completed > 0.0 { ((now - then) / completed).round() as u32 } else { 0 };
        let busy = |stage: &StageSums| (stage.sample_busy_s / stage.sample_replicas_s.max(1e-9)).min(1.0) as f32;
        self.series.push(Sample {
            at_s: view.now_s,
            for_s: view.now_s - self.sample_at_s,
            alive: view.here,
            serving: view.serving,
            tokens: (sums.completed * view.load.tokens) as u64 - (before.completed * view.load.tokens) as u64,
            completed: sums.completed as u64 - before.completed as u64,
            goodput: if flops > 0.0 { (useful / flops).clamp(0.0, 1.0) } else { 1.0 },
            traffic: sums.since(&before),
            staleness_p50: mean(sums.staleness_p50, before.staleness_p50),
            staleness_p99: mean(sums.staleness_p99, before.staleness_p99),
            loss: None,
            disagreement: None,
            replicas: view.pools.iter().map(|pool| pool.serving).collect(),
            busy: self.stages.iter().map(busy).collect(),
        });
        self.sample = sums;
        self.sample_at_s = view.now_s;
        for stage in &mut self.stages {
            (stage.sample_busy_s, stage.sample_replicas_s) = (0.0, 0.0);
        }
    }

    fn shares(&self) -> Shares {
        let Spent { computing, upload, download, imbalance, latency, churn, staleness } = self.spent;
        let parts = [computing, upload, download, imbalance, latency, churn, staleness].map(|part| part.max(0.0));
        let all: f64 = parts.iter().sum();
        let [computing, upload, download, imbalance, latency, churn, staleness] =
            parts.map(|part| if all > 0.0 { part / all } else { 0.0 });
        Shares { computing, upload, download, imbalance, latency, churn, staleness }
    }

    fn totals(&self, load: &Load, last_loss: Option<f64>) -> Totals {
        let sums = &self.sums;
        let completed = sums.completed as u64;
        let of_stages = completed * load.stages.len() as u64;
        let perished = (sums.perished as u64).min(of_stages);
        let refused = (sums.refused as u64).min(of_stages - perished);
        let mean = |sum: f64| if sums.completed > 0.0 { (sum / sums.completed).round() as u32 } else { 0 };
        Totals {
            tokens: (sums.completed * load.tokens) as u64,
            completed,
            applied: of_stages - perished - refused,
            perished,
            refused,
            resent: sums.resent as u64,
            steps: (sums.completed / load.per_step) as u64,
            rounds: sums.rounds as u64,
            staleness_p50: mean(sums.staleness_p50),
            staleness_p99: mean(sums.staleness_p99),
            loss_last: last_loss,
            traffic: sums.traffic(),
            flops_useful: sums.flops_useful.max(0.0),
            flops_done: sums.flops_done,
            peer_s: sums.peer_s,
            joined: self.joined,
            left: self.left,
            died: self.died,
            ..Totals::default()
        }
    }

    fn rows(&self, now_s: f64) -> Vec<StageRow> {
        let row = |(stage, of): (usize, &StageSums)| {
            let part = |time: f64| if of.replicas_s > 0.0 { (time / of.replicas_s).min(1.0) } else { 0.0 };
            StageRow {
                stage: stage as Stage,
                replicas: of.replicas_s / now_s.max(1e-9),
                replicas_min: of.replicas_min.unwrap_or(0),
                busy: part(of.busy_s),
                sending: part(of.sending_s),
                receiving: part(of.receiving_s),
                completed: self.sums.completed as u64,
                empty_s: of.empty_s,
            }
        };
        self.stages.iter().enumerate().map(row).collect()
    }
}

/// Staleness in one tick.
struct Stale {
    p50: u32,
    p99: u32,
    refused: Vec<f64>,
}

/// Part of the micro-batches that are at most `steps` own steps late where they are so many late in the mean: steps come at a
/// moment that has nothing to do with theirs, and the time under way is spread (`calibrated::SPREAD`) as a normal one.
fn part_within(mean: f64, steps: f64) -> f64 {
    if mean <= 0.0 {
        return 1.0;
    }
    // Late by k means that the k+1st step came after it: half a step more in the mean.
    let beyond = (steps + 0.5 - mean) / (calibrated::SPREAD * mean).max(1e-9);
    0.5 * libm::erfc(-beyond / std::f64::consts::SQRT_2)
}

impl Fleet {
    /// What came of it.
    pub fn finish(mut self) -> Run {
        let now_s = seconds(self.now);
        self.settle_all();
        let uses = self.uses();
        let rows = self.peer_rows();
        let peers = self.setup.peers.len();
        let mut remarks = vec![
            "Fleet fidelity: peers are flows and ticks, calibrated against protocol fidelity at 40 and 200 peers."
                .to_string(),
        ];
        if peers > rows.len() {
            remarks.push(format!("Of {peers} peers {} have rows, the others are in the sums.", rows.len()));
        }
        let (all, kept) = (self.books.joined + self.books.left + self.books.died, self.books.changes.len());
        if all > kept as u64 {
            remarks.push(format!("Of {all} comings and goings the first {kept} are listed."));
        }
        remarks.append(&mut self.setup.remarks);
        let mut changes = std::mem::take(&mut self.books.changes);
        changes.iter_mut().for_each(|change| change.peer += self.setup.first);
        let outcome = Outcome {
            schema: SCHEMA,
            skein: env!("CARGO_PKG_VERSION").into(),
            scenario: String::new(),
            question: String::new(),
            text: String::new(),
            seed: self.setup.seed,
            fidelity: Fidelity::Fleet,
            learning: Learning::None,
            config: String::new(),
            digest: format!("b3:{}", self.hasher.finalize().to_hex()),
            peers: peers as u32,
            stages: self.load.stages.len() as u16,
            parameters: self.load.stages.iter().map(|stage| stage.parameters as u64).sum(),
            simulated_s: now_s,
            duration_s: seconds(self.until),
            events: self.events,
            ended: self.stuck.take().unwrap_or(if self.now >= self.until {
                Ended::Finished
            } else {
                Ended::Interrupted
            }),
            totals: self.books.totals(&self.load, None),
            shares: self.books.shares(),
            series: std::mem::take(&mut self.books.series),
            changes,
            planned: Vec::new(),
            rows,
            by_stage: self.books.rows(now_s),
            cost: None,
            properties: Vec::new(),
            violations: Vec::new(),
            remarks,
        };
        Run { outcome, uses }
    }

    /// Everybody's time is booked up to now.
    fn settle_all(&mut self) {
        for peer in 0..self.states.len() as u32 {
            self.settle(peer);
            let now = self.now;
            let state = &mut self.states[peer as usize];
            if state.standing != Standing::Away {
                state.alive_s += seconds(now.saturating_sub(state.came)) as f32;
            }
            if state.is_serving() {
                state.serving_s += seconds(now.saturating_sub(state.since)) as f32;
            }
        }
    }

    fn uses(&self) -> Vec<Use> {
        let names = &self.setup.names.devices;
        let of_name = |name: &String| Use { device: name.clone(), watts: Watts::default(), alive_s: 0.0, busy_s: 0.0 };
        let mut uses: Vec<Use> = names.iter().map(of_name).collect();
        for (peer, state) in self.setup.peers.iter().zip(&self.states) {
            if let Some(of) = uses.get_mut(usize::from(peer.device)) {
                of.alive_s += f64::from(state.alive_s);
                of.busy_s += f64::from(state.busy_s);
            }
        }
        uses
    }

    fn peer_rows(&self) -> Vec<PeerRow> {
        let name = |names: &[String], at: u8| names.get(usize::from(at)).cloned().unwrap_or_default();
        let names = &self.setup.names;
        let pairs = self.setup.peers.iter().zip(&self.states).enumerate().take(self.setup.rows_max);
        pairs
            .map(|(number, (peer, state))| PeerRow {
                peer: self.setup.first + number as u32,
                device: name(&names.devices, peer.device),
                access: name(&names.accesses, peer.access),
                region: name(&names.regions, peer.region),
                stage: state.last.checked_sub(1),
                alive_s: f64::from(state.alive_s),
                serving_s: f64::from(state.serving_s),
                busy_s: f64::from(state.busy_s),
                sending_s: f64::from(state.sending_s),
                sent: (f64::from(state.sent_mb) * 1e6) as u64,
                received: (f64::from(state.received_mb) * 1e6) as u64,
                joined: u32::from(state.joined),
                died: u32::from(state.died),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_is_about_its_mean() {
        assert_eq!(part_within(0.0, 0.0), 1.0);
        assert!((part_within(3.5, 3.0) - 0.5).abs() < 1e-12);
        let parts: Vec<f64> = (0..20).map(|steps| part_within(3.0, f64::from(steps))).collect();
        assert!(parts.is_sorted() && parts[0] < 0.1 && parts[12] > 0.999, "{parts:?}");
    }
}
