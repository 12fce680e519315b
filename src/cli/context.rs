//! What every command gets: how to speak, where its home is, what this machine gives.

use std::{env, path::PathBuf};

use super::{
    args::Global,
    failure::Report,
    out::{Out, Style},
};
use crate::{
    config::{Flag, Machine, NodeConfig, Settings, Sources},
    home::Home,
};

#[derive(Clone)]
pub struct Context {
    pub out: Out,
    pub home: Home,
    /// Where the configuration is read from, if it is there.
    pub config_file: PathBuf,
    pub settings: Settings,
    pub node: NodeConfig,
    pub machine: Machine,
    pub verbose: bool,
}

impl Context {
    /// Reads the layers of the configuration; `flags` are those of the command.
    ///
    /// # Errors
    /// The first thing in a layer that cannot be.
    pub fn new(global: &Global, out: Out, flags: Vec<Flag>) -> Result<Context, Report> {
        let home = Home::find(global.home.as_deref())?;
        let settings = Settings::load(&sources(global, &home, flags))?;
        settings.warnings.iter().for_each(|warning| out.warn(warning));
        Ok(Context::of(global, out, home, settings))
    }

    /// Without the layers of the configuration: for what must work when one of them is broken.
    ///
    /// # Errors
    /// No home folder can be named.
    pub fn plain(global: &Global, out: Out) -> Result<Context, Report> {
        let home = Home::find(global.home.as_deref())?;
        let settings = Settings::load(&Sources::default())?;
        Ok(Context::of(global, out, home, settings))
    }

    fn of(global: &Global, out: Out, home: Home, settings: Settings) -> Context {
        let (node, config_file) = (settings.node(), config_file(global, &home));
        Context { out, home, config_file, settings, node, machine: Machine::look(), verbose: global.verbose > 0 }
    }
}

/// How to speak, before anything else is known.
pub fn style(global: &Global) -> Style {
    Style::look(global.json, global.quiet, global.color, global.no_progress)
}

fn sources(global: &Global, home: &Home, mut flags: Vec<Flag>) -> Sources {
    let level = match (global.quiet, global.verbose) {
        (true, _) => Some(("-q", "error")),
        (false, 0) => None,
        (false, 1) => Some(("-v", "debug")),
        (false, _) => Some(("-vv", "trace")),
    };
    if let Some((name, text)) = level {
        flags.push(Flag { name, key: "log.level", text: text.into() });
    }
    if let Some(text) = global.log_file.clone() {
        flags.push(Flag { name: "--log-file", key: "log.file", text });
    }
    if let Some(text) = global.log_format.clone() {
        flags.push(Flag { name: "--log-format", key: "log.format", text });
    }
    Sources {
        profile: global.profile.clone(),
        file: Some(config_file(global, home)),
        file_named: global.config.is_some(),
        environment: env::vars().filter(|(name, _)| name.starts_with("SKEIN_")).collect(),
        flags,
    }
}

/// The file of the configuration that this command reads.
fn config_file(global: &Global, home: &Home) -> PathBuf {
    global.config.clone().unwrap_or_else(|| home.config_file())
}
