//! Fleet fidelity: equal seeds, changes whose effect is known beforehand, and the same swarm at both fidelities.

use std::time::Duration;

use skein_pipeline::model::cost;
use skein_protocol::event::Event;
use skein_simulations::{
    Fault, Plan, Role, Simulation, Small,
    fleet::{
        Feeders, Fleet, Peer, Setup,
        course::{self, Life, Span},
    },
    outcome::{Ended, Outcome},
    worker::modelled::Device,
    world::Access,
};

use crate::common::seconds;

fn small() -> Small {
    Small { in_flight_max: 4096, micro_batches_per_step: 4, staleness_bound: 64, round_every: 5, ..Small::demo(4) }
}

fn peer(number: u32) -> Peer {
    let spread = 0.5 + (number.wrapping_mul(2_654_435_761) >> 16) as f32 / 65_536.0;
    Peer {
        flops: 3e8 * spread,
        up: 4e5,
        down: 4e6,
        delay_us: 10_000,
        memory_mib: room(&small(), 1),
        place: None,
        device: 0,
        access: 0,
        region: 0,
    }
}

/// Memory, MiB, that holds so many stages.
fn room(small: &Small, stages: u32) -> u32 {
    let manifest = small.manifest();
    let largest = (0..small.stages).map(|stage| cost::memory(&manifest, stage).peak()).max().unwrap_or(0);
    (u64::from(stages) * largest).div_ceil(1 << 20) as u32
}

fn hours(n: f64) -> Duration {
    Duration::from_secs_f64(n * 3600.0)
}

/// Homes that come and go within hours.
fn restless(seed: u64, peers: u32) -> Setup {
    let life = Life {
        arrive_within: Some(hours(0.5)),
        stays: Span::Weibull { shape: 0.61, scale_s: 4000.0 },
        away: Span::LogNormal { median_s: 3000.0, sigma: 1.0 },
        warned: 0.5,
        sits: Span::Exponential { mean_s: 600.0 },
        rises: Span::Exponential { mean_s: 3000.0 },
        sits_at_first: 0.2,
    };
    Setup { life, ..Setup::new(seed, small().manifest(), (0..peers).map(peer).collect(), hours(6.0)) }
}

fn outcome(setup: Setup) -> Outcome {
    Fleet::new(setup).run().outcome
}

#[test]
fn equal_seeds_give_equal_digests_and_others_do_not() {
    let one = outcome(restless(1, 300));
    assert_eq!(one, outcome(restless(1, 300)));
    assert_ne!(one.digest, outcome(restless(2, 300)).digest);
    let totals = &one.totals;
    assert!(totals.completed > 10_000 && totals.died > 100 && totals.left > 100 && totals.perished > 0, "{totals:?}");
}

#[test]
fn the_books_of_a_fleet_agree() {
    let one = outcome(restless(3, 300));
    let totals = &one.totals;
    assert_eq!(totals.applied + totals.perished + totals.refused, 4 * totals.completed);
    let sum = |of: fn(&skein_simulations::outcome::Sample) -> u64| one.series.iter().map(of).sum::<u64>();
    assert_eq!((sum(|sample| sample.completed), sum(|sample| sample.tokens)), (totals.completed, totals.tokens));
    let shares = one.shares;
    let all = shares.computing + shares.lost().iter().map(|(cause, _)| shares.of(*cause)).sum::<f64>();
    assert!((all - 1.0).abs() < 1e-9 && shares.computing > 0.1 && shares.churn > 0.0, "{shares:?}");
    assert!((0.5..1.0).contains(&one.goodput()), "{}", one.goodput());
    // What pools say of their devices, and what devices say of themselves.
    let of_rows: f64 = one.rows.iter().map(|row| row.busy_s).sum();
    let of_pools: f64 = one.by_stage.iter().map(|row| row.busy * row.replicas * one.simulated_s).sum();
    assert!((of_rows / of_pools - 1.0).abs() < 0.01, "{of_rows} {of_pools}");
}

