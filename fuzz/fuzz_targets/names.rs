//! Names, ids, sizes and paths of guests: what is accepted is what the rules say, and stays what it was.
#![no_main]

use agentiso_core::{
    channel::client::{RawPath, clean_text},
    hypervisor::printable,
    types::{
        DiskGib, GuestPort, HostPort, ImageName, MemoryMib, SnapshotName, VcpuCount, WorkspaceId, WorkspaceName,
        guest_hostname, is_valid_workspace_name,
    },
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|data: &[u8]| {
    raw_path(data);
    let shown = printable(data);
    assert!(!shown.contains('\u{1b}'), "an escape sequence reaches a terminal");
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert!(clean_text(text).chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
    name(text);
    if let Ok(id) = text.parse::<WorkspaceId>() {
        assert_eq!(id.to_string().parse::<WorkspaceId>().expect("the same id"), id);
        assert!(id.to_string().bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'));
    }
    json::<WorkspaceName>(text);
    json::<VcpuCount>(text);
    json::<MemoryMib>(text);
    json::<DiskGib>(text);
    json::<HostPort>(text);
    json::<GuestPort>(text);
    json::<WorkspaceId>(text);
});

fn name(text: &str) {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_uppercase() || c.is_ascii_digit() || "._-".contains(c);
    let expected = (1..=128).contains(&text.chars().count())
        && text.chars().all(allowed)
        && ![".", ".."].contains(&text);
    assert_eq!(is_valid_workspace_name(text), expected, "{text:?}");
    assert_eq!(SnapshotName::new(text).is_ok(), expected);
    assert_eq!(ImageName::new(text).is_ok(), expected);
    match WorkspaceName::new(text) {
        Ok(name) => {
            let host = guest_hostname(&name);
            assert!((1..=63).contains(&host.len()) && !host.starts_with('-') && !host.ends_with('-'), "{host}");
            assert!(host.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{host}");
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.len() < 4096 && !error.contains('\0') && !error.contains('\n'), "{error:?}");
        }
    }
}

fn json<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(text: &str) {
    if let Ok(value) = serde_json::from_str::<T>(text) {
        let again = serde_json::to_string(&value).expect("it can be written");
        assert_eq!(serde_json::from_str::<T>(&again).expect("it can be read again"), value);
    }
}

/// Paths are bytes; in JSON they are text with escapes.
fn raw_path(bytes: &[u8]) {
    let path = RawPath::new(bytes);
    let text = serde_json::to_string(&path).expect("it can be written");
    assert_eq!(serde_json::from_str::<RawPath>(&text).expect("it can be read again"), path);
    if let Ok(path) = serde_json::from_slice::<RawPath>(bytes) {
        let text = serde_json::to_string(&path).expect("it can be written");
        assert_eq!(serde_json::from_str::<RawPath>(&text).expect("it can be read again"), path);
    }
    if path.is_relative() {
        let parts: Vec<&[u8]> = bytes.split(|byte| *byte == b'/').collect();
        assert!(bytes.is_empty() || !parts.iter().any(|part| matches!(*part, b"" | b"." | b"..")));
    }
}
