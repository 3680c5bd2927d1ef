//! Persists the state: a write-ahead log of changes, written in batches, and snapshots after which
//! a new log begins. One thread does both and writes one chunk of a snapshot between two batches,
//! so that a snapshot does not delay waiters.
//!
//! `snapshot-N` holds the state before the first record of `log-N`. A snapshot has a temporary name
//! until it is complete and synced. After a write or sync failure all pushes are refused until a
//! snapshot of the whole in-memory state has been written and synced.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::sync::Parker;
use rand::Rng;
use rand::rngs::StdRng;

use super::Gateway;
use super::file::{self, FileKind};
use super::record;
use super::state::{Name, Owner, Snapshot, families_of};
use crate::clock::{Clock, Moment};
use crate::journal::Durability;
use crate::journal::filesystem::{File, Filesystem};
use crate::logging::RateLimitedLog;

#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// The longest time a change stays unwritten.
    pub write_interval: Duration,
    /// The longest time a written change stays unsynced.
    pub sync_interval: Duration,
    /// No snapshot is taken while the logs are shorter than this.
    pub snapshot_bytes_min: u64,
}

/// Bytes of a snapshot per write.
const CHUNK_BYTES: usize = 1 << 20;
/// Blocks that are scanned for one record of a snapshot.
const SERIES_PER_RECORD: usize = 256;
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const ERROR_LOG_INTERVAL: Duration = Duration::from_mins(1);

/// A log or snapshot file that is appended to.
#[derive(Debug)]
struct LogFile {
    number: u64,
    tag: [u8; 8],
    file: Box<dyn File>,
    bytes: u64,
}

