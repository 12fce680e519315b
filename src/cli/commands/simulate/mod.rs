//! `skein simulate`: ask what a swarm would do, without one. In: a scenario and what is changed in it. Out: a summary, a folder of
//! a report; an exit code that scripts can rely on.

mod ask;
mod check;
mod compare;
mod explain;
mod files;
mod folder;
mod list;
mod loopback;
mod parallel;
mod progress;
mod replay;
mod sweep;
mod validate;

use self::parallel::in_parallel;

use crate::cli::{
    args::{Simulate, SimulateWhat},
    context::Context,
    failure::Report,
};

pub fn run(args: &Simulate, context: &Context) -> Result<u8, Report> {
    match &args.what {
        None => ask::run(args, context),
        Some(SimulateWhat::List) => list::list(context),
        Some(SimulateWhat::Show(args)) => list::show(args, context),
        Some(SimulateWhat::Sweep(args)) => sweep::run(args, context),
        Some(SimulateWhat::Explain(args)) => explain::run(args, context),
        Some(SimulateWhat::Compare(args)) => compare::run(args, context),
        Some(SimulateWhat::Replay(args)) => replay::run(args, context),
        Some(SimulateWhat::Check(args)) => check::run(args, context),
        Some(SimulateWhat::Validate(args)) => validate::run(args, context),
    }
}
