//! Keeps the state on disk: a log of changes, written in groups, and now and then a snapshot of all there is, after
//! which the log begins anew. One thread does both, a piece of the snapshot between two groups, so that nobody waits
//! longer for a group because a snapshot is being written.
//!
//! `log-N` goes on from `snapshot-N`. A snapshot has another name until it is whole and synced. After a failure nothing
//! is promised until a snapshot of what is in memory has been written and synced.

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
use super::file::{self, FileKind, Header};
use super::record;
use super::state::{Name, Owner, View, families_of};
use crate::clock::{Clock, Moment};
use crate::journal::Level;
use crate::journal::disk::{Disk, File};
use crate::logging::Thinned;

#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    /// How long a change may be in memory only.
    pub write_every: Duration,
    /// How long it may be unsynced.
    pub sync_every: Duration,
    /// Bytes of log below which no snapshot is worth its while.
    pub snapshot_bytes_min: u64,
}

/// Bytes of a snapshot written at once.
const PIECE_BYTES: usize = 1 << 20;
/// Series that are added up in one record of a snapshot.
const SUMMED_PER_RECORD: usize = 256;
const RETRY: Duration = Duration::from_secs(1);
const COMPLAIN_EVERY: Duration = Duration::from_mins(1);

/// A file that is appended to.
#[derive(Debug)]
struct Appended {
    number: u64,
    tag: [u8; 8],
    file: Box<dyn File>,
    bytes: u64,
}

