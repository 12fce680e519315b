//! Reports hold up with any outcome: they are well formed, ask for nothing outside, and say the same of the same.

#[path = "../../examples/page/made_up.rs"]
mod made_up;

use skein_simulations::{
    outcome::{Cause, Ended, Fidelity, Learning, Outcome, PeerRow, Shares, StageRow, Totals, Violation},
    report::{
        Change, Folder, Point, SimulateDone, SimulateSummary, Summary, Told, Unreadable, compare, explain, quoted,
        sweep, text,
    },
    scenario::Expect,
};

fn folder(outcomes: &[Outcome]) -> Folder {
    Folder::of(outcomes, &Told::default(), None)
}

fn page(outcomes: &[Outcome]) -> String {
    file(&folder(outcomes), "report.html")
}

fn file(folder: &Folder, name: &str) -> String {
    String::from_utf8(folder.file(name).expect("the file is there").to_vec()).expect("text")
}

fn summary(outcomes: &[Outcome]) -> Summary {
    Summary::of(outcomes, &Told::default()).expect("there is an outcome")
}

/// Nothing happened, and nobody was there.
fn empty() -> Outcome {
    Outcome {
        series: Vec::new(),
        changes: Vec::new(),
        rows: Vec::new(),
        by_stage: Vec::new(),
        totals: Totals::default(),
        shares: Shares::default(),
        cost: None,
        properties: Vec::new(),
        remarks: Vec::new(),
        text: String::new(),
        peers: 0,
        simulated_s: 0.0,
        duration_s: 0.0,
        events: 0,
        ended: Ended::Interrupted,
        learning: Learning::None,
        ..made_up::outcome(1, 2, 1)
    }
}

/// Every number that can be none is none.
fn numberless() -> Outcome {
    let mut outcome = made_up::outcome(3, 10, 20);
    for sample in &mut outcome.series {
        sample.goodput = f64::NAN;
        sample.loss = Some(f64::NAN);
        sample.disagreement = Some(f64::INFINITY);
        sample.busy.fill(f32::NAN);
    }
    outcome.series[3].at_s = f64::NAN;
    outcome.series[4].for_s = f64::INFINITY;
    outcome.changes[0].at_s = f64::NAN;
    outcome.totals.loss_last = Some(f64::NAN);
    outcome.totals.flops_useful = f64::NAN;
    outcome.shares.upload = f64::NAN;
    outcome.by_stage[0].busy = f64::NAN;
    outcome.ended = Ended::Stuck { stage: None, since_s: f64::NAN, why: "unclear".into() };
    let cost = outcome.cost.as_mut().expect("it has a cost");
    cost.usd_per_billion_tokens = f64::INFINITY;
    cost.reference_kwh_per_billion_tokens = f64::NAN;
    outcome
}

fn hostile() -> Outcome {
    let evil = "</svg></pre><script>alert(1)</script><img src=x onerror=\"x\">' & \u{1b}[31m\u{202e}\n".to_string();
    let mut outcome = made_up::outcome(5, 20, 20);
    outcome.scenario = evil.clone();
    outcome.question = evil.clone();
    outcome.text = evil.clone();
    outcome.skein = evil.clone();
    outcome.config = evil.clone();
    outcome.digest = evil.clone();
    outcome.properties = vec![evil.clone()];
    outcome.violations = vec![Violation { property: evil.clone(), at_s: 3.0, peer: Some(1), what: evil.clone() }];
    outcome.remarks = vec![evil.clone()];
    outcome.ended = Ended::Stuck { stage: Some(1), since_s: 4.0, why: evil.clone() };
    let cost = outcome.cost.as_mut().expect("it has a cost");
    cost.reference = evil.clone();
    cost.assumptions = vec![evil.clone()];
    outcome.rows[0] = PeerRow { device: evil.clone(), access: "a,b".into(), region: "\"".into(), ..PeerRow::default() };
    outcome
}

