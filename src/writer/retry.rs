//! Retries a batch whose transaction failed, on the writer thread. Decides by the error what the next
//! attempt is. Rows that PostgreSQL rejects go to `isolate`.

use std::time::Duration;

use super::error_class::should_retry_staged;
use super::isolate::{PIECE_MIN, Unsettled};
use super::{Batch, DeadlinePassed, ErrorClass, StoreFailure, Writer};
use crate::clock::Moment;
use crate::event::row;
use crate::storage::{StoreError, StorePath};

/// A batch that is not stored.
#[derive(Debug)]
pub(super) struct FailedBatch {
    pub(super) batch: Batch,
    pub(super) path: StorePath,
    pub(super) started: Moment,
    pub(super) failure: Failure,
}

#[derive(Debug)]
pub(super) enum Failure {
    /// The transaction of the store thread failed.
    Failed(StoreError),
    /// Every row was refused, and so was every other row that was tried.
    Refused,
}

/// The attempt that follows a failed one.
#[derive(Clone, Copy, Debug)]
enum NextAttempt {
    /// PostgreSQL rejects a row: the others are tried without it.
    OfOtherRows,
    /// Through the staging table, since rows may be stored already.
    AtOnce,
    /// After a delay, since the database or its configuration is at fault.
    Delayed(ErrorClass),
}

impl NextAttempt {
    fn after(error: &StoreError, path: StorePath) -> Self {
        match ErrorClass::of_insert(error, path) {
            ErrorClass::RowFault => Self::OfOtherRows,
            ErrorClass::DuplicateKey | ErrorClass::Transient
                if path == StorePath::Copy && should_retry_staged(error) =>
            {
                Self::AtOnce
            }
            class @ (ErrorClass::Transient | ErrorClass::DuplicateKey | ErrorClass::Misconfigured) => {
                Self::Delayed(class)
            }
        }
    }
}

impl Writer {
    /// Retries until every row of the batch is settled, or every row is refused.
    pub(super) fn retry(&mut self, mut failed: FailedBatch) -> Result<(), DeadlinePassed> {
        if matches!(failed.failure, Failure::Refused) {
            self.grow(&mut failed.batch);
        }
        (self.insert_time, self.commit) = (Duration::ZERO, None);
        let runs = failed.batch.runs();
        let settled = match &failed.failure {
            Failure::Failed(error) => {
                self.prepare_retry(error, &runs, failed.path).and_then(|path| self.settle(&runs, &[], path))
            }
            Failure::Refused => self.settle(&runs, &[], failed.path),
        };
        let settled = match settled {
            Ok(()) => Ok(()),
            Err(StoreFailure::DeadlinePassed) => Err(Unsettled::DeadlinePassed),
            Err(StoreFailure::RowFault(error)) => self.isolate(&failed.batch.rows(), &error),
            Err(StoreFailure::TimedOut) => self.retry_in_pieces(&failed.batch.rows()),
        };
        match settled {
            Ok(()) => {
                self.finish(failed.batch, failed.started, self.insert_time, self.commit);
                Ok(())
            }
            // The rows stay counted as buffered. If some were committed, their ids make them
            // duplicates when the journal replays them.
            Err(Unsettled::DeadlinePassed) => {
                self.failed.push_front(failed);
                Err(DeadlinePassed)
            }
            Err(Unsettled::EveryRowRefused(error)) => {
                failed.failure = Failure::Refused;
                self.failed.push_front(failed);
                self.on_every_row_refused(&error)
            }
        }
    }

    /// Adds other rows to a refused batch: one of them may be accepted and thereby convict these. The
    /// batch grows once past its limits at most.
    fn grow(&mut self, refused: &mut Batch) {
        if refused.is_full() {
            return;
        }
        if let Some(next) = self.failed.pop_front() {
            refused.append(next.batch);
        } else {
            self.gather();
            refused.append(self.take_batch());
        }
    }

    /// Reports a failed attempt to the breaker and to the log.
    pub(super) fn report_store_error(&mut self, error: &StoreError, path: StorePath) {
        match NextAttempt::after(error, path) {
            // The database has answered; no batch is stored.
            NextAttempt::OfOtherRows => {
                self.deps.drain.record_success();
                self.deps.breaker.record_success(self.deps.clock.now());
            }
            NextAttempt::AtOnce => self.on_success(),
            NextAttempt::Delayed(class) => self.report_failure(class, error, "storing a batch"),
        }
    }

    /// Waits before the next attempt if the error requires it, and returns the path of that attempt.
    /// Fails when the rows must not be tried again as they are.
    pub(super) fn prepare_retry(
        &mut self,
        error: &StoreError,
        runs: &[&[u8]],
        path: StorePath,
    ) -> Result<StorePath, StoreFailure> {
        match NextAttempt::after(error, path) {
            NextAttempt::OfOtherRows => Err(StoreFailure::RowFault(error.clone())),
            NextAttempt::AtOnce => Ok(StorePath::Staging),
            NextAttempt::Delayed(_) => {
                self.wait_for_backoff()?;
                let count = || runs.iter().flat_map(|run| row::rows(run)).count();
                if error.timed_out && count() > PIECE_MIN {
                    return Err(StoreFailure::TimedOut);
                }
                Ok(if error.in_doubt { StorePath::Staging } else { path })
            }
        }
    }
}
