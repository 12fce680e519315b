//! The pipeline is full: what one stage sends, and what the next is about to get, travels while both compute. Times of compute,
//! transfer and round trip are exact here, so the part of the time that a worker works can be compared with the law.

use std::time::Duration;

use skein_pipeline::{flow::window::Way, model::cost};
use skein_protocol::event::Event;
use skein_simulations::{Fault, Plan, Setup, Simulation, Small, worker::modelled::Device, world::Access};

use crate::common::{assert_sound, seconds, swarm};

/// Two stages at one peer each.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Milliseconds of the slower stage for one micro-batch, of one body on its link, and from peer to peer and back.
    compute: f64,
    transfer: f64,
    round_trip: f64,
}

struct Measured {
    /// Part of the time that the busier worker worked.
    busy: f64,
    window: u64,
}

const BODY: f64 = 4.0 * 128.0 * 128.0 * 2.0;

fn ms(n: f64) -> Duration {
    Duration::from_secs_f64(n / 1e3)
}

impl Case {
    fn small(&self, in_flight_max: u32) -> Small {
        Small { in_flight_max, micro_batches_per_step: 8, staleness_bound: 8, round_every: 0, ..Small::demo(2) }
    }

    fn run(&self, in_flight_max: u32) -> Measured {
        let manifest = self.small(in_flight_max).manifest();
        let slower = (0..2).map(|stage| cost::stage_flops(&manifest, stage)).max().unwrap_or(0);
        let device = Device { flops: slower as f64 / (self.compute / 1e3), noise: 0.0 };
        // From peer to peer a message passes the access of both.
        let delay = ms(self.round_trip / 4.0);
        let near = Access { delay, jitter: Duration::ZERO, up: 1 << 30, down: 1 << 30 };
        let linked = Access { up: (BODY / (self.transfer / 1e3)) as u64, ..near };
        let plans = swarm(2, 1).into_iter().enumerate();
        // Without a disk nobody holds snapshots of others, which would share the links.
        let access = |i| if i == 0 { near } else { linked };
        let plan = |(i, plan): (usize, Plan)| plan.device(device).disk(0).access(access(i));
        let mut sim = Simulation::new(Setup::new(5, manifest, plans.map(plan).collect()));
        assert!(sim.run_completed(seconds(120), 100), "{self:?}");
        let before = (sim.now(), [sim.busy(1), sim.busy(2)]);
        assert!(sim.run_completed(seconds(240), 300), "{self:?}");
        let time = (sim.now() - before.0).as_secs_f64();
        let busy = [1, 2].map(|peer| (sim.busy(peer) - before.1[peer - 1]).as_secs_f64() / time);
        assert_sound(&sim, &format!("{self:?}"));
        let window = sim.peer(0).and_then(|peer| peer.view().feeding).map_or(0, |feeding| feeding.window);
        Measured { busy: busy[0].max(busy[1]), window }
    }

    /// Both stages compute, a body goes there and another back, and words go thrice between peers and back: the id and the loss
    /// between the feeder and stage 0, both bodies, the labels. Stage 0 passes on only what its feeder has confirmed, which takes
    /// a round trip beside its forward.
    fn way(&self) -> Way {
        let manifest = self.small(1).manifest();
        let flops = [0, 1].map(|stage| cost::stage_flops(&manifest, stage) as f64);
        let both = self.compute * (flops[0] + flops[1]) / flops[0].max(flops[1]);
        let forward = self.compute * flops[0] / flops[0].max(flops[1]) / 3.0;
        let confirmed = (self.round_trip - forward).max(0.0);
        let alone = ms(both + 2.0 * self.transfer + 3.0 * self.round_trip + confirmed);
        Way { alone, busiest: ms(self.compute) }
    }

    /// What no overlap can pass: the slower of computing and sending.
    fn ceiling(&self) -> f64 {
        self.compute / self.compute.max(self.transfer)
    }
}

const CASES: [Case; 5] = [
    Case { compute: 60.0, transfer: 5.0, round_trip: 1.0 },
    Case { compute: 60.0, transfer: 40.0, round_trip: 10.0 },
    Case { compute: 40.0, transfer: 10.0, round_trip: 100.0 },
    Case { compute: 40.0, transfer: 39.0, round_trip: 50.0 },
    Case { compute: 30.0, transfer: 60.0, round_trip: 20.0 },
];

#[test]
fn one_micro_batch_at_a_time_is_the_law_without_overlap() {
    for case in CASES {
        let (measured, law) = (case.run(1).busy, case.way().utilisation(1));
        assert!((measured / law - 1.0).abs() < 0.03, "{case:?}: {measured} for {law}");
    }
}

#[test]
fn with_the_window_of_the_law_the_busiest_stage_hardly_ever_waits() {
    for case in CASES {
        let Measured { busy, window } = case.run(48);
        let floor = case.way().utilisation(1);
        assert!(busy > 0.97 * case.ceiling(), "{case:?}: {busy} of {}", case.ceiling());
        assert!(busy > 1.4 * floor, "{case:?}: {busy}, without overlap {floor}");
        // More would make nothing faster. Where a link is the busiest, what waits for it counts as being under way.
        let fewest = case.way().fewest();
        assert!(window >= fewest && (case.ceiling() < 1.0 || window <= fewest + 3), "{case:?}: {window}, {fewest}");
    }
}

#[test]
fn what_is_stuck_at_one_replica_does_not_stop_the_others_at_once() {
    const OPEN: u32 = 8;
    let small =
        Small { in_flight_max: OPEN, micro_batches_per_step: 8, staleness_bound: 8, round_every: 0, ..Small::demo(1) };
    let manifest = small.manifest();
    let device = Device { flops: cost::stage_flops(&manifest, 0) as f64 / 0.05, noise: 0.0 };
    let plans = swarm(1, 2).into_iter().map(|plan| plan.device(device)).collect();
    let mut sim = Simulation::new(Setup::new(5, manifest, plans));
    assert!(sim.run_completed(seconds(60), 40));
    let completed = |sim: &Simulation| {
        sim.lines().iter().filter(|line| matches!(line.record.event, Event::Completed { .. })).count()
    };
    let before = completed(&sim);
    // It holds some, and will not end the next of them within a minute.
    sim.act(Fault::Speed(2, 1e-3));
    sim.run_for(seconds(20));
    let more = completed(&sim) - before;
    let reach = sim.manifest().reach_max() as usize;
    assert!(more > OPEN as usize && more < reach, "{more} of {reach}");
    sim.act(Fault::Speed(2, 1.0));
    assert!(sim.run_completed(seconds(60), 100), "all goes on");
    assert_sound(&sim, "stuck");
}
