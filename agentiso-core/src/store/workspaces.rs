use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{OptionalExtension, Row, named_params};
use serde::{Serialize, de::DeserializeOwned};

use super::{Store, StoreError, WorkspaceRecord};
use crate::types::{GuestPort, HostPort, MachineUid, Owner, SessionId, WorkspaceId, WorkspaceName};

/// The first user id given to machines when root starts them: above what systemd, containers and accounts use, and
/// below 2^31, which some programs take for negative.
const FIRST_MACHINE_UID: u32 = 1_900_000_000;

const COLUMNS: &str = "id, name, state, crashed, created_at, image, base, resources, policy, uid, throwaway_of, forked_from, runtime, boot_time_ms, pooled, operator, session, inherited";

/// Without a row that says who owns it a workspace would be the operator's: what is damaged is given to nobody else.
const TABLES: &str = "workspaces LEFT JOIN owners ON owners.workspace = workspaces.id";

impl Store {
    /// Adds a workspace of the operator's. With `private_uid` it gets a user id that no other one has.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`], decided in the same transaction.
    #[cfg(test)]
    pub(crate) fn insert(
        &self,
        record: WorkspaceRecord,
        private_uid: bool,
    ) -> Result<WorkspaceRecord, StoreError> {
        self.write("add to", |transaction| self.insert_row(transaction, record, private_uid))
    }

