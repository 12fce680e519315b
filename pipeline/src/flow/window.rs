//! How many micro-batches a feeder keeps open: enough that the busiest stage never waits, and no more, since each one beyond
//! makes gradients staler and fills memory, and makes nothing faster.
//!
//! In: how long micro-batches were under way and how long of it they waited for a worker, and the speeds of who serves. Out: a
//! count. It knows no link by itself: what bodies and round trips take is in the time under way.
//!
//! The law is that of a closed queueing network (Denning and Buzen, "The operational analysis of queueing network models", ACM
//! Computing Surveys 10(3), 1978, section 5). With `alone` the time of one micro-batch that never waits (computing, transfers
//! and round trips of every stage, there and back) and `busiest` the time that the busiest station needs for each, `n` open
//! ones complete at a rate of at most min(n / alone, 1 / busiest), so `n = alone / busiest` is where more stop helping. One
//! open micro-batch and one stage are the law that SWARM's measurements follow (Ryabinin et al., "SWARM Parallelism", 2023,
//! table 3): utilisation Tc / (Tc + Tx + RTT).

use std::{collections::BTreeMap, time::Duration};

use skein_protocol::{PeerId, Stage};

/// Micro-batches beyond the law for each replica of each stage: times vary, and who is done must find the next one waiting.
const SPARE: u64 = 1;
/// Micro-batches for each replica of each stage until the law has its numbers: one at work, one that waits.
const FIRST: u64 = 2;
/// Micro-batches that must have come back before the window follows what they took.
const PROVEN: u32 = 8;
/// Weight of the newest micro-batch in the mean of what they take.
const NEWEST: f64 = 1.0 / 16.0;

/// What one micro-batch takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// From the feeder through every stage and back, with nobody before it: computing, transfers, round trips.
    pub alone: Duration,
    /// Of the station that takes longest for each: a stage with all its replicas, or a link.
    pub busiest: Duration,
}

impl Way {
    /// Part of the time, 0 to 1, that the busiest station works with `open` micro-batches under way, if no time varied.
    pub fn utilisation(&self, open: u64) -> f64 {
        (open as f64 * self.busiest.as_secs_f64() / self.alone.max(self.busiest).as_secs_f64()).min(1.0)
    }

    /// The fewest open micro-batches that keep the busiest station at work: ceil(alone / busiest), at least 1.
    pub fn fewest(&self) -> u64 {
        let (alone, busiest) = (self.alone.as_nanos(), self.busiest.as_nanos().max(1));
        u64::try_from(alone.div_ceil(busiest)).unwrap_or(u64::MAX).max(1)
    }
}

/// The window of one feeder.
#[derive(Clone, Debug)]
pub struct Window {
    stages: Stage,
    max: u64,
    back: u32,
    /// Mean seconds of one micro-batch without its waiting.
    alone: f64,
    /// Seconds that the busiest stage needs for each.
    busiest: Option<f64>,
    /// Of all stages.
    replicas: u64,
}

impl Window {
    /// Never more than `max`, which is the manifest's `in_flight_max`.
    pub fn new(stages: Stage, max: u64) -> Self {
        Window { stages, max: max.max(1), back: 0, alone: 0.0, busiest: None, replicas: 0 }
    }

    /// A micro-batch came back: it was under way for so long, and waited for workers for so much of it.
    pub fn on_back(&mut self, under_way: Duration, waited: Duration) {
        // Peers say how long they waited: more than all of it is no answer.
        let waited = if waited < under_way { waited } else { Duration::ZERO };
        let alone = under_way.saturating_sub(waited).as_secs_f64();
        self.alone = if self.back == 0 { alone } else { self.alone + NEWEST * (alone - self.alone) };
        self.back = self.back.saturating_add(1);
    }

    /// Who serves now, with the micro-batches a second that each would do of a stage if it did nothing else (0: unknown).
    pub fn on_serving(&mut self, serving: &BTreeMap<Stage, BTreeMap<PeerId, f64>>) {
        self.busiest = busiest(serving);
        self.replicas = serving.values().map(|peers| peers.len() as u64).sum();
    }

    /// What a micro-batch takes, once enough is known.
    pub fn way(&self) -> Option<Way> {
        let busiest = self.busiest.filter(|_| self.back >= PROVEN)?;
        let alone = Duration::try_from_secs_f64(self.alone).ok()?;
        Some(Way { alone, busiest: Duration::try_from_secs_f64(busiest).ok()? })
    }

    /// Micro-batches that may be open.
    pub fn open_max(&self) -> u64 {
        let stations = self.replicas.max(self.stages.into());
        let open = self.way().map_or(FIRST * stations, |way| way.fewest().saturating_add(SPARE * stations));
        open.min(self.max)
    }
}

