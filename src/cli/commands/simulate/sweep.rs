//! `skein simulate sweep`: the same scenario at every combination of some values, each at every seed, on all cores.

use std::path::PathBuf;

use skein_simulations::{
    ask::ask,
    outcome::Ended,
    report::{Folder, Point, Summary, Told, sweep},
    scenario::{Place as Written, Problem, Refused, keys::whole},
};

use super::{
    files::{Opened, drafted, open, refused},
    folder::{Kind, Place},
    in_parallel,
    progress::{Progress, stopped_by_signal},
};
use crate::cli::{
    args::{Ask, SimulateSweep},
    context::Context,
    failure::{Failure, Report},
    show,
    table::{Column, Table},
};

/// Simulations of one sweep.
const MOST: usize = 10_000;

/// A key and its values.
type Over = (String, Vec<String>);

pub fn run(args: &SimulateSweep, context: &Context) -> Result<u8, Report> {
    let over = args.over.iter().map(|over| parse(over)).collect::<Result<Vec<Over>, Report>>()?;
    once(&over)?;
    let base = open(&args.scenario, &args.ask)?;
    let dir = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("sweep-{}", base.name)));
    let place = Place::claim(&dir, Kind::Sweep, &base.name, args.force)?;
    let first = base.document.scenario.simulate.seed;
    let seeds: Vec<u64> = (first..).take(args.ask.seeds.unwrap_or(1) as usize).collect();
    let count = over.iter().fold(seeds.len(), |all, (_, values)| all.saturating_mul(values.len()));
    if count > MOST {
        let message = format!("{count} simulations are more than {MOST}");
        return Err(Failure::Usage { message }.into());
    }
    let points = combinations(&over);
    // All are looked at before any is simulated.
    let opened = open_all(args, &points)?;
    if seeds.len() == 1 {
        context.out.note("One seed says nothing about chance: --seeds 5 gives each point an interval, in the report.");
    }
    let pieces: Vec<(usize, u64)> =
        (0..points.len()).flat_map(|point| seeds.iter().map(move |seed| (point, *seed))).collect();
    let progress = Progress::start(&context.out, &base.name, pieces.len(), stopped_by_signal());
    let outcomes = in_parallel(&pieces, args.jobs, |number, (point, seed)| {
        let Opened { document, files, .. } = &opened[*point];
        (!progress.is_stopped()).then(|| ask(document, files, *seed, &mut progress.watch(number)))
    });
    let stopped = progress.is_stopped();
    drop(progress);
    let outcomes = outcomes.into_iter().map(Option::transpose).collect::<Result<Vec<_>, _>>().map_err(refused)?;
    let mut outcomes = outcomes.into_iter();
    let points: Vec<Point> = points
        .into_iter()
        .map(|over| {
            let there = outcomes.by_ref().take(seeds.len()).flatten();
            Point { over, outcomes: there.filter(|outcome| outcome.ended != Ended::Interrupted).collect() }
        })
        .collect();
    let folder = sweep(&points);
    let written = place.write(&folder);
    if context.out.style().json {
        context.out.document("simulate sweep", &document(&folder));
    } else {
        context.out.table(&table(&points));
        if written.is_ok() {
            context.out.done(&format!("report  {}", dir.join("sweep.html").display()));
        }
    }
    written?;
    if place.replaces {
        context.out.note("The report that was there is replaced.");
    }
    if stopped {
        let missing: Vec<String> = points.iter().filter(|point| point.outcomes.is_empty()).map(at_point).collect();
        let what = format!(
            "It was stopped: {} of {} points are missing, since they were not simulated to their end: {}.",
            missing.len(),
            points.len(),
            missing.join(", ")
        );
        context.out.warn(&what);
        return Ok(130);
    }
    Ok(0)
}

/// What the report holds for programs.
fn document(folder: &Folder) -> serde_json::Value {
    let text = folder.file("sweep.json").unwrap_or_default();
    serde_json::from_slice(text).unwrap_or_default()
}

