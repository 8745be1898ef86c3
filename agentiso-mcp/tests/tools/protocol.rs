//! What clients may say, and how long things may take.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout},
};

use crate::client::{Client, Lab, SOON};

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn malformed_messages_are_answered_or_skipped_and_the_server_goes_on() {
    let mut client = Client::new().await;
    for line in [
        "",
        "not json",
        "{\"jsonrpc\":\"2.0\",",
        "\u{0}\u{1}",
        "[]",
        "{}",
        "null",
        "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"ping\"}",
        "{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"ping\"}",
    ] {
        client.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }
    let id = client.begin("tools/list", &json!({})).await;
    let answer = loop {
        let answer = client.receive().await;
        if answer["id"] == id {
            break answer;
        }
        assert!(answer["error"]["code"].is_i64(), "{answer}");
    };
    assert!(answer["result"]["tools"].is_array(), "{answer}");
}

#[tokio::test]
async fn wrong_shapes_of_calls_are_json_rpc_errors() {
    let mut client = Client::new().await;
    for params in [json!({}), json!({ "name": 7 }), json!({ "name": "exec", "arguments": "text" }), json!([])]
    {
        let id = client.begin("tools/call", &params).await;
        let answer = client.receive().await;
        assert!(answer["id"] == id || answer["id"].is_null(), "{answer}");
        assert!(answer["error"]["code"].as_i64().unwrap() < -32000, "{params}: {answer}");
    }
    let tool = client.request("tools/call", &json!({ "name": "vault", "arguments": {} })).await;
    assert_eq!(tool["error"]["code"], -32602, "{tool}");
}

#[tokio::test]
async fn message_over_sixteen_mebibytes_is_refused_and_the_next_one_served() {
    let mut client = Client::new().await;
    client.create("w").await;
    let call = json!({ "workspace_id": "w", "path": "/f", "content": "x".repeat(16 * MIB) });
    let line = json!({
        "jsonrpc": "2.0", "id": 77, "method": "tools/call", "params": { "name": "file_write", "arguments": call },
    });

    client.send(&line).await;

    let refused = client.receive().await;
    assert!(refused["error"]["code"].is_i64(), "{refused}");
    client.ok("workspace_list", json!({})).await;
}

#[tokio::test(start_paused = true)]
async fn client_that_never_reads_ends_the_server_in_time() {
    let lab = Lab::new().await;
    let mut client = Client::open(&lab, "test").await;
    let began = Instant::now();
    let asking = async {
        for id in 0..200 {
            let line = json!({ "jsonrpc": "2.0", "id": 1000 + id, "method": "tools/list" });
            if client.input.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                break;
            }
        }
    };

    let ((), served) = tokio::join!(asking, async { (&mut client.server).await.unwrap() });

    assert!(matches!(served, Err(agentiso_mcp::ServeError::Stalled { .. })), "{served:?}");
    assert!(began.elapsed() < Duration::from_secs(300), "{:?}", began.elapsed());
}

#[tokio::test]
async fn output_is_told_while_the_command_runs() {
    let mut client = Client::new().await;
    client.create("w").await;
    let call = json!({
        "name": "exec",
        "arguments": { "workspace_id": "w", "command": "echo first; sleep 2; echo second" },
        "_meta": { "progressToken": "p" },
    });
    let id = client.begin("tools/call", &call).await;

    let mut told = Vec::new();
    let result = loop {
        let message = client.receive().await;
        if message["id"] == id {
            break message;
        }
        assert_eq!(message["method"], "notifications/progress", "{message}");
        assert_eq!(message["params"]["progressToken"], "p");
        told.push(message["params"].clone());
    };

    assert!(told.len() >= 2, "{told:?}");
    assert!(told.iter().any(|it| it["message"] == "first\n"), "{told:?}");
    let progress: Vec<f64> = told.iter().map(|it| it["progress"].as_f64().unwrap()).collect();
    assert!(progress.is_sorted_by(|a, b| a < b), "{progress:?}");
    let text = result["result"]["content"][0]["text"].as_str().unwrap();
    let value: Value = serde_json::from_str(text).unwrap();
    assert_eq!(value["stdout"], "first\nsecond\n");
}

