//! How many micro-batches a second a pipeline completes. In: its stages, the delays between them, the feeders' windows. Out: a
//! rate, and how long each is at a stage. It knows no peer.
//!
//! The law is that of a closed network of queues. At a part `u` of its rate a stage lets each micro-batch wait for q u / (1 - u)
//! of the time that its slowest part takes, where q = 1 is the law of queues to which work is sent at random and whose service
//! times are exponential (Jackson), and q = 1/2 that with equal service times (Pollaczek and Khinchine). Which q fits the
//! product's routing is measured (`calibrated`), and so is how much longer than the mean the oldest micro-batch waits: a feeder
//! mints only so far beyond it.
//!
//! Whoever sends knows of a replica what it sent there itself. Where many send to many, and each has little under way, nobody
//! sees that others chose the same: the replicas that many happen to know have h times the mean to do, and wait for
//! q u / (1 - h u). The more ways there are for a micro-batch, the larger is h, up to that of replicas which are chosen blindly.
//! And where replicas have unlike parts of their peers, those whose senders happen to know little else have more to do by what
//! their choices differ.
//!
//! By Little's law the micro-batches under way are the rate times the time of one through all stages. A feeder keeps as many
//! open as would be under way if none waited for a device and the weakest stage never did (`pipeline::flow::window`); what waits
//! for a link counts there as being under way. So with devices as the bound the window is small and a part of every pool waits,
//! while behind slow links it grows until links are busy, or to what the manifest allows.

/// A stage as the law sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Station {
    /// Micro-batches a second of all its replicas together, with overlap of devices and links; and by their devices alone. In
    /// these proportions it has them share the work.
    pub rate: f64,
    pub claim: f64,
    /// The same of devices that do all stages of their peers for each micro-batch.
    pub whole: f64,
    /// Seconds of a micro-batch at one of them: at the slowest of its parts, at the device, on the uplink.
    pub slowest: f64,
    pub compute: f64,
    pub sends: f64,
    /// Pairs of somebody who sends to it and a replica among which that one chooses.
    pub ways: f64,
    /// How unlike what senders choose from is, from one to the next: the standard deviation over the mean.
    pub uneven: f64,
}

/// What all feeders together keep open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Windows {
    pub feeders: f64,
    /// What a feeder may have open at most.
    pub most: f64,
    /// How many ids it may be beyond its oldest one that is not over.
    pub reach: f64,
    /// What each has open beyond its law.
    pub spare: f64,
    /// Micro-batches that are counted as open and wait for somebody to notice that they are lost.
    pub lost: f64,
}

/// How much micro-batches wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Waits {
    /// The q above.
    pub queue: f64,
    /// The oldest one that is not over, against the mean.
    pub oldest: f64,
    /// How much more than the mean the most popular replicas have to do: so many times the root of the ways that are there for
    /// each micro-batch beyond `seen`, and at most.
    pub blind: f64,
    pub seen: f64,
    pub popular: f64,
}

/// Halvings of the interval in which the rate is looked for: beyond the digits of a number.
const HALVINGS: u32 = 60;

impl Station {
    /// Seconds that a micro-batch waits when the pipeline does `rate` a second: for devices and links, and for devices alone.
    /// `h` as above; a body waits at its sender, for a link that nobody else fills.
    fn waits(&self, rate: f64, queue: f64, h: f64) -> [f64; 2] {
        let wait = |time: f64, most: f64, h: f64| {
            // Where nobody is nothing waits.
            let load = if rate > 0.0 { rate / most } else { 0.0 };
            time * queue * load / (1.0 - h * load).max(1e-12)
        };
        let [for_slowest, for_device] = [wait(self.slowest, self.rate, 1.0), wait(self.compute, self.claim, 1.0)];
        let of_device = wait(self.compute, self.claim, h);
        [of_device + (for_slowest - for_device).max(0.0), of_device]
    }

    /// Seconds that a micro-batch is at it.
    fn sojourn(&self, rate: f64, queue: f64, h: f64) -> f64 {
        self.compute + self.sends + self.waits(rate, queue, h)[0]
    }
}

/// What a pipeline does.
#[derive(Clone, Debug, PartialEq)]
pub struct Runs {
    /// Micro-batches a second.
    pub rate: f64,
    /// Seconds that one is at each stage.
    pub sojourns: Vec<f64>,
}

