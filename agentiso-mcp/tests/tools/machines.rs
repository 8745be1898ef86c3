//! Start, stop, info, snapshots, network, logs.

use serde_json::{Value, json};

use crate::client::{Client, keys};

#[tokio::test]
async fn workspace_is_stopped_and_started() {
    let mut client = Client::new().await;
    let id = client.create("w").await;

    let stopped = client.ok("workspace_stop", json!({ "workspace_id": "w" })).await;
    assert_eq!(stopped, json!({ "workspace_id": id, "name": "w", "state": "stopped" }));
    let refused = client.call("exec", json!({ "workspace_id": "w", "command": "true" })).await.1;
    assert!(refused["next_step"].as_str().unwrap().contains("workspace_start"), "{refused}");
    let started = client.ok("workspace_start", json!({ "workspace_id": "w" })).await;
    assert_eq!(started["state"], "running");
    client.fails("workspace_start", json!({ "workspace_id": "none" }), "invalid_request").await;
    client.fails("workspace_stop", json!({ "workspace_id": 7 }), "invalid_params").await;
}

#[tokio::test]
async fn info_tells_everything_of_the_contract() {
    let mut client = Client::new().await;
    client.create("w").await;
    client.ok("snapshot", json!({ "workspace_id": "w", "action": "create", "name": "s" })).await;

    let info = client.ok("workspace_info", json!({ "workspace_id": "w" })).await;

    for key in [
        "workspace_id",
        "name",
        "state",
        "pid",
        "snapshots",
        "network",
        "port_forwards",
        "disk_used_bytes",
        "forked_from",
        "isolation",
        "owned",
        "resources",
    ] {
        assert!(keys(&info).contains(&key), "{key} is missing: {info}");
    }
    assert_eq!((&info["owned"], &info["snapshots"][0]["name"]), (&json!(true), &json!("s")));
    assert!(info["snapshots"][0]["size_bytes"].is_u64(), "{info}");
    client.fails("workspace_info", json!({ "workspace_id": "none" }), "invalid_request").await;
}

#[tokio::test]
async fn snapshots_are_taken_listed_restored_and_deleted() {
    let mut client = Client::new().await;
    let id = client.create("w").await;
    client.guest(&id).write_file("/f", "before");
    let snapshot = |action: &str, name: &str| json!({ "workspace_id": "w", "action": action, "name": name });

    let taken = client.ok("snapshot", snapshot("create", "one")).await;
    assert_eq!((&taken["name"], &taken["memory"]), (&json!("one"), &json!(true)));
    let disk = json!({ "workspace_id": "w", "action": "create", "name": "two", "include_memory": false });
    assert_eq!(client.ok("snapshot", disk).await["memory"], false);
    client.guest(&id).write_file("/f", "after");
    let listed = client.ok("snapshot", json!({ "workspace_id": "w", "action": "list" })).await;
    let names: Vec<&Value> = listed["snapshots"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["one", "two"]);

    let restored = client.ok("snapshot", snapshot("restore", "one")).await;
    assert_eq!(restored, json!({ "restored": "one", "removed_snapshots": ["two"], "state": "running" }));
    assert_eq!(client.guest(&id).file("/f").unwrap().content, b"before");
    let deleted = client.ok("snapshot", snapshot("delete", "one")).await;
    assert_eq!(deleted["deleted"], "one");
}

#[tokio::test]
async fn wrong_snapshot_calls_are_refused_with_the_next_step() {
    let mut client = Client::new().await;
    client.create("w").await;
    client.ok("snapshot", json!({ "workspace_id": "w", "action": "create", "name": "s" })).await;
    let fork = json!({ "workspace_id": "w", "snapshot_name": "s", "new_name": "fork" });
    client.ok("workspace_fork", fork).await;
    for (arguments, code) in [
        (json!({ "action": "create" }), "invalid_params"),
        (json!({ "action": "create", "name": "a/b" }), "invalid_params"),
        (json!({ "action": "create", "name": "s" }), "invalid_request"),
        (json!({ "action": "restore", "name": "none" }), "invalid_request"),
        (json!({ "action": "restore", "name": "s", "include_memory": true }), "invalid_params"),
        (json!({ "action": "list", "name": "s" }), "invalid_params"),
        (json!({ "action": "delete" }), "invalid_params"),
        (json!({ "action": "undo" }), "invalid_params"),
    ] {
        let mut arguments = arguments;
        arguments["workspace_id"] = "w".into();
        client.fails("snapshot", arguments, code).await;
    }
    let delete = json!({ "workspace_id": "w", "action": "delete", "name": "s" });
    let message = client.fails("snapshot", delete, "invalid_request").await;
    assert!(message.contains("fork"), "{message}");
}

