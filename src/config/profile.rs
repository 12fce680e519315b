//! Ready-made answers to "what does this machine give": the files of `configs/node/`, built in. In: a name or a path. Out: TOML.

use std::{fs, path::Path};

use super::{ConfigError, layers::nearest};

const PROFILES: [(&str, &str); 6] = [
    ("home-cpu", include_str!("../../configs/node/home-cpu.toml")),
    ("home-gpu", include_str!("../../configs/node/home-gpu.toml")),
    ("laptop", include_str!("../../configs/node/laptop.toml")),
    ("datacenter", include_str!("../../configs/node/datacenter.toml")),
    ("relay", include_str!("../../configs/node/relay.toml")),
    ("observer", include_str!("../../configs/node/observer.toml")),
];

pub fn names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
}

/// A built-in profile, or the text of a file when `name` looks like a path.
pub(super) fn find(name: &str) -> Result<String, ConfigError> {
    if let Some((_, text)) = PROFILES.iter().find(|(known, _)| *known == name) {
        return Ok(text.to_string());
    }
    if name.contains(['/', '\\']) || name.ends_with(".toml") {
        return fs::read_to_string(Path::new(name))
            .map_err(|error| ConfigError::Unreadable { path: name.into(), message: error.to_string() });
    }
    Err(ConfigError::Profile { name: name.into(), near: nearest(name, names().map(str::to_string)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Sources};

    #[test]
    fn every_profile_is_valid() {
        for name in names() {
            let sources = Sources { profile: Some(name.into()), ..Sources::default() };
            let settings = Settings::load(&sources).unwrap_or_else(|error| panic!("{name}: {error}"));
            let said = settings.iter().filter(|setting| !setting.covered.is_empty()).count();
            assert!(said > 0, "{name} says nothing");
        }
    }

    #[test]
    fn every_file_of_the_folder_is_built_in() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/node");
        let mut files: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_string())
            .collect();
        files.sort();
        let mut known: Vec<&str> = names().collect();
        known.sort_unstable();
        assert_eq!(files, known);
    }

    #[test]
    fn a_wrong_name_brings_the_right_one() {
        match find("laptopp") {
            Err(ConfigError::Profile { near, .. }) => assert_eq!(near.as_deref(), Some("laptop")),
            other => panic!("{other:?}"),
        }
    }
}
