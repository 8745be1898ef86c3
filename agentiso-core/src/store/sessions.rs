use rusqlite::{OptionalExtension, Transaction};

use super::{Store, StoreError, WorkspaceRecord};
use crate::session::{AuthError, Claimant, SESSION_LIFETIME, SessionUsage};
use crate::types::{Owner, SessionId, WorkspaceId, WorkspaceName};

impl Store {
    /// Runs `work` on the books of sessions, in one transaction. Sessions whose time is over at `now` (in milliseconds
    /// since 1970) have ended when it begins, and the session it is for has made a call, whatever comes of it; `None` if
    /// it is for no session, or the call does not count.
    ///
    /// # Errors
    /// [`AuthError::UnknownSession`]; those of `work`, which then has changed nothing.
    pub(crate) fn with_ledger<T>(
        &self,
        now: i64,
        caller: Option<&SessionId>,
        work: impl FnOnce(&Ledger<'_>) -> Result<T, AuthError>,
    ) -> Result<T, AuthError> {
        let failed = |source| StoreError::sql("update", &self.file, source);
        self.write("update", |transaction| {
            let ledger = Ledger { transaction, file: &self.file, now };
            ledger.end_old_sessions()?;
            match caller.map(|session| ledger.called(session)) {
                Some(Err(AuthError::Records(error))) => return Err(error),
                Some(Err(error)) => return Ok(Err(error)),
                Some(Ok(())) | None => {}
            }
            transaction.execute_batch("SAVEPOINT work").map_err(failed)?;
            let outcome = work(&ledger);
            if outcome.is_err() {
                transaction.execute_batch("ROLLBACK TO work").map_err(failed)?;
            }
            Ok(outcome)
        })?
    }

    /// Ends the sessions whose time is over.
    pub(crate) fn end_old_sessions(&self, now: i64) -> Result<(), StoreError> {
        self.write("update", |transaction| Ledger { transaction, file: &self.file, now }.end_old_sessions())
    }

    /// Adds workspaces, all or none, for somebody who may have them: the quota is checked here. The names are what
    /// `naming` makes of the number of the try, each until one is free.
    ///
    /// # Errors
    /// [`AuthError::QuotaExceeded`], [`AuthError::UnknownSession`], [`StoreError::NameTaken`], all decided in the same
    /// transaction.
    pub(crate) fn insert_claimed(
        &self,
        drafts: Vec<WorkspaceRecord>,
        prefix: Option<&WorkspaceName>,
        claimant: &Claimant,
        private_uid: bool,
    ) -> Result<Vec<WorkspaceRecord>, AuthError> {
        self.claim(claimant, &drafts, |transaction| {
            let mut records = Vec::with_capacity(drafts.len());
            let mut number = 0;
            for draft in &drafts {
                let mut record = draft.clone();
                record.owner = claimant.owner();
                if let Some(prefix) = prefix {
                    (record.name, number) = self.free_number(transaction, prefix, number)?;
                }
                records.push(self.insert_row(transaction, record, private_uid)?);
            }
            Ok(records)
        })
    }

    /// The first name PREFIX-N that is free, with an N above this one.
    fn free_number(
        &self,
        transaction: &Transaction<'_>,
        prefix: &WorkspaceName,
        after: u32,
    ) -> Result<(WorkspaceName, u32), StoreError> {
        let mut number = after;
        loop {
            number = number.saturating_add(1);
            let taken = || StoreError::NameTaken { name: format!("{prefix}-{number}") };
            let name = WorkspaceName::new(format!("{prefix}-{number}")).map_err(|_| taken())?;
            let is_taken: bool = transaction
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM workspaces WHERE name = ?1)")
                .and_then(|mut statement| statement.query_row([name.as_str()], |row| row.get(0)))
                .map_err(self.failed("read"))?;
            match is_taken {
                false => return Ok((name, number)),
                true if number == u32::MAX => return Err(taken()),
                true => {}
            }
        }
    }