#[tokio::test]
async fn ports_are_forwarded_and_bad_ones_refused() {
    let mut client = Client::new().await;
    client.create("w").await;
    client.lab.fakes.occupy_port(agentiso_core::types::HostPort::new(5555).unwrap());
    let add = |guest: Value, host: Value| json!({ "workspace_id": "w", "action": "add", "guest_port": guest, "host_port": host });

    let picked =
        client.ok("port_forward", json!({ "workspace_id": "w", "action": "add", "guest_port": 80 })).await;
    assert_eq!(keys(&picked), ["guest_port", "host_port"]);
    assert!(picked["host_port"].as_u64().unwrap() >= 1024, "{picked}");
    for (arguments, code, expected) in [
        (add(json!(81), json!(1023)), "invalid_params", "1024"),
        (add(json!(81), json!(70000)), "invalid_params", "65535"),
        (add(json!(0), json!(2000)), "invalid_params", "1 to 65535"),
        (add(json!(81), json!(5555)), "invalid_request", "5555"),
        (add(json!(80), json!(2000)), "invalid_request", "80"),
        (add(json!("81"), json!(2000)), "invalid_params", "string"),
        (json!({ "workspace_id": "w", "action": "remove", "guest_port": 99 }), "invalid_params", "99"),
        (
            json!({ "workspace_id": "w", "action": "remove", "guest_port": 80, "host_port": 1 }),
            "invalid_params",
            "host_port",
        ),
    ] {
        let message = client.fails("port_forward", arguments.clone(), code).await;
        assert!(message.contains(expected), "{arguments}: {message}");
    }
    let remove = json!({ "workspace_id": "w", "action": "remove", "guest_port": 80 });
    assert_eq!(client.ok("port_forward", remove).await, json!({ "guest_port": 80, "removed": true }));
}

#[tokio::test]
async fn policy_is_changed_in_part_and_forwards_stay() {
    let mut client = Client::new().await;
    client.create("w").await;
    client.ok("port_forward", json!({ "workspace_id": "w", "action": "add", "guest_port": 80 })).await;

    let change = json!({ "workspace_id": "w", "allow_internet": true, "allowed_ports": [443] });
    let policy = client.ok("network_policy", change).await;
    assert_eq!(
        policy,
        json!({ "allow_internet": true, "allow_inter_vm": false, "allowed_ports": [443], "groups": [] })
    );
    let off = client.ok("network_policy", json!({ "workspace_id": "w", "allow_internet": false })).await;
    assert_eq!(off["allowed_ports"], json!([443]));
    assert_eq!(client.ok("network_policy", json!({ "workspace_id": "w" })).await, off);
    let info = client.ok("workspace_info", json!({ "workspace_id": "w" })).await;
    assert_eq!(info["port_forwards"][0]["guest_port"], 80);
    let too_many = vec![1; 257];
    for bad in [json!([0]), json!([65536]), json!(["http"]), json!(too_many)] {
        let change = json!({ "workspace_id": "w", "allowed_ports": bad });
        client.fails("network_policy", change, "invalid_params").await;
    }
}

#[tokio::test]
async fn logs_are_read_by_kind_and_lines() {
    let mut client = Client::new().await;
    let id = client.create("w").await;

    let all = client.ok("workspace_logs", json!({ "workspace_id": "w" })).await;
    let one = json!({ "workspace_id": "w", "log_type": "console", "max_lines": 0 });
    let none = client.ok("workspace_logs", one).await;

    assert_eq!(keys(&all), ["console", "stderr", "workspace_id"]);
    assert_eq!(none, json!({ "workspace_id": id, "console": "" }));
    for bad in [json!({ "log_type": "kernel" }), json!({ "max_lines": 100_001 })] {
        let mut bad = bad;
        bad["workspace_id"] = "w".into();
        client.fails("workspace_logs", bad, "invalid_params").await;
    }
}
