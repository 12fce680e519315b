//! What somebody could change in a scenario, and what each change would bring. In: a summary, and the scenario as it ran. Out: changes
//! that this scenario can make, each as it is typed after `--set`, with a guessed factor.
//!
//! A change frees a part of some shares of the time; if nothing else stood in the way, the same work would be done in what is left,
//! a factor 1 / (1 - freed). But no resource can be busy for more than all of the time (the utilisation law): a stage whose workers
//! are busy for the part u carries at most 1 / u as much. The smaller one counts.
//!
//! The parts are what was measured on the scenarios that come with the program, each simulated with the change made: estimates came
//! within a third of what the change brought (`estimates_are_near_what_a_change_brings`). What queues up elsewhere once something is
//! freed they do not know.

use serde::{Deserialize, Serialize};

use super::summary::Summary;
use crate::{
    outcome::{Cause, Shares, StageRow},
    scenario::{Document, Files, Problem, Scenario, check::check},
    world::{access::Accesses, unit},
};

/// What twice the window frees of the time that devices wait for answers or for a slower stage.
const OF_WINDOW: f64 = 0.5;
/// What twice the peers free of computing and of waiting for links: less than half, since the window stays as it is.
const OF_PEERS: f64 = 0.35;
/// What twice the peers free of waiting for a slower stage that is at its limit, as newcomers go where they help most.
const OF_PEERS_AT_SLOW: f64 = 0.5;
/// What twice the speed of a link frees of waiting for it.
const OF_LINK: f64 = 0.5;
/// What half the delay frees of waiting for answers, and what one region does.
const OF_DELAY: f64 = 0.5;
const OF_REGION: f64 = 1.0;

/// One thing that somebody could do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub cause: Cause,
    pub what: String,
    /// As `--set` takes it: `peers=24`.
    #[serde(default)]
    pub set: Vec<String>,
    /// Estimated throughput with it, over that without: 1 is no gain.
    pub gain: f64,
    /// What would limit it then, where that is known.
    pub then: Option<Cause>,
    /// As `gain`, once it was simulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brought: Option<f64>,
}

impl Change {
    /// `--set peers=24`
    pub fn typed(&self) -> String {
        let sets: Vec<String> = self.set.iter().map(|set| format!("--set {}", super::quoted(set))).collect();
        sets.join(" ")
    }
}

/// Every change that this scenario can make and that would bring something, the best first.
pub fn changes(summary: &Summary) -> Vec<Change> {
    let Ok(document) = Document::read(&summary.scenario, &summary.text) else { return Vec::new() };
    let advisor = Advisor { summary, document };
    let all = [advisor.window(), advisor.ways(), advisor.uplinks(), advisor.codec(), advisor.downlinks()];
    let more = [advisor.peers(), advisor.bound()];
    let mut changes: Vec<Change> = all.into_iter().chain(more).flatten().filter(|change| change.gain > 1.005).collect();
    changes.sort_by(|a, b| b.gain.total_cmp(&a.gain).then(a.cause.cmp(&b.cause)));
    changes
}

struct Advisor<'s> {
    summary: &'s Summary,
    document: Document,
}

