//! Isolates the rows that PostgreSQL rejects: stores all others and inserts the rejected ones as
//! dead letters. Tells a fault of rows from one of the configuration, which refuses every row.

use std::ops::Range;

use super::{DeadlinePassed, ErrorClass, StoreFailure, Writer};
use crate::event::row::Row;
use crate::storage::{DeadLetter, StoreError, StorePath};

/// Minimum rows of a piece after a rejection. Small pieces waste less work where bad rows are close
/// together; every stored piece doubles the size of the next.
pub(super) const PIECE_MIN: usize = 16;
/// Divides the rows of a piece after a timeout. A large divisor, since each timeout costs seconds.
const TIMEOUT_DIVISOR: usize = 8;

/// Why rows are not settled after they were tried alone.
#[derive(Debug)]
pub(super) enum Unsettled {
    DeadlinePassed,
    /// No row was accepted, nor was any other row: the configuration is at fault, with this error.
    EveryRowRefused(StoreError),
}

impl From<DeadlinePassed> for Unsettled {
    fn from(_: DeadlinePassed) -> Self {
        Self::DeadlinePassed
    }
}

/// The rows that are not settled yet.
#[derive(Debug)]
struct Isolation<'a> {
    rows: &'a [Row<'a>],
    /// The pieces to try, the last one first.
    todo: Vec<Range<usize>>,
    /// The rows that PostgreSQL refused alone, by their positions in `rows`, and the dead letters of
    /// them.
    refused: Vec<usize>,
    letters: Vec<DeadLetter<'a>>,
    /// The first of them, which were refused between two acceptances of other rows: the error
    /// follows the row and not the configuration.
    confirmed: usize,
    /// PostgreSQL accepted a row or a trial row.
    is_any_accepted: bool,
    /// PostgreSQL refused the trial rows, and has not accepted a row since.
    is_trial_refused: bool,
    is_any_settled: bool,
    first_refusal: Option<(Row<'a>, StoreError)>,
    dead_letters: usize,
}

impl<'a> Isolation<'a> {
    fn new(rows: &'a [Row<'a>], todo: Vec<Range<usize>>) -> Self {
        Self {
            rows,
            todo,
            refused: Vec::new(),
            letters: Vec::new(),
            confirmed: 0,
            is_any_accepted: false,
            is_trial_refused: false,
            is_any_settled: false,
            first_refusal: None,
            dead_letters: 0,
        }
    }

    fn on_refused(&mut self, position: usize, error: StoreError) {
        let row = self.rows[position];
        self.first_refusal.get_or_insert_with(|| (row, error.clone()));
        self.refused.push(position);
        self.letters.push(DeadLetter {
            row,
            sqlstate: error.sqlstate.unwrap_or_default(),
            reason: error.message,
        });
    }

    /// PostgreSQL accepted another row. Before the first acceptance, the configuration may have been
    /// at fault and been repaired since, so the rows that were refused until now are tried again.
    fn on_accepted(&mut self) {
        if self.is_any_accepted {
            self.confirmed = self.letters.len();
        } else {
            self.is_any_accepted = true;
            self.retry_unconfirmed();
        }
    }

    fn retry_unconfirmed(&mut self) {
        self.letters.truncate(self.confirmed);
        let refused = self.refused.split_off(self.confirmed);
        self.todo.extend(refused.into_iter().rev().map(|position| position..position + 1));
    }

    fn on_letters_inserted(&mut self) {
        self.dead_letters += self.letters.len();
        self.letters.clear();
        self.refused.clear();
        self.confirmed = 0;
    }

    fn is_confirmed(&self) -> bool {
        self.confirmed == self.letters.len()
    }

    fn log_refusals(&self) {
        let Some((row, error)) = &self.first_refusal else { return };
        if self.dead_letters == 0 {
            return;
        }
        log::warn!(
            events = self.rows.len(), dead = self.dead_letters,
            sqlstate = error.sqlstate.as_deref().unwrap_or("none"),
            event_id:% = row.event_id(), service:% = String::from_utf8_lossy(row.service());
            "PostgreSQL rejected events; they are in dead_events. First error: {error}"
        );
    }
}

