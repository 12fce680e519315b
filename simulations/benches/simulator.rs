//! How fast the simulator is: peers at protocol fidelity, links that share, a fleet. `cargo bench -p skein-simulations`; `skein bench
//! simulate` says the same of larger worlds, with the machine.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skein_protocol::Lane;
use skein_simulations::{
    ask::{Unwatched, ask},
    fleet::{Fleet, Setup},
    scenario::{Document, Files, built_in, expand},
    world::network::{Flows, Sharing, flows::EQUAL},
};

fn scenario(name: &str, changes: &[&str]) -> Document {
    let (_, text) = built_in().iter().find(|(known, _)| *known == name).expect("it is built in");
    let mut document = Document::read(name, text).expect("built-in scenarios are valid");
    for change in changes {
        document.set(change).expect("so are these changes");
    }
    document
}

/// Facts that peers handle, a second.
fn protocol(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("protocol");
    group.sample_size(10);
    for (peers, change) in [(16, "peers=16"), (64, "peers=64")] {
        let document = scenario("home_upload", &[change, "duration=20s", "fidelity=protocol", "learning=none"]);
        let run = || ask(&document, &Files::new(), 1, &mut Unwatched).expect("it runs").events;
        group.throughput(Throughput::Elements(run()));
        group.bench_function(format!("{peers} peers, 20 s"), |bencher| bencher.iter(run));
    }
    group.finish();
}

/// Bodies that leave homes whose links they share, a second.
fn links(criterion: &mut Criterion) {
    const BODIES: u64 = 10_000;
    let mut group = criterion.benchmark_group("links");
    group.sample_size(10).throughput(Throughput::Elements(BODIES));
    for (peers, sharing, name) in [(1_000, Sharing::Exact, "exactly"), (10_000, Sharing::Local, "by both ends")] {
        group.bench_function(format!("{peers} peers, {name}"), |bencher| {
            bencher.iter(|| {
                let mut rng = ChaCha8Rng::seed_from_u64(1);
                let mut flows: Flows<()> = Flows::new(sharing, EQUAL, &vec![(2_500_000, 37_500_000); peers]);
                let mut send = |flows: &mut Flows<()>, now: u64, from: usize| {
                    let (to, bytes) =
                        ((from + rng.random_range(1..peers)) % peers, rng.random_range(1_000_000..3_000_000));
                    flows.begin(now, from, to, Lane::Activation, bytes, (), u64::MAX, 0);
                };
                (0..peers).for_each(|from| send(&mut flows, 0, from));
                let mut left = 0;
                while left < BODIES
                    && let Some(at) = flows.next_at()
                {
                    if let Some(done) = flows.step(at) {
                        left += 1;
                        flows.close(at, done.from, done.to);
                        send(&mut flows, at, done.from);
                    }
                }
            });
        });
    }
    group.finish();
}

/// Peers of a fleet for an hour.
fn fleet(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fleet");
    group.sample_size(10).throughput(Throughput::Elements(10_000));
    let world = expand(&scenario("hundred_thousand", &["peers=10000", "duration=1h"]), &Files::new(), 1);
    let world = world.expect("it is a world");
    group.bench_function("10,000 peers, 1 h", |bencher| {
        bencher.iter_batched(
            || Fleet::new(Setup::of(&world)),
            |mut fleet| while fleet.step() {},
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, protocol, links, fleet);
criterion_main!(benches);
