//! `skein simulate list` and `show`: the built-in scenarios.

use serde_json::json;
use skein_simulations::scenario::{Document, built_in};

use super::files::{open, refused};
use crate::cli::{
    args::SimulateShow,
    context::Context,
    failure::Report,
    table::{Column, Table},
};

pub fn list(context: &Context) -> Result<u8, Report> {
    let mut all = Vec::new();
    for (name, text) in built_in() {
        let document = Document::read(name, text).map_err(refused)?;
        all.push((*name, document.scenario.question));
    }
    if context.out.style().json {
        let all: Vec<_> = all.iter().map(|(name, question)| json!({ "name": name, "question": question })).collect();
        context.out.document("simulate list", &json!({ "scenarios": all }));
        return Ok(0);
    }
    let mut table = Table::new(vec![Column::Left("SCENARIO"), Column::Left("QUESTION")]);
    for (name, question) in all {
        table.row(vec![name.into(), question]);
    }
    context.out.table(&table);
    context.out.note("skein simulate NAME asks one; skein simulate show NAME > mine.toml begins one of your own");
    Ok(0)
}

pub fn show(args: &SimulateShow, context: &Context) -> Result<u8, Report> {
    let opened = open(&args.scenario, &args.ask)?;
    let changed = args.full || !args.ask.changes().is_empty();
    let own = built_in().iter().find(|(name, _)| *name == args.scenario).map(|(_, text)| (*text).to_string());
    let text = match own {
        Some(text) if !changed => text,
        _ => opened.document.write(),
    };
    if context.out.style().json {
        context.out.document("simulate show", &json!({ "name": opened.name, "text": text }));
    } else {
        context.out.print(text.trim_end());
    }
    Ok(0)
}
