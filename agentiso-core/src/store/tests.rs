use super::*;
use crate::session::SessionUsage;
use crate::types::{
    BaseId, GuestPort, HostPort, ImageName, Owner, Resources, SnapshotId, WorkspaceId, WorkspaceName,
};
use crate::workspace::WorkspaceState;

fn record(name: &str) -> WorkspaceRecord {
    WorkspaceRecord {
        id: WorkspaceId::random(),
        name: WorkspaceName::new(name).unwrap(),
        state: WorkspaceState::Creating,
        crashed: false,
        created_at: 7,
        image: ImageName::new("debian").unwrap(),
        base: BaseId::random(),
        resources: Resources::default(),
        policy: crate::network::NetworkPolicy::default(),
        uid: None,
        owner: Owner::Operator,
        inherited: false,
        throwaway_of: None,
        forked_from: None,
        runtime: None,
        boot_time_ms: None,
        pooled: false,
    }
}

fn scratch() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("agentiso.db")).unwrap();
    (folder, store)
}

#[test]
fn open_of_new_records_by_many_at_once_serves_all() {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agentiso.db");
        let openers: Vec<_> = (0..8)
            .map(|number| {
                let path = path.clone();
                std::thread::spawn(move || {
                    let store = Store::open(&path)?;
                    store.insert(record(&format!("w{number}")), true)?;
                    Ok::<_, StoreError>(store.state_id().to_owned())
                })
            })
            .collect();

        let ids: Vec<_> = openers.into_iter().map(|opener| opener.join().unwrap().unwrap()).collect();

        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(Store::open(&path).unwrap().all().unwrap().len(), 8);
    }
}

#[test]
fn insert_keeps_every_field_across_a_reopen() {
    let (folder, store) = scratch();
    let written = store.insert(record("a"), true).unwrap();
    drop(store);

    let store = Store::open(&folder.path().join("agentiso.db")).unwrap();

    assert_eq!(store.get(written.id).unwrap(), Some(written.clone()));
    assert_eq!(store.by_name(&written.name).unwrap(), Some(written));
}

#[test]
fn insert_refuses_a_name_that_is_taken() {
    let (_folder, store) = scratch();
    store.insert(record("a"), false).unwrap();

    let second = store.insert(record("a"), false);

    assert!(matches!(second, Err(StoreError::NameTaken { .. })), "{second:?}");
    assert_eq!(store.all().unwrap().len(), 1);
}

#[test]
fn insert_gives_each_machine_a_user_of_its_own_and_uses_freed_ones_again() {
    let (_folder, store) = scratch();
    let first = store.insert(record("a"), true).unwrap();
    let second = store.insert(record("b"), true).unwrap();
    assert_ne!(first.uid, second.uid);

    store.remove(first.id).unwrap();

    assert_eq!(store.insert(record("c"), true).unwrap().uid, first.uid);
}

#[test]
fn id_prefix_finds_at_most_two() {
    let (_folder, store) = scratch();
    let one = store.insert(record("a"), false).unwrap();

    assert_eq!(store.by_id_prefix(&one.id.to_string()[..8]).unwrap(), vec![one.clone()]);
    assert_eq!(store.by_id_prefix("%").unwrap(), vec![]);
}

#[test]
fn forward_refuses_a_host_port_of_another_workspace() {
    let (_folder, store) = scratch();
    let (one, two) = (store.insert(record("a"), false).unwrap(), store.insert(record("b"), false).unwrap());
    let (guest, host) = (GuestPort::new(80).unwrap(), HostPort::new(8080).unwrap());
    store.set_forward(one.id, guest, host).unwrap();

    let taken = store.set_forward(two.id, guest, host);

    assert!(matches!(taken, Err(StoreError::PortTaken { .. })), "{taken:?}");
    store.remove(one.id).unwrap();
    store.set_forward(two.id, guest, host).unwrap();
    assert_eq!(store.forwards(two.id).unwrap().get(&guest), Some(&host));
}

#[test]
fn open_refuses_a_newer_version_and_foreign_databases() {
    let (folder, store) = scratch();
    let path = folder.path().join("agentiso.db");
    drop(store);
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Newer { found: 99, .. })));

    let foreign = folder.path().join("other.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE x (y)").unwrap();
    assert!(matches!(Store::open(&foreign), Err(StoreError::NotOurs { .. })));
}

#[test]
fn a_damaged_row_does_not_hide_the_others() {
    let (folder, store) = scratch();
    let (good, bad) =
        (store.insert(record("good"), false).unwrap(), store.insert(record("bad"), false).unwrap());
    rusqlite::Connection::open(folder.path().join("agentiso.db"))
        .unwrap()
        .execute("UPDATE workspaces SET resources = '{' WHERE id = ?1", [bad.id.to_string()])
        .unwrap();

    assert_eq!(store.get(good.id).unwrap(), Some(good.clone()));
    let error = store.get(bad.id).unwrap_err().to_string();
    assert!(error.contains("workspace bad"), "{error}");
    assert_eq!(store.ids().unwrap().len(), 2);
}

#[test]
fn open_reports_a_file_that_is_no_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agentiso.db");
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();

    let error = Store::open(&path).unwrap_err();

    assert!(error.to_string().contains("agentiso.db"), "{error}");
}

