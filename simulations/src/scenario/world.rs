//! The world of a scenario for one seed: peers, links, a course of events. In: a document, the files that it names, a seed. Out: a
//! [`Setup`] that the driver runs, what it is told on the way, and what the fleet's flows are made of.

use super::{
    Document, Files, Person, Refused, Scenario, Trouble,
    check::{self, Ground, check},
    people::people,
    troubles::{self, end_for_good},
};
use crate::{
    driver::{Fault, Plan, Setup},
    engine::{SECOND, Time},
    outcome::{Fidelity, Learning},
    world::{
        Corpus,
        churn::{self, Change, Who},
        network::Fill,
        prices::Prices,
        regions::Regions,
        unit,
    },
};

/// Symbols of the data that is really learned.
const PERIOD: u32 = 17;

/// All that is simulated, and nothing is left to chance.
pub struct World {
    /// Name of the scenario, its text as it runs, and one hash of it and its files.
    pub name: String,
    pub scenario: Scenario,
    pub text: String,
    pub config: String,
    pub seed: u64,
    pub fidelity: Fidelity,
    pub duration: Time,
    /// For the driver. Peer 0 is the owner, the first feeder, and whom all others dial first.
    pub setup: Setup,
    /// What the driver is told on the way, in the order of time. Empty at fleet fidelity.
    pub faults: Vec<(Time, Fault)>,
    /// By number of peer: feeders, then peers, then the newcomers of crowds.
    pub people: Vec<Person>,
    /// The course of churn, by number of peer: first comings included, the newcomers of crowds not.
    pub changes: Vec<Change>,
    /// The scenario's faults with their victims.
    pub troubles: Vec<Trouble>,
    pub regions: Regions,
    /// Part of the datagrams that are lost by chance.
    pub loss: f64,
    pub prices: Prices,
    /// What about this is not as it looks. Sentences.
    pub remarks: Vec<String>,
    /// With what was changed since its author asked it.
    pub question: String,
}

/// # Errors
/// What of the scenario does not go together: see [`check()`].
pub fn expand(document: &Document, files: &Files, seed: u64) -> Result<World, Refused> {
    let ground = check(document, files)?;
    let scenario = &document.scenario;
    let people = people(scenario, &ground, seed);
    let troubles = troubles::troubles(scenario, &people, seed);
    let mut changes = course(scenario, &ground, &people, seed);
    end_for_good(&mut changes, &troubles);
    let course = troubles::Course {
        scenario,
        people: &people,
        changes: &changes,
        troubles: &troubles,
        seed,
        duration: ground.duration,
    };
    let faults = if ground.fidelity == Fidelity::Protocol { course.faults() } else { Vec::new() };
    let setup = setup(scenario, &ground, &people, &changes, seed);
    Ok(World {
        name: document.file.clone(),
        scenario: scenario.clone(),
        question: document.asked(),
        text: document.write(),
        config: document.digest(files),
        seed,
        fidelity: ground.fidelity,
        duration: ground.duration,
        setup,
        faults,
        changes,
        troubles,
        loss: scenario.network.loss_percent / 100.0,
        prices: ground.prices,
        remarks: ground.remarks,
        regions: ground.regions,
        people,
    })
}

/// The course of churn of those who are there from the beginning, by number of peer.
fn course(scenario: &Scenario, ground: &Ground, people: &[Person], seed: u64) -> Vec<Change> {
    let course = churn::Course {
        seed,
        preset: ground.preset.clone(),
        warned: scenario.churn.warned,
        slower: scenario.churn.slower,
        arrive_within: check::time(&scenario.peers.arrive_within),
        duration: ground.duration,
    };
    let feeders = scenario.peers.feeders;
    let who: Vec<Who> = people
        .iter()
        .filter(|person| person.newcomer.is_none())
        .filter_map(|person| Some(Who { peer: person.ordinal? as u32, utc: person.utc }))
        .collect();
    let mut changes = churn::changes(&course, &who);
    changes.iter_mut().for_each(|change| change.peer += feeders);
    changes
}

