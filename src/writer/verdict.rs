//! What a database error means for the batch that met it, by SQLSTATE (the manual, appendix A).

use crate::event::row;
use crate::storage::StoreError;

/// The writer's one question about an error: what now?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same batch may succeed later: connection lost, deadlock, server restarting.
    Retry,
    /// Some rows are already stored: put in the others.
    Duplicates,
    /// Some row is refused: isolate it, set it aside, store the rest.
    Split,
    /// Neither time nor splitting helps: wrong password, missing table. Keep everything, say so.
    Halt,
}

impl Verdict {
    pub fn of(error: &StoreError) -> Self {
        let Some(sqlstate) = error.sqlstate.as_deref() else {
            return Self::Retry;
        };
        match sqlstate {
            // The only unique key is the event's id.
            "23505" => return Self::Duplicates,
            // A row without a partition is reported as a violated check that has no name: the default partition is
            // missing, which is not the row's fault.
            "23514" if error.constraint.is_none() => return Self::Halt,
            // A column that is not ours must not be null: somebody changed the table.
            "23502" if !error.column.as_deref().is_some_and(is_ours) => return Self::Halt,
            // The row is longer than an index or a page takes, not the statement too complex for the server.
            "54001" => return Self::Retry,
            // The default for all others follows.
            _ => {}
        }
        match sqlstate.get(..2) {
            // Data exceptions, violated constraints, cardinality, limits: the row's own fault.
            Some("21" | "22" | "23" | "54") => Self::Split,
            // Authorisation, catalogue and schema names, syntax and access rules: configuration. A feature that is not
            // there, or an object in the wrong state, does not come with time either.
            Some("0A" | "28" | "3D" | "3F" | "42" | "55") if sqlstate != "55P03" && sqlstate != "55006" => {
                Self::Halt
            }
            // Connection, resources, locks, shutdown, rollback, read-only, and what nobody foresaw: keep everything.
            _ => Self::Retry,
        }
    }
}

/// Whether a COPY has failed with what the stage gets past, or would name: a duplicate, or an error that came without its
/// code. Citus passes on whatever its workers say to a COPY as XX000, and what they say to an INSERT as it was.
pub(super) fn is_clearer_from_the_stage(error: &StoreError) -> bool {
    matches!(error.sqlstate.as_deref(), Some("23505" | "XX000"))
}

fn is_ours(column: &str) -> bool {
    row::COLUMNS.split(", ").any(|ours| ours == column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sqlstate: &str, wanted: Verdict) {
        let error = StoreError {
            sqlstate: Some(sqlstate.into()),
            constraint: Some("a_check".into()),
            column: Some("message".into()),
            ..StoreError::unreachable("test")
        };
        assert_eq!(Verdict::of(&error), wanted, "{sqlstate}");
    }

    #[test]
    fn what_time_heals_is_tried_again() {
        for sqlstate in [
            "08006", "08001", "53100", "53200", "53300", "55P03", "55006", "57014", "57P01", "57P02",
            "57P03", "58030", "40001", "40P01", "25006", "25P02", "XX000", "F0000", "54001",
        ] {
            check(sqlstate, Verdict::Retry);
        }
        assert_eq!(Verdict::of(&StoreError::unreachable("no route")), Verdict::Retry);
    }

    #[test]
    fn what_the_operator_must_mend_halts() {
        for sqlstate in ["28P01", "28000", "3D000", "3F000", "42P01", "42703", "42501", "0A000", "55000"] {
            check(sqlstate, Verdict::Halt);
        }
    }

    #[test]
    fn what_the_row_is_to_blame_for_splits_and_a_known_id_is_a_duplicate() {
        for sqlstate in ["21000", "22001", "22021", "22P02", "22P05", "23502", "23514", "54000"] {
            check(sqlstate, Verdict::Split);
        }
        check("23505", Verdict::Duplicates);
    }

    #[test]
    fn a_changed_table_is_not_the_rows_fault() {
        let error = |sqlstate: &str, column: Option<&str>| StoreError {
            sqlstate: Some(sqlstate.into()),
            column: column.map(Into::into),
            ..StoreError::unreachable("test")
        };
        assert_eq!(Verdict::of(&error("23514", None)), Verdict::Halt);
        assert_eq!(Verdict::of(&error("23502", Some("tenant"))), Verdict::Halt);
        assert_eq!(Verdict::of(&error("23502", Some("service"))), Verdict::Split);
    }
}