impl Appended {
    fn frame(&self, out: &mut Vec<u8>, record: &[u8]) {
        file::frame(out, self.number, self.tag, record);
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write(self.bytes, bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// A snapshot on its way.
#[derive(Debug)]
struct Snapshot {
    out: Appended,
    view: View,
    at: Stage,
    records: u64,
}

#[derive(Debug)]
enum Stage {
    Groups(Option<Arc<str>>),
    Summed(Option<(Name, Owner)>),
    Keys,
    Written,
}

#[derive(Debug)]
pub struct Changelog {
    gateway: Arc<Gateway>,
    disk: Arc<dyn Disk>,
    limits: LogLimits,
    clock: Clock,
    parker: Parker,
    chance: StdRng,
    log: Option<Appended>,
    unsynced: bool,
    snapshot: Option<Snapshot>,
    /// Bytes of each log since the last whole snapshot.
    logs: BTreeMap<u64, u64>,
    snapshot_bytes: u64,
    next_number: u64,
    sync_at: Moment,
    retry_at: Moment,
    /// What is in memory is not all on disk: only a snapshot makes it so.
    whole_needed: bool,
    /// A damaged file is to make way for a snapshot of what is left. What is written meanwhile holds all the same.
    snapshot_wanted: bool,
    complaint: Thinned,
}

impl Changelog {
    /// Goes on from what the state was read from.
    pub fn new(
        gateway: Arc<Gateway>,
        disk: Arc<dyn Disk>,
        limits: LogLimits,
        clock: Clock,
        parker: Parker,
        found: &super::recovery::Found,
    ) -> Self {
        Self {
            chance: clock.rng(),
            sync_at: Moment::ZERO,
            retry_at: Moment::ZERO,
            gateway,
            disk,
            limits,
            clock,
            parker,
            log: None,
            unsynced: false,
            snapshot: None,
            logs: found.logs.clone(),
            snapshot_bytes: found.snapshot_bytes,
            next_number: found.next_number,
            whole_needed: false,
            snapshot_wanted: found.damaged,
            complaint: Thinned::new(COMPLAIN_EVERY),
        }
    }

    /// Runs until it is told to finish.
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
        if self.whole_needed {
            self.parker.park_timeout(RETRY);
        } else if self.unsynced {
            self.parker.park_timeout(self.sync_at.since(self.clock.now()));
        } else {
            self.parker.park();
        }
        // Whoever waits has it written at once; the others' changes gather a while.
        if !self.gateway.is_waited_for() && !self.gateway.is_finishing() {
            self.parker.park_timeout(self.limits.write_every);
        }
    }

    /// Writes what has come, syncs if that is due or asked for, and goes on with a snapshot.
    pub fn tick(&mut self, finishing: bool) {
        let now = self.clock.now();
        if self.whole_needed && self.snapshot.is_none() && now < self.retry_at && !finishing {
            self.gateway.disappoint();
            return;
        }
        if let Err(error) = self.work(now, finishing) {
            self.failed(&error, now);
        }
        let figures = &self.gateway.figures;
        figures.log_bytes.store(self.logs.values().sum(), Ordering::Relaxed);
    }

    fn work(&mut self, now: Moment, finishing: bool) -> io::Result<()> {
        if self.whole_needed && self.snapshot.is_none() {
            // All of memory, with what waits to be written: that is in the view.
            let (view, waiters) = self.gateway.take_all();
            Gateway::tell(waiters, Level::Memory);
            self.log = None;
            self.begin_snapshot(view)?;
        }
        let (records, mut waiters) = self.gateway.take_pending();
        if !records.is_empty() {
            let written = self.append(&records);
            if let Err(error) = written {
                Gateway::tell(waiters, Level::Memory);
                return Err(error);
            }
        }
        if self.whole_needed {
            Gateway::tell(std::mem::take(&mut waiters), Level::Memory);
        }
        let to_sync = waiters.iter().any(|waiter| waiter.level == Level::Synced);
        let (synced, written) = waiters.into_iter().partition(|waiter| waiter.level == Level::Synced);
        Gateway::tell(written, Level::Written);
        let due = self.unsynced && now >= self.sync_at;
        if to_sync || due || finishing {
            if let Err(error) = self.sync() {
                Gateway::tell(synced, Level::Memory);
                return Err(error);
            }
            Gateway::tell(synced, Level::Synced);
            self.sync_at = now.plus(self.limits.sync_every);
        }
        if self.snapshot.is_some() {
            self.go_on(finishing && self.whole_needed)?;
        } else if self.snapshot_wanted || due && self.is_worth_a_snapshot() {
            self.snapshot_wanted = false;
            self.sync()?;
            let (view, records, waiters) = self.gateway.take_view();
            let written = self.append(&records).and_then(|()| self.sync());
            let level = if written.is_ok() { Level::Synced } else { Level::Memory };
            Gateway::tell(waiters, level);
            written?;
            self.begin_snapshot(view)?;
        }
        Ok(())
    }

    fn is_worth_a_snapshot(&self) -> bool {
        let bytes: u64 = self.logs.values().sum();
        bytes > self.limits.snapshot_bytes_min.max(self.snapshot_bytes)
    }

    /// Appends records, each behind its length, to the log; makes one if there is none.
    fn append(&mut self, records: &super::Records) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        if self.log.is_none() {
            let number = self.next_number;
            self.new_log(number)?;
        }
        let log = self.log.as_mut().expect("it was made above");
        let mut bytes = Vec::with_capacity(records.bytes() + 64 * records.len());
        records.iter().for_each(|record| log.frame(&mut bytes, record));
        log.append(&bytes)?;
        self.logs.insert(log.number, log.bytes);
        self.gateway.figures.log_records.fetch_add(records.len() as u64, Ordering::Relaxed);
        if !self.unsynced {
            self.unsynced = true;
            self.sync_at = self.clock.now().plus(self.limits.sync_every);
        }
        Ok(())
    }

    fn new_log(&mut self, number: u64) -> io::Result<()> {
        self.next_number = number + 1;
        let log = self.create(FileKind::Log, number, &FileKind::Log.name(number))?;
        self.disk.sync()?;
        self.logs.insert(number, log.bytes);
        self.log = Some(log);
        Ok(())
    }

    fn create(&mut self, kind: FileKind, number: u64, name: &str) -> io::Result<Appended> {
        let mut tag = [0; 8];
        self.chance.fill_bytes(&mut tag);
        let file = self.disk.create(name)?;
        let header = Header { kind, number, tag }.encode();
        file.write(0, &header)?;
        Ok(Appended { number, tag, file, bytes: header.len() as u64 })
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(log) = self.log.as_mut().filter(|_| self.unsynced) {
            log.file.sync()?;
        }
        self.unsynced = false;
        Ok(())
    }

    /// Begins a log, and the snapshot that it goes on from.
    fn begin_snapshot(&mut self, view: View) -> io::Result<()> {
        let number = self.next_number;
        self.new_log(number)?;
        let out = self.create(FileKind::Snapshot, number, &FileKind::Snapshot.unfinished(number))?;
        self.snapshot = Some(Snapshot { out, view, at: Stage::Groups(None), records: 0 });
        Ok(())
    }

    /// Writes a piece of the snapshot, or `all` that is left.
    fn go_on(&mut self, all: bool) -> io::Result<()> {
        let Some(snapshot) = &mut self.snapshot else { return Ok(()) };
        loop {
            let piece = snapshot.piece();
            snapshot.out.append(&piece)?;
            let done = matches!(snapshot.at, Stage::Written);
            if done {
                break;
            }
            if !all {
                return Ok(());
            }
        }
        snapshot.out.file.sync()?;
        let (number, bytes) = (snapshot.out.number, snapshot.out.bytes);
        self.disk.rename(&FileKind::Snapshot.unfinished(number), &FileKind::Snapshot.name(number))?;
        self.disk.sync()?;
        self.snapshot = None;
        self.snapshot_bytes = bytes;
        self.logs = self.logs.split_off(&number);
        self.gateway.figures.snapshots.fetch_add(1, Ordering::Relaxed);
        if std::mem::take(&mut self.whole_needed) {
            log::info!("what was pushed is on disk again");
            self.gateway.healed();
        }
        self.remove_older(number);
        Ok(())
    }

    /// Removes what the snapshot `number` stands for. What stays is removed next time.
    fn remove_older(&self, number: u64) {
        let names = self.disk.names().unwrap_or_default();
        for name in names.iter().filter(|name| file::number(name).is_some_and(|(_, found)| found < number)) {
            if let Err(error) = self.disk.remove(name) {
                log::warn!("the old file {name} of the gateway stays: {error}");
            }
        }
    }

    fn failed(&mut self, error: &io::Error, now: Moment) {
        self.gateway.figures.log_failures.fetch_add(1, Ordering::Relaxed);
        self.gateway.failed();
        if let Some(held_back) = self.complaint.due(now) {
            log::error!(held_back = held_back; "the gateway's log failed, pushes are refused until it works again: {error}");
        }
        // Whatever of it is not synced is in doubt, and a sync is not tried again.
        if let Some(snapshot) = self.snapshot.take() {
            let name = FileKind::Snapshot.unfinished(snapshot.out.number);
            if let Err(error) = self.disk.remove(&name) {
                log::debug!("{name} stays: {error}");
            }
        }
        self.log = None;
        self.unsynced = false;
        self.whole_needed = true;
        self.retry_at = now.plus(RETRY);
        self.gateway.disappoint();
    }
}

impl Snapshot {
    /// The next bytes, up to the bound and one record more.
    fn piece(&mut self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 4);
        while bytes.len() < PIECE_BYTES {
            match &mut self.at {
                Stage::Groups(_) => self.groups(&mut bytes),
                Stage::Summed(_) => self.summed(&mut bytes),
                Stage::Keys => self.keys(&mut bytes),
                Stage::Written => break,
            }
        }
        bytes
    }