#[test]
fn more_bandwidth_is_never_slower() {
    let rate = |times: f32| {
        let mut setup = restless(4, 200);
        // A window that the manifest bounds is the same for all: one that follows a law is smaller where less is under way.
        setup.manifest.train.in_flight_max = 100;
        setup.feeders.count = 4;
        setup.peers.iter_mut().for_each(|peer| {
            peer.up *= times;
            peer.down *= times;
            // Who serves more stages than others is chosen as if it did not, by how fast its links are for one.
            peer.memory_mib = room(&Small { in_flight_max: 100, ..small() }, 1);
        });
        outcome(setup).tokens_per_s()
    };
    let rates = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 10.0].map(rate);
    assert!(rates.is_sorted() && rates[0] < 0.5 * rates[6], "{rates:?}");
}

#[test]
fn everything_twice_as_slow_for_twice_as_long_does_the_same() {
    let run = |times: u32| {
        let life = Life {
            arrive_within: Some(hours(0.5) * times),
            stays: Span::Exponential { mean_s: 4000.0 * f64::from(times) },
            away: Span::Exponential { mean_s: 2000.0 * f64::from(times) },
            ..Life::steady()
        };
        let mut setup = Setup { life, ..restless(5, 300) };
        setup.duration = hours(6.0) * times;
        setup.tick = Some(Duration::from_secs(20) * times);
        setup.feeders.delay_us *= times;
        setup.peers.iter_mut().for_each(|peer| {
            let by = times as f32;
            (peer.flops, peer.up, peer.down) = (peer.flops / by, peer.up / by, peer.down / by);
            peer.delay_us *= times;
        });
        outcome(setup)
    };
    let (once, twice) = (run(1), run(2));
    let ratio = twice.totals.completed as f64 / once.totals.completed as f64;
    // What does not scale: a second to settle, two to repair, the worker's own milliseconds.
    assert!((ratio - 1.0).abs() < 0.01, "{ratio}");
    assert_eq!((once.totals.joined, once.totals.died), (twice.totals.joined, twice.totals.died));
}

#[test]
fn a_peer_that_no_stage_fits_changes_nothing() {
    let with = |also: bool| {
        let mut setup = restless(6, 100);
        setup.peers.extend(also.then(|| Peer { memory_mib: 1, ..peer(100) }));
        outcome(setup)
    };
    let (without, with) = (with(false), with(true));
    assert_eq!((without.totals, without.shares, &without.series), (with.totals, with.shares, &with.series));
    let row = with.rows.last().unwrap();
    assert!(row.alive_s > 0.0 && row.serving_s == 0.0 && row.stage.is_none(), "{row:?}");
}

#[test]
fn peers_in_another_order_are_the_same_fleet() {
    // Nobody comes or goes and all are told their place, so numbers are only names.
    let run = |order: fn(u32) -> u32| {
        let placed = |number: u32| Peer { place: Some((number % 4) as u16), ..peer(number) };
        let peers = (0..100).map(|number| placed(order(number))).collect();
        outcome(Setup::new(1, small().manifest(), peers, hours(1.0)))
    };
    let (one, other) = (run(|number| number), run(|number| 99 - number));
    assert_eq!((one.totals, one.shares, one.series), (other.totals, other.shares, other.series));
    assert!((one.rows[7].busy_s - other.rows[92].busy_s).abs() < 1e-3 * one.rows[7].busy_s);
}

#[test]
fn a_stage_with_nobody_ends_it_with_the_reason() {
    let mut setup = Setup::new(1, small().manifest(), (0..8).map(peer).collect(), hours(10.0));
    // Stage 2 needs a place that nobody takes: all are told where they serve.
    setup.peers.iter_mut().zip([0, 1, 3, 0, 1, 3, 0, 2]).for_each(|(peer, stage)| peer.place = Some(stage));
    setup.changes = vec![course::Change { at: 3_600_000_000_000, peer: 7, what: course::What::Dies }];
    let one = outcome(setup);
    let Ended::Stuck { stage, since_s, why } = &one.ended else { panic!("{:?}", one.ended) };
    assert_eq!(*stage, Some(2), "{why}");
    assert!((3600.0..3800.0).contains(since_s) && one.simulated_s < 4000.0, "{since_s} {}", one.simulated_s);
    assert!(one.totals.completed > 0 && one.totals.perished > 0);
}

