//! Stores rows again that the database may have lost: each once, since those it has are found by their
//! ids. Rows that it refuses become dead letters, as they did before.
//!
//! Must not depend on where the rows come from.

use std::ops::{AddAssign, Range};

use crate::clock::Clock;
use crate::event::row::Row;
use crate::storage::{CommitPosition, DeadLetter, EventRepository, StoreError, StorePath, Stored};
use crate::writer::ErrorClass;

/// Fewer rows than these are not divided after a timeout.
const TIMED_OUT_ROWS_MIN: usize = 16;

/// What became of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Events and dead letters that the database lacked.
    pub restored: u64,
    /// Those that it had.
    pub present: u64,
    /// Where they were committed, if the database tells.
    pub commit: Option<CommitPosition>,
}

impl AddAssign for Restored {
    fn add_assign(&mut self, other: Self) {
        self.restored += other.restored;
        self.present += other.present;
        self.commit = CommitPosition::merge_known(self.commit, other.commit);
    }
}

/// Stores all of `rows`. `on_failure` decides after an error that no row caused: `Ok` tries again.
pub fn restore<E>(
    repository: &dyn EventRepository,
    clock: &Clock,
    rows: &[Row<'_>],
    on_failure: &mut dyn FnMut(&StoreError) -> Result<(), E>,
) -> Result<Restored, E> {
    let mut restored = Restored::default();
    let (mut refused, mut accepted) = (Vec::new(), false);
    let mut todo: Vec<Range<usize>> = std::iter::once(0..rows.len()).collect();
    while let Some(piece) = todo.pop() {
        let runs: Vec<_> = rows[piece.clone()].iter().map(Row::bytes).collect();
        match repository.store(&runs, &[], StorePath::Staging) {
            Ok(stored) => {
                accepted = true;
                restored += of(stored);
            }
            Err(error) if error.timed_out && piece.len() > TIMED_OUT_ROWS_MIN => {
                on_failure(&error)?;
                halve(&mut todo, piece);
            }
            Err(error) if ErrorClass::of_insert(&error, StorePath::Staging) != ErrorClass::RowFault => {
                on_failure(&error)?;
                todo.push(piece);
            }
            Err(_) if piece.len() > 1 => halve(&mut todo, piece),
            Err(error) => refused.push((rows[piece.start], error)),
        }
    }
    if !refused.is_empty() {
        restored += restore_dead(repository, clock, &refused, accepted, on_failure)?;
    }
    Ok(restored)
}

/// Inserts dead letters of `refused`, once the database accepts other rows: otherwise its configuration
/// is at fault.
fn restore_dead<E>(
    repository: &dyn EventRepository,
    clock: &Clock,
    refused: &[(Row<'_>, StoreError)],
    accepted: bool,
    on_failure: &mut dyn FnMut(&StoreError) -> Result<(), E>,
) -> Result<Restored, E> {
    let letters: Vec<_> = refused
        .iter()
        .map(|(row, error)| DeadLetter {
            row: *row,
            sqlstate: error.sqlstate.clone().unwrap_or_default(),
            reason: error.message.clone(),
        })
        .collect();
    let mut accepts_others = accepted;
    loop {
        let inserted = if accepts_others {
            repository.store(&[], &letters, StorePath::Staging)
        } else {
            repository.trial_insert(clock.wall()).map(|()| Stored::default())
        };
        match inserted {
            Ok(stored) if accepts_others => {
                let present = letters.len() as u64 - stored.dead;
                return Ok(Restored { restored: stored.dead, present, commit: stored.commit });
            }
            Ok(_) => accepts_others = true,
            Err(error) => on_failure(&error)?,
        }
    }
}

fn of(Stored { stored, duplicate, dead, commit }: Stored) -> Restored {
    Restored { restored: stored + dead, present: duplicate, commit }
}

fn halve(todo: &mut Vec<Range<usize>>, piece: Range<usize>) {
    let middle = piece.start + piece.len() / 2;
    todo.push(middle..piece.end);
    todo.push(piece.start..middle);
}
