//! Manifests that were damaged, and files that should not be there.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::fixture::{files_in, storage_in};
use crate::{
    storage::{DiskOrigin, Outcome, Storage, StorageError, qcow2::Qcow2Storage},
    types::{BaseId, DiskId, SnapshotId},
};

const BYTES: u64 = 1 << 20;

struct Store {
    folder: TempDir,
    storage: Qcow2Storage,
    base: BaseId,
    disk: DiskId,
    snapshot: SnapshotId,
    fork: DiskId,
}

impl Store {
    /// A disk with a snapshot, and a fork of that.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let storage = storage_in(folder.path(), 0).await;
        let (base, disk, snapshot, fork) =
            (BaseId::random(), DiskId::random(), SnapshotId::random(), DiskId::random());
        storage.begin_base(base, BYTES).await.unwrap();
        storage.seal_base(base).await.unwrap();
        storage.create_disk(disk, DiskOrigin::Base(base), BYTES).await.unwrap();
        storage.begin_snapshot(disk, snapshot).await.unwrap();
        storage.finish_snapshot(disk, snapshot, Outcome::Commit).await.unwrap();
        storage.create_disk(fork, DiskOrigin::Snapshot { disk, snapshot }, BYTES).await.unwrap();
        Self { folder, storage, base, disk, snapshot, fork }
    }

    fn manifest(&self, disk: DiskId) -> std::path::PathBuf {
        self.folder.path().join(format!("disks/{disk}.json"))
    }

    fn layers(&self) -> Vec<String> {
        files_in(&self.folder.path().join("layers"))
    }
}

fn is_damaged<T: std::fmt::Debug>(result: Result<T, StorageError>) -> bool {
    matches!(result, Err(StorageError::Damaged { .. }))
}

/// A manifest's file with this object in it.
fn with_checksum(json: &str) -> String {
    use sha2::Digest;
    let sum: String = sha2::Sha256::digest(json).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{json}\n{sum}\n")
}

fn flip_a_digit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(4).position(|window| window == b"\"id\"").unwrap() + 10;
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn any_flipped_bit_is_noticed() {
    let store = Store::new().await;
    let path = store.manifest(store.fork);
    let whole = fs::read(&path).unwrap();

    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(is_damaged(store.storage.open_disk(store.fork).await), "byte {at}");
    }
    for length in [0, 1, 65, 66, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(is_damaged(store.storage.open_disk(store.fork).await), "cut to {length}");
    }
    fs::write(&path, &whole).unwrap();
    store.storage.open_disk(store.fork).await.unwrap();
}

#[tokio::test]
async fn damaged_disk_is_the_only_one_affected() {
    let store = Store::new().await;
    let layers = store.layers();
    flip_a_digit(&store.manifest(store.fork));

    let mut disks = store.storage.inventory().await.unwrap().disks;
    disks.sort();

    let mut expected = vec![store.disk, store.fork];
    expected.sort();
    assert_eq!(disks, expected);
    assert_eq!(store.layers(), layers);
    assert!(is_damaged(store.storage.usage(store.fork).await));
    store.storage.open_disk(store.disk).await.unwrap();
    store.storage.rollback(store.disk, store.snapshot).await.unwrap();
    store.storage.create_disk(DiskId::random(), DiskOrigin::Base(store.base), BYTES).await.unwrap();
}

#[tokio::test]
async fn no_layer_is_removed_while_a_manifest_is_damaged() {
    let store = Store::new().await;
    let path = store.manifest(store.fork);
    let whole = fs::read(&path).unwrap();
    flip_a_digit(&path);

    store.storage.destroy_disk(store.disk).await.unwrap();
    store.storage.delete_base(store.base).await.unwrap();
    fs::write(&path, whole).unwrap();

    // What the fork stands on is all there, though nothing else named it.
    store.storage.open_disk(store.fork).await.unwrap();
    store.storage.destroy_disk(store.fork).await.unwrap();
    assert_eq!(store.layers(), [""; 0]);
    assert_eq!(files_in(&store.folder.path().join("bases")), [""; 0]);
}

#[tokio::test]
async fn destroying_the_damaged_disk_frees_its_layers() {
    let store = Store::new().await;
    flip_a_digit(&store.manifest(store.fork));

    store.storage.destroy_disk(store.fork).await.unwrap();

    assert_eq!(store.layers().len(), 2);
    store.storage.open_disk(store.disk).await.unwrap();
}

