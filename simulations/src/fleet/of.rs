//! The fleet of a scenario's world: the same people and the same course of events, as draws and changes.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Feeders, Names, Owner, Peer, Setup,
    course::{Change, Life, Span, What},
};
use crate::{
    engine::Time,
    scenario::{Person, Trouble, What as Wrong, World},
    world::{churn, network::measured_fill},
};

/// How long an owner uses a machine in the mean, seconds: as the troubles of a scenario have it.
const OWNER_SPELL_S: f64 = 3600.0;
/// Thousandths.
const WHOLE: u16 = 1000;

impl Setup {
    /// What of a world flows and ticks can follow; what they cannot is among the remarks.
    pub fn of(world: &World) -> Self {
        let (feeding, hosting): (Vec<&Person>, Vec<&Person>) = world.people.iter().partition(|person| person.feeds());
        let mut names = Naming::default();
        let fill = measured_fill(world.loss);
        let peers = hosting.iter().map(|person| names.draw(person, fill)).collect();
        let first = feeding.len() as u32;
        let duration = Duration::from_nanos(world.duration);
        let mut setup = Setup::new(world.seed, world.setup.manifest.clone(), peers, duration);
        setup.first = first;
        setup.names = Names { devices: names.devices, accesses: names.accesses, regions: world.regions.names.clone() };
        setup.between_us = between(&world.regions.delay);
        setup.feeders = feeders(&feeding);
        let of = &world.scenario.peers;
        setup.owner = Owner { leaves: of.owner_leaves };
        setup.life = owners(of.owner_busy);
        setup.changes = changes(world, first);
        setup.remarks = remarks(&world.troubles);
        setup
    }
}

/// Numbers for words, in the order in which they are met.
#[derive(Default)]
struct Naming {
    devices: Vec<String>,
    accesses: Vec<String>,
}

/// Machines and accesses beyond so many share the last number.
const NAMES_MAX: usize = 255;

fn number(names: &mut Vec<String>, name: &str) -> u8 {
    let at = names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.into());
        names.len() - 1
    });
    at.min(NAMES_MAX) as u8
}

impl Naming {
    /// `fill`: part of its links' rates that bodies get.
    fn draw(&mut self, person: &Person, fill: f64) -> Peer {
        // A link's jitter lengthens the way by half of it in the mean.
        let delay = person.link.delay + person.link.jitter / 2;
        Peer {
            flops: person.speed.flops as f32,
            up: (person.link.up as f64 * fill) as f32,
            down: (person.link.down as f64 * fill) as f32,
            delay_us: delay.as_micros() as u32,
            memory_mib: (person.memory >> 20) as u32,
            place: person.stage,
            device: number(&mut self.devices, &person.device),
            access: number(&mut self.accesses, &person.access),
            region: person.region_number as u8,
        }
    }
}

fn between(delay: &[Vec<Time>]) -> Vec<Vec<u32>> {
    delay.iter().map(|row| row.iter().map(|ns| (ns / 1000) as u32).collect()).collect()
}

fn feeders(people: &[&Person]) -> Feeders {
    let count = people.len() as u32;
    let up = people.iter().map(|person| person.link.up as f64).sum::<f64>() / f64::from(count.max(1));
    let delay = people.iter().map(|person| (person.link.delay + person.link.jitter / 2).as_micros() as u32).max();
    Feeders { count, up, delay_us: delay.unwrap_or(0) }
}

/// Nobody comes but as the world's course says; owners sit by law.
fn owners(busy: f64) -> Life {
    let steady = Life { arrive_within: None, ..Life::steady() };
    if busy <= 0.0 {
        return steady;
    }
    let free = OWNER_SPELL_S * (1.0 - busy) / busy;
    let [sits, rises] = [OWNER_SPELL_S, free].map(|mean_s| Span::Exponential { mean_s });
    Life { sits, rises, sits_at_first: busy, ..steady }
}

fn changes(world: &World, first: u32) -> Vec<Change> {
    let change = |change: &churn::Change| {
        let what = match change.what {
            churn::What::Comes => What::Comes,
            churn::What::Leaves => What::Leaves,
            churn::What::Dies => What::Dies,
        };
        Change { at: change.at, peer: change.peer - first, what }
    };
    let mut changes: Vec<Change> = world.changes.iter().map(change).collect();
    let newcomers = world.people.iter().zip(0u32..).filter_map(|(person, peer)| Some((person.newcomer?, peer)));
    changes.extend(newcomers.map(|(at, peer)| Change { at, peer: peer - first, what: What::Comes }));
    let lives = Lives::of(&changes);
    let wrongs: Vec<Change> = world.troubles.iter().flat_map(|trouble| wrongs(trouble, first, &lives)).collect();
    changes.extend(wrongs);
    changes
}

/// When peers come and go by the world's course: who is away is no victim, and does not come back by a trouble's end.
struct Lives {
    of: BTreeMap<u32, Vec<(Time, bool)>>,
}

