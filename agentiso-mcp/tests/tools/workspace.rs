use std::time::Duration;

use serde_json::json;
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout},
};

use crate::client::{Client, SOON, keys};

#[tokio::test]
async fn workspace_lives_from_create_to_destroy() {
    let mut client = Client::new().await;

    let made = client
        .ok("workspace_create", json!({ "name": "my_project", "vcpus": 1, "memory_mb": 256, "disk_gb": 3 }))
        .await;
    assert_eq!(
        keys(&made),
        ["boot_time_ms", "from_pool", "ip", "name", "resources", "state", "workspace_id"]
    );
    assert_eq!(made["name"], "my_project");
    assert_eq!(made["state"], "running");
    assert_eq!(made["from_pool"], false);
    assert_eq!(made["resources"], json!({ "vcpus": 1, "memory_mb": 256, "disk_gb": 3 }));
    assert!(made["boot_time_ms"].is_u64() && made["ip"].is_string(), "{made}");

    let listed = client.ok("workspace_list", json!({ "state_filter": "running" })).await;
    assert_eq!(listed["workspaces"][0]["workspace_id"], made["workspace_id"]);
    assert_eq!(listed["workspaces"][0]["owned"], true);
    let stopped = client.ok("workspace_list", json!({ "state_filter": "stopped" })).await;
    assert_eq!(stopped, json!({ "workspaces": [] }));

    let gone = client.ok("workspace_destroy", json!({ "workspace_id": "my_project" })).await;
    assert_eq!(gone["workspace_id"], made["workspace_id"]);
    assert_eq!(client.ok("workspace_list", json!({})).await, json!({ "workspaces": [] }));
}

#[tokio::test]
async fn exec_returns_status_and_both_streams() {
    let mut client = Client::new().await;
    let id = client.create("w").await;

    for given in [id.as_str(), &id[..8], "w"] {
        let command = "echo out; echo err >&2; exit 3";
        let output = client.ok("exec", json!({ "workspace_id": given, "command": command })).await;

        assert_eq!(output, json!({ "exit_code": 3, "stdout": "out\n", "stderr": "err\n" }));
    }
}

#[tokio::test]
async fn exec_passes_the_environment() {
    let mut client = Client::new().await;
    client.create("w").await;

    let call = json!({ "workspace_id": "w", "command": "env", "env": { "SPECIAL": "a b" } });
    let output = client.ok("exec", call).await;

    assert!(output["stdout"].as_str().unwrap().contains("SPECIAL=a b\n"), "{output}");
}

