//! Records of workspaces in one SQLite file.
//!
//! Write-ahead logging with `synchronous=NORMAL`: a killed process loses nothing that was committed. A power cut can
//! take back the last commits, never break the file; it ends every machine too, and what the records then say too
//! little or too much about is put right when the state folder is opened next.

mod leases;
mod promotion;
mod record;
mod schema;
mod sessions;
mod snapshots;
mod templates;
mod workspaces;

use std::{path::Path, sync::Mutex, time::Duration};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::file_lock::FileLock;
pub(crate) use promotion::Promotion;
pub(crate) use record::{Runtime, SnapshotRecord, TemplateRecord, WorkspaceRecord};
pub(crate) use sessions::{Ledger, Ownership};

/// How long a write waits for another process's, before it fails. Each takes milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);

/// The records of one state folder.
#[derive(Debug)]
pub(crate) struct Store {
    connection: Mutex<Connection>,
    file: String,
    state_id: String,
}

impl Store {
    /// Opens the records, or makes them.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let file = path.display().to_string();
        let failed = |source| StoreError::sql("open", &file, source);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(failed)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(failed)?;
        // Two that turn a new file to write-ahead logging at once get in each other's way, and SQLite then refuses one
        // without waiting: whoever makes the records does it alone.
        let mode: String =
            connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(failed)?;
        if mode == "wal" {
            schema::migrate(&mut connection, &file)?;
        } else {
            let mut lock = path.as_os_str().to_owned();
            lock.push(".lock");
            let lock = FileLock::acquire(Path::new(&lock))
                .map_err(|source| StoreError::Lock { file: file.clone(), source })?;
            connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
            schema::migrate(&mut connection, &file)?;
            lock.remove();
        }
        Self::ready(connection, file)
    }

    /// Records in this process's memory, for as long as it holds them.
    pub(crate) fn in_memory() -> Result<Self, StoreError> {
        let file = "memory".to_owned();
        let failed = |source| StoreError::sql("open", &file, source);
        let mut connection = Connection::open_in_memory().map_err(failed)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(failed)?;
        schema::migrate(&mut connection, &file)?;
        Self::ready(connection, file)
    }

    /// The records behind a connection whose tables are there.
    fn ready(connection: Connection, file: String) -> Result<Self, StoreError> {
        let state_id = connection
            .query_row("SELECT value FROM meta WHERE key = 'state_id'", [], |row| row.get(0))
            .map_err(|source| StoreError::sql("open", &file, source))?;
        Ok(Self { connection: Mutex::new(connection), file, state_id })
    }

    /// 32 hexadecimal digits that tell this state folder from every other.
    pub(crate) fn state_id(&self) -> &str {
        &self.state_id
    }

    /// Runs `work` in one transaction: all of it happens or none.
    fn write<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // A panic while the lock was held has rolled its transaction back: the connection is as good as before.
        let mut connection = self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|source| StoreError::sql(operation, &self.file, source))?;
        let result = work(&transaction)?;
        transaction.commit().map_err(|source| StoreError::sql(operation, &self.file, source))?;
        Ok(result)
    }

    /// Runs `work` on the connection, for reading.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let connection = self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        work(&connection)
    }

    fn failed(&self, operation: &'static str) -> impl Fn(rusqlite::Error) -> StoreError + '_ {
        move |source| StoreError::sql(operation, &self.file, source)
    }
}

/// Why records could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused.
    #[error("could not {operation} the records in {file}")]
    Sql {
        /// What was being done, as in "read".
        operation: &'static str,
        /// The database.
        file: String,
        /// What it said.
        #[source]
        source: rusqlite::Error,
    },
    /// The lock under which records are made could not be taken.
    #[error("could not lock the records in {file}")]
    Lock {
        /// The database.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A newer agentiso made it.
    #[error(
        "the records in {file} are of version {found}, this agentiso knows version {known}: use a newer agentiso"
    )]
    Newer {
        /// The database.
        file: String,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// It is a database of something else.
    #[error("{file} is not agentiso's: it has a table {table}")]
    NotOurs {
        /// The database.
        file: String,
        /// One of its tables.
        table: String,
    },
    /// A row cannot be understood. The other rows are not affected.
    #[error("the record of {what} in the database is damaged: {reason}")]
    Damaged {
        /// Which row.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The name is taken.
    #[error("a workspace named {name} exists already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The host port is promised to another workspace.
    #[error("host port {port} already leads to workspace {workspace}")]
    PortTaken {
        /// The port.
        port: u16,
        /// Whose it is.
        workspace: String,
    },
}

impl StoreError {
    fn sql(operation: &'static str, file: &str, source: rusqlite::Error) -> Self {
        Self::Sql { operation, file: file.to_owned(), source }
    }
}

#[cfg(test)]
mod tests;
