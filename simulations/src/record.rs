//! Writes down a simulation at protocol fidelity while it runs. In: the events of its peers and the counters of its world, at
//! every interval. Out: an outcome but for what only the asker knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use skein_pipeline::model::cost;
use skein_protocol::{Manifest, PeerId, Stage, event::Event};

use crate::{
    checker::{Line, Summary, staleness::Counts},
    driver::PeerUse,
    engine::{SECOND, Time},
    outcome::{Came, Change, PeerRow, Sample, Shares, StageRow, Totals, Traffic, Violation},
    report::{counted, span},
};

/// Changes that are written down one by one; beyond that only counted.
const CHANGES: usize = 20_000;
/// Micro-batches for each replica of a stage, after which one without any is left out.
const LEFT_OUT_AFTER: u64 = 10;

/// What is known of a peer while it runs.
#[derive(Clone, Debug, Default)]
struct Known {
    alive: bool,
    serving: BTreeSet<Stage>,
    last_stage: Option<Stage>,
    /// Counters at the beginning of the interval.
    before: PeerUse,
    alive_since: Time,
    lived: Time,
    joined: u32,
    died: u32,
    serving_since: Time,
    /// When it was on the path of something that was completed, for the last time.
    last_path: Option<Time>,
    /// It fetches the state of a stage.
    joining: bool,
}

/// One stage, over all.
#[derive(Clone, Debug, Default)]
struct Pool {
    replicas: u32,
    /// Seconds of all that served, until `since`.
    replica_s: f64,
    since: Time,
    least: Option<u32>,
    empty_since: Option<Time>,
    empty: Time,
    served: f64,
    busy: f64,
    sending: f64,
    receiving: f64,
    waiting_upload: f64,
    waiting_download: f64,
    /// In the interval.
    busy_now: f64,
    served_now: f64,
}

impl Pool {
    /// Before the number of replicas changes.
    fn settle(&mut self, at: Time) {
        self.replica_s += f64::from(self.replicas) * seconds(at - self.since);
        self.since = at;
    }
}

/// Of one interval.
#[derive(Debug, Default)]
struct Interval {
    tokens: u64,
    completed: u64,
    losses: f64,
    added: u64,
    wasted: u64,
    staleness: Counts,
    disagreement: Option<f64>,
}

pub struct Recorder {
    peers: Vec<Known>,
    numbers: BTreeMap<PeerId, usize>,
    pools: Vec<Pool>,
    now: Interval,
    began: Time,
    traffic: Traffic,
    series: Vec<Sample>,
    changes: Vec<Change>,
    joined: u64,
    left: u64,
    died: u64,
    last_completed: Time,
    /// The last tenth of the time that was asked for, and what was completed in it.
    end_begins: Time,
    completed_at_end: u64,
}

impl Recorder {
    pub fn new(manifest: &Manifest, ids: &[PeerId], duration: Time) -> Self {
        Recorder {
            peers: vec![Known::default(); ids.len()],
            numbers: ids.iter().enumerate().map(|(i, id)| (*id, i)).collect(),
            pools: vec![Pool { empty_since: Some(0), ..Pool::default() }; usize::from(manifest.stages.count)],
            now: Interval::default(),
            began: 0,
            traffic: Traffic::default(),
            series: Vec::new(),
            changes: Vec::new(),
            joined: 0,
            left: 0,
            died: 0,
            last_completed: 0,
            end_begins: duration - duration / 10,
            completed_at_end: 0,
        }
    }

    pub fn tokens(&self) -> u64 {
        self.series.iter().map(|sample| sample.tokens).sum::<u64>() + self.now.tokens
    }

    pub fn alive(&self) -> u32 {
        self.peers.iter().filter(|peer| peer.alive).count() as u32
    }

    /// When anything was completed last, or the world began.
    pub fn last_completed(&self) -> Time {
        self.last_completed
    }

    /// Stages that nobody serves, and since when.
    pub fn empty(&self) -> Vec<(Stage, Time)> {
        let empty = |(stage, pool): (usize, &Pool)| Some((stage as Stage, pool.empty_since?));
        self.pools.iter().enumerate().filter_map(empty).collect()
    }

