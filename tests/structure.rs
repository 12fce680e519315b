//! The crates depend on each other as the README says, and the pure ones stay quick to build.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names under `[dependencies]` of a crate, without those that only a feature brings.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let table: toml::Table = read(manifest).parse().unwrap();
    let all = table["dependencies"].as_table().unwrap();
    let wanted = all.iter().filter(|(_, value)| value.get("optional").and_then(toml::Value::as_bool) != Some(true));
    wanted.map(|(name, _)| name.clone()).collect()
}

#[test]
fn the_crate_graph_is_the_readmes_line() {
    let readme = read("README.md");
    let line = readme.lines().find(|line| line.contains("protocol <- gossip")).expect("the README has the line");
    let order: Vec<&str> = line.split("<-").map(str::trim).collect();
    assert_eq!(order.last(), Some(&"skein"));
    for (i, name) in order.iter().enumerate() {
        let manifest = if *name == "skein" { "Cargo.toml".into() } else { format!("{name}/Cargo.toml") };
        let ours =
            dependencies(&manifest).into_iter().filter_map(|name| name.strip_prefix("skein-").map(str::to_string));
        let before: BTreeSet<String> = order[..i].iter().map(ToString::to_string).collect();
        assert_eq!(
            ours.collect::<BTreeSet<_>>(),
            before,
            "{name} depends on all that stand before it, and on nothing else"
        );
    }
}

/// What building and testing a crate of ours takes in: every table of dependencies that it has, and what those take in, as the
/// lock file says for every platform and whichever features anybody wants.
struct Graph {
    locked: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read() -> Graph {
        let lock: toml::Table = read("Cargo.lock").parse().unwrap();
        let mut locked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for package in lock["package"].as_array().unwrap() {
            let all = package.get("dependencies").and_then(toml::Value::as_array).into_iter().flatten();
            // `name`, or `name version` where there are several.
            let names = all.filter_map(|name| name.as_str()?.split(' ').next()).map(str::to_string);
            locked.entry(package["name"].as_str().unwrap().into()).or_default().extend(names);
        }
        Graph { locked }
    }

    /// Everything that `crate_` (`skein-protocol`) is built or tested with, without the features that it has but nobody asks for.
    fn all_of(&self, crate_: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut open = vec![crate_.to_string()];
        while let Some(name) = open.pop() {
            let next = match (name.as_str() == crate_, name.strip_prefix("skein-")) {
                (is_root, Some(ours)) => wanted(&read(&format!("{ours}/Cargo.toml")).parse().unwrap(), is_root),
                (_, None) => self.locked.get(&name).unwrap_or_else(|| panic!("{name} is not locked")).clone(),
            };
            open.extend(next.into_iter().filter(|name| seen.insert(name.clone())));
        }
        seen
    }
}

/// Crates in the tables of a manifest of ours, and with `tests` those that its tests take. Optional ones count where a feature is
/// on by default.
fn wanted(manifest: &toml::Table, tests: bool) -> BTreeSet<String> {
    let default = manifest.get("features").and_then(|features| features.get("default")?.as_array());
    let optional = default.is_some_and(|default| !default.is_empty());
    let mut all = BTreeSet::new();
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let tables = targets.into_iter().flat_map(|targets| targets.values()).filter_map(toml::Value::as_table);
    for table in tables.chain([manifest]) {
        for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let Some(entries) = table.get(kind).and_then(toml::Value::as_table) else { continue };
            for (name, value) in entries.iter().filter(|_| tests || kind != "dev-dependencies") {
                let features = value.get("features").and_then(toml::Value::as_array);
                let asks = features.is_some_and(|features| !features.is_empty());
                assert!(!(name == "skein-pipeline" && asks), "a pure crate asks for features of {name}");
                if optional || value.get("optional").and_then(toml::Value::as_bool) != Some(true) {
                    let name = value.get("package").and_then(toml::Value::as_str).unwrap_or(name);
                    all.insert(name.to_string());
                }
            }
        }
    }
    all
}

#[test]
fn pure_crates_bring_no_runtime_network_or_tensors() {
    let graph = Graph::read();
    for crate_ in ["protocol", "gossip", "pipeline", "simulations"] {
        let all = graph.all_of(&format!("skein-{crate_}"));
        assert!(all.contains("blake3") && all.contains("proptest"), "{crate_}: the graph is read to its leaves");
        let heavy = |name: &&String| {
            ["candle", "tokio", "libp2p", "quinn"].iter().any(|start| name.starts_with(start))
                || ["gemm", "safetensors", "mio", "hyper", "axum", "rustls"].contains(&name.as_str())
        };
        let heavy: Vec<&String> = all.iter().filter(heavy).collect();
        assert!(heavy.is_empty(), "{crate_} is built or tested with {heavy:?}");
    }
    let lock_knows = |name: &str| graph.locked.keys().any(|locked| locked.starts_with(name));
    assert!(["candle", "tokio", "libp2p"].into_iter().all(lock_knows), "and they would have been seen");
}

/// Pages that are made from tables in the code say what the code says. `INSTA_UPDATE=always` writes them.
#[test]
fn generated_pages_are_up_to_date() {
    let pages = [
        ("errors.md", skein::cli::failure::markdown()),
        ("glossary.md", skein::cli::glossary::markdown()),
        ("config.md", skein::config::keys::markdown()),
    ];
    for (name, text) in pages {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
        if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
            fs::write(&path, &text).unwrap();
        }
        assert!(fs::read_to_string(&path).unwrap() == text, "docs/{name} is not what the code says");
    }
}
