//! `skein simulate validate`: our results beside closed forms and published numbers, as a page.

use skein_simulations::validate::{self, Table};

use super::loopback;
use crate::{
    cli::{
        args::SimulateValidate,
        context::Context,
        failure::Report,
        progress::{Progress, Unit},
    },
    home::file::{self, Reader},
};

pub fn run(args: &SimulateValidate, context: &Context) -> Result<u8, Report> {
    let out = &context.out;
    let progress = Progress::start(out, "tables", 0, Unit::Things);
    let mut done = 0;
    let mut tables: Vec<Table> = validate::all(&mut |_| {
        done += 1;
        progress.at(done);
    });
    if args.loopback {
        tables.push(validate::loopback(&loopback::measure(context)?, loopback::FILL));
    }
    let holds = tables.iter().all(|table| table.broken().is_empty());
    progress.done(if holds { "every row is within its bound" } else { "some rows are beyond their bounds" });
    if out.style().json {
        out.document("simulate validate", &tables);
    } else {
        let date = jiff::Zoned::now().date().to_string();
        let page = validate::markdown(&tables, &super::super::bench::machine(), &date);
        match &args.out {
            Some(path) => file::write(path, page.as_bytes(), Reader::Anyone)?,
            None => out.print(page.trim_end()),
        }
    }
    Ok(if holds { 0 } else { 10 })
}
