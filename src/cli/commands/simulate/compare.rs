//! `skein simulate compare`: two reports beside each other.

use skein_simulations::report;

use super::files::summary;
use crate::cli::{args::SimulateCompare, context::Context, failure::Report};

pub fn run(args: &SimulateCompare, context: &Context) -> Result<u8, Report> {
    let compared = report::compare(&summary(&args.before)?, &summary(&args.after)?);
    if context.out.style().json {
        context.out.document("simulate compare", &compared);
    } else {
        context.out.print(compared.text().trim_end());
    }
    Ok(0)
}
