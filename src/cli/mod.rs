//! What a person types and sees. In: arguments. Out: text, JSON, an exit code. Nothing below this module writes to a terminal.

pub mod args;
pub mod bug;
pub mod catalogue;
mod chronicle;
mod commands;
pub mod context;
mod demo;
pub mod failure;
pub mod glossary;
mod invites;
mod local;
pub mod logs;
pub mod out;
pub mod petname;
pub mod progress;
mod refused;
mod session;
pub mod show;
mod signals;
pub mod table;

use clap::{CommandFactory, Parser, error::ErrorKind};

use self::{
    args::Cli,
    failure::{Failure, Report},
    out::{Colour, Out, Style},
};

/// Runs the command of this process's arguments. Returns its exit code.
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(error),
    };
    let (out, verbose) = (Out::new(context::style(&cli.global)), cli.global.verbose > 0);
    let done = match commands::run(cli, &out) {
        // A result that did not arrive whole is none.
        Ok(0) => out.stdout_error().map_or(Ok(0), Err),
        other => other,
    };
    match done {
        Ok(exit) => exit,
        Err(report) => {
            out.report(&report, verbose);
            report.exit()
        }
    }
}

/// Help and version are results; anything else is wrong usage, in the form that was asked for.
fn misused(error: clap::Error) -> u8 {
    // clap shows the first screen by itself only where no variable of the environment stands for a flag.
    if error.kind() == ErrorKind::MissingSubcommand && std::env::args_os().len() == 1 {
        eprint!("{}", Cli::command().render_help());
        return 2;
    }
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
        || !std::env::args_os().any(|argument| argument == "--json")
    {
        let _ = error.print();
        return if error.use_stderr() { 2 } else { 0 };
    }
    let text = error.render().to_string();
    let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string();
    let report: Report = Failure::Usage { message }.into();
    Out::new(Style::look(true, true, Colour::Never, true)).report(&report, false);
    report.exit()
}
