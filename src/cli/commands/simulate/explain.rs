//! `skein simulate explain`: what limits the swarm of a report, and the one change that would bring most; with `--try`, what each
//! change does bring.

use skein_simulations::{
    ask::ask,
    report::{Change, Summary, Told, explain},
};

use super::{
    files::{of_report, refused, summary},
    in_parallel,
    progress::{Progress, stopped_by_signal},
};
use crate::cli::{
    args::SimulateExplain,
    context::Context,
    failure::Report,
    table::{Column, Table},
};

pub fn run(args: &SimulateExplain, context: &Context) -> Result<u8, Report> {
    let summary = summary(&args.report)?;
    let explanation = explain(&summary);
    let out = &context.out;
    if !out.style().json {
        explanation.sentences.iter().for_each(|sentence| out.print(sentence));
    }
    if !args.tries || explanation.changes.is_empty() {
        if out.style().json {
            out.document("simulate explain", &explanation);
        }
        return Ok(0);
    }
    let Some(brought) = brought(&summary, &explanation.changes, context)? else { return Ok(130) };
    if out.style().json {
        out.document("simulate explain", &explanation.tried(&brought));
        return Ok(0);
    }
    let heads = ["ESTIMATE", "BROUGHT"].map(Column::Right);
    let mut table = Table::new([Column::Left("CHANGE"), Column::Left("TYPED")].into_iter().chain(heads).collect());
    for (change, brought) in explanation.changes.iter().zip(&brought) {
        table.row(vec![change.what.clone(), change.typed(), format!("{:.2}", change.gain), format!("{brought:.2}")]);
    }
    out.print("");
    out.table(&table);
    Ok(0)
}

/// Throughput with each change over that of the report; nothing where it was stopped.
fn brought(summary: &Summary, changes: &[Change], context: &Context) -> Result<Option<Vec<f64>>, Report> {
    let mut changed = Vec::new();
    for change in changes {
        changed.push(of_report(summary, &change.set)?);
    }
    let seeds: Vec<u64> = summary.seeds.iter().map(|seed| seed.seed).collect();
    let pieces: Vec<(usize, u64)> =
        (0..changed.len()).flat_map(|change| seeds.iter().map(move |seed| (change, *seed))).collect();
    let progress = Progress::start(&context.out, &summary.scenario, pieces.len(), stopped_by_signal());
    let outcomes = in_parallel(&pieces, None, |number, (change, seed)| {
        let opened = &changed[*change];
        (!progress.is_stopped()).then(|| ask(&opened.document, &opened.files, *seed, &mut progress.watch(number)))
    });
    let stopped = progress.is_stopped();
    drop(progress);
    if stopped {
        context.out.warn("It was stopped: nothing is known of what the changes bring.");
        return Ok(None);
    }
    let outcomes = outcomes.into_iter().flatten().collect::<Result<Vec<_>, _>>().map_err(refused)?;
    let rate = |outcomes: &[_]| Summary::of(outcomes, &Told::default()).map_or(0.0, |of| of.figures.tokens_per_s.mean);
    let before = summary.figures.tokens_per_s.mean;
    Ok(Some(outcomes.chunks(seeds.len()).map(|of| if before > 0.0 { rate(of) / before } else { 0.0 }).collect()))
}