    /// Adds the row of a workspace, and that of its owner, who may have it.
    pub(super) fn insert_row(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        mut record: WorkspaceRecord,
        private_uid: bool,
    ) -> Result<WorkspaceRecord, StoreError> {
        if private_uid {
            record.uid = Some(free_uid(transaction).map_err(self.failed("read"))?);
        }
        let row = Columns::of(&record)?;
        let inserted = transaction
            .execute(
                "INSERT INTO workspaces (id, name, state, crashed, created_at, image, base, resources, policy, uid,
                     throwaway_of, forked_from, runtime, boot_time_ms, pooled)
                 VALUES (:id, :name, :state, :crashed, :created_at, :image, :base, :resources, :policy, :uid,
                     :throwaway_of, :forked_from, :runtime, :boot_time_ms, :pooled)
                 ON CONFLICT (name) DO NOTHING",
                named_params! {
                    ":id": row.id, ":name": row.name, ":state": row.state, ":crashed": row.crashed,
                    ":created_at": row.created_at, ":image": row.image, ":base": row.base, ":resources": row.resources,
                    ":policy": row.policy, ":uid": row.uid, ":throwaway_of": row.throwaway_of,
                    ":forked_from": row.forked_from, ":runtime": row.runtime, ":boot_time_ms": row.boot_time_ms,
                    ":pooled": row.pooled,
                },
            )
            .map_err(self.failed("add to"))?;
        if inserted == 0 {
            return Err(StoreError::NameTaken { name: row.name });
        }
        transaction
            .execute(
                "INSERT INTO owners (workspace, operator, session, memory_mb, disk_gb) VALUES (?1, ?2, ?3, ?4, ?5)",
                (
                    row.id,
                    row.operator,
                    row.session,
                    record.resources.memory_mb.get(),
                    record.resources.disk_gb.get(),
                ),
            )
            .map_err(self.failed("add to"))?;
        Ok(record)
    }

    /// Writes what may change of a workspace, but for its owner. The caller holds its lock.
    pub(crate) fn update(&self, record: &WorkspaceRecord) -> Result<(), StoreError> {
        let row = Columns::of(record)?;
        self.write("update", |transaction| {
            transaction
                .execute(
                    "UPDATE workspaces SET state = :state, crashed = :crashed, policy = :policy,
                         throwaway_of = :throwaway_of, runtime = :runtime, boot_time_ms = :boot_time_ms
                     WHERE id = :id",
                    named_params! {
                        ":id": row.id, ":state": row.state, ":crashed": row.crashed, ":policy": row.policy,
                        ":throwaway_of": row.throwaway_of, ":runtime": row.runtime,
                        ":boot_time_ms": row.boot_time_ms,
                    },
                )
                .map_err(self.failed("update"))?;
            Ok(())
        })
    }

    /// Makes a machine that waited in a pool a workspace like any other, under its new name and with its new owner, who
    /// may have it.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`], decided in the same transaction.
    pub(super) fn take_row_from_pool(
        &self,
        transaction: &rusqlite::Transaction<'_>,
        record: &WorkspaceRecord,
    ) -> Result<(), StoreError> {
        let row = Columns::of(record)?;
        let updated = transaction
            .execute(
                "UPDATE OR IGNORE workspaces SET name = :name, created_at = :created_at, pooled = :pooled,
                     policy = :policy, throwaway_of = :throwaway_of
                 WHERE id = :id",
                named_params! {
                    ":id": row.id, ":name": row.name, ":created_at": row.created_at, ":pooled": row.pooled,
                    ":policy": row.policy, ":throwaway_of": row.throwaway_of,
                },
            )
            .map_err(self.failed("update"))?;
        if updated == 0 {
            return Err(StoreError::NameTaken { name: row.name });
        }
        transaction
            .execute(
                "UPDATE owners SET operator = ?2, session = ?3 WHERE workspace = ?1",
                (row.id, row.operator, row.session),
            )
            .map_err(self.failed("update"))?;
        Ok(())
    }

    /// Removes a workspace with its forwards and snapshots. Not there: no effect.
    pub(crate) fn remove(&self, id: WorkspaceId) -> Result<(), StoreError> {
        self.write("remove from", |transaction| {
            transaction
                .execute("DELETE FROM workspaces WHERE id = ?1", [id.to_string()])
                .map_err(self.failed("remove from"))?;
            Ok(())
        })
    }

    /// One workspace.
    pub(crate) fn get(&self, id: WorkspaceId) -> Result<Option<WorkspaceRecord>, StoreError> {
        self.find("id = ?1", &id.to_string())
    }

    /// The workspace of that name.
    pub(crate) fn by_name(&self, name: &WorkspaceName) -> Result<Option<WorkspaceRecord>, StoreError> {
        self.find("name = ?1", name.as_str())
    }

    /// The workspaces whose id begins with these digits (lower case, with the dashes of a UUID); at most two.
    pub(crate) fn by_id_prefix(&self, prefix: &str) -> Result<Vec<WorkspaceRecord>, StoreError> {
        self.select("WHERE substr(id, 1, length(?1)) = ?1 LIMIT 2", [prefix])
    }

    /// All workspaces, in order of their creation. A damaged record is an error in its own place only.
    pub(crate) fn all(&self) -> Result<Vec<Result<WorkspaceRecord, StoreError>>, StoreError> {
        self.rows("ORDER BY created_at, workspaces.rowid", [])
    }

    /// The ids of all workspaces whose id can be read, whatever the rest of their record is like.
    pub(crate) fn ids(&self) -> Result<BTreeSet<WorkspaceId>, StoreError> {
        self.read(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT id FROM workspaces").map_err(self.failed("read"))?;
            let ids = statement.query_map([], |row| row.get::<_, String>(0)).map_err(self.failed("read"))?;
            ids.filter_map(|id| match id {
                Ok(id) => id.parse().ok().map(Ok),
                Err(error) => Some(Err(self.failed("read")(error))),
            })
            .collect()
        })
    }

    /// The forwards of a workspace.
    pub(crate) fn forwards(&self, id: WorkspaceId) -> Result<BTreeMap<GuestPort, HostPort>, StoreError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT guest, host FROM forwards WHERE workspace = ?1")
                .map_err(self.failed("read"))?;
            let rows = statement
                .query_map([id.to_string()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
                .map_err(self.failed("read"))?;
            let mut forwards = BTreeMap::new();
            for row in rows {
                let (guest, host) = row.map_err(self.failed("read"))?;
                let damaged =
                    |reason: String| StoreError::Damaged { what: format!("a forward of {id}"), reason };
                let guest = u64::try_from(guest).map_err(|error| damaged(error.to_string()))?;
                let host = u64::try_from(host).map_err(|error| damaged(error.to_string()))?;
                forwards.insert(
                    GuestPort::new(guest).map_err(|error| damaged(error.to_string()))?,
                    HostPort::new(host).map_err(|error| damaged(error.to_string()))?,
                );
            }
            Ok(forwards)
        })
    }

    /// Remembers a forward.
    ///
    /// # Errors
    /// [`StoreError::PortTaken`] if the host's port is another workspace's, running or not.
    pub(crate) fn set_forward(
        &self,
        id: WorkspaceId,
        guest: GuestPort,
        host: HostPort,
    ) -> Result<(), StoreError> {
        self.write("add to", |transaction| {
            let holder: Option<String> = transaction
                .query_row(
                    "SELECT name FROM forwards JOIN workspaces ON id = workspace WHERE host = ?1 AND workspace <> ?2",
                    (host.get(), id.to_string()),
                    |row| row.get(0),
                )
                .optional()
                .map_err(self.failed("read"))?;
            if let Some(workspace) = holder {
                return Err(StoreError::PortTaken { port: host.get(), workspace });
            }
            transaction
                .execute(
                    "INSERT OR REPLACE INTO forwards (workspace, guest, host) VALUES (?1, ?2, ?3)",
                    (id.to_string(), guest.get(), host.get()),
                )
                .map_err(self.failed("add to"))?;
            Ok(())
        })
    }

    /// Forgets a forward. Not there: no effect.
    pub(crate) fn clear_forward(&self, id: WorkspaceId, guest: GuestPort) -> Result<(), StoreError> {
        self.write("remove from", |transaction| {
            transaction
                .execute(
                    "DELETE FROM forwards WHERE workspace = ?1 AND guest = ?2",
                    (id.to_string(), guest.get()),
                )
                .map_err(self.failed("remove from"))?;
            Ok(())
        })
    }

    /// The workspaces that a session may see, its own and orphans, of that name, or whose id begins with these digits; at
    /// most two.
    pub(crate) fn visible(
        &self,
        session: &SessionId,
        name: Option<&WorkspaceName>,
        id_prefix: Option<&str>,
    ) -> Result<Vec<WorkspaceRecord>, StoreError> {
        self.select(
            "WHERE (name = ?2 OR substr(id, 1, length(?3)) = ?3) AND NOT pooled
                 AND (session = ?1 OR (session IS NULL AND operator = 0))
             ORDER BY name IS NOT ?2 LIMIT 2",
            (session.as_str(), name.map(WorkspaceName::as_str), id_prefix),
        )
    }

    fn find(&self, condition: &str, value: &str) -> Result<Option<WorkspaceRecord>, StoreError> {
        Ok(self.select(&format!("WHERE {condition}"), [value])?.pop())
    }

    fn select(
        &self,
        rest: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<WorkspaceRecord>, StoreError> {
        self.rows(rest, parameters)?.into_iter().collect()
    }

    fn rows(
        &self,
        rest: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<Result<WorkspaceRecord, StoreError>>, StoreError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM {TABLES} {rest}"))
                .map_err(self.failed("read"))?;
            let rows = statement.query_map(parameters, Columns::read).map_err(self.failed("read"))?;
            rows.map(|row| Ok(row.map_err(self.failed("read"))?.into_record())).collect()
        })
    }
}

