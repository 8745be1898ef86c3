//! Layer files as QEMU's tools and the file system see them.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use super::fixture::{QemuFixture, node, read_marker, write_marker};
use crate::{
    storage::{DiskChain, DiskOrigin, Outcome, PendingSnapshot, Storage},
    types::{BaseId, DiskId, SnapshotId},
};

const MIB: u64 = 1 << 20;

/// What `qemu-img` says of a layer, as JSON.
fn qemu_img(command: &str, path: &Path) -> serde_json::Value {
    let output = Command::new("qemu-img").args([command, "--output=json"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A storage with one disk of that size; `None`, with a message, where QEMU's tools are missing.
async fn with_disk(bytes: u64) -> Option<(QemuFixture, DiskId)> {
    let fixture = match QemuFixture::new() {
        Ok(fixture) => fixture,
        Err(reason) => {
            println!("skipped: {reason}");
            return None;
        }
    };
    let storage = fixture.storage().await;
    let (base, disk) = (BaseId::random(), DiskId::random());
    storage.begin_base(base, MIB).await.unwrap();
    storage.seal_base(base).await.unwrap();
    storage.create_disk(disk, DiskOrigin::Base(base), bytes).await.unwrap();
    Some((fixture, disk))
}

#[tokio::test]
async fn empty_layer_is_a_sound_image_of_its_size() {
    for bytes in [MIB, 10 << 30, 100 << 30, (1 << 40) + 512] {
        let Some((fixture, disk)) = with_disk(bytes).await else { return };
        let chain = fixture.storage().await.open_disk(disk).await.unwrap();
        let path = chain.layers[0].path.clone();

        let (info, check) = (qemu_img("info", &path), qemu_img("check", &path));

        assert_eq!(info["virtual-size"], bytes);
        assert_eq!(info["cluster-size"], 128 * 1024);
        assert_eq!(info["format-specific"]["data"]["extended-l2"], true);
        assert_eq!(info.get("backing-filename"), None);
        assert_eq!(check["check-errors"], 0);
        assert_eq!(check.get("leaks"), None);
        assert_eq!(check.get("corruptions"), None);
        assert!(info["actual-size"].as_u64().unwrap() <= 64 * 1024, "{info}");
    }
}

#[tokio::test]
async fn written_layer_is_still_sound() {
    let Some((fixture, disk)) = with_disk(10 << 30).await else { return };
    let chain = fixture.storage().await.open_disk(disk).await.unwrap();

    write_marker(&chain, 3);

    let check = qemu_img("check", &chain.layers[0].path);
    assert_eq!(read_marker(&chain), 3);
    assert_eq!(check["allocated-clusters"], 1);
    assert_eq!(check.get("leaks"), None);
}

#[tokio::test]
async fn frozen_layer_is_read_only_and_the_rest_private() {
    let Some((fixture, disk)) = with_disk(MIB).await else { return };
    let storage = fixture.storage().await;
    let snapshot = SnapshotId::random();

    let PendingSnapshot::Pivot { to } = storage.begin_snapshot(disk, snapshot).await.unwrap() else {
        panic!("qcow2 pivots")
    };
    let before = storage.open_disk(disk).await.unwrap();
    assert_eq!(mode(&before.layers[0].path), 0o600);
    storage.finish_snapshot(disk, snapshot, Outcome::Commit).await.unwrap();

    let chain = storage.open_disk(disk).await.unwrap();
    assert_eq!(chain.layers[0], to);
    let modes: Vec<u32> = chain.layers.iter().map(|layer| mode(&layer.path)).collect();
    assert_eq!(modes, [0o600, 0o400, 0o400]);
    for part in ["bases", "layers", "disks"] {
        assert_eq!(mode(&fixture.path().join(part)) & 0o077, 0, "{part}");
    }
}

#[tokio::test]
async fn destroyed_disks_leave_no_file() {
    let Some((fixture, disk)) = with_disk(MIB).await else { return };
    let storage = fixture.storage().await;
    let (snapshot, fork) = (SnapshotId::random(), DiskId::random());
    storage.begin_snapshot(disk, snapshot).await.unwrap();
    storage.finish_snapshot(disk, snapshot, Outcome::Commit).await.unwrap();
    storage.create_disk(fork, DiskOrigin::Snapshot { disk, snapshot }, MIB).await.unwrap();
    assert_eq!(fixture.files_in("layers").len(), 3);

    storage.destroy_disk(disk).await.unwrap();
    assert_eq!(fixture.files_in("layers").len(), 2, "the frozen layer and the fork's");
    storage.destroy_disk(fork).await.unwrap();

    assert_eq!(fixture.files_in("layers"), [""; 0]);
    assert_eq!(fixture.files_in("disks"), [""; 0]);
    let base = storage.inventory().await.unwrap().bases[0];
    storage.delete_base(base).await.unwrap();
    assert_eq!(fixture.files_in("bases"), [""; 0]);
}

#[tokio::test]
async fn many_forks_at_once_all_succeed_while_others_are_destroyed() {
    let Some((fixture, disk)) = with_disk(MIB).await else { return };
    let storage = fixture.storage().await;
    let snapshot = SnapshotId::random();
    storage.begin_snapshot(disk, snapshot).await.unwrap();
    storage.finish_snapshot(disk, snapshot, Outcome::Commit).await.unwrap();
    let origin = DiskOrigin::Snapshot { disk, snapshot };

    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40 {
        let storage = fixture.storage().await;
        tasks.spawn(async move {
            let fork = DiskId::random();
            storage.create_disk(fork, origin, MIB).await.unwrap();
            storage.open_disk(fork).await.unwrap();
            if number % 2 == 0 {
                storage.destroy_disk(fork).await.unwrap();
            } else {
                storage.inventory().await.unwrap();
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }

    let inventory = storage.inventory().await.unwrap();
    assert_eq!(inventory.disks.len(), 21);
    for disk in inventory.disks {
        storage.open_disk(disk).await.unwrap();
    }
    assert_eq!(fixture.files_in("layers").len(), 22);
}

#[tokio::test]
async fn running_user_moves_to_the_new_layer() {
    let Some((fixture, disk)) = with_disk(10 << 30).await else { return };
    let storage = fixture.storage().await;
    let snapshot = SnapshotId::random();
    let chain = storage.open_disk(disk).await.unwrap();
    let PendingSnapshot::Pivot { to } = storage.begin_snapshot(disk, snapshot).await.unwrap() else {
        panic!("qcow2 pivots")
    };
    let mut present = node(&chain);
    present["node-name"] = "present".into();
    let mut new = node(&DiskChain { layers: vec![to] });
    new["node-name"] = "new".into();
    let commands = [
        serde_json::json!({ "execute": "qmp_capabilities" }),
        serde_json::json!({ "execute": "blockdev-add", "arguments": present }),
        serde_json::json!({ "execute": "blockdev-add", "arguments": new }),
        serde_json::json!({ "execute": "blockdev-snapshot", "arguments": { "node": "present", "overlay": "new" } }),
        serde_json::json!({ "execute": "query-named-block-nodes", "arguments": { "flat": true } }),
        serde_json::json!({ "execute": "quit" }),
    ];

    let mut daemon = Command::new("qemu-storage-daemon")
        .args(["--chardev", "stdio,id=qmp", "--monitor", "qmp"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: String = commands.iter().map(|command| format!("{command}\n")).collect();
    daemon.stdin.as_mut().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = daemon.wait_with_output().unwrap();
    storage.finish_snapshot(disk, snapshot, Outcome::Commit).await.unwrap();

    let text = String::from_utf8(output.stdout).unwrap();
    let replies: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(replies.iter().all(|reply| reply.get("error").is_none()), "{text}");
    let nodes = replies.iter().find_map(|reply| reply["return"].as_array()).unwrap();
    let is_read_only =
        |name: &str| nodes.iter().find(|node| node["node-name"] == name).unwrap()["ro"].clone();
    assert_eq!((is_read_only("new"), is_read_only("present")), (false.into(), true.into()));
    write_marker(&storage.open_disk(disk).await.unwrap(), 9);
    assert_eq!(read_marker(&storage.open_disk(disk).await.unwrap()), 9);
}