    // ---- what peers say --------------------------------------------------------------------------------------------------

    pub fn on_line(&mut self, line: &Line) {
        let Some(peer) = self.numbers.get(&line.record.peer).copied() else { return };
        let at = line.at;
        match &line.record.event {
            // A fence begins a new incarnation of a process that lives.
            Event::Started { .. } if !self.peers[peer].alive => self.on_join(at, peer),
            Event::Serving { stage, .. } => self.on_serving(at, peer, *stage),
            // Whoever stands by, or fetches anew, does not serve meanwhile.
            Event::StageLeft { stage } => self.on_left_stage(at, peer, *stage),
            Event::Joining { stage, .. } => {
                self.on_left_stage(at, peer, *stage);
                self.peers[peer].joining = true;
            }
            Event::Drained => self.gone(at, peer, Came::Left),
            Event::Completed { loss, tokens, path, .. } => {
                self.last_completed = at;
                if at >= self.end_begins {
                    self.completed_at_end += 1;
                }
                for hop in path {
                    if let Some(peer) = self.numbers.get(&hop.peer) {
                        self.peers[*peer].last_path = Some(at);
                    }
                }
                self.now.completed += 1;
                self.now.tokens += u64::from(*tokens);
                self.now.losses += f64::from(*loss);
            }
            Event::Added { staleness, .. } => {
                self.now.added += 1;
                self.now.staleness.add(*staleness);
            }
            Event::Refused { .. } => self.now.wasted += 1,
            Event::Perished { ids, .. } => self.now.wasted += ids.len() as u64,
            Event::Round { disagreement: Some(apart), .. } => {
                let apart = f64::from(*apart);
                self.now.disagreement = Some(self.now.disagreement.map_or(apart, |most| most.max(apart)));
            }
            _ => {}
        }
    }

    fn change(&mut self, at: Time, peer: usize, what: Came) {
        if self.changes.len() < CHANGES {
            self.changes.push(Change { at_s: seconds(at), peer: peer as u32, what });
        }
    }

    fn on_join(&mut self, at: Time, peer: usize) {
        let known = &mut self.peers[peer];
        (known.alive, known.alive_since, known.joining) = (true, at, false);
        known.joined += 1;
        self.joined += 1;
        self.change(at, peer, Came::Joined);
    }

    /// The process was ended without a word.
    pub fn on_gone(&mut self, at: Time, peer: usize) {
        self.gone(at, peer, Came::Died);
    }

    fn gone(&mut self, at: Time, peer: usize, how: Came) {
        if !self.peers[peer].alive {
            return;
        }
        for stage in self.peers[peer].serving.clone() {
            self.on_left_stage(at, peer, stage);
        }
        let known = &mut self.peers[peer];
        known.alive = false;
        known.lived += at - known.alive_since;
        let died = how == Came::Died;
        known.died += u32::from(died);
        self.died += u64::from(died);
        self.left += u64::from(!died);
        self.change(at, peer, how);
    }

    fn on_serving(&mut self, at: Time, peer: usize, stage: Stage) {
        let known = &mut self.peers[peer];
        known.last_stage = Some(stage);
        known.joining = false;
        if known.serving.is_empty() {
            known.serving_since = at;
        }
        let Some(pool) = self.pools.get_mut(usize::from(stage)).filter(|_| known.serving.insert(stage)) else { return };
        pool.settle(at);
        pool.replicas += 1;
        if let Some(since) = pool.empty_since.take() {
            pool.empty += at - since;
        }
    }

    fn on_left_stage(&mut self, at: Time, peer: usize, stage: Stage) {
        let known = &mut self.peers[peer];
        let Some(pool) = self.pools.get_mut(usize::from(stage)).filter(|_| known.serving.remove(&stage)) else {
            return;
        };
        pool.settle(at);
        pool.replicas -= 1;
        pool.least = Some(pool.least.map_or(pool.replicas, |least| least.min(pool.replicas)));
        if pool.replicas == 0 {
            pool.empty_since = Some(at);
        }
    }

    // ---- intervals -------------------------------------------------------------------------------------------------------

