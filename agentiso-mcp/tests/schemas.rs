//! The schemas as they are kept, and what documents them. A change of either is a change of the contract with clients:
//! regenerate with `AGENTISO_REGENERATE=1 cargo nextest run -p agentiso-mcp -E 'binary(schemas)'` and look at the diff.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::Path;

use serde_json::Value;

#[track_caller]
fn compare(path: &str, now: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("AGENTISO_REGENERATE").is_some() {
        std::fs::write(&path, now).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == now, "{} is not what the tools say: see this file's beginning", path.display());
}

#[test]
fn schemas_are_as_they_are_kept() {
    compare("tools.json", &agentiso_mcp::tools_json());
}

#[test]
fn document_is_as_the_schemas_say() {
    compare("../docs/tools.md", &agentiso_mcp::tools_markdown());
}

#[test]
fn schemas_are_what_every_client_understands() {
    let tools: Vec<Value> = serde_json::from_str(&agentiso_mcp::tools_json()).unwrap();
    assert_eq!(tools.len(), 29);
    for tool in &tools {
        let name = tool["name"].as_str().unwrap();
        let schema = &tool["inputSchema"];
        assert_eq!(schema["type"], "object", "{name}");
        assert_eq!(schema["additionalProperties"], false, "{name}");
        let text = schema.to_string();
        for stumbling in ["$ref", "$defs", "oneOf", "\"null\"", "nullable", "\"format\""] {
            assert!(!text.contains(stumbling), "{name} has {stumbling}: {text}");
        }
        assert!(tool["description"].as_str().unwrap().len() > 60, "{name}");
        let examples = schema["examples"].as_array().unwrap_or_else(|| panic!("{name} has no examples"));
        let properties = schema["properties"].as_object().unwrap();
        for (parameter, property) in properties {
            assert!(property["description"].as_str().is_some_and(|it| it.len() > 8), "{name} {parameter}");
        }
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().map(|it| it.as_str().unwrap()).collect();
        for example in examples {
            let example = example.as_object().unwrap();
            assert!(example.keys().all(|key| properties.contains_key(key)), "{name}: {example:?}");
            assert!(required.iter().all(|key| example.contains_key(*key)), "{name}: {example:?}");
        }
    }
}
