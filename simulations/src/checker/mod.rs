//! Properties of a run, over the events of all its peers: one file a property. In: lines in the order of time, one by one. Out:
//! numbers, and sentences about what must not be.
//!
//! Pure: it reads what peers said, the dead included, and nothing else, so that it judges the simulator and real processes
//! alike. It never keeps the lines; of each id it keeps what became of it.

pub mod leaving;
pub mod log;
pub mod once;
pub mod open;
mod over;
pub mod progress;
pub mod repair;
pub mod rounds;
pub mod snapshots;
pub mod staleness;
pub mod straight;
pub mod versions;
pub mod window;

use std::fmt;

use serde::{Deserialize, Serialize};
use skein_protocol::{Manifest, PeerId, Stage, event::Record};

/// One event, with a time that all peers share: nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub at: u64,
    pub record: Record,
}

/// A process that was ended from outside, without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    pub peer: PeerId,
    pub at: u64,
}

/// What the checker needs to know that no event says.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub stages: Stage,
    /// Own steps that a gradient may be old.
    pub staleness_bound: u32,
    pub in_flight_max: u32,
    /// How far a feeder mints from its first id that is not over.
    pub reach_max: u64,
    pub kills: Vec<Kill>,
    /// Some peers have no log here: of them nothing is said.
    pub partial: bool,
}

impl Given {
    pub fn of(manifest: &Manifest, kills: Vec<Kill>) -> Self {
        Given {
            stages: manifest.stages.count,
            staleness_bound: manifest.staleness.bound,
            in_flight_max: manifest.train.in_flight_max,
            reach_max: manifest.reach_max(),
            kills,
            partial: false,
        }
    }
}

/// The properties, as users and reports name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Property {
    /// A peer asks of its driver only what a driver can do. Looked at by the simulator, whose driver keeps count.
    P0,
    /// No id counts twice in the weights of one replica.
    P1,
    /// What was completed is applied, perished, refused or open: never lost.
    P2,
    /// What one side of a round takes for done by both, the other has not rolled back.
    P3,
    /// Who leaves politely steps with everything that it has added.
    P4,
    /// Versions of a stage only grow, and none has two roots.
    P5,
    /// No gradient enters a sum that is older than the bound.
    P6,
    /// What is open is bounded by the window.
    P7,
    /// Nothing that cannot be read, or is not finite, gets into a sum; honest peers send neither.
    P9,
    /// A state that is fetched or restored is one that somebody had, whole.
    P10,
    /// Where a core is connected, new versions appear.
    P12,
    /// Every id that is begun comes to an end.
    P13,
    /// One seed gives one history.
    P18,
}

impl Property {
    pub const ALL: [Property; 13] = {
        use Property::*;
        [P0, P1, P2, P3, P4, P5, P6, P7, P9, P10, P12, P13, P18]
    };

    /// In words.
    pub fn says(self) -> &'static str {
        match self {
            Property::P0 => "a peer asks of its driver only what a driver can do",
            Property::P1 => "no micro-batch counts twice in the weights of one replica",
            Property::P2 => "what was completed is applied, perished, refused or open, never lost",
            Property::P3 => "both sides of a round agree on whether it happened",
            Property::P4 => "who leaves politely has stepped with everything it added",
            Property::P5 => "versions of a stage only grow, and none has two roots",
            Property::P6 => "no gradient is added that is older than the bound",
            Property::P7 => "what is open is bounded by the window",
            Property::P9 => "what cannot be read or is not finite is never added, and honest peers send neither",
            Property::P10 => "a state that is fetched or restored is one that somebody had, whole",
            Property::P12 => "where a core is connected, new versions appear",
            Property::P13 => "every micro-batch that is begun comes to an end",
            Property::P18 => "one seed gives one history",
        }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// What must not be, and was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Broken {
    pub property: Property,
    /// Nanoseconds.
    pub at: u64,
    /// Who said so.
    pub peer: Option<PeerId>,
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.what)
    }
}

/// Findings, as they come: a bounded number of them.
#[derive(Debug, Default)]
pub struct Findings {
    at: u64,
    peer: Option<PeerId>,
    broken: Vec<Broken>,
}

impl Findings {
    pub const MOST: usize = 50;

    fn add(&mut self, property: Property, what: String) {
        if self.broken.len() < Self::MOST {
            self.broken.push(Broken { property, at: self.at, peer: self.peer, what });
        }
    }
}