    /// The interval ends: what the world counted of each peer so far.
    pub fn sample(&mut self, at: Time, use_of: impl Fn(usize) -> PeerUse, traffic: Traffic) {
        for peer in 0..self.peers.len() {
            self.count(peer, use_of(peer));
        }
        let now = std::mem::take(&mut self.now);
        let done = now.added + now.wasted;
        self.series.push(Sample {
            at_s: seconds(at),
            for_s: seconds(at - self.began),
            alive: self.alive(),
            serving: self.peers.iter().filter(|peer| !peer.serving.is_empty()).count() as u32,
            tokens: now.tokens,
            completed: now.completed,
            goodput: if done > 0 { 1.0 - (now.wasted as f64 / done as f64).min(1.0) } else { 1.0 },
            traffic: less(traffic, self.traffic),
            staleness_p50: now.staleness.quantile(0.5),
            staleness_p99: now.staleness.quantile(0.99),
            loss: (now.completed > 0).then(|| now.losses / now.completed as f64),
            disagreement: now.disagreement,
            replicas: self.pools.iter().map(|pool| pool.replicas).collect(),
            busy: self.pools.iter().map(|pool| part(pool.busy_now, pool.served_now) as f32).collect(),
        });
        for pool in &mut self.pools {
            (pool.busy_now, pool.served_now) = (0.0, 0.0);
        }
        (self.traffic, self.began) = (traffic, at);
    }

    /// Adds what a peer did in the interval to the pools of the stages that it serves, in equal parts.
    fn count(&mut self, peer: usize, used: PeerUse) {
        let known = &mut self.peers[peer];
        let before = std::mem::replace(&mut known.before, used);
        let stages: Vec<Stage> = if known.serving.is_empty() {
            known.last_stage.into_iter().collect()
        } else {
            known.serving.iter().copied().collect()
        };
        let served = (known.before.serving - before.serving).as_secs_f64();
        for stage in &stages {
            let Some(pool) = self.pools.get_mut(usize::from(*stage)) else { continue };
            let share = |time: Duration| time.as_secs_f64() / stages.len() as f64;
            let busy = share(known.before.busy - before.busy);
            pool.busy_now += busy;
            pool.served_now += served / stages.len() as f64;
            pool.busy += busy;
            pool.served += served / stages.len() as f64;
            pool.sending += share(known.before.up_full - before.up_full);
            pool.receiving += share(known.before.down_full - before.down_full);
            pool.waiting_upload += share(known.before.idle_upload - before.idle_upload);
            pool.waiting_download += share(known.before.idle_download - before.idle_download);
        }
    }

    // ---- the end ---------------------------------------------------------------------------------------------------------

    /// What peers are not doing at the end, though they could. Sentences.
    fn remarks(&self, at: Time) -> Vec<String> {
        let mut remarks = Vec::new();
        let serving: Vec<&Known> = self.peers.iter().filter(|known| !known.serving.is_empty()).collect();
        // With so few for each a replica may be passed over by chance.
        let is_judged = at > self.end_begins
            && self.completed_at_end * self.pools.len() as u64 >= LEFT_OUT_AFTER * serving.len() as u64;
        if is_judged {
            let since = |known: &&&Known| known.last_path.unwrap_or(0).max(known.serving_since);
            let left_out: Vec<Time> =
                serving.iter().filter(|known| since(known) < self.end_begins).map(|known| since(&known)).collect();
            if let Some(last) = left_out.iter().max() {
                remarks.push(format!(
                    "{} of {} that serve had no part in what was completed in the last {}: the feeder does not reach \
                     them, or they are so much slower than others that nothing is sent to them.",
                    left_out.len(),
                    counted(serving.len() as u64, "peer", "peers"),
                    span(seconds(at - last))
                ));
            }
        }
        let fetching = |known: &&Known| known.alive && known.died > 0 && known.joining && known.serving.is_empty();
        let fetching = self.peers.iter().filter(fetching).count() as u64;
        if fetching > 0 {
            remarks.push(format!(
                "{} that came back {} still fetching weights at the end.",
                counted(fetching, "peer", "peers"),
                if fetching == 1 { "was" } else { "were" }
            ));
        }
        remarks
    }

