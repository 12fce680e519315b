//! What every command gets: how to speak, where its home is, what this machine gives.

use std::{env, ffi::OsString, path::PathBuf};

use super::{
    args::Global,
    failure::{Failure, Report},
    out::{Out, Style},
};
use crate::{
    config::{Flag, Machine, NodeConfig, SHORTHANDS, Settings, Sources},
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
        let settings = Settings::load(&sources(global, &home, flags)?)?;
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

fn sources(global: &Global, home: &Home, mut flags: Vec<Flag>) -> Result<Sources, Report> {
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
    Ok(Sources {
        profile: global.profile.clone(),
        file: Some(config_file(global, home)),
        file_named: global.config.is_some(),
        environment: environment(env::vars_os())?,
        flags,
    })
}

/// The variables of settings. Those of flags are read with the flags; the value of one that is a path need not be UTF-8.
fn environment(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Vec<(String, String)>, Report> {
    let ours = variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    ours.filter(|(name, _)| name.starts_with("SKEIN_") && !SHORTHANDS.contains(&name.as_str()))
        .map(|(name, value)| match value.into_string() {
            Ok(text) => Ok((name, text)),
            Err(_) => Err(Failure::Usage { message: format!("the value of {name} is not UTF-8 text") }.into()),
        })
        .collect()
}

/// The file of the configuration that this command reads.
fn config_file(global: &Global, home: &Home) -> PathBuf {
    global.config.clone().unwrap_or_else(|| home.config_file())
}
