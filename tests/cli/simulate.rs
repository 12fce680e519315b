//! `skein simulate` and what belongs to it, as a user types it.

use std::{fs, path::Path};

use serde_json::Value;

use super::{ask, home, json};

/// A scenario that takes a moment.
const SMALL: [&str; 4] = ["simulate", "demo", "--duration", "40s"];

fn simulated(dir: &Path, out: &str, more: &[&str]) -> super::Said {
    let out = dir.join(out);
    let args = [&SMALL[..], &["--out", out.to_str().unwrap()], more].concat();
    ask(dir, &args)
}

#[test]
fn the_scenarios_that_come_with_the_program_are_listed_with_their_questions() {
    let home = home();
    let said = ask(home.path(), &["simulate", "list"]);
    assert_eq!(said.exit, 0);
    assert!(said.stdout.contains("home_upload") && said.stdout.contains('?'), "{}", said.stdout);
    let all = json(&ask(home.path(), &["simulate", "list", "--json"]));
    assert_eq!(all["scenarios"].as_array().map(Vec::len), Some(13));
    let text = ask(home.path(), &["simulate", "show", "first"]).stdout;
    assert!(text.contains("question = ") && text.contains("[run]"), "{text}");
}

#[test]
fn a_report_is_written_read_back_explained_and_compared() {
    let home = home();
    let said = simulated(home.path(), "report", &["--check", "--events"]);
    assert_eq!(said.exit, 0, "{}", said.stderr);
    assert!(said.stdout.contains("tokens/s") && said.stdout.contains("fidelity protocol"), "{}", said.stdout);
    let report = home.path().join("report");
    for file in
        ["report.html", "summary.json", "series.csv", "peers.csv", "stages.csv", "events.jsonl", "plots/shares.png"]
    {
        assert!(fs::metadata(report.join(file)).is_ok_and(|facts| facts.len() > 100), "{file}");
    }
    let report = report.to_str().unwrap();
    let why = ask(home.path(), &["simulate", "explain", report]);
    assert!(why.exit == 0 && why.stdout.lines().count() >= 2, "{}", why.stdout);
    assert_eq!(ask(home.path(), &["simulate", "compare", report, report]).exit, 0);
    let events = ask(home.path(), &["replay", &format!("{report}/events.jsonl"), "--check"]);
    assert!(events.exit == 0 && events.stdout.contains("0 lost"), "{}{}", events.stdout, events.stderr);
    assert!(events.stdout.contains("not checked: P0, P6, P7, P9, P12, P18, because a log holds"), "{}", events.stdout);
}

#[test]
fn what_perished_is_one_count_whether_the_simulator_or_the_log_tells_it() {
    let home = home();
    let said = simulated(home.path(), "report", &["--json", "--events"]);
    let done: Value = serde_json::from_str(said.stdout.lines().last().unwrap()).unwrap();
    let events = home.path().join("report/events.jsonl");
    let check = json(&ask(home.path(), &["replay", events.to_str().unwrap(), "--check", "--json"]));
    for count in ["completed", "applied", "perished", "refused", "lost", "doubled", "overlapped"] {
        assert_eq!(check["summary"][count], done[count], "{count}");
    }
    assert!(done["perished"].as_u64() > Some(0), "somebody died with work that was not safe: {done}");
    let told = ask(home.path(), &["replay", events.to_str().unwrap(), "--check"]).stdout;
    assert!(told.contains("1 peer died, by what the others say: "), "{told}");
}

#[test]
fn the_question_says_what_was_changed() {
    let home = home();
    let said = simulated(home.path(), "changed", &["--peers", "7"]);
    let flowing = said.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flowing.contains("one that comes late? (changed: duration=40s, peers=7)"), "{flowing}");
    let said = ask(home.path(), &["simulate", "demo", "--out", home.path().join("as_it_is").to_str().unwrap()]);
    assert!(!said.stdout.contains("changed"), "{}", said.stdout);
}

#[test]
fn changes_are_typed_and_tried_and_chance_is_remarked_once() {
    let home = home();
    assert_eq!(simulated(home.path(), "report", &[]).exit, 0);
    let report = home.path().join("report");
    let report = report.to_str().unwrap();
    let said = ask(home.path(), &["simulate", "explain", report, "--try"]);
    assert!(
        said.stdout.contains("BROUGHT") && said.stdout.contains("--set peers=10"),
        "{}{}",
        said.stdout,
        said.stderr
    );
    // One form, tried or not.
    let plain = json(&ask(home.path(), &["simulate", "explain", report, "--json"]));
    let tried = json(&ask(home.path(), &["simulate", "explain", report, "--json", "--try"]));
    assert!(plain["changes"][0]["gain"].is_number() && plain["changes"][0].get("brought").is_none(), "{plain}");
    assert!(tried["changes"][0]["brought"].is_number() && tried["sentences"] == plain["sentences"], "{tried}");
    let compared = ask(home.path(), &["simulate", "compare", report, report]).stdout;
    assert_eq!(compared.to_lowercase().matches("one seed").count(), 1, "{compared}");
}

