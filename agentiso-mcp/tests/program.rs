//! The program: what it prints where.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use std::process::{Command, Output, Stdio};

fn run(home: &std::path::Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agentiso-mcp"))
        .args(arguments)
        .env("AGENTISO_HOME", home)
        .env("AGENTISO_LOG", "trace")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn unusable_state_folder_is_told_on_stderr_alone() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("file");
    std::fs::write(&home, "").unwrap();

    let output = run(&home, &[]);

    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("agentiso-mcp: ") && stderr.contains(home.to_str().unwrap()), "{stderr}");
}

#[test]
fn version_is_printed_and_other_arguments_are_refused() {
    let folder = tempfile::tempdir().unwrap();

    let version = run(folder.path(), &["--version"]);
    let other = run(folder.path(), &["--nope"]);

    assert!(version.status.success());
    assert_eq!(
        String::from_utf8_lossy(&version.stdout),
        format!("agentiso-mcp {}\n", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!((other.status.code(), other.stdout.as_slice()), (Some(2), &b""[..]));
}
