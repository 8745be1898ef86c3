//! What is made where, what is left alone, and what stands on what.

use agentiso_core::{
    storage::{
        DiskOrigin, Inventory, Storage, StorageError,
        zfs::{ZfsConfig, ZfsStorage},
    },
    types::{BaseId, DiskId},
};

use crate::fixture::{BYTES, Fixture, command, run};

fn remedy(result: Result<impl Sized, StorageError>) -> String {
    match result {
        Err(error @ StorageError::Missing { .. }) => error.to_string(),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it did not fail"),
    }
}

#[tokio::test]
async fn datasets_are_where_they_belong_sparse_and_tagged() {
    let fixture = Fixture::new().await.unwrap();
    let base = fixture.base(1).await;
    let disk = fixture.disk(DiskOrigin::Base(base)).await;
    let snapshot = fixture.snapshot(disk).await;
    let fork = fixture.disk(DiskOrigin::Snapshot { disk, snapshot }).await;

    let (base, disk, fork) = (format!("base/{base}"), format!("workspaces/{disk}"), format!("forks/{fork}"));
    let mut listed = fixture.listed("filesystem,volume,snapshot");
    listed.sort();
    let mut expected = vec![
        "base".to_owned(),
        base.clone(),
        format!("{base}@sealed"),
        "forks".to_owned(),
        fork.clone(),
        "workspaces".to_owned(),
        disk.clone(),
        format!("{disk}@{snapshot}"),
    ];
    expected.sort();
    assert_eq!(listed, expected);
    for (name, properties) in [("", "none\toff\tlz4"), (base.as_str(), "-\t-\tlz4")] {
        let name = format!("{}/{name}", fixture.dataset);
        let name = name.trim_end_matches('/');
        let got = run(&["zfs", "get", "-H", "-o", "value", "mountpoint,canmount,compression", name]);
        assert_eq!(got.trim().replace('\n', "\t"), properties, "{name}");
    }
    for name in [&base, &disk, &fork] {
        let name = format!("{}/{name}", fixture.dataset);
        let got = run(&["zfs", "get", "-H", "-o", "value", "refreservation,volmode,volblocksize", &name]);
        assert_eq!(got, "none\ndev\n16K\n", "{name}");
        let tag = run(&["zfs", "get", "-H", "-s", "local", "-o", "value", "agentiso:is", &name]);
        assert!(tag.starts_with(&format!("state={} ", fixture.state)), "{tag}");
    }
}

#[tokio::test]
async fn ancestors_go_one_after_the_other_while_the_last_fork_lives() {
    let fixture = Fixture::new().await.unwrap();
    let base = fixture.base(9).await;
    let mut disks = vec![fixture.disk(DiskOrigin::Base(base)).await];
    for marker in 1..=3 {
        let disk = *disks.last().unwrap();
        fixture.write(disk, marker).await;
        let snapshot = fixture.snapshot(disk).await;
        fixture.write(disk, 100 + marker).await;
        disks.push(fixture.disk(DiskOrigin::Snapshot { disk, snapshot }).await);
    }
    let storage = fixture.storage().await;
    let last = disks.pop().unwrap();

    for disk in disks {
        storage.destroy_disk(disk).await.unwrap();
        assert_eq!(fixture.read(last).await, 3);
    }

    assert_eq!(
        storage.inventory().await.unwrap(),
        Inventory { bases: vec![base], disks: vec![last], pending: vec![] }
    );
    assert_eq!(fixture.listed("volume").len(), 2);
    assert_eq!(fixture.listed("snapshot").len(), 1, "nothing but the sealed base");
    let refused = storage.delete_base(base).await;
    assert!(
        matches!(&refused, Err(StorageError::InUse { dependents, .. }) if *dependents == [last]),
        "{refused:?}"
    );
    storage.destroy_disk(last).await.unwrap();
    storage.delete_base(base).await.unwrap();
    assert_eq!(fixture.listed("volume,snapshot"), [""; 0]);
}

