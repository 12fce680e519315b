//! Who comes and goes: courses of sessions, by the laws of `data/churn.toml`. In: a preset, a seed, the peers. Out: changes in the
//! order of time. It knows nothing of training.
//!
//! Every peer's course is drawn from its own streams: another peer more changes nobody else's. What peers share (a burst that
//! takes several machines of a zone, the supply of an hour) is drawn for the zone or the hour.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::{
    draw::{self, Draw},
    trace::Trace,
    unit,
};
use crate::engine::{SECOND, Time};

const HOUR: Time = 3600 * SECOND;
const DAY: Time = 24 * HOUR;

/// Nobody is back sooner than this: what a polite leaver still finishes is over by then.
const GAP_MIN: Time = 120 * SECOND;

/// Somebody comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub at: Time,
    pub peer: u32,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Dies,
    /// Politely: it has [`warning`] to finish.
    Leaves,
    Comes,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Preset {
    #[default]
    None,
    Spot,
    Volunteer,
    Night,
    /// Each hour each machine goes with this chance.
    Bamboo {
        hourly: f64,
    },
    Trace(Trace),
}

/// Names of presets, beside `trace:FILE`.
pub const PRESETS: [&str; 5] = ["none", "spot", "volunteer", "night", "bamboo"];

/// What all peers' courses have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    pub seed: u64,
    pub preset: Preset,
    /// Part of the exits that are polite.
    pub warned: f64,
    /// All times of the preset are multiplied by this.
    pub slower: f64,
    /// All come first within this.
    pub arrive_within: Time,
    pub duration: Time,
}

