//! What goes wrong: the scenario's faults, with whom they befall, and what of them, of churn and of owners the driver is told.
//! In: faults, people, the course of churn. Out: troubles with their victims, and driver faults in the order of time.

use std::{collections::BTreeMap, time::Duration};

use rand::RngExt;
use skein_pipeline::peer::io::Command;

use super::{
    Fault, Scenario, What,
    check::{befalls, time},
    people::Person,
};
use crate::{
    driver,
    engine::{SECOND, Time},
    world::{
        churn::{self, Change},
        draw::{self, Draw},
    },
};

/// How long an owner uses a machine in the mean.
const OWNER_SPELL: Time = 3600 * SECOND;

/// Something that goes wrong, and whom it befalls.
#[derive(Clone, Debug, PartialEq)]
pub struct Trouble {
    pub at: Time,
    /// When it passes; at `at` where it does not, and when the last newcomer of a crowd has come.
    pub until: Time,
    pub what: What,
    /// Numbers of peers.
    pub whom: Vec<usize>,
    pub factor: f64,
}

/// The scenario's faults in its order, with victims drawn by the seed.
pub fn troubles(scenario: &Scenario, people: &[Person], seed: u64) -> Vec<Trouble> {
    let trouble = |(number, fault): (usize, &Fault)| {
        let at = time(&fault.at);
        let passes = !matches!(fault.what, What::Die | What::Leave);
        let until = if passes { at.saturating_add(time(&fault.lasts)) } else { at };
        Trouble {
            at,
            until,
            what: fault.what,
            whom: victims(scenario, people, number, fault, seed),
            factor: fault.factor,
        }
    };
    scenario.faults.iter().enumerate().map(trouble).collect()
}

fn victims(scenario: &Scenario, people: &[Person], number: usize, fault: &Fault, seed: u64) -> Vec<usize> {
    let numbered = people.iter().enumerate();
    if fault.what == What::Crowd {
        // Its newcomers stand behind those of the crowds before it.
        let before = scenario.faults[..number].iter().filter(|fault| fault.what == What::Crowd);
        let count = |fault: &Fault| befalls(fault, u64::from(scenario.peers.count)) as usize;
        let skip = before.map(count).sum();
        return numbered
            .filter(|(_, person)| person.newcomer.is_some())
            .map(|(peer, _)| peer)
            .skip(skip)
            .take(count(fault))
            .collect();
    }
    let may = |person: &Person| {
        let there = person.ordinal.is_some() && person.newcomer.is_none();
        there && (fault.stage.is_none() || fault.stage == person.stage)
    };
    let mut pool: Vec<(u64, usize)> = numbered
        .filter(|(_, person)| may(person))
        .map(|(peer, person)| (Draw::Target(number as u32).rank(seed, person.ordinal.unwrap_or(0)), peer))
        .collect();
    let wanted = befalls(fault, pool.len() as u64) as usize;
    pool.sort_unstable();
    let mut whom: Vec<usize> = pool.into_iter().take(wanted).map(|(_, peer)| peer).collect();
    whom.sort_unstable();
    whom
}

/// Takes from the course of churn what those who die or leave for good would still have done.
pub fn end_for_good(changes: &mut Vec<Change>, troubles: &[Trouble]) {
    let mut gone: BTreeMap<usize, Time> = BTreeMap::new();
    for trouble in troubles.iter().filter(|trouble| matches!(trouble.what, What::Die | What::Leave)) {
        for peer in &trouble.whom {
            let at = gone.entry(*peer).or_insert(trouble.at);
            *at = (*at).min(trouble.at);
        }
    }
    changes.retain(|change| gone.get(&(change.peer as usize)).is_none_or(|at| change.at <= *at));
}

/// All that the driver is told, in the order of time.
pub struct Course<'w> {
    pub scenario: &'w Scenario,
    pub people: &'w [Person],
    pub changes: &'w [Change],
    pub troubles: &'w [Trouble],
    pub seed: u64,
    pub duration: Time,
}