impl Lives {
    fn of(changes: &[Change]) -> Self {
        let mut of: BTreeMap<u32, Vec<(Time, bool)>> = BTreeMap::new();
        for change in changes {
            of.entry(change.peer).or_default().push((change.at, change.what == What::Comes));
        }
        of.values_mut().for_each(|of| of.sort());
        Lives { of }
    }

    fn is_there(&self, peer: u32, at: Time) -> bool {
        let before = self.of.get(&peer).map_or(&[][..], |of| &of[..of.partition_point(|(then, _)| *then <= at)]);
        before.last().is_some_and(|(_, comes)| *comes)
    }
}

/// What a trouble is to flows: who is cut off is away for so long, who is suspended does nothing.
fn wrongs(trouble: &Trouble, first: u32, lives: &Lives) -> Vec<Change> {
    let Trouble { at, until, ref whom, factor, .. } = *trouble;
    let runs = |part: f64| What::Runs { permille: (part.clamp(0.0, 1.0) * f64::from(WHOLE)) as u16 };
    let (begin, end) = match trouble.what {
        Wrong::Die => (What::Dies, None),
        Wrong::Leave => (What::Leaves, None),
        Wrong::Restart | Wrong::Partition | Wrong::Mute | Wrong::Swizzle => (What::Dies, Some(What::Comes)),
        Wrong::Slow => (runs(factor), Some(runs(1.0))),
        Wrong::Pause => (runs(0.0), Some(runs(1.0))),
        Wrong::Crowd | Wrong::Skew | Wrong::DiskFull | Wrong::DiskTorn | Wrong::Latency => return Vec::new(),
    };
    let of_peer = |peer: &usize| {
        let peer = *peer as u32 - first;
        let change = |at: Time, what: What| lives.is_there(peer, at).then_some(Change { at, peer, what });
        [change(at, begin), end.filter(|_| lives.is_there(peer, at)).and_then(|what| change(until, what))]
    };
    whom.iter().filter(|peer| **peer >= first as usize).flat_map(of_peer).flatten().collect()
}

fn remarks(troubles: &[Trouble]) -> Vec<String> {
    let mut remarks: BTreeMap<&str, ()> = BTreeMap::new();
    for trouble in troubles {
        let remark = match trouble.what {
            Wrong::Skew | Wrong::DiskFull | Wrong::DiskTorn | Wrong::Latency => {
                "Clocks, disks and slower ways that go wrong are not followed at fleet fidelity."
            }
            Wrong::Partition | Wrong::Mute | Wrong::Swizzle => {
                "Whoever is cut off is taken for dead at fleet fidelity until it is not."
            }
            Wrong::Die | Wrong::Leave | Wrong::Restart | Wrong::Slow | Wrong::Pause | Wrong::Crowd => continue,
        };
        remarks.insert(remark, ());
    }
    remarks.into_keys().map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Fleet;
    use crate::scenario::{Document, Files, expand};

    fn world(seed: u64) -> World {
        let text = r#"
            question = "What do a thousand homes of which some sit at their machine, and some are cut off, train?"
            [run]
            model = "demo"
            stages = 3
            [peers]
            count = 1000
            owner_busy = 0.3
            [churn]
            preset = "volunteer"
            slower = 0.1
            [[fault]]
            at = "20 min"
            what = "partition"
            peers = 0.1
            lasts = "10 min"
            [[fault]]
            at = "30 min"
            what = "crowd"
            peers = 100
            [simulate]
            duration = "1 h"
            fidelity = "fleet"
        "#;
        let text = format!("learning = \"curve\"\n{text}");
        let document = Document::read("homes", &text).unwrap_or_else(|refused| panic!("{refused}"));
        expand(&document, &Files::new(), seed).unwrap_or_else(|refused| panic!("{refused}"))
    }

    #[test]
    fn a_world_becomes_a_fleet_with_its_people_and_its_course() {
        let world = world(1);
        let setup = Setup::of(&world);
        assert_eq!(setup.peers.len() + setup.feeders.count as usize, world.people.len());
        assert_eq!(setup.names.devices.len(), 1);
        let comes = |change: &&Change| change.what == What::Comes;
        assert!(setup.changes.iter().filter(comes).count() >= 1100 + 100);
        let run = |world: &World| Fleet::new(Setup::of(world)).run().outcome;
        let outcome = run(&world);
        assert!(outcome.totals.completed > 1000 && outcome.totals.died > 100, "{:?}", outcome.totals);
        assert!(outcome.remarks.iter().any(|remark| remark.contains("cut off")), "{:?}", outcome.remarks);
        assert!(outcome.rows.iter().all(|row| !row.device.is_empty() && !row.region.is_empty()));
        assert_ne!(outcome.digest, run(&self::world(2)).digest);
    }
}
