use rusqlite::{OptionalExtension, Row};
use uuid::Uuid;

use super::{Store, StoreError, TemplateRecord};
use crate::types::BaseId;

impl Store {
    /// Remembers a template that is complete, or that it was used.
    pub(crate) fn put_template(&self, record: &TemplateRecord) -> Result<(), StoreError> {
        let now = i64::try_from(record.used_at).unwrap_or(i64::MAX);
        self.write("add to", |transaction| {
            transaction
                .execute(
                    "INSERT INTO templates (id, base, created_at, used_at) VALUES (?1, ?2, ?3, ?3)
                     ON CONFLICT (id) DO UPDATE SET used_at = excluded.used_at",
                    (record.id.to_string(), record.base.to_string(), now),
                )
                .map_err(self.failed("add to"))?;
            Ok(())
        })
    }

    /// Forgets a template. Not there: no effect.
    pub(crate) fn remove_template(&self, id: Uuid) -> Result<(), StoreError> {
        self.write("remove from", |transaction| {
            transaction
                .execute("DELETE FROM templates WHERE id = ?1", [id.to_string()])
                .map_err(self.failed("remove from"))?;
            Ok(())
        })
    }

    /// One template.
    pub(crate) fn template(&self, id: Uuid) -> Result<Option<TemplateRecord>, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT id, base, used_at FROM templates WHERE id = ?1")
                .and_then(|mut statement| statement.query_row([id.to_string()], read_row).optional())
                .map_err(self.failed("read"))?
                .transpose()
        })
    }

    /// All templates, those used last first.
    pub(crate) fn templates(&self) -> Result<Vec<TemplateRecord>, StoreError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT id, base, used_at FROM templates ORDER BY used_at DESC, rowid DESC")
                .map_err(self.failed("read"))?;
            let rows = statement.query_map([], read_row).map_err(self.failed("read"))?;
            rows.map(|row| row.map_err(self.failed("read"))?).collect()
        })
    }
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<Result<TemplateRecord, StoreError>> {
    let (id, base): (String, String) = (row.get("id")?, row.get("base")?);
    let used_at: i64 = row.get("used_at")?;
    let damaged = |error: &dyn std::error::Error| StoreError::Damaged {
        what: format!("template {id}"),
        reason: error.to_string(),
    };
    Ok((|| {
        Ok(TemplateRecord {
            id: id.parse().map_err(|error: uuid::Error| damaged(&error))?,
            base: base.parse::<BaseId>().map_err(|error| damaged(&error))?,
            used_at: u64::try_from(used_at).unwrap_or(0),
        })
    })())
}