/// All that is found. Counts of stages are sums over the stages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub minted: u64,
    pub completed: u64,
    pub voided: u64,
    pub tokens: u64,
    /// Mean of the first 8 completed micro-batches, and of the last tenth.
    pub loss_first: f32,
    pub loss_last: f32,
    pub stages: Vec<once::Account>,
    pub applied: u64,
    pub perished: u64,
    pub refused: u64,
    pub pending: u64,
    pub lost: u64,
    pub doubled: u64,
    pub overlapped: u64,
    /// Sent again since somebody was lost or silent.
    pub resent: u64,
    pub steps: u64,
    /// Run steps, by the latest that any replica's step said.
    pub run_steps: u64,
    /// A round of two replicas is one.
    pub rounds: u64,
    pub rounds_rolled_back: u64,
    /// Living replicas after their last round.
    pub agreements: Vec<rounds::Agreement>,
    pub repairs: Vec<repair::Repair>,
    pub bytes_activations: u64,
    pub bytes_gradients: u64,
    pub bytes_if_f32: u64,
    /// Activations that went from stage to stage.
    pub hops: u64,
    /// Gradients that were added, by how many own steps they were late.
    pub staleness: staleness::Counts,
    pub broken: Vec<Broken>,
}

/// Looks at every line as it comes.
#[derive(Debug)]
pub struct Checker {
    /// Of `Given`, in the order of time, that are still to come.
    kills: std::iter::Peekable<std::vec::IntoIter<Kill>>,
    progress: progress::Progress,
    once: once::Once,
    rounds: rounds::Rounds,
    repairs: repair::Repairs,
    versions: versions::Versions,
    staleness: staleness::Staleness,
    straight: straight::Straight,
    window: window::Window,
    snapshots: snapshots::Snapshots,
    leaving: leaving::Leaving,
    open: open::Open,
    findings: Findings,
}

impl Checker {
    pub fn new(given: &Given) -> Self {
        let mut kills = given.kills.clone();
        kills.sort_by_key(|kill| kill.at);
        Checker {
            kills: kills.into_iter().peekable(),
            progress: Default::default(),
            once: once::Once::new(given.stages, given.partial),
            rounds: Default::default(),
            repairs: Default::default(),
            versions: Default::default(),
            staleness: staleness::Staleness::new(given.staleness_bound),
            straight: straight::Straight::new(given.partial),
            window: window::Window::new(given),
            snapshots: Default::default(),
            leaving: Default::default(),
            open: Default::default(),
            findings: Findings::default(),
        }
    }

    pub fn on_line(&mut self, line: &Line) {
        while let Some(kill) = self.kills.next_if(|kill| kill.at < line.at) {
            self.on_kill(kill);
        }
        let found = &mut self.findings;
        (found.at, found.peer) = (line.at, Some(line.record.peer));
        self.progress.on_line(line);
        self.once.on_line(line, found);
        self.rounds.on_line(line, found);
        self.repairs.on_line(line);
        self.versions.on_line(line, found);
        self.staleness.on_line(line, found);
        self.straight.on_line(line, found);
        self.window.on_line(line, found);
        self.snapshots.on_line(line, found);
        self.leaving.on_line(line, found);
        self.open.on_line(line);
    }

    /// A process was ended, after all lines that came so far.
    pub fn on_kill(&mut self, kill: Kill) {
        self.once.on_kill(kill.peer);
        self.rounds.on_kill(kill.peer);
        self.repairs.on_kill(kill);
        self.leaving.on_kill(kill.peer);
    }

    /// What was found so far.
    pub fn broken(&self) -> &[Broken] {
        &self.findings.broken
    }

    /// Ids that are begun and not over, the oldest first: when, and its name.
    pub fn open(&self) -> Vec<(u64, String)> {
        self.open.all()
    }

    pub fn finish(mut self) -> Summary {
        while let Some(kill) = self.kills.next() {
            self.on_kill(kill);
        }
        let mut summary = Summary::default();
        let mut found = self.findings;
        found.peer = None;
        self.progress.finish(&mut summary);
        self.once.finish(&mut summary, &mut found);
        self.rounds.finish(&mut summary);
        self.repairs.finish(&mut summary);
        self.staleness.finish(&mut summary);
        self.straight.finish(&mut summary, &mut found);
        summary.broken = found.broken;
        summary
    }
}

/// Looks at everything.
pub fn check(lines: &[Line], given: &Given) -> Summary {
    let mut checker = Checker::new(given);
    lines.iter().for_each(|line| checker.on_line(line));
    checker.finish()
}

impl Summary {
    /// Longest time from a kill to the first completion among the ids that the dead peer held, milliseconds.
    pub fn repair_ms_max(&self) -> Option<u64> {
        self.repairs.iter().filter_map(|repair| repair.held_ms).max()
    }

    /// The largest among the living; not a number if one of them is none.
    pub fn disagreement(&self) -> Option<f32> {
        let larger = |a: f32, b: f32| if a.is_nan() || a > b { a } else { b };
        self.agreements.iter().map(|agreement| agreement.apart).reduce(larger)
    }

    /// Own steps that `share` of the added gradients were late at most.
    pub fn staleness_at(&self, share: f64) -> u32 {
        self.staleness.quantile(share)
    }
}