#[test]
fn all_that_is_wrong_with_a_scenario_and_with_what_was_set_is_told_at_once() {
    let home = home();
    let file = home.path().join("my.toml");
    fs::write(home.path().join("binary"), [0, 159, 146, 150]).unwrap();
    fs::write(
        &file,
        "question = \"?\"\n[run]\nmodel = \"demo\"\n[peers]\ncount = 4\ncuont = 4\n[simulate]\nduration = \"0 s\"\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let said =
        ask(home.path(), &["simulate", file, "--set", "stages=9", "--set", "nonsense", "--set", "churn=trace:binary"]);
    for part in [
        "4 problems",
        "my.toml:6:1: peers.cuont",
        "my.toml:8:12: simulate.duration is 0",
        "--set nonsense",
        "names a file that could not be read: binary (it is not text (UTF-8))",
    ] {
        assert!(said.stderr.contains(part), "{part} in {}", said.stderr);
    }
    let said = ask(home.path(), &["simulate", "demo", "--duration", "-3h"]);
    assert!(said.exit == 3 && said.stderr.contains("\"-3h\" is negative"), "{}", said.stderr);
    let said = ask(home.path(), &["simulate", "sweep", "demo", "--over", "peers=0,5,many"]);
    assert!(said.stderr.contains("--over peers=0: ") && said.stderr.contains("--over peers=many: "), "{}", said.stderr);
    let said = ask(home.path(), &["simulate", "replay", "nowhere"]);
    assert!(said.exit == 2 && said.stderr.contains("neither a seed"), "{}", said.stderr);
}

#[test]
fn a_report_whose_files_are_gone_says_why_they_cannot_be_read() {
    let home = home();
    let trace = home.path().join("trace");
    fs::write(&trace, "0,add,a\n0,add,b\n0,add,c\n0,add,d\n0,add,e\n").unwrap();
    let churn = format!("churn=trace:{}", trace.display());
    let said = simulated(home.path(), "report", &["--set", &churn]);
    assert_eq!(said.exit, 0, "{}", said.stderr);
    fs::remove_file(&trace).unwrap();
    let report = home.path().join("report");
    for command in [&["replay"][..], &["explain", "--try"]] {
        let said = ask(home.path(), &[&["simulate"][..], command, &[report.to_str().unwrap()]].concat());
        assert!(said.exit == 3 && said.stderr.contains("trace (it is not there)"), "{command:?}: {}", said.stderr);
    }
}

#[test]
fn a_probe_that_cannot_be_written_speaks_of_its_file() {
    let home = home();
    fs::write(home.path().join("file"), "").unwrap();
    let out = home.path().join("file").join("probe.json");
    let said = ask(home.path(), &["probe", "--out", out.to_str().unwrap()]);
    assert!(said.exit == 4 && said.stderr.contains("SK154") && said.stderr.contains("--out"), "{}", said.stderr);
    assert!(!said.stderr.contains("--home"), "{}", said.stderr);
    let said = ask(home.path(), &["probe", "--out", home.path().to_str().unwrap()]);
    assert!(said.exit == 4 && said.stderr.contains("it is a folder"), "{}", said.stderr);
}

#[test]
fn a_folder_with_anything_else_is_left_alone_unless_told_otherwise() {
    let home = home();
    let dir = home.path().join("mine");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("diary.txt"), "dear diary").unwrap();
    let said = simulated(home.path(), "mine", &[]);
    assert!(said.exit == 2 && said.stderr.contains("SK314"), "{}", said.stderr);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    assert_eq!(simulated(home.path(), "mine", &["--force"]).exit, 0);
    assert!(dir.join("report.html").exists() && dir.join("diary.txt").exists());
    assert_eq!(simulated(home.path(), "new", &[]).exit, 0);
    let again = simulated(home.path(), "new", &[]);
    assert!(again.exit == 0 && again.stderr.contains("is replaced"), "{}", again.stderr);
}

#[test]
fn several_seeds_end_with_a_line_of_their_means() {
    let home = home();
    let said = simulated(home.path(), "seeds", &["--json", "--seeds", "2"]);
    let lines: Vec<Value> = said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let types: Vec<&Value> = lines.iter().rev().take(3).map(|line| &line["type"]).collect();
    assert_eq!(types, ["SimulateSummary", "SimulateDone", "SimulateDone"]);
    assert!(lines.last().unwrap()["tokens_per_s_low"].is_number());
}

