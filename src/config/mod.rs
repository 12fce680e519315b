//! What this machine gives and where it listens: NodeConfig, valid and final. Local; never part of a run's identity.
//!
//! In: layers (defaults < profile < file < environment < flags). Out: [`NodeConfig`], and for each key where its value came from
//! ([`Settings`]). Knows no socket, device or run. The keys, their defaults and extremes stand in [`keys`] alone.

// An error ends the command: it is made once, and its fields are its message.
#![allow(clippy::result_large_err)]

pub mod keys;
mod layers;
pub mod machine;
pub mod profile;
mod value;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use libp2p::Multiaddr;
use serde::Deserialize;
use skein_protocol::Stage;

pub use self::{
    keys::KEYS,
    layers::{Flag, Origin, Place, SHORTHANDS, Setting, Settings, Sources, nearest, shown},
    machine::{Lacking, Machine},
    value::address,
};

/// Why a configuration is refused. One error names one key, and where it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{place}: `{key}` is not a setting")]
    Unknown { key: String, place: Place, near: Option<String> },
    #[error("{place}: `{key}` cannot be {value}: {allowed}")]
    Value { key: String, value: String, allowed: String, example: String, place: Place },
    #[error("{place}: `{key} = {value}` has no unit")]
    NoUnit { key: String, value: String, could_be: &'static str, example: String, place: Place },
    #[error("{a} and {b}: {reason}")]
    Contradiction { a: String, b: String, reason: &'static str },
    #[error("the profile {name} does not exist")]
    Profile { name: String, near: Option<String> },
    #[error("{place}: {message}")]
    Syntax { place: Place, message: String },
    #[error("{}: {message}", path.display())]
    Unreadable { path: PathBuf, message: String },
}

/// Everything that [`keys::KEYS`] lists, typed. See there for units, defaults and extremes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    pub me: Me,
    pub give: Give,
    pub net: Net,
    pub store: Store,
    pub watch: Watch,
    pub log: Log,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Me {
    /// Label in tables; empty: the petname of the key.
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Give {
    pub memory: Memory,
    pub device: Device,
    /// 0: physical cores less one.
    pub threads: u16,
    pub stage: StageChoice,
    pub roles: Vec<Role>,
}

impl Give {
    /// Whether this peer serves stages at all.
    pub fn works(&self) -> bool {
        self.roles.contains(&Role::Train)
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    pub port: u16,
    pub listen: Vec<IpAddr>,
    #[serde(deserialize_with = "value::addresses")]
    pub announce: Vec<Multiaddr>,
    pub lan: bool,
    pub port_mapping: bool,
    pub relay_use: bool,
    pub relay_serve: bool,
    #[serde(deserialize_with = "value::addresses")]
    pub bootstrap: Vec<Multiaddr>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Empty: the data folder.
    pub path: String,
    pub keep_versions: u16,
    /// Zero: only when the peer stops.
    #[serde(deserialize_with = "value::duration")]
    pub checkpoint_every: Duration,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Nothing: no control server.
    #[serde(deserialize_with = "value::socket")]
    pub listen: Option<SocketAddr>,
    pub token: Token,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub level: Level,
    pub format: LogFormat,
    /// Empty: none.
    pub file: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Memory {
    Auto,
    Bytes(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Device {
    Auto,
    Cpu,
    /// By its number.
    Cuda(u32),
    Metal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "value::WordOrNumber")]
pub enum StageChoice {
    Auto,
    Stage(Stage),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serve stages of a run and average with their other replicas.
    Train,
}

/// The bearer token of the control server.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Token {
    /// A new one at each start.
    Auto,
    Fixed(String),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Token::Auto => "auto",
            Token::Fixed(_) => "(set)",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}
