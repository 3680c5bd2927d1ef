//! The disk and the database of the simulation. At each call another stage may run, the call may
//! fail, or the process may end.

use std::fmt;
use std::io;
use std::sync::Arc;

use aurore_events::event::{EventId, Timestamp};
use aurore_events::journal::filesystem::{File, Filesystem};
use aurore_events::storage::wal::FailoverDetector;
use aurore_events::storage::{
    Chunk, CommitPosition, CountInterval, CreatePartitionLimits, CreatePartitionOutcome, DatabaseState, Day,
    DeadLetter, DefaultPartition, EventPage, EventRepository, EventStatus, Filter, IntervalCount,
    RetentionSweep, StoreError, StorePath, Stored, SweepConditions, Totals,
};

use super::files::SimDirectory;
use super::simulation::{CallOutcome, Simulation};

pub(super) struct SimFilesystem(pub(super) Arc<Simulation>);

struct SimFile {
    simulation: Arc<Simulation>,
    file: usize,
}

impl fmt::Debug for SimFilesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimFilesystem")
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFile({})", self.file)
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl Filesystem for SimFilesystem {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.yield_point("names");
        if self.0.fails("names") { Err(eio()) } else { Ok(self.0.files().names()) }
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.0.yield_point("create");
        self.0.trace(|| format!("    {name}"));
        if self.0.is_full() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.0.fails("create") {
            // The file may exist nevertheless.
            if self.0.fault_occurs(0.5) {
                self.0.files().create(name);
            }
            return Err(eio());
        }
        let file = self.0.files().create(name).ok_or(io::ErrorKind::AlreadyExists)?;
        self.0.yield_point("created");
        Ok(Box::new(SimFile { simulation: self.0.clone(), file }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.0.yield_point("open");
        self.0.trace(|| format!("    {name}"));
        if self.0.fails("open") {
            return Err(eio());
        }
        let file = self.0.files().find(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { simulation: self.0.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.yield_point("rename");
        if self.0.fails("rename") {
            return Err(eio());
        }
        let renamed = self.0.files().rename(from, to);
        self.0.yield_point("renamed");
        if renamed { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.yield_point("remove");
        self.0.trace(|| format!("    {name}"));
        if self.0.fails("remove") {
            return Err(eio());
        }
        let removed = self.0.files().remove(name);
        self.0.yield_point("removed");
        if removed { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.0.yield_point("sync of names");
        if self.0.fails("sync of names") {
            self.0.with_files_and_rng(SimDirectory::fail_names_sync);
            return Err(eio());
        }
        self.0.files().sync_names();
        self.0.yield_point("names synced");
        Ok(())
    }
}

impl File for SimFile {
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).expect("files are small");
        self.simulation.yield_point("write");
        self.simulation.trace(|| format!("    {} bytes at {at} of file {}", bytes.len(), self.file));
        let error = if self.simulation.is_full() {
            Some(io::ErrorKind::StorageFull.into())
        } else if self.simulation.fails("write") {
            Some(eio())
        } else {
            None
        };
        if error.is_some() || self.simulation.fault_occurs(0.02) {
            let part = self.simulation.random_below(bytes.len() + 1);
            self.simulation.files().write(self.file, at, &bytes[..part]);
            // Written in two parts, since the process may end between them.
            self.simulation.yield_point("half written");
            if let Some(error) = error {
                return Err(error);
            }
            self.simulation.files().write(self.file, at + part, &bytes[part..]);
        } else {
            self.simulation.files().write(self.file, at, bytes);
        }
        self.simulation.yield_point("written");
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.simulation.yield_point("sync");
        self.simulation.files().begin_sync(self.file);
        // Other stages may write meanwhile.
        self.simulation.yield_point("syncing");
        if self.simulation.fails("sync") {
            let file = self.file;
            self.simulation.with_files_and_rng(|files, rng| files.fail_sync(file, rng));
            return Err(eio());
        }
        self.simulation.files().end_sync(self.file);
        self.simulation.yield_point("synced");
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        if self.simulation.fails("bytes") {
            return Err(eio());
        }
        Ok(self.simulation.files().content(self.file).len() as u64)
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.simulation.yield_point("read");
        self.simulation.trace(|| format!("    {} bytes at {at} of file {}", into.len(), self.file));
        if self.simulation.fails("read") {
            return Err(eio());
        }
        let at = usize::try_from(at).expect("files are small");
        let files = self.simulation.files();
        let from = files.content(self.file).get(at..at + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }
}

/// The in-memory repository, behind a network that fails. Each call opens a connection.
pub(super) struct SimRepository {
    pub(super) simulation: Arc<Simulation>,
    pub(super) detector: Arc<FailoverDetector>,
    /// Whether the ledger counts the rows that are stored.
    pub(super) counts: bool,
}

impl SimRepository {
    /// Connects. Returns the epoch of the connection, and the failovers until then.
    fn connect(&self) -> (u64, u64) {
        let database = &self.simulation.database;
        let (before, failovers) = (self.detector.known(), database.failovers());
        (self.detector.observe(before, database.position()), failovers)
    }
}

impl fmt::Debug for SimRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimRepository")
    }
}

impl EventRepository for SimRepository {
    fn prepare(&self) -> Result<(), StoreError> {
        self.simulation.yield_point("prepare");
        match self.simulation.outcome() {
            CallOutcome::Done => self.simulation.database.tables.prepare(),
            CallOutcome::Failed(error) | CallOutcome::DoneAndFailed(error) => Err(error),
        }
    }

    fn store(&self, runs: &[&[u8]], dead: &[DeadLetter<'_>], path: StorePath) -> Result<Stored, StoreError> {
        let (simulation, database) = (&self.simulation, &self.simulation.database);
        let (epoch, failovers) = self.connect();
        simulation.yield_point("store");
        let outcome = simulation.outcome();
        if let CallOutcome::Failed(error) = outcome {
            return Err(error);
        }
        if database.failovers() != failovers {
            return Err(StoreError::client_side("the server of this connection is gone"));
        }
        let stored = database.tables.store(runs, dead, path)?;
        database.advance();
        let wal = database.position();
        simulation.yield_point("committed");
        if let CallOutcome::DoneAndFailed(error) = outcome {
            return Err(error);
        }
        let before = self.detector.known();
        if database.failovers() == failovers {
            self.detector.observe(before, database.position());
        }
        if self.counts {
            simulation.record_stored(stored);
        }
        Ok(Stored { commit: Some(CommitPosition { epoch, wal }), ..stored })
    }

    fn trial_insert(&self, now: Timestamp) -> Result<(), StoreError> {
        self.simulation.yield_point("trial insert");
        match self.simulation.outcome() {
            CallOutcome::Done => self.simulation.database.tables.trial_insert(now),
            CallOutcome::Failed(error) | CallOutcome::DoneAndFailed(error) => Err(error),
        }
    }

    fn page(&self, page: &EventPage, bytes_max: usize) -> Result<Chunk, StoreError> {
        self.simulation.yield_point("page");
        match self.simulation.outcome() {
            CallOutcome::Done => self.simulation.database.tables.page(page, bytes_max),
            CallOutcome::Failed(error) | CallOutcome::DoneAndFailed(error) => Err(error),
        }
    }

    fn count(&self, _filter: &Filter) -> Result<u64, StoreError> {
        unreachable!("the model counts nothing")
    }

    fn interval_counts(
        &self,
        _filter: &Filter,
        _interval: CountInterval,
        _rows_max: u32,
    ) -> Result<Vec<IntervalCount>, StoreError> {
        unreachable!("the model counts nothing")
    }

    fn find(&self, _id: EventId) -> Result<Option<EventStatus>, StoreError> {
        unreachable!("the model looks up no event")
    }

    fn totals(&self, _since: Timestamp, _services_max: u16) -> Result<Totals, StoreError> {
        unreachable!("the model counts nothing")
    }

    fn ping(&self) -> Result<(), StoreError> {
        unreachable!("the probe asks for the state")
    }

    fn state(&self) -> Result<DatabaseState, StoreError> {
        match self.simulation.outcome() {
            CallOutcome::Done => {
                let epoch = self.connect().0;
                let wal = self.simulation.database.position();
                let position = Some(CommitPosition { epoch, wal });
                Ok(DatabaseState { position, standby_flushed: None })
            }
            CallOutcome::Failed(error) | CallOutcome::DoneAndFailed(error) => Err(error),
        }
    }

    fn partition_days(&self) -> Result<Vec<Day>, StoreError> {
        unreachable!("the model runs no sweep")
    }

    fn create_partition(
        &self,
        _day: Day,
        _limits: CreatePartitionLimits,
    ) -> Result<CreatePartitionOutcome, StoreError> {
        unreachable!("the model creates no partitions")
    }

    fn default_partition(&self) -> Result<DefaultPartition, StoreError> {
        unreachable!("the model creates no partitions")
    }

    fn sweep_conditions(&self) -> Result<SweepConditions, StoreError> {
        unreachable!("the model runs no sweep")
    }

    fn last_sweep(&self) -> Result<Option<Timestamp>, StoreError> {
        unreachable!("the model runs no sweep")
    }

    fn begin_sweep(&self, _edge: Timestamp) -> Result<Option<Box<dyn RetentionSweep + '_>>, StoreError> {
        unreachable!("the model runs no sweep")
    }
}