fn setup(scenario: &Scenario, ground: &Ground, people: &[Person], changes: &[Change], seed: u64) -> Setup {
    let disk = unit::size(&scenario.peers.disk).unwrap_or(0);
    // Who never comes begins after the end.
    let never = ground.duration.saturating_add(SECOND);
    let mut starts: Vec<Time> =
        people.iter().map(|person| if person.feeds() { 0 } else { person.newcomer.unwrap_or(never) }).collect();
    for change in changes.iter().filter(|change| change.what == churn::What::Comes) {
        let first = &mut starts[change.peer as usize];
        *first = (*first).min(change.at);
    }
    let plan = |(number, (person, starts)): (usize, (&Person, Time))| {
        let bootstrap = if number == 0 { Vec::new() } else { vec![0] };
        Plan { bootstrap, ..person.plan(disk, starts) }
    };
    let plans = people.iter().zip(starts).enumerate().map(plan).collect();
    let mut setup = Setup::new(seed, ground.manifest.clone(), plans);
    setup.regions = ground.regions.delay.clone();
    setup.loss = scenario.network.loss_percent / 100.0;
    setup.fill = Fill::Measured;
    if scenario.learning == Learning::Real {
        setup.make_worker = crate::worker::learning::Learning::make();
        setup.corpus = Corpus::Cycle { period: PERIOD };
    }
    setup
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "question = \"?\"\n[run]\nmodel = \"demo\"\nstages = 3\n[peers]\ncount = 12\nspread = 0.3\n\
        owner_busy = 0.3\ndevices = { core = 0.5, laptop = 0.5 }\n[network]\nregions = \"population\"\nrelayed = 0.25\n\
        [churn]\npreset = \"volunteer\"\nwarned = 0.5\nslower = 0.05\n[adversaries]\nshare = 0.25\n[simulate]\n\
        duration = \"2 h\"\n";

    fn world(sets: &[&str], more: &str) -> World {
        let mut document = Document::read("my.toml", &format!("{TEXT}{more}")).unwrap();
        sets.iter().for_each(|set| document.set(set).unwrap());
        expand(&document, &Files::new(), 7).unwrap_or_else(|refused| panic!("{refused}"))
    }

    /// What the driver is told of one peer, in words.
    fn told(world: &World, peer: usize) -> Vec<String> {
        let named = format!("({peer}");
        let of_peer = world.faults.iter().filter(|(_, fault)| {
            let text = format!("{fault:?}");
            text.find(&named).is_some_and(|at| !text[at + named.len()..].starts_with(|c: char| c.is_ascii_digit()))
        });
        of_peer.map(|(at, fault)| format!("{at} {fault:?}")).collect()
    }

    #[test]
    fn another_peer_changes_nothing_of_the_others() {
        let crowd = "[[fault]]\nat = \"1 h\"\nwhat = \"crowd\"\npeers = 3\n";
        let (few, many) = (world(&[], crowd), world(&["peers=13"], crowd));
        assert_eq!(few.people[..13], many.people[..13]);
        assert_eq!(few.people[13..], many.people[14..], "the newcomers are the same");
        for peer in 0..13 {
            assert_eq!(told(&few, peer), told(&many, peer));
        }
        let of_all =
            |world: &World| world.changes.iter().copied().filter(|change| change.peer < 13).collect::<Vec<_>>();
        assert_eq!(of_all(&few), of_all(&many));
        assert!(!few.faults.is_empty());
    }

    #[test]
    fn shares_are_of_the_peers_and_another_seed_is_another_world() {
        let world = world(&["peers=400"], "");
        let part = |which: &dyn Fn(&Person) -> bool| world.people.iter().filter(|person| which(person)).count();
        for (count, wanted) in [
            (part(&|person| person.device == "laptop"), 200),
            (part(&|person| person.relayed), 100),
            (part(&|person| person.liar), 100),
            (part(&|person| person.access == "cable"), 120),
            (part(&|person| person.region == "eu"), 198),
        ] {
            assert!(count.abs_diff(wanted) <= 4, "{count} of {wanted}");
        }
        let mut document = Document::read("my.toml", TEXT).unwrap();
        document.set("peers=400").unwrap();
        let other = expand(&document, &Files::new(), 8).unwrap();
        assert_ne!(other.people, world.people);
        assert_eq!(other.config, world.config);
    }

    #[test]
    fn what_the_scenario_says_of_links_is_exact() {
        let world = world(&["up=20 Mbit/s", "down=300 Mbit/s", "delay=10 ms", "loss=0.5"], "");
        for person in &world.people {
            let link = person.link;
            assert_eq!(
                (link.up, link.down, link.delay.as_millis(), link.jitter.as_nanos()),
                (2_500_000, 37_500_000, 10, 0)
            );
        }
        assert!((world.loss - 0.005).abs() < 1e-12);
    }

    #[test]
    fn faults_befall_whom_they_name_and_pass() {
        let even = ["peers.places=even", "churn=none", "peers.owner_busy=0"];
        let fault = |text: &str| world(&even, &format!("[[fault]]\n{text}"));
        let slow = fault("at = \"60 s\"\nwhat = \"slow\"\npeers = 0.5\nstage = 1\nfactor = 0.25\nlasts = \"60 s\"");
        let whom = &slow.troubles[0].whom;
        assert_eq!(whom.len(), 2);
        assert!(whom.iter().all(|peer| slow.people[*peer].stage == Some(1)));
        assert_eq!(
            told(&slow, whom[0]),
            [format!("60000000000 Speed({}, 0.25)", whom[0]), format!("120000000000 Speed({}, 1.0)", whom[0])]
        );
        let parted = fault("at = \"60 s\"\nwhat = \"partition\"\npeers = 4");
        // Four against eight others and the feeder, each parted and healed in both directions.
        assert_eq!(parted.faults.len(), 2 * 2 * 4 * 9);
        let swizzled = fault("at = \"60 s\"\nwhat = \"swizzle\"\npeers = 1");
        assert_eq!(swizzled.faults.len(), 2 * 2 * 12);
        let whom = swizzled.troubles[0].whom[0];
        let order = |part: &[(Time, Fault)]| -> Vec<usize> {
            let other = |(_, fault): &(Time, Fault)| match fault {
                Fault::Block(from, other) | Fault::Unblock(from, other) => (*from == whom).then_some(*other),
                other => panic!("{other:?}"),
            };
            part.iter().filter_map(other).collect()
        };
        let (clogged, free) = swizzled.faults.split_at(24);
        assert_eq!(order(clogged).len(), 12);
        assert_ne!(order(clogged), order(free));
        let left = fault("at = \"60 s\"\nwhat = \"leave\"\npeers = 1");
        assert!(matches!(left.faults[0].1, Fault::Command(..)) && left.faults.len() == 2);
    }

    #[test]
    fn who_dies_for_good_does_not_come_back_by_churn() {
        let world = world(&[], "[[fault]]\nat = \"30 min\"\nwhat = \"die\"\npeers = 0.5");
        let (at, whom) = (world.troubles[0].at, &world.troubles[0].whom);
        assert_eq!(whom.len(), 6);
        for (when, fault) in &world.faults {
            if let Fault::Start(peer) = fault {
                assert!(*when <= at || !whom.contains(peer));
            }
        }
    }

    #[test]
    fn a_trace_is_followed() {
        let mut document = Document::read("my.toml", TEXT).unwrap();
        document.set("churn=trace:a.trace").unwrap();
        document.set("peers.owner_busy=0").unwrap();
        document.set("churn.slower=1").unwrap();
        document.set("churn.warned=0").unwrap();
        let files: Files = [("a.trace".into(), "1000,add,x\n2000,remove,x\n3000,add,x\n3000,add,y\n".into())].into();
        let world = expand(&document, &files, 1).unwrap();
        assert_eq!(
            world.faults.iter().map(|(at, fault)| format!("{at} {fault:?}")).collect::<Vec<_>>(),
            ["2000000000 Kill(1)", "3000000000 Start(1)"]
        );
        let starts = |peer: usize| world.setup.peers[peer].starts.as_millis();
        assert_eq!((starts(0), starts(1), starts(2), starts(3)), (0, 1000, 3000, 0));
    }

    #[test]
    fn a_world_that_learns_has_a_worker_that_does() {
        let world = world(&["model=tiny", "learning=real"], "");
        assert!(matches!(world.setup.corpus, Corpus::Cycle { .. }));
    }
}
