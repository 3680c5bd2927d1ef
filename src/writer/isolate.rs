//! Isolates the rows that PostgreSQL rejects: stores all others and inserts the rejected ones as
//! dead letters.

use std::ops::Range;

use super::{DeadlinePassed, StoreFailure, Writer};
use crate::event::row::Row;
use crate::storage::{DeadLetter, StoreError, StorePath};

/// Minimum rows of a piece after a rejection. Small pieces waste less work where bad rows are close
/// together; every stored piece doubles the size of the next.
pub(super) const PIECE_MIN: usize = 16;
/// Divides the rows of a piece after a timeout. A large divisor, since each timeout costs seconds.
const TIMEOUT_DIVISOR: usize = 8;

impl Writer {
    /// Settles `rows`, at least one of which PostgreSQL rejected with `error`.
    ///
    /// The row COPY reports is a hint; it is retried alone before it is dead-lettered.
    pub(super) fn isolate(&mut self, rows: &[Row<'_>], error: &StoreError) -> Result<(), DeadlinePassed> {
        let mut todo = Vec::new();
        split_around(&mut todo, 0..rows.len(), error.row);
        self.settle_pieces(rows, todo, PIECE_MIN, usize::MAX)
    }

    /// Settles `rows` in pieces small enough for a slow network or database to store in time.
    pub(super) fn retry_in_pieces(&mut self, rows: &[Row<'_>]) -> Result<(), DeadlinePassed> {
        let piece_max = rows_after_timeout(rows.len());
        self.settle_pieces(rows, std::iter::once(0..rows.len()).collect(), piece_max, piece_max)
    }

    /// A piece has up to `piece_max` rows. Each stored piece doubles `piece_max`, up to
    /// `piece_limit`.
    fn settle_pieces(
        &mut self,
        rows: &[Row<'_>],
        mut todo: Vec<Range<usize>>,
        mut piece_max: usize,
        mut piece_limit: usize,
    ) -> Result<(), DeadlinePassed> {
        let mut dead = Vec::new();
        let mut dead_letters = 0;
        let mut first = None;
        while let Some(mut piece) = todo.pop() {
            if piece.len() > piece_max {
                todo.push(piece.start + piece_max..piece.end);
                piece.end = piece.start + piece_max;
            }
            let single = piece.len() == 1;
            let runs: Vec<_> = rows[piece.clone()].iter().map(Row::bytes).collect();
            // A single row is stored without dead letters, so that a rejection is about the row.
            let letters = if single { &[][..] } else { &dead };
            match self.settle(&runs, letters, StorePath::Copy) {
                Ok(()) => {
                    piece_max = piece_max.saturating_mul(2).min(piece_limit);
                    if !single {
                        dead_letters += dead.len();
                        dead.clear();
                    }
                }
                Err(StoreFailure::DeadlinePassed) => return Err(DeadlinePassed),
                Err(StoreFailure::TimedOut) => {
                    piece_max = rows_after_timeout(piece.len());
                    piece_limit = piece_max;
                    todo.push(piece);
                }
                Err(StoreFailure::RowFault(error)) if single => {
                    let row = rows[piece.start];
                    first.get_or_insert_with(|| (row, error.clone()));
                    dead.push(dead_letter(row, error));
                }
                Err(StoreFailure::RowFault(error)) => {
                    piece_max = error.row.map_or(piece.len() / 2, |row| row * 2).max(PIECE_MIN);
                    split_around(&mut todo, piece, error.row);
                }
            }
        }
        dead_letters += dead.len();
        while !dead.is_empty() {
            match self.settle(&[], &dead, StorePath::Copy) {
                Ok(()) => dead.clear(),
                Err(StoreFailure::DeadlinePassed) => return Err(DeadlinePassed),
                Err(StoreFailure::TimedOut) => {}
                // The server's schema accepts every dead letter: a constraint was added to the
                // table.
                Err(StoreFailure::RowFault(error)) => self.on_failure(&error, "inserting dead letters")?,
            }
        }
        if let Some((row, error)) = first {
            log::warn!(
                events = rows.len(), dead = dead_letters, sqlstate = error.sqlstate.as_deref().unwrap_or("none"),
                event_id:% = row.event_id(), service:% = String::from_utf8_lossy(row.service());
                "PostgreSQL rejected events; they are in dead_events. First error: {error}"
            );
        }
        Ok(())
    }
}

fn rows_after_timeout(rows: usize) -> usize {
    (rows / TIMEOUT_DIVISOR).max(PIECE_MIN)
}

/// Splits a rejected piece around the row COPY reported, or in the middle without one. Pushes the parts
/// in reverse order, so that the first part is popped first.
fn split_around(todo: &mut Vec<Range<usize>>, piece: Range<usize>, reported: Option<usize>) {
    let Range { start, end } = piece;
    let parts = match reported.map(|row| start + row) {
        Some(row) if row < end => [start..row, row..row + 1, row + 1..end],
        _ => {
            let middle = start + piece.len() / 2;
            [start..middle, middle..end, end..end]
        }
    };
    todo.extend(parts.into_iter().rev().filter(|part| !part.is_empty()));
}

fn dead_letter(row: Row<'_>, error: StoreError) -> DeadLetter<'_> {
    DeadLetter { row, sqlstate: error.sqlstate.unwrap_or_default(), reason: error.message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(piece: Range<usize>, reported: Option<usize>, wanted: &[Range<usize>]) {
        let mut todo = Vec::new();
        split_around(&mut todo, piece, reported);
        todo.reverse();
        assert_eq!(todo, wanted);
    }

    #[test]
    fn split_around_cuts_at_the_reported_row_or_in_the_middle() {
        check(10..20, Some(3), &[10..13, 13..14, 14..20]);
        check(10..20, Some(0), &[10..11, 11..20]);
        check(10..20, Some(9), &[10..19, 19..20]);
        check(10..20, Some(10), &[10..15, 15..20]);
        check(10..20, None, &[10..15, 15..20]);
        check(10..12, None, &[10..11, 11..12]);
    }
}
