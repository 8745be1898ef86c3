use std::collections::BTreeSet;

use rusqlite::{Row, named_params};

use super::{SnapshotRecord, Store, StoreError};
use crate::types::{SnapshotId, WorkspaceId};

impl Store {
    /// Adds a snapshot. Its name is free: the caller holds the workspace's lock and has looked. What the machine's memory
    /// may hold of an earlier owner's, the snapshot's may hold too.
    pub(crate) fn insert_snapshot(&self, record: &SnapshotRecord) -> Result<(), StoreError> {
        self.write("add to", |transaction| {
            transaction
                .execute(
                    "INSERT INTO snapshots (id, workspace, name, created_at, ready, hidden, crash_consistent, memory,
                         inherited)
                     VALUES (:id, :workspace, :name, :created_at, :ready, :hidden, :crash_consistent, :memory,
                         coalesce((SELECT inherited FROM owners WHERE workspace = :workspace), 0))",
                    named_params! {
                        ":id": record.id.to_string(), ":workspace": record.workspace.to_string(), ":name": record.name,
                        ":created_at": i64::try_from(record.created_at).unwrap_or(i64::MAX), ":ready": record.ready,
                        ":hidden": record.hidden, ":crash_consistent": record.crash_consistent, ":memory": record.memory,
                    },
                )
                .map_err(self.failed("add to"))?;
            Ok(())
        })
    }

    /// Notes that a snapshot is complete.
    pub(crate) fn snapshot_ready(&self, id: SnapshotId) -> Result<(), StoreError> {
        self.write("update", |transaction| {
            transaction
                .execute("UPDATE snapshots SET ready = 1 WHERE id = ?1", [id.to_string()])
                .map_err(self.failed("update"))?;
            Ok(())
        })
    }

    /// Removes a snapshot. Not there: no effect.
    pub(crate) fn remove_snapshot(&self, id: SnapshotId) -> Result<(), StoreError> {
        self.write("remove from", |transaction| {
            transaction
                .execute("DELETE FROM snapshots WHERE id = ?1", [id.to_string()])
                .map_err(self.failed("remove from"))?;
            Ok(())
        })
    }

    /// Whether the memory of a snapshot may hold an environment that an earlier owner of its workspace had set. Of one
    /// that is in no record that cannot be told: it may.
    pub(crate) fn is_snapshot_inherited(&self, id: SnapshotId) -> Result<bool, StoreError> {
        self.read(|connection| {
            connection
                .query_row(
                    "SELECT NOT EXISTS (SELECT 1 FROM snapshots WHERE id = ?1 AND NOT inherited)",
                    [id.to_string()],
                    |row| row.get(0),
                )
                .map_err(self.failed("read"))
        })
    }

    /// The ids of all snapshots that have a memory image, or will have one.
    pub(crate) fn memory_snapshots(&self) -> Result<BTreeSet<SnapshotId>, StoreError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT id FROM snapshots WHERE memory")
                .map_err(self.failed("read"))?;
            let ids = statement.query_map([], |row| row.get::<_, String>(0)).map_err(self.failed("read"))?;
            ids.filter_map(|id| match id {
                Ok(id) => id.parse().ok().map(Ok),
                Err(error) => Some(Err(self.failed("read")(error))),
            })
            .collect()
        })
    }

    /// The snapshots of a workspace, oldest first, hidden and incomplete ones included.
    pub(crate) fn snapshots(&self, workspace: WorkspaceId) -> Result<Vec<SnapshotRecord>, StoreError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached(
                    "SELECT id, workspace, name, created_at, ready, hidden, crash_consistent, memory FROM snapshots
                     WHERE workspace = ?1 ORDER BY rowid",
                )
                .map_err(self.failed("read"))?;
            let rows = statement.query_map([workspace.to_string()], read_row).map_err(self.failed("read"))?;
            rows.map(|row| row.map_err(self.failed("read"))?).collect()
        })
    }
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<Result<SnapshotRecord, StoreError>> {
    let name: String = row.get("name")?;
    let damaged = |reason: String| StoreError::Damaged { what: format!("snapshot {name}"), reason };
    let (id, workspace): (String, String) = (row.get("id")?, row.get("workspace")?);
    let created_at: i64 = row.get("created_at")?;
    let (ready, hidden, crash_consistent, memory) =
        (row.get("ready")?, row.get("hidden")?, row.get("crash_consistent")?, row.get("memory")?);
    Ok((|| {
        Ok(SnapshotRecord {
            id: id.parse().map_err(|error: uuid::Error| damaged(error.to_string()))?,
            workspace: workspace.parse().map_err(|error: uuid::Error| damaged(error.to_string()))?,
            created_at: u64::try_from(created_at).map_err(|error| damaged(error.to_string()))?,
            name: name.clone(),
            ready,
            hidden,
            crash_consistent,
            memory,
        })
    })())
}
