//! The database's tables and their version.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::StoreError;

/// Version of the tables below. A database of an older version is brought up to it, one of a newer is refused.
pub(super) const SCHEMA_VERSION: i64 = 4;

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

/// What version 4 adds: sessions, and who owns what. Times are in milliseconds since 1970.
///
/// A workspace has one owner because it has one row; it has none exactly when that row names none. A session that ends
/// leaves orphans, and a workspace that goes takes its row with it, both in the statement that ends it. What `owners`
/// repeats of a workspace's size never changes; it is there so that usage is one sum.
///
/// `inherited` marks guest memory that may hold an environment which an earlier owner had set: that of the machine, and
/// that of a snapshot.
const VERSION_4: &str = "
CREATE TABLE sessions (
    name TEXT PRIMARY KEY,
    called_at INTEGER NOT NULL
) STRICT;
CREATE TABLE owners (
    workspace TEXT PRIMARY KEY,
    operator INTEGER NOT NULL,
    session TEXT REFERENCES sessions (name) ON DELETE SET NULL,
    memory_mb INTEGER NOT NULL,
    disk_gb INTEGER NOT NULL,
    inherited INTEGER NOT NULL DEFAULT 0,
    CHECK (NOT (operator AND session IS NOT NULL))
) STRICT;
CREATE INDEX owners_by_session ON owners (session);
INSERT INTO owners (workspace, operator, memory_mb, disk_gb)
    SELECT id, 1,
        CASE WHEN json_valid(resources) THEN CAST(coalesce(resources ->> '$.memory_mb', 0) AS INTEGER) ELSE 0 END,
        CASE WHEN json_valid(resources) THEN CAST(coalesce(resources ->> '$.disk_gb', 0) AS INTEGER) ELSE 0 END
    FROM workspaces;
ALTER TABLE workspaces DROP COLUMN owner;
ALTER TABLE snapshots ADD COLUMN inherited INTEGER NOT NULL DEFAULT 0;
CREATE TRIGGER owner_goes_with_workspace AFTER DELETE ON workspaces
    BEGIN DELETE FROM owners WHERE workspace = OLD.id; END;
CREATE TABLE buckets (
    holder TEXT NOT NULL,
    class TEXT NOT NULL,
    full_at INTEGER NOT NULL,
    PRIMARY KEY (holder, class)
) STRICT;
";

/// What turns the tables of each version into those of the next, beginning with none.
const STEPS: [&str; 4] = [VERSION_1, VERSION_2, VERSION_3, VERSION_4];

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
