//! Replays retained journal segments after a failover: the database that answers now may lack events
//! that another one had committed. The journal notices the failover and names the segments.
//!
//! [`FailoverReplay`] is the state of the thread `failover`. It stores rows by a transaction of its own,
//! beside the writer, and outside of the buffer and the ledger: the events were counted as stored
//! before. It must not depend on requests.

mod restore;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

pub use restore::{Restored, restore};

use crate::clock::{Clock, Moment};
use crate::event::Timestamp;
use crate::event::row::{Row, rows};
use crate::journal::filesystem::Filesystem;
use crate::journal::reader::{OpenSegmentError, SegmentReader};
use crate::journal::{FailoverEvent, Journal, StaleSegment};
use crate::logging::RateLimitedLog;
use crate::metrics::{FailoverMetrics, FailoverReport, LostWindow};
use crate::storage::wal::WalPosition;
use crate::storage::{CommitPosition, EventPage, EventRepository, Filter, SortOrder, StoreError};

/// Rows and bytes of one transaction.
const BATCH_ROWS_MAX: usize = 5_000;
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Rows of the first transaction. If the database lacks all of them, it probably lacks older events
/// too.
const FIRST_BATCH_ROWS: usize = 500;
/// Pause after an error of the database.
const RETRY_DELAY: Duration = Duration::from_secs(1);
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct FailoverReplay {
    pub journal: Arc<Journal>,
    pub disk: Arc<dyn Filesystem>,
    pub repository: Arc<dyn EventRepository>,
    pub metrics: Arc<FailoverMetrics>,
    pub clock: Clock,
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

/// What the replay of segments has found.
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
    /// Runs until the sender of `stop` is dropped.
    pub fn run(&self, events: &Receiver<FailoverEvent>, stop: &Receiver<()>) {
        let mut current = None;
        loop {
            crossbeam::channel::select! {
                recv(events) -> event => {
                    let Ok(event) = event else { return };
                    if self.on_event(event, &mut current, stop).is_err() {
                        return;
                    }
                }
                recv(stop) -> _ => return,
            }
        }
    }

    fn on_event(
        &self,
        event: FailoverEvent,
        current: &mut Option<CurrentFailover>,
        stop: &Receiver<()>,
    ) -> Result<(), ReplayStopped> {
        match event {
            FailoverEvent::Noticed { from, to, stale, open } => {
                let newest = self.on_noticed((from, to), &stale, open, stop)?;
                let (started, replayed) = (self.clock.now(), Replayed::default());
                let failover = current.insert(CurrentFailover { from, to, started, newest, open, replayed });
                for segment in stale {
                    self.replay(&segment, &mut failover.replayed, stop)?;
                }
            }
            FailoverEvent::Stale(segment) => match current {
                Some(failover) => {
                    failover.open = failover.open.saturating_sub(1);
                    self.replay(&segment, &mut failover.replayed, stop)?;
                }
                // Its batch was in flight when the failover was noticed.
                None => self.replay(&segment, &mut Replayed::default(), stop)?,
            },
        }
        if let Some(done) = current.take_if(|failover| failover.open == 0) {
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
        stop: &Receiver<()>,
    ) -> Result<Option<Timestamp>, ReplayStopped> {
        let segments = (stale.len() + open) as u64;
        let bytes: u64 = stale.iter().map(|stale| stale.bytes).sum();
        log::error!(
            segments = segments, bytes = bytes;
            "the database failed over or was set back, from {from} to {to}: events committed before may be \
             lost; replaying the retained journal segments"
        );
        self.metrics.begin(FailoverReport::new(self.clock.wall(), from, to), segments);
        self.newest_stored(stop)
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
    fn newest_stored(&self, stop: &Receiver<()>) -> Result<Option<Timestamp>, ReplayStopped> {
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
                Err(error) => self.pause(&error, &mut log, stop)?,
            }
        }
    }

    /// Replays one segment, and reports it to the journal. A segment that cannot be read stays.
    fn replay(
        &self,
        segment: &StaleSegment,
        replayed: &mut Replayed,
        stop: &Receiver<()>,
    ) -> Result<(), ReplayStopped> {
        let mut log = RateLimitedLog::new(ERROR_LOG_INTERVAL);
        let first_rows = if replayed.first.is_none() { FIRST_BATCH_ROWS } else { BATCH_ROWS_MAX };
        let mut commit = None;
        let mut on_rows = |rows: &[Row<'_>]| {
            let Some(first) = rows.first() else { return Ok(()) };
            let batch = restore(&*self.repository, &self.clock, rows, &mut |error| {
                self.pause(error, &mut log, stop)
            })?;
            self.metrics.restored.fetch_add(batch.restored, Ordering::Relaxed);
            self.metrics.present.fetch_add(batch.present, Ordering::Relaxed);
            commit = CommitPosition::merge_known(commit, batch.commit);
            replayed.add(batch, first.ingested_at());
            Ok(())
        };
        let read = read_batches(&*self.disk, segment, first_rows, &mut on_rows);
        self.metrics.segment_replayed();
        match read {
            Ok(()) => {
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
    fn pause(
        &self,
        error: &StoreError,
        log: &mut RateLimitedLog,
        stop: &Receiver<()>,
    ) -> Result<(), ReplayStopped> {
        if let Some(suppressed) = log.due(self.clock.now()) {
            log::warn!(suppressed = suppressed; "replaying after the failover failed; retrying: {error}");
        }
        match stop.recv_timeout(RETRY_DELAY) {
            Err(RecvTimeoutError::Timeout) | Ok(()) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(ReplayStopped),
        }
    }
}

/// Reads a retained segment and passes its rows on in batches, the first of `first_rows` at most.
fn read_batches(
    disk: &dyn Filesystem,
    segment: &StaleSegment,
    first_rows: usize,
    on_rows: &mut dyn FnMut(&[Row<'_>]) -> Result<(), ReplayStopped>,
) -> Result<(), ReplayError> {
    let mut reader =
        SegmentReader::open(disk.open(&segment.name)?, segment.segment).map_err(|error| match error {
            OpenSegmentError::Io(error) => error,
            OpenSegmentError::UnsupportedVersion(error) => io::Error::new(io::ErrorKind::InvalidData, error),
        })?;
    let (mut bytes, mut count, mut rows_max) = (Vec::new(), 0, first_rows);
    while let Some(record) = reader.next_record()? {
        for row in rows(record.bytes) {
            if count == rows_max || bytes.len() + row.bytes().len() > BATCH_BYTES_MAX {
                on_rows(&rows(&bytes).collect::<Vec<_>>())?;
                bytes.clear();
                (count, rows_max) = (0, BATCH_ROWS_MAX);
            }
            bytes.extend_from_slice(row.bytes());
            count += 1;
        }
    }
    on_rows(&rows(&bytes).collect::<Vec<_>>())?;
    let damage = reader.damage();
    if damage.corrupt_ranges > 0 || damage.header_corrupt || damage.torn_bytes > 0 {
        log::error!(
            segment = segment.segment, corrupt_ranges = damage.corrupt_ranges, torn_bytes = damage.torn_bytes;
            "a retained segment is corrupt: its intact records are replayed"
        );
    }
    Ok(())
}
