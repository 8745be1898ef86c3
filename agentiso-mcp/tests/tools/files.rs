//! file_read, file_write, file_edit, file_list, file_transfer.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::client::Client;

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn file_is_written_read_edited_and_listed() {
    let mut client = Client::new().await;
    let id = client.create("w").await;

    let write =
        json!({ "workspace_id": "w", "path": "/a/b/file.txt", "content": "one two two", "mode": "0o755" });
    assert_eq!(client.ok("file_write", write).await, json!({ "path": "/a/b/file.txt", "bytes_written": 11 }));
    assert_eq!(client.guest(&id).file("/a/b/file.txt").unwrap().mode, 0o755);
    let edit = json!({
        "workspace_id": "w", "path": "/a/b/file.txt", "old_string": "two", "new_string": "2",
    });
    client.ok("file_edit", edit).await;
    let read = client.ok("file_read", json!({ "workspace_id": "w", "path": "/a/b/file.txt" })).await;
    assert_eq!(
        read,
        json!({ "path": "/a/b/file.txt", "content": "one 2 two", "offset": 0, "bytes": 9, "next_offset": null })
    );
    let listed = client.ok("file_list", json!({ "workspace_id": "w", "path": "/a/b" })).await;
    assert_eq!(
        listed,
        json!({
            "path": "/a/b", "total": 1, "truncated": false,
            "entries": [{ "name": "file.txt", "kind": "file", "size": 9, "permissions": "0755", "modified": 0 }],
        })
    );
}

#[tokio::test]
async fn parts_are_read_without_cutting_characters() {
    let mut client = Client::new().await;
    let id = client.create("w").await;
    client.guest(&id).write_file("/f", "aä€b");
    let mut whole = String::new();
    let mut offset = json!(0);
    while !offset.is_null() {
        let part = json!({ "workspace_id": "w", "path": "/f", "offset": offset, "limit": 2 });
        let part = client.ok("file_read", part).await;
        whole.push_str(part["content"].as_str().unwrap());
        offset = part["next_offset"].clone();
    }
    assert_eq!(whole, "aä€b");
    // Inside of a character: from the next one on.
    let part = client.ok("file_read", json!({ "workspace_id": "w", "path": "/f", "offset": 2 })).await;
    assert_eq!((&part["content"], &part["offset"]), (&json!("€b"), &json!(3)));
    let past = client.ok("file_read", json!({ "workspace_id": "w", "path": "/f", "offset": 99 })).await;
    assert_eq!((&past["content"], &past["next_offset"]), (&json!(""), &Value::Null));
}

#[tokio::test]
async fn what_is_no_text_is_refused_with_the_way_out() {
    let mut client = Client::new().await;
    let id = client.create("w").await;
    for bytes in [&b"a\0b"[..], b"\xff\xfe", b"text \xe2\x82"] {
        client.guest(&id).write_file("/f", bytes);
        let (is_error, answer) = client.call("file_read", json!({ "workspace_id": "w", "path": "/f" })).await;
        assert!(is_error && answer["next_step"].as_str().unwrap().contains("file_transfer"), "{answer}");
    }
}

#[tokio::test]
async fn eight_mebibytes_are_written_and_one_byte_more_names_file_transfer() {
    let mut client = Client::new().await;
    let id = client.create("w").await;
    let content = "x".repeat(8 * MIB);

    let write = json!({ "workspace_id": "w", "path": "/big", "content": content });
    assert_eq!(client.ok("file_write", write).await["bytes_written"], 8 * MIB);
    let write = json!({ "workspace_id": "w", "path": "/bigger", "content": format!("{content}x") });
    let (is_error, answer) = client.call("file_write", write).await;

    assert!(is_error && answer["code"] == "invalid_params", "{answer}");
    assert!(answer["next_step"].as_str().unwrap().contains("file_transfer"), "{answer}");
    assert_eq!(client.guest(&id).file("/bigger"), None);
    let read = json!({ "workspace_id": "w", "path": "/big", "limit": 8 * MIB });
    assert_eq!(client.ok("file_read", read).await["bytes"], 8 * MIB);
}

