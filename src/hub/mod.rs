//! Models of the Hugging Face Hub, or of a mirror of it, as folders of this computer. In: a name. Out: a folder with what is needed to
//! compute and to read and write text, and nothing that runs code when it is read.
//!
//! Nothing is told to the Hub but what it is asked for.

mod client;
mod pull;
pub mod shelf;

use std::{fmt, path::PathBuf, str::FromStr};

pub use self::{
    client::{Client, Endpoint},
    pull::{Progress, pull},
};

/// Before the name of a model of the Hub, where a folder could stand.
pub const PREFIX: &str = "hf:";
const REVISION: &str = "main";

/// `OWNER/NAME@REVISION`, as the Hub names a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Models from the first years have none.
    pub owner: Option<String>,
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl Source {
    /// `OWNER/NAME`.
    pub fn id(&self) -> String {
        self.owner.as_ref().map_or_else(|| self.name.clone(), |owner| format!("{owner}/{}", self.name))
    }

    /// Name of its folder. `--` stands in no name of the Hub.
    pub fn folder(&self) -> String {
        format!("{}@{}", self.id().replace('/', "--"), self.revision)
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix(PREFIX).unwrap_or(text);
        let (id, revision) = text.split_once('@').unwrap_or((text, REVISION));
        let (owner, name) = match id.split_once('/') {
            Some((owner, name)) => (Some(owner), name),
            None => (None, id),
        };
        for part in owner.into_iter().chain([name, revision]) {
            let plain = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if part.is_empty() || part.len() > 96 || !plain || part.starts_with(['.', '-']) || part.contains("..") {
                return Err(format!("{text} is no name of a model: OWNER/NAME or OWNER/NAME@REVISION"));
            }
        }
        if id.contains("--") {
            return Err(format!("{text} is no name of a model: the Hub has none with --"));
        }
        Ok(Source { owner: owner.map(str::to_string), name: name.into(), revision: revision.into() })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            REVISION => write!(f, "{}", self.id()),
            revision => write!(f, "{}@{revision}", self.id()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Nobody answers, or not as the Hub does.
    #[error("{endpoint} cannot be reached: {why}")]
    Unreachable { endpoint: String, why: String },
    /// Gated, private, or a key that is not taken.
    #[error("{model} is not handed out: {why}")]
    Refused { model: String, why: String },
    #[error("there is no {model}")]
    Unknown { model: String },
    #[error("{model} {why}")]
    Unfit { model: String, why: String },
    /// What came is not what was announced.
    #[error("{} is not what was announced: {why}", file.display())]
    Other { file: PathBuf, why: String },
    #[error("{}: {source}", path.display())]
    Disk { path: PathBuf, source: std::io::Error, needed: u64 },
}

#[cfg(test)]
mod tests;