    /// `summary` is what the checkers found in the same events.
    pub fn finish(mut self, at: Time, summary: &Summary, manifest: &Manifest) -> Recorded {
        for known in self.peers.iter_mut().filter(|known| known.alive) {
            known.lived += at - known.alive_since;
        }
        for pool in &mut self.pools {
            pool.settle(at);
            if let Some(since) = pool.empty_since {
                pool.empty += at - since;
            }
        }
        let remarks = self.remarks(at);
        let rows = self.rows();
        let by_stage = self.by_stage(at, summary);
        let shares = self.shares(summary);
        let totals = self.totals(summary, manifest, rows.iter().map(|row| row.alive_s).sum());
        let violations = summary.broken.iter().map(|broken| Violation {
            property: broken.property.to_string(),
            at_s: seconds(broken.at),
            peer: broken.peer.and_then(|peer| self.numbers.get(&peer)).map(|peer| *peer as u32),
            what: broken.what.clone(),
        });
        let violations = violations.collect();
        Recorded { totals, shares, series: self.series, changes: self.changes, rows, by_stage, violations, remarks }
    }

    fn rows(&self) -> Vec<PeerRow> {
        let row = |(peer, known): (usize, &Known)| PeerRow {
            peer: peer as u32,
            stage: known.last_stage,
            alive_s: seconds(known.lived),
            serving_s: known.before.serving.as_secs_f64(),
            busy_s: known.before.busy.as_secs_f64(),
            sending_s: known.before.sending.as_secs_f64(),
            sent: known.before.sent.iter().sum(),
            received: known.before.received.iter().sum(),
            joined: known.joined,
            died: known.died,
            ..PeerRow::default()
        };
        self.peers.iter().enumerate().map(row).collect()
    }

    fn by_stage(&self, at: Time, summary: &Summary) -> Vec<StageRow> {
        let row = |(stage, pool): (usize, &Pool)| StageRow {
            stage: stage as Stage,
            replicas: part(pool.replica_s, seconds(at)),
            replicas_min: pool.least.unwrap_or(pool.replicas),
            busy: part(pool.busy, pool.served),
            sending: part(pool.sending, pool.served),
            receiving: part(pool.receiving, pool.served),
            completed: summary.stages.get(stage).map_or(0, |account| account.completed),
            empty_s: seconds(pool.empty),
        };
        self.pools.iter().enumerate().map(row).collect()
    }

    fn totals(&self, summary: &Summary, manifest: &Manifest, peer_s: f64) -> Totals {
        let flops = |of: &dyn Fn(&crate::checker::once::Account) -> u64| -> f64 {
            let each = summary.stages.iter().enumerate();
            each.map(|(stage, account)| of(account) as f64 * cost::stage_flops(manifest, stage as Stage) as f64).sum()
        };
        let useful = flops(&|account| account.applied + account.pending);
        let wasted = flops(&|account| account.perished + account.refused + account.overlapped);
        let has_loss = summary.completed > 0 && summary.loss_last.is_finite();
        Totals {
            tokens: summary.tokens,
            completed: summary.completed,
            voided: summary.voided,
            applied: summary.applied,
            perished: summary.perished,
            refused: summary.refused,
            pending: summary.pending,
            lost: summary.lost,
            doubled: summary.doubled,
            overlapped: summary.overlapped,
            resent: summary.resent,
            steps: summary.run_steps,
            rounds: summary.rounds,
            rounds_rolled_back: summary.rounds_rolled_back,
            staleness_p50: summary.staleness_at(0.5),
            staleness_p99: summary.staleness_at(0.99),
            loss_first: has_loss.then(|| f64::from(summary.loss_first)),
            loss_last: has_loss.then(|| f64::from(summary.loss_last)),
            loss_reference: None,
            traffic: self.traffic,
            flops_useful: useful,
            flops_done: useful + wasted,
            peer_s,
            joined: self.joined,
            left: self.left,
            died: self.died,
            ..Totals::default()
        }
    }

