//! One file a command. Each gets its arguments and a [`Context`], and returns an exit code or why it did not work.

mod ask;
mod bench;
mod chat;
mod completions;
mod config;
mod eval;
mod explain;
mod export;
mod generate;
mod hub;
mod invite;
mod join;
mod key;
mod model;
mod peers;
mod probe;
mod replay;
mod run;
mod serve;
mod shape;
mod simulate;
mod status;
mod stop;
mod train;

use super::{
    args::{self, Cli, Command},
    bug,
    context::Context,
    demo,
    failure::{Failure, Report},
    logs,
    out::Out,
};
use crate::config::nearest;

pub fn run(cli: Cli, out: &Out) -> Result<u8, Report> {
    let flags = match &cli.command {
        Command::Train(args) => args.course.give.flags(),
        Command::Finetune(args) => args.course.give.flags(),
        Command::Join(args) => args.give.flags(),
        Command::Host(args) => args.give.flags(),
        _ => Vec::new(),
    };
    // A broken configuration must not keep anybody from being told what is wrong with it.
    let context = match &cli.command {
        Command::Config(args::Config::Check { .. } | args::Config::Path)
        | Command::Explain(_)
        | Command::Completions(_) => Context::plain(&cli.global, out.clone())?,
        _ => Context::new(&cli.global, out.clone(), flags)?,
    };
    bug::catch(out.clone(), context.home.log_dir());
    logs::start(&context.node.log, out)?;
    match &cli.command {
        Command::Demo(args) => demo::run(args, &context),
        Command::Train(args) => train::train(args, &context),
        Command::Finetune(args) => train::finetune(args, &context),
        Command::Join(args) => join::join(args, &context),
        Command::Host(args) => join::host(args, &context),
        Command::Chat(args) => chat::run(args, &context),
        Command::Serve(args) => serve::run(args, &context),
        Command::Generate(args) => generate::run(args, &context),
        Command::Export(args) => export::run(args, &context),
        Command::Status(args) => status::run(args, &context),
        Command::Peers(args) => peers::run(args, &context),
        Command::Stop(args) => stop::run(args, &context),
        Command::Run(args) => run::run(args, &context),
        Command::Model(args) => model::run(args, &context),
        Command::Eval(args) => eval::run(args, &context),
        Command::Invite(args) => invite::run(args, &context),
        Command::Config(args) => config::run(args, &context),
        Command::Key(args) => key::run(args, &context),
        Command::Explain(args) => explain::run(args, &context),
        Command::Completions(args) => completions::run(args, &context),
        Command::Simulate(args) => simulate::run(args, &context),
        Command::Replay(args) => replay::run(args, &context),
        Command::Probe(args) => probe::run(args, &context),
        Command::Shape(args) => shape::run(args, &context),
        Command::Bench(args) => bench::run(args, &context),
    }
}

/// No run of that name is known to this home.
fn unknown_run(context: &Context, name: &str) -> Report {
    let names: Vec<String> = context.home.runs().list().into_iter().map(|folder| folder.name).collect();
    let hint = nearest(name, names.iter().cloned());
    let known = if names.is_empty() { "none".into() } else { names.join(", ") };
    Failure::UnknownRun { name: name.into(), known, hint: hint.into() }.into()
}