#[tokio::test]
async fn slow_creation_tells_that_it_goes_on() {
    let mut client = Client::new().await;
    client.lab.fakes.set_boot_time(Duration::from_secs(3));
    let call = json!({ "name": "workspace_create", "arguments": {}, "_meta": { "progressToken": 7 } });
    let id = client.begin("tools/call", &call).await;

    let first = client.receive().await;

    assert_eq!(first["params"]["message"], "booting the machine", "{first}");
    while client.receive().await["id"] != id {}
}

/// Waits until there are so many workspaces.
async fn wait_for_workspaces(client: &Client, count: usize) {
    let deadline = Instant::now() + SOON;
    while client.lab.host.list().await.unwrap().len() != count {
        assert!(Instant::now() < deadline, "there are not {count} workspaces");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn cancelled_creation_leaves_nothing() {
    let mut client = Client::new().await;
    client.create("first").await;
    let slow = agentiso_core::testkit::Fault::Delay(Duration::from_secs(1));
    client.lab.fakes.faults().arm("network.attach", 1, slow);
    let call = json!({ "name": "workspace_create", "arguments": { "name": "second" } });
    let id = client.begin("tools/call", &call).await;
    wait_for_workspaces(&client, 2).await;

    let params = json!({ "requestId": id });
    client.send(&json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params })).await;

    wait_for_workspaces(&client, 1).await;
    assert_eq!(client.lab.audit().last().unwrap()["outcome"], "cancelled");
}

#[tokio::test]
async fn consoles_and_files_are_resources() {
    let mut client = Client::new().await;
    let id = client.create("w").await;
    client.guest(&id).write_file("/etc/my file", "text");

    let listed = client.request("resources/list", &json!({})).await;
    let templates = client.request("resources/templates/list", &json!({})).await;
    let console = listed["result"]["resources"][0]["uri"].clone();
    let read = client.request("resources/read", &json!({ "uri": console })).await;
    let file = json!({ "uri": "agentiso://workspace/w/files/etc/my%20file" });
    let file = client.request("resources/read", &file).await;

    assert_eq!(console, format!("agentiso://workspace/{id}/console"));
    assert_eq!(templates["result"]["resourceTemplates"].as_array().unwrap().len(), 2);
    assert!(read["result"]["contents"][0]["text"].is_string(), "{read}");
    assert_eq!(file["result"]["contents"][0]["text"], "text");
    for uri in [
        "agentiso://workspace/w",
        "agentiso://workspace/w/disk",
        "agentiso://workspace/none/console",
        "agentiso://workspace/w/files/none",
        "agentiso://workspace/w/files/%zz",
        "file:///etc/passwd",
    ] {
        let answer = client.request("resources/read", &json!({ "uri": uri })).await;
        assert!(answer["error"]["code"].is_i64(), "{uri}: {answer}");
    }
}

#[tokio::test]
async fn prompts_are_listed_and_filled_in() {
    let mut client = Client::new().await;

    let listed = client.request("prompts/list", &json!({})).await;
    let call = json!({ "name": "safe-change", "arguments": { "workspace": "w", "change": "upgrade it" } });
    let prompt = client.request("prompts/get", &call).await;
    let wrong = client.request("prompts/get", &json!({ "name": "safe-change", "arguments": {} })).await;

    assert_eq!(listed["result"]["prompts"].as_array().unwrap().len(), 2);
    let text = prompt["result"]["messages"][0]["content"]["text"].as_str().unwrap();
    assert!(text.contains("upgrade it") && text.contains("workspace w"), "{text}");
    assert_eq!(wrong["error"]["code"], -32602);
}

#[tokio::test]
async fn paths_of_the_host_are_in_no_error() {
    let mut client = Client::new().await;
    client.lab.fakes.faults().arm("storage.create_disk", 1, agentiso_core::testkit::Fault::Fail);
    let state = client.lab.folder.path().to_str().unwrap().to_owned();

    let (is_error, answer) = client.call("workspace_create", json!({})).await;

    assert!(is_error && answer["code"] == "internal_error", "{answer}");
    assert!(!answer.to_string().contains(&state), "{answer}");
}

#[tokio::test]
async fn client_that_says_nothing_and_leaves_has_done_nothing_wrong() {
    let lab = Lab::new().await;
    let mut client = Client::connected(&lab, "test");

    client.input.shutdown().await.unwrap();

    timeout(SOON, &mut client.server).await.unwrap().unwrap().unwrap();
}
