//! A search for a seed at which a property does not hold: each seed draws a scenario of its own (swarm testing: most parameters are
//! drawn, so that each run is extreme in some of them), lets things go wrong in it, and then demands that it recovers.
//!
//! First *safety*: while links are cut, peers die and are suspended, nothing may be lost, counted twice or go backwards. Then
//! *liveness*: the faults are over, everybody who died starts again, and a core of a feeder and a replica of every stage is
//! connected: every stage has to step, and every micro-batch that was begun has to come to an end.
//!
//! Everybody is honest here. A peer that takes work and never answers can hold a run up, which no property forbids yet.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skein_pipeline::peer::io::Command;
use skein_protocol::{event::Event, hash};

use crate::{
    ask::Live,
    checker::{Checker, Findings, Given, Line, Property},
    driver::{Fault, Said, Simulation},
    engine::SECOND,
    scenario::{Document, Files, Scenario, expand},
    world::adversary::Citizen,
};

/// Faults begin within this.
const TROUBLE: u64 = 60;
/// They are over by then.
const CALM: u64 = 90;
/// A core that is connected steps every stage within this. A newcomer waits up to 20 s for others, and a fetch may have to wait
/// for a donor that is being given up.
const RECOVERS: u64 = 120;
/// What was begun is over within this after the feeder stops.
const ENDS: u64 = 60;
/// Every so many seeds the history is made twice.
const TWICE: u64 = 4;

/// Properties that are looked at.
pub const LOOKED_AT: [Property; 13] = {
    use Property::*;
    [P0, P1, P2, P3, P4, P5, P6, P7, P9, P10, P12, P13, P18]
};

/// What of a drawn scenario is read first, on one line: the core that stays connected, and what goes wrong.
pub fn in_short(text: &str) -> String {
    let Ok(document) = Document::read("drawn", text) else { return "cannot be read".into() };
    let Scenario { run, peers, network, faults, .. } = &document.scenario;
    let troubles: Vec<String> = faults
        .iter()
        .map(|fault| format!("{} of {} at {} for {}", fault.what.name(), fault.peers, fault.at, fault.lasts))
        .collect();
    let names = |shares: &std::collections::BTreeMap<String, f64>| shares.keys().cloned().collect::<Vec<_>>().join("+");
    format!(
        "{} stages, {} peers ({}, {}, {}), {} a step, bound {}, rounds every {}, {}; {}; core: the feeder and a replica \
         of each of stages 0 to {}",
        run.stages,
        peers.count,
        names(&peers.devices),
        names(&network.access),
        network.regions,
        run.micro_batches_per_step,
        run.staleness_bound,
        run.averaging_every,
        run.forward,
        if troubles.is_empty() { "no fault".into() } else { troubles.join(", ") },
        run.stages.saturating_sub(1)
    )
}

/// What a seed showed.
#[derive(Clone, Debug)]
pub struct Found {
    pub seed: u64,
    /// The scenario that was drawn.
    pub text: String,
    pub digest: String,
    pub events: u64,
    pub broken: Vec<(Property, String)>,
}

/// Draws the scenario of a seed and looks at it; nothing where `go_on`, which is asked after each second of simulated time, said
/// no.
pub fn look(seed: u64, go_on: &dyn Fn() -> bool) -> Option<Found> {
    let text = drawn(seed);
    let mut found = live(seed, &text, go_on)?;
    if seed.is_multiple_of(TWICE) {
        let again = live(seed, &text, go_on)?;
        if (again.digest.as_str(), again.events) != (found.digest.as_str(), found.events) {
            let what = format!("{} and {} of one seed", found.digest, again.digest);
            found.broken.push((Property::P18, what));
        }
    }
    Some(found)
}

/// Runs in steps of a second; nothing where it shall not go on.
fn run(sim: &mut Simulation<Citizen>, seconds: u64, go_on: &dyn Fn() -> bool) -> Option<()> {
    for _ in 0..seconds {
        sim.run_for(Duration::from_secs(1));
        if !go_on() {
            return None;
        }
    }
    Some(())
}

