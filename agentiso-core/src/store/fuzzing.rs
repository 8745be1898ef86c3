//! Rows that are not what this store wrote.

use rusqlite::{Connection, params_from_iter, types::Value};

use super::{Store, schema, workspaces};

/// Reads bytes as the columns of a workspace's row, one a line, in the order of the table.
///
/// # Panics
/// A row was accepted that cannot be written and read again.
pub fn workspace_columns(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    workspaces::fuzzing::columns(&mut text.split('\n'));
}

/// Puts the same columns, whatever their types, into the real table and reads it as a host does that opens the state
/// folder.
///
/// # Panics
/// Not all rows are found that the table has.
pub fn workspace_record(bytes: &[u8]) {
    let Ok(mut connection) = Connection::open_in_memory() else { return };
    if schema::migrate(&mut connection, "memory").is_err() {
        return;
    }
    let text = String::from_utf8_lossy(bytes);
    let mut words = text.split('\n');
    let row: Vec<Value> =
        std::iter::from_fn(|| Some(value(words.next().unwrap_or_default()))).take(16).collect();
    let marks = vec!["?"; row.len()].join(",");
    let inserted =
        connection.execute(&format!("INSERT INTO workspaces VALUES ({marks})"), params_from_iter(row));
    let expected = usize::from(inserted.is_ok());
    let store = Store { connection: connection.into(), file: "memory".to_owned(), state_id: String::new() };
    if let Ok(all) = store.all() {
        assert_eq!(all.len(), expected, "rows are missing");
    }
    let _ = store.ids();
    let _ = store.by_id_prefix(words.next().unwrap_or("00000000"));
    let _ = store.unsettled_promotions();
}

/// A word as a value of the type that it looks like.
fn value(word: &str) -> Value {
    match word {
        "" => Value::Null,
        word => word.parse().map(Value::Integer).unwrap_or_else(|_| Value::Text(word.to_owned())),
    }
}