    /// Makes a machine that waited in a pool a workspace like any other, for somebody who may have it.
    ///
    /// # Errors
    /// As [`Store::insert_claimed`]; nothing is changed then.
    pub(crate) fn take_from_pool(
        &self,
        record: &WorkspaceRecord,
        claimant: &Claimant,
    ) -> Result<(), AuthError> {
        self.claim(claimant, std::slice::from_ref(record), |transaction| {
            self.take_row_from_pool(transaction, record)
        })
    }

    /// Whether somebody may have these workspaces in addition, as things are now.
    ///
    /// # Errors
    /// [`AuthError::QuotaExceeded`], [`AuthError::UnknownSession`].
    pub(crate) fn check_claim(&self, claimant: &Claimant, more: SessionUsage) -> Result<(), AuthError> {
        let Claimant::Session { id, quota, clock } = claimant else { return Ok(()) };
        self.with_ledger(Claimant::now(&**clock), Some(id), |ledger| quota.check(ledger.usage(id)?, more))
    }

    /// Runs `work` in a transaction in which somebody may have these workspaces.
    fn claim<T>(
        &self,
        claimant: &Claimant,
        wanted: &[WorkspaceRecord],
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, AuthError> {
        match claimant {
            Claimant::Operator => Ok(self.write("add to", work)?),
            Claimant::Session { id, quota, clock } => {
                self.with_ledger(Claimant::now(&**clock), Some(id), |ledger| {
                    let more = wanted.iter().fold(SessionUsage::default(), |sum, record| SessionUsage {
                        workspace_count: sum.workspace_count + 1,
                        memory_mb: sum.memory_mb + u64::from(record.resources.memory_mb.get()),
                        disk_gb: sum.disk_gb + u64::from(record.resources.disk_gb.get()),
                    });
                    quota.check(ledger.usage(id)?, more)?;
                    Ok(work(ledger.transaction)?)
                })
            }
        }
    }

    /// Gives a workspace to whoever owns another one.
    pub(super) fn give_to_owner_of(
        &self,
        transaction: &Transaction<'_>,
        workspace: WorkspaceId,
        other: WorkspaceId,
    ) -> Result<(), StoreError> {
        // To another session it comes as by adoption: with what its memory holds of an earlier owner.
        let (workspace, other) = (workspace.to_string(), other.to_string());
        let changes_hands = "workspace = ?1 AND EXISTS (SELECT 1 FROM owners mine, owners theirs
             WHERE mine.workspace = ?1 AND theirs.workspace = ?2
                 AND theirs.session IS NOT NULL AND mine.session IS NOT theirs.session)";
        for sql in [
            format!("UPDATE snapshots SET inherited = 1 WHERE {changes_hands}"),
            format!("UPDATE owners SET inherited = 1 WHERE {changes_hands}"),
            "UPDATE owners SET (operator, session) = (SELECT operator, session FROM owners WHERE workspace = ?2)
             WHERE workspace = ?1"
                .to_owned(),
        ] {
            transaction.execute(&sql, (&workspace, &other)).map_err(self.failed("update"))?;
        }
        Ok(())
    }

    /// Gives a workspace that is no session's at `now`, in milliseconds since 1970, to the operator, or to nobody.
    ///
    /// # Errors
    /// [`AuthError::UnknownWorkspace`], [`AuthError::SessionOwned`].
    pub(crate) fn give_orphan(&self, now: i64, workspace: WorkspaceId, to: &Owner) -> Result<(), AuthError> {
        self.with_ledger(now, None, |ledger| {
            let Some(Ownership { owner, .. }) = ledger.ownership(workspace)? else {
                return Err(AuthError::UnknownWorkspace { workspace });
            };
            match owner {
                Owner::Session(session) => Err(AuthError::SessionOwned { workspace, session }),
                owner if owner == *to => Ok(()),
                _ => ledger.give(workspace, to),
            }
        })
    }

