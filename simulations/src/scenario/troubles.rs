//! What goes wrong: the scenario's faults, with whom they befall, and what of them, of churn and of owners the driver is told.
//! In: faults, people, the course of churn. Out: troubles with their victims, and driver faults in the order of time.

use std::collections::BTreeMap;

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

/// What holds for a while. Where several windows of one kind overlap, the last that ends ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    /// The process is dead, and starts again.
    Down(usize),
    Suspended(usize),
    DiskFull(usize),
    DiskTorn(usize),
    /// What the first says does not reach the second.
    Cut(usize, usize),
}

impl Holds {
    fn begin(self) -> driver::Fault {
        match self {
            Holds::Down(peer) => driver::Fault::Kill(peer),
            Holds::Suspended(peer) => driver::Fault::Pause(peer),
            Holds::DiskFull(peer) => driver::Fault::DiskFull(peer, true),
            Holds::DiskTorn(peer) => driver::Fault::DiskTorn(peer, true),
            Holds::Cut(from, to) => driver::Fault::Block(from, to),
        }
    }

    fn end(self) -> driver::Fault {
        match self {
            Holds::Down(peer) => driver::Fault::Start(peer),
            Holds::Suspended(peer) => driver::Fault::Resume(peer),
            Holds::DiskFull(peer) => driver::Fault::DiskFull(peer, false),
            Holds::DiskTorn(peer) => driver::Fault::DiskTorn(peer, false),
            Holds::Cut(from, to) => driver::Fault::Unblock(from, to),
        }
    }
}

/// What troubles come to, before those of one kind are put together.
#[derive(Default)]
struct Collected {
    /// Moments at which something happens for good.
    told: Vec<(Time, driver::Fault)>,
    windows: BTreeMap<Holds, Vec<(Time, Time)>>,
    /// Speeds, and how much longer ways are.
    slow: BTreeMap<usize, Vec<Spell>>,
    late: BTreeMap<usize, Vec<Spell>>,
}

impl Collected {
    fn hold(&mut self, what: Holds, from: Time, until: Time) {
        self.windows.entry(what).or_default().push((from, until));
    }

    fn part(&mut self, a: usize, b: usize, from: Time, until: Time) {
        self.hold(Holds::Cut(a, b), from, until);
        self.hold(Holds::Cut(b, a), from, until);
    }
}

