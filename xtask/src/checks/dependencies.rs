use std::collections::BTreeSet;

use super::{read, table};

const MANIFESTS: [&str; 8] = [
    "agentiso-core/Cargo.toml",
    "agentiso-guest/Cargo.toml",
    "agentiso-mcp/Cargo.toml",
    "agentiso-cli/Cargo.toml",
    "examples/Cargo.toml",
    "benches/Cargo.toml",
    "xtask/Cargo.toml",
    "Cargo.toml",
];

/// The names in the dependency sections of a manifest, our own crates left out.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim_end_matches(']').ends_with("dependencies");
        } else if inside && line.starts_with(|c: char| c.is_ascii_alphabetic()) {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            names.insert(name.to_owned());
        }
    }
    names.retain(|name| !name.starts_with("agentiso"));
    names
}

#[test]
fn dependencies_are_all_justified_and_no_others() {
    let used: BTreeSet<String> = MANIFESTS.iter().flat_map(|path| dependencies(&read(path))).collect();
    let rows = table(&read("docs/dependencies.md"), "crate");
    let justified: BTreeSet<String> = rows.iter().map(|row| row[0].clone()).collect();
    assert_eq!(used, justified, "left: what the manifests name; right: docs/dependencies.md");
    assert!(rows.iter().all(|row| row.len() == 4 && row.iter().all(|cell| !cell.is_empty())), "empty cells");
}

#[test]
fn dependencies_come_with_allowed_sources_alone() {
    for line in read("Cargo.lock").lines().filter(|line| line.starts_with("source = ")) {
        assert_eq!(line, "source = \"registry+https://github.com/rust-lang/crates.io-index\"");
    }
    assert!(read("deny.toml").contains("unknown-registry = \"deny\""));
}
