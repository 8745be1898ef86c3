use rusqlite::{OptionalExtension, Transaction};

use super::{Store, StoreError};
use crate::types::{WorkspaceId, WorkspaceName};
use crate::workspace::{WorkspaceState, old_names};

/// Who takes whose place.
#[derive(Clone, Debug)]
pub(crate) struct Promotion {
    pub(crate) child: WorkspaceId,
    pub(crate) parent: WorkspaceId,
    /// Those that are given up, the parent perhaps among them.
    pub(crate) dropped: Vec<WorkspaceId>,
}

impl Store {
    /// Gives a workspace the name, the forwards, the owner and the lifetime of another one, which gets a free name made
    /// of its old one; and notes that others are to be destroyed. All of it or nothing. The caller holds the locks of
    /// all of them.
    ///
    /// # Errors
    /// One of the two is gone; both have a forward to the same port. Nothing is changed then.
    pub(crate) fn promote(&self, promotion: &Promotion) -> Result<(), StoreError> {
        self.write("update", |transaction| {
            let (child, parent) = (promotion.child.to_string(), promotion.parent.to_string());
            let row: Option<(String, Option<String>)> = transaction
                .query_row("SELECT name, throwaway_of FROM workspaces WHERE id = ?1", [&parent], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()
                .map_err(self.failed("read"))?;
            let Some((name, throwaway_of)) = row else {
                return Err(damaged(&parent, "it is gone"));
            };
            let taken_name =
                WorkspaceName::new(name.clone()).map_err(|error| damaged(&name, &error.to_string()))?;
            let old_name = free_name(transaction, &taken_name)
                .map_err(self.failed("read"))?
                .ok_or_else(|| damaged(&name, "no name made of it is free"))?;
            // One after the other: no name may be there twice between two statements either.
            transaction
                .execute("UPDATE workspaces SET name = ?1 WHERE id = ?2", (old_name.as_str(), &parent))
                .map_err(self.failed("update"))?;
            let changed = transaction
                .execute(
                    "UPDATE workspaces SET name = ?1, throwaway_of = ?2 WHERE id = ?3",
                    (&name, &throwaway_of, &child),
                )
                .map_err(self.failed("update"))?;
            if changed != 1 {
                return Err(damaged(&child, "it is gone"));
            }
            self.give_to_owner_of(transaction, promotion.child, promotion.parent)?;
            transaction
                .execute("UPDATE forwards SET workspace = ?1 WHERE workspace = ?2", (&child, &parent))
                .map_err(self.failed("update"))?;
            transaction
                .execute("INSERT OR REPLACE INTO meta VALUES (?1, '')", [due_key(promotion.child)])
                .map_err(self.failed("update"))?;
            for id in &promotion.dropped {
                transaction
                    .execute(
                        "UPDATE workspaces SET state = ?1 WHERE id = ?2",
                        (WorkspaceState::Destroying.to_string(), id.to_string()),
                    )
                    .map_err(self.failed("update"))?;
            }
            Ok(())
        })
    }
}

impl Store {
    /// The workspaces that were promoted and may not have their new forwards and host name in force yet.
    pub(crate) fn unsettled_promotions(&self) -> Result<Vec<WorkspaceId>, StoreError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached(
                    "SELECT substr(key, length(?1) + 1) FROM meta WHERE substr(key, 1, length(?1)) = ?1",
                )
                .map_err(self.failed("read"))?;
            let ids =
                statement.query_map([DUE], |row| row.get::<_, String>(0)).map_err(self.failed("read"))?;
            let ids = ids.collect::<rusqlite::Result<Vec<_>>>().map_err(self.failed("read"))?;
            // What is no id was not written here.
            Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
        })
    }

    /// Notes that nothing of a promotion is left to be done. Noted already: no effect.
    pub(crate) fn promotion_settled(&self, id: WorkspaceId) -> Result<(), StoreError> {
        self.write("update", |transaction| {
            transaction
                .execute("DELETE FROM meta WHERE key = ?1", [due_key(id)])
                .map_err(self.failed("update"))?;
            Ok(())
        })
    }
}

/// What the key of a promoted workspace begins with.
const DUE: &str = "promoted:";

fn due_key(id: WorkspaceId) -> String {
    format!("{DUE}{id}")
}

fn free_name(transaction: &Transaction<'_>, name: &WorkspaceName) -> rusqlite::Result<Option<WorkspaceName>> {
    for candidate in old_names(name) {
        let taken: bool = transaction.query_row(
            "SELECT EXISTS (SELECT 1 FROM workspaces WHERE name = ?1)",
            [candidate.as_str()],
            |row| row.get(0),
        )?;
        if !taken {
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}

fn damaged(what: &str, reason: &str) -> StoreError {
    StoreError::Damaged { what: format!("workspace {what}"), reason: reason.to_owned() }
}
