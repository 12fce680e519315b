//! The scenarios that come with the program, from `scenarios/`: a name in, a text out.

/// Name and text, in the order in which they are listed: the one that runs without a name first.
pub fn built_in() -> &'static [(&'static str, &'static str)] {
    SCENARIOS
}

const SCENARIOS: &[(&str, &str)] = &[
    ("first", include_str!("../../scenarios/first.toml")),
    ("demo", include_str!("../../scenarios/demo.toml")),
    ("home_upload", include_str!("../../scenarios/home_upload.toml")),
    ("spot_churn", include_str!("../../scenarios/spot_churn.toml")),
    ("volunteer_week", include_str!("../../scenarios/volunteer_week.toml")),
    ("flash_crowd", include_str!("../../scenarios/flash_crowd.toml")),
    ("split_brain", include_str!("../../scenarios/split_brain.toml")),
    ("half_die", include_str!("../../scenarios/half_die.toml")),
    ("one_straggler", include_str!("../../scenarios/one_straggler.toml")),
    ("worldwide_8x8", include_str!("../../scenarios/worldwide_8x8.toml")),
    ("five_percent_liars", include_str!("../../scenarios/five_percent_liars.toml")),
    ("cost_parity", include_str!("../../scenarios/cost_parity.toml")),
    ("hundred_thousand", include_str!("../../scenarios/hundred_thousand.toml")),
];

/// The text of a scenario by its name.
pub fn named(name: &str) -> Option<&'static str> {
    built_in().iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        driver::Simulation,
        outcome::Fidelity,
        scenario::{Document, Files, World, expand},
        world::churn::What,
    };

    #[test]
    fn every_scenario_reads_checks_and_expands() {
        for (name, text) in built_in() {
            let document = Document::read(name, text).unwrap_or_else(|refused| panic!("{refused}"));
            assert!(document.scenario.question.ends_with('?'), "{name}");
            let world = expand(&document, &Files::new(), 1).unwrap_or_else(|refused| panic!("{refused}"));
            assert_eq!(world.people.len(), world.setup.peers.len());
        }
        assert_eq!(named("nonsense"), None);
    }

    fn world(name: &str, sets: &[&str]) -> World {
        let mut document = Document::read(name, named(name).unwrap()).unwrap();
        for set in sets {
            document.set(set).unwrap();
        }
        expand(&document, &Files::new(), 1).unwrap()
    }

    #[test]
    fn every_scenario_as_it_runs_is_a_scenario_again() {
        for (name, text) in built_in() {
            let document = Document::read(name, text).unwrap();
            let again = Document::read(name, &document.write()).unwrap_or_else(|refused| panic!("{refused}"));
            assert_eq!(again.scenario, document.scenario);
        }
    }

    #[test]
    fn a_hundred_thousand_peers_are_flows() {
        let world = world("hundred_thousand", &["duration=1 h"]);
        assert_eq!((world.fidelity, world.people.len()), (Fidelity::Fleet, 100_100));
        assert!(world.faults.is_empty());
        let left = world.changes.iter().filter(|change| change.what != What::Comes).count() as f64 / 100_000.0;
        // 1 - exp(-(1 / 3.66)^0.61) of first sessions end within the hour; some come back and go again.
        assert!((0.35..0.45).contains(&left), "{left}");
    }

    #[test]
    fn the_first_scenario_trains_for_a_minute() {
        let world = world("first", &[]);
        let mut simulation = Simulation::new(world.setup);
        for (at, fault) in world.faults {
            simulation.at(Duration::from_nanos(at), fault);
        }
        simulation.run_for(Duration::from_secs(60));
        let summary = simulation.summary();
        println!("{} micro-batches, {} happenings", summary.completed, simulation.happenings());
        assert!(summary.completed > 20, "{summary:?}");
        assert_eq!((summary.lost, summary.doubled), (0, 0));
        assert_eq!(simulation.wrongs(), []);
    }
}
