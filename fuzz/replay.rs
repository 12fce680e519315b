//! What the tests of three crates share: the seeds of a fuzz target are in its corpus, and its decoder minds none of it. With
//! `INSTA_UPDATE=always` the seeds are written.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Names and bytes of what a target starts from.
pub type Seeds = Vec<(String, Vec<u8>)>;

/// This folder, seen from whichever crate includes this file.
fn here() -> PathBuf {
    let mut above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("fuzz"));
    above.find(|fuzz| fuzz.join("replay.rs").is_file()).expect("the folder of the fuzz targets")
}

/// Runs the decoder over the corpus of its target, seeds and what fuzzing has added.
pub fn replay(target: &str, decoder: fn(&[u8]), seeds: Seeds) {
    let shell = here().join("fuzz_targets").join(target).with_extension("rs");
    assert!(shell.is_file(), "{target} has no fuzz target");
    let folder = here().join("corpus").join(target);
    if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        fs::create_dir_all(&folder).unwrap();
        seeds.iter().for_each(|(name, bytes)| fs::write(folder.join(name), bytes).unwrap());
    }
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let kept: BTreeMap<String, Vec<u8>> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    for (name, bytes) in seeds {
        assert_eq!(kept.get(&name), Some(&bytes), "{target}/{name}; INSTA_UPDATE=always writes the seeds anew");
    }
    kept.values().for_each(|bytes| decoder(bytes));
}