    /// Where the time of those who serve, or were about to, went.
    ///
    /// Waiting while an uplink is full, the own one or a sender's, is upload; while a downlink is, download. What is left of the
    /// waiting is imbalance as far as the busiest stage is busier than this one, and latency beyond that.
    fn shares(&self, summary: &Summary) -> Shares {
        let helpers = self.peers.iter().filter(|known| known.last_stage.is_some());
        let (lived, served) = helpers.fold((0.0, 0.0), |(lived, served), known| {
            (lived + seconds(known.lived), served + known.before.serving.as_secs_f64())
        });
        let pressed = |pool: &Pool| part(pool.busy.max(pool.sending).max(pool.receiving), pool.served);
        let most = self.pools.iter().map(pressed).fold(0.0, f64::max);
        let mut shares = Shares { churn: (lived - served).max(0.0), ..Shares::default() };
        for (stage, pool) in self.pools.iter().enumerate() {
            let account = summary.stages.get(stage).copied().unwrap_or_default();
            let done = (account.applied + account.pending + account.perished + account.refused).max(1) as f64;
            let busy = pool.busy.min(pool.served);
            let (perished, refused) = (account.perished as f64 / done, account.refused as f64 / done);
            shares.churn += busy * perished;
            shares.staleness += busy * refused;
            shares.computing += busy * (1.0 - perished - refused);
            let mut idle = pool.served - busy;
            let mut take = |wanted: f64| {
                let taken = wanted.clamp(0.0, idle);
                idle -= taken;
                taken
            };
            shares.upload += take(pool.waiting_upload);
            shares.download += take(pool.waiting_download);
            shares.imbalance += take((most - pressed(pool)) * pool.served);
            shares.latency += idle;
        }
        let all = shares.computing
            + shares.upload
            + shares.download
            + shares.imbalance
            + shares.latency
            + shares.churn
            + shares.staleness;
        if all > 0.0 {
            for share in [
                &mut shares.computing,
                &mut shares.upload,
                &mut shares.download,
                &mut shares.imbalance,
                &mut shares.latency,
                &mut shares.churn,
                &mut shares.staleness,
            ] {
                *share /= all;
            }
        }
        shares
    }
}

/// What a recorder has written down.
pub struct Recorded {
    pub totals: Totals,
    pub shares: Shares,
    pub series: Vec<Sample>,
    pub changes: Vec<Change>,
    pub rows: Vec<PeerRow>,
    pub by_stage: Vec<StageRow>,
    pub violations: Vec<Violation>,
    pub remarks: Vec<String>,
}

fn seconds(time: Time) -> f64 {
    time as f64 / SECOND as f64
}

fn part(of: f64, all: f64) -> f64 {
    if all > 0.0 { of / all } else { 0.0 }
}

fn less(all: Traffic, before: Traffic) -> Traffic {
    Traffic {
        activations: all.activations - before.activations,
        gradients: all.gradients - before.gradients,
        averaging: all.averaging - before.averaging,
        weights: all.weights - before.weights,
        control: all.control - before.control,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Small;
    use skein_protocol::event::Record;

    #[test]
    fn a_peer_that_serves_two_stages_is_a_replica_of_each() {
        let (manifest, ids) = (Small::demo(2).manifest(), [PeerId([1; 32])]);
        let mut recorder = Recorder::new(&manifest, &ids, 10 * SECOND);
        let version = |stage| skein_protocol::Version { stage, peer: ids[0], incarnation: 1, round: 0, own_step: 0 };
        let serving = |stage| Event::Serving { stage, version: version(stage) };
        let said = [
            (0, Event::Started { peer: ids[0], incarnation: 1 }),
            (0, serving(0)),
            (0, serving(1)),
            (5 * SECOND, Event::StageLeft { stage: 1 }),
        ];
        for (at, event) in said {
            recorder.on_line(&Line { at, record: Record { at, utc: 0, peer: ids[0], seq: 0, event } });
        }
        let all = 10 * SECOND;
        recorder.sample(
            all,
            |_| PeerUse { serving: Duration::from_secs(10), ..PeerUse::default() },
            Traffic::default(),
        );
        let rows = recorder.finish(all, &Summary::default(), &manifest).by_stage;
        assert_eq!([rows[0].replicas, rows[1].replicas], [1.0, 0.5]);
    }
}
