//! The frozen schema: what two sides of different age have agreed on changes only on purpose.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must stop")]

use agentiso_guest::PROTOCOL_GENERATION;
use agentiso_guest::hello::{Hello, Welcome};
use agentiso_guest::message::{Input, Reply, Request};
use schemars::schema_for;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schema.json");
/// Set to anything, it makes the test write the file instead of comparing.
const UPDATE: &str = "AGENTISO_UPDATE_SCHEMA";

#[test]
fn schema_is_the_frozen_one() {
    let schema = serde_json::json!({
        "generation": PROTOCOL_GENERATION,
        "hello": schema_for!(Hello),
        "welcome": schema_for!(Welcome),
        "request": schema_for!(Request),
        "input": schema_for!(Input),
        "reply": schema_for!(Reply),
    });
    let mut rendered = serde_json::to_string_pretty(&schema).unwrap();
    rendered.push('\n');
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(FILE, &rendered).unwrap();
    }

    let frozen = std::fs::read_to_string(FILE).unwrap_or_default();

    assert!(
        frozen == rendered,
        "the wire protocol has changed. If that is meant, raise PROTOCOL_GENERATION where an older side would not \
         understand it, describe it in docs/wire.md, and run this test with {UPDATE}=1 to freeze the new schema"
    );
}

/// Names of all properties in a schema.
fn properties(value: &serde_json::Value, names: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(object) => {
            if let Some(serde_json::Value::Object(own)) = object.get("properties") {
                names.extend(own.keys().cloned());
            }
            object.values().for_each(|value| properties(value, names));
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| properties(value, names)),
        _ => {}
    }
}

/// Who says something is known by the channel it comes through, and never taken from what is said.
#[test]
fn no_message_says_who_sends_it() {
    let schema: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(FILE).unwrap()).unwrap();
    let mut names = std::collections::BTreeSet::new();
    properties(&schema, &mut names);
    assert!(names.len() > 40, "only {} properties: the schema is read wrongly", names.len());
    for name in names {
        for word in [
            "sender",
            "from",
            "source",
            "origin",
            "peer",
            "cid",
            "owner",
            "session",
            "workspace",
            "token",
            "url",
        ] {
            assert!(!name.split('_').any(|part| part == word), "a message has a field {name}");
        }
    }
}