impl LogFile {
    fn frame_record(&self, out: &mut Vec<u8>, record: &[u8]) {
        file::write_record(out, self.number, self.tag, record);
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write(self.bytes, bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// A snapshot that is being written.
#[derive(Debug)]
struct SnapshotWriter {
    out: LogFile,
    state: Snapshot,
    stage: SnapshotStage,
    records: u64,
}

#[derive(Debug)]
enum SnapshotStage {
    Groups(Option<Arc<str>>),
    Aggregated(Option<(Name, Owner)>),
    Keys,
    Complete,
}

#[derive(Debug)]
pub struct WalWriter {
    gateway: Arc<Gateway>,
    disk: Arc<dyn Filesystem>,
    options: WalOptions,
    clock: Clock,
    parker: Parker,
    rng: StdRng,
    log: Option<LogFile>,
    unsynced: bool,
    snapshot: Option<SnapshotWriter>,
    /// Bytes of each log since the last complete snapshot.
    logs: BTreeMap<u64, u64>,
    snapshot_bytes: u64,
    next_number: u64,
    sync_at: Moment,
    retry_at: Moment,
    /// A write or sync failed: changes in memory may be missing on disk, and only a snapshot makes
    /// them durable.
    snapshot_required: bool,
    /// Recovery found a corrupt file: a snapshot of the recovered state must replace it. The log is
    /// written as usual meanwhile.
    snapshot_requested: bool,
    error_log: RateLimitedLog,
}

impl WalWriter {
    /// Continues after recovery.
    pub fn new(
        gateway: Arc<Gateway>,
        disk: Arc<dyn Filesystem>,
        options: WalOptions,
        clock: Clock,
        parker: Parker,
        recovered: &super::recovery::GatewayRecovery,
    ) -> Self {
        Self {
            rng: clock.rng(),
            sync_at: Moment::ZERO,
            retry_at: Moment::ZERO,
            gateway,
            disk,
            options,
            clock,
            parker,
            log: None,
            unsynced: false,
            snapshot: None,
            logs: recovered.logs.clone(),
            snapshot_bytes: recovered.snapshot_bytes,
            next_number: recovered.next_number,
            snapshot_required: false,
            snapshot_requested: recovered.is_incomplete,
            error_log: RateLimitedLog::new(ERROR_LOG_INTERVAL),
        }
    }

    /// Runs until [`Gateway::finish`] is called.
    pub fn run(&mut self) {
        loop {
            let finishing = self.gateway.is_finishing();
            self.tick(finishing);
            if finishing {
                return;
            }
            self.sleep();
        }
    }

    fn sleep(&mut self) {
        if self.snapshot.is_some() {
            return;
        }
        if self.snapshot_required {
            self.parker.park_timeout(RETRY_INTERVAL);
        } else if self.unsynced {
            self.parker.park_timeout(self.sync_at.since(self.clock.now()));
        } else {
            self.parker.park();
        }
        // Waiters are served at once; other changes are batched for a while.
        if !self.gateway.has_waiters() && !self.gateway.is_finishing() {
            self.parker.park_timeout(self.options.write_interval);
        }
    }

    /// Writes pending records, syncs if that is due or requested, and continues a snapshot.
    pub fn tick(&mut self, finishing: bool) {
        let now = self.clock.now();
        if self.snapshot_required && self.snapshot.is_none() && now < self.retry_at && !finishing {
            self.gateway.fail_waiters();
            return;
        }
        if let Err(error) = self.write_and_sync(now, finishing) {
            self.handle_failure(&error, now);
        }
        let metrics = &self.gateway.metrics;
        metrics.log_bytes.store(self.logs.values().sum(), Ordering::Relaxed);
    }

    fn write_and_sync(&mut self, now: Moment, finishing: bool) -> io::Result<()> {
        if self.snapshot_required && self.snapshot.is_none() {
            // The snapshot covers the pending records too.
            let (snapshot, waiters) = self.gateway.take_unlogged_snapshot();
            Gateway::complete_waiters(waiters, Durability::Memory);
            self.log = None;
            self.begin_snapshot(snapshot)?;
        }
        let (records, mut waiters) = self.gateway.take_pending();
        if !records.is_empty() {
            let written = self.append(&records);
            if let Err(error) = written {
                Gateway::complete_waiters(waiters, Durability::Memory);
                return Err(error);
            }
        }
        if self.snapshot_required {
            Gateway::complete_waiters(std::mem::take(&mut waiters), Durability::Memory);
        }
        let to_sync = waiters.iter().any(|waiter| waiter.level == Durability::Synced);
        let (synced, written) = waiters.into_iter().partition(|waiter| waiter.level == Durability::Synced);
        Gateway::complete_waiters(written, Durability::Written);
        let due = self.unsynced && now >= self.sync_at;
        if to_sync || due || finishing {
            if let Err(error) = self.sync() {
                Gateway::complete_waiters(synced, Durability::Memory);
                return Err(error);
            }
            Gateway::complete_waiters(synced, Durability::Synced);
            self.sync_at = now.plus(self.options.sync_interval);
        }
        if self.snapshot.is_some() {
            self.write_snapshot(finishing && self.snapshot_required)?;
        } else if self.snapshot_requested || (to_sync || due) && self.is_snapshot_due() {
            self.snapshot_requested = false;
            self.sync()?;
            let (snapshot, records, waiters) = self.gateway.take_snapshot();
            let written = self.append(&records).and_then(|()| self.sync());
            let level = if written.is_ok() { Durability::Synced } else { Durability::Memory };
            Gateway::complete_waiters(waiters, level);
            written?;
            self.begin_snapshot(snapshot)?;
        }
        Ok(())
    }

    fn is_snapshot_due(&self) -> bool {
        let bytes: u64 = self.logs.values().sum();
        bytes > self.options.snapshot_bytes_min.max(self.snapshot_bytes)
    }

    /// Appends framed records to the log. Creates a log if none is open.
    fn append(&mut self, records: &super::PendingRecords) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        if self.log.is_none() {
            let number = self.next_number;
            self.create_log(number)?;
        }
        let log = self.log.as_mut().expect("created above");
        let mut bytes = Vec::with_capacity(records.bytes() + 64 * records.len());
        records.iter().for_each(|record| log.frame_record(&mut bytes, record));
        log.append(&bytes)?;
        self.logs.insert(log.number, log.bytes);
        self.gateway.metrics.log_records.fetch_add(records.len() as u64, Ordering::Relaxed);
        if !self.unsynced {
            self.unsynced = true;
            self.sync_at = self.clock.now().plus(self.options.sync_interval);
        }
        Ok(())
    }

    fn create_log(&mut self, number: u64) -> io::Result<()> {
        self.next_number = number + 1;
        let log = self.create_file(FileKind::Log, number, &FileKind::Log.name(number))?;
        self.disk.sync_dir()?;
        self.logs.insert(number, log.bytes);
        self.log = Some(log);
        Ok(())
    }

    fn create_file(&mut self, kind: FileKind, number: u64, name: &str) -> io::Result<LogFile> {
        let mut tag = [0; 8];
        self.rng.fill_bytes(&mut tag);
        let file = self.disk.create(name)?;
        let header = file::encode_header(kind, number, tag);
        file.write(0, &header)?;
        Ok(LogFile { number, tag, file, bytes: header.len() as u64 })
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(log) = self.log.as_mut().filter(|_| self.unsynced) {
            log.file.sync()?;
        }
        self.unsynced = false;
        Ok(())
    }

    /// Creates a log and starts the snapshot before it.
    fn begin_snapshot(&mut self, snapshot: Snapshot) -> io::Result<()> {
        let number = self.next_number;
        self.create_log(number)?;
        let out = self.create_file(FileKind::Snapshot, number, &FileKind::Snapshot.temporary_name(number))?;
        self.snapshot =
            Some(SnapshotWriter { out, state: snapshot, stage: SnapshotStage::Groups(None), records: 0 });
        Ok(())
    }

    /// Writes the next chunk of the snapshot, or with `all` the rest of it.
    fn write_snapshot(&mut self, all: bool) -> io::Result<()> {
        let Some(snapshot) = &mut self.snapshot else { return Ok(()) };
        loop {
            let chunk = snapshot.next_chunk();
            snapshot.out.append(&chunk)?;
            let done = matches!(snapshot.stage, SnapshotStage::Complete);
            if done {
                break;
            }
            if !all {
                return Ok(());
            }
        }
        snapshot.out.file.sync()?;
        let (number, bytes) = (snapshot.out.number, snapshot.out.bytes);
        self.disk.rename(&FileKind::Snapshot.temporary_name(number), &FileKind::Snapshot.name(number))?;
        self.disk.sync_dir()?;
        self.snapshot = None;
        self.snapshot_bytes = bytes;
        self.logs = self.logs.split_off(&number);
        self.gateway.metrics.snapshots.fetch_add(1, Ordering::Relaxed);
        if std::mem::take(&mut self.snapshot_required) {
            log::info!("the gateway log works again: the whole state is on disk");
            self.gateway.clear_log_failed();
        }
        self.remove_files_before(number);
        Ok(())
    }

    /// Removes the files that snapshot `number` replaces. Failures are retried after the next
    /// snapshot.
    fn remove_files_before(&self, number: u64) {
        let names = self.disk.list().unwrap_or_default();
        for name in
            names.iter().filter(|name| file::parse_name(name).is_some_and(|(_, found)| found < number))
        {
            if let Err(error) = self.disk.remove(name) {
                log::warn!("cannot remove the old gateway file {name}: {error}");
            }
        }
    }

    fn handle_failure(&mut self, error: &io::Error, now: Moment) {
        self.gateway.metrics.log_failures.fetch_add(1, Ordering::Relaxed);
        self.gateway.set_log_failed();
        if let Some(suppressed) = self.error_log.due(now) {
            log::error!(suppressed; "the gateway log failed; pushes are refused until a snapshot has been written: {error}");
        }
        // Data that is not synced may be lost even if a later sync succeeds, so the files are
        // abandoned.
        if let Some(snapshot) = self.snapshot.take() {
            let name = FileKind::Snapshot.temporary_name(snapshot.out.number);
            if let Err(error) = self.disk.remove(&name) {
                log::debug!("cannot remove the incomplete snapshot {name}: {error}");
            }
        }
        self.log = None;
        self.unsynced = false;
        self.snapshot_required = true;
        self.retry_at = now.plus(RETRY_INTERVAL);
        self.gateway.fail_waiters();
    }
}

impl SnapshotWriter {
    /// The next records, until they exceed [`CHUNK_BYTES`].
    fn next_chunk(&mut self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4);
        while bytes.len() < CHUNK_BYTES {
            match &mut self.stage {
                SnapshotStage::Groups(_) => self.write_group(&mut bytes),
                SnapshotStage::Aggregated(_) => self.write_aggregated(&mut bytes),
                SnapshotStage::Keys => self.write_keys(&mut bytes),
                SnapshotStage::Complete => break,
            }
        }
        bytes
    }

    fn write_record(&mut self, bytes: &mut Vec<u8>, record: &[u8]) {
        self.out.frame_record(bytes, record);
        self.records += 1;
    }

    fn write_group(&mut self, bytes: &mut Vec<u8>) {
        let SnapshotStage::Groups(after) = &mut self.stage else { return };
        let from = after.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.state.groups.range((from, Bound::Unbounded)).next();
        let Some((key, group)) = next.map(|(key, group)| (key.clone(), group.clone())) else {
            self.stage = SnapshotStage::Aggregated(None);
            return;
        };
        let owner = Owner::Group(key.clone());
        let names: Vec<Name> = families_of(&self.state.group_families, &key, Bound::Unbounded).collect();
        let blocks = names.iter().map(|name| {
            let block = &self.state.blocks[&(name.clone(), owner.clone())];
            (&**name, &**block)
        });
        let mut out = Vec::new();
        record::encode_group(
            &mut out,
            &group.grouping_key,
            (group.last_success_s, group.last_failure_s),
            true,
            blocks,
        );
        self.write_record(bytes, &out);
        self.stage = SnapshotStage::Groups(Some(key));
    }

    fn write_aggregated(&mut self, bytes: &mut Vec<u8>) {
        let SnapshotStage::Aggregated(after) = &mut self.stage else { return };
        let from = after.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut out = Vec::new();
        let start = record::begin_aggregated(&mut out);
        let (mut last, mut series) = (None, 0);
        // Blocks of groups are interleaved; they count towards the bound on the work of one call.
        for (key, block) in self.state.blocks.range((from, Bound::Unbounded)).take(SERIES_PER_RECORD) {
            if matches!(key.1, Owner::Aggregated(_)) {
                record::encode_series(&mut out, &key.0, block);
                series += 1;
            }
            last = Some(key.clone());
        }
        if series > 0 {
            record::finish_aggregated(&mut out, start, series, None);
            self.write_record(bytes, &out);
        }
        self.stage = match last {
            Some(_) => SnapshotStage::Aggregated(last),
            None => SnapshotStage::Keys,
        };
    }

    fn write_keys(&mut self, bytes: &mut Vec<u8>) {
        let keys: Vec<_> = self.state.keys.iter().collect();
        for known in keys {
            let mut out = Vec::new();
            let start = record::begin_aggregated(&mut out);
            record::finish_aggregated(&mut out, start, 0, Some(known));
            self.write_record(bytes, &out);
        }
        let mut out = Vec::new();
        record::encode_end(&mut out, self.records);
        self.out.frame_record(bytes, &out);
        self.stage = SnapshotStage::Complete;
    }
}