#[test]
fn the_last_line_of_json_has_every_figure_and_a_seed_repeats_it() {
    let home = home();
    let last = |seed: &str| -> Value {
        let said = simulated(home.path(), "json", &["--json", "--seed", seed]);
        assert_eq!(said.exit, 0, "{}", said.stderr);
        serde_json::from_str(said.stdout.lines().last().unwrap()).unwrap()
    };
    let done = last("3");
    let figures = "digest seed fidelity peers simulated_s wall_s events tokens_per_s goodput_share staleness_p50 staleness_p99 \
                   completed applied perished refused lost doubled overlapped loss_last loss_reference bytes_per_peer violations \
                   bottleneck";
    for figure in figures.split_whitespace() {
        assert!(done.get(figure).is_some(), "{figure} in {done}");
    }
    assert_eq!((&done["type"], &done["lost"], &done["seed"]), (&"SimulateDone".into(), &0.into(), &3.into()));
    assert_eq!(done["digest"], last("3")["digest"]);
    assert_ne!(done["digest"], last("4")["digest"]);
}

#[test]
fn a_sweep_is_the_same_whatever_the_number_of_cores() {
    let home = home();
    let swept = |out: &str, jobs: &str| {
        let dir = home.path().join(out);
        let mut args =
            vec!["simulate", "sweep", "demo", "--duration", "20s", "--over", "peers=6,9", "--jobs", jobs, "--out"];
        args.push(dir.to_str().unwrap());
        let said = ask(home.path(), &args);
        assert_eq!(said.exit, 0, "{}", said.stderr);
        assert!(said.stdout.contains("peers=9"), "{}", said.stdout);
        fs::read(dir.join("sweep.json")).unwrap()
    };
    assert_eq!(swept("one", "1"), swept("two", "2"));
}

#[test]
fn every_problem_of_a_scenario_comes_with_its_line_and_nothing_is_written() {
    let home = home();
    let file = home.path().join("my.toml");
    fs::write(&file, "question = \"?\"\n[run]\nmodel = \"demo\"\nstagse = 2\n[peers]\ncount = 2\ndevice = 3\n")
        .unwrap();
    let out = home.path().join("out");
    let said = ask(home.path(), &["simulate", file.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert_eq!(said.exit, 3);
    assert!(said.stderr.contains("my.toml:4") && said.stderr.contains("my.toml:7"), "{}", said.stderr);
    assert!(said.stderr.contains("stages") && !out.exists(), "{}", said.stderr);

    let said = ask(home.path(), &["simulate", "home_uplod"]);
    assert!(said.exit == 2 && said.stderr.contains("Did you mean home_upload?"), "{}", said.stderr);
    let said = ask(home.path(), &["simulate", "first", "--set", "churn=sopt"]);
    assert!(said.exit == 3 && said.stderr.contains("did you mean spot"), "{}", said.stderr);
    fs::write(home.path().join("file"), "").unwrap();
    let inside = home.path().join("file").join("report");
    let said = ask(home.path(), &["simulate", "demo", "--out", inside.to_str().unwrap()]);
    assert!(said.exit == 4 && said.stderr.contains("SK152"), "{}", said.stderr);
    let said = ask(home.path(), &["simulate", home.path().to_str().unwrap()]);
    assert!(said.exit == 2 && said.stderr.contains("it is a folder"), "{}", said.stderr);
    assert_eq!(ask(home.path(), &["simulate", "explain", "nowhere"]).exit, 2);
}

#[test]
fn a_history_is_told_an_event_a_line_and_stops_where_it_is_told_to() {
    let home = home();
    let said = ask(home.path(), &["simulate", "replay", "2", "--scenario", "demo", "--until", "8s"]);
    assert_eq!(said.exit, 0, "{}", said.stderr);
    assert!(said.stdout.lines().count() > 100 && said.stdout.contains("serves stage 1"), "{}", said.stdout);
    assert!(!said.stdout.contains(", loss "), "nothing was learned");
    assert!(said.stdout.lines().all(|line| line < "00:00:08.001"), "{:?}", said.stdout.lines().last());
}

#[test]
fn a_random_scenario_is_checked_against_every_property() {
    let home = home();
    let said = ask(home.path(), &["simulate", "check", "--seeds", "1", "--from", "2"]);
    assert_eq!(said.exit, 0, "{}{}", said.stdout, said.stderr);
    assert!(said.stdout.contains("P12") && !said.stdout.contains("BROKEN"), "{}", said.stdout);
}

#[test]
fn what_is_no_link_and_no_log_is_said() {
    let home = home();
    let said = ask(home.path(), &["shape", "127.0.0.1:4747=fast"]);
    assert!(said.exit == 2 && said.stderr.contains("20mbit/100mbit"), "{}", said.stderr);
    fs::write(home.path().join("events.jsonl"), "nonsense\n").unwrap();
    let said = ask(home.path(), &["replay", home.path().join("events.jsonl").to_str().unwrap()]);
    assert!(said.exit == 2 && said.stderr.contains("line 1"), "{}", said.stderr);
}