#[test]
fn promotion_moves_name_forwards_and_owner_at_once() {
    let (_folder, store) = scratch();
    let parent = store.insert(record("p"), false).unwrap();
    store.give_orphan(0, parent.id, &Owner::Nobody).unwrap();
    let child = store.insert(record("c"), false).unwrap();
    let other = store.insert(record("p-old"), false).unwrap();
    let (guest, host) = (GuestPort::new(80).unwrap(), HostPort::new(8080).unwrap());
    store.set_forward(parent.id, guest, host).unwrap();
    let promotion = Promotion { child: child.id, parent: parent.id, dropped: vec![other.id] };

    store.promote(&promotion).unwrap();

    let get = |id| store.get(id).unwrap().unwrap();
    assert_eq!((get(child.id).name.as_str(), get(child.id).owner), ("p", Owner::Nobody));
    assert_eq!((get(parent.id).name.as_str(), get(parent.id).state), ("p-old-2", parent.state));
    assert_eq!(get(other.id).state, WorkspaceState::Destroying);
    assert_eq!(store.forwards(child.id).unwrap().get(&guest), Some(&host));
    assert!(store.forwards(parent.id).unwrap().is_empty());
    assert_eq!(store.unsettled_promotions().unwrap(), [child.id]);
    for _ in 0..2 {
        store.promotion_settled(child.id).unwrap();
        assert!(store.unsettled_promotions().unwrap().is_empty());
    }
}

#[test]
fn promotion_that_cannot_be_changes_nothing() {
    let (_folder, store) = scratch();
    let parent = store.insert(record("p"), false).unwrap();
    let child = store.insert(record("c"), false).unwrap();
    let guest = GuestPort::new(80).unwrap();
    store.set_forward(parent.id, guest, HostPort::new(8080).unwrap()).unwrap();
    store.set_forward(child.id, guest, HostPort::new(8081).unwrap()).unwrap();
    let gone = WorkspaceId::random();

    for (child, parent) in [(child.id, parent.id), (gone, parent.id), (child.id, gone)] {
        let promotion = Promotion { child, parent, dropped: vec![child] };
        assert!(store.promote(&promotion).is_err());
    }

    let get = |id| store.get(id).unwrap().unwrap();
    assert_eq!((get(parent.id).name.as_str(), get(child.id).name.as_str()), ("p", "c"));
    assert_eq!(get(child.id).state, child.state);
    assert!(store.unsettled_promotions().unwrap().is_empty());
}

/// Brings records back to how version 3 had them.
fn downgrade_to_version_3(path: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .execute_batch(
            "DROP TRIGGER owner_goes_with_workspace; DROP TABLE owners; DROP TABLE sessions; DROP TABLE buckets;
             ALTER TABLE snapshots DROP COLUMN inherited;
             ALTER TABLE workspaces ADD COLUMN owner TEXT NOT NULL DEFAULT 'operator';
             PRAGMA user_version = 3;",
        )
        .unwrap();
    connection
}

#[test]
fn workspaces_of_version_3_are_the_operators_even_those_that_are_damaged() {
    let (folder, store) = scratch();
    let path = folder.path().join("agentiso.db");
    let (good, bad) =
        (store.insert(record("good"), false).unwrap(), store.insert(record("bad"), false).unwrap());
    drop(store);
    let old = downgrade_to_version_3(&path);
    old.execute("UPDATE workspaces SET resources = '{' WHERE id = ?1", [bad.id.to_string()]).unwrap();
    drop(old);

    let store = Store::open(&path).unwrap();

    assert_eq!(store.get(good.id).unwrap(), Some(good.clone()));
    let owned = |id| store.with_ledger(0, None, |ledger| ledger.ownership(id)).unwrap().unwrap();
    let size = SessionUsage { workspace_count: 1, memory_mb: 512, disk_gb: 10 };
    assert_eq!(owned(good.id), Ownership { owner: Owner::Operator, usage: size });
    assert_eq!(owned(bad.id).owner, Owner::Operator);
    store.remove(good.id).unwrap();
    assert_eq!(store.owned_workspaces().unwrap(), [bad.id]);
}

#[test]
fn record_that_was_read_before_an_adoption_does_not_undo_it() {
    let (_folder, store) = scratch();
    let mut stale = store.insert(record("a"), false).unwrap();
    store.give_orphan(0, stale.id, &Owner::Nobody).unwrap();

    stale.state = WorkspaceState::Running;
    store.update(&stale).unwrap();

    let now = store.get(stale.id).unwrap().unwrap();
    assert_eq!((now.owner, now.state), (Owner::Nobody, WorkspaceState::Running));
}

#[test]
fn memory_of_a_snapshot_in_no_record_may_hold_an_earlier_owners_environment() {
    let (_folder, store) = scratch();
    let workspace = store.insert(record("p"), false).unwrap();
    let snapshot = SnapshotRecord {
        id: SnapshotId::random(),
        workspace: workspace.id,
        name: "s".to_owned(),
        created_at: 1,
        memory: true,
        crash_consistent: false,
        hidden: false,
        ready: true,
    };
    store.insert_snapshot(&snapshot).unwrap();
    assert!(!store.is_snapshot_inherited(snapshot.id).unwrap());
    store.remove_snapshot(snapshot.id).unwrap();
    assert!(store.is_snapshot_inherited(snapshot.id).unwrap());
}
