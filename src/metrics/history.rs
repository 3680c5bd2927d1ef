//! The metrics history: one JSON line per interval in a file, for installations without Prometheus.
//! The file is bounded: a full file is rotated and replaces the previous one.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const CURRENT_FILE: &str = "metrics-history.jsonl";
const PREVIOUS_FILE: &str = "metrics-history.1.jsonl";

/// A line of the history. `ts` is RFC 3339 in UTC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    pub ts: String,
    pub received: u64,
    pub stored: u64,
    pub duplicate: u64,
    pub dead: u64,
    pub dropped: u64,
    pub buffered: u64,
    pub utilization_percent: f64,
    pub throughput_per_second: f64,
    pub drop_rate_percent: f64,
    pub batches: u64,
    pub database_up: bool,
    /// 0 closed, 1 half-open, 2 open.
    pub breaker: u8,
    pub cpu_percent: f64,
    pub memory_bytes: u64,
}

/// The history files. Invariant: each file holds at most `bytes_max` and one line.
#[derive(Clone, Debug)]
pub struct History {
    directory: PathBuf,
    bytes_max: u64,
}

impl History {
    pub fn new(data_dir: &Path, bytes_max: u64) -> Self {
        Self { directory: data_dir.join("metrics"), bytes_max }
    }

    pub fn append(&self, entry: &HistoryEntry) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let path = self.directory.join(CURRENT_FILE);
        if fs::metadata(&path).is_ok_and(|found| found.len() >= self.bytes_max) {
            fs::rename(&path, self.directory.join(PREVIOUS_FILE))?;
        }
        let mut file = File::options().create(true).read(true).append(true).open(&path)?;
        let mut line = Vec::with_capacity(400);
        if file.seek(SeekFrom::End(-1)).is_ok() {
            // A line torn by a kill of the process must not corrupt the new line.
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                line.push(b'\n');
            }
        }
        sonic_rs::to_writer(&mut line, entry).map_err(io::Error::other)?;
        line.push(b'\n');
        file.write_all(&line)
    }

    /// All readable lines, oldest first, and the number of unreadable ones.
    pub fn read(&self) -> io::Result<(Vec<HistoryEntry>, usize)> {
        let (mut entries, mut unreadable) = (Vec::new(), 0);
        for name in [PREVIOUS_FILE, CURRENT_FILE] {
            let bytes = match fs::read(self.directory.join(name)) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                match sonic_rs::from_slice(line) {
                    Ok(entry) => entries.push(entry),
                    Err(_) => unreadable += 1,
                }
            }
        }
        Ok((entries, unreadable))
    }
}

/// The output of `aurore-events history --json`: one object per line of the history.
pub fn format_json(entries: &[HistoryEntry]) -> io::Result<String> {
    let mut out = Vec::new();
    for entry in entries {
        sonic_rs::to_writer(&mut out, entry).map_err(io::Error::other)?;
        out.push(b'\n');
    }
    String::from_utf8(out).map_err(io::Error::other)
}

/// The output of `aurore-events history`: a header and one row per line of the history.
pub fn format_table(entries: &[HistoryEntry]) -> String {
    use std::fmt::Write;
    let mut out = format!(
        "{:<27} {:>12} {:>12} {:>9} {:>7} {:>9} {:>9} {:>6} {:>10} {:>6} {:>4} {:>9} {:>6} {:>8}\n",
        "time",
        "received",
        "stored",
        "duplicate",
        "dead",
        "dropped",
        "buffered",
        "full%",
        "events/s",
        "drop%",
        "db",
        "breaker",
        "cpu%",
        "MiB"
    );
    for entry in entries {
        let breaker = ["closed", "half-open", "open"].get(usize::from(entry.breaker)).unwrap_or(&"?");
        writeln!(
            out,
            "{:<27} {:>12} {:>12} {:>9} {:>7} {:>9} {:>9} {:>6.1} {:>10.1} {:>6.1} {:>4} {breaker:>9} {:>6.1} {:>8}",
            entry.ts,
            entry.received,
            entry.stored,
            entry.duplicate,
            entry.dead,
            entry.dropped,
            entry.buffered,
            entry.utilization_percent,
            entry.throughput_per_second,
            entry.drop_rate_percent,
            if entry.database_up { "up" } else { "down" },
            entry.cpu_percent,
            entry.memory_bytes >> 20,
        )
        .expect("a write to a String does not fail");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(received: u64) -> HistoryEntry {
        HistoryEntry { ts: "2026-01-01T00:00:00Z".into(), received, breaker: 2, ..HistoryEntry::default() }
    }

    #[test]
    fn history_keeps_its_bound_and_skips_a_torn_line() {
        let directory = std::env::temp_dir().join(format!("aurore-history-{}", std::process::id()));
        let line = sonic_rs::to_string(&entry(10)).unwrap().len() as u64 + 1;
        let history = History::new(&directory, 3 * line);
        assert_eq!(history.read().unwrap(), (vec![], 0), "nothing yet");
        for received in 10..18 {
            history.append(&entry(received)).unwrap();
        }
        let (entries, unreadable) = history.read().unwrap();
        let received: Vec<_> = entries.iter().map(|entry| entry.received).collect();
        assert_eq!((received, unreadable), (vec![13, 14, 15, 16, 17], 0));

        let path = directory.join("metrics").join(CURRENT_FILE);
        File::options().append(true).open(&path).unwrap().write_all(b"{\"ts\":\"20").unwrap();
        history.append(&entry(18)).unwrap();
        let (entries, unreadable) = history.read().unwrap();
        assert_eq!((entries.last().unwrap().received, unreadable), (18, 1));
        let table = format_table(&entries);
        assert_eq!(table.lines().count(), entries.len() + 1);
        assert!(table.lines().all(|line| line.len() == table.lines().next().unwrap().len()), "{table}");
        fs::remove_dir_all(directory).unwrap();
    }
}
