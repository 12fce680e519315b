//! The fleet of a scenario's world: the same people and the same course of events, as draws and changes.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Feeders, Names, Owner, Peer, Setup,
    course::{Change, Life, Span, What},
};
use crate::{
    engine::Time,
    scenario::{
        Person, Trouble, What as Wrong, World,
        troubles::{Spell, products, union},
    },
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
    let lives = Lives::of(&changes, &world.troubles, first);
    changes.extend(wrongs(&world.troubles, first, &lives));
    changes
}

/// When peers come and go, but for those who are cut off or start again: who is away is no victim, and does not come back by a
/// trouble's end.
struct Lives {
    of: BTreeMap<u32, Vec<(Time, bool)>>,
}

impl Lives {
    fn of(changes: &[Change], troubles: &[Trouble], first: u32) -> Self {
        let mut of: BTreeMap<u32, Vec<(Time, bool)>> = BTreeMap::new();
        for change in changes {
            of.entry(change.peer).or_default().push((change.at, change.what == What::Comes));
        }
        for trouble in troubles.iter().filter(|trouble| matches!(trouble.what, Wrong::Die | Wrong::Leave)) {
            for peer in hosting(trouble, first) {
                of.entry(peer).or_default().push((trouble.at, false));
            }
        }
        // Stable: what happens to a peer at one moment stays in its order.
        of.values_mut().for_each(|of| of.sort_by_key(|(at, _)| *at));
        Lives { of }
    }

    fn of_peer(&self, peer: u32) -> &[(Time, bool)] {
        self.of.get(&peer).map_or(&[], Vec::as_slice)
    }

    fn is_there(&self, peer: u32, at: Time) -> bool {
        let of = self.of_peer(peer);
        of[..of.partition_point(|(then, _)| *then <= at)].last().is_some_and(|(_, comes)| *comes)
    }

    /// When the process ends that runs at `at`.
    fn ends(&self, peer: u32, at: Time) -> Time {
        let goes = |(then, comes): &&(Time, bool)| *then > at && !comes;
        self.of_peer(peer).iter().find(goes).map_or(Time::MAX, |(then, _)| *then)
    }
}

/// The peers that a trouble befalls and that are no feeders, by their numbers in the fleet.
fn hosting(trouble: &Trouble, first: u32) -> impl Iterator<Item = u32> {
    trouble.whom.iter().filter_map(move |peer| (*peer as u32).checked_sub(first))
}

/// What troubles are to flows: who is cut off is away for so long, who is suspended does nothing. Where several befall a peer at
/// once, the last that ends sets it free.
fn wrongs(troubles: &[Trouble], first: u32, lives: &Lives) -> Vec<Change> {
    let mut slow: BTreeMap<u32, Vec<Spell>> = BTreeMap::new();
    let mut away: BTreeMap<u32, Vec<(Time, Time)>> = BTreeMap::new();
    let mut changes = Vec::new();
    for trouble in troubles {
        let Trouble { at, until, factor, .. } = *trouble;
        for peer in hosting(trouble, first) {
            let is_there = lives.is_there(peer, at);
            match trouble.what {
                Wrong::Die => changes.push(Change { at, peer, what: What::Dies }),
                Wrong::Leave => changes.push(Change { at, peer, what: What::Leaves }),
                Wrong::Restart | Wrong::Partition | Wrong::Mute | Wrong::Swizzle if is_there => {
                    away.entry(peer).or_default().push((at, until));
                }
                Wrong::Slow => slow.entry(peer).or_default().push(Spell { from: at, until, part: factor }),
                // A process that ends is not suspended any more.
                Wrong::Pause if is_there => {
                    let until = until.min(lives.ends(peer, at));
                    slow.entry(peer).or_default().push(Spell { from: at, until, part: 0.0 });
                }
                Wrong::Restart | Wrong::Partition | Wrong::Mute | Wrong::Swizzle | Wrong::Pause => {}
                Wrong::Crowd | Wrong::Skew | Wrong::DiskFull | Wrong::DiskTorn | Wrong::Latency => {}
            }
        }
    }
    for (peer, windows) in away {
        for (from, until) in union(windows) {
            changes.push(Change { at: from, peer, what: What::Dies });
            if lives.is_there(peer, until) {
                changes.push(Change { at: until, peer, what: What::Comes });
            }
        }
    }
    for (peer, spells) in slow {
        changes.extend(products(&spells).into_iter().map(|(at, part)| {
            let permille = (part.clamp(0.0, 1.0) * f64::from(WHOLE)) as u16;
            Change { at, peer, what: What::Runs { permille } }
        }));
    }
    changes
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

    fn trouble(what: Wrong, at: Time, until: Time) -> Trouble {
        Trouble { at, until, what, whom: vec![0, 1], factor: 0.5 }
    }

    fn came_and_went(changes: &[(Time, What)]) -> Vec<Change> {
        changes.iter().map(|(at, what)| Change { at: *at, peer: 0, what: *what }).collect()
    }

    /// Peer 0 is the feeder, and what comes of the troubles of the only other one is told.
    fn of_troubles(changes: &[(Time, What)], troubles: &[Trouble]) -> Vec<(Time, What)> {
        let changes = wrongs(troubles, 1, &Lives::of(&came_and_went(changes), troubles, 1));
        changes.iter().map(|change| (change.at, change.what)).collect()
    }

    #[test]
    fn who_dies_while_it_is_slow_is_whole_again_when_that_is_over() {
        let runs = |permille| What::Runs { permille };
        let lives = [(0, What::Comes), (20, What::Dies), (50, What::Comes)];
        let told = of_troubles(&lives, &[trouble(Wrong::Slow, 10, 30)]);
        assert_eq!(told, [(10, runs(500)), (30, runs(1000))]);
        let told = of_troubles(&lives, &[trouble(Wrong::Pause, 10, 70)]);
        assert_eq!(told, [(10, runs(0)), (20, runs(1000))], "a new process is not suspended");
        assert_eq!(of_troubles(&lives, &[trouble(Wrong::Pause, 30, 70)]), [], "nobody is there");
    }

    #[test]
    fn troubles_that_overlap_end_with_the_last() {
        let runs = |permille| What::Runs { permille };
        let lives = [(0, What::Comes)];
        let told = of_troubles(&lives, &[trouble(Wrong::Slow, 10, 30), trouble(Wrong::Slow, 20, 40)]);
        assert_eq!(told, [(10, runs(500)), (20, runs(250)), (30, runs(500)), (40, runs(1000))]);
        let told = of_troubles(&lives, &[trouble(Wrong::Partition, 10, 30), trouble(Wrong::Restart, 20, 40)]);
        assert_eq!(told, [(10, What::Dies), (40, What::Comes)]);
    }

    #[test]
    fn who_died_for_good_does_not_come_back_when_a_partition_heals() {
        let told = of_troubles(&[(0, What::Comes)], &[trouble(Wrong::Partition, 10, 30), trouble(Wrong::Die, 20, 20)]);
        assert_eq!(told, [(20, What::Dies), (10, What::Dies)]);
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
