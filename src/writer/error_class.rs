//! Classifies database errors for the writer by SQLSTATE (PostgreSQL manual, appendix A).
//!
//! The class is a hypothesis about one error. Whether a row is at fault, and not the configuration,
//! `isolate` decides by what PostgreSQL says to other rows.

use crate::event::row;
use crate::storage::{StoreError, StorePath};

/// Decides how the writer continues after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The same batch may succeed later: connection lost, deadlock, server restarting.
    Transient,
    /// Some rows are stored already: insert the others through the staging table.
    DuplicateKey,
    /// PostgreSQL may reject a row: isolate it, insert it as a dead letter, store the rest.
    RowFault,
    /// The operator must fix the configuration: wrong password, missing table. The rows are kept.
    Misconfigured,
}

/// The classes of errors that a row can cause: by its values, by a constraint, or in a trigger, in
/// whose language the operator may raise an error.
const ROW_CLASSES: &[&str] = &[
    "09", // triggered action exception
    "20", // case not found
    "21", // cardinality violation
    "22", // data exception
    "23", // integrity constraint violation
    "27", // triggered data change violation
    "2F", // SQL routine exception
    "38", // external routine exception
    "39", // external routine invocation exception
    "44", // WITH CHECK OPTION violation
    "54", // program limit exceeded, such as a row too large for an index
    "P0", // PL/pgSQL: RAISE, no data, too many rows, failed assertion
];
/// Unsupported feature, authorisation, catalogue and schema names, syntax and access rules, object
/// not in the required state.
const CONFIGURATION_CLASSES: &[&str] = &["0A", "28", "3D", "3F", "42", "55"];
/// The other classes of PostgreSQL: connection, transaction state, rollback, resources, shutdown,
/// system and internal errors.
const OTHER_CLASSES: &[&str] = &[
    "00", "01", "02", "03", "08", "0B", "0F", "0L", "0P", "0Z", "10", "24", "25", "26", "2B", "2D", "34",
    "3B", "40", "53", "57", "58", "72", "F0", "HV", "XX",
];

impl ErrorClass {
    pub fn of(error: &StoreError) -> Self {
        let Some(sqlstate) = error.sqlstate.as_deref() else {
            return Self::Transient;
        };
        let class = Self::of_sqlstate(sqlstate, error);
        match class {
            // No row caused what counts or dead letters met with.
            Self::RowFault | Self::DuplicateKey if error.outside_rows => Self::Misconfigured,
            Self::Transient | Self::DuplicateKey | Self::RowFault | Self::Misconfigured => class,
        }
    }

    /// Classifies the error of inserting rows on `path`. The staged path skips stored ids, so a
    /// duplicate key there is that of an index of the operator.
    pub fn of_insert(error: &StoreError, path: StorePath) -> Self {
        let class = Self::of(error);
        if class == Self::DuplicateKey && path == StorePath::Staging { Self::RowFault } else { class }
    }

    fn of_sqlstate(sqlstate: &str, error: &StoreError) -> Self {
        match sqlstate {
            // unique_violation: of the event's id, or of an index of the operator.
            "23505" => return Self::DuplicateKey,
            // A row without a partition is reported as a check violation without a constraint name:
            // the default partition is missing, which is no row fault.
            "23514" if error.constraint.is_none() => return Self::Misconfigured,
            // not_null_violation of a column the server does not write: the table was altered.
            "23502" if !error.column.as_deref().is_some_and(is_events_column) => return Self::Misconfigured,
            // statement_too_complex is no row fault, unlike the rest of its class. lock_not_available
            // and object_in_use pass.
            "54001" | "55P03" | "55006" => return Self::Transient,
            _ => {}
        }
        match sqlstate.get(..2) {
            Some(class) if CONFIGURATION_CLASSES.contains(&class) => Self::Misconfigured,
            Some(class) if OTHER_CLASSES.contains(&class) => Self::Transient,
            // PostgreSQL has no other class, so RAISE in a trigger has chosen it.
            Some(class) if ROW_CLASSES.contains(&class) || is_alphanumeric(sqlstate) => Self::RowFault,
            Some(_) | None => Self::Transient,
        }
    }
}

/// Whether a failed COPY should be retried through the staging table: the error is a duplicate key,
/// or XX000. Citus reports every worker error of a COPY as XX000, but keeps the SQLSTATE of an
/// INSERT.
pub(super) fn should_retry_staged(error: &StoreError) -> bool {
    matches!(error.sqlstate.as_deref(), Some("23505" | "XX000"))
}

fn is_alphanumeric(sqlstate: &str) -> bool {
    sqlstate.len() == 5 && sqlstate.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
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
        for sqlstate in
            ["21000", "22001", "22021", "22P02", "22P05", "23502", "23514", "23P01", "44000", "54000"]
        {
            check(sqlstate, ErrorClass::RowFault);
        }
        check("23505", ErrorClass::DuplicateKey);
    }

    #[test]
    fn errors_raised_in_a_trigger_are_row_faults() {
        for sqlstate in
            ["P0001", "P0002", "P0004", "09000", "20000", "2F002", "38000", "39004", "ORDER", "X0001"]
        {
            check(sqlstate, ErrorClass::RowFault);
        }
        for sqlstate in ["", "ünit", "ABCDEF"] {
            check(sqlstate, ErrorClass::Transient);
        }
    }

    #[test]
    fn errors_of_counts_and_dead_letters_are_no_row_faults() {
        let check = |sqlstate: &str, wanted| {
            let error = StoreError {
                sqlstate: Some(sqlstate.into()),
                constraint: Some("a_check".into()),
                outside_rows: true,
                ..StoreError::client_side("test")
            };
            assert_eq!(ErrorClass::of(&error), wanted, "{sqlstate}");
        };
        for sqlstate in ["23514", "23505", "22003", "P0001", "54000", "42P01"] {
            check(sqlstate, ErrorClass::Misconfigured);
        }
        for sqlstate in ["40P01", "55P03", "57014", "53100"] {
            check(sqlstate, ErrorClass::Transient);
        }
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
