//! What PostgreSQL said, as a `StoreError`. Decides nothing: what an error means is its reader's business.

use postgres::error::{DbError, Severity, SqlState};

use crate::storage::StoreError;

/// The database answered, and the connection is still good for another transaction.
pub(super) fn is_answer(error: &postgres::Error) -> bool {
    error
        .as_db_error()
        .is_some_and(|answer| !matches!(answer.parsed_severity(), Some(Severity::Fatal | Severity::Panic)))
}

pub(super) fn of(doing: &str, error: &postgres::Error) -> StoreError {
    match error.as_db_error() {
        Some(answer) => answered(doing, answer),
        None => StoreError {
            timed_out: is_timeout(error),
            ..StoreError::unreachable(format!("{doing}: {}", chain(error)))
        },
    }
}

/// Whether our own patience with a silent socket ended it.
fn is_timeout(error: &postgres::Error) -> bool {
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

/// A failed COMMIT: unless the database says that it rolled back, the rows may be stored. A connection that was cut
/// and a pooler's or a dying server's answer (classes 08, 57, 58, XX) say nothing about it.
pub(super) fn of_commit(error: &postgres::Error) -> StoreError {
    let mut error = of("COMMIT", error);
    error.in_doubt = match &error.sqlstate {
        None => true,
        Some(code) => ["08", "57", "58", "XX"].iter().any(|class| code.starts_with(class)),
    };
    error
}

/// A failed write to a COPY stream, which hides our error in an I/O error.
pub(super) fn of_io(doing: &str, error: &std::io::Error) -> StoreError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<postgres::Error>()) {
        Some(inner) => of(doing, inner),
        None => StoreError {
            timed_out: error.kind() == std::io::ErrorKind::TimedOut,
            ..StoreError::unreachable(format!("{doing}: {error}"))
        },
    }
}

fn answered(doing: &str, answer: &DbError) -> StoreError {
    let code = answer.code();
    let mut message = format!("{doing}: {}: {} ({})", answer.severity(), answer.message(), code.code());
    // For a row's own fault, detail and context quote the event, and no log may hold one.
    // In class XX it may be an error of a row that Citus passes on.
    let of_a_row = ["21", "22", "23", "54", "XX"].iter().any(|class| code.code().starts_with(class));
    if let Some(detail) = answer.detail().filter(|_| !of_a_row) {
        message.push_str("; ");
        message.push_str(detail);
    }
    StoreError {
        sqlstate: Some(sqlstate(answer)),
        message,
        row: answer.where_().and_then(copy_row),
        constraint: constraint(answer).map(str::to_owned),
        column: answer.column().map(str::to_owned).or_else(|| answer.where_().and_then(copy_column)),
        timed_out: answer.code() == &SqlState::QUERY_CANCELED,
        in_doubt: false,
    }
}

/// The code, but for one that would mislead: a row sent to the default partition at the very moment when its own
/// partition is attached is refused as 23514, without the name of a constraint. It is no fault of the row, the next
/// attempt finds the partition, and so it is what 40001 means.
fn sqlstate(answer: &DbError) -> String {
    let raced = answer.code() == &SqlState::CHECK_VIOLATION && constraint(answer).is_none();
    if raced {
        SqlState::T_R_SERIALIZATION_FAILURE.code().to_owned()
    } else {
        answer.code().code().to_owned()
    }
}

/// The name of the constraint that was violated. Citus passes on what its workers say of a check without the field for it;
/// then it is looked for in the message, where it stands in English.
fn constraint(answer: &DbError) -> Option<&str> {
    answer.constraint().or_else(|| checked_by(answer.message()))
}

fn checked_by(message: &str) -> Option<&str> {
    let (_before, name) = message.split_once("check constraint \"")?;
    name.strip_suffix('"')
}

/// The row of `COPY events, line 3, column metadata`, counted from 0. The words are translated by `lc_messages`, so
/// only their order is relied on: the context of COPY is the outermost and stands last, and the line's number is
/// the first after the table's name and a comma.
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

/// An error with its causes. Ours repeat each other's words, so a cause that the text already holds is left out.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
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
    fn the_row_is_read_from_the_context_in_any_language() {
        check("COPY events, line 3, column metadata", Some(2));
        check("COPY events, line 5000", Some(4999));
        check("COPY events, Zeile 17, Spalte metadata", Some(16));
        check("テーブル eventsのCOPY、行12、列metadata", Some(11));
        check("JSON data, line 1: {\"a\":...\nCOPY events_stage, line 42, column metadata", Some(41));
    }

    #[test]
    fn a_context_without_a_row_gives_none() {
        for context in
            ["", "COPY events", "COPY events, line", "SQL statement \"SELECT 1\"", "COPY events, line 0"]
        {
            check(context, None);
        }
        check("COPY events, line 99999999999999999999999", None);
    }

    #[test]
    fn a_check_is_named_in_its_message_and_a_partition_is_none() {
        let check = |message: &str, name| assert_eq!(checked_by(message), name, "{message}");
        let new_row = "new row for relation \"events_20251231_102027\" violates";
        check(&format!("{new_row} check constraint \"no_poison\""), Some("no_poison"));
        check(&format!("{new_row} partition constraint"), None);
        check("no partition of relation \"events_102009\" found for row", None);
        check("check constraint \"", None);
    }

    #[test]
    fn the_column_is_read_where_the_context_names_it_in_english() {
        assert_eq!(copy_column("COPY events, line 3, column metadata").as_deref(), Some("metadata"));
        assert_eq!(copy_column("COPY events, line 3"), None);
    }
}
