//! Scenarios are asked as a user asks them: the same outcome from the same seed, at either fidelity, whoever looks on.

use skein_simulations::{
    ask::{Far, Unwatched, Watch, ask},
    outcome::{Cause, Ended, Learning, Lies, Outcome},
    report::{Summary, Told, explain},
    scenario::{Document, Files, built_in},
    search,
    world::adversary::Lie,
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
        let found = search::look(seed, &|| true).expect("nobody stops it");
        assert!(search::in_short(&found.text).contains(" peers ("), "{}", found.text);
        assert!(found.broken.is_empty(), "seed {seed}: {:?}\n{}", found.broken, found.text);
        assert!(found.events > 1000);
    }
}

/// A chain whose links are far slower than its devices.
fn over_links(up: &str, down: &str) -> Outcome {
    let text = "question = \"?\"\n[run]\nmodel = \"demo\"\nstages = 3\naveraging_every = 0\n[peers]\ncount = 6\n\
                places = \"even\"\n[simulate]\nduration = \"90 s\"\n";
    let mut document = Document::read("links", text).expect("it is clean");
    document.set(&format!("upload={up}")).expect("a rate");
    document.set(&format!("download={down}")).expect("a rate");
    ask(&document, &Files::new(), 1, &mut Unwatched).expect("it contradicts nothing")
}

#[test]
fn the_limit_is_the_link_that_is_full() {
    let slow_up = over_links("5Mbit/s", "1Gbit/s").shares;
    assert_eq!(slow_up.bottleneck(), Cause::Upload, "{slow_up:?}");
    assert!(slow_up.download < 0.02, "{slow_up:?}");
    let slow_down = over_links("1Gbit/s", "5Mbit/s").shares;
    assert_eq!(slow_down.bottleneck(), Cause::Download, "{slow_down:?}");
    assert!(slow_down.upload < 0.02, "{slow_down:?}");
}

#[test]
fn links_on_which_nothing_comes_through_are_named() {
    let outcome = asked("first", &["upload=1kbit/s", "duration=3h"], 1);
    let Ended::Stuck { stage: None, why, .. } = &outcome.ended else { panic!("{:?}", outcome.ended) };
    assert!(why.contains("waiting for uplinks"), "{why}");
}

#[test]
fn what_nobody_learned_is_in_no_sample() {
    let outcome = asked("first", &["duration=60s", "run.averaging_every=2"], 1);
    assert!(outcome.totals.rounds > 0 && outcome.learning == Learning::None);
    assert!(outcome.series.iter().all(|sample| sample.loss.is_none() && sample.disagreement.is_none()));
}

#[test]
fn serving_peers_whom_the_feeder_does_not_reach_are_counted() {
    let text = "question = \"?\"\n[run]\nmodel = \"demo\"\nstages = 2\n[peers]\ncount = 8\nplaces = \"even\"\n\
                [network]\naccess = { loopback = 1 }\n[[fault]]\nat = \"60 s\"\nwhat = \"partition\"\n\
                peers = 2\nstage = 1\nlasts = \"1 h\"\n[simulate]\nduration = \"4 min\"\n";
    let document = Document::read("parted", text).expect("it is clean");
    let outcome = ask(&document, &Files::new(), 1, &mut Unwatched).expect("it contradicts nothing");
    let remark = outcome.remarks.iter().find(|remark| remark.starts_with("2 of 8 peers that serve had no part"));
    assert!(
        remark.is_some_and(|remark| remark.contains("in the last 3 min") || remark.contains("in the last 2 min")),
        "{:?}",
        outcome.remarks
    );
    assert_eq!(outcome.planned.len(), 1);
    assert_eq!(
        (outcome.planned[0].what.as_str(), outcome.planned[0].at_s, outcome.planned[0].until_s),
        ("partition", 60.0, 240.0)
    );
}

#[test]
fn peers_that_came_back_and_still_fetch_are_counted() {
    let outcome = asked("first", &["duration=170s", "upload=2Mbit/s"], 1);
    assert!(
        outcome.remarks.iter().any(|remark| remark.starts_with("2 peers that came back were still fetching")),
        "{:?}",
        outcome.remarks
    );
}

#[test]
fn a_table_of_prices_that_is_named_last_wins() {
    let table = include_str!("../../data/prices.toml").replace("usd_per_kwh = 0.30", "usd_per_kwh = 3.0");
    let files: Files = [("p3.toml".to_string(), table)].into();
    let usd = |changes: &[&str]| {
        let document = document("cost_parity", &[&["duration=90s", "cost.usd_per_peer_hour=0"][..], changes].concat());
        let outcome = ask(&document, &files, 1, &mut Unwatched).expect("it contradicts nothing");
        outcome.cost.expect("something was trained").usd
    };
    assert_eq!(usd(&[]), 0.0, "the scenario says that power is included");
    let (by_table, by_key) = (usd(&["cost.prices=p3.toml"]), usd(&["cost.usd_per_kwh=3"]));
    assert!(by_table > 0.0 && by_table == by_key, "{by_table} {by_key}");
    assert_eq!(usd(&["cost.prices=p3.toml", "cost.usd_per_kwh=0"]), 0.0);
}

#[test]
fn what_liars_did_is_told_where_values_are_real() {
    let text = "question = \"?\"\nlearning = \"real\"\n[run]\nmodel = \"tiny\"\nstages = 2\n[peers]\ncount = 6\n\
                places = \"even\"\n[adversaries]\nshare = 0.34\nkind = \"nan\"\n[simulate]\nduration = \"20 s\"\n";
    let document = Document::read("liars", text).expect("it is clean");
    let outcome = ask(&document, &Files::new(), 1, &mut Unwatched).expect("it contradicts nothing");
    let lies = outcome.totals.lies;
    assert_eq!((lies.peers, lies.kind), (1, Some(Lie::Nan)));
    assert!(lies.refused > 0 && lies.withheld == 0, "{lies:?}");
    let said = said_of(&outcome);
    assert!(said.iter().any(|said| said.contains("1 of 6 peers lies") && said.contains("not finite")), "{said:?}");
}

fn said_of(outcome: &Outcome) -> Vec<String> {
    explain(&Summary::of(std::slice::from_ref(outcome), &Told::default()).expect("an outcome")).sentences
}

#[test]
fn what_silent_liars_kept_back_is_told_beside_the_bottleneck() {
    let sets = ["duration=90s", "liars=0.1", "adversaries.kind=silent"];
    let outcome = ask(&document("first", &sets), &Files::new(), 1, &mut Unwatched).expect("it contradicts nothing");
    let lies = outcome.totals.lies;
    assert!(lies.peers > 0 && lies.withheld > 0, "{lies:?}");
    let said = said_of(&outcome);
    let wanted = format!("{} results never came", lies.withheld);
    assert!(said.iter().any(|said| said.contains(&wanted) && said.contains("--set liars=0")), "{said:?}");
    // Nobody lies: nobody is named.
    let honest = ask(&document("first", &sets[..1]), &Files::new(), 1, &mut Unwatched).expect("it contradicts nothing");
    assert_eq!(honest.totals.lies, Lies::default());
    assert!(!said_of(&honest).iter().any(|said| said.contains("lie")), "{:?}", said_of(&honest));
}

#[test]
fn a_search_that_is_stopped_ends_within_a_second_of_its_world() {
    let asked = std::cell::Cell::new(0);
    let go_on = || {
        asked.set(asked.get() + 1);
        asked.get() < 3
    };
    assert!(search::look(1, &go_on).is_none());
    assert_eq!(asked.get(), 3);
}