    fn put(&mut self, bytes: &mut Vec<u8>, record: &[u8]) {
        self.out.frame(bytes, record);
        self.records += 1;
    }

    fn groups(&mut self, bytes: &mut Vec<u8>) {
        let Stage::Groups(behind) = &mut self.at else { return };
        let from = behind.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.view.groups.range((from, Bound::Unbounded)).next();
        let Some((key, group)) = next.map(|(key, group)| (key.clone(), group.clone())) else {
            self.at = Stage::Summed(None);
            return;
        };
        let owner = Owner::Group(key.clone());
        let names: Vec<Name> = families_of(&self.view.members, &key).collect();
        let blocks = names.iter().map(|name| {
            let block = &self.view.blocks[&(name.clone(), owner.clone())];
            (&**name, &**block)
        });
        let mut out = Vec::new();
        record::group(&mut out, &group.target, (group.push_s, group.failure_s), true, blocks);
        self.put(bytes, &out);
        self.at = Stage::Groups(Some(key));
    }

    fn summed(&mut self, bytes: &mut Vec<u8>) {
        let Stage::Summed(behind) = &mut self.at else { return };
        let from = behind.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut out = Vec::new();
        let start = record::begin_sum(&mut out);
        let (mut last, mut series) = (None, 0);
        // Groups' blocks lie between; they count as steps, so that a turn is bounded.
        for (key, block) in self.view.blocks.range((from, Bound::Unbounded)).take(SUMMED_PER_RECORD) {
            if matches!(key.1, Owner::Summed(_)) {
                record::summed(&mut out, &key.0, block);
                series += 1;
            }
            last = Some(key.clone());
        }
        if series > 0 {
            record::finish_sum(&mut out, start, series, None);
            self.put(bytes, &out);
        }
        self.at = match last {
            Some(_) => Stage::Summed(last),
            None => Stage::Keys,
        };
    }

    fn keys(&mut self, bytes: &mut Vec<u8>) {
        let keys: Vec<_> = self.view.keys.iter().collect();
        for known in keys {
            let mut out = Vec::new();
            let start = record::begin_sum(&mut out);
            record::finish_sum(&mut out, start, 0, Some(known));
            self.put(bytes, &out);
        }
        let mut out = Vec::new();
        record::end(&mut out, self.records);
        self.out.frame(bytes, &out);
        self.at = Stage::Written;
    }
}