impl Course<'_> {
    pub fn faults(&self) -> Vec<(Time, driver::Fault)> {
        let mut all = Collected { told: self.churn(), slow: self.owners(), ..Collected::default() };
        for (number, trouble) in self.troubles.iter().enumerate() {
            self.trouble(number, trouble, &mut all);
        }
        let Collected { mut told, windows, slow, late } = all;
        for (what, windows) in windows {
            // A process that was not there when the first began may be there when the second does.
            told.extend(windows.iter().map(|(from, _)| (*from, what.begin())));
            let ends = union(windows).into_iter().filter(|(_, until)| match what {
                Holds::Down(peer) => self.is_there(peer, *until),
                Holds::Suspended(_) | Holds::DiskFull(_) | Holds::DiskTorn(_) | Holds::Cut(..) => true,
            });
            told.extend(ends.map(|(_, until)| (until, what.end())));
        }
        for (peer, spells) in slow {
            told.extend(products(&spells).into_iter().map(|(at, speed)| (at, driver::Fault::Speed(peer, speed))));
        }
        for (peer, spells) in late {
            told.extend(products(&spells).into_iter().map(|(at, times)| (at, driver::Fault::Lag(peer, times))));
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
        let for_good = |trouble: &&Trouble| matches!(trouble.what, What::Die | What::Leave) && trouble.at <= at;
        if self.troubles.iter().filter(for_good).any(|trouble| trouble.whom.binary_search(&peer).is_ok()) {
            return false;
        }
        if let Some(from) = self.people[peer].newcomer {
            return from <= at;
        }
        let mut of_peer = self.changes.iter().filter(|change| change.peer as usize == peer && change.at <= at);
        of_peer.next_back().is_some_and(|change| change.what == churn::What::Comes)
    }

    fn trouble(&self, number: usize, trouble: &Trouble, all: &mut Collected) {
        let Trouble { at, until, factor, .. } = *trouble;
        for &peer in &trouble.whom {
            match trouble.what {
                What::Die => all.told.push((at, driver::Fault::Kill(peer))),
                What::Restart if self.is_there(peer, at) => all.hold(Holds::Down(peer), at, until),
                What::Restart => {}
                What::Leave => {
                    all.told.push((at, driver::Fault::Command(peer, Command::Drain)));
                    all.told.push((at + churn::warning(), driver::Fault::Kill(peer)));
                }
                What::Slow => all.slow.entry(peer).or_default().push(Spell { from: at, until, part: factor }),
                What::Latency => all.late.entry(peer).or_default().push(Spell { from: at, until, part: factor }),
                What::Pause => all.hold(Holds::Suspended(peer), at, until),
                What::DiskFull => all.hold(Holds::DiskFull(peer), at, until),
                What::DiskTorn => all.hold(Holds::DiskTorn(peer), at, until),
                What::Skew => {
                    let ms = (factor * 3_600_000.0) as i64;
                    all.told.push((at, driver::Fault::Skew(peer, ms)));
                    all.told.push((until, driver::Fault::Skew(peer, -ms)));
                }
                What::Partition => self.others(trouble).for_each(|other| all.part(peer, other, at, until)),
                What::Mute => self.others(trouble).for_each(|other| all.hold(Holds::Cut(peer, other), at, until)),
                What::Swizzle => self.swizzle(number, trouble, peer, all),
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
    fn swizzle(&self, number: usize, trouble: &Trouble, peer: usize, all: &mut Collected) {
        let mut rng = Draw::Target(number as u32).stream(self.seed, peer as u64 | 1 << 63);
        let mut others: Vec<usize> = (0..self.people.len()).filter(|other| *other != peer).collect();
        let half = (trouble.until - trouble.at) / 2;
        let between = half / others.len().max(1) as u64;
        let mut clogged: BTreeMap<usize, Time> = BTreeMap::new();
        for phase in [trouble.at, trouble.at + half] {
            for i in (1..others.len()).rev() {
                others.swap(i, rng.random_range(0..=i));
            }
            for (i, &other) in others.iter().enumerate() {
                let at = phase + between * i as u64;
                match clogged.remove(&other) {
                    None => drop(clogged.insert(other, at)),
                    Some(from) => all.part(peer, other, from, at),
                }
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

/// A time in which something is only a part of what it is, or many times that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spell {
    pub from: Time,
    pub until: Time,
    pub part: f64,
}

/// The factor at each moment at which it changes: spells that overlap multiply.
pub(crate) fn products(spells: &[Spell]) -> Vec<(Time, f64)> {
    let mut moments: Vec<Time> = spells.iter().flat_map(|spell| [spell.from, spell.until]).collect();
    moments.sort_unstable();
    moments.dedup();
    let product = |at: Time| {
        let now = spells.iter().filter(|spell| (spell.from..spell.until).contains(&at));
        now.map(|spell| spell.part).product()
    };
    moments.into_iter().map(|at| (at, product(at))).collect()
}

/// The times that lie in any of the windows, as windows apart from each other.
pub(crate) fn union(mut windows: Vec<(Time, Time)>) -> Vec<(Time, Time)> {
    windows.sort_unstable();
    let mut union: Vec<(Time, Time)> = Vec::new();
    for (from, until) in windows {
        match union.last_mut() {
            Some((_, last)) if from <= *last => *last = until.max(*last),
            _ => union.push((from, until)),
        }
    }
    union
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Document, Files, expand};

    #[test]
    fn spells_that_overlap_multiply() {
        let spell = |from, until, part| Spell { from, until, part };
        let products = products(&[spell(10, 20, 0.5), spell(15, 30, 0.2)]);
        assert_eq!(products, [(10, 0.5), (15, 0.1), (20, 0.2), (30, 1.0)]);
    }

    /// What the driver is told of peer 1, the only one beside the feeder, by faults of one kind at these seconds for so many.
    fn told(what: &str, windows: &[(u64, u64)]) -> Vec<(u64, String)> {
        let mut text = "question = \"?\"\n[run]\nmodel = \"demo\"\nstages = 1\n[peers]\ncount = 1\n".to_string();
        for (at, lasts) in windows {
            text += &format!(
                "[[fault]]\nat = \"{at} s\"\nwhat = \"{what}\"\npeers = 1\nlasts = \"{lasts} s\"\nfactor = 10.0\n"
            );
        }
        text += "[simulate]\nduration = \"5 min\"\n";
        let document = Document::read("overlaps", &text).unwrap();
        let world = expand(&document, &Files::new(), 1).unwrap();
        world.faults.iter().map(|(at, fault)| (at / SECOND, format!("{fault:?}"))).collect()
    }

    #[test]
    fn troubles_of_one_kind_that_overlap_end_with_the_last() {
        let overlapping = [(10, 20), (20, 30), (70, 5)];
        for (what, begins, ends) in [
            ("disk_full", "DiskFull(1, true)", "DiskFull(1, false)"),
            ("disk_torn", "DiskTorn(1, true)", "DiskTorn(1, false)"),
            ("pause", "Pause(1)", "Resume(1)"),
            ("restart", "Kill(1)", "Start(1)"),
            ("mute", "Block(1, 0)", "Unblock(1, 0)"),
        ] {
            let told = told(what, &overlapping);
            let at = |of: &str| told.iter().filter(|(_, told)| told == of).map(|(at, _)| *at).collect::<Vec<_>>();
            assert_eq!((at(begins), at(ends)), (vec![10, 20, 70], vec![50, 75]), "{what}: {told:?}");
        }
        let ways: Vec<(u64, String)> = [(10, 10.0), (20, 100.0), (30, 10.0), (50, 1.0), (70, 10.0), (75, 1.0)]
            .map(|(at, times): (u64, f64)| (at, format!("Lag(1, {times:?})")))
            .into();
        assert_eq!(told("latency", &overlapping), ways);
    }
}
