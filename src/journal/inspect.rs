//! `aurore-events journal inspect`: prints the contents of the journal, one line for each segment, and
//! lists its files for `journal replay`. It changes no file.

use std::io::{self, Write};

use serde::Serialize;

use super::filesystem::Filesystem;
use super::reader::{OpenSegmentError, SegmentReader};
use super::{retained, segment};

/// A file of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    pub number: u64,
    pub name: String,
    /// All of its events were committed.
    pub committed: bool,
}

/// The segments in the order of their numbers, and the names of other files.
pub fn segment_files(disk: &dyn Filesystem) -> io::Result<(Vec<SegmentFile>, Vec<String>)> {
    let (mut segments, mut others) = (Vec::new(), Vec::new());
    for name in disk.list()? {
        if let Some(number) = segment::parse_file_name(&name) {
            segments.push(SegmentFile { number, name, committed: false });
        } else if let Some((number, _)) = retained::parse_file_name(&name) {
            segments.push(SegmentFile { number, name, committed: true });
        } else {
            others.push(name);
        }
    }
    segments.sort_unstable_by_key(|file| file.number);
    others.sort_unstable();
    Ok((segments, others))
}

/// The contents of a segment.
#[derive(Debug, Default, Serialize)]
struct SegmentReport {
    segment: String,
    bytes: u64,
    records: u64,
    events: u64,
    /// Its events are stored; it is retained for a failover.
    committed: bool,
    header_corrupt: bool,
    corrupt_ranges: u64,
    torn_bytes: u64,
    preallocated_bytes: u64,
    /// Why it cannot be read.
    error: Option<String>,
}

/// The totals. All but the last member are of segments whose events may not be stored.
#[derive(Debug, Default, Serialize)]
struct JournalReport {
    segments: u64,
    records: u64,
    events: u64,
    retained_events: u64,
}

/// Writes one line for each segment and a total, as text or as JSON objects. Returns whether all
/// segments are intact, apart from torn tails.
pub fn inspect(disk: &dyn Filesystem, json: bool, out: &mut dyn Write) -> io::Result<bool> {
    let (files, others) = segment_files(disk)?;
    for name in others.iter().filter(|_| !json) {
        writeln!(out, "{name}: not a segment")?;
    }
    let (mut whole, mut totals) = (true, JournalReport::default());
    for file in files {
        let report = read_segment(disk, file)?;
        if json {
            write_json(out, &report)?;
        } else {
            report.write_text(out)?;
        }
        whole &= report.error.is_none() && report.corrupt_ranges == 0 && !report.header_corrupt;
        if report.error.is_some() {
            continue;
        }
        if report.committed {
            totals.retained_events += report.events;
        } else {
            totals.segments += 1;
            totals.records += report.records;
            totals.events += report.events;
        }
    }
    if json {
        write_json(out, &totals)?;
        return Ok(whole);
    }
    let JournalReport { segments, records, events, retained_events } = totals;
    if retained_events > 0 {
        writeln!(out, "{retained_events} events that are stored, retained for a failover of the database")?;
    }
    writeln!(out, "{segments} segments, {records} records, {events} events that may not be stored")?;
    Ok(whole)
}

fn read_segment(disk: &dyn Filesystem, file: SegmentFile) -> io::Result<SegmentReport> {
    let SegmentFile { number, name, committed } = file;
    let file = disk.open(&name)?;
    let mut report =
        SegmentReport { bytes: file.bytes()?, segment: name, committed, ..SegmentReport::default() };
    let mut reader = match SegmentReader::open(file, number) {
        Ok(reader) => reader,
        Err(OpenSegmentError::Io(error)) => return Err(error),
        Err(OpenSegmentError::UnsupportedVersion(error)) => {
            report.error = Some(error.to_string());
            return Ok(report);
        }
    };
    while let Some(record) = reader.next_record()? {
        report.records += 1;
        report.events += u64::from(record.rows);
    }
    let damage = reader.damage();
    report.header_corrupt = damage.header_corrupt;
    report.corrupt_ranges = damage.corrupt_ranges;
    report.torn_bytes = damage.torn_bytes;
    report.preallocated_bytes = reader.preallocated();
    Ok(report)
}

impl SegmentReport {
    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { segment, bytes, records, events, .. } = self;
        if let Some(error) = &self.error {
            return writeln!(out, "{segment}: {bytes} bytes, {error}");
        }
        write!(out, "{segment}: {bytes} bytes, {records} records, {events} events")?;
        if self.header_corrupt {
            write!(out, ", the header is corrupt")?;
        }
        if self.corrupt_ranges > 0 {
            write!(out, ", {} corrupt ranges skipped", self.corrupt_ranges)?;
        }
        if self.torn_bytes > 0 {
            write!(out, ", {} bytes of torn tail", self.torn_bytes)?;
        }
        if self.preallocated_bytes > 0 {
            write!(out, ", {} bytes preallocated", self.preallocated_bytes)?;
        }
        writeln!(out)
    }
}

fn write_json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    writeln!(out, "{}", sonic_rs::to_string(value).map_err(io::Error::other)?)
}
