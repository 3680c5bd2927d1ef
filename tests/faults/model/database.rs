//! The database of the simulation: an in-memory repository that may be set back to an earlier state, as
//! by a failover to a standby that lags, or by a restored backup.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aurore_events::storage::memory::{MemoryRepository, MemorySnapshot};
use aurore_events::storage::wal::WalPosition;

pub(super) struct SimDatabase {
    pub(super) tables: MemoryRepository,
    wal: Mutex<SimWal>,
}

struct SimWal {
    system: u64,
    timeline: u32,
    lsn: u64,
    /// Calls that began before the last one have lost their connection.
    failovers: u64,
    /// An earlier state, and its LSN.
    lagging: Option<(MemorySnapshot, u64)>,
}

impl SimDatabase {
    pub(super) fn new() -> Self {
        let wal = SimWal { system: 7, timeline: 1, lsn: 1, failovers: 0, lagging: None };
        Self { tables: MemoryRepository::new(), wal: Mutex::new(wal) }
    }

    fn wal(&self) -> MutexGuard<'_, SimWal> {
        self.wal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn failovers(&self) -> u64 {
        self.wal().failovers
    }

    pub(super) fn position(&self) -> WalPosition {
        let wal = self.wal();
        WalPosition { system: wal.system, timeline: wal.timeline, lsn: wal.lsn }
    }

    /// Records a commit.
    pub(super) fn advance(&self) {
        self.wal().lsn += 1;
    }

    /// The standby has the present state.
    pub(super) fn replicate(&self) {
        let state = self.tables.snapshot();
        let mut wal = self.wal();
        wal.lagging = Some((state, wal.lsn));
    }

    /// Returns to the state of the standby: on a new timeline if that is promoted, otherwise in another
    /// cluster. (A backup on the same timeline leaves no trace but the LSN, which a process that is killed
    /// at once cannot record.) Returns whether there was a state.
    pub(super) fn set_back(&self, promoted: bool) -> bool {
        let mut wal = self.wal();
        let Some((state, lsn)) = wal.lagging.take() else { return false };
        if promoted {
            wal.timeline += 1;
        } else {
            (wal.system, wal.timeline) = (wal.system + 1, 1);
        }
        (wal.lsn, wal.failovers) = (lsn, wal.failovers + 1);
        self.tables.set_back(state);
        true
    }
}
