//! The crates depend on each other as the README says, and the pure ones stay quick to build.

use std::{collections::BTreeSet, fs, path::Path};

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

#[test]
fn pure_crates_bring_no_runtime_network_or_tensors() {
    for crate_ in ["protocol", "gossip", "pipeline", "simulations"] {
        let all = dependencies(&format!("{crate_}/Cargo.toml"));
        for heavy in ["tokio", "libp2p", "quinn", "candle-core", "candle-nn", "gemm"] {
            assert!(!all.contains(heavy), "{crate_} depends on {heavy}");
        }
    }
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
