//! `skein completions SHELL`: a script for the shell, made from the arguments as they are.

use clap::CommandFactory;

use crate::cli::{
    args::{self, Cli},
    context::Context,
    failure::Report,
};

pub fn run(args: &args::Completions, context: &Context) -> Result<u8, Report> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "skein", &mut script);
    context.out.print(String::from_utf8_lossy(&script).trim_end());
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_fit_together() {
        Cli::command().debug_assert();
    }
}
