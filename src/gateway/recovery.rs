//! Restores the state at start: reads the newest snapshot, then the logs from its number on.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::file::{self, FileKind};
use super::record::WalRecord;
use super::state::GatewayState;
use crate::clock::Moment;
use crate::journal::filesystem::Filesystem;
use crate::recordlog::{Damage, DecodeHeaderError, OpenError};

/// The files found and the damage in them.
#[derive(Clone, Debug, Default)]
pub struct GatewayRecovery {
    /// Bytes of each log since the snapshot.
    pub logs: BTreeMap<u64, u64>,
    pub snapshot_bytes: u64,
    pub next_number: u64,
    pub damage: Damage,
    /// Data is missing, so that a snapshot must be taken. A torn tail does not count.
    pub is_incomplete: bool,
    pub records: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RecoverGatewayError {
    #[error("cannot read the gateway file {name}: {error}")]
    NewerVersion { name: String, error: DecodeHeaderError },
    #[error("cannot read the gateway files in DATA_DIR/gateway: {0}")]
    Io(#[from] io::Error),
}

/// Reads all files into `state` and sets the last push of each series to `now`: TTLs restart, since
/// the downtime cannot be measured reliably with a wall clock that may jump.
pub fn recover(
    disk: &dyn Filesystem,
    state: &mut GatewayState,
    now: Moment,
) -> Result<GatewayRecovery, RecoverGatewayError> {
    let names = disk.list()?;
    for name in names.iter().filter(|name| file::is_temporary(name)) {
        disk.remove(name)?;
    }
    let files: Vec<_> = names.iter().filter_map(|name| file::parse_name(name)).collect();
    let newest = |kind| files.iter().filter(|(of, _)| *of == kind).map(|(_, number)| *number).max();
    let snapshot = newest(FileKind::Snapshot);
    let next_number = files.iter().map(|(_, number)| number + 1).max().unwrap_or(1);
    let mut recovered = GatewayRecovery { next_number, ..GatewayRecovery::default() };
    if let Some(number) = snapshot {
        let complete = read_file(disk, (FileKind::Snapshot, number), state, now, &mut recovered)?;
        recovered.is_incomplete |= !complete;
        recovered.snapshot_bytes = disk.open(&FileKind::Snapshot.name(number))?.bytes()?;
    }
    let mut logs: Vec<u64> = files
        .iter()
        .filter(|(kind, number)| *kind == FileKind::Log && *number >= snapshot.unwrap_or(0))
        .map(|(_, number)| *number)
        .collect();
    logs.sort_unstable();
    for number in logs {
        read_file(disk, (FileKind::Log, number), state, now, &mut recovered)?;
        let bytes = disk.open(&FileKind::Log.name(number))?.bytes()?;
        recovered.logs.insert(number, bytes);
    }
    Ok(recovered)
}

/// Returns whether the end record of a snapshot was found.
fn read_file(
    disk: &dyn Filesystem,
    (kind, number): (FileKind, u64),
    state: &mut GatewayState,
    now: Moment,
    recovered: &mut GatewayRecovery,
) -> Result<bool, RecoverGatewayError> {
    let name = kind.name(number);
    let opened = disk.open(&name)?;
    let length =
        usize::try_from(opened.bytes()?).map_err(|_too_long| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut bytes = vec![0; length];
    opened.read(0, &mut bytes)?;
    let (mut records, mut complete) = (0, false);
    let damage = file::read(&bytes, (kind, number), |record| {
        let Ok(record) = WalRecord::decode(record) else { return false };
        if let WalRecord::End { records: wanted } = record {
            complete = wanted == records;
            return complete;
        }
        records += 1;
        replay(state, record, now)
    });
    let damage = damage.map_err(|error| match error {
        OpenError::UnsupportedVersion(error) => {
            RecoverGatewayError::NewerVersion { name: name.clone(), error }
        }
        OpenError::Io(error) => RecoverGatewayError::Io(error),
    })?;
    let corrupt_ranges = damage.corrupt_ranges + u64::from(damage.header_corrupt);
    recovered.records += records;
    recovered.damage.corrupt_ranges += corrupt_ranges;
    recovered.damage.torn_bytes += damage.torn_bytes;
    if corrupt_ranges > 0 {
        recovered.is_incomplete = true;
        log::error!(file = name, corrupt_ranges = corrupt_ranges; "a gateway file is corrupt: its valid records are recovered, the others are lost; a copy is kept as {name}.damaged");
        let kept = disk.create(&format!("{name}.damaged")).and_then(|kept| kept.write(0, &bytes));
        if let Err(error) = kept {
            log::warn!("cannot copy the corrupt gateway file {name}: {error}");
        }
    } else if damage.torn_bytes > 0 {
        log::warn!(file = name, bytes = damage.torn_bytes; "a gateway file ends with an incomplete write, which is ignored");
    }
    Ok(complete)
}

/// Applies one record. Returns false if that fails, which only corruption of other records can
/// cause.
fn replay(state: &mut GatewayState, record: WalRecord, now: Moment) -> bool {
    match record {
        WalRecord::Group { grouping_key, push_s, failure_s, replace, mut families } => {
            let grouping_key = Arc::new(grouping_key);
            for (_, block) in &mut families {
                block.last_push = now;
            }
            let before =
                state.group(&grouping_key.rendered).map(|group| (group.last_success_s, group.last_failure_s));
            let (old_push_s, old_failure_s) = before.unwrap_or_default();
            let kept = |new: f64, old: f64| if new.is_nan() { old } else { new };
            let times = (kept(push_s, old_push_s), kept(failure_s, old_failure_s));
            // The record of a refused push: the families stay unchanged.
            let taken = if push_s.is_nan() && families.is_empty() && !replace {
                state.record_failure(&grouping_key, (now, failure_s))
            } else {
                state.push(&grouping_key, families, replace, (now, times.0)).is_ok()
            };
            state.set_times(&grouping_key.rendered, times.0, times.1);
            taken
        }
        WalRecord::Delete { key } => {
            state.delete(&key);
            true
        }
        WalRecord::Aggregated { key, series } => {
            for (name, mut block) in series {
                block.last_push = now;
                let labels = block.series[0].labels.clone();
                state.restore(&name, &labels, block);
            }
            if let Some((key, counts)) = key {
                state.keys().insert(key, counts, now);
            }
            true
        }
        WalRecord::Remove { name, labels } => {
            state.remove(&name, &labels);
            true
        }
        WalRecord::Wipe => {
            state.wipe();
            true
        }
        WalRecord::End { .. } => true,
    }
}