#[test]
fn a_crowd_takes_the_stages_alike_and_a_stage_that_died_is_filled() {
    let mut setup = Setup::new(1, small().manifest(), (0..400).map(peer).collect(), hours(2.0));
    let one = outcome(Setup { changes: Vec::new(), ..setup_of(&setup) });
    let counts: Vec<f64> = one.by_stage.iter().map(|row| row.replicas).collect();
    assert!(counts.iter().all(|count| (60.0..140.0).contains(count)), "{counts:?}");
    // All who serve stage 1 die at once, and do not come back.
    let dead: Vec<u32> = one.rows.iter().filter(|row| row.stage == Some(1)).map(|row| row.peer).collect();
    let dies = |peer| course::Change { at: 1_800_000_000_000, peer, what: course::What::Dies };
    setup.changes = dead.into_iter().map(dies).collect();
    let two = outcome(setup);
    assert_eq!(two.ended, Ended::Finished);
    assert!(two.by_stage[1].replicas_min == 0 && two.series.last().unwrap().replicas[1] > 0);
    assert!(two.totals.completed < one.totals.completed && two.series.last().unwrap().completed > 0);
}

#[test]
fn stages_that_a_burst_empties_are_all_filled_by_those_who_are_left() {
    let twelve = Small { in_flight_max: 4096, staleness_bound: 64, ..Small::demo(12) };
    let with_room = |number| Peer { memory_mib: room(&twelve, 1), ..peer(number) };
    let mut setup = Setup::new(1, twelve.manifest(), (0..120).map(with_room).collect(), hours(2.0));
    let one = outcome(setup_of(&setup));
    let dead: Vec<u32> = one.rows.iter().filter(|row| row.stage.is_some_and(|s| s < 8)).map(|row| row.peer).collect();
    assert!((60..100).contains(&dead.len()), "{}", dead.len());
    let dies = |peer| course::Change { at: 1_800_000_000_000, peer, what: course::What::Dies };
    setup.changes = dead.into_iter().map(dies).collect();
    let two = outcome(setup);
    assert_eq!(two.ended, Ended::Finished);
    let back: Vec<f64> = two.by_stage[..8].iter().map(|row| row.empty_s).collect();
    assert!(back.iter().all(|empty_s| *empty_s < 180.0), "{back:?}");
    assert!(two.series.last().unwrap().completed > 0);
}

/// Peers that have room for all four stages.
fn roomy(peers: u32) -> Setup {
    let peer = |number| Peer { memory_mib: room(&small(), 4), ..peer(number) };
    Setup::new(1, small().manifest(), (0..peers).map(peer).collect(), hours(1.0))
}

#[test]
fn who_comes_to_nobody_takes_every_stage_that_fits_and_who_comes_later_takes_one() {
    let mut setup = roomy(100);
    setup.life.arrive_within = Some(hours(0.1));
    let one = outcome(setup_with(&setup, hours(0.2)));
    let counts: Vec<u32> = one.series.last().unwrap().replicas.clone();
    // Four, then two and two, then 97 that take one each.
    assert_eq!(counts.iter().sum::<u32>(), 4 + 2 + 2 + 97, "{counts:?}");
    assert!(counts.iter().all(|count| (20..34).contains(count)), "{counts:?}");
    let all = outcome(roomy(100)).series.last().unwrap().replicas.clone();
    assert_eq!(all, [100; 4], "all come at once");
    // Half of them has room for three of the four.
    let mut some = roomy(100);
    some.peers.iter_mut().step_by(2).for_each(|peer| peer.memory_mib = room(&small(), 3));
    let some = outcome(some).series.last().unwrap().replicas.clone();
    assert_eq!(some.iter().sum::<u32>(), 50 * 4 + 50 * 3, "{some:?}");
}

#[test]
fn a_peer_that_is_much_stronger_than_the_others_takes_more_stages() {
    let replicas = |flops: f32| {
        let mut setup = roomy(5);
        setup.peers.iter_mut().zip(0..4).for_each(|(peer, stage)| peer.place = Some(stage));
        setup.peers[4].flops = flops;
        setup.life.arrive_within = None;
        let comes = |peer| course::Change { at: u64::from(peer / 4) * 60_000_000_000, peer, what: course::What::Comes };
        setup.changes = (0..5).map(comes).collect();
        outcome(setup).series.last().unwrap().replicas.iter().sum::<u32>()
    };
    assert_eq!((replicas(2e8), replicas(1e10)), (4 + 1, 4 + 4));
}