/// Seconds between two micro-batches at the slowest stage with all its replicas, as far as speeds are known: a replica without
/// one counts as the mean of its stage, a stage without any not at all, which errs towards more open micro-batches. A peer
/// that serves several stages does all of them for each micro-batch that it has.
fn busiest(serving: &BTreeMap<Stage, BTreeMap<PeerId, f64>>) -> Option<f64> {
    let known = |speed: &f64| speed.is_finite() && *speed > 0.0;
    let mut takes: BTreeMap<PeerId, f64> = BTreeMap::new();
    for (peer, speed) in serving.values().flatten().filter(|(_, speed)| known(speed)) {
        *takes.entry(*peer).or_default() += 1.0 / speed;
    }
    let speed = |peers: &BTreeMap<PeerId, f64>| {
        let speeds: Vec<f64> = peers.keys().filter_map(|peer| takes.get(peer)).map(|takes| 1.0 / takes).collect();
        let mean = speeds.iter().sum::<f64>() / speeds.len().max(1) as f64;
        (mean > 0.0).then_some(mean * peers.len() as f64)
    };
    serving.values().filter_map(speed).min_by(f64::total_cmp).map(|slowest| 1.0 / slowest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: f64) -> Duration {
        Duration::from_secs_f64(n / 1e3)
    }

    #[test]
    fn one_open_micro_batch_is_swarms_law() {
        // SWARM's table: utilisation in percent by round trip, and the compute and transfer that were fitted to it.
        let round_trips = [0.0, 10.0, 50.0, 100.0, 200.0];
        let table = [
            (3.34, 15.3, [18.0, 11.8, 4.88, 2.78, 1.53]),
            (29.4, 64.3, [32.1, 28.9, 20.1, 14.9, 10.1]),
            (235.6, 51.7, [82.1, 79.3, 70.3, 60.2, 48.5]),
            (350.3, 40.8, [89.5, 87.2, 79.5, 71.5, 59.2]),
        ];
        for (compute, transfer, measured) in table {
            for (round_trip, percent) in round_trips.into_iter().zip(measured) {
                let way = Way { alone: ms(compute + transfer + round_trip), busiest: ms(compute) };
                let ours = 100.0 * way.utilisation(1);
                assert!((ours / percent - 1.0).abs() < 0.025, "{compute} {round_trip}: {ours} for {percent}");
            }
        }
    }

    #[test]
    fn the_fewest_keep_the_busiest_at_work_and_one_less_does_not() {
        for (compute, transfer, round_trip) in
            [(30.0, 10.0, 0.0), (30.0, 10.0, 200.0), (3.0, 15.0, 50.0), (5.0, 5.0, 5.0)]
        {
            let way = Way { alone: ms(compute + transfer + round_trip), busiest: ms(f64::max(compute, transfer)) };
            let fewest = way.fewest();
            assert_eq!(way.utilisation(fewest), 1.0, "{way:?}");
            assert!(way.utilisation(fewest - 1) < 1.0, "{way:?}");
        }
        assert_eq!(Way { alone: Duration::ZERO, busiest: Duration::ZERO }.fewest(), 1);
        assert_eq!(Way { alone: Duration::MAX, busiest: Duration::ZERO }.fewest(), u64::MAX);
    }

    fn serving(speeds: &[&[(u8, f64)]]) -> BTreeMap<Stage, BTreeMap<PeerId, f64>> {
        let peers = |of: &&[(u8, f64)]| of.iter().map(|(n, speed)| (PeerId([*n; 32]), *speed)).collect();
        (0..).zip(speeds.iter().map(peers)).collect()
    }

    #[test]
    fn replicas_share_a_stage_and_stages_share_a_peer() {
        let near = |speeds: &[&[(u8, f64)]], expected: Option<f64>| {
            let found = busiest(&serving(speeds));
            let same = match (found, expected) {
                (Some(a), Some(b)) => (a - b).abs() < 1e-9,
                (a, b) => a == b,
            };
            assert!(same, "{speeds:?}: {found:?}");
        };
        near(&[&[(1, 10.0)], &[(2, 5.0)]], Some(0.2));
        near(&[&[(1, 10.0)], &[(2, 5.0), (3, 20.0)]], Some(0.1));
        near(&[&[(1, 10.0)], &[(1, 5.0)]], Some(0.3));
        near(&[&[(1, 10.0), (3, 0.0)], &[(2, 50.0)]], Some(0.05));
        near(&[&[(1, 10.0)], &[(2, 0.0)]], Some(0.1));
        near(&[&[(1, 0.0)], &[]], None);
    }

    #[test]
    fn the_window_follows_what_micro_batches_take_without_their_waiting() {
        let mut window = Window::new(2, 64);
        assert_eq!(window.open_max(), 2 * 2, "nothing is known");
        window.on_serving(&serving(&[&[(1, 20.0)], &[(2, 20.0)]]));
        for _ in 0..PROVEN {
            // 50 ms at each stage and 150 of links; the rest of the second it waited.
            window.on_back(ms(1000.0), ms(750.0));
        }
        assert_eq!(window.open_max(), 5 + 2);
        // A second replica of each stage doubles what can be under way.
        window.on_serving(&serving(&[&[(1, 20.0), (3, 20.0)], &[(2, 20.0), (4, 20.0)]]));
        assert_eq!(window.open_max(), 10 + 4);
        // A slow link, and the manifest's bound.
        for _ in 0..200 {
            window.on_back(ms(5000.0), Duration::ZERO);
        }
        assert_eq!(window.open_max(), 64);
        // Words that do not fit each other.
        for _ in 0..200 {
            window.on_back(ms(1.0), ms(9000.0));
        }
        assert_eq!(window.open_max(), 1 + 4);
        window.on_serving(&BTreeMap::new());
        assert_eq!(window.open_max(), 2 * 2);
    }
}
