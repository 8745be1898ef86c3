//! workspace_fork, workspace_tree, workspace_diff, workspace_promote.

use serde_json::{Value, json};

use crate::client::{Client, keys};

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn running_workspace_is_forked_with_its_memory() {
    let mut client = Client::new().await;
    let id = client.create("base").await;
    client.guest(&id).write_file("/unsynced", "text");

    let report = client.ok("workspace_fork", json!({ "workspace_id": "base", "count": 2 })).await;

    assert_eq!((&report["success_count"], &report["failure_count"]), (&json!(2), &json!(0)));
    assert_eq!(names(&report["workers"]), ["worker-1", "worker-2"]);
    assert_eq!(keys(&report["workers"][0]), ["name", "state", "workspace_id"]);
    assert_eq!(report["workers"][0]["state"], "running");
    assert_eq!((&report["forked_from"]["workspace_id"], &report["failures"]), (&json!(id), &json!([])));
    let worker = report["workers"][1]["workspace_id"].as_str().unwrap();
    assert_eq!(client.guest(worker).file("/unsynced").unwrap().content, b"text");

    let one = json!({ "workspace_id": "base", "new_name": "single" });
    assert_eq!(names(&client.ok("workspace_fork", one).await["workers"]), ["single"]);
    let more = json!({ "workspace_id": "base", "name_prefix": "p" });
    assert_eq!(names(&client.ok("workspace_fork", more).await["workers"]), ["p-1"]);
    let next = json!({ "workspace_id": "base" });
    assert_eq!(names(&client.ok("workspace_fork", next).await["workers"]), ["worker-3"]);
}

#[tokio::test]
async fn forks_that_cannot_be_are_refused_before_anything_is_made() {
    let mut client = Client::new().await;
    client.create("base").await;
    for (arguments, code) in [
        (json!({ "count": 0 }), "invalid_params"),
        (json!({ "count": 21 }), "invalid_params"),
        (json!({ "count": 2, "new_name": "x" }), "invalid_params"),
        (json!({ "new_name": "a b" }), "invalid_params"),
        (json!({ "name_prefix": "" }), "invalid_params"),
        (json!({ "snapshot_name": "none" }), "invalid_request"),
        (json!({ "new_name": "base" }), "invalid_request"),
        // The session may have ten.
        (json!({ "count": 10 }), "invalid_request"),
    ] {
        let mut arguments = arguments;
        arguments["workspace_id"] = "base".into();
        client.fails("workspace_fork", arguments, code).await;
    }
    let listed = client.ok("workspace_list", json!({})).await;
    assert_eq!(names(&listed["workspaces"]), ["base"]);
}

#[tokio::test]
async fn tree_shows_forks_below_their_parents() {
    let mut client = Client::new().await;
    client.create("base").await;
    client.ok("workspace_fork", json!({ "workspace_id": "base", "new_name": "fork" })).await;
    client.ok("workspace_fork", json!({ "workspace_id": "fork", "new_name": "leaf" })).await;
    client.create("other").await;

    let all = client.ok("workspace_tree", json!({})).await;
    let below = client.ok("workspace_tree", json!({ "workspace_id": "fork" })).await;

    assert_eq!(names(&all["trees"]), ["base", "other"]);
    assert_eq!(names(&all["trees"][0]["forks"][0]["forks"]), ["leaf"]);
    assert_eq!(names(&below["trees"]), ["fork"]);
    client.fails("workspace_tree", json!({ "workspace_id": "none" }), "invalid_request").await;
}

#[tokio::test]
async fn diff_tells_what_a_fork_changed() {
    let mut client = Client::new().await;
    let id = client.create("base").await;
    client.guest(&id).write_file("/work/a", "old");
    client.guest(&id).write_file("/work/b", "gone");
    let fork = client.ok("workspace_fork", json!({ "workspace_id": "base", "new_name": "fork" })).await;
    let guest = client.guest(fork["workers"][0]["workspace_id"].as_str().unwrap());
    guest.write_file("/work/a", "newer");
    guest.remove_file("/work/b");
    guest.write_file("/work/c", "new");

    let diff = client.ok("workspace_diff", json!({ "a": "base", "b": "fork", "path": "/work" })).await;
    let cut = client
        .ok("workspace_diff", json!({ "a": "base", "b": "fork", "path": "/work", "max_differences": 1 }))
        .await;

    let changes: Vec<(&str, &str)> = diff["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["change"].as_str().unwrap(), entry["path"].as_str().unwrap()))
        .collect();
    assert_eq!(changes, [("modified", "/work/a"), ("deleted", "/work/b"), ("added", "/work/c")]);
    assert_eq!((&diff["a"], &diff["added"], &diff["truncated"]), (&json!("base"), &json!(1), &json!(false)));
    assert_eq!((cut["differences"].as_array().unwrap().len(), &cut["truncated"]), (1, &json!(true)));
    assert_eq!((&cut["added"], &cut["modified"], &cut["deleted"]), (&json!(1), &json!(1), &json!(1)));
}

#[tokio::test]
async fn wrong_comparisons_are_refused() {
    let mut client = Client::new().await;
    client.create("base").await;
    for (arguments, code) in [
        (json!({ "a": "base", "b": "none" }), "invalid_request"),
        (json!({ "a": "base", "b": "base@a b" }), "invalid_params"),
        (json!({ "a": "base", "b": "base@none" }), "invalid_request"),
        (json!({ "a": "base", "b": "base", "path": "rel" }), "invalid_params"),
        (json!({ "a": "base" }), "invalid_params"),
        (json!({ "a": "base", "b": "base", "max_differences": 20_001 }), "invalid_params"),
    ] {
        client.fails("workspace_diff", arguments, code).await;
    }
}

#[tokio::test]
async fn promoted_fork_has_the_name() {
    let mut client = Client::new().await;
    client.create("base").await;
    client.ok("workspace_fork", json!({ "workspace_id": "base", "count": 2 })).await;

    let report = client.ok("workspace_promote", json!({ "workspace_id": "worker-2" })).await;

    assert_eq!((&report["promoted"]["name"], &report["old_name"]), (&json!("base"), &json!("worker-2")));
    assert_eq!(
        (&report["parent"]["name"], &report["parent"]["state"]),
        (&json!("base-old"), &json!("stopped"))
    );
    client.fails("workspace_promote", json!({ "workspace_id": "base-old" }), "invalid_params").await;
    client.fails("workspace_promote", json!({ "workspace_id": "worker-2" }), "invalid_request").await;

    let last = json!({ "workspace_id": "worker-1", "drop_others": true });
    let report = client.ok("workspace_promote", last).await;
    assert_eq!((&report["promoted"]["name"], &report["parent"]), (&json!("base-old"), &Value::Null));
}
