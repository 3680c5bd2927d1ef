//! Brings back what was pushed before the start: the newest snapshot, then the logs from there on.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::file::{self, Damage, FileKind, NotAHeader};
use super::record::Record;
use super::state::State;
use crate::clock::Moment;
use crate::journal::disk::Disk;

/// What there was.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The logs since the snapshot, with their bytes.
    pub logs: BTreeMap<u64, u64>,
    pub snapshot_bytes: u64,
    pub next_number: u64,
    pub damage: Damage,
    /// Whether something is missing that a snapshot would not have: a torn tail does not count.
    pub damaged: bool,
    pub records: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum StartFailed {
    #[error("the gateway's file {name}: {error}")]
    Newer { name: String, error: NotAHeader },
    #[error("cannot read what was pushed before, in DATA_DIR/gateway: {0}")]
    Io(#[from] io::Error),
}

/// Reads all into `state`, each series with `now` as when it was pushed: how long the process was away is not known for
/// sure, since clocks on walls jump.
pub fn read(disk: &dyn Disk, state: &mut State, now: Moment) -> Result<Found, StartFailed> {
    let names = disk.names()?;
    for name in names.iter().filter(|name| file::is_unfinished(name)) {
        disk.remove(name)?;
    }
    let files: Vec<_> = names.iter().filter_map(|name| file::number(name)).collect();
    let newest = |kind| files.iter().filter(|(of, _)| *of == kind).map(|(_, number)| *number).max();
    let snapshot = newest(FileKind::Snapshot);
    let next_number = files.iter().map(|(_, number)| number + 1).max().unwrap_or(1);
    let mut found = Found { next_number, ..Found::default() };
    if let Some(number) = snapshot {
        let ended = read_file(disk, (FileKind::Snapshot, number), state, now, &mut found)?;
        found.damaged |= !ended;
        found.snapshot_bytes = disk.open(&FileKind::Snapshot.name(number))?.bytes()?;
    }
    let mut logs: Vec<u64> = files
        .iter()
        .filter(|(kind, number)| *kind == FileKind::Log && *number >= snapshot.unwrap_or(0))
        .map(|(_, number)| *number)
        .collect();
    logs.sort_unstable();
    for number in logs {
        read_file(disk, (FileKind::Log, number), state, now, &mut found)?;
        let bytes = disk.open(&FileKind::Log.name(number))?.bytes()?;
        found.logs.insert(number, bytes);
    }
    Ok(found)
}

/// Tells whether a snapshot's end was found.
fn read_file(
    disk: &dyn Disk,
    (kind, number): (FileKind, u64),
    state: &mut State,
    now: Moment,
    found: &mut Found,
) -> Result<bool, StartFailed> {
    let name = kind.name(number);
    let opened = disk.open(&name)?;
    let length =
        usize::try_from(opened.bytes()?).map_err(|_too_long| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut bytes = vec![0; length];
    opened.read(0, &mut bytes)?;
    let (mut records, mut ended) = (0, false);
    let damage = file::read(&bytes, (kind, number), |record| {
        let Ok(record) = Record::decode(record) else { return false };
        if let Record::End { records: wanted } = record {
            ended = wanted == records;
            return ended;
        }
        records += 1;
        replay(state, record, now)
    });
    let damage = damage.map_err(|error| StartFailed::Newer { name: name.clone(), error })?;
    found.records += records;
    found.damage.skipped += damage.skipped;
    found.damage.torn_bytes += damage.torn_bytes;
    if damage.skipped > 0 {
        found.damaged = true;
        log::error!(file = name, stretches = damage.skipped; "a file of the gateway is damaged: what was hit is lost, the rest is back; it is kept as {name}.damaged");
        let kept = disk.create(&format!("{name}.damaged")).and_then(|kept| kept.write(0, &bytes));
        if let Err(error) = kept {
            log::warn!("the damaged file {name} could not be kept: {error}");
        }
    } else if damage.torn_bytes > 0 {
        log::warn!(file = name, bytes = damage.torn_bytes; "the end of a file of the gateway is torn off: it was being written");
    }
    Ok(ended)
}

/// Applies one record. False when it cannot be, which only damage elsewhere brings about.
fn replay(state: &mut State, record: Record, now: Moment) -> bool {
    match record {
        Record::Group { target, push_s, failure_s, replace, mut families } => {
            let target = Arc::new(target);
            for (_, block) in &mut families {
                block.touched = now;
            }
            let before = state.group(&target.key).map(|group| (group.push_s, group.failure_s));
            let (old_push_s, old_failure_s) = before.unwrap_or_default();
            let kept = |new: f64, old: f64| if new.is_nan() { old } else { new };
            let times = (kept(push_s, old_push_s), kept(failure_s, old_failure_s));
            // A failure alone: the families stay as they are.
            let taken = if push_s.is_nan() && families.is_empty() && !replace {
                state.fail(&target, (now, failure_s))
            } else {
                state.push(&target, families, replace, (now, times.0)).is_ok()
            };
            state.set_times(&target.key, times.0, times.1);
            taken
        }
        Record::Delete { key } => {
            state.delete(&key);
            true
        }
        Record::Sum { key, series } => {
            for (name, mut block) in series {
                block.touched = now;
                let labels = block.series[0].labels.clone();
                state.restore(&name, &labels, block);
            }
            if let Some((key, verdict)) = key {
                state.keys().put(key, verdict, now);
            }
            true
        }
        Record::Remove { name, labels } => {
            state.remove(&name, &labels);
            true
        }
        Record::Wipe => {
            state.wipe();
            true
        }
        Record::End { .. } => true,
    }
}
