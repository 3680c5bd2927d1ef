//! Replays retained journal segments after a failover: the database that answers now may lack events
//! that another one had committed. The journal notices the failover and names the segments.
//!
//! [`FailoverReplay`] is the state of the thread `failover`. It stores rows by a transaction of its own,
//! beside the writer, and outside of the buffer and the ledger: the events were counted as stored
//! before. It must not depend on requests.

mod read;
mod restore;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::Receiver;
use crossbeam::sync::Parker;

pub use read::{BATCH_ROWS_MAX, read_batches};
pub use restore::{Restored, restore};

use crate::clock::{Clock, Moment};
use crate::event::Timestamp;
use crate::event::row::Row;
use crate::journal::filesystem::Filesystem;
use crate::journal::reader::SegmentDamage;
use crate::journal::{FailoverEvent, Journal, StaleSegment};
use crate::lifecycle::{Lifecycle, LifecyclePhase};
use crate::logging::RateLimitedLog;
use crate::metrics::{FailoverMetrics, FailoverReport, LostWindow};
use crate::storage::wal::WalPosition;
use crate::storage::{CommitPosition, EventPage, EventRepository, Filter, SortOrder, StoreError};

/// Rows of the first transaction. If the database lacks all of them, it probably lacks older events
/// too.
const FIRST_BATCH_ROWS: usize = 500;
/// Pause after an error of the database.
const RETRY_DELAY: Duration = Duration::from_secs(1);
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct FailoverReplay {
    journal: Arc<Journal>,
    disk: Arc<dyn Filesystem>,
    repository: Arc<dyn EventRepository>,
    metrics: Arc<FailoverMetrics>,
    lifecycle: Lifecycle,
    clock: Clock,
    current: Option<CurrentFailover>,
}

/// The server stops. The segments that were not replayed are noticed again after the next start.
#[derive(Debug)]
struct ReplayStopped;

/// Why a segment was not replayed to its end.
enum ReplayError {
    Stopped,
    Io(io::Error),
}

impl From<ReplayStopped> for ReplayError {
    fn from(_: ReplayStopped) -> Self {
        Self::Stopped
    }
}

impl From<io::Error> for ReplayError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The result of replaying segments.
#[derive(Debug, Default)]
struct Replayed {
    all: Restored,
    /// When the first of the events was received.
    first_ingested: Option<Timestamp>,
    /// The result of the first transaction.
    first: Option<Restored>,
}

impl Replayed {
    fn add(&mut self, batch: Restored, ingested: Timestamp) {
        self.all += batch;
        self.first.get_or_insert(batch);
        self.first_ingested = Some(self.first_ingested.map_or(ingested, |first| first.min(ingested)));
    }

    /// Whether events may be lost that were committed before the retained ones: the database lacked
    /// the oldest retained events, or none are retained and its WAL ends before the last commit.
    fn reaches_further_back(&self, from: WalPosition, to: WalPosition) -> bool {
        match self.first {
            Some(first) => first.present == 0 && first.restored > 0,
            None => to.system != from.system || to.lsn < from.lsn,
        }
    }
}

/// A failover whose segments are being replayed.
#[derive(Debug)]
struct CurrentFailover {
    from: WalPosition,
    to: WalPosition,
    started: Moment,
    /// When the newest event was received that the database had.
    newest: Option<Timestamp>,
    /// Segments that had uncommitted events when the failover was noticed.
    open: usize,
    replayed: Replayed,
}

impl FailoverReplay {
    pub fn new(
        (journal, disk): (Arc<Journal>, Arc<dyn Filesystem>),
        repository: Arc<dyn EventRepository>,
        metrics: Arc<FailoverMetrics>,
        lifecycle: Lifecycle,
        clock: Clock,
    ) -> Self {
        Self { journal, disk, repository, metrics, lifecycle, clock, current: None }
    }

    /// Runs until an event arrives after the server has begun to stop.
    pub fn run(&mut self, events: &Receiver<FailoverEvent>) {
        while let Ok(event) = events.recv() {
            if self.must_stop() {
                return;
            }
            self.on_event(event);
        }
    }

    fn must_stop(&self) -> bool {
        self.lifecycle.phase() > LifecyclePhase::Serving
    }

    /// Replays the segments of the event, unless the server stops meanwhile.
    pub fn on_event(&mut self, event: FailoverEvent) {
        if let Err(ReplayStopped) = self.try_on_event(event) {
            log::warn!("the replay after a failover was stopped; it is repeated after the next start");
        }
    }

    fn try_on_event(&mut self, event: FailoverEvent) -> Result<(), ReplayStopped> {
        match event {
            FailoverEvent::Noticed { from, to, stale, open } => {
                let newest = self.on_noticed((from, to), &stale, open)?;
                let mut replayed = Replayed::default();
                let started = self.clock.now();
                for segment in stale {
                    self.replay(&segment, &mut replayed)?;
                }
                self.current = Some(CurrentFailover { from, to, started, newest, open, replayed });
            }
            FailoverEvent::Stale(segment) => {
                // None: its batch was in flight when the failover was noticed.
                let mut current = self.current.take();
                let mut late = Replayed::default();
                self.replay(&segment, current.as_mut().map_or(&mut late, |current| &mut current.replayed))?;
                self.current = current.map(|it| CurrentFailover { open: it.open.saturating_sub(1), ..it });
            }
        }
        if let Some(done) = self.current.take_if(|failover| failover.open == 0) {
            self.on_replayed(&done);
        }
        Ok(())
    }

