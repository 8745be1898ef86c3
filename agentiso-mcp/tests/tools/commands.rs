//! exec_background, set_env, exec_parallel.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::client::Client;

#[tokio::test]
async fn background_job_is_started_polled_and_killed() {
    let mut client = Client::new().await;
    client.create("w").await;

    let start = json!({ "workspace_id": "w", "action": "start", "command": "echo early; sleep 1000" });
    let started = client.ok("exec_background", start).await;
    let poll = json!({ "workspace_id": "w", "action": "poll", "job_id": started["job_id"] });
    let running = loop {
        let polled = client.ok("exec_background", poll.clone()).await;
        if polled["stdout"] == "early\n" {
            break polled;
        }
        sleep(Duration::from_millis(5)).await;
    };
    assert_eq!((&running["running"], &running["exit_code"]), (&json!(true), &Value::Null));

    let kill = json!({ "workspace_id": "w", "action": "kill", "job_id": started["job_id"] });
    assert_eq!(client.ok("exec_background", kill).await["signal"], 9);
    let ended = loop {
        let polled = client.ok("exec_background", poll.clone()).await;
        if polled["running"] == false {
            break polled;
        }
        sleep(Duration::from_millis(5)).await;
    };
    assert_eq!((&ended["exit_code"], &ended["signal"]), (&json!(137), &json!(9)));
}

#[tokio::test]
async fn background_actions_take_their_own_parameters_only() {
    let mut client = Client::new().await;
    client.create("w").await;
    for (arguments, expected) in [
        (json!({ "action": "start" }), "command"),
        (json!({ "action": "start", "command": "true", "job_id": 1 }), "job_id"),
        (json!({ "action": "start", "command": "" }), "empty"),
        (json!({ "action": "start", "command": "true", "workdir": "here" }), "absolute"),
        (json!({ "action": "poll" }), "job_id"),
        (json!({ "action": "poll", "job_id": 1, "signal": 9 }), "signal"),
        (json!({ "action": "kill", "job_id": 1, "command": "true" }), "command"),
        (json!({ "action": "kill", "job_id": 1, "signal": 0 }), "1 to 64"),
        (json!({ "action": "kill", "job_id": 1, "signal": 65 }), "1 to 64"),
        (json!({ "action": "wait", "job_id": 1 }), "wait"),
        (json!({ "job_id": 1 }), "action"),
    ] {
        let mut arguments = arguments;
        arguments["workspace_id"] = "w".into();
        let message = client.fails("exec_background", arguments.clone(), "invalid_params").await;
        assert!(message.contains(expected), "{arguments}: {message}");
    }
    let missing = json!({ "workspace_id": "w", "action": "poll", "job_id": 77 });
    client.fails("exec_background", missing, "invalid_request").await;
}

#[tokio::test]
async fn environment_that_was_set_reaches_later_commands() {
    let mut client = Client::new().await;
    let id = client.create("w").await;

    let set = json!({ "workspace_id": "w", "vars": { "TOKEN": "s3cret", "OTHER": "" } });
    let answer = client.ok("set_env", set).await;

    assert_eq!(answer, json!({ "workspace_id": id, "set": ["OTHER", "TOKEN"] }));
    let output = client.ok("exec", json!({ "workspace_id": "w", "command": "env" })).await;
    assert!(output["stdout"].as_str().unwrap().contains("TOKEN=s3cret\n"), "{output}");
    let info = client.ok("workspace_info", json!({ "workspace_id": "w" })).await;
    assert!(!info.to_string().contains("s3cret"), "{info}");
    let bad = json!({ "workspace_id": "w", "vars": { "A=B": "x" } });
    client.fails("set_env", bad, "invalid_params").await;
    let wrong = json!({ "workspace_id": "w", "vars": { "A": 1 } });
    client.fails("set_env", wrong, "invalid_params").await;
}

#[tokio::test]
async fn one_command_runs_in_each_workspace_and_failures_stand_for_themselves() {
    let mut client = Client::new().await;
    let a = client.create("a").await;
    let b = client.create("b").await;

    let both = json!({ "workspace_ids": ["a", "b", "none"], "commands": "hostname" });
    let answer = client.ok("exec_parallel", both).await;

    assert_eq!(answer["results"][0]["workspace_id"], a);
    assert_eq!(
        (&answer["results"][0]["stdout"], &answer["results"][1]["stdout"]),
        (&json!("a\n"), &json!("b\n"))
    );
    assert_eq!(answer["results"][1]["workspace_id"], b);
    assert_eq!(answer["results"][2]["error"]["code"], "invalid_request");
    let summary = &answer["summary"];
    assert_eq!(
        (&summary["total"], &summary["succeeded"], &summary["failed"], &summary["timed_out"]),
        (&json!(3), &json!(2), &json!(1), &json!(0))
    );
    assert!(summary["elapsed_ms"].is_u64(), "{summary}");

    let each = json!({ "workspace_ids": ["a", "b"], "commands": ["exit 3", "sleep 100"], "timeout_secs": 1 });
    let answer = client.ok("exec_parallel", each).await;
    assert_eq!(
        (&answer["results"][0]["exit_code"], &answer["results"][1]["timed_out"]),
        (&json!(3), &json!(true))
    );
    assert_eq!((&answer["summary"]["failed"], &answer["summary"]["timed_out"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn parallel_commands_are_counted_before_anything_runs() {
    let mut client = Client::new().await;
    let id = client.create("a").await;
    let twenty_one = vec!["a"; 21];
    for (arguments, expected) in [
        (json!({ "workspace_ids": [], "commands": "true" }), "1 to 20"),
        (json!({ "workspace_ids": twenty_one, "commands": "true" }), "1 to 20"),
        (json!({ "workspace_ids": ["a"], "commands": ["true", "true"] }), "2 commands"),
        (json!({ "workspace_ids": ["a", "a"], "commands": ["echo > /ran", ""] }), "empty"),
        (json!({ "workspace_ids": ["a"], "commands": 7 }), "commands"),
        (json!({ "workspace_ids": ["a"], "commands": "true", "timeout_secs": 0 }), "1 to 86400"),
    ] {
        let message = client.fails("exec_parallel", arguments.clone(), "invalid_params").await;
        assert!(message.contains(expected) || expected == "commands", "{arguments}: {message}");
    }
    assert_eq!(client.guest(&id).file("/ran"), None);
}
