use std::{ops::RangeInclusive, time::Duration};

use rusqlite::OptionalExtension;

use super::{Store, StoreError};
use crate::leases::{LeaseError, LeaseKind, Leases};
use crate::types::WorkspaceId;

impl Leases for Store {
    fn take(
        &self,
        kind: LeaseKind,
        owner: WorkspaceId,
        range: RangeInclusive<u32>,
        cool_down: Duration,
    ) -> Result<u32, LeaseError> {
        let (first, last) = (i64::from(*range.start()), i64::from(*range.end()));
        let (kind, owner) = (kind.as_str(), owner.to_string());
        let now = uptime();
        let free_since = now.saturating_sub_unsigned(cool_down.as_secs());
        let found = self.write("take a number from", |transaction| {
            let failed = self.failed("take a number from");
            let number = |sql: &str, words: &[&dyn rusqlite::ToSql]| {
                let found: Option<Option<i64>> =
                    transaction.prepare_cached(sql)?.query_row(words, |row| row.get(0)).optional()?;
                Ok::<_, rusqlite::Error>(found.flatten())
            };
            let find = || {
                if let Some(held) = number(
                    "SELECT number FROM leases WHERE kind = ?1 AND owner = ?2 AND number BETWEEN ?3 AND ?4",
                    &[&kind, &owner, &first, &last],
                )? {
                    return Ok(Some(held));
                }
                let highest = number(
                    "SELECT max(number) FROM leases WHERE kind = ?1 AND number BETWEEN ?2 AND ?3",
                    &[&kind, &first, &last],
                )?;
                let free = match highest.map_or(first, |highest| highest.saturating_add(1)) {
                    fresh if fresh <= last => Some(fresh),
                    _ => number(
                        "SELECT number FROM leases WHERE kind = ?1 AND number BETWEEN ?2 AND ?3
                         AND owner IS NULL AND (released_at <= ?4 OR released_at > ?5)
                         ORDER BY released_at, number LIMIT 1",
                        &[&kind, &first, &last, &free_since, &now],
                    )?,
                };
                if let Some(free) = free {
                    // A number that it has outside of the range is of no use to it any more.
                    release(transaction, kind, &owner)?;
                    transaction.execute(
                        "INSERT INTO leases (kind, number, owner) VALUES (?1, ?2, ?3)
                         ON CONFLICT (kind, number) DO UPDATE SET owner = excluded.owner, released_at = NULL",
                        (kind, free, &owner),
                    )?;
                }
                Ok(free)
            };
            find().map_err(failed)
        })?;
        // Within the range, and so a u32.
        found.and_then(|number| u32::try_from(number).ok()).ok_or(LeaseError::Exhausted {
            count: range.end().saturating_sub(*range.start()).saturating_add(1),
            cool_down,
        })
    }

    fn give_back(&self, kind: LeaseKind, owner: WorkspaceId) -> Result<(), LeaseError> {
        Ok(self.write("give a number back to", |transaction| {
            release(transaction, kind.as_str(), &owner.to_string())
                .map_err(self.failed("give a number back to"))
        })?)
    }

    fn held(&self, kind: LeaseKind) -> Result<Vec<(u32, WorkspaceId)>, LeaseError> {
        let rows: Vec<(u32, String)> = self.read(|connection| {
            let mut statement = connection
                .prepare_cached(
                    "SELECT number, owner FROM leases WHERE kind = ?1 AND owner IS NOT NULL ORDER BY number",
                )
                .map_err(self.failed("read"))?;
            let rows = statement
                .query_map([kind.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
                .map_err(self.failed("read"))?;
            rows.collect::<Result<_, _>>().map_err(self.failed("read"))
        })?;
        rows.into_iter()
            .map(|(number, owner)| {
                let owner: WorkspaceId = owner.parse().map_err(|_| StoreError::Damaged {
                    what: format!("the holder of {} {number}", kind.as_str()),
                    reason: format!("{owner:?} is no id"),
                })?;
                Ok((number, owner))
            })
            .collect()
    }
}

fn release(transaction: &rusqlite::Transaction<'_>, kind: &str, owner: &str) -> rusqlite::Result<()> {
    transaction.execute(
        "UPDATE leases SET owner = NULL, released_at = ?3 WHERE kind = ?1 AND owner = ?2",
        (kind, owner, uptime()),
    )?;
    Ok(())
}

/// Seconds since the host was started. The time of day may be set while a number cools down: it would then be used too
/// early, or not for days. What was released later than now was so before the host was started anew, and nothing of that
/// time runs any more.
fn uptime() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec
}

impl From<StoreError> for LeaseError {
    fn from(error: StoreError) -> Self {
        Self::Records(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CID: LeaseKind = LeaseKind::VsockCid;
    const NO_WAIT: Duration = Duration::ZERO;

    fn scratch() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("agentiso.db")).unwrap();
        (folder, store)
    }