#[test]
fn a_stage_that_died_is_taken_by_those_who_have_room() {
    let mut setup = roomy(60);
    // All are told where they serve but the last ten.
    setup.peers.iter_mut().zip(0..).take(50).for_each(|(peer, number)| peer.place = Some(number % 4));
    let at = |seconds: u64, peer, what| course::Change { at: seconds * 1_000_000_000, peer, what };
    setup.life.arrive_within = None;
    setup.changes = (0..60).map(|peer| at(u64::from(peer >= 50) * 60, peer, course::What::Comes)).collect();
    setup.changes.extend((0..60).filter(|peer| peer % 4 == 1).map(|peer| at(600, peer, course::What::Dies)));
    let one = outcome(setup);
    assert_eq!(one.ended, Ended::Finished);
    assert!(one.by_stage[1].empty_s < 120.0 && one.series.last().unwrap().completed > 0, "{:?}", one.by_stage[1]);
}

#[test]
fn of_a_stage_that_was_taken_late_only_what_came_since_perishes() {
    // Four peers serve a stage each, and a fifth one of them, too, until it takes the stage whose peer dies. Without rounds all
    // that a replica did perishes with it.
    let perished = |dies_s: u64| {
        let manifest = Small { round_every: 0, ..small() }.manifest();
        let mut setup = Setup::new(1, manifest, roomy(5).peers, hours(0.5));
        setup.peers.iter_mut().zip(0..4).for_each(|(peer, stage)| peer.place = Some(stage));
        let at = |seconds: u64, peer, what| course::Change { at: seconds * 1_000_000_000, peer, what };
        setup.life.arrive_within = None;
        setup.changes = (0..5).map(|peer| at(u64::from(peer / 4) * 60, peer, course::What::Comes)).collect();
        setup.changes.extend([at(600, 1, course::What::Dies), at(dies_s, 4, course::What::Dies)]);
        let one = outcome(setup);
        (one.totals.perished as f64, one.by_stage[1].empty_s)
    };
    let ((before, _), (after, empty_s)) = (perished(605), perished(800));
    assert!(empty_s < 1800.0 - 800.0 + 150.0, "it was served meanwhile: {empty_s}");
    assert!(after >= before && after - before < 0.3 * before, "{before} {after}");
}

#[test]
fn stages_of_a_peer_share_its_device_and_are_booked_to_it() {
    let one = outcome(roomy(100));
    let of_rows: f64 = one.rows.iter().map(|row| row.busy_s).sum();
    // A stage's row says how busy the peers of its replicas are, whatever they are busy with.
    for row in &one.by_stage {
        let of_stage = row.busy * row.replicas * one.simulated_s;
        assert!((of_rows / of_stage - 1.0).abs() < 0.01 && row.busy <= 1.0, "{of_rows} {of_stage} {row:?}");
    }
    assert_eq!(one.series.last().unwrap().serving, 100);
    let sent: u64 = one.rows.iter().map(|row| row.sent).sum();
    let traffic = one.totals.traffic;
    let bodies = (traffic.activations + traffic.gradients + traffic.averaging) as f64;
    assert!((sent as f64 / bodies - 1.0).abs() < 0.01, "{sent} {traffic:?}");
    let received: u64 = one.rows.iter().map(|row| row.received).sum();
    assert!((sent as f64 / received as f64 - 1.0).abs() < 1e-3, "{sent} {received}");
}

#[test]
fn a_part_of_the_hops_takes_no_link() {
    let bytes = |peers: u32| {
        let one = outcome(roomy(peers));
        let traffic = one.totals.traffic;
        let sent = one.rows.iter().map(|row| row.sent).sum::<u64>() as f64;
        let all = (traffic.activations + traffic.gradients + traffic.averaging) as f64;
        assert!(peers == 1 || (sent / all - 1.0).abs() < 0.01, "{sent} {all}");
        (traffic.activations + traffic.gradients) as f64 / one.totals.completed as f64
    };
    let crowd = bytes(100);
    // To itself twice rather than to one of eleven others, and in a crowd to one of eight.
    assert!((bytes(12) / crowd - (11.0 / 13.0) / (8.0 / 10.0)).abs() < 0.01, "{crowd}");
    assert_eq!(bytes(1), 0.0, "alone");
}

fn setup_with(setup: &Setup, duration: Duration) -> Setup {
    let life = setup.life;
    Setup { life, ..Setup::new(setup.seed, setup.manifest.clone(), setup.peers.clone(), duration) }
}

