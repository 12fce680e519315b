//! Asking real peers: every frame and timer of the product, in a modelled world. In: a world. Out: an outcome.

use std::{collections::BTreeMap, time::Duration};

use skein_pipeline::peer::PeerConfig;
use skein_protocol::{Lane, PeerId, event::Event, wire::membership::Seals};

use super::{Far, Watch, blank, seconds};
use crate::{
    checker::{Checker, Findings, Given, Kill, Line, Property},
    driver::{Fault, Said, Simulation},
    engine::{SECOND, Time},
    outcome::{Ended, Lies, Outcome, PeerRow, Traffic, Violation},
    record::{Recorded, Recorder},
    scenario::{Person, World},
    world::adversary::{Citizen, Lie, Withheld},
};

/// Samples of a time series.
const SAMPLES: u64 = 240;
/// Shortest interval between two samples.
const INTERVAL_MIN: Time = SECOND;
/// So often it is asked whether it goes on, in simulated time: between two samples of a long run that may be half a minute.
const PART: Time = 2 * SECOND;
/// With nothing completed for so long, and nobody about to come, a simulation ends.
const STUCK: Time = 30 * 60 * SECOND;

/// Real peers in a modelled world, with its faults planned and its liars among them.
pub struct Live {
    pub sim: Simulation<Citizen>,
    pub people: Vec<Person>,
    pub duration: Time,
    /// When somebody comes, or a trouble ends, for the last time by plan.
    last_coming: Time,
    lie: Option<Lie>,
    withheld: Withheld,
}

impl Live {
    pub fn of(world: World) -> Live {
        let World { setup, faults, people, duration, scenario, troubles, .. } = world;
        let lie = Lie::named(&scenario.adversaries.kind);
        let lies: Vec<Option<Lie>> = people.iter().map(|person| lie.filter(|_| person.liar)).collect();
        let starts = setup.peers.iter().map(|plan| plan.starts.as_nanos() as Time);
        let comings = faults.iter().filter(|(_, fault)| matches!(fault, Fault::Start(_))).map(|(at, _)| *at);
        let endings = troubles.iter().map(|trouble| trouble.until);
        let last_coming = starts.chain(comings).chain(endings).filter(|at| *at <= duration).max().unwrap_or(0);
        let liars: BTreeMap<PeerId, Lie> =
            lies.iter().enumerate().filter_map(|(peer, lie)| Some((setup.key(peer).peer(), (*lie)?))).collect();
        // A signature holds for all or for none.
        let seals = Seals::remembered();
        let withheld = Withheld::default();
        let counted = withheld.clone();
        let make = move |config: PeerConfig, now, utc| {
            let lie = liars.get(&config.key.peer()).copied();
            Citizen::new(config, now, utc, lie, seals.clone()).counting(counted.clone())
        };
        let mut sim = Simulation::with(setup, Box::new(make));
        for (peer, lie) in lies.into_iter().enumerate() {
            if let Some(lie) = lie {
                sim.lie(peer, lie);
            }
        }
        faults.into_iter().for_each(|(at, fault)| sim.at(Duration::from_nanos(at), fault));
        Live { sim, people, duration, last_coming, lie, withheld }
    }
}

/// A run at protocol fidelity.
pub struct Protocol {
    live: Live,
    interval: Time,
    recorder: Recorder,
    checker: Checker,
    lies: Lies,
    /// Violations that were told.
    broken: usize,
    outcome: Outcome,
}

impl Protocol {
    pub fn new(world: World) -> Self {
        let outcome = blank(&world);
        let checker = Checker::new(&Given::of(&world.setup.manifest, Vec::new()));
        let live = Live::of(world);
        let recorder = Recorder::new(live.sim.manifest(), live.sim.ids(), live.duration);
        let interval = (live.duration / SAMPLES).max(INTERVAL_MIN);
        let liars = live.people.iter().filter(|person| person.liar).count() as u64;
        let lies = Lies { peers: liars, kind: live.lie.filter(|_| liars > 0), ..Lies::default() };
        Protocol { live, interval, recorder, checker, lies, broken: 0, outcome }
    }

    pub fn run(mut self, watch: &mut dyn Watch) -> Outcome {
        let mut now = 0;
        let ended = loop {
            let until = (now + self.interval).min(self.live.duration);
            let mut goes_on = true;
            while goes_on && now < until {
                let part = (now + PART).min(until);
                self.live.sim.run_for(Duration::from_nanos(part - now));
                now = part;
                goes_on = now == until || watch.far(&self.far(now));
            }
            self.look(now, watch);
            if !goes_on || !watch.far(&self.far(now)) {
                break Ended::Interrupted;
            }
            if let Some(stuck) = self.stuck(now) {
                break stuck;
            }
            if now >= self.live.duration {
                break Ended::Finished;
            }
        };
        self.finish(now, ended)
    }