    /// All workspaces that somebody or nobody owns, in the order of their ids.
    #[cfg(test)]
    pub(crate) fn owned_workspaces(&self) -> Result<Vec<WorkspaceId>, StoreError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT workspace FROM owners ORDER BY workspace")
                .map_err(self.failed("read"))?;
            let ids = statement.query_map([], |row| row.get::<_, String>(0)).map_err(self.failed("read"))?;
            let ids = ids.collect::<rusqlite::Result<Vec<_>>>().map_err(self.failed("read"))?;
            Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
        })
    }

    /// Notes that the memory of a workspace's machine holds nothing that an earlier owner had set.
    pub(crate) fn set_environment_cleared(&self, workspace: WorkspaceId) -> Result<(), StoreError> {
        self.write("update", |transaction| {
            transaction
                .execute("UPDATE owners SET inherited = 0 WHERE workspace = ?1", [workspace.to_string()])
                .map_err(self.failed("update"))?;
            Ok(())
        })
    }
}

/// Whose a workspace is, and how much of a quota it takes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub(crate) owner: Owner,
    pub(crate) usage: SessionUsage,
}

/// The books of sessions, in the middle of a transaction.
#[derive(Debug)]
pub(crate) struct Ledger<'a> {
    transaction: &'a Transaction<'a>,
    file: &'a str,
    /// Milliseconds since 1970.
    now: i64,
}

