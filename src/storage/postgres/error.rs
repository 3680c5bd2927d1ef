//! Conversion of driver errors to `StoreError`. It does not classify errors; callers do.

use postgres::error::{DbError, Severity, SqlState};

use crate::storage::StoreError;

/// Returns true for an error response after which the connection remains usable.
pub(super) fn leaves_connection_usable(error: &postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db_error| {
        !matches!(db_error.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
    })
}

pub(super) fn from_postgres(operation: &str, error: &postgres::Error) -> StoreError {
    match error.as_db_error() {
        Some(db_error) => from_db_error(operation, db_error),
        None => StoreError {
            timed_out: is_io_timeout(error),
            ..StoreError::client_side(format!("{operation}: {}", error_chain(error)))
        },
    }
}

/// Returns true when the I/O timeout of the socket caused the error.
fn is_io_timeout(error: &postgres::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(inner) = cause {
        if inner
            .downcast_ref::<std::io::Error>()
            .is_some_and(|inner| inner.kind() == std::io::ErrorKind::TimedOut)
        {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// Converts the error of a statement that inserts no rows of events.
pub(super) fn outside_rows(operation: &str, error: &postgres::Error) -> StoreError {
    StoreError { outside_rows: true, ..from_postgres(operation, error) }
}

/// Converts the error of a COMMIT. The rows may be stored unless the database reports a rollback. A
/// lost connection and an error of a pooler or of a terminating server (classes 08, 57, 58, XX)
/// leave the batch in doubt. Deferred constraints of any table are checked here.
pub(super) fn from_commit(error: &postgres::Error) -> StoreError {
    let db_error = error.as_db_error();
    let mut error = from_postgres("COMMIT", error);
    error.in_doubt = match &error.sqlstate {
        None => true,
        Some(code) => ["08", "57", "58", "XX"].iter().any(|class| code.starts_with(class)),
    };
    let table = db_error.and_then(DbError::table);
    error.outside_rows = matches!(table, Some("event_counts" | "event_minutes" | "dead_events"));
    error
}

/// Converts the error of a write to a COPY stream, which wraps the driver's error in an I/O error.
pub(super) fn from_copy_io(operation: &str, error: &std::io::Error) -> StoreError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<postgres::Error>()) {
        Some(inner) => from_postgres(operation, inner),
        None => StoreError {
            timed_out: error.kind() == std::io::ErrorKind::TimedOut,
            ..StoreError::client_side(format!("{operation}: {error}"))
        },
    }
}

/// The classes of errors that no row causes.
const WITHOUT_ROW: &[&str] = &["08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58"];

fn from_db_error(operation: &str, db_error: &DbError) -> StoreError {
    let code = db_error.code();
    let mut message =
        format!("{operation}: {}: {} ({})", db_error.severity(), db_error.message(), code.code());
    // The detail of an error that a row may have caused quotes the event, which must not be logged.
    let is_without_row = WITHOUT_ROW.iter().any(|class| code.code().starts_with(class));
    if let Some(detail) = db_error.detail().filter(|_| is_without_row) {
        message.push_str("; ");
        message.push_str(detail);
    }
    StoreError {
        sqlstate: Some(sqlstate(db_error)),
        message,
        row: db_error.where_().and_then(copy_row),
        constraint: constraint(db_error).map(str::to_owned),
        column: db_error.column().map(str::to_owned).or_else(|| db_error.where_().and_then(copy_column)),
        outside_rows: false,
        timed_out: db_error.code() == &SqlState::QUERY_CANCELED,
        in_doubt: false,
    }
}

/// Returns the SQLSTATE, with one exception: when a row is routed to the default partition while
/// its own partition is being attached, PostgreSQL reports 23514 without a constraint name. The row
/// is valid and a retry finds the partition, so this returns 40001.
fn sqlstate(db_error: &DbError) -> String {
    let is_attach_race = db_error.code() == &SqlState::CHECK_VIOLATION && constraint(db_error).is_none();
    if is_attach_race {
        SqlState::T_R_SERIALIZATION_FAILURE.code().to_owned()
    } else {
        db_error.code().code().to_owned()
    }
}

/// Returns the name of the violated constraint. Citus forwards a worker's check violation without
/// the field for the name, so the fallback parses the English message.
fn constraint(db_error: &DbError) -> Option<&str> {
    db_error.constraint().or_else(|| check_constraint_name(db_error.message()))
}

fn check_constraint_name(message: &str) -> Option<&str> {
    let (_before, name) = message.split_once("check constraint \"")?;
    name.strip_suffix('"')
}

/// Parses the row, counted from 0, from `COPY events, line 3, column metadata`. `lc_messages`
/// translates the words, so the parser relies on their order only: the context of COPY is the last
/// line, and the line number is the first number after the table name and a comma.
fn copy_row(context: &str) -> Option<usize> {
    let (_table, rest) = context.lines().last()?.split_once([',', '、', '，'])?;
    let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse::<usize>().ok()?.checked_sub(1)
}

fn copy_column(context: &str) -> Option<String> {
    let last = context.lines().last()?;
    let (_before, column) = last.split_once("column ")?;
    Some(column.split([':', ',', ' ']).next()?.to_owned())
}

/// Formats an error with its causes. Omits a cause whose text is already included.
pub(super) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(context: &str, row: Option<usize>) {
        assert_eq!(copy_row(context), row, "{context}");
    }

    #[test]
    fn copy_row_parses_the_context_in_any_language() {
        check("COPY events, line 3, column metadata", Some(2));
        check("COPY events, line 5000", Some(4999));
        check("COPY events, Zeile 17, Spalte metadata", Some(16));
        check("テーブル eventsのCOPY、行12、列metadata", Some(11));
        check("JSON data, line 1: {\"a\":...\nCOPY events_stage, line 42, column metadata", Some(41));
    }

    #[test]
    fn copy_row_without_a_row_number_returns_none() {
        for context in
            ["", "COPY events", "COPY events, line", "SQL statement \"SELECT 1\"", "COPY events, line 0"]
        {
            check(context, None);
        }
        check("COPY events, line 99999999999999999999999", None);
    }

    #[test]
    fn check_constraint_name_ignores_partition_constraints() {
        let check = |message: &str, name| assert_eq!(check_constraint_name(message), name, "{message}");
        let new_row = "new row for relation \"events_20251231_102027\" violates";
        check(&format!("{new_row} check constraint \"no_poison\""), Some("no_poison"));
        check(&format!("{new_row} partition constraint"), None);
        check("no partition of relation \"events_102009\" found for row", None);
        check("check constraint \"", None);
    }

    #[test]
    fn copy_column_parses_the_english_context() {
        assert_eq!(copy_column("COPY events, line 3, column metadata").as_deref(), Some("metadata"));
        assert_eq!(copy_column("COPY events, line 3"), None);
    }
}
