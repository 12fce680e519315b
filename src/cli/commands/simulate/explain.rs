//! `skein simulate explain`: what limits the swarm of a report, and the one change that would bring most.

use skein_simulations::report::explain;

use super::files::summary;
use crate::cli::{args::SimulateReport, context::Context, failure::Report};

pub fn run(args: &SimulateReport, context: &Context) -> Result<u8, Report> {
    let explanation = explain(&summary(&args.report)?);
    if context.out.style().json {
        context.out.document("simulate explain", &explanation);
        return Ok(0);
    }
    explanation.sentences.iter().for_each(|sentence| context.out.print(sentence));
    Ok(0)
}
