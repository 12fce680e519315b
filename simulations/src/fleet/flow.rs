//! One tick of a fleet: what the pipeline completes as it stands, and what that takes of everybody.

use super::{
    Fleet, calibrated,
    law::{self, Station, Windows},
    seconds,
};
use crate::engine::Time;

/// The pipeline during one tick.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    /// Micro-batches a second.
    pub rate: f64,
    /// How many are under way.
    pub open: f64,
    pub stages: Vec<StageFlow>,
}

/// A stage during one tick.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StageFlow {
    /// Micro-batches a second that its pool could do.
    pub could: f64,
    /// What one of rate 1 does of it: the pipeline's rate over that of the pool.
    pub used: f64,
    /// Seconds that a micro-batch is at it, and from its arrival until its gradient has left.
    pub sojourn: f64,
    pub held: f64,
}

impl Flow {
    pub fn still(stages: usize) -> Self {
        Flow { rate: 0.0, open: 0.0, stages: vec![StageFlow::default(); stages] }
    }

    /// Micro-batches that a replica of rate 1 of a stage holds.
    pub fn at_rate_1(&self, stage: usize) -> f64 {
        let StageFlow { used, held, .. } = self.stages[stage];
        used * held
    }
}

impl Fleet {
    /// What the pools complete in a tick of `span`.
    pub(super) fn flow_for(&self, span: Time) -> Flow {
        let stages = self.pools.len();
        let span_s = seconds(span).max(1e-9);
        let stations: Vec<Station> = (0..stages).map(|stage| self.station(stage, span_s)).collect();
        let round_trips: Vec<f64> = (0..stages.saturating_sub(1)).map(|stage| 2.0 * self.way_on(stage)).collect();
        let to_first = self.to_feeder(0);
        let delays = self.delays(&round_trips);
        // What died replicas held waits until somebody notices, and fills the windows meanwhile.
        let lost = self.orphans.iter().sum::<f64>() * calibrated::REPAIR_S / span_s;
        let windows = Windows {
            feeders: f64::from(self.setup.feeders.count.max(1)),
            most: self.load.in_flight_max,
            reach: self.load.reach_max,
            spare: self.pools.iter().map(|pool| f64::from(pool.serving.max(1))).sum(),
            lost,
        };
        let law::Runs { rate, sojourns } = law::throughput(&stations, delays, &windows, calibrated::WAITS);
        let rate = rate.min(self.feeding());
        // From a stage's arrival to its gradient: everything behind it, there and back.
        let behind = |stage: usize| {
            sojourns[stage..].iter().sum::<f64>() + round_trips[stage.min(round_trips.len())..].iter().sum::<f64>()
        };
        let of_stage = |stage: usize| StageFlow {
            could: stations[stage].rate,
            used: if rate > 0.0 { rate / self.pools[stage].sum.rate() } else { 0.0 },
            sojourn: sojourns[stage],
            held: behind(stage),
        };
        let open = if rate > 0.0 { rate * (behind(0) + 2.0 * to_first) } else { 0.0 };
        Flow { rate, open, stages: (0..stages).map(of_stage).collect() }
    }

    /// A pool as the law sees it, without what fetches take of its uplinks and what is done again.
    fn station(&self, stage: usize, span_s: f64) -> Station {
        let pool = &self.pools[stage];
        let fetched = f64::from(pool.fetching) * self.fetch_rate(stage);
        let taken = (fetched / pool.sum.up().max(1.0)).min(1.0 - calibrated::FETCH_SHARE);
        let again = calibrated::REDONE * self.orphans[stage] / span_s;
        Station {
            rate: (pool.sum.rate() - taken * pool.sum.slowed() - again).max(0.0),
            claim: pool.sum.claim(),
            whole: pool.sum.whole(),
            slowest: pool.slowest(),
            compute: pool.compute(),
            sends: pool.sends(),
            ways: self.ways(stage),
            uneven: self.uneven(stage),
        }
    }

    /// Seconds of a micro-batch in which it is only on its way: an id and a loss between the feeder and the first stage, a body
    /// there and one back between stages, the labels; and a stage passes on only what the one before has confirmed, which takes
    /// a round trip beside its forward.
    fn delays(&self, round_trips: &[f64]) -> f64 {
        let last = self.pools.len() - 1;
        let (first, labels) = (2.0 * self.to_feeder(0), 2.0 * self.to_feeder(last));
        let confirmed: f64 = (0..last)
            .map(|stage| {
                let round_trip = if stage == 0 { first } else { round_trips[stage - 1] };
                (round_trip - self.load.forward(stage as u16, self.pools[stage].compute())).max(0.0)
            })
            .sum();
        first + labels + round_trips.iter().sum::<f64>() + confirmed
    }

    /// Seconds one way from a stage to the next, in the mean: none where that is at the same peer.
    fn way_on(&self, stage: usize) -> f64 {
        self.way(stage, stage + 1) * (1.0 - self.stays_in_all(stage))
    }

    /// Seconds one way between replicas of two stages, in the mean.
    fn way(&self, from: usize, to: usize) -> f64 {
        let (a, b) = (&self.pools[from], &self.pools[to]);
        let between = &self.setup.between_us;
        let pairs = f64::from(a.serving) * f64::from(b.serving);
        if between.is_empty() || pairs == 0.0 {
            return a.delay() + b.delay();
        }
        let mut sum = 0.0;
        for (row, of_a) in between.iter().zip(&a.regions) {
            for (us, of_b) in row.iter().zip(&b.regions) {
                sum += f64::from(*of_a) * f64::from(*of_b) * f64::from(*us);
            }
        }
        a.delay() + b.delay() + sum / pairs / 1e6
    }

    fn to_feeder(&self, stage: usize) -> f64 {
        self.pools[stage].delay() + f64::from(self.setup.feeders.delay_us) / 1e6
    }

    /// Micro-batches a second that the feeders' uplinks can hand out: ids of tokens, and labels.
    fn feeding(&self) -> f64 {
        let feeders = self.setup.feeders;
        f64::from(feeders.count) * feeders.up / (8.0 * self.load.tokens).max(1.0)
    }

    /// Time passes.
    pub(super) fn pass(&mut self, span: Time) {
        let span_s = seconds(span);
        for (pool, stage) in self.pools.iter_mut().zip(&self.flow.stages) {
            pool.done_at_rate_1 += stage.used * span_s;
        }
        self.now += span;
        let stays: Vec<f64> = (0..self.pools.len()).map(|stage| self.stays_in_all(stage)).collect();
        let view = super::books::View {
            load: &self.load,
            pools: &self.pools,
            flow: &self.flow,
            stays: &stays,
            here: self.here,
            serving: self.serving,
            now_s: seconds(self.now),
            span_s,
        };
        self.books.pass(&view);
    }
}