impl Advisor<'_> {
    fn scenario(&self) -> &Scenario {
        &self.document.scenario
    }

    fn shares(&self) -> &Shares {
        &self.summary.shares
    }

    /// Whether the scenario takes the change: nothing is wrong then that is not wrong now, as files that are not here are, and it is
    /// followed as closely as before.
    fn takes(&self, set: &str) -> bool {
        let mut changed = self.document.clone();
        if changed.set(set).is_err() {
            return false;
        }
        let wrong = |document: &Document| match check(document, &Files::new()) {
            Ok(ground) => (Some(ground.fidelity), Vec::new()),
            Err(refused) => (None, refused.0.into_iter().map(|Problem { key, .. }| key).collect::<Vec<_>>()),
        };
        wrong(&changed) == wrong(&self.document)
    }

    /// `freed`: part of all the time.
    fn change(&self, cause: Cause, what: &str, set: String, freed: f64) -> Option<Change> {
        if !self.takes(&set) {
            return None;
        }
        let free = 1.0 / (1.0 - freed.max(0.0)).max(0.01);
        let (cap, by) = cap(&self.summary.by_stage, cause);
        let (gain, then) = if cap < free { (cap, Some(by)) } else { (free, None) };
        Some(Change { cause, what: what.into(), set: vec![set], gain: gain.max(1.0), then, brought: None })
    }

    /// Whether who waits for an answer gets one: what silent liars hold fills any window.
    fn answers(&self) -> Option<()> {
        (self.summary.totals.lies.withheld == 0).then_some(())
    }

    /// Twice as many micro-batches in flight: by the window of each feeder, or by twice as many feeders where the bound of
    /// staleness allows no more to one.
    fn window(&self) -> Option<Change> {
        self.answers()?;
        let (run, peers) = (&self.scenario().run, &self.scenario().peers);
        let freed = OF_WINDOW * (self.shares().latency + self.shares().imbalance);
        let wider = (run.in_flight_max > 0)
            .then(|| format!("run.in_flight_max={}", 2 * u64::from(run.in_flight_max)))
            .and_then(|set| self.change(Cause::Latency, "a window twice as large", set, freed));
        wider.or_else(|| {
            let set = format!("feeders={}", 2 * u64::from(peers.feeders));
            self.change(Cause::Latency, "twice as many feeders, each with a window of its own", set, freed)
        })
    }

    /// Shorter ways, where the scenario has long ones.
    fn ways(&self) -> Option<Change> {
        self.answers()?;
        let network = &self.scenario().network;
        let latency = self.shares().latency;
        if network.regions != "one" {
            let freed = OF_REGION * latency;
            return self.change(Cause::Latency, "peers of one region", "regions=one".into(), freed);
        }
        let delay = unit::time(&network.delay).ok().filter(|delay| *delay > 1_000_000)?;
        self.change(Cause::Latency, "half the delay", format!("delay={}us", delay / 2_000), OF_DELAY * latency)
    }

    /// Waiting for a slower stage is waiting for its links where they are what makes it slow, as far as they are at their limit.
    fn behind_links(&self) -> f64 {
        let most = |part: fn(&StageRow) -> f64| self.summary.by_stage.iter().map(part).fold(0.0, f64::max);
        let full = most(|row| row.sending.max(row.receiving)).min(1.0);
        if full > most(|row| row.busy) { full * self.shares().imbalance } else { 0.0 }
    }

    fn uplinks(&self) -> Option<Change> {
        let rate = self.rate(&self.scenario().network.up, |access| access.up)?;
        let freed = OF_LINK * (self.shares().upload + self.behind_links());
        self.change(Cause::Upload, "uploads twice as fast", format!("upload={}", bits(2 * rate)), freed)
    }

    fn downlinks(&self) -> Option<Change> {
        let rate = self.rate(&self.scenario().network.down, |access| access.down)?;
        let freed = OF_LINK * self.shares().download;
        self.change(Cause::Download, "downloads twice as fast", format!("download={}", bits(2 * rate)), freed)
    }

    /// What everybody's link carries, bytes a second; nothing where links differ.
    fn rate(&self, set: &str, of: impl Fn(&crate::world::network::Access) -> u64) -> Option<u64> {
        if !set.is_empty() {
            return unit::rate(set).ok();
        }
        let accesses = Accesses::table();
        let mut shares = accesses.shares(&self.scenario().network.access).into_iter().filter(|(_, share)| *share > 0.0);
        let (name, _) = shares.next().filter(|_| shares.next().is_none())?;
        accesses.access.get(&name).map(of)
    }

    /// Fewer bytes: the coarsest codec both ways.
    fn codec(&self) -> Option<Change> {
        let (run, traffic) = (&self.scenario().run, &self.summary.totals.traffic);
        let (forward, backward) = (bits_of(&run.forward), bits_of(&run.backward));
        let saved =
            (traffic.activations as f64) * (1.0 - 4.0 / forward) + (traffic.gradients as f64) * (1.0 - 4.0 / backward);
        let saved = saved / traffic.all().max(1) as f64;
        let (upload, download) = (self.shares().upload, self.shares().download);
        let cause = if upload >= download { Cause::Upload } else { Cause::Download };
        let what = "activations and gradients of 4 bits, if learning bears it";
        if forward <= 4.0 && backward <= 4.0 {
            return None;
        }
        self.change(cause, what, "codec=int4".into(), saved * (upload + download + self.behind_links()))
    }

    /// They bring workers and links.
    fn peers(&self) -> Option<Change> {
        // A trace tells of so many peers as there are.
        if self.scenario().churn.preset.starts_with("trace:") {
            return None;
        }
        let Shares { computing, upload, download, imbalance, .. } = *self.shares();
        let count = 2 * u64::from(self.scenario().peers.count);
        let cause = if imbalance > computing { Cause::Imbalance } else { Cause::Compute };
        let pressed = |row: &StageRow| row.busy.max(row.sending).max(row.receiving).min(1.0);
        let slowest = self.summary.by_stage.iter().map(pressed).fold(0.0, f64::max);
        let freed = OF_PEERS * (computing + upload + download) + OF_PEERS_AT_SLOW * imbalance * slowest;
        self.change(cause, "twice as many peers", format!("peers={count}"), freed)
    }

    fn bound(&self) -> Option<Change> {
        let bound = self.scenario().run.staleness_bound;
        let set = format!("run.staleness_bound={}", 2 * u64::from(bound));
        let what = "a bound of staleness twice as large, if learning bears it";
        self.change(Cause::Staleness, what, set, self.shares().staleness).filter(|_| bound > 0)
    }
}