#[tokio::test]
async fn lost_layer_is_told_with_its_path() {
    let store = Store::new().await;
    let chain = store.storage.open_disk(store.fork).await.unwrap();
    fs::remove_file(&chain.layers[1].path).unwrap();

    let error = store.storage.open_disk(store.fork).await.unwrap_err();

    assert!(matches!(error, StorageError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains(chain.layers[1].path.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn manifest_of_a_newer_agentiso_is_not_touched() {
    let store = Store::new().await;
    let path = store.manifest(store.fork);
    let text = fs::read_to_string(&path).unwrap();
    let json = text.lines().next().unwrap().replacen("\"version\":2", "\"version\":3", 1);
    let newer = with_checksum(&json);
    fs::write(&path, &newer).unwrap();

    let error = store.storage.begin_snapshot(store.fork, SnapshotId::random()).await.unwrap_err();
    store.storage.inventory().await.unwrap();

    assert!(error.to_string().contains("version 3"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
}

#[tokio::test]
async fn manifest_of_the_first_generation_is_taken_over() {
    let store = Store::new().await;
    let path = store.manifest(store.disk);
    let chain = store.storage.open_disk(store.disk).await.unwrap();
    let usage = store.storage.usage(store.disk).await.unwrap();
    let [top, frozen, base] = [0, 1, 2].map(|at| chain.layers[at].id.to_string());
    let first = serde_json::json!({ "version": 1, "record": {
        "id": store.disk, "bytes": BYTES, "origin": { "base": store.base },
        "own": [
            { "id": top, "bytes": BYTES, "base": null },
            { "id": frozen, "bytes": BYTES, "base": null },
        ],
        "inherited": [{ "id": base, "bytes": BYTES, "base": store.base }],
        "snapshots": [{ "id": store.snapshot, "layer": frozen }],
        "pending": null,
    }});
    fs::write(&path, with_checksum(&first.to_string())).unwrap();

    assert_eq!(store.storage.open_disk(store.disk).await.unwrap(), chain);
    assert_eq!(store.storage.usage(store.disk).await.unwrap(), usage);
    store.storage.rollback(store.disk, store.snapshot).await.unwrap();
    assert_eq!(store.storage.open_disk(store.disk).await.unwrap().layers[1..], chain.layers[1..]);
    assert!(fs::read_to_string(&path).unwrap().contains("\"version\":2"));
}

#[tokio::test]
async fn manifest_of_the_first_generation_that_makes_no_sense_is_damaged() {
    let store = Store::new().await;
    let layer = store.storage.open_disk(store.disk).await.unwrap().layers[0].id.to_string();
    let overlay = serde_json::json!({ "id": layer, "bytes": BYTES, "base": null });
    let base = serde_json::json!({ "id": layer, "bytes": BYTES, "base": store.base });
    let no_layers: &[&serde_json::Value] = &[];
    let known = serde_json::json!([]);
    let lost = serde_json::json!([{ "id": store.snapshot, "layer": "0123456789abcdef01234567" }]);

    for (own, inherited, snapshots) in [
        (no_layers, [&base], &known),
        (&[&overlay], [&overlay], &known),
        (&[&base], [&base], &known),
        (&[&overlay], [&base], &lost),
    ] {
        let first = serde_json::json!({ "version": 1, "record": {
            "id": store.disk, "bytes": BYTES, "origin": { "base": store.base }, "own": own,
            "inherited": inherited, "snapshots": snapshots, "pending": null,
        }});
        fs::write(store.manifest(store.disk), with_checksum(&first.to_string())).unwrap();
        assert!(is_damaged(store.storage.open_disk(store.disk).await), "{first}");
    }
}

#[tokio::test]
async fn manifest_under_another_name_is_damaged() {
    let store = Store::new().await;
    let other = DiskId::random();
    fs::copy(store.manifest(store.fork), store.manifest(other)).unwrap();

    assert!(is_damaged(store.storage.open_disk(other).await));
}

#[tokio::test]
async fn sweep_leaves_foreign_files_alone() {
    let store = Store::new().await;
    let foreign = ["layers/README", "layers/x.qcow2", "disks/notes.json", "bases/old.raw"];
    for name in foreign {
        fs::write(store.folder.path().join(name), "mine").unwrap();
    }
    let stray = store.folder.path().join("layers/0123456789abcdef01234567.qcow2");
    let unfinished = store.folder.path().join("disks/.new-1");
    fs::write(&stray, "").unwrap();
    fs::write(&unfinished, "").unwrap();

    store.storage.inventory().await.unwrap();

    assert!(!stray.exists());
    assert!(!unfinished.exists());
    for name in foreign {
        assert!(store.folder.path().join(name).exists(), "{name}");
    }
}