impl Ledger<'_> {
    fn failed(&self, source: rusqlite::Error) -> StoreError {
        StoreError::sql("use", self.file, source)
    }

    fn execute(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<usize, StoreError> {
        let executed =
            self.transaction.prepare_cached(sql).and_then(|mut statement| statement.execute(parameters));
        executed.map_err(|source| self.failed(source))
    }

    fn row<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        let found = self
            .transaction
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(parameters, read).optional());
        found.map_err(|source| self.failed(source))
    }

    /// Ends sessions; their workspaces become orphans in the same statement.
    fn end_old_sessions(&self) -> Result<(), StoreError> {
        let lifetime = i64::try_from(SESSION_LIFETIME.as_millis()).unwrap_or(i64::MAX);
        self.execute("DELETE FROM sessions WHERE called_at <= ?1", [self.now.saturating_sub(lifetime)])?;
        Ok(())
    }

    /// Begins a session, or notes that it has made a call.
    pub(crate) fn register(&self, session: &SessionId) -> Result<(), StoreError> {
        self.execute(
            "INSERT INTO sessions (name, called_at) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET called_at = excluded.called_at",
            (session.as_str(), self.now),
        )?;
        Ok(())
    }

    /// Notes that a session has made a call.
    fn called(&self, session: &SessionId) -> Result<(), AuthError> {
        let known =
            self.execute("UPDATE sessions SET called_at = ?2 WHERE name = ?1", (session.as_str(), self.now))?;
        match known {
            0 => Err(AuthError::UnknownSession { session: session.clone() }),
            _ => Ok(()),
        }
    }

    /// How long a session has made no call, in milliseconds.
    pub(crate) fn idle(&self, session: &SessionId) -> Result<i64, AuthError> {
        let called_at: Option<i64> =
            self.row("SELECT called_at FROM sessions WHERE name = ?1", [session.as_str()], |row| row.get(0))?;
        match called_at {
            // A clock that was set back makes nobody idle.
            Some(called_at) => Ok(self.now.saturating_sub(called_at).max(0)),
            None => Err(AuthError::UnknownSession { session: session.clone() }),
        }
    }

    /// What a session owns, as a sum.
    pub(crate) fn usage(&self, session: &SessionId) -> Result<SessionUsage, AuthError> {
        let sum = self.row(
            "SELECT count(*), coalesce(sum(memory_mb), 0), coalesce(sum(disk_gb), 0) FROM owners WHERE session = ?1",
            [session.as_str()],
            |row| read_usage(row, 0),
        )?;
        Ok(sum.unwrap_or_default())
    }

    /// Whose a workspace is; none if there is no such workspace.
    pub(crate) fn ownership(&self, workspace: WorkspaceId) -> Result<Option<Ownership>, AuthError> {
        let row = self.row(
            "SELECT operator, session, 1, memory_mb, disk_gb FROM owners WHERE workspace = ?1",
            [workspace.to_string()],
            |row| Ok((row.get::<_, bool>(0)?, row.get::<_, Option<String>>(1)?, read_usage(row, 2)?)),
        )?;
        let Some((operator, session, usage)) = row else { return Ok(None) };
        let owner = match (operator, session) {
            (_, Some(session)) => Owner::Session(SessionId::new(session)?),
            (true, None) => Owner::Operator,
            (false, None) => Owner::Nobody,
        };
        Ok(Some(Ownership { owner, usage }))
    }

    /// Adds a workspace that no record knows, as an orphan.
    pub(crate) fn add_orphan(&self, workspace: WorkspaceId, usage: SessionUsage) -> Result<(), AuthError> {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.execute(
            "INSERT INTO owners (workspace, operator, memory_mb, disk_gb) VALUES (?1, 0, ?2, ?3)",
            (workspace.to_string(), number(usage.memory_mb), number(usage.disk_gb)),
        )?;
        Ok(())
    }

    /// Gives a workspace to somebody. If that is a session, whoever uses the machine or a snapshot's memory next has to
    /// remove first what an earlier owner had put in its environment.
    pub(crate) fn give(&self, workspace: WorkspaceId, to: &Owner) -> Result<(), AuthError> {
        let workspace = workspace.to_string();
        let session = match to {
            Owner::Session(session) => Some(session.as_str()),
            Owner::Operator | Owner::Nobody => None,
        };
        self.execute(
            "UPDATE owners SET operator = ?2, session = ?3, inherited = inherited OR ?3 IS NOT NULL
             WHERE workspace = ?1",
            (&workspace, *to == Owner::Operator, session),
        )?;
        if session.is_some() {
            self.execute("UPDATE snapshots SET inherited = 1 WHERE workspace = ?1", [&workspace])?;
        }
        Ok(())
    }

    /// Forgets a session's workspace that no record knows.
    pub(crate) fn forget(&self, workspace: WorkspaceId, session: &SessionId) -> Result<(), AuthError> {
        self.execute(
            "DELETE FROM owners WHERE workspace = ?1 AND session = ?2
                 AND NOT EXISTS (SELECT 1 FROM workspaces WHERE id = ?1)",
            (workspace.to_string(), session.as_str()),
        )?;
        Ok(())
    }

    /// The workspaces of nobody, in order of their creation.
    pub(crate) fn orphans(&self) -> Result<Vec<WorkspaceId>, AuthError> {
        let mut statement = self
            .transaction
            .prepare_cached(
                "SELECT id FROM workspaces JOIN owners ON workspace = id
                 WHERE session IS NULL AND NOT operator AND NOT pooled AND state <> 'destroying'
                 ORDER BY created_at, workspaces.rowid",
            )
            .map_err(|source| self.failed(source))?;
        let ids = statement
            .query_map([], |row| row.get::<_, String>(0))
            .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
            .map_err(|source| self.failed(source))?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// When a bucket is full again, in milliseconds since 1970.
    pub(crate) fn bucket(&self, holder: &str, class: &str) -> Result<i64, AuthError> {
        let full_at = self.row(
            "SELECT full_at FROM buckets WHERE holder = ?1 AND class = ?2",
            (holder, class),
            |row| row.get(0),
        )?;
        Ok(full_at.unwrap_or_default())
    }

    /// Notes when a bucket is full again, and forgets those that are: a full one is like none.
    pub(crate) fn set_bucket(&self, holder: &str, class: &str, full_at: i64) -> Result<(), AuthError> {
        self.execute("DELETE FROM buckets WHERE full_at <= ?1", [self.now])?;
        self.execute("INSERT OR REPLACE INTO buckets VALUES (?1, ?2, ?3)", (holder, class, full_at))?;
        Ok(())
    }

    /// Milliseconds since 1970.
    pub(crate) fn now(&self) -> i64 {
        self.now
    }
}

/// A count, memory and disk, in columns that begin here.
fn read_usage(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<SessionUsage> {
    let number = |column| row.get::<_, i64>(column).map(|number| u64::try_from(number).unwrap_or_default());
    Ok(SessionUsage {
        workspace_count: number(first)?,
        memory_mb: number(first + 1)?,
        disk_gb: number(first + 2)?,
    })
}