#[tokio::test]
async fn wrong_paths_modes_and_texts_are_refused() {
    let mut client = Client::new().await;
    let id = client.create("w").await;
    client.guest(&id).write_file("/f", "text");
    for (tool, arguments, code) in [
        ("file_read", json!({ "path": "f" }), "invalid_params"),
        ("file_read", json!({ "path": "/f", "limit": 0 }), "invalid_params"),
        ("file_read", json!({ "path": "/f", "limit": 8 * MIB + 1 }), "invalid_params"),
        ("file_read", json!({ "path": "/f", "offset": -1 }), "invalid_params"),
        ("file_read", json!({ "path": "/none" }), "invalid_request"),
        ("file_write", json!({ "path": "f", "content": "" }), "invalid_params"),
        ("file_write", json!({ "path": "/f", "content": "", "mode": "rwx" }), "invalid_params"),
        ("file_write", json!({ "path": "/f", "content": "", "mode": 644 }), "invalid_params"),
        ("file_write", json!({ "path": "/f", "content": "", "mode": "10000" }), "invalid_params"),
        ("file_edit", json!({ "path": "/f", "old_string": "", "new_string": "x" }), "invalid_params"),
        ("file_edit", json!({ "path": "/f", "old_string": "none", "new_string": "x" }), "invalid_request"),
        ("file_list", json!({ "path": "/none" }), "invalid_request"),
        ("file_list", json!({ "path": "rel" }), "invalid_params"),
    ] {
        let mut arguments = arguments;
        arguments["workspace_id"] = "w".into();
        client.fails(tool, arguments, code).await;
    }
    assert_eq!(client.guest(&id).file("/f").unwrap().content, b"text");
}

#[tokio::test]
async fn any_bytes_are_transferred_both_ways() {
    let mut client = Client::new().await;
    let id = client.create("w").await;
    let bytes: Vec<u8> = (0..=250_u8).cycle().take(3 * MIB).collect();
    std::fs::write(client.lab.transfer("up"), &bytes).unwrap();

    let up = json!({ "workspace_id": "w", "direction": "upload", "host_path": "up", "guest_path": "/x/up" });
    assert_eq!(client.ok("file_transfer", up).await["bytes"], 3 * MIB);
    assert_eq!(client.guest(&id).file("/x/up").unwrap().content, bytes);
    let down =
        json!({ "workspace_id": "w", "direction": "download", "host_path": "down", "guest_path": "/x/up" });
    assert_eq!(client.ok("file_transfer", down).await["bytes"], 3 * MIB);
    assert_eq!(std::fs::read(client.lab.transfer("down")).unwrap(), bytes);
}

#[tokio::test]
async fn transfers_stay_in_their_folder_and_failed_ones_leave_nothing() {
    let mut client = Client::new().await;
    let id = client.create("w").await;
    client.guest(&id).write_file("/f", "text");
    symlink("/etc/passwd", client.lab.transfer("link")).unwrap();
    let outside = client.lab.folder.path().join("outside");
    for (direction, host, guest, code) in [
        ("upload", "link", "/x", "invalid_params"),
        ("upload", "../state/agentiso.db", "/x", "invalid_params"),
        ("upload", "/etc/passwd", "/x", "invalid_params"),
        ("upload", "none", "/x", "invalid_request"),
        ("upload", ".", "/x", "invalid_params"),
        ("download", "../outside", "/f", "invalid_params"),
        ("download", "a", "f", "invalid_params"),
        ("download", "a", "/none", "invalid_request"),
        ("download", "no/folder", "/f", "invalid_request"),
        ("sideways", "a", "/f", "invalid_params"),
    ] {
        let call =
            json!({ "workspace_id": "w", "direction": direction, "host_path": host, "guest_path": guest });
        let message = client.fails("file_transfer", call, code).await;
        assert!(!message.contains("root:"), "{message}");
    }
    assert!(!outside.exists());
    assert_eq!(std::fs::read_dir(client.lab.transfer("")).unwrap().count(), 1);
    assert_eq!(client.guest(&id).file("/x"), None);
}