fn free_uid(transaction: &rusqlite::Transaction<'_>) -> rusqlite::Result<MachineUid> {
    let mut statement =
        transaction.prepare_cached("SELECT uid FROM workspaces WHERE uid IS NOT NULL ORDER BY uid")?;
    let taken =
        statement.query_map([], |row| row.get::<_, u32>(0))?.collect::<rusqlite::Result<BTreeSet<_>>>()?;
    let free = (FIRST_MACHINE_UID..u32::MAX).find(|uid| !taken.contains(uid)).unwrap_or(u32::MAX);
    Ok(MachineUid(free))
}

/// A row as SQLite holds it.
struct Columns {
    id: String,
    name: String,
    state: String,
    crashed: bool,
    created_at: i64,
    image: String,
    base: String,
    resources: String,
    policy: String,
    uid: Option<u32>,
    operator: bool,
    session: Option<String>,
    inherited: bool,
    throwaway_of: Option<String>,
    forked_from: Option<String>,
    runtime: Option<String>,
    boot_time_ms: Option<i64>,
    pooled: bool,
}

impl Columns {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get("id")?,
            name: row.get("name")?,
            state: row.get("state")?,
            crashed: row.get("crashed")?,
            created_at: row.get("created_at")?,
            image: row.get("image")?,
            base: row.get("base")?,
            resources: row.get("resources")?,
            policy: row.get("policy")?,
            uid: row.get("uid")?,
            operator: row.get::<_, Option<bool>>("operator")?.unwrap_or(true),
            session: row.get("session")?,
            inherited: row.get::<_, Option<bool>>("inherited")?.unwrap_or(false),
            throwaway_of: row.get("throwaway_of")?,
            forked_from: row.get("forked_from")?,
            runtime: row.get("runtime")?,
            boot_time_ms: row.get("boot_time_ms")?,
            pooled: row.get("pooled")?,
        })
    }

    fn of(record: &WorkspaceRecord) -> Result<Self, StoreError> {
        let what = record.name.as_str();
        Ok(Self {
            id: record.id.to_string(),
            name: record.name.to_string(),
            state: record.state.to_string(),
            crashed: record.crashed,
            created_at: i64::try_from(record.created_at).unwrap_or(i64::MAX),
            image: record.image.to_string(),
            base: record.base.to_string(),
            resources: to_json(what, &record.resources)?,
            policy: to_json(what, &record.policy)?,
            uid: record.uid.map(|uid| uid.0),
            operator: record.owner == Owner::Operator,
            session: match &record.owner {
                Owner::Session(session) => Some(session.to_string()),
                Owner::Operator | Owner::Nobody => None,
            },
            inherited: record.inherited,
            throwaway_of: record.throwaway_of.as_ref().map(|process| to_json(what, process)).transpose()?,
            forked_from: record.forked_from.as_ref().map(|origin| to_json(what, origin)).transpose()?,
            runtime: record.runtime.as_ref().map(|runtime| to_json(what, runtime)).transpose()?,
            pooled: record.pooled,
            boot_time_ms: record.boot_time_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)),
        })
    }

    fn into_record(self) -> Result<WorkspaceRecord, StoreError> {
        let name = self.name;
        Ok(WorkspaceRecord {
            id: self.id.parse().map_err(|error: uuid::Error| damaged(&name, "id", &error))?,
            state: from_json(&name, "state", &format!("\"{}\"", self.state))?,
            crashed: self.crashed,
            created_at: u64::try_from(self.created_at)
                .map_err(|error| damaged(&name, "created_at", &error))?,
            image: self.image.parse().map_err(|error| damaged(&name, "image", &error))?,
            base: self.base.parse().map_err(|error: uuid::Error| damaged(&name, "base", &error))?,
            resources: from_json(&name, "resources", &self.resources)?,
            policy: from_json(&name, "policy", &self.policy)?,
            uid: self.uid.map(MachineUid),
            owner: match (self.operator, self.session) {
                (_, Some(session)) => {
                    Owner::Session(SessionId::new(session).map_err(|error| damaged(&name, "owner", &error))?)
                }
                (true, None) => Owner::Operator,
                (false, None) => Owner::Nobody,
            },
            inherited: self.inherited,
            throwaway_of: self
                .throwaway_of
                .map(|json| from_json(&name, "throwaway_of", &json))
                .transpose()?,
            forked_from: self.forked_from.map(|json| from_json(&name, "forked_from", &json)).transpose()?,
            runtime: self.runtime.map(|json| from_json(&name, "runtime", &json)).transpose()?,
            pooled: self.pooled,
            boot_time_ms: self.boot_time_ms.and_then(|ms| u64::try_from(ms).ok()),
            name: WorkspaceName::new(name.clone()).map_err(|error| damaged(&name, "name", &error))?,
        })
    }
}

fn to_json(what: &str, value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Damaged { what: what.to_owned(), reason: error.to_string() })
}

fn from_json<T: DeserializeOwned>(name: &str, column: &str, json: &str) -> Result<T, StoreError> {
    serde_json::from_str(json).map_err(|error| damaged(name, column, &error))
}

fn damaged(name: &str, column: &str, error: &dyn std::error::Error) -> StoreError {
    StoreError::Damaged { what: format!("workspace {name}"), reason: format!("{column}: {error}") }
}
