//! What documents say of the source, compared with the source.

mod dependencies;
mod report;
mod surface;
mod unsafe_blocks;

use std::path::{Path, PathBuf};

use crate::run;

fn repository() -> PathBuf {
    run::repository().unwrap()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Rust file below these folders of the repository, by its path in it.
fn rust_files(folders: &[&str]) -> Vec<String> {
    let root = repository();
    let mut left: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = left.pop() {
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    left.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The rows of the first table of a document whose head begins with this column, without head and rule.
fn table(document: &str, first_column: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        // A pipe inside of code is written as an entity or not at all.
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    document
        .lines()
        .skip_while(|line| !line.starts_with(&format!("| {first_column} |")))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect()
}
