//! Several sessions on one server, and the account that is kept of them.

use serde_json::json;

use crate::client::{Client, Lab, keys};

#[tokio::test]
async fn sessions_do_not_see_each_other() {
    let lab = Lab::new().await;
    let mut one = Client::open(&lab, "one").await;
    let mut two = Client::open(&lab, "two").await;
    let id = one.create("secret").await;

    assert_eq!(two.ok("workspace_list", json!({})).await, json!({ "workspaces": [] }));
    for given in [id.as_str(), "secret", &id[..8]] {
        for (tool, arguments) in [
            ("workspace_info", json!({})),
            ("workspace_destroy", json!({})),
            ("workspace_stop", json!({})),
            ("workspace_fork", json!({})),
            ("workspace_promote", json!({})),
            ("workspace_tree", json!({})),
            ("workspace_logs", json!({})),
            ("workspace_adopt", json!({})),
            ("exec", json!({ "command": "true" })),
            ("file_read", json!({ "path": "/etc/passwd" })),
            ("snapshot", json!({ "action": "list" })),
            ("port_forward", json!({ "action": "add", "guest_port": 80 })),
            ("network_policy", json!({ "allow_internet": true })),
            ("set_env", json!({ "vars": {} })),
            ("git_status", json!({})),
        ] {
            let mut arguments = arguments;
            arguments["workspace_id"] = given.into();
            let message = two.fails(tool, arguments, "invalid_request").await;
            assert!(message.contains(&format!("there is no workspace {given}")), "{tool}: {message}");
        }
        let diff = json!({ "a": given, "b": given });
        two.fails("workspace_diff", diff, "invalid_request").await;
    }
    let uri = format!("agentiso://workspace/{id}/console");
    let read = two.request("resources/read", &json!({ "uri": uri })).await;
    assert!(read["error"]["message"].as_str().unwrap().contains("there is no workspace"), "{read}");
    let parallel = json!({ "workspace_ids": ["secret"], "commands": "true" });
    assert_eq!(two.ok("exec_parallel", parallel).await["summary"]["failed"], 1);
    assert_eq!(one.ok("workspace_list", json!({})).await["workspaces"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn same_name_is_the_same_session() {
    let lab = Lab::new().await;
    let mut first = Client::open(&lab, "one").await;
    let id = first.create("mine").await;
    drop(first);
    let mut again = Client::open(&lab, "one").await;

    let listed = again.ok("workspace_list", json!({})).await;

    assert_eq!(
        (&listed["workspaces"][0]["workspace_id"], &listed["workspaces"][0]["owned"]),
        (&json!(id), &json!(true))
    );
}

#[tokio::test]
async fn orphans_are_seen_and_adopted() {
    let lab = Lab::new().await;
    let mut client = Client::open(&lab, "one").await;
    let spec = agentiso_core::WorkspaceSpec::new("debian").name("shared").unwrap();
    lab.host.create(spec).await.unwrap();
    assert_eq!(client.ok("workspace_list", json!({})).await, json!({ "workspaces": [] }));
    lab.host.share("shared").await.unwrap();

    let listed = client.ok("workspace_list", json!({})).await;
    assert_eq!(listed["workspaces"][0]["owned"], false);
    let (_, refused) = client.call("exec", json!({ "workspace_id": "shared", "command": "true" })).await;
    assert!(refused["next_step"].as_str().unwrap().contains("workspace_adopt"), "{refused}");
    client.fails("workspace_adopt", json!({ "force": true }), "invalid_params").await;
    let adopted = client.ok("workspace_adopt", json!({})).await;
    assert_eq!((&adopted["adopted"][0]["name"], &adopted["failures"]), (&json!("shared"), &json!([])));
    assert_eq!(keys(&adopted["adopted"][0]), ["name", "state", "workspace_id"]);
    client.ok("exec", json!({ "workspace_id": "shared", "command": "true" })).await;
    // Its own already.
    client.ok("workspace_adopt", json!({ "workspace_id": "shared" })).await;
}

#[tokio::test]
async fn quota_is_told_with_its_numbers() {
    let mut client = Client::new().await;
    for number in 0..10 {
        client.create(&format!("w{number}")).await;
    }
    let message = client.fails("workspace_create", json!({}), "invalid_request").await;
    assert!(message.contains("10 workspaces"), "{message}");
}

#[tokio::test]
async fn every_call_is_in_the_audit_log_without_its_parameters() {
    let mut client = Client::new().await;
    let id = client.create("w").await;
    client.ok("exec", json!({ "workspace_id": "w", "command": "echo s3cret" })).await;
    client
        .fails(
            "exec",
            json!({ "workspace_id": "w", "command": "echo s3cret", "timeout_secs": 0 }),
            "invalid_params",
        )
        .await;
    client.fails("exec", json!({ "workspace_id": "none", "command": "s3cret" }), "invalid_request").await;

    let audit = client.lab.audit();

    let lines: Vec<_> = audit
        .iter()
        .map(|line| {
            (line["tool"].as_str().unwrap(), line["outcome"].as_str().unwrap(), line["workspaces"].clone())
        })
        .collect();
    assert_eq!(
        lines,
        [
            ("workspace_create", "ok", json!([id])),
            ("exec", "ok", json!([id])),
            ("exec", "invalid_params", json!([])),
            ("exec", "invalid_request", json!([])),
        ]
    );
    for line in &audit {
        assert_eq!(keys(line), ["duration_ms", "outcome", "session", "time_ms", "tool", "workspaces"]);
        assert_eq!(line["session"], "test");
        assert!(!line.to_string().contains("s3cret"), "{line}");
    }
}