impl Course<'_> {
    pub fn faults(&self) -> Vec<(Time, driver::Fault)> {
        let mut told = self.churn();
        let mut slow: BTreeMap<usize, Vec<Spell>> = self.owners();
        for (number, trouble) in self.troubles.iter().enumerate() {
            self.trouble(number, trouble, &mut told, &mut slow);
        }
        for (peer, spells) in slow {
            told.extend(speeds(&spells).into_iter().map(|(at, speed)| (at, driver::Fault::Speed(peer, speed))));
        }
        told.retain(|(at, _)| *at < self.duration);
        // Stable: what is told of one moment stays in its order.
        told.sort_by_key(|(at, _)| *at);
        told
    }

    /// Comings after the first, exits, and the deaths of those who were warned and did not finish.
    fn churn(&self) -> Vec<(Time, driver::Fault)> {
        let warning = churn::warning();
        let mut told = Vec::new();
        let mut seen = vec![false; self.people.len()];
        let mut by_peer: BTreeMap<u32, Vec<Change>> = BTreeMap::new();
        for change in self.changes {
            by_peer.entry(change.peer).or_default().push(*change);
        }
        for changes in by_peer.values() {
            for (i, change) in changes.iter().enumerate() {
                let peer = change.peer as usize;
                match change.what {
                    churn::What::Comes if std::mem::replace(&mut seen[peer], true) => {
                        told.push((change.at, driver::Fault::Start(peer)));
                    }
                    // The first coming is the plan's.
                    churn::What::Comes => {}
                    churn::What::Dies => told.push((change.at, driver::Fault::Kill(peer))),
                    churn::What::Leaves => {
                        let back = changes.get(i + 1).map_or(Time::MAX, |next| next.at);
                        told.push((change.at, driver::Fault::Command(peer, Command::Drain)));
                        told.push(((change.at + warning).min(back), driver::Fault::Kill(peer)));
                    }
                }
            }
        }
        told
    }

    fn is_there(&self, peer: usize, at: Time) -> bool {
        if let Some(from) = self.people[peer].newcomer {
            return from <= at;
        }
        let mut of_peer = self.changes.iter().filter(|change| change.peer as usize == peer && change.at <= at);
        of_peer.next_back().is_some_and(|change| change.what == churn::What::Comes)
    }

    fn trouble(
        &self,
        number: usize,
        trouble: &Trouble,
        told: &mut Vec<(Time, driver::Fault)>,
        slow: &mut BTreeMap<usize, Vec<Spell>>,
    ) {
        let Trouble { at, until, factor, .. } = *trouble;
        let lasts = Duration::from_nanos(until - at);
        for &peer in &trouble.whom {
            match trouble.what {
                What::Die => told.push((at, driver::Fault::Kill(peer))),
                What::Restart => {
                    told.push((at, driver::Fault::Kill(peer)));
                    if self.is_there(peer, at) && self.is_there(peer, until) {
                        told.push((until, driver::Fault::Start(peer)));
                    }
                }
                What::Leave => {
                    told.push((at, driver::Fault::Command(peer, Command::Drain)));
                    told.push((at + churn::warning(), driver::Fault::Kill(peer)));
                }
                What::Slow => slow.entry(peer).or_default().push(Spell { from: at, until, part: factor }),
                What::Pause => told.push((at, driver::Fault::PauseFor(peer, lasts))),
                What::DiskFull => {
                    told.push((at, driver::Fault::DiskFull(peer, true)));
                    told.push((until, driver::Fault::DiskFull(peer, false)));
                }
                What::Skew => {
                    let ms = (factor * 3_600_000.0) as i64;
                    told.push((at, driver::Fault::Skew(peer, ms)));
                    told.push((until, driver::Fault::Skew(peer, -ms)));
                }
                What::Partition | What::Mute => {
                    for other in self.others(trouble) {
                        match trouble.what {
                            What::Partition => {
                                told.push((at, driver::Fault::Partition(peer, other)));
                                told.push((until, driver::Fault::Heal(peer, other)));
                            }
                            _ => told.push((at, driver::Fault::BlockFor(peer, other, lasts))),
                        }
                    }
                }
                What::Swizzle => self.swizzle(number, trouble, peer, told),
                What::DiskTorn => {
                    told.push((at, driver::Fault::DiskTorn(peer, true)));
                    told.push((until, driver::Fault::DiskTorn(peer, false)));
                }
                What::Latency => {
                    told.push((at, driver::Fault::Lag(peer, factor)));
                    told.push((until, driver::Fault::Lag(peer, 1.0)));
                }
                // The plan of a newcomer says when it comes.
                What::Crowd => {}
            }
        }
    }

    /// Whom a trouble does not befall, newcomers and feeders included.
    fn others<'t>(&self, trouble: &'t Trouble) -> impl Iterator<Item = usize> + use<'t> {
        let count = self.people.len();
        (0..count).filter(|peer| trouble.whom.binary_search(peer).is_err())
    }

    /// In the first half of the time a peer's connections are clogged one by one in one order, in the second they are let free in
    /// another.
    fn swizzle(&self, number: usize, trouble: &Trouble, peer: usize, told: &mut Vec<(Time, driver::Fault)>) {
        let mut rng = Draw::Target(number as u32).stream(self.seed, peer as u64 | 1 << 63);
        let mut others: Vec<usize> = (0..self.people.len()).filter(|other| *other != peer).collect();
        let half = (trouble.until - trouble.at) / 2;
        for (phase, free) in [(trouble.at, false), (trouble.at + half, true)] {
            for i in (1..others.len()).rev() {
                others.swap(i, rng.random_range(0..=i));
            }
            let between = half / others.len().max(1) as u64;
            for (i, &other) in others.iter().enumerate() {
                let at = phase + between * i as u64;
                let fault = if free { driver::Fault::Heal(peer, other) } else { driver::Fault::Partition(peer, other) };
                told.push((at, fault));
            }
        }
    }

    /// When owners use their machines: two states, in turn, of exponential lengths.
    fn owners(&self) -> BTreeMap<usize, Vec<Spell>> {
        let (busy, part) = (self.scenario.peers.owner_busy, self.scenario.peers.owner_leaves);
        if busy <= 0.0 || part >= 1.0 {
            return BTreeMap::new();
        }
        let free = OWNER_SPELL as f64 * (1.0 - busy) / busy;
        let peers = self.people.iter().enumerate().filter_map(|(peer, person)| Some((peer, person.ordinal?)));
        let spells = |(peer, ordinal): (usize, u64)| {
            let mut rng = Draw::Owner.stream(self.seed, ordinal);
            let mut spells = Vec::new();
            let mut at = if rng.random::<f64>() < busy { 0 } else { draw::time(draw::exponential(&mut rng, free)) };
            while at < self.duration {
                let until = at + draw::time(draw::exponential(&mut rng, OWNER_SPELL as f64));
                spells.push(Spell { from: at, until, part });
                at = until + draw::time(draw::exponential(&mut rng, free));
            }
            (peer, spells)
        };
        peers.map(spells).collect()
    }
}

/// A time in which a machine has only a part of its speed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spell {
    from: Time,
    until: Time,
    part: f64,
}

/// The speed at each moment at which it changes: spells that overlap multiply.
fn speeds(spells: &[Spell]) -> Vec<(Time, f64)> {
    let mut moments: Vec<Time> = spells.iter().flat_map(|spell| [spell.from, spell.until]).collect();
    moments.sort_unstable();
    moments.dedup();
    let speed = |at: Time| {
        let now = spells.iter().filter(|spell| (spell.from..spell.until).contains(&at));
        now.map(|spell| spell.part).product()
    };
    moments.into_iter().map(|at| (at, speed(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_that_overlap_multiply() {
        let spell = |from, until, part| Spell { from, until, part };
        let speeds = speeds(&[spell(10, 20, 0.5), spell(15, 30, 0.2)]);
        assert_eq!(speeds, [(10, 0.5), (15, 0.1), (20, 0.2), (30, 1.0)]);
    }
}