/// `delays` are seconds of each micro-batch that nobody works in.
pub fn throughput(stations: &[Station], delays: f64, windows: &Windows, waits: Waits) -> Runs {
    let seeing = vec![1.0; stations.len()];
    let (_, open) = solve(stations, delays, windows, waits, &seeing);
    // In the mean half of what is open is beyond a stage.
    let h = |station: &Station| {
        let for_each = 2.0 * station.ways / open.max(1e-9);
        (1.0 + waits.blind * (for_each - waits.seen).max(0.0).sqrt()).min(waits.popular) * (1.0 + station.uneven)
    };
    let h: Vec<f64> = stations.iter().map(h).collect();
    let (rate, _) = solve(stations, delays, windows, waits, &h);
    let sojourns = stations.iter().zip(h).map(|(station, h)| station.sojourn(rate, waits.queue, h));
    Runs { rate, sojourns: sojourns.collect() }
}

/// Micro-batches a second, and how many are open.
fn solve(stations: &[Station], delays: f64, windows: &Windows, waiting: Waits, h: &[f64]) -> (f64, f64) {
    let least = |of: fn(&Station) -> f64| stations.iter().map(of).fold(f64::INFINITY, f64::min);
    let (weakest, claimed) = (least(|station| station.rate), least(|station| station.whole));
    if weakest <= 0.0 || !weakest.is_finite() {
        return (0.0, 0.0);
    }
    let alone: f64 = delays + stations.iter().map(|station| station.compute + station.sends).sum::<f64>();
    let under_way = |rate: f64| {
        let (mut waits, mut for_links) = (0.0, 0.0);
        for (station, h) in stations.iter().zip(h) {
            let [all, for_device] = station.waits(rate, waiting.queue, *h);
            waits += all;
            for_links += all - for_device;
        }
        (waits, for_links)
    };
    // Whether a rate is too low for what is open at it.
    let is_low = |rate: f64| {
        let (waits, for_links) = under_way(rate);
        let law = (alone + for_links) * claimed + windows.spare;
        let open = windows.feeders * law.min(windows.most) - windows.lost;
        // All that was minted since the oldest one was.
        let minted = rate * (alone + waiting.oldest * waits);
        rate * (alone + waits) < open && minted < windows.feeders * windows.reach - windows.lost
    };
    let (mut low, mut high) = (0.0, weakest);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if is_low(middle) { low = middle } else { high = middle }
    }
    (low, low * (alone + under_way(low).0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 1e-6
    }

    /// A pool of `n` devices, each with a service time.
    fn pool(n: f64, service: f64) -> Station {
        let rate = n / service;
        Station {
            rate,
            claim: rate,
            whole: rate,
            slowest: service,
            compute: service,
            sends: 0.0,
            ways: 0.0,
            uneven: 0.0,
        }
    }

    fn waits(queue: f64) -> Waits {
        Waits { queue, oldest: 2.0, blind: 0.3, seen: 2.0, popular: 2.0 }
    }

    fn throughput(stations: &[Station], delays: f64, windows: &Windows, queue: f64) -> f64 {
        super::throughput(stations, delays, windows, waits(queue)).rate
    }

    fn most(most: f64) -> Windows {
        Windows { feeders: 1e9, most: most / 1e9, reach: 1e12, spare: 0.0, lost: 0.0 }
    }

    const BY_LAW: Windows = Windows { feeders: 1.0, most: 1e12, reach: 1e12, spare: 0.0, lost: 0.0 };

    #[test]
    fn one_open_micro_batch_that_never_waits_takes_the_sum_of_its_times() {
        assert!(near(throughput(&[pool(1e9, 0.2), pool(1e9, 0.2)], 0.6, &most(1.0), 1.0), 1.0));
    }

    #[test]
    fn many_open_ones_reach_the_weakest_stage() {
        let stations = [pool(10.0, 1.0), pool(4.0, 1.0)];
        assert!((3.99..4.0).contains(&throughput(&stations, 1.0, &most(1e5), 1.0)));
        assert_eq!(throughput(&[pool(10.0, 1.0), pool(0.0, 1.0)], 1.0, &most(1e5), 1.0), 0.0);
    }

    #[test]
    fn as_many_open_as_devices_is_the_closed_form() {
        // n = X s (1 + q u / (1 - u)) with X = u n / s: u (1 + q u / (1 - u)) = 1. q = 1: 1/2. q = 1/2: 2 - sqrt 2.
        let pool = [pool(100.0, 2.0)];
        assert!(near(throughput(&pool, 0.0, &BY_LAW, 1.0), 25.0));
        assert!(near(throughput(&pool, 0.0, &BY_LAW, 0.5), 50.0 * (2.0 - 2f64.sqrt())));
        assert!(near(throughput(&pool, 0.0, &most(100.0), 0.5), 50.0 * (2.0 - 2f64.sqrt())));
        assert!(near(throughput(&pool, 0.0, &BY_LAW, 0.0), 50.0));
        // Delays are buffers: the more is on its way, the less a device waits.
        assert!(throughput(&pool, 8.0, &BY_LAW, 0.5) > 1.2 * throughput(&pool, 0.0, &BY_LAW, 0.5));
    }

    #[test]
    fn little_holds() {
        let stations = [pool(5.0, 0.5), pool(6.3, 0.9)];
        let rate = throughput(&stations, 0.3, &most(12.0), 0.7);
        let takes: f64 = 0.3 + stations.iter().map(|station| station.sojourn(rate, 0.7, 1.0)).sum::<f64>();
        assert!(near(rate * takes, 12.0));
    }

    #[test]
    fn a_feeder_that_may_mint_so_far_beyond_its_oldest_waits_for_that_one() {
        // Without any waiting the oldest is like all others; with it, it waits twice as long as the mean.
        let reach = |reach: f64| Windows { reach, ..BY_LAW };
        assert!(near(throughput(&[pool(1e9, 0.2)], 0.6, &reach(8.0), 0.5), 10.0));
        let stations = [pool(10.0, 1.0)];
        let rate = throughput(&stations, 0.6, &reach(12.0), 0.5);
        let waits = stations[0].sojourn(rate, 0.5, 1.0) - 1.0;
        assert!(near(rate * (1.6 + 2.0 * waits), 12.0), "{rate} {waits}");
    }

    #[test]
    fn at_a_stage_of_nobody_nothing_waits() {
        let none = Station { rate: 0.0, claim: 0.0, whole: 0.0, slowest: 0.0, compute: 0.0, ..pool(1.0, 1.0) };
        let runs = super::throughput(&[pool(10.0, 1.0), none], 1.0, &most(5.0), waits(0.5));
        assert_eq!((runs.rate, runs.sojourns), (0.0, vec![1.0, 0.0]));
    }

    #[test]
    fn many_who_send_a_little_to_many_do_not_see_what_others_send() {
        let of = |ways: f64| throughput(&[Station { ways, ..pool(100.0, 1.0) }], 0.0, &most(80.0), 0.5);
        // Two ways for a micro-batch are seen, and more than a dozen are chosen blindly.
        assert!(near(of(40.0), of(0.0)) && of(100.0) < 0.97 * of(0.0) && of(400.0) < 0.9 * of(100.0));
        assert!(near(of(1e3), of(1e6)) && of(1e6) < 50.0, "the most popular one has twice the mean");
        // Where hardly anything is open nobody waits for anybody.
        let few = |ways: f64| throughput(&[Station { ways, ..pool(100.0, 1.0) }], 0.0, &most(5.0), 0.5);
        assert!(few(1e6) > 0.995 * few(0.0));
    }

    #[test]
    fn behind_slow_links_the_window_grows_until_they_are_busy() {
        let by_link = |sends: f64| Station { rate: 50.0 / sends, slowest: sends, sends, ..pool(50.0, 1.0) };
        let rate = throughput(&[by_link(2.0)], 0.1, &BY_LAW, 0.5);
        assert!((24.9..=25.0).contains(&rate), "{rate}");
        // A narrow manifest keeps it from that.
        let narrow = Windows { most: 60.0, ..BY_LAW };
        assert!(throughput(&[by_link(2.0)], 0.1, &narrow, 0.5) < 20.0);
    }

    #[test]
    fn what_is_lost_and_not_noticed_fills_the_window() {
        let rate = |lost: f64| throughput(&[pool(100.0, 2.0)], 0.0, &Windows { lost, ..BY_LAW }, 0.5);
        assert!(rate(10.0) < rate(0.0) && rate(1e9) < 1e-6);
    }
}