    #[test]
    fn number_is_one_machines_alone_and_the_same_when_asked_for_again() {
        let (folder, store) = scratch();
        let (a, b) = (WorkspaceId::random(), WorkspaceId::random());

        let first = store.take(CID, a, 3..=9, NO_WAIT).unwrap();
        let second = store.take(CID, b, 3..=9, NO_WAIT).unwrap();

        assert_ne!(first, second);
        let again = Store::open(&folder.path().join("agentiso.db")).unwrap();
        assert_eq!(again.take(CID, a, 3..=9, NO_WAIT).unwrap(), first);
        assert_eq!(again.take(LeaseKind::Address, b, 3..=9, NO_WAIT).unwrap(), 3, "another kind");
        assert_eq!(again.held(CID).unwrap(), [(first, a), (second, b)]);
    }

    #[test]
    fn number_that_was_given_back_comes_last_and_not_before_it_has_cooled_down() {
        let (_folder, store) = scratch();
        let hour = Duration::from_secs(3600);
        let gone = WorkspaceId::random();
        let first = store.take(CID, gone, 3..=4, hour).unwrap();
        store.give_back(CID, gone).unwrap();

        let second = store.take(CID, WorkspaceId::random(), 3..=4, hour).unwrap();
        assert_ne!(first, second, "a fresh one is left");
        let none = store.take(CID, WorkspaceId::random(), 3..=4, hour);
        assert!(matches!(none, Err(LeaseError::Exhausted { count: 2, .. })), "{none:?}");
        assert_eq!(store.take(CID, WorkspaceId::random(), 3..=4, NO_WAIT).unwrap(), first);
    }

    fn released_at(folder: &tempfile::TempDir) -> i64 {
        let connection = rusqlite::Connection::open(folder.path().join("agentiso.db")).unwrap();
        connection.query_row("SELECT released_at FROM leases", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn time_of_day_has_no_part_in_cooling_down() {
        let (folder, store) = scratch();
        let owner = WorkspaceId::random();
        store.take(CID, owner, 3..=3, NO_WAIT).unwrap();
        let begun = uptime();

        store.give_back(CID, owner).unwrap();

        let released = released_at(&folder);
        assert!((begun..=uptime()).contains(&released), "{released} is no time since the host was started");
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(released.unsigned_abs() < since_1970 / 2, "{released} is the time of day");
    }

    #[test]
    fn number_that_was_released_before_the_host_was_started_anew_is_free() {
        let (folder, store) = scratch();
        let owner = WorkspaceId::random();
        store.take(CID, owner, 3..=3, NO_WAIT).unwrap();
        store.give_back(CID, owner).unwrap();
        let connection = rusqlite::Connection::open(folder.path().join("agentiso.db")).unwrap();
        let day = 24 * 60 * 60;
        connection.execute("UPDATE leases SET released_at = ?1", [uptime() + day]).unwrap();

        let again = store.take(CID, WorkspaceId::random(), 3..=3, Duration::from_secs(60));

        assert_eq!(again.unwrap(), 3);
    }

    #[test]
    fn number_outside_of_the_range_that_is_asked_for_is_given_back() {
        let (_folder, store) = scratch();
        let owner = WorkspaceId::random();
        store.take(CID, owner, 3..=9, NO_WAIT).unwrap();

        assert_eq!(store.take(CID, owner, 20..=29, NO_WAIT).unwrap(), 20);
        assert_eq!(store.held(CID).unwrap(), [(20, owner)]);
    }

    #[test]
    fn many_processes_at_once_get_different_numbers() {
        let (folder, _store) = scratch();
        let path = folder.path().join("agentiso.db");
        let takers: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || {
                    let store = Store::open(&path).unwrap();
                    (0..10)
                        .map(|_| store.take(CID, WorkspaceId::random(), 3..=1000, NO_WAIT).unwrap())
                        .collect::<Vec<_>>()
                })
            })
            .collect();

        let mut numbers: Vec<u32> = takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 80);
    }
}