fn at_point(point: &Point) -> String {
    point.over.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

/// A row a point.
fn table(points: &[Point]) -> Table {
    let figures = ["TOKENS/S", "GOODPUT", "BOTTLENECK", "USD PER 10^9"].map(Column::Right);
    let mut table = Table::new(std::iter::once(Column::Left("AT")).chain(figures).collect());
    for point in points {
        let mut row = vec![at_point(point)];
        row.extend(match Summary::of(&point.outcomes, &Told::default()) {
            None => ["-"; 4].map(String::from),
            Some(summary) => [
                show::tokens_per_s(summary.figures.tokens_per_s.mean),
                summary.goodput(),
                summary.bottleneck.name().to_string(),
                summary.figures.usd_per_billion_tokens.map_or("-".into(), |usd| format!("{:.2}", usd.mean)),
            ],
        });
        table.row(row);
    }
    table
}

fn parse(over: &str) -> Result<Over, Report> {
    let wrong = |why: &str| Report::from(Failure::Usage { message: format!("--over {over} {why}") });
    let (key, values) = over.split_once('=').ok_or_else(|| wrong("has no values: --over peers=50,100,500"))?;
    if whole(key.trim()) == "simulate.seed" {
        return Err(wrong("is what --seeds is for"));
    }
    let values: Vec<String> =
        values.split(',').map(|value| value.trim().to_string()).filter(|value| !value.is_empty()).collect();
    if values.is_empty() {
        return Err(wrong("has no values: --over peers=50,100,500"));
    }
    if let Some((_, twice)) = values.iter().enumerate().find(|(number, value)| values[..*number].contains(value)) {
        return Err(wrong(&format!("names {twice} twice: each value is one point")));
    }
    Ok((key.trim().to_string(), values))
}

/// Of a key that is given twice the last value would count, whatever the report says of the point.
fn once(over: &[Over]) -> Result<(), Report> {
    for (number, (key, _)) in over.iter().enumerate() {
        if over[..number].iter().any(|(before, _)| whole(before) == whole(key)) {
            let message = format!("--over {key} is given twice: write its values in one --over, with commas");
            return Err(Failure::Usage { message }.into());
        }
    }
    Ok(())
}

/// Every combination, the last key changing fastest.
fn combinations(over: &[Over]) -> Vec<Vec<(String, String)>> {
    over.iter().fold(vec![Vec::new()], |points, (key, values)| {
        let longer = |point: &Vec<(String, String)>| {
            let point = point.clone();
            values
                .iter()
                .map(move |value| [point.clone(), vec![(key.clone(), value.clone())]].concat())
                .collect::<Vec<_>>()
        };
        points.iter().flat_map(longer).collect()
    })
}

/// The scenario at every point, or all that is wrong with any.
fn open_all(args: &SimulateSweep, points: &[Vec<(String, String)>]) -> Result<Vec<Opened>, Report> {
    let (mut opened, mut problems) = (Vec::new(), Vec::<Problem>::new());
    for point in points {
        match at(args, point)? {
            Ok(there) => opened.push(there),
            Err(Refused(found)) => found.into_iter().for_each(|problem| {
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }),
        }
    }
    if problems.is_empty() { Ok(opened) } else { Err(refused(Refused(problems))) }
}

/// The scenario at one point.
fn at(args: &SimulateSweep, point: &[(String, String)]) -> Result<Result<Opened, Refused>, Report> {
    let mut ask: Ask = args.ask.clone();
    let over: Vec<String> = point.iter().map(|(key, value)| format!("{key}={value}")).collect();
    ask.set.extend(over.iter().cloned());
    let drafted = drafted(&args.scenario, &ask)?;
    Ok(drafted.map_err(|Refused(mut found)| {
        for Problem { place, .. } in &mut found {
            if let Written::Set(text) = place
                && over.contains(text)
            {
                *place = Written::Over(std::mem::take(text));
            }
        }
        Refused(found)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_comes_once_and_in_order() {
        let over = [parse("peers=50, 100").unwrap(), parse("upload=10,20,30").unwrap()];
        let points = combinations(&over);
        assert_eq!(points.len(), 6);
        assert_eq!(points[1], [("peers".to_string(), "50".to_string()), ("upload".to_string(), "20".to_string())]);
        assert!(parse("peers").is_err() && parse("peers=").is_err() && parse("peers=5, 5").is_err());
    }

    #[test]
    fn seeds_are_no_key_and_a_key_is_given_once() {
        assert!(parse("seed=1,2,3").is_err() && parse("simulate.seed = 1,2").is_err());
        let over = |given: [&str; 2]| given.map(|over| parse(over).unwrap());
        assert!(once(&over(["peers=50", "upload=10"])).is_ok());
        assert!(once(&over(["peers=50", "peers.count=60"])).is_err());
    }
}
