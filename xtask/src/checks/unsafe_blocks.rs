use std::collections::BTreeMap;

use super::{read, rust_files, table};

/// Code that ships; tests may do what they must.
const FOLDERS: [&str; 5] =
    ["agentiso-core/src", "agentiso-guest/src", "agentiso-mcp/src", "agentiso-cli/src", "xtask/src"];

/// Uses of the keyword that open a block or declare something that one must be careful with.
fn count(source: &str) -> usize {
    let code = source.lines().map(|line| line.split("//").next().unwrap_or_default());
    // What is between quotes is text.
    let code = code.flat_map(|line| line.split('"').step_by(2));
    // What lints are called is no use of it.
    code.flat_map(|part| part.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .filter(|word| *word == "unsafe")
        .count()
}

#[test]
fn unsafe_blocks_are_those_of_the_report() {
    let counted: BTreeMap<String, usize> = rust_files(&FOLDERS)
        .into_iter()
        .filter(|path| !path.ends_with("checks/unsafe_blocks.rs"))
        .map(|path| (path.clone(), count(&read(&path))))
        .filter(|(_, count)| *count > 0)
        .collect();
    let listed: BTreeMap<String, usize> = table(&read("docs/security-report.md"), "file with `unsafe`")
        .into_iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), row[1].parse().unwrap_or(0)))
        .collect();
    assert_eq!(counted, listed, "left: counted; right: docs/security-report.md");
}

#[test]
fn unsafe_code_is_in_files_for_it() {
    for path in rust_files(&FOLDERS).iter().filter(|path| !path.contains("checks/")) {
        let is_sys = path.split('/').any(|part| part == "sys" || part == "sys.rs");
        assert!(is_sys || count(&read(path)) == 0, "{path} has unsafe code and is no sys module");
    }
}

#[test]
fn words_in_comments_and_lints_do_not_count() {
    assert_eq!(count("// unsafe\n#![forbid(unsafe_code)]\nlet x = unsafe { f() };\nunsafe fn g() {}"), 2);
}
