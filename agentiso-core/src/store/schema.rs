//! The database's tables and their version.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::StoreError;

/// Version of the tables below. A database of an older version is brought up to it, one of a newer is refused.
pub(super) const SCHEMA_VERSION: i64 = 3;

/// Values that are only ever read and written whole are kept as JSON.
const VERSION_1: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE workspaces (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    crashed INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    image TEXT NOT NULL,
    base TEXT NOT NULL,
    resources TEXT NOT NULL,
    policy TEXT NOT NULL,
    uid INTEGER UNIQUE,
    owner TEXT NOT NULL,
    throwaway_of TEXT,
    forked_from TEXT,
    runtime TEXT,
    boot_time_ms INTEGER
) STRICT;
CREATE TABLE forwards (
    workspace TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    guest INTEGER NOT NULL,
    host INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (workspace, guest)
) STRICT;
CREATE TABLE snapshots (
    id TEXT PRIMARY KEY,
    workspace TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    ready INTEGER NOT NULL,
    hidden INTEGER NOT NULL,
    crash_consistent INTEGER NOT NULL,
    UNIQUE (workspace, name)
) STRICT;
";

/// What version 2 adds: snapshots with memory, templates, machines that wait in a pool.
const VERSION_2: &str = "
ALTER TABLE snapshots ADD COLUMN memory INTEGER NOT NULL DEFAULT 0;
ALTER TABLE workspaces ADD COLUMN pooled INTEGER NOT NULL DEFAULT 0;
CREATE TABLE templates (
    id TEXT PRIMARY KEY,
    base TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL
) STRICT;
";

/// What version 3 adds: numbers that machines have to themselves. Without an owner: given back, at that time.
const VERSION_3: &str = "
CREATE TABLE leases (
    kind TEXT NOT NULL,
    number INTEGER NOT NULL,
    owner TEXT,
    released_at INTEGER,
    PRIMARY KEY (kind, number),
    UNIQUE (kind, owner)
) STRICT;
";

/// What turns the tables of each version into those of the next, beginning with none.
const STEPS: [&str; 3] = [VERSION_1, VERSION_2, VERSION_3];

/// Makes the tables of an empty database, or checks the version of one that has them.
pub(super) fn migrate(connection: &mut Connection, file: &str) -> Result<(), StoreError> {
    let failed = |source| StoreError::sql("prepare", file, source);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::Newer { file: file.to_owned(), found, known: SCHEMA_VERSION });
    }
    if found == 0 {
        let other: Option<String> = transaction
            .query_row("SELECT name FROM sqlite_schema LIMIT 1", [], |row| row.get(0))
            .optional()
            .map_err(failed)?;
        if let Some(table) = other {
            return Err(StoreError::NotOurs { file: file.to_owned(), table });
        }
    }
    if found < SCHEMA_VERSION {
        for step in STEPS.iter().skip(usize::try_from(found).unwrap_or(0)) {
            transaction.execute_batch(step).map_err(failed)?;
        }
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(failed)?;
    }
    if found == 0 {
        transaction
            .execute("INSERT INTO meta VALUES ('state_id', ?1)", [uuid::Uuid::new_v4().simple().to_string()])
            .map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}
