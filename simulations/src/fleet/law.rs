//! How many micro-batches a second a pipeline completes. In: its stages, the delays between them, the feeders' windows. Out: a
//! rate, and how long each is at a stage. It knows no peer.
//!
//! The law is that of a closed network of queues. At a part `u` of its rate a stage lets each micro-batch wait for q u / (1 - u)
//! of the time that its slowest part takes, where q = 1 is the law of queues to which work is sent at random and whose service
//! times are exponential (Jackson), and q = 1/2 that with equal service times (Pollaczek and Khinchine). Which q fits the
//! product's routing is measured (`calibrated`).
//!
//! By Little's law the micro-batches under way are the rate times the time of one through all stages. A feeder keeps as many
//! open as would be under way if none waited for a device and the weakest stage never did (`pipeline::flow::window`); what waits
//! for a link counts there as being under way. So with devices as the bound the window is small and a part of every pool waits,
//! while behind slow links it grows until links are busy, or to what the manifest allows.

/// A stage as the law sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Station {
    /// Micro-batches a second that all its replicas do together, with overlap of devices and links; and by their devices alone.
    pub rate: f64,
    pub claim: f64,
    /// Seconds of a micro-batch at one of them: at the slowest of its parts, at the device, on the uplink.
    pub slowest: f64,
    pub compute: f64,
    pub sends: f64,
}

/// What all feeders together keep open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Windows {
    pub feeders: f64,
    /// What a feeder may have open at most.
    pub most: f64,
    /// What each has open beyond its law.
    pub spare: f64,
    /// Micro-batches that are counted as open and wait for somebody to notice that they are lost.
    pub lost: f64,
}

/// Halvings of the interval in which the rate is looked for: beyond the digits of a number.
const HALVINGS: u32 = 60;

impl Station {
    /// Seconds that a micro-batch waits when the pipeline does `rate` a second: for devices and links, and for devices alone.
    fn waits(&self, rate: f64, queue: f64) -> [f64; 2] {
        let wait = |time: f64, most: f64| {
            let load = (rate / most).min(1.0 - 1e-12);
            time * queue * load / (1.0 - load)
        };
        [wait(self.slowest, self.rate), wait(self.compute, self.claim)]
    }

    /// Seconds that a micro-batch is at it.
    pub fn sojourn(&self, rate: f64, queue: f64) -> f64 {
        self.compute + self.sends + self.waits(rate, queue)[0]
    }
}

/// Micro-batches a second; `delays` are seconds of each that nobody works in.
pub fn throughput(stations: &[Station], delays: f64, windows: &Windows, queue: f64) -> f64 {
    let least = |of: fn(&Station) -> f64| stations.iter().map(of).fold(f64::INFINITY, f64::min);
    let (weakest, claimed) = (least(|station| station.rate), least(|station| station.claim));
    if weakest <= 0.0 || !weakest.is_finite() {
        return 0.0;
    }
    let alone: f64 = delays + stations.iter().map(|station| station.compute + station.sends).sum::<f64>();
    // Whether a rate is too low for what is open at it.
    let is_low = |rate: f64| {
        let (mut waits, mut for_links) = (0.0, 0.0);
        for station in stations {
            let [all, for_device] = station.waits(rate, queue);
            waits += all;
            for_links += (all - for_device).max(0.0);
        }
        let law = (alone + for_links) * claimed + windows.spare;
        let open = windows.feeders * law.min(windows.most) - windows.lost;
        rate * (alone + waits) < open
    };
    let (mut low, mut high) = (0.0, weakest);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if is_low(middle) { low = middle } else { high = middle }
    }
    low
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
        Station { rate, claim: rate, slowest: service, compute: service, sends: 0.0 }
    }

    fn most(most: f64) -> Windows {
        Windows { feeders: 1e9, most: most / 1e9, spare: 0.0, lost: 0.0 }
    }

    const BY_LAW: Windows = Windows { feeders: 1.0, most: 1e12, spare: 0.0, lost: 0.0 };

    #[test]
    fn one_open_micro_batch_that_never_waits_takes_the_sum_of_its_times() {
        assert!(near(throughput(&[pool(1e9, 0.2); 2], 0.6, &most(1.0), 1.0), 1.0));
    }

    #[test]
    fn many_open_ones_reach_the_weakest_stage() {
        let stations = [pool(10.0, 1.0), pool(4.0, 1.0)];
        assert!((3.99..4.0).contains(&throughput(&stations, 1.0, &most(1e5), 1.0)));
        assert_eq!(throughput(&[stations[0], pool(0.0, 1.0)], 1.0, &most(1e5), 1.0), 0.0);
    }

    #[test]
    fn as_many_open_as_devices_is_the_closed_form() {
        // n = X s (1 + q u / (1 - u)) with X = u n / s: u (1 + q u / (1 - u)) = 1. q = 1: 1/2. q = 1/2: 2 - sqrt 2.
        let pool = pool(100.0, 2.0);
        assert!(near(throughput(&[pool], 0.0, &BY_LAW, 1.0), 25.0));
        assert!(near(throughput(&[pool], 0.0, &BY_LAW, 0.5), 50.0 * (2.0 - 2f64.sqrt())));
        assert!(near(throughput(&[pool], 0.0, &most(100.0), 0.5), 50.0 * (2.0 - 2f64.sqrt())));
        assert!(near(throughput(&[pool], 0.0, &BY_LAW, 0.0), 50.0));
        // Delays are buffers: the more is on its way, the less a device waits.
        assert!(throughput(&[pool], 8.0, &BY_LAW, 0.5) > 1.2 * throughput(&[pool], 0.0, &BY_LAW, 0.5));
    }

    #[test]
    fn little_holds() {
        let stations = [pool(5.0, 0.5), pool(6.3, 0.9)];
        let rate = throughput(&stations, 0.3, &most(12.0), 0.7);
        let takes: f64 = 0.3 + stations.iter().map(|station| station.sojourn(rate, 0.7)).sum::<f64>();
        assert!(near(rate * takes, 12.0));
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