    /// Reports the failover. Returns when the newest event was received that the database has.
    fn on_noticed(
        &self,
        (from, to): (WalPosition, WalPosition),
        stale: &[StaleSegment],
        open: usize,
    ) -> Result<Option<Timestamp>, ReplayStopped> {
        let segments = (stale.len() + open) as u64;
        let bytes: u64 = stale.iter().map(|stale| stale.bytes).sum();
        log::error!(
            segments = segments, bytes = bytes;
            "the database failed over or was set back, from {from} to {to}: events committed before may be \
             lost; replaying the retained journal segments"
        );
        self.metrics.begin(FailoverReport::new(self.clock.wall(), from, to), segments);
        self.newest_stored()
    }

    /// Every segment from before the failover is replayed.
    fn on_replayed(&self, failover: &CurrentFailover) {
        let CurrentFailover { from, to, started, newest, replayed, .. } = failover;
        let lost = replayed.reaches_further_back(*from, *to).then_some(LostWindow {
            from: *newest,
            to: replayed.first_ingested.unwrap_or(self.clock.wall()),
        });
        self.metrics.finish(lost);
        log::warn!(
            restored = replayed.all.restored, present = replayed.all.present,
            took_ms = self.clock.now().since(*started).as_millis();
            "the events of the retained segments are in the database again"
        );
        if let Some(lost) = lost {
            log::error!(
                "events that the database had stored between {} and {} may be lost: no retained segment \
                 reaches back that far (JOURNAL_RETAIN_MS, JOURNAL_RETAIN_BYTES)",
                lost.from.map_or_else(|| "the beginning".to_owned(), |time| time.to_string()),
                lost.to
            );
        }
    }

    /// When the newest stored event was received, by the event's own time. It tells about where the
    /// history of the database ends.
    fn newest_stored(&self) -> Result<Option<Timestamp>, ReplayStopped> {
        let mut log = RateLimitedLog::new(ERROR_LOG_INTERVAL);
        let newest = EventPage {
            filter: Filter::between(
                Timestamp::default(),
                Timestamp::from_millis(crate::event::MILLIS_END - 1),
            ),
            order: SortOrder::Desc,
            limit: 1,
            after: None,
        };
        loop {
            match self.repository.page(&newest, 1) {
                Ok(chunk) => return Ok(chunk.events.first().map(|event| event.ingested_at)),
                Err(error) => self.pause(&error, &mut log)?,
            }
        }
    }

    /// Replays one segment, and reports it to the journal. A segment that cannot be read stays.
    fn replay(&self, segment: &StaleSegment, replayed: &mut Replayed) -> Result<(), ReplayStopped> {
        let mut log = RateLimitedLog::new(ERROR_LOG_INTERVAL);
        let first_rows = if replayed.first.is_none() { FIRST_BATCH_ROWS } else { BATCH_ROWS_MAX };
        let mut commit = None;
        let mut on_rows = |rows: &[Row<'_>]| -> Result<(), ReplayError> {
            let batch =
                restore(&*self.repository, &self.clock, rows, &mut |error| self.pause(error, &mut log))?;
            self.metrics.restored.fetch_add(batch.restored, Ordering::Relaxed);
            self.metrics.present.fetch_add(batch.present, Ordering::Relaxed);
            commit = CommitPosition::merge_known(commit, batch.commit);
            replayed.add(batch, rows[0].ingested_at());
            Ok(())
        };
        let file = (segment.segment, segment.name.as_str());
        let read = read_batches(&*self.disk, file, first_rows, &mut on_rows);
        self.metrics.segment_replayed();
        match read {
            Ok(damage) => {
                if damage != SegmentDamage::default() {
                    log::error!(
                        segment = segment.segment, corrupt_ranges = damage.corrupt_ranges,
                        torn_bytes = damage.torn_bytes;
                        "a retained segment is corrupt: its intact records are replayed"
                    );
                }
                self.journal.restored(segment.segment, commit);
                Ok(())
            }
            Err(ReplayError::Stopped) => Err(ReplayStopped),
            Err(ReplayError::Io(error)) => {
                log::error!(
                    segment = segment.segment, bytes = segment.bytes;
                    "cannot replay the retained segment {}, the events in it may be lost: {error}", segment.name
                );
                Ok(())
            }
        }
    }

    /// Waits before the next attempt, unless the server stops.
    fn pause(&self, error: &StoreError, log: &mut RateLimitedLog) -> Result<(), ReplayStopped> {
        if let Some(suppressed) = log.due(self.clock.now()) {
            log::warn!(suppressed = suppressed; "replaying after the failover failed; retrying: {error}");
        }
        self.clock.park(&Parker::new(), RETRY_DELAY);
        if self.must_stop() { Err(ReplayStopped) } else { Ok(()) }
    }
}