#[tokio::test]
async fn exec_cuts_output_and_keeps_what_was_printed_before_the_timeout() {
    let mut client = Client::new().await;
    client.create("w").await;

    let call = json!({
        "workspace_id": "w", "command": "yes", "timeout_secs": 1, "max_output_bytes": 4,
    });
    let output = client.ok("exec", call).await;

    assert_eq!(output["exit_code"], 124);
    let stdout = output["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("y\ny\n[TRUNCATED: "), "{stdout}");
    assert!(stdout.ends_with(" bytes total, showing first 4 bytes]"), "{stdout}");
}

#[tokio::test]
async fn wrong_parameters_are_results_that_say_what_is_wrong() {
    let mut client = Client::new().await;
    client.create("w").await;
    let cases = [
        ("workspace_create", json!({ "memory_mb": 0 }), "128 to 8192"),
        ("workspace_create", json!({ "memory_mb": 9000 }), "128 to 8192"),
        ("workspace_create", json!({ "vcpus": 9 }), "1 to 8"),
        ("workspace_create", json!({ "disk_gb": 101 }), "1 to 100"),
        ("workspace_create", json!({ "vcpus": -1 }), "-1"),
        ("workspace_create", json!({ "name": "a b" }), "not valid"),
        ("workspace_create", json!({ "name": "x".repeat(129) }), "not valid"),
        ("workspace_create", json!({ "nmae": "x" }), "nmae"),
        ("workspace_list", json!({ "state_filter": "asleep" }), "asleep"),
        ("workspace_destroy", json!({}), "workspace_id"),
        ("exec", json!({ "workspace_id": "w" }), "command"),
        ("exec", json!({ "workspace_id": "w", "command": "true", "timeout_secs": 0 }), "1 to 86400"),
        ("exec", json!({ "workspace_id": "w", "command": "true", "timeout_secs": 86401 }), "1 to 86400"),
        (
            "exec",
            json!({ "workspace_id": "w", "command": "true", "max_output_bytes": 16_777_217 }),
            "0 to 16777216",
        ),
        ("exec", json!({ "workspace_id": "w", "command": ["true"] }), "string"),
    ];
    for (tool, arguments, expected) in cases {
        let message = client.fails(tool, arguments.clone(), "invalid_params").await;

        assert!(message.contains(expected), "{tool} {arguments}: {message}");
    }
    assert_eq!(client.ok("workspace_list", json!({})).await["workspaces"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_not_there_or_taken_is_an_invalid_request() {
    let mut client = Client::new().await;
    client.create("w").await;

    let missing = json!({ "workspace_id": "nope", "command": "true" });
    assert!(client.fails("exec", missing, "invalid_request").await.contains("nope"));
    client.fails("workspace_destroy", json!({ "workspace_id": "nope" }), "invalid_request").await;
    client.fails("workspace_create", json!({ "name": "w" }), "invalid_request").await;
    client.fails("workspace_create", json!({ "base_image": "nope" }), "invalid_request").await;
}

#[tokio::test]
async fn unknown_tools_and_methods_are_json_rpc_errors() {
    let mut client = Client::new().await;

    let tool = client.request("tools/call", &json!({ "name": "nope", "arguments": {} })).await;
    let method = client.request("nope/nope", &json!({})).await;

    assert_eq!(tool["error"]["code"], -32602, "{tool}");
    assert_eq!(method["error"]["code"], -32601, "{method}");
}

#[tokio::test]
async fn long_call_delays_no_other() {
    let mut client = Client::new().await;
    client.create("w").await;
    let sleep = json!({ "workspace_id": "w", "command": "sleep 1000" });
    client.begin("tools/call", &json!({ "name": "exec", "arguments": sleep })).await;
    let began = Instant::now();

    let output = client.ok("exec", json!({ "workspace_id": "w", "command": "echo quick" })).await;

    assert_eq!(output["stdout"], "quick\n");
    assert!(began.elapsed() < Duration::from_secs(5));
}

/// Waits until nobody is connected to the guest of this workspace.
async fn wait_until_hung_up(client: &Client, id: &str) {
    let guest = client.guest(id);
    let deadline = Instant::now() + SOON;
    while guest.connections() > 0 {
        assert!(Instant::now() < deadline, "the command still runs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn wait_until_connected(client: &Client, id: &str) {
    let guest = client.guest(id);
    let deadline = Instant::now() + SOON;
    while guest.connections() == 0 {
        assert!(Instant::now() < deadline, "the command was not started");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn cancelled_call_hangs_its_command_up() {
    let mut client = Client::new().await;
    let id = client.create("w").await;
    let sleep = json!({ "workspace_id": "w", "command": "sleep 1000" });
    let call = client.begin("tools/call", &json!({ "name": "exec", "arguments": sleep })).await;
    wait_until_connected(&client, &id).await;

    let cancel = json!({ "requestId": call, "reason": "test" });
    client.send(&json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancel })).await;

    wait_until_hung_up(&client, &id).await;
}

#[tokio::test]
async fn client_that_leaves_ends_the_server_and_its_calls() {
    let mut client = Client::new().await;
    let id = client.create("w").await;
    let sleep = json!({ "workspace_id": "w", "command": "sleep 1000" });
    client.begin("tools/call", &json!({ "name": "exec", "arguments": sleep })).await;
    wait_until_connected(&client, &id).await;

    client.input.shutdown().await.unwrap();

    timeout(SOON, &mut client.server).await.unwrap().unwrap().unwrap();
    wait_until_hung_up(&client, &id).await;
}
