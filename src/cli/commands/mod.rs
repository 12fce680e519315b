//! One file a command. Each gets its arguments and a [`Context`], and returns an exit code or why it did not work.

mod join;
mod train;

use super::{
    args::{Cli, Command},
    bug,
    context::Context,
    failure::Report,
    logs,
    out::Out,
};

pub fn run(cli: Cli, out: &Out) -> Result<u8, Report> {
    let flags = match &cli.command {
        Command::Train(args) => args.give.flags(),
        Command::Join(args) => args.give.flags(),
        Command::Host(args) => args.give.flags(),
        _ => Vec::new(),
    };
    let context = Context::new(&cli.global, out.clone(), flags)?;
    bug::catch(out.clone(), context.home.log_dir());
    logs::start(&context.node.log, out)?;
    match cli.command {
        Command::Train(args) => train::run(&args, &context),
        Command::Join(args) => join::join(&args, &context),
        Command::Host(args) => join::host(&args, &context),
        _ => Ok(0),
    }
}