/// A peer, and how far its clock is ahead of UTC, hours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Who {
    pub peer: u32,
    pub utc: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Laws {
    spot: SpotLaw,
    volunteer: VolunteerLaw,
    night: NightLaw,
    bamboo: BambooLaw,
    warning: Warning,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpotLaw {
    life_mean: String,
    zone: u32,
    taken: f64,
    burst: String,
    gap_median: String,
    gap_sigma: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VolunteerLaw {
    shape: f64,
    scale: String,
    gap_median: String,
    gap_sigma: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NightLaw {
    from: f64,
    until: f64,
    sigma: String,
    skipped: f64,
    utc_at_start: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BambooLaw {
    added_min: f64,
    added_max: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Warning {
    time: String,
}

fn laws() -> Laws {
    super::table(include_str!("../../data/churn.toml"))
}

fn ns(text: &str) -> f64 {
    unit::time(text).expect("the table's times are times") as f64
}

/// How long before its exit a warned peer is told.
pub fn warning() -> Time {
    ns(&laws().warning.time) as Time
}

/// All changes before the end, in the order of time. Everybody comes at least once, but in a trace that has no room for it.
pub fn changes(course: &Course, peers: &[Who]) -> Vec<Change> {
    let laws = laws();
    let mut changes = Vec::new();
    if let Preset::Trace(trace) = &course.preset {
        traced(course, trace, peers, &mut changes);
    } else {
        let supply = course.supply(&laws.bamboo);
        for who in peers {
            let sessions = course.sessions(&laws, &supply, *who);
            course.write(who.peer, sessions, &mut changes);
        }
    }
    changes.retain(|change| change.at < course.duration);
    // Stable: what one peer does at one moment stays in its order.
    changes.sort_by_key(|change| (change.at, change.peer));
    changes
}

/// From when to when somebody is there; nothing: to the end.
type Session = (Time, Option<Time>);

impl Course {
    fn scaled(&self, ns: f64) -> f64 {
        ns * self.slower
    }

    fn arrival(&self, peer: u32) -> Time {
        match self.arrive_within {
            0 => 0,
            within => Draw::Arrival.stream(self.seed, peer.into()).random_range(0..within),
        }
    }

    fn sessions(&self, laws: &Laws, supply: &[f64], who: Who) -> Vec<Session> {
        let mut rng = Draw::Session.stream(self.seed, who.peer.into());
        let arrival = self.arrival(who.peer);
        match &self.preset {
            Preset::None | Preset::Trace(_) => vec![(arrival, None)],
            Preset::Volunteer => {
                let law = &laws.volunteer;
                let (scale, gap) = (self.scaled(ns(&law.scale)), self.scaled(ns(&law.gap_median)));
                self.renewal(arrival, |_| {
                    let life = draw::weibull(&mut rng, law.shape, scale);
                    (life, draw::lognormal(&mut rng, gap, law.gap_sigma))
                })
            }
            Preset::Spot => self.spot(&laws.spot, who.peer, arrival, &mut rng),
            Preset::Night => self.nights(&laws.night, who, arrival, &mut rng),
            Preset::Bamboo { hourly } => self.bamboo(supply, *hourly, arrival, &mut rng),
        }
    }

    /// Sessions and gaps in turn; `next` is told when a session begins and says how long it and the gap after it last.
    fn renewal(&self, arrival: Time, mut next: impl FnMut(Time) -> (f64, f64)) -> Vec<Session> {
        let mut sessions = Vec::new();
        let mut at = arrival;
        while at < self.duration {
            let (life, gap) = next(at);
            let end = at.saturating_add(draw::time(life).max(SECOND));
            sessions.push((at, Some(end)));
            at = end.saturating_add(draw::time(gap).max(GAP_MIN));
        }
        sessions
    }

    /// A zone's shocks come at random; each takes each of its machines with one chance. So a machine's life is exponential
    /// with the mean that the table says, and its neighbours often go within the same minute.
    fn spot(&self, law: &SpotLaw, peer: u32, arrival: Time, rng: &mut ChaCha8Rng) -> Vec<Session> {
        let between = self.scaled(ns(&law.life_mean)) * law.taken;
        let burst = ns(&law.burst);
        let gap = self.scaled(ns(&law.gap_median));
        // Shocks of the zone: every machine of it draws the same.
        let mut zone = Draw::Zone.stream(self.seed, u64::from(peer / law.zone));
        let mut shock = 0.0;
        let mut exits = std::iter::from_fn(|| {
            loop {
                shock += draw::exponential(&mut zone, between);
                if rng.random::<f64>() < law.taken {
                    return Some((
                        draw::time(shock + burst * rng.random::<f64>()),
                        draw::lognormal(rng, gap, law.gap_sigma),
                    ));
                }
            }
        });
        self.renewal(arrival, |begins| {
            let (exit, gap) = exits.find(|(exit, _)| *exit > begins).expect("shocks never end");
            ((exit - begins) as f64, gap)
        })
    }

    /// From an evening to a morning of the peer's own clock.
    fn nights(&self, law: &NightLaw, who: Who, arrival: Time, rng: &mut ChaCha8Rng) -> Vec<Session> {
        let hour = |hours: f64| hours * HOUR as f64;
        let local_at_start = law.utc_at_start + who.utc;
        let length = (law.until - law.from).rem_euclid(24.0);
        let mut sessions: Vec<Session> = Vec::new();
        let nights = self.duration as f64 / self.slower.max(1e-9) / DAY as f64;
        // The night before may still last when the simulation begins.
        for night in -1..=nights.ceil() as i64 {
            let (early, late) = (draw::normal(rng) * ns(&law.sigma), draw::normal(rng) * ns(&law.sigma));
            let skipped = rng.random::<f64>() < law.skipped;
            // Evening of this night, counted from the beginning.
            let evening = hour((law.from - local_at_start).rem_euclid(24.0) + 24.0 * night as f64);
            let from = self.scaled(evening + early);
            let until = self.scaled(evening + hour(length) + late);
            let begins = draw::time(from).max(arrival);
            let begins = sessions.last().map_or(begins, |before| begins.max(before.1.unwrap_or(0) + GAP_MIN));
            if !skipped && until > 0.0 && draw::time(until) > begins + SECOND {
                sessions.push((begins, Some(draw::time(until))));
            }
        }
        sessions
    }

    fn hour(&self) -> Time {
        draw::time(self.scaled(HOUR as f64)).max(SECOND)
    }

    /// The chance to come back in each hour, the same for everyone.
    fn supply(&self, law: &BambooLaw) -> Vec<f64> {
        if !matches!(self.preset, Preset::Bamboo { .. }) {
            return Vec::new();
        }
        let of_hour = |number| {
            let part: f64 = Draw::Hour.stream(self.seed, number).random();
            law.added_min + (law.added_max - law.added_min) * part
        };
        (0..self.duration.div_ceil(self.hour())).map(of_hour).collect()
    }

    fn bamboo(&self, supply: &[f64], hourly: f64, arrival: Time, rng: &mut ChaCha8Rng) -> Vec<Session> {
        let hour = self.hour();
        let mut sessions = Vec::new();
        let mut since = Some(arrival);
        for (number, &added) in supply.iter().enumerate() {
            let (chance, moment): (f64, f64) = (rng.random(), rng.random());
            let at = number as u64 * hour + draw::time(moment * hour as f64);
            match since {
                Some(from) if chance < hourly && at > from + SECOND => {
                    sessions.push((from, Some(at)));
                    since = None;
                }
                None if chance < added
                    && sessions.last().and_then(|last| last.1).is_none_or(|end| at > end + GAP_MIN) =>
                {
                    since = Some(at);
                }
                Some(_) | None => {}
            }
        }
        sessions.extend(since.map(|from| (from, None)));
        sessions
    }

    fn write(&self, peer: u32, sessions: Vec<Session>, changes: &mut Vec<Change>) {
        let mut rng = Draw::Warned.stream(self.seed, peer.into());
        for (from, until) in sessions {
            changes.push(Change { at: from, peer, what: What::Comes });
            let warned = rng.random::<f64>() < self.warned;
            if let Some(at) = until {
                changes.push(Change { at, peer, what: if warned { What::Leaves } else { What::Dies } });
            }
        }
    }
}

/// Ids of the trace are the first peers; who is not in it is there all the time.
fn traced(course: &Course, trace: &Trace, peers: &[Who], changes: &mut Vec<Change>) {
    for who in peers.iter().skip(trace.ids.len()) {
        changes.push(Change { at: course.arrival(who.peer), peer: who.peer, what: What::Comes });
    }
    let mut warned: Vec<ChaCha8Rng> =
        peers.iter().take(trace.ids.len()).map(|who| Draw::Warned.stream(course.seed, who.peer.into())).collect();
    for line in &trace.lines {
        let Some(who) = peers.get(line.id) else { continue };
        let at = draw::time(line.at as f64 * course.slower);
        let what = match (line.comes, !line.comes && warned[line.id].random::<f64>() < course.warned) {
            (true, _) => What::Comes,
            (false, true) => What::Leaves,
            (false, false) => What::Dies,
        };
        changes.push(Change { at, peer: who.peer, what });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn course(preset: Preset, hours: u64) -> Course {
        Course { seed: 1, preset, warned: 0.0, slower: 1.0, arrive_within: 0, duration: hours * HOUR }
    }

    fn people(count: u32) -> Vec<Who> {
        (0..count).map(|peer| Who { peer, utc: 0.0 }).collect()
    }

    /// Lengths of all first sessions, in hours; those that outlast the course count as endless.
    fn first_lives(course: &Course, count: u32) -> Vec<f64> {
        let mut ends: BTreeMap<u32, Time> = BTreeMap::new();
        for change in changes(course, &people(count)) {
            if change.what != What::Comes {
                ends.entry(change.peer).or_insert(change.at);
            }
        }
        let mut lives: Vec<f64> =
            (0..count).map(|peer| ends.get(&peer).map_or(f64::INFINITY, |at| *at as f64 / HOUR as f64)).collect();
        lives.sort_by(f64::total_cmp);
        lives
    }

    #[test]
    fn volunteers_stay_as_the_weibull_law_says() {
        let lives = first_lives(&course(Preset::Volunteer, 300), 12_000);
        let quantile = |part: f64| lives[(part * lives.len() as f64) as usize];
        // scale * ln(1 / (1 - p))^(1 / shape)
        for (part, wanted) in [(0.5, 2.007), (0.8, 7.985)] {
            assert!((quantile(part) / wanted - 1.0).abs() < 0.05, "{part}: {} h", quantile(part));
        }
        let mean = lives.iter().sum::<f64>() / lives.len() as f64;
        assert!((mean / 5.39 - 1.0).abs() < 0.05, "mean {mean} h");
        let longer = lives.iter().filter(|life| **life > 24.0).count() as f64 / lives.len() as f64;
        assert!((longer - 0.043).abs() < 0.006, "{longer} stay for more than a day");
    }

    #[test]
    fn spot_machines_live_exponentially_and_go_in_bursts() {
        let all = changes(&course(Preset::Spot, 60), &people(3000));
        let lives = first_lives(&course(Preset::Spot, 60), 3000);
        let mean = lives.iter().sum::<f64>() / lives.len() as f64;
        // Half a minute of burst on top.
        assert!((mean / 1.71 - 1.0).abs() < 0.05, "mean {mean} h");
        let median = lives[lives.len() / 2];
        assert!((median / (1.7 * core::f64::consts::LN_2) - 1.0).abs() < 0.06, "median {median} h");
        // Exits of one zone within a minute of each other are one burst.
        let mut exits: BTreeMap<u32, Vec<Time>> = BTreeMap::new();
        for change in all.iter().filter(|change| change.what == What::Dies) {
            exits.entry(change.peer / 6).or_default().push(change.at);
        }
        let mut sizes: Vec<usize> = Vec::new();
        for zone in exits.values() {
            let mut first = None;
            for at in zone {
                match first {
                    Some(since) if at - since <= 60 * SECOND => *sizes.last_mut().unwrap() += 1,
                    _ => {
                        first = Some(*at);
                        sizes.push(1);
                    }
                }
            }
        }
        let mean = sizes.iter().sum::<usize>() as f64 / sizes.len() as f64;
        let most = sizes.iter().max().unwrap();
        assert!((1.5..2.1).contains(&mean) && (5..=7).contains(most), "bursts of {mean}, at most {most}");
    }

    #[test]
    fn bamboo_takes_the_hourly_part_and_nothing_else() {
        let all = changes(&course(Preset::Bamboo { hourly: 0.1 }, 1), &people(10_000));
        let gone = all.iter().filter(|change| change.what == What::Dies).count();
        assert!((950..=1050).contains(&gone), "{gone} of 10,000 in an hour");
        let lives = first_lives(&course(Preset::Bamboo { hourly: 0.25 }, 100), 6000);
        let mean = lives.iter().sum::<f64>() / lives.len() as f64;
        // Whole hours survived, and half of the last.
        assert!((mean - 3.5).abs() < 0.15, "mean {mean} h");
    }

    #[test]
    fn nights_follow_the_clock_of_the_region() {
        let course = course(Preset::Night, 72);
        let there = |utc: f64, at: Time| {
            let who: Vec<Who> = (0..400).map(|peer| Who { peer, utc }).collect();
            let comes = |change: &&Change| change.at <= at;
            let mut on = vec![false; 400];
            for change in changes(&course, &who).iter().filter(comes) {
                on[change.peer as usize] = change.what == What::Comes;
            }
            on.into_iter().filter(|on| *on).count()
        };
        // The world begins at 20:00 UTC. 27 h later it is 23:00 there and 9:00 at ten hours east.
        assert!(there(0.0, 27 * HOUR) > 320, "{}", there(0.0, 27 * HOUR));
        assert!(there(10.0, 27 * HOUR) < 40, "{}", there(10.0, 27 * HOUR));
        assert!(there(0.0, 41 * HOUR) < 10, "13:00");
    }

    #[test]
    fn every_course_is_one_coming_and_one_going_in_turn() {
        let trace = Trace::read("0,add,a\n0,add,b\n5000,remove,a\n900000,add,a\n").unwrap();
        for preset in [
            Preset::None,
            Preset::Spot,
            Preset::Volunteer,
            Preset::Night,
            Preset::Bamboo { hourly: 0.3 },
            Preset::Trace(trace),
        ] {
            let course = Course { warned: 0.5, arrive_within: HOUR, ..course(preset, 100) };
            let mut on = [false; 50];
            let all = changes(&course, &people(50));
            assert!(
                all.is_sorted_by_key(|change| (change.at, change.peer))
                    && all.iter().all(|change| change.at < course.duration)
            );
            for change in all {
                let there = &mut on[change.peer as usize];
                assert_ne!(*there, change.what == What::Comes, "{change:?} of {:?}", course.preset);
                *there = change.what == What::Comes;
            }
        }
    }

    #[test]
    fn another_peer_changes_nobody_elses_course() {
        for preset in [Preset::None, Preset::Spot, Preset::Volunteer, Preset::Night, Preset::Bamboo { hourly: 0.3 }] {
            let course = Course { warned: 0.3, arrive_within: HOUR, ..course(preset, 50) };
            let mut more = changes(&course, &people(21));
            more.retain(|change| change.peer < 20);
            assert_eq!(changes(&course, &people(20)), more, "{:?}", course.preset);
        }
    }

    #[test]
    fn warned_exits_are_the_part_that_was_asked_for_and_slower_is_slower() {
        let politely = Course { warned: 0.25, ..course(Preset::Spot, 20) };
        let all = changes(&politely, &people(600));
        let exits = all.iter().filter(|change| change.what != What::Comes).count() as f64;
        let polite = all.iter().filter(|change| change.what == What::Leaves).count() as f64;
        assert!((polite / exits - 0.25).abs() < 0.03, "{polite} of {exits}");
        let lives = |slower| {
            let lives = first_lives(&Course { slower, ..course(Preset::Volunteer, 1000) }, 100);
            lives[50]
        };
        assert!((lives(2.0) / lives(1.0) - 2.0).abs() < 1e-6);
    }
}