/// How much more the busiest other resource can carry, and what it is.
fn cap(stages: &[StageRow], cause: Cause) -> (f64, Cause) {
    let most = |part: fn(&StageRow) -> f64| stages.iter().map(part).fold(0.0, f64::max);
    // Peers that are added bring workers and links.
    let resources = match cause {
        Cause::Compute | Cause::Imbalance => Vec::new(),
        _ => vec![
            (most(|row| row.busy), Cause::Compute),
            (most(|row| row.sending) * if cause == Cause::Upload { OF_LINK } else { 1.0 }, Cause::Upload),
            (most(|row| row.receiving) * if cause == Cause::Download { OF_LINK } else { 1.0 }, Cause::Download),
        ],
    };
    resources
        .into_iter()
        .filter(|(part, _)| *part > 0.0)
        .map(|(part, of)| (1.0 / part.min(1.0), of))
        .fold((f64::INFINITY, Cause::Compute), |least, one| if one.0 < least.0 { one } else { least })
}

/// Of a number, as it travels.
fn bits_of(codec: &str) -> f64 {
    match codec {
        "int4" => 4.0,
        "int8" => 8.0,
        "bf16" | "int16" => 16.0,
        _ => 32.0,
    }
}

/// A rate as a scenario writes it, of bytes a second.
fn bits(rate: u64) -> String {
    let bits = rate * 8;
    [(1_000_000_000, "Gbit/s"), (1_000_000, "Mbit/s"), (1_000, "kbit/s")]
        .into_iter()
        .find(|(unit, _)| bits.is_multiple_of(*unit))
        .map_or_else(|| format!("{bits}bit/s"), |(unit, name)| format!("{}{name}", bits / unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ask::{Unwatched, ask},
        report::Told,
        scenario::built_in::named,
    };

    fn summary(document: &Document) -> Summary {
        let outcome = ask(document, &Files::new(), 1, &mut Unwatched).unwrap();
        Summary::of(&[outcome], &Told::default()).unwrap()
    }

    fn scenario(name: &str, sets: &[&str]) -> Document {
        let mut document = Document::read(name, named(name).unwrap()).unwrap();
        sets.iter().for_each(|set| document.set(set).unwrap());
        document
    }

    /// Of scenarios that limit differently: latency, compute, a slower stage, uploads.
    #[test]
    fn estimates_are_near_what_a_change_brings() {
        for (name, sets, expected) in [
            ("five_percent_liars", &["duration=60s"][..], "feeders=2"),
            ("one_straggler", &["duration=3min"], "peers=24"),
            ("first", &["duration=90s"], "run.in_flight_max=24"),
            ("demo", &[], "peers=10"),
        ] {
            let document = scenario(name, sets);
            let before = summary(&document);
            let mut tried = Vec::new();
            for change in changes(&before).into_iter().filter(|change| change.gain > 1.1) {
                let mut changed = document.clone();
                change.set.iter().for_each(|set| changed.set(set).unwrap());
                let brought = summary(&changed).figures.tokens_per_s.mean / before.figures.tokens_per_s.mean;
                let told = change.gain / brought;
                assert!((0.75..1.34).contains(&told), "{name} {}: {} for {brought}", change.typed(), change.gain);
                tried.extend(change.set);
            }
            assert!(tried.iter().any(|set| set == expected), "{name}: {expected} is not among {tried:?}");
        }
    }

    #[test]
    fn nothing_is_advised_that_the_scenario_does_not_have() {
        let typed = |document: &Document| -> Vec<String> {
            changes(&summary(document)).into_iter().flat_map(|change| change.set).collect()
        };
        // Home links differ, all live in one region, and one feeder's window is as large as staleness allows.
        let sets = typed(&scenario("first", &["duration=60s", "run.in_flight_max=0"]));
        assert!(sets.contains(&"feeders=2".to_string()), "{sets:?}");
        assert!(!sets.iter().any(|set| set.starts_with("regions") || set.starts_with("upload")), "{sets:?}");
        assert!(!sets.iter().any(|set| set.starts_with("run.in_flight_max")), "{sets:?}");
        let sets = typed(&scenario("first", &["duration=60s", "regions=aws", "access=fibre"]));
        assert!(sets.contains(&"regions=one".into()) && sets.contains(&"run.in_flight_max=24".into()), "{sets:?}");
        let sets = typed(&scenario("first", &["duration=60s", "upload=5Mbit/s", "codec=int4"]));
        assert!(sets.contains(&"upload=10Mbit/s".into()) && !sets.contains(&"codec=int4".into()), "{sets:?}");
    }

    #[test]
    fn rates_are_written_as_they_are_read() {
        for rate in [1, 125, 2_500_000, 250_000_000] {
            assert_eq!(unit::rate(&bits(rate)), Ok(rate), "{}", bits(rate));
        }
    }
}