fn setup_of(setup: &Setup) -> Setup {
    Setup { ..Setup::new(setup.seed, setup.manifest.clone(), setup.peers.clone(), setup.duration) }
}

// ---- both fidelities -------------------------------------------------------------------------------------------------------

/// A swarm that either fidelity runs: equal links, devices whose speeds lie within `spread` of each other.
#[derive(Clone, Copy, Debug)]
struct Scene {
    small: Small,
    replicas: u32,
    /// Stages that fit the peers, one after the other and again from the first; none: each is told one place.
    rooms: &'static [u32],
    /// Seconds of a micro-batch at the last stage, in the middle of the devices.
    compute: f64,
    /// The fastest device is so many times as fast as the middle, and the slowest as much slower.
    spread: f64,
    /// Bytes a second.
    up: u64,
    delay: Duration,
    /// Replicas that die, evenly spread over the measured time.
    deaths: u32,
    warm: Duration,
    measured: Duration,
    /// At protocol fidelity their mean counts: where peers choose their stages themselves it differs by a tenth.
    seeds: &'static [u64],
}

impl Scene {
    fn flops(&self, replica: u32) -> f64 {
        let manifest = self.small.manifest();
        let slower = (0..self.small.stages).map(|stage| cost::stage_flops(&manifest, stage)).max().unwrap_or(0);
        let place = 2.0 * f64::from(replica) / f64::from(self.replicas.max(2) - 1) - 1.0;
        slower as f64 / self.compute * libm::pow(self.spread, place)
    }

    /// Stage and replica of the peers, without the feeder; what is no place where they choose themselves.
    fn places(&self) -> impl Iterator<Item = (u16, u32)> {
        let replicas = self.replicas;
        (0..self.small.stages).flat_map(move |stage| (0..replicas).map(move |replica| (stage, replica)))
    }

    /// Memory of a peer, MiB.
    fn memory_mib(&self, replica: u32) -> u32 {
        room(&self.small, self.rooms.get(replica as usize % self.rooms.len().max(1)).copied().unwrap_or(1))
    }

    /// Who dies, and when.
    fn deaths(&self) -> impl Iterator<Item = (Duration, u32)> {
        let count = u32::from(self.small.stages) * self.replicas;
        let (deaths, warm, measured) = (self.deaths, self.warm, self.measured);
        (0..deaths).map(move |n| (warm + measured * n / deaths.max(1), (n * 2 + 1) * count / (2 * deaths.max(1))))
    }

    /// What the product's own peers do.
    fn protocol(&self, seed: u64) -> Measured {
        let access = Access { delay: self.delay, jitter: self.delay / 10, up: self.up, down: 10 * self.up };
        let feeder = Plan::new(Role::feeder()).access(Access { up: 1 << 28, down: 1 << 28, ..access });
        let host = |(stage, replica): (u16, u32)| {
            let device = Device { flops: self.flops(replica), noise: 0.05 };
            let role = if self.rooms.is_empty() { Role::host(stage) } else { Role::joiner() };
            let memory = u64::from(self.memory_mib(replica)) << 20;
            Plan { memory, ..Plan::new(role).access(access).device(device).disk(0) }
        };
        let peers = [feeder].into_iter().chain(self.places().map(host)).collect();
        let mut sim = Simulation::new(skein_simulations::Setup::new(seed, self.small.manifest(), peers));
        for (at, peer) in self.deaths() {
            sim.at(at, Fault::Kill(1 + peer as usize));
        }
        sim.run_for(self.warm);
        let seen = sim.lines().len();
        sim.run_for(self.measured);
        let events = || sim.lines()[seen..].iter().map(|line| &line.record.event);
        let completed = events().filter(|event| matches!(event, Event::Completed { .. })).count();
        let late = |event: &Event| match event {
            Event::Added { staleness, .. } => Some(*staleness),
            _ => None,
        };
        let mut late: Vec<u32> = events().filter_map(late).collect();
        late.sort_unstable();
        let quantile = |part: f64| late.get((late.len() as f64 * part) as usize).copied().unwrap_or(0);
        Measured { rate: completed as f64 / self.measured.as_secs_f64(), staleness: [quantile(0.5), quantile(0.99)] }
    }

