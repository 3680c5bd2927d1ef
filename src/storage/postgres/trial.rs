//! Finds out whether the table `events` accepts rows: a trial insert, and the types of its columns.

use super::connect::{Connections, TxnOptions};
use super::read_query::ReadPool;
use super::store::copy_rows;
use super::{error, find};
use crate::event::{MILLIS_END, Timestamp};
use crate::storage::{EventPage, Filter, SortOrder, StoreError, trial};

/// The latest services. More than one, since a rule of the operator may refuse one of them.
const LATEST_SERVICES: &str = "\
    SELECT service FROM event_counts \
    WHERE count > 0 AND hour > (SELECT max(hour) FROM event_counts) - interval '1 day' \
    GROUP BY service ORDER BY max(hour) DESC LIMIT 8";

/// Returns a copy of the newest event of each of the latest services; an ordinary row if nothing is
/// stored.
pub(super) fn rows(pool: ReadPool<'_>, now: Timestamp) -> Result<Vec<Vec<u8>>, StoreError> {
    let services =
        pool.query("listing services", LATEST_SERVICES, &[], |row| row.get::<_, Option<String>>(0))?;
    let mut rows = Vec::with_capacity(services.len());
    for service in services {
        let filter =
            Filter { service, ..Filter::between(Timestamp::default(), Timestamp::from_millis(MILLIS_END)) };
        let page = EventPage { filter, order: SortOrder::Desc, limit: 1, after: None };
        rows.extend(find::page(pool, &page, usize::MAX)?.events.iter().map(trial::copy_of));
    }
    if rows.is_empty() {
        rows.push(trial::ordinary_row(now));
    }
    Ok(rows)
}

/// Inserts the rows one by one until the table accepts one, and rolls each back. Fails with the
/// first error when the table accepts none.
pub(super) fn insert(
    connections: &Connections,
    options: &TxnOptions,
    rows: &[Vec<u8>],
) -> Result<(), StoreError> {
    let to_error = |error| error::from_postgres("inserting a trial row", &error);
    connections.transaction(options, |client| {
        let mut refusal = None;
        for row in rows {
            client.batch_execute("SAVEPOINT trial").map_err(to_error)?;
            // Deferred constraints and triggers are checked too.
            let inserted = copy_rows(client, "events", &[row], 1)
                .and_then(|()| client.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").map_err(to_error));
            client.batch_execute("ROLLBACK TO SAVEPOINT trial").map_err(to_error)?;
            match inserted {
                Err(error) if error.sqlstate.as_deref() != Some("23505") => {
                    refusal.get_or_insert(error);
                }
                // A duplicate id is found after the checks of the row.
                Ok(()) | Err(_) => return Ok(()),
            }
        }
        refusal.map_or(Ok(()), Err)
    })
}

/// The types that rows are encoded for. A domain is a rule of the operator, not another type.
const ALTERED_COLUMN: &str = "\
    SELECT a.attname::text, t.typname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
    WHERE a.attrelid = 'events'::regclass AND t.typtype <> 'd' AND CASE a.attname \
        WHEN 'event_id' THEN t.typname <> 'uuid' \
        WHEN 'timestamp' THEN t.typname <> 'timestamptz' \
        WHEN 'ingested_at' THEN t.typname <> 'timestamptz' \
        WHEN 'id' THEN t.typname <> 'int8' \
        WHEN 'metadata' THEN t.typname <> 'jsonb' \
        WHEN 'service' THEN t.typcategory <> 'S' \
        WHEN 'message' THEN t.typcategory <> 'S' \
        ELSE false END LIMIT 1";

/// Explains the error of an insert. PostgreSQL reports data of another type than that of its column
/// like an invalid value, though no value would be valid.
pub(super) fn explain(pool: ReadPool<'_>, error: StoreError) -> StoreError {
    let is_invalid_value = error.sqlstate.as_deref().is_some_and(|code| code.starts_with("22"));
    if !is_invalid_value || error.outside_rows {
        return error;
    }
    let altered = pool.query("reading the columns of events", ALTERED_COLUMN, &[], |row| {
        format!("the column {} of events has the type {}", row.get::<_, &str>(0), row.get::<_, &str>(1))
    });
    match altered.map(|mut columns| columns.pop()) {
        Ok(None) => error,
        Ok(Some(altered)) => StoreError {
            // datatype_mismatch, as INSERT would report it.
            sqlstate: Some("42804".to_owned()),
            message: format!("{altered}, which the server does not write: {error}"),
            row: None,
            ..error
        },
        // The values cannot be judged now.
        Err(unreadable) => unreadable,
    }
}
