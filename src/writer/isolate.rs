//! Finds the rows that PostgreSQL refuses among those it would take, so that a bad row costs itself and no other.

use std::ops::Range;

use super::{GaveUp, Unsettled, Writer};
use crate::event::row::Row;
use crate::storage::{DeadLetter, StoreError, StorePath};

/// Rows tried together after a refusal, at least. Where bad rows lie close, small pieces waste less on each; every
/// piece that goes through doubles the next.
pub(super) const PIECE_MIN: usize = 16;
/// After a timeout so many times fewer rows are tried: each timeout costs seconds.
const TIMEOUT_CUT: usize = 8;

impl Writer {
    /// Settles `rows`, of which at least one is refused with `error`: stores the good, buries the bad.
    ///
    /// The row that COPY names is only a suspect: it stands trial alone before it is set aside, so that no good row is
    /// ever lost to a misread hint.
    pub(super) fn isolate(&mut self, rows: &[Row<'_>], error: &StoreError) -> Result<(), GaveUp> {
        let mut todo = Vec::new();
        divide(&mut todo, 0..rows.len(), error.row);
        self.settle_pieces(rows, todo, PIECE_MIN, usize::MAX)
    }

    /// Settles `rows` in pieces that a slow network or a slow database can take in time.
    pub(super) fn piecemeal(&mut self, rows: &[Row<'_>]) -> Result<(), GaveUp> {
        let piece_max = cut(rows.len());
        self.settle_pieces(rows, std::iter::once(0..rows.len()).collect(), piece_max, piece_max)
    }

    /// Pieces are of `piece_max` rows, and twice as many after each that goes through, up to `piece_limit`.
    fn settle_pieces(
        &mut self,
        rows: &[Row<'_>],
        mut todo: Vec<Range<usize>>,
        mut piece_max: usize,
        mut piece_limit: usize,
    ) -> Result<(), GaveUp> {
        let mut dead = Vec::new();
        let mut buried = 0;
        let mut first = None;
        while let Some(mut piece) = todo.pop() {
            if piece.len() > piece_max {
                todo.push(piece.start + piece_max..piece.end);
                piece.end = piece.start + piece_max;
            }
            let alone = piece.len() == 1;
            let runs: Vec<_> = rows[piece.clone()].iter().map(Row::bytes).collect();
            // A row on trial stands alone: what is refused must be the row, not a letter that is buried with it.
            let letters = if alone { &[][..] } else { &dead };
            match self.settle(&runs, letters, StorePath::Copy) {
                Ok(()) => {
                    piece_max = piece_max.saturating_mul(2).min(piece_limit);
                    if !alone {
                        buried += dead.len();
                        dead.clear();
                    }
                }
                Err(Unsettled::GaveUp) => return Err(GaveUp),
                Err(Unsettled::TooMany) => {
                    piece_max = cut(piece.len());
                    piece_limit = piece_max;
                    todo.push(piece);
                }
                Err(Unsettled::Refused(error)) if alone => {
                    let row = rows[piece.start];
                    first.get_or_insert_with(|| (row, error.clone()));
                    dead.push(letter(row, error));
                }
                Err(Unsettled::Refused(error)) => {
                    piece_max = error.row.map_or(piece.len() / 2, |row| row * 2).max(PIECE_MIN);
                    divide(&mut todo, piece, error.row);
                }
            }
        }
        buried += dead.len();
        while !dead.is_empty() {
            match self.settle(&[], &dead, StorePath::Copy) {
                Ok(()) => dead.clear(),
                Err(Unsettled::GaveUp) => return Err(GaveUp),
                Err(Unsettled::TooMany) => {}
                // Nothing of ours can make PostgreSQL refuse a dead letter; somebody constrained the table.
                Err(Unsettled::Refused(error)) => self.failed(&error, "burying dead letters")?,
            }
        }
        if let Some((row, error)) = first {
            log::warn!(
                events = rows.len(), dead = buried, sqlstate = error.sqlstate.as_deref().unwrap_or("none"),
                event_id:% = row.event_id(), service:% = String::from_utf8_lossy(row.service());
                "PostgreSQL refused events, they are in dead_events; the first of them: {error}"
            );
        }
        Ok(())
    }
}

fn cut(rows: usize) -> usize {
    (rows / TIMEOUT_CUT).max(PIECE_MIN)
}

/// Divides a refused piece around the suspect, or in the middle where there is none. The stack gives the first part
/// back first.
fn divide(todo: &mut Vec<Range<usize>>, piece: Range<usize>, suspect: Option<usize>) {
    let Range { start, end } = piece;
    let parts = match suspect.map(|row| start + row) {
        Some(row) if row < end => [start..row, row..row + 1, row + 1..end],
        _ => {
            let middle = start + piece.len() / 2;
            [start..middle, middle..end, end..end]
        }
    };
    todo.extend(parts.into_iter().rev().filter(|part| !part.is_empty()));
}

fn letter(row: Row<'_>, error: StoreError) -> DeadLetter<'_> {
    DeadLetter { row, sqlstate: error.sqlstate.unwrap_or_default(), reason: error.message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(piece: Range<usize>, suspect: Option<usize>, wanted: &[Range<usize>]) {
        let mut todo = Vec::new();
        divide(&mut todo, piece, suspect);
        todo.reverse();
        assert_eq!(todo, wanted);
    }

    #[test]
    fn a_piece_is_divided_around_its_suspect_or_in_the_middle() {
        check(10..20, Some(3), &[10..13, 13..14, 14..20]);
        check(10..20, Some(0), &[10..11, 11..20]);
        check(10..20, Some(9), &[10..19, 19..20]);
        check(10..20, Some(10), &[10..15, 15..20]);
        check(10..20, None, &[10..15, 15..20]);
        check(10..12, None, &[10..11, 11..12]);
    }
}