/// Tags close in the order in which they were opened, and attributes are quoted. A small check, not a parser.
fn well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        assert!(!rest[..start].contains('>'), "a stray > before {:.60}", &rest[start..]);
        rest = &rest[start + 1..];
        let mut quoted = false;
        let end = rest
            .char_indices()
            .find(|(_, letter)| {
                quoted ^= *letter == '"';
                *letter == '>' && !quoted
            })
            .map(|(at, _)| at)
            .expect("a tag ends");
        let tag = &rest[..end];
        assert!(!tag.contains('<'), "a tag in a tag: {tag:.80}");
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap_or("");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed in another order");
        } else if !(tag.ends_with('/') || tag.starts_with('!') || name == "meta") {
            open.push(name);
            if name == "script" || name == "style" {
                rest = &rest[rest.find(&format!("</{name}>")).expect("it is closed")..];
            }
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

#[test]
fn pages_are_well_formed_small_and_ask_for_nothing_outside() {
    let several: Vec<Outcome> = (1..=5).map(|seed| made_up::outcome(seed, 60, 90)).collect();
    let one_sample = vec![made_up::outcome(2, 3, 1)];
    let long = vec![made_up::outcome(2, 40, 6_000)];
    let mut many = made_up::outcome(4, 2, 50);
    many.rows = (0..100_000).map(|peer| PeerRow { peer, sent: u64::from(peer) << 20, ..PeerRow::default() }).collect();
    many.by_stage = (0..300).map(|stage| StageRow { stage, busy: 0.5, ..StageRow::default() }).collect();
    for sample in &mut many.series {
        sample.replicas = vec![4; 300];
    }
    for outcomes in [several, one_sample, long, vec![many], vec![empty()], vec![numberless()], vec![hostile()]] {
        let page = page(&outcomes);
        well_formed(&page);
        assert!(page.len() < 2_000_000, "{} bytes", page.len());
        for outside in ["http://", "https://", " src=", " href=", "url(", "@import", "<link", "NaN", "inf "] {
            assert!(!page.contains(outside) || outcomes[0] == hostile(), "{outside} in the page");
        }
        let drawings = page.matches("<svg").count();
        assert!(drawings >= 9, "{drawings} drawings");
        assert_eq!(page.matches("<desc id=").count(), drawings, "each drawing has words for those who do not see it");
    }
}

#[test]
fn fidelity_and_estimates_stand_above_the_numbers() {
    let mut outcome = made_up::outcome(1, 20, 20);
    outcome.fidelity = Fidelity::Fleet;
    let page = page(std::slice::from_ref(&outcome));
    let fidelity = page.find("Fidelity: fleet").expect("it is named");
    assert!(fidelity < page.find("<dl class=\"figures\">").expect("figures"));
    assert!(page.contains("Loss (estimate)") && page.contains("an ESTIMATE"));
    assert!(text(&summary(&[outcome]), 100, None).contains("fidelity fleet (approximate)"));
}

#[test]
fn what_a_user_wrote_stays_text() {
    let outcome = hostile();
    let page = page(std::slice::from_ref(&outcome));
    assert!(!page.contains("<script>alert") && !page.contains("<img"));
    assert!(!page.contains('\u{1b}') && !page.contains('\u{202e}'));
    let lines = text(&summary(std::slice::from_ref(&outcome)), 100, Some("\u{1b}[2J"));
    assert!(!lines.contains('\u{1b}'));
    let swept = sweep(&[Point { over: vec![("<b>\"".into(), "</td><i>".into())], outcomes: vec![outcome] }]);
    let swept = file(&swept, "sweep.html");
    well_formed(&swept);
    assert!(!swept.contains("<i>") && !swept.contains("<b>"));
}

#[test]
fn equal_outcomes_give_equal_files() {
    let files = || {
        let outcomes: Vec<Outcome> = (1..=2).map(|seed| made_up::outcome(seed, 30, 40)).collect();
        Folder::of(&outcomes, &Told::default(), Some("{}\n"))
    };
    let (one, other) = (files(), files());
    assert_eq!(one, other);
    assert_eq!(one.file("events.jsonl"), Some(b"{}\n".as_slice()));
    for name in ["plots/throughput.png", "plots/peers.png", "plots/stages.png", "plots/shares.png"] {
        let picture = one.file(name).expect("a picture");
        assert!(picture.starts_with(b"\x89PNG\r\n\x1a\n") && picture.len() > 4_000, "{name}: {} bytes", picture.len());
    }
    assert_eq!(folder(&[]), Folder::default());
}

#[test]
fn pictures_hold_up_with_nothing_and_with_no_numbers() {
    for outcome in [empty(), numberless()] {
        assert!(folder(&[outcome]).file("plots/stages.png").is_some_and(|picture| picture.len() > 500));
    }
}

#[test]
fn a_summary_reads_back_and_another_form_is_refused() {
    let several: Vec<Outcome> = (1..=4).map(|seed| made_up::outcome(seed, 30, 40)).collect();
    for outcomes in [several, vec![empty()], vec![numberless()], vec![hostile()]] {
        let summary = summary(&outcomes);
        assert_eq!(Summary::read(&summary.write()).expect("our own form"), summary);
    }
    let other = summary(&[empty()]).write().replacen("\"schema\": 1", "\"schema\": 7", 1);
    let refused = Summary::read(&other).expect_err("form 7");
    assert!(refused.to_string().starts_with("this summary has form 7, and this version of skein reads form 1"));
    let mut seedless = summary(&[empty()]);
    seedless.seeds.clear();
    let refused = Summary::read(&seedless.write()).expect_err("no seeds");
    assert!(refused.to_string().starts_with("this summary has no seeds, so it is of no simulation"));
    assert!(matches!(Summary::read("{}"), Err(Unreadable::NoSchema)));
    assert!(matches!(Summary::read("{\"schema\": 1}"), Err(Unreadable::Broken(_))));
    assert!(matches!(Summary::read("not json"), Err(Unreadable::Broken(_))));
}

#[test]
fn several_seeds_have_means_and_intervals_and_one_has_none() {
    let outcomes: Vec<Outcome> = (1..=5)
        .map(|seed| {
            let mut outcome = made_up::outcome(seed, 10, 10);
            outcome.totals.tokens = seed * 21_600;
            outcome
        })
        .collect();
    let speed = summary(&outcomes).figures.tokens_per_s;
    assert_eq!(speed.mean, 3.0);
    // Student's t for four degrees of freedom, times the standard error.
    assert!((speed.high.expect("an interval") - (3.0 + 2.776_445 * 0.5_f64.sqrt())).abs() < 1e-5);
    assert_eq!(summary(&outcomes[..1]).figures.tokens_per_s.low, None);
}

#[test]
fn tables_have_a_row_for_each_thing_and_equal_columns() {
    let outcomes = [hostile(), made_up::outcome(6, 7, 9)];
    let folder = folder(&outcomes);
    let columns = |line: &str| {
        let mut quoted = false;
        1 + line
            .chars()
            .filter(|letter| {
                quoted ^= *letter == '"';
                *letter == ',' && !quoted
            })
            .count()
    };
    for (name, rows, head) in [
        ("series.csv", 20 + 9, "seed,at_s,for_s,alive,serving,tokens,"),
        ("stages.csv", 8 + 8, "seed,stage,replicas,replicas_min,busy,sending,receiving,completed,empty_s"),
    ] {
        let table = file(&folder, name);
        assert!(table.starts_with(head), "{name}: {table:.100}");
        let wide = columns(table.lines().next().expect("a head"));
        assert!(table.lines().all(|line| columns(line) == wide), "{name}");
        assert_eq!(table.lines().count(), 1 + rows, "{name}");
    }
    let peers = file(&folder, "peers.csv");
    assert!(peers.starts_with("seed,peer,device,access,region,stage,alive_s,"));
    assert!(peers.contains("\"a,b\",\"\"\"\""), "words with a comma or a quote are quoted");
    assert!(peers.lines().last().expect("rows").starts_with("6,6,"));
}

/// Shares with one large loss, everything else even.
fn limited(cause: Cause) -> Summary {
    let mut outcome = made_up::outcome(1, 16, 4);
    outcome.text = SCENARIO.into();
    let mut shares = Shares { computing: 0.3, ..Shares::default() };
    *match cause {
        Cause::Compute => &mut shares.computing,
        Cause::Upload => &mut shares.upload,
        Cause::Download => &mut shares.download,
        Cause::Latency => &mut shares.latency,
        Cause::Imbalance => &mut shares.imbalance,
        Cause::Churn => &mut shares.churn,
        Cause::Staleness => &mut shares.staleness,
    } += 0.5;
    let rest = 1.0 - shares.computing - shares.lost().iter().map(|(cause, _)| shares.of(*cause)).sum::<f64>();
    shares.churn += rest;
    outcome.shares = shares;
    for row in &mut outcome.by_stage {
        *row = StageRow {
            stage: row.stage,
            replicas: 2.0,
            busy: 0.3,
            sending: 0.1,
            receiving: 0.1,
            ..StageRow::default()
        };
    }
    summary(&[outcome])
}

const SCENARIO: &str = "question = \"?\"\n[run]\nmodel = \"124m\"\nstages = 3\n[peers]\ncount = 12\ndevices = { rtx4090 = 1 }\n\
                        [network]\naccess = { cable = 1 }\n";

#[test]
fn each_cause_is_named_with_its_share_and_a_remedy_that_can_be_typed() {
    for (cause, typed) in [
        (Cause::Compute, "--set peers=24"),
        (Cause::Upload, "--set upload=40Mbit/s"),
        (Cause::Download, "--set download=600Mbit/s"),
        (Cause::Latency, "--set feeders=2"),
        (Cause::Imbalance, "--set peers=24"),
        (Cause::Staleness, "--set run.staleness_bound=8"),
    ] {
        let explanation = explain(&limited(cause));
        assert_eq!(explanation.cause, cause);
        let share = if cause == Cause::Compute { 0.8 } else { 0.5 / 0.7 };
        assert!((explanation.share - share).abs() < 1e-9, "{cause:?}: {}", explanation.share);
        let all: Vec<String> = explanation.changes.iter().map(Change::typed).collect();
        assert!(all.contains(&typed.to_string()), "{cause:?}: {all:?}");
        let change = explanation.change.expect("something helps");
        assert!(explanation.changes.iter().all(|other| other.gain <= change.gain), "{:?}", explanation.changes);
        let last = explanation.sentences.last().expect("sentences");
        assert!(last.contains("Estimate") && last.ends_with(&change.typed()), "{last}");
    }
}

#[test]
fn what_changes_brought_stands_beside_their_estimates_once_it_is_known() {
    let explanation = explain(&limited(Cause::Latency));
    let before = serde_json::to_value(&explanation).unwrap();
    assert!(before["changes"][0].get("brought").is_none(), "{before}");
    let brought: Vec<f64> = (1..=explanation.changes.len()).map(|number| number as f64).collect();
    let after = serde_json::to_value(explanation.tried(&brought)).unwrap();
    assert_eq!((&after["change"]["brought"], &after["changes"][1]["brought"]), (&1.0.into(), &2.0.into()));
    assert_eq!(after["sentences"], before["sentences"]);
}

#[test]
fn what_is_known_of_no_scenario_is_not_advised() {
    let mut summary = limited(Cause::Latency);
    summary.text = "no scenario".into();
    let explanation = explain(&summary);
    assert_eq!((explanation.change, explanation.changes), (None, Vec::new()));
    assert!(explanation.sentences.last().expect("sentences").starts_with("No single change"));
}

#[test]
fn a_gain_ends_where_the_next_resource_is_at_its_limit() {
    let mut summary = limited(Cause::Staleness);
    summary.by_stage[3].sending = 0.8;
    let changes = explain(&summary).changes;
    let change = changes.iter().find(|change| change.cause == Cause::Staleness).expect("it would help");
    assert_eq!((change.gain, change.then), (1.25, Some(Cause::Upload)));
}

#[test]
fn a_stage_that_is_slower_than_the_others_is_named() {
    let mut summary = limited(Cause::Imbalance);
    summary.by_stage[5].busy = 0.9;
    assert!(explain(&summary).sentences[1].contains("Stage 5 is the slowest"));
}

#[test]
fn nothing_at_all_is_explained_without_a_guess() {
    let explanation = explain(&summary(&[empty()]));
    assert_eq!((explanation.change, explanation.sentences.len()), (None, 1));
}

#[test]
fn the_first_line_says_whether_it_works_and_no_line_is_too_long() {
    for outcome in [made_up::outcome(1, 50, 30), empty(), numberless(), hostile()] {
        for width in [20, 80, 100, 300] {
            let lines = text(&summary(std::slice::from_ref(&outcome)), width, Some(&"long/".repeat(60)));
            let most = lines.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            assert!(most <= width.clamp(40, 100), "{most} columns of {width}");
            assert!(lines.starts_with("It trains") || lines.starts_with("No: "), "{lines:.80}");
        }
    }
    let lines = text(&summary(&[made_up::outcome(1, 50, 30)]), 100, None);
    assert!(lines.replace('\n', " ").contains("What limits it is upload"), "{lines:.200}");
}

#[test]
fn yes_and_no_are_said_where_what_is_expected_answers_the_question() {
    let outcomes = [made_up::outcome(1, 50, 30)];
    let verdict = |expect: Expect, compares: bool| {
        let told = Told { expect, compares, ..Told::default() };
        Summary::of(&outcomes, &told).expect("there is an outcome").verdict()
    };
    let (met, missed) = (Some(0.1), Some(1.0));
    let of = |goodput_min, answers| Expect { goodput_min, answers, ..Expect::default() };
    assert!(verdict(of(met, true), false).starts_with("Yes: it trains"));
    assert!(verdict(of(met, false), false).starts_with("It trains"));
    assert!(verdict(of(met, false), false).contains("as expected"));
    assert!(verdict(of(None, true), false).starts_with("It trains"), "nothing was expected");
    assert!(verdict(of(missed, true), false).starts_with("No: goodput is"));
    assert!(verdict(of(missed, false), false).starts_with("Not as expected: goodput is"));
    let cost = outcomes[0].cost.as_ref().expect("it has a cost");
    let first = verdict(of(met, false), true);
    let dearer = cost.usd_per_billion_tokens >= cost.reference_usd_per_billion_tokens;
    let beginning = if dearer {
        format!("For the same money {} trains ", cost.reference)
    } else {
        "For the same money this".into()
    };
    assert!(first.starts_with(&beginning) && first.contains("times as much"), "{first}");
}

#[test]
fn a_swarm_that_does_not_recover_is_not_as_expected() {
    let mut outcome = made_up::outcome(1, 50, 30);
    for sample in &mut outcome.series[20..] {
        sample.tokens = 0;
    }
    let told = Told { expect: Expect { recovers_min: Some(0.5), ..Expect::default() }, ..Told::default() };
    let expected = &Summary::of(&[outcome], &told).expect("there is an outcome").expected[0];
    assert!(!expected.met && expected.what == "throughput of the last third", "{expected:?}");
    let whole = &Summary::of(&[made_up::outcome(1, 50, 30)], &told).expect("there is an outcome").expected[0];
    assert!(whole.met, "{whole:?}");
}

#[test]
fn a_run_that_stopped_is_explained_by_its_stop_and_nothing_is_estimated() {
    let mut stopped = made_up::outcome(1, 50, 30);
    let why = "nobody serves stage 1, and nobody is to come".to_string();
    stopped.ended = Ended::Stuck { stage: Some(1), since_s: 30.0, why };
    let explanation = explain(&summary(std::slice::from_ref(&stopped)));
    assert!(explanation.sentences[0].contains("stage 1 has nobody since 30 s"), "{:?}", explanation.sentences);
    assert_eq!((explanation.change, explanation.changes.len()), (None, 0));
    assert!(!text(&summary(&[stopped]), 100, None).contains("would help"));
}

#[test]
fn of_no_work_no_part_counts() {
    let mut idle = made_up::outcome(1, 50, 30);
    idle.totals.tokens = 0;
    (idle.totals.flops_done, idle.totals.flops_useful) = (0.0, 0.0);
    let told = Told { expect: Expect { goodput_min: Some(0.5), ..Expect::default() }, ..Told::default() };
    let summary = Summary::of(&[idle], &told).expect("there is an outcome");
    assert_eq!((summary.expected[0].got.as_str(), summary.expected[0].met), ("-", false));
    assert!(!text(&summary, 100, None).contains("goodput 100"));
}

#[test]
fn bytes_an_hour_are_the_same_on_the_terminal_and_on_the_page() {
    let outcome = made_up::outcome(1, 50, 30);
    let lines = text(&summary(std::slice::from_ref(&outcome)), 100, None).replace('\n', " ");
    let page = page(&[outcome]);
    let an_hour = lines.split(" an hour").next().expect("a part").rsplit(", ").next().expect("an amount");
    let an_hour = an_hour.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(page.contains(&format!("({an_hour} an hour)")), "{an_hour}");
}

#[test]
fn what_was_planned_to_go_wrong_is_marked_on_the_throughput() {
    let page = page(&[made_up::outcome(1, 40, 30)]);
    assert!(page.contains(">partition<") && page.contains("Planned: partition, "));
}

#[test]
fn what_was_expected_decides_the_verdict() {
    let outcomes = [made_up::outcome(1, 50, 30)];
    let expect = Expect { tokens_per_s_min: Some(1e9), bottleneck: Some("upload".into()), ..Expect::default() };
    let summary = Summary::of(&outcomes, &Told { expect, ..Told::default() }).expect("an outcome");
    assert_eq!(summary.expected.iter().map(|expected| expected.met).collect::<Vec<_>>(), [false, true]);
    assert!(!summary.good() && summary.verdict().starts_with("Not as expected: throughput is"));
    let mut violated = outcomes[0].clone();
    violated.violations.push(Violation { property: "P3".into(), at_s: 1.0, peer: None, what: "twice".into() });
    let summary = Summary::of(&[violated], &Told::default()).expect("an outcome");
    assert!(!summary.good() && summary.verdict().starts_with("Not safely"));
}

#[test]
fn the_last_line_of_json_is_flat_and_complete() {
    let done = SimulateDone::of(&made_up::outcome(1, 50, 30), 2.5);
    let value: serde_json::Value = serde_json::from_str(&done.line()).expect("json");
    let object = value.as_object().expect("an object");
    assert!(object.values().all(|value| !value.is_object() && !value.is_array()));
    assert_eq!(object["type"], "SimulateDone");
    assert_eq!(object["bottleneck"], "upload");
    for key in "digest seed fidelity peers simulated_s wall_s events tokens_per_s goodput_share staleness_p50 staleness_p99 \
                completed applied perished refused lost doubled overlapped loss_last loss_reference bytes_per_peer violations"
        .split_whitespace()
    {
        assert!(object.contains_key(key), "{key}");
    }
    assert_eq!(object.len(), 24);
    assert_eq!(serde_json::from_str::<SimulateDone>(&done.line()).expect("it reads back"), done);
    assert!(serde_json::from_str::<SimulateDone>(&SimulateDone::of(&numberless(), f64::NAN).line()).is_ok());
}

#[test]
fn several_seeds_have_one_line_more_with_their_means_and_intervals() {
    let outcomes: Vec<Outcome> = (1..=3).map(|seed| made_up::outcome(seed, 20, 10)).collect();
    let all = summary(&outcomes);
    let value = serde_json::to_value(SimulateSummary::of(&all, 4.0)).expect("json");
    assert_eq!((&value["type"], &value["seeds"]), (&"SimulateSummary".into(), &3.into()));
    let speed = all.figures.tokens_per_s;
    assert_eq!(value["tokens_per_s"], speed.mean);
    assert!(value["tokens_per_s_low"].as_f64() < Some(speed.mean) && value["goodput_share_high"].is_number());
    assert!(value.as_object().expect("an object").values().all(|value| !value.is_object() && !value.is_array()));
}

fn place(over: &[(&str, &str)], outcomes: Vec<Outcome>) -> Point {
    Point { over: over.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(), outcomes }
}

#[test]
fn a_sweep_has_a_cell_for_each_place_and_says_which_did_not_run() {
    let run = || vec![made_up::outcome(1, 20, 6)];
    let points = [
        place(&[("peers", "50"), ("up", "10")], run()),
        place(&[("peers", "500"), ("up", "10")], run()),
        place(&[("peers", "50"), ("up", "200")], Vec::new()),
        place(&[("peers", "500"), ("up", "200")], run()),
    ];
    let folder = sweep(&points);
    let page = file(&folder, "sweep.html");
    well_formed(&page);
    assert!(
        page.contains("1 of 4 places are missing, since they were not simulated to their end: peers = 50, up = 200.")
    );
    assert!(page.contains("did not run") && page.contains("Fidelity: protocol"));
    assert_eq!(page.matches("<svg").count(), 3);
    let table = file(&folder, "sweep.csv");
    assert!(table.starts_with("place,peers,up,seeds,tokens_per_s,"));
    assert_eq!(table.lines().count(), 5);
    let commas: Vec<usize> = table.lines().map(|line| line.matches(',').count()).collect();
    assert!(commas.iter().all(|number| *number == commas[0]), "{commas:?}");
    let json: serde_json::Value = serde_json::from_str(&file(&folder, "sweep.json")).expect("json");
    assert!(json["points"][2]["summary"].is_null() && json["points"][3]["summary"]["schema"] == 1);
    assert!(folder.file("plots/sweep.png").is_some());
}

#[test]
fn a_sweep_of_three_keys_has_a_map_for_each_value_of_the_third() {
    let run = || vec![made_up::outcome(1, 20, 6)];
    let mut points = Vec::new();
    for churn in ["none", "spot"] {
        for peers in ["1", "2"] {
            points.push(place(&[("peers", peers), ("up", "10"), ("churn", churn)], run()));
        }
    }
    let folder = sweep(&points);
    assert_eq!(file(&folder, "sweep.html").matches("<svg").count(), 6);
    assert!(folder.file("plots/sweep-2.png").is_some());
    well_formed(&file(&sweep(&[]), "sweep.html"));
}

#[test]
fn equal_seeds_are_compared_one_by_one() {
    let with = |more: u64, noise: u64| -> Summary {
        let outcomes: Vec<Outcome> = (1..=5)
            .map(|seed| {
                let mut outcome = made_up::outcome(seed, 10, 4);
                outcome.totals.tokens = 21_600 * (1000 * seed + more + noise * (seed % 2));
                outcome
            })
            .collect();
        summary(&outcomes)
    };
    let (a, b) = (with(0, 0), with(100, 10));
    let comparison = compare(&a, &b);
    assert!(comparison.paired);
    let speed = &comparison.differences[0];
    assert!((speed.difference - 106.0).abs() < 1e-6);
    // The seeds differ by thousands, and the difference by ten: seed by seed it is clear.
    assert_eq!(speed.clear(), Some(true));
    let mut others = b.clone();
    for seed in &mut others.seeds {
        seed.seed += 100;
    }
    let unpaired = compare(&a, &others);
    assert!(!unpaired.paired);
    assert_eq!(unpaired.differences[0].clear(), Some(false));
    assert!(unpaired.text().contains("may be chance"));
}

#[test]
fn one_sample_is_seen() {
    let outcome = made_up::outcome(2, 3, 1);
    assert_eq!(outcome.series.len(), 1);
    let page = page(&[outcome]);
    assert_eq!(page.matches("nothing was recorded").count(), 0);
}

#[test]
fn a_command_that_is_told_is_taken_by_a_shell_as_it_was_given() {
    assert_eq!(quoted("peers=500"), "peers=500");
    assert_eq!(quoted("network.delay=\"20 ms\""), "'network.delay=\"20 ms\"'");
    assert_eq!(quoted("it's"), "'it'\\''s'");
}