#[tokio::test]
async fn datasets_of_others_stay_as_they_are() {
    let fixture = Fixture::new().await.unwrap();
    let base = fixture.base(1).await;
    let disk = fixture.disk(DiskOrigin::Base(base)).await;
    let others = DiskId::random();
    let beside = format!("{}/workspaces/{others}", fixture.dataset);
    run(&["zfs", "create", "-s", "-V", "16M", &beside]);
    let pretending = format!("{}/forks/{others}", fixture.dataset);
    let tag = format!("agentiso:is=state=another disk={others} bytes=1 order=1");
    run(&["zfs", "create", "-s", "-V", "16M", "-o", &tag, &pretending]);
    let daily = format!("{}/workspaces/{disk}@daily", fixture.dataset);
    run(&["zfs", "snapshot", &daily]);
    let storage = fixture.storage().await;

    storage.destroy_disk(others).await.unwrap();
    storage.destroy_disk(disk).await.unwrap();

    let exist = |name: &str| command(&["zfs", "list", "-t", "all", name]).status.success();
    assert_eq!(storage.inventory().await.unwrap().disks, []);
    assert!(exist(&beside) && exist(&pretending) && exist(&daily));
    run(&["zfs", "destroy", &daily]);
    storage.inventory().await.unwrap();
    assert!(
        !exist(&format!("{}/workspaces/{disk}", fixture.dataset)),
        "it went with the snapshot that held it"
    );
    assert!(exist(&beside) && exist(&pretending));
    storage.delete_base(base).await.unwrap();
}

#[tokio::test]
async fn renamed_disk_is_still_the_disk() {
    let fixture = Fixture::new().await.unwrap();
    let base = fixture.base(1).await;
    let disk = fixture.disk(DiskOrigin::Base(base)).await;
    fixture.path(disk).await;
    let (from, to) =
        (format!("{}/workspaces/{disk}", fixture.dataset), format!("{}/forks/renamed", fixture.dataset));
    run(&["zfs", "rename", &from, &to]);

    assert_eq!(fixture.storage().await.inventory().await.unwrap().disks, [disk]);
    assert_eq!(fixture.read(disk).await, 1);
    fixture.storage().await.destroy_disk(disk).await.unwrap();
    assert_eq!(fixture.listed("volume").len(), 1);
}

#[tokio::test]
async fn dataset_of_somebody_else_is_refused() {
    let fixture = Fixture::new().await.unwrap();
    let foreign = format!("{}/workspaces/foreign", fixture.dataset);
    run(&["zfs", "create", &foreign]);

    let made = remedy(ZfsStorage::prepare(&foreign, &fixture.state).await);
    assert!(made.contains("made by somebody else"), "{made}");
    let other_state = remedy(ZfsStorage::prepare(&fixture.dataset, "another").await);
    assert!(other_state.contains(&fixture.state), "{other_state}");
    let lock = fixture.config().lock;
    let opened = remedy(ZfsStorage::open(ZfsConfig::new(&fixture.dataset, "another", lock)).await);
    assert!(opened.contains(&fixture.state), "{opened}");
    ZfsStorage::prepare(&fixture.dataset, &fixture.state).await.unwrap();
    assert_eq!(run(&["zfs", "get", "-H", "-s", "local", "-o", "value", "agentiso:state", &foreign]), "");
}

#[tokio::test]
async fn what_is_missing_is_named_with_its_remedy() {
    let fixture = Fixture::new().await.unwrap();
    let lock = fixture.config().lock;
    let open = |dataset: String| ZfsStorage::open(ZfsConfig::new(dataset, &fixture.state, lock.clone()));

    let no_pool = remedy(open("nosuchpool/agentiso".to_owned()).await);
    assert!(no_pool.contains("zpool import nosuchpool"), "{no_pool}");
    let no_dataset = remedy(open(format!("{}/nothing", fixture.pool)).await);
    assert!(no_dataset.contains(&format!("agentiso init --zfs {}/nothing", fixture.pool)), "{no_dataset}");
    let no_parent = remedy(ZfsStorage::prepare(format!("{}/no/thing", fixture.pool), "s").await);
    assert!(no_parent.contains("zfs create"), "{no_parent}");
    assert!(remedy(open("no/../name".to_owned()).await).contains("letters"));
}

#[tokio::test]
async fn full_dataset_refuses_with_a_remedy() {
    let fixture = Fixture::new().await.unwrap();
    let base = fixture.base(1).await;
    run(&["zfs", "set", "quota=100M", &fixture.dataset]);
    let storage = fixture.storage().await;

    for result in [
        storage.create_disk(DiskId::random(), DiskOrigin::Base(base), BYTES).await,
        storage.begin_base(BaseId::random(), BYTES).await.map(drop),
    ] {
        let Err(error @ StorageError::Full { .. }) = result else { panic!("{result:?}") };
        assert!(error.to_string().contains("agentiso prune"), "{error}");
    }

    assert_eq!(fixture.listed("volume").len(), 1);
}