impl Writer {
    /// Settles `rows`, at least one of which PostgreSQL rejected with `error`.
    ///
    /// The row COPY reports is a hint; it is retried alone. A row is dead-lettered only if
    /// PostgreSQL refused it alone, and accepted other rows before and after: rows of this batch or
    /// copies of stored events. An error that every row meets with is the configuration's, and no
    /// row is dead-lettered for it.
    pub(super) fn isolate(&mut self, rows: &[Row<'_>], error: &StoreError) -> Result<(), Unsettled> {
        let mut todo = Vec::new();
        split_around(&mut todo, 0..rows.len(), error.row);
        self.settle_pieces(rows, todo, PIECE_MIN, usize::MAX)
    }

    /// Settles `rows` in pieces small enough for a slow network or database to store in time.
    pub(super) fn retry_in_pieces(&mut self, rows: &[Row<'_>]) -> Result<(), Unsettled> {
        let piece_max = rows_after_timeout(rows.len());
        self.settle_pieces(rows, std::iter::once(0..rows.len()).collect(), piece_max, piece_max)
    }

    /// A piece has up to `piece_max` rows. Each stored piece doubles `piece_max`, up to
    /// `piece_limit`.
    fn settle_pieces(
        &mut self,
        rows: &[Row<'_>],
        todo: Vec<Range<usize>>,
        mut piece_max: usize,
        mut piece_limit: usize,
    ) -> Result<(), Unsettled> {
        let mut isolation = Isolation::new(rows, todo);
        loop {
            let Some(mut piece) = isolation.todo.pop() else {
                if self.confirm_refusals(&mut isolation)? {
                    break;
                }
                continue;
            };
            if piece.len() > piece_max {
                isolation.todo.push(piece.start + piece_max..piece.end);
                piece.end = piece.start + piece_max;
            }
            let single = piece.len() == 1;
            let runs: Vec<_> = rows[piece.clone()].iter().map(Row::bytes).collect();
            // A single row is stored without dead letters, so that a rejection is about the row.
            let inserts_letters = !single && isolation.is_any_accepted;
            let letters = if inserts_letters { &isolation.letters[..] } else { &[] };
            match self.settle(&runs, letters, StorePath::Copy) {
                Ok(()) => {
                    isolation.is_any_settled = true;
                    piece_max = piece_max.saturating_mul(2).min(piece_limit);
                    if inserts_letters {
                        isolation.on_letters_inserted();
                    }
                    isolation.on_accepted();
                }
                Err(StoreFailure::DeadlinePassed) => return Err(Unsettled::DeadlinePassed),
                Err(StoreFailure::TimedOut) => {
                    piece_max = rows_after_timeout(piece.len());
                    piece_limit = piece_max;
                    isolation.todo.push(piece);
                }
                Err(StoreFailure::RowFault(error)) if single => {
                    self.on_refused_alone(&mut isolation, piece, error)?;
                }
                Err(StoreFailure::RowFault(error)) => {
                    piece_max = error.row.map_or(piece.len() / 2, |row| row * 2).max(PIECE_MIN);
                    split_around(&mut isolation.todo, piece, error.row);
                }
            }
        }
        if !isolation.letters.is_empty() {
            self.insert_dead_letters(&isolation.letters)?;
            isolation.on_letters_inserted();
        }
        isolation.log_refusals();
        Ok(())
    }

    /// Looks for another row that PostgreSQL accepts before the first refusal counts.
    fn on_refused_alone(
        &mut self,
        isolation: &mut Isolation<'_>,
        piece: Range<usize>,
        error: StoreError,
    ) -> Result<(), DeadlinePassed> {
        if !isolation.is_any_accepted && !isolation.is_trial_refused {
            if self.accepts_other_rows()? {
                isolation.on_accepted();
                isolation.todo.push(piece);
                return Ok(());
            }
            isolation.is_trial_refused = true;
        }
        isolation.on_refused(piece.start, error);
        Ok(())
    }

    /// Returns whether all refusals are confirmed; otherwise rows are to be tried again.
    fn confirm_refusals(&mut self, isolation: &mut Isolation<'_>) -> Result<bool, Unsettled> {
        let Some((_, error)) = isolation.first_refusal.clone().filter(|_| !isolation.is_confirmed()) else {
            return Ok(true);
        };
        if isolation.is_any_accepted && self.accepts_other_rows()? {
            isolation.on_accepted();
            return Ok(true);
        }
        if !isolation.is_any_settled {
            return Err(Unsettled::EveryRowRefused(error));
        }
        self.on_every_row_refused(&error)?;
        isolation.is_any_accepted = false;
        isolation.is_trial_refused = false;
        isolation.retry_unconfirmed();
        Ok(false)
    }

    /// Whether the table accepts copies of stored events, or an ordinary row if none is stored.
    fn accepts_other_rows(&mut self) -> Result<bool, DeadlinePassed> {
        loop {
            self.wait_for_breaker()?;
            let Err(error) = self.deps.repository.trial_insert(self.deps.clock.wall()) else {
                self.on_success();
                return Ok(true);
            };
            match ErrorClass::of(&error) {
                ErrorClass::RowFault | ErrorClass::DuplicateKey => {
                    self.deps.breaker.record_success(self.deps.clock.now());
                    return Ok(false);
                }
                ErrorClass::Transient | ErrorClass::Misconfigured => {
                    self.on_failure(&error, "inserting a trial row")?;
                }
            }
        }
    }

    fn insert_dead_letters(&mut self, letters: &[DeadLetter<'_>]) -> Result<(), DeadlinePassed> {
        if letters.is_empty() {
            return Ok(());
        }
        loop {
            match self.settle(&[], letters, StorePath::Copy) {
                Ok(()) => return Ok(()),
                Err(StoreFailure::DeadlinePassed) => return Err(DeadlinePassed),
                Err(StoreFailure::TimedOut) => {}
                // The server's schema accepts every dead letter: a constraint was added to the
                // table.
                Err(StoreFailure::RowFault(error)) => self.on_failure(&error, "inserting dead letters")?,
            }
        }
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
