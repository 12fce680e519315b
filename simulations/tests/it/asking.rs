//! Scenarios are asked as a user asks them: the same outcome from the same seed, at either fidelity, whoever looks on.

use skein_simulations::{
    ask::{Far, Unwatched, Watch, ask},
    outcome::{Ended, Outcome},
    scenario::{Document, Files, built_in},
    search,
};

fn document(name: &str, changes: &[&str]) -> Document {
    let text = built_in().iter().find(|(known, _)| *known == name).map(|(_, text)| *text).expect("it is built in");
    let mut document = Document::read(name, text).expect("it is clean");
    changes.iter().for_each(|change| document.set(change).expect("the change is possible"));
    document
}

fn asked(name: &str, changes: &[&str], seed: u64) -> Outcome {
    ask(&document(name, changes), &Files::new(), seed, &mut Unwatched).expect("it contradicts nothing")
}

#[test]
fn the_first_scenario_trains_through_two_deaths_and_loses_nothing() {
    let outcome = asked("first", &[], 1);
    assert_eq!(outcome.ended, Ended::Finished);
    assert_eq!(outcome.violations, []);
    assert!(
        outcome.totals.completed > 100 && outcome.totals.lost == 0 && outcome.totals.died == 2,
        "{:?}",
        outcome.totals
    );
    let shares: f64 = outcome.shares.lost().iter().map(|(_, share)| share).sum();
    assert!((shares - 1.0).abs() < 1e-9);
    assert_eq!(outcome.series.iter().map(|sample| sample.tokens).sum::<u64>(), outcome.totals.tokens);
}

#[test]
fn one_seed_gives_one_outcome_and_another_seed_another() {
    let once = asked("first", &["duration=90s"], 7);
    assert_eq!(once, asked("first", &["duration=90s"], 7));
    assert_ne!(once.digest, asked("first", &["duration=90s"], 8).digest);
}

/// Ends it after so many looks.
struct Patience(usize);

impl Watch for Patience {
    fn far(&mut self, _: &Far) -> bool {
        self.0 -= 1;
        self.0 > 0
    }
}

#[test]
fn whoever_looks_on_may_stop_it_and_gets_what_there_is() {
    let outcome = ask(&document("first", &[]), &Files::new(), 1, &mut Patience(40)).expect("it contradicts nothing");
    assert_eq!((outcome.ended, outcome.series.len()), (Ended::Interrupted, 40));
    assert!(outcome.totals.tokens > 0);
}

#[test]
fn a_stage_that_nobody_serves_any_more_ends_it_with_the_reason() {
    let text = "question = \"?\"\n[run]\nmodel = \"demo\"\nstages = 2\n[peers]\ncount = 2\nplaces = \"even\"\n\
                [[fault]]\nat = \"30 s\"\nwhat = \"die\"\npeers = 1\nstage = 1\n[simulate]\nduration = \"5 h\"\n";
    let document = Document::read("empty", text).expect("it is clean");
    let outcome = ask(&document, &Files::new(), 1, &mut Unwatched).expect("it contradicts nothing");
    let Ended::Stuck { stage, since_s, .. } = outcome.ended else { panic!("{:?}", outcome.ended) };
    assert_eq!(stage, Some(1));
    assert!((30.0..40.0).contains(&since_s) && outcome.simulated_s < 7200.0, "{since_s}, {}", outcome.simulated_s);
}

#[test]
fn random_scenarios_hold_every_property() {
    for seed in 1..=6 {
        let found = search::look(seed);
        assert!(found.broken.is_empty(), "seed {seed}: {:?}\n{}", found.broken, found.text);
        assert!(found.events > 1000);
    }
}
