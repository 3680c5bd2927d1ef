//! What the stages meet outside: the disk and the database of the model. Each call is a point at which others take
//! their turn, something fails, or the process ends.

use std::fmt;
use std::io;
use std::sync::Arc;

use aurore_events::event::{EventId, Timestamp};
use aurore_events::journal::disk::{Disk, File};
use aurore_events::storage::{
    Chunk, Day, DeadLetter, EventRepository, Filter, Found, HourCount, Page, StoreError, StorePath, Stored,
    Sweeping, Tidied, Totals,
};

use super::files::Files;
use super::world::{Fate, World};

pub(super) struct SimDisk(pub(super) Arc<World>);

struct SimFile {
    world: Arc<World>,
    file: usize,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
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

impl Disk for SimDisk {
    fn names(&self) -> io::Result<Vec<String>> {
        self.0.turn("names");
        if self.0.fails("names") { Err(eio()) } else { Ok(self.0.files().names()) }
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.0.turn("create");
        self.0.say(|| format!("    {name}"));
        if self.0.is_full() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.0.fails("create") {
            // It may be there all the same.
            if self.0.toss(0.5) {
                self.0.files().create(name);
            }
            return Err(eio());
        }
        let file = self.0.files().create(name).ok_or(io::ErrorKind::AlreadyExists)?;
        self.0.turn("created");
        Ok(Box::new(SimFile { world: self.0.clone(), file }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.0.turn("open");
        self.0.say(|| format!("    {name}"));
        if self.0.fails("open") {
            return Err(eio());
        }
        let file = self.0.files().find(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { world: self.0.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.turn("rename");
        if self.0.fails("rename") {
            return Err(eio());
        }
        let renamed = self.0.files().rename(from, to);
        self.0.turn("renamed");
        if renamed { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.turn("remove");
        self.0.say(|| format!("    {name}"));
        if self.0.fails("remove") {
            return Err(eio());
        }
        let removed = self.0.files().remove(name);
        self.0.turn("removed");
        if removed { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.turn("sync of names");
        if self.0.fails("sync of names") {
            self.0.with_files_and_chance(Files::fail_to_sync_names);
            return Err(eio());
        }
        self.0.files().sync_names();
        self.0.turn("names synced");
        Ok(())
    }
}

impl File for SimFile {
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).expect("files are small");
        self.world.turn("write");
        self.world.say(|| format!("    {} bytes at {at} of file {}", bytes.len(), self.file));
        let error = if self.world.is_full() {
            Some(io::ErrorKind::StorageFull.into())
        } else if self.world.fails("write") {
            Some(eio())
        } else {
            None
        };
        if error.is_some() || self.world.toss(0.02) {
            let part = self.world.below(bytes.len() + 1);
            self.world.files().write(self.file, at, &bytes[..part]);
            // Written in two parts: the process may end between them.
            self.world.turn("half written");
            if let Some(error) = error {
                return Err(error);
            }
            self.world.files().write(self.file, at + part, &bytes[part..]);
        } else {
            self.world.files().write(self.file, at, bytes);
        }
        self.world.turn("written");
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.world.turn("sync");
        self.world.files().begin_sync(self.file);
        // Others write on meanwhile.
        self.world.turn("syncing");
        if self.world.fails("sync") {
            let file = self.file;
            self.world.with_files_and_chance(|files, chance| files.fail_to_sync(file, chance));
            return Err(eio());
        }
        self.world.files().end_sync(self.file);
        self.world.turn("synced");
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        if self.world.fails("bytes") {
            return Err(eio());
        }
        Ok(self.world.files().content(self.file).len() as u64)
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.world.turn("read");
        self.world.say(|| format!("    {} bytes at {at} of file {}", into.len(), self.file));
        if self.world.fails("read") {
            return Err(eio());
        }
        let at = usize::try_from(at).expect("files are small");
        let files = self.world.files();
        let from = files.content(self.file).get(at..at + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }
}

/// The repository in memory, behind a network that fails.
pub(super) struct SimRepository(pub(super) Arc<World>);

impl fmt::Debug for SimRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimRepository")
    }
}

impl EventRepository for SimRepository {
    fn prepare(&self, now: Timestamp) -> Result<(), StoreError> {
        self.0.turn("prepare");
        match self.0.fate() {
            Fate::Done => self.0.database.prepare(now),
            Fate::Failed(error) | Fate::DoneAndFailed(error) => Err(error),
        }
    }

    fn store(&self, runs: &[&[u8]], dead: &[DeadLetter<'_>], path: StorePath) -> Result<Stored, StoreError> {
        self.0.turn("store");
        let fate = self.0.fate();
        if let Fate::Failed(error) = fate {
            return Err(error);
        }
        let stored = self.0.database.store(runs, dead, path)?;
        self.0.turn("committed");
        if let Fate::DoneAndFailed(error) = fate {
            return Err(error);
        }
        self.0.answered(stored);
        Ok(stored)
    }

    fn page(&self, _page: &Page) -> Result<Vec<aurore_events::event::Event>, StoreError> {
        unreachable!("nobody asks for a page here")
    }

    fn chunk(&self, _page: &Page, _bytes_max: usize) -> Result<Chunk, StoreError> {
        unreachable!("nothing is exported here")
    }

    fn count(&self, _filter: &Filter) -> Result<u64, StoreError> {
        unreachable!("nobody counts here")
    }

    fn hours(&self, _filter: &Filter, _rows_max: u32) -> Result<Vec<HourCount>, StoreError> {
        unreachable!("nobody counts here")
    }

    fn find(&self, _id: EventId) -> Result<Option<Found>, StoreError> {
        unreachable!("nobody looks for an event here")
    }

    fn totals(&self, _since: Timestamp, _services_max: u16) -> Result<Totals, StoreError> {
        unreachable!("nobody counts here")
    }

    fn ping(&self) -> Result<(), StoreError> {
        unreachable!("nobody probes here")
    }

    fn days(&self) -> Result<Vec<Day>, StoreError> {
        unreachable!("nothing is swept here")
    }

    fn tidy(&self) -> Result<Tidied, StoreError> {
        unreachable!("nothing is swept here")
    }

    fn last_sweep(&self) -> Result<Option<Timestamp>, StoreError> {
        unreachable!("nothing is swept here")
    }

    fn sweep(&self, _edge: Timestamp) -> Result<Option<Box<dyn Sweeping + '_>>, StoreError> {
        unreachable!("nothing is swept here")
    }
}