fn live(seed: u64, text: &str, go_on: &dyn Fn() -> bool) -> Option<Found> {
    let mut found = Found { seed, text: text.into(), digest: String::new(), events: 0, broken: Vec::new() };
    let document = Document::read("drawn", text);
    let world = document.and_then(|document| expand(&document, &Files::new(), seed));
    let world = match world {
        Ok(world) => world,
        Err(refused) => {
            found.broken.push((Property::P12, format!("the scenario that was drawn is refused: {refused}")));
            return Some(found);
        }
    };
    let given = Given::of(&world.setup.manifest, Vec::new());
    let stages = world.setup.manifest.stages.count;
    let Live { mut sim, .. } = Live::of(world);
    let mut checker = Checker::new(&given);

    run(&mut sim, CALM, go_on)?;
    for peer in 0..sim.peers() {
        sim.act(Fault::Start(peer));
    }
    hear(&mut sim, &mut checker, |_| {});
    let mut stepped = BTreeSet::new();
    run(&mut sim, RECOVERS, go_on)?;
    hear(&mut sim, &mut checker, |line| {
        if let Event::Stepped { stage, .. } = &line.record.event
            && line.at > (CALM + RECOVERS / 2) * SECOND
        {
            stepped.insert(*stage);
        }
    });
    if let Some(stage) = (0..stages).find(|stage| !stepped.contains(stage)) {
        let what = format!("stage {stage} made no step in the last {} s of {RECOVERS} s without a fault", RECOVERS / 2);
        found.broken.push((Property::P12, what));
    }
    for peer in 0..sim.peers() {
        sim.command(peer, Command::StopFeeding);
    }
    run(&mut sim, ENDS, go_on)?;
    hear(&mut sim, &mut checker, |_| {});
    if let Some((at, id)) = checker.open().first() {
        let what = format!("{id}, begun at {:.3} s, is open {ENDS} s after the feeder stopped", *at as f64 / 1e9);
        found.broken.push((Property::P13, what));
    }
    found.broken.extend(checker.finish().broken.into_iter().map(|broken| (broken.property, broken.what)));
    found.broken.extend(sim.wrongs().into_iter().take(Findings::MOST));
    (found.digest, found.events) = (sim.digest().to_string(), sim.happenings());
    Some(found)
}

/// Gives the checker what was said since the last time, and each line to `each`.
fn hear(sim: &mut Simulation<Citizen>, checker: &mut Checker, mut each: impl FnMut(&Line)) {
    for said in sim.take_said() {
        match said {
            Said::Killed(kill) => checker.on_kill(kill),
            Said::Line(line) => {
                checker.on_line(&line);
                each(&line);
            }
        }
    }
}

/// A scenario as a text, so that whoever is shown it can run it and change it.
pub fn drawn(seed: u64) -> String {
    let mut rng = ChaCha8Rng::from_seed(hash::keyed("skein search 1", &[&seed.to_le_bytes()]).0);
    let mut pick = |least: u32, most: u32| rng.random_range(least..=most);
    let stages = pick(2, 5);
    let replicas = pick(1, 4);
    let count = stages * replicas + pick(0, 2);
    let per_step = pick(2, 8);
    // One in six in lock-step, where the window is the step and there are no rounds.
    let bound = [0, 2, 3, 4, 5, 6][pick(0, 5) as usize];
    let every = if bound == 0 { 0 } else { [0, 3, 5, 10][pick(0, 3) as usize] };
    let mut text = format!(
        "question = \"What goes wrong with seed {seed}?\"\n\n[run]\n\
         model = {{ hidden = 64, layers = {layers}, heads = 4, ffn = 128, vocab = 256, context = 128 }}\n\
         stages = {stages}\nsequence = 64\nmicro_batch = {batch}\nmicro_batches_per_step = {per_step}\n\
         in_flight_max = {window}\nstaleness_bound = {bound}\naveraging_every = {every}\nforward = \"{forward}\"\n\
         checkpoint_every = {checkpoint}\n",
        layers = stages + pick(0, 3),
        batch = pick(1, 4),
        window = match bound {
            0 => per_step,
            _ => pick(stages + 1, (bound * per_step).max(stages + 2)).min(bound * per_step),
        },
        every = every,
        forward = ["f32", "bf16", "int8"][pick(0, 2) as usize],
        checkpoint = pick(every.max(3), 30),
    );
    let devices = ["core = 1.0", "core = 0.7, laptop = 0.3", "desktop = 0.5, laptop = 0.5"][pick(0, 2) as usize];
    let _ = write!(
        text,
        "\n[peers]\ncount = {count}\ndevices = {{ {devices} }}\nplaces = \"{}\"\narrive_within = \"{} s\"\n",
        ["planned", "even"][pick(0, 1) as usize],
        [0, 5, 30][pick(0, 2) as usize],
    );
    let access = ["home = 1.0", "loopback = 1.0", "dsl = 0.5, fibre = 0.5", "datacenter = 1.0"][pick(0, 3) as usize];
    let _ = write!(
        text,
        "\n[network]\naccess = {{ {access} }}\nregions = \"{}\"\nrelayed = {}\n",
        ["one", "population"][pick(0, 1) as usize],
        ["0.0", "0.0", "0.3"][pick(0, 2) as usize],
    );
    for _ in 0..pick(0, 5) {
        let what = [
            "die",
            "restart",
            "restart",
            "leave",
            "crowd",
            "partition",
            "mute",
            "swizzle",
            "slow",
            "pause",
            "disk_torn",
            "disk_full",
            "latency",
        ][pick(0, 12) as usize];
        let _ = write!(
            text,
            "\n[[fault]]\nat = \"{} s\"\nwhat = \"{what}\"\npeers = {}\nlasts = \"{} s\"\nfactor = {}\n",
            pick(5, TROUBLE as u32),
            pick(1, (count / 2).max(1)),
            pick(1, (CALM - TROUBLE - 5) as u32),
            if what == "latency" { "20.0" } else { "0.1" },
        );
    }
    let duration = CALM + RECOVERS + ENDS;
    let _ = write!(text, "\n[simulate]\nduration = \"{duration} s\"\nfidelity = \"protocol\"\nseed = {seed}\n");
    text
}
