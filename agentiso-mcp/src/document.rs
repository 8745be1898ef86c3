//! The tools, written down: the JSON that is kept in tools.json, and docs/tools.md.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::tools::{Class, Effect, Entry, Group, TOOLS};

/// All tools as clients are told of them, as JSON.
pub fn tools_json() -> String {
    let tools: Vec<Value> = TOOLS.iter().map(|tool| json!(tool.listed())).collect();
    let mut text = serde_json::to_string_pretty(&tools).unwrap_or_default();
    text.push('\n');
    text
}

const HEAD: &str = "# The MCP tools

Generated from the tools' schemas: after a change of them run
`agentiso mcp --print-tools markdown > docs/tools.md` and `agentiso mcp --print-tools json > agentiso-mcp/tools.json`.
A test compares both.

A result is one text of compact JSON. A call that reached a tool answers its errors with `isError: true` and
`{\"code\": \"invalid_params|invalid_request|internal_error\", \"message\", \"next_step\"}`; JSON-RPC errors are for malformed
requests, unknown methods and unknown tools.

A workspace is named by its UUID, by 8 or more of the UUID's first digits, or by its name. A session sees its own
workspaces and those that nobody owns; anything else is \"not found\".

Calls that take their time send progress notifications to clients that ask for them with a `progressToken`; `exec` sends
what its command prints. A cancelled call is given up: its command is ended in the guest, a workspace half made is undone.

Rate limits are per session: `create` 5 a minute (3 at once), `exec` 60 a minute (10 at once), `other` 120 a minute (20 at
once). A call that makes or runs several costs one.

Besides tools there are resources, `agentiso://workspace/{id}/console` and `agentiso://workspace/{id}/files{+path}`, and the
prompts `try-in-parallel` and `safe-change`.
";

/// docs/tools.md.
pub fn tools_markdown() -> String {
    let mut text = HEAD.to_owned();
    for group in Group::ALL {
        let _ = writeln!(text, "\n## {}", group.title());
        for tool in TOOLS.iter().filter(|tool| tool.group == group) {
            describe(&mut text, tool);
        }
    }
    text
}

fn describe(text: &mut String, tool: &Entry) {
    let class = match tool.class {
        Class::Create => "create",
        Class::Exec => "exec",
        Class::Other => "other",
    };
    let effect = match tool.effect {
        Effect::Reads => "only reads",
        Effect::Adds => "adds",
        Effect::Changes => "may change or remove",
    };
    let _ = writeln!(text, "\n### {}\n", tool.name);
    let _ = writeln!(text, "{}\n", tool.description);
    let _ = writeln!(text, "Rate class `{class}`; {effect}.\n");
    let schema = tool.schema();
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let properties = schema.get("properties").and_then(Value::as_object);
    let _ = writeln!(text, "| parameter | type | |\n|---|---|---|");
    for (name, property) in properties.into_iter().flatten() {
        let mark = if required.contains(&name.as_str()) { "" } else { "?" };
        let meaning = property["description"].as_str().unwrap_or_default().replace('|', "\\|");
        let _ = writeln!(text, "| `{name}`{mark} | {} | {meaning} |", kind(property));
    }
    text.push('\n');
    for example in tool.examples {
        let _ = writeln!(text, "    {example}");
    }
}

/// The type of a parameter, with its bounds.
fn kind(property: &Value) -> String {
    if let Some(values) = property["enum"].as_array() {
        let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
        return values.join(", ");
    }
    if let Some(choices) = property["anyOf"].as_array() {
        let choices: Vec<String> = choices.iter().map(kind).collect();
        return choices.join(" or ");
    }
    let name = match property["type"].as_str() {
        Some("array") => format!("array of {}", kind(&property["items"])),
        Some("object") => "object of strings".to_owned(),
        Some(name) => name.to_owned(),
        None => "any".to_owned(),
    };
    match (property["minimum"].as_u64(), property["maximum"].as_u64()) {
        (Some(min), Some(max)) => format!("{name}, {min} to {max}"),
        _ => name,
    }
}