    fn far(&self, now: Time) -> Far {
        Far {
            simulated: Duration::from_nanos(now),
            of: Duration::from_nanos(self.live.duration),
            events: self.live.sim.happenings(),
            tokens: self.recorder.tokens(),
            alive: self.recorder.alive(),
        }
    }

    /// Takes what was said in the interval.
    fn look(&mut self, now: Time, watch: &mut dyn Watch) {
        for said in self.live.sim.take_said() {
            let line = match said {
                Said::Killed(kill) => {
                    self.on_kill(kill);
                    continue;
                }
                Said::Line(line) => line,
            };
            self.recorder.on_line(&line);
            self.checker.on_line(&line);
            self.count_lies(&line);
            watch.line(&line, self.live.sim.number(line.record.peer).unwrap_or(usize::MAX));
            let known = std::mem::replace(&mut self.broken, self.checker.broken().len());
            self.checker.broken()[known..].iter().for_each(|broken| watch.broken(broken.property));
        }
        let traffic = Traffic {
            activations: self.live.sim.traffic(Lane::Activation),
            gradients: self.live.sim.traffic(Lane::Gradient),
            averaging: self.live.sim.traffic(Lane::Average),
            weights: self.live.sim.traffic(Lane::Bulk),
            control: self.live.sim.traffic(Lane::Control) + self.live.sim.traffic(Lane::Generation),
        };
        self.recorder.sample(now, |peer| self.live.sim.use_of(peer), traffic);
    }

    fn on_kill(&mut self, kill: Kill) {
        self.checker.on_kill(kill);
        if let Some(peer) = self.live.sim.number(kill.peer) {
            self.recorder.on_gone(kill.at, peer);
        }
    }

    /// Micro-batches of which a liar computed a part, and those that were given up for what they held.
    fn count_lies(&mut self, line: &Line) {
        match &line.record.event {
            Event::Completed { path, .. } => {
                let is_liar = |peer| self.live.sim.number(peer).is_some_and(|peer| self.live.people[peer].liar);
                self.lies.passed += u64::from(path.iter().any(|hop| is_liar(hop.peer)));
            }
            Event::Voided { why, .. } => self.lies.refused += u64::from(why.contains("finite")),
            _ => {}
        }
    }

    /// Whether nothing will ever be completed again, by all that is planned.
    fn stuck(&self, now: Time) -> Option<Ended> {
        let since = self.recorder.last_completed();
        if now.saturating_sub(since.max(self.live.last_coming)) < STUCK {
            return None;
        }
        let empty = self.recorder.empty();
        let (stage, since, why) = match empty.first() {
            Some((stage, at)) => (Some(*stage), *at, format!("nobody serves stage {stage}, and nobody is to come")),
            None => (None, since, "every stage is served, and nothing is completed".to_string()),
        };
        Some(Ended::Stuck { stage, since_s: seconds(since), why })
    }

    fn finish(self, now: Time, ended: Ended) -> Outcome {
        let Protocol { live: Live { sim, people, withheld, .. }, recorder, checker, mut outcome, lies, .. } = self;
        let summary = checker.finish();
        let Recorded { totals, shares, series, changes, rows, by_stage, violations, remarks } =
            recorder.finish(now, &summary, sim.manifest());
        outcome.digest = sim.digest().to_string();
        outcome.events = sim.happenings();
        outcome.simulated_s = seconds(now);
        outcome.ended = ended;
        (outcome.totals, outcome.shares, outcome.series) = (totals, shares, series);
        (outcome.changes, outcome.by_stage, outcome.violations) = (changes, by_stage, violations);
        outcome.rows = rows.into_iter().zip(&people).map(|(row, person)| described(row, person)).collect();
        outcome.properties = LOOKED_AT.iter().map(ToString::to_string).collect();
        outcome.remarks.extend(remarks);
        let wrongs = sim.wrongs().into_iter().take(Findings::MOST).map(|(property, what)| Violation {
            property: property.to_string(),
            at_s: outcome.simulated_s,
            peer: None,
            what,
        });
        outcome.violations.extend(wrongs);
        if !sim.shares_exactly() {
            let remark = "Links are shared by the smaller of the fair shares at both ends, as above 1,000 peers: about 5 % less than they carry.";
            outcome.remarks.push(remark.into());
        }
        outcome.totals.lies = Lies { withheld: withheld.count(), ..lies };
        outcome
    }
}

/// Properties that any run shows.
pub const LOOKED_AT: [Property; 11] = {
    use Property::*;
    [P0, P1, P2, P3, P4, P5, P6, P7, P9, P10, P13]
};

fn described(row: PeerRow, person: &Person) -> PeerRow {
    PeerRow { device: person.device.clone(), access: person.access.clone(), region: person.region.clone(), ..row }
}
