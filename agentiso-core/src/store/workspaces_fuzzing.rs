use super::Columns;

/// Takes the columns from lines; see [`crate::store::fuzzing::workspace_columns`].
pub(in crate::store) fn columns<'a>(lines: &mut impl Iterator<Item = &'a str>) {
    let mut next = || lines.next().unwrap_or_default().to_owned();
    let owner;
    let columns = Columns {
        id: next(),
        name: next(),
        state: next(),
        crashed: next().is_empty(),
        created_at: next().parse().unwrap_or(0),
        image: next(),
        base: next(),
        resources: next(),
        policy: next(),
        uid: next().parse().ok(),
        operator: {
            owner = next();
            owner == "operator"
        },
        session: Some(owner).filter(|text| !text.is_empty() && text != "operator"),
        inherited: false,
        throwaway_of: Some(next()).filter(|text| !text.is_empty()),
        forked_from: Some(next()).filter(|text| !text.is_empty()),
        runtime: Some(next()).filter(|text| !text.is_empty()),
        boot_time_ms: next().parse().ok(),
        pooled: next().is_empty(),
    };
    if let Ok(record) = columns.into_record() {
        let again = Columns::of(&record).and_then(Columns::into_record);
        assert!(again.as_ref().is_ok_and(|again| *again == record), "a record changes: {again:?}");
    }
}
