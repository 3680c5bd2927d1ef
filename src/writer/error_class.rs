//! Classifies database errors for the writer by SQLSTATE (PostgreSQL manual, appendix A).

use crate::event::row;
use crate::storage::StoreError;

/// Decides how the writer continues after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The same batch may succeed later: connection lost, deadlock, server restarting.
    Transient,
    /// Some rows are stored already: insert the others through the staging table.
    DuplicateKey,
    /// PostgreSQL rejects a row: isolate it, insert it as a dead letter, store the rest.
    RowFault,
    /// The operator must fix the configuration: wrong password, missing table. The rows are kept.
    Misconfigured,
}

impl ErrorClass {
    pub fn of(error: &StoreError) -> Self {
        let Some(sqlstate) = error.sqlstate.as_deref() else {
            return Self::Transient;
        };
        match sqlstate {
            // unique_violation: the only unique key is the event's id.
            "23505" => return Self::DuplicateKey,
            // A row without a partition is reported as a check violation without a constraint name:
            // the default partition is missing, which is no row fault.
            "23514" if error.constraint.is_none() => return Self::Misconfigured,
            // not_null_violation of a column the server does not write: the table was altered.
            "23502" if !error.column.as_deref().is_some_and(is_events_column) => return Self::Misconfigured,
            // statement_too_complex is no row fault, unlike the rest of class 54 (row too large for
            // an index or a page).
            "54001" => return Self::Transient,
            _ => {}
        }
        match sqlstate.get(..2) {
            // Cardinality violations, data exceptions, constraint violations, program limits.
            Some("21" | "22" | "23" | "54") => Self::RowFault,
            // Unsupported feature, authorisation, catalogue and schema names, syntax and access
            // rules, object not in the required state.
            Some("0A" | "28" | "3D" | "3F" | "42" | "55") if sqlstate != "55P03" && sqlstate != "55006" => {
                Self::Misconfigured
            }
            // Connection, resources, locks, shutdown, rollback, read-only, and all unlisted
            // classes.
            _ => Self::Transient,
        }
    }
}

/// Whether a failed COPY should be retried through the staging table: the error is a duplicate key,
/// or XX000. Citus reports every worker error of a COPY as XX000, but keeps the SQLSTATE of an
/// INSERT.
pub(super) fn should_retry_staged(error: &StoreError) -> bool {
    matches!(error.sqlstate.as_deref(), Some("23505" | "XX000"))
}

fn is_events_column(column: &str) -> bool {
    row::COLUMNS.split(", ").any(|name| name == column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sqlstate: &str, wanted: ErrorClass) {
        let error = StoreError {
            sqlstate: Some(sqlstate.into()),
            constraint: Some("a_check".into()),
            column: Some("message".into()),
            ..StoreError::client_side("test")
        };
        assert_eq!(ErrorClass::of(&error), wanted, "{sqlstate}");
    }

    #[test]
    fn transient_errors_are_classified_as_transient() {
        for sqlstate in [
            "08006", "08001", "53100", "53200", "53300", "55P03", "55006", "57014", "57P01", "57P02",
            "57P03", "58030", "40001", "40P01", "25006", "25P02", "XX000", "F0000", "54001",
        ] {
            check(sqlstate, ErrorClass::Transient);
        }
        assert_eq!(ErrorClass::of(&StoreError::client_side("no route")), ErrorClass::Transient);
    }

    #[test]
    fn configuration_errors_are_classified_as_misconfigured() {
        for sqlstate in ["28P01", "28000", "3D000", "3F000", "42P01", "42703", "42501", "0A000", "55000"] {
            check(sqlstate, ErrorClass::Misconfigured);
        }
    }

    #[test]
    fn row_faults_and_duplicate_keys_are_told_apart() {
        for sqlstate in ["21000", "22001", "22021", "22P02", "22P05", "23502", "23514", "54000"] {
            check(sqlstate, ErrorClass::RowFault);
        }
        check("23505", ErrorClass::DuplicateKey);
    }

    #[test]
    fn altered_table_is_misconfigured_not_a_row_fault() {
        let error = |sqlstate: &str, column: Option<&str>| StoreError {
            sqlstate: Some(sqlstate.into()),
            column: column.map(Into::into),
            ..StoreError::client_side("test")
        };
        assert_eq!(ErrorClass::of(&error("23514", None)), ErrorClass::Misconfigured);
        assert_eq!(ErrorClass::of(&error("23502", Some("tenant"))), ErrorClass::Misconfigured);
        assert_eq!(ErrorClass::of(&error("23502", Some("service"))), ErrorClass::RowFault);
    }
}