    /// The same of flows and ticks.
    fn fleet(&self) -> Measured {
        let peers = self.places().map(|(stage, replica)| Peer {
            flops: self.flops(replica) as f32,
            up: self.up as f32,
            down: 10.0 * self.up as f32,
            delay_us: self.delay.as_micros() as u32,
            memory_mib: self.memory_mib(replica),
            place: self.rooms.is_empty().then_some(stage),
            device: 0,
            access: 0,
            region: 0,
        });
        let whole = self.warm + self.measured;
        let mut setup = Setup::new(5, self.small.manifest(), peers.collect(), whole);
        setup.feeders = Feeders { count: 1, up: 268e6, delay_us: self.delay.as_micros() as u32 };
        let dies =
            |(at, peer): (Duration, u32)| course::Change { at: at.as_nanos() as u64, peer, what: course::What::Dies };
        setup.changes = self.deaths().map(dies).collect();
        let outcome = outcome(setup);
        let measured = outcome.series.iter().filter(|sample| sample.at_s > self.warm.as_secs_f64() + 1e-6);
        let (completed, time) =
            measured.fold((0, 0.0), |(n, time), sample| (n + sample.completed, time + sample.for_s));
        let staleness = [outcome.totals.staleness_p50, outcome.totals.staleness_p99];
        Measured { rate: completed as f64 / time, staleness }
    }

    #[track_caller]
    fn compare(&self) {
        let (protocol, fleet) = (self.seeds.iter().map(|seed| self.protocol(*seed)).collect::<Vec<_>>(), self.fleet());
        let mean = protocol.iter().map(|of_seed| of_seed.rate).sum::<f64>() / protocol.len() as f64;
        let gap = fleet.rate / mean - 1.0;
        println!("{self:?}: protocol {protocol:?}, fleet {fleet:?}, {:+.1}%", 100.0 * gap);
        assert!(gap.abs() <= 0.10, "{self:?}: protocol {protocol:?}, fleet {fleet:?}: {gap:+.3}");
        // Own steps are few: one more or less is the rounding.
        let pairs = protocol.iter().flat_map(|of_seed| fleet.staleness.into_iter().zip(of_seed.staleness));
        for (ours, theirs) in pairs {
            assert!(ours.abs_diff(theirs) <= 1 + theirs / 2, "{self:?}: protocol {protocol:?}, fleet {fleet:?}");
        }
    }
}

/// What one fidelity says of a scene.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Micro-batches a second.
    rate: f64,
    /// Median and 99th percentile.
    staleness: [u32; 2],
}

/// Replicas of each of four stages: two hundred peers.
const REPLICAS: u32 = 50;

/// Devices that take four seconds for a micro-batch, behind links that are never the bound, nor is what the manifest allows. It
/// takes minutes until everybody knows how late its partners answer.
fn scene() -> Scene {
    let in_flight_max = 16 * REPLICAS;
    Scene {
        small: Small {
            in_flight_max,
            micro_batches_per_step: 4,
            staleness_bound: 64,
            round_every: 0,
            ..Small::demo(4)
        },
        replicas: REPLICAS,
        rooms: &[],
        compute: 4.0,
        spread: 1.0,
        up: 2_500_000,
        delay: Duration::from_millis(10),
        deaths: 0,
        warm: seconds(320),
        measured: seconds(160),
        seeds: &[5],
    }
}

/// The same of peers that take as many stages as they have room for: in turn so many.
fn several(rooms: &'static [u32]) -> Scene {
    Scene { rooms, seeds: &[4, 5, 6], ..scene() }
}

#[test]
fn a_steady_swarm_is_as_fast_at_either_fidelity() {
    scene().compare();
}

#[test]
fn a_swarm_that_loses_peers_is_as_fast_at_either_fidelity() {
    Scene { deaths: 4 * REPLICAS / 5, ..scene() }.compare();
}

#[test]
fn a_swarm_whose_peers_serve_every_stage_is_as_fast_at_either_fidelity() {
    several(&[4]).compare();
}

#[test]
fn a_swarm_whose_peers_serve_two_stages_each_is_as_fast_at_either_fidelity() {
    several(&[2]).compare();
}

#[test]
fn a_swarm_of_peers_that_hold_one_stage_or_all_is_as_fast_at_either_fidelity() {
    several(&[1, 4]).compare();
}

#[test]
fn a_swarm_whose_peers_serve_every_stage_behind_slow_links_is_as_fast_at_either_fidelity() {
    Scene { compute: 0.1, up: 200_000, ..several(&[4]) }.compare();
}
