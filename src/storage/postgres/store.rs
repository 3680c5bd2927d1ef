//! Inserts a batch, its counts and its dead letters in one transaction.
//!
//! The rows are already encoded in COPY's binary format, so this module only concatenates and sends
//! them. It does not classify errors; the writer does.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write as _;
use std::ops::Range;

use postgres::Client;
use postgres::types::Type;

use super::connect::{Connections, TxnOptions};
use super::error;
use super::types::{PgTimestamp, PgUuid};
use crate::event::row::{self, COLUMNS, COPY_HEADER, COPY_TRAILER, Row};
use crate::event::{EventId, MINUTE_MICROS, Timestamp};
use crate::storage::{Day, DeadLetter, StoreError, StorePath, Stored};

/// Bytes of COPY data per write to the connection. The crate sends each write as one message and
/// wakes the connection for it; 4 KiB writes cost twice the CPU of these.
const COPY_CHUNK_BYTES: usize = 64 * 1024;

/// Creates the staging table: no indexes, no WAL, dropped at commit.
pub(super) const CREATE_STAGING: &str = "CREATE TEMPORARY TABLE aurore_stage (event_id uuid, timestamp timestamptz, \
     ingested_at timestamptz, id bigint, service text, message text, metadata jsonb) ON COMMIT DROP";

/// Inserts the new rows of the staging table in id order, so that servers that store the same
/// events wait for each other instead of deadlocking. Of rows with the same id it inserts the first
/// of the table, which is the first that was copied. Returns the counts of the inserted rows.
const INSERT_FROM_STAGING: &str = "\
    WITH stored AS (\
        INSERT INTO events (event_id, timestamp, ingested_at, id, service, message, metadata) \
        SELECT event_id, timestamp, ingested_at, id, service, message, metadata FROM aurore_stage ORDER BY event_id, ctid \
        ON CONFLICT (event_id) DO NOTHING RETURNING service, timestamp) \
    SELECT service, date_trunc('minute', timestamp, 'UTC') AS minute, count(*) FROM stored GROUP BY 1, 2";

/// Adds counts per service and minute to both tables of counts. A statement of its own, so that its
/// errors are told from those of the rows. The database sorts the counts, and all servers use this
/// order, so that they cannot deadlock.
const ADD_COUNTS: &str = "\
    WITH new AS (\
        SELECT service COLLATE \"C\" AS service, minute, count \
        FROM unnest($1::text[], $2::timestamptz[], $3::bigint[]) AS new (service, minute, count)), \
    counted AS (\
        INSERT INTO event_counts AS c (service, hour, count) \
        SELECT service, date_trunc('hour', minute, 'UTC') AS hour, sum(count)::bigint FROM new \
        GROUP BY 1, 2 ORDER BY 1, 2 \
        ON CONFLICT (service, hour) DO UPDATE SET count = c.count + excluded.count), \
    minutes AS (\
        INSERT INTO event_minutes AS m (service, minute, count) \
        SELECT coalesce(service, '') AS service, minute, sum(count)::bigint FROM new \
        GROUP BY GROUPING SETS ((service, minute), (minute)) ORDER BY 1, 2 \
        ON CONFLICT (service, minute) DO UPDATE SET count = m.count + excluded.count) \
    SELECT 1";

const INSERT_DEAD_LETTERS: &str = "\
    INSERT INTO dead_events (event_id, timestamp, service, row, sqlstate, reason) \
    SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::bytea[], $5::text[], $6::text[]) \
        AS new (event_id, timestamp, service, row, sqlstate, reason) ORDER BY 1 \
    ON CONFLICT (event_id) DO NOTHING RETURNING event_id";

pub(super) fn store(
    connections: &Connections,
    options: &TxnOptions,
    (runs, counts): (&[&[u8]], &RowCounts<'_>),
    dead: &[DeadLetter<'_>],
    path: StorePath,
) -> Result<Stored, StoreError> {
    let begin_sql = match path {
        StorePath::Copy => options.begin_sql.clone(),
        StorePath::Staging => format!("{}; {CREATE_STAGING}", options.begin_sql),
    };
    let options = TxnOptions { begin_sql, ..*options };
    let (stored, commit) = connections.positioned_transaction(&options, |client| {
        let stored = if counts.rows == 0 {
            0
        } else {
            match path {
                StorePath::Copy => {
                    copy_rows(client, "events", runs, counts.rows)?;
                    add_counts(client, &MinuteCounts::from_rows(counts))?;
                    counts.rows
                }
                StorePath::Staging => {
                    copy_rows(client, "aurore_stage", runs, counts.rows)?;
                    insert_from_staging(client, counts.rows)?
                }
            }
        };
        let dead = if dead.is_empty() { 0 } else { insert_dead_letters(client, dead)? };
        Ok(Stored { stored, duplicate: counts.rows - stored, dead, commit: None })
    })?;
    Ok(Stored { commit, ..stored })
}

/// Sends all rows by COPY. Fails unless the database reports the same number of rows.
pub(super) fn copy_rows(
    client: &mut Client,
    table: &str,
    runs: &[&[u8]],
    rows: u64,
) -> Result<(), StoreError> {
    const OPERATION: &str = "COPY";
    let statement = format!("COPY {table} ({COLUMNS}) FROM STDIN BINARY");
    let mut writer = client.copy_in(&statement).map_err(|error| error::from_postgres(OPERATION, &error))?;
    let mut chunk = Vec::with_capacity(COPY_CHUNK_BYTES);
    chunk.extend_from_slice(COPY_HEADER);
    for run in runs {
        if chunk.len() + run.len() > COPY_CHUNK_BYTES {
            // The crate sends a write of 4 KiB or more as one message and buffers smaller ones.
            writer.write_all(&chunk).map_err(|error| error::from_copy_io(OPERATION, &error))?;
            chunk.clear();
        }
        if run.len() >= COPY_CHUNK_BYTES {
            for part in run.chunks(COPY_CHUNK_BYTES) {
                writer.write_all(part).map_err(|error| error::from_copy_io(OPERATION, &error))?;
            }
        } else {
            chunk.extend_from_slice(run);
        }
    }
    chunk.extend_from_slice(COPY_TRAILER);
    writer.write_all(&chunk).map_err(|error| error::from_copy_io(OPERATION, &error))?;
    let copied = writer.finish().map_err(|error| error::from_postgres(OPERATION, &error))?;
    if copied == rows {
        Ok(())
    } else {
        Err(StoreError::client_side(format!("BUG: COPY stored {copied} of {rows} rows")))
    }
}

pub(super) fn insert_from_staging(client: &mut Client, rows: u64) -> Result<u64, StoreError> {
    let inserted = client
        .query_typed(INSERT_FROM_STAGING, &[])
        .map_err(|error| error::from_postgres("INSERT from aurore_stage", &error))?;
    let mut counts = MinuteCounts::default();
    for row in &inserted {
        counts.push(row.get(0), row.get(1), row.get(2));
    }
    let stored = u64::try_from(counts.values.iter().sum::<i64>()).unwrap_or(u64::MAX);
    if stored > rows {
        return Err(StoreError::client_side(format!("BUG: INSERT stored {stored} rows of {rows}")));
    }
    if stored > 0 {
        add_counts(client, &counts)?;
    }
    Ok(stored)
}

/// The parameters of `ADD_COUNTS`.
#[derive(Default)]
struct MinuteCounts<'a> {
    services: Vec<Cow<'a, str>>,
    minutes: Vec<PgTimestamp>,
    values: Vec<i64>,
}

impl<'a> MinuteCounts<'a> {
    fn push(&mut self, service: &'a str, minute: PgTimestamp, count: i64) {
        self.services.push(Cow::Borrowed(service));
        self.minutes.push(minute);
        self.values.push(count);
    }

    fn from_rows(counts: &RowCounts<'a>) -> Self {
        let mut columns = Self::default();
        for ((service, minute), count) in &counts.per_minute {
            // The COPY before has validated these bytes as text.
            columns.services.push(String::from_utf8_lossy(service));
            columns.minutes.push(PgTimestamp(Timestamp::from_micros(minute.saturating_mul(MINUTE_MICROS))));
            columns.values.push(*count);
        }
        columns
    }
}

fn add_counts(client: &mut Client, counts: &MinuteCounts<'_>) -> Result<(), StoreError> {
    let MinuteCounts { services, minutes, values } = counts;
    let params: [(&(dyn postgres::types::ToSql + Sync), Type); 3] =
        [(services, Type::TEXT_ARRAY), (minutes, Type::TIMESTAMPTZ_ARRAY), (values, Type::INT8_ARRAY)];
    client
        .execute_typed(ADD_COUNTS, &params)
        .map_err(|error| error::outside_rows("adding to event_counts", &error))?;
    Ok(())
}

fn insert_dead_letters(client: &mut Client, dead: &[DeadLetter<'_>]) -> Result<u64, StoreError> {
    let ids: Vec<_> = dead.iter().map(|letter| PgUuid(letter.row.event_id())).collect();
    let times: Vec<_> = dead.iter().map(|letter| PgTimestamp(letter.row.timestamp())).collect();
    // The text may be the reason for the rejection. Column `row` keeps the original bytes.
    let services: Vec<_> =
        dead.iter().map(|letter| replace_nul(&String::from_utf8_lossy(letter.row.service()))).collect();
    let rows: Vec<_> = dead.iter().map(|letter| letter.row.bytes()).collect();
    let states: Vec<_> = dead.iter().map(|letter| replace_nul(&letter.sqlstate)).collect();
    let reasons: Vec<_> = dead.iter().map(|letter| replace_nul(&letter.reason)).collect();
    let params: [(&(dyn postgres::types::ToSql + Sync), Type); 6] = [
        (&ids, Type::UUID_ARRAY),
        (&times, Type::TIMESTAMPTZ_ARRAY),
        (&services, Type::TEXT_ARRAY),
        (&rows, Type::BYTEA_ARRAY),
        (&states, Type::TEXT_ARRAY),
        (&reasons, Type::TEXT_ARRAY),
    ];
    // Count the returned rows: the row count of Citus includes rows that already existed.
    let inserted = client.query_typed(INSERT_DEAD_LETTERS, &params);
    inserted
        .map(|rows| rows.len() as u64)
        .map_err(|error| error::outside_rows("INSERT INTO dead_events", &error))
}

/// Replaces NUL, which PostgreSQL's text cannot hold.
fn replace_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The number of rows of a batch, in total and per service and minute, and the days of their ids.
pub(super) struct RowCounts<'a> {
    rows: u64,
    days: DaySet,
    /// Keyed by the bytes of the service and the minutes since 1970.
    per_minute: HashMap<(&'a [u8], i64), i64>,
}

impl<'a> RowCounts<'a> {
    pub(super) fn from_runs(runs: &[&'a [u8]], path: StorePath) -> Self {
        let mut counts = Self { rows: 0, days: DaySet::default(), per_minute: HashMap::new() };
        // Consecutive rows mostly share a key: sum them here and look the key up once.
        let mut current: Option<((&[u8], i64), i64)> = None;
        for row in runs.iter().flat_map(|run| row::rows(run)) {
            counts.rows += 1;
            counts.days.insert(row.event_id());
            // On the staging path the INSERT counts, since only it detects the new rows.
            if path == StorePath::Staging {
                continue;
            }
            let key = (row.service(), minute(&row));
            match &mut current {
                Some((previous, count)) if *previous == key => *count += 1,
                _ => {
                    if let Some((previous, count)) = current.replace((key, 1)) {
                        *counts.per_minute.entry(previous).or_default() += count;
                    }
                }
            }
        }
        if let Some((previous, count)) = current {
            *counts.per_minute.entry(previous).or_default() += count;
        }
        counts
    }

    /// The days of the rows, up to a bound.
    pub(super) fn days(&self) -> &[Day] {
        &self.days.days
    }
}

/// The days of a batch, in no order: one or two, except for an import of old events.
#[derive(Debug, Default)]
struct DaySet {
    days: Vec<Day>,
    /// The milliseconds of the day of the last insert, since consecutive rows mostly share it.
    current: Range<u64>,
}

impl DaySet {
    /// The rows of further days enter the default partition unless their day has a partition.
    const DAYS_MAX: usize = 64;

    #[inline]
    fn insert(&mut self, id: EventId) {
        if !self.current.contains(&id.millis()) {
            self.insert_day(Day::from_id(id));
        }
    }

    #[cold]
    fn insert_day(&mut self, day: Day) {
        self.current = day.millis();
        if self.days.len() < Self::DAYS_MAX && !self.days.contains(&day) {
            self.days.push(day);
        }
    }
}

fn minute(row: &Row<'_>) -> i64 {
    row.timestamp().micros().div_euclid(MINUTE_MICROS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ArrivalNumber;

    #[test]
    fn row_counts_sum_by_service_and_minute_over_all_runs() {
        let mut bytes = Vec::new();
        for (index, (service, micros)) in
            [("a", 0), ("a", MINUTE_MICROS - 1), ("b", 0), ("a", MINUTE_MICROS), ("a", -1)].iter().enumerate()
        {
            let id = EventId::floor(index as u64);
            row::append_header(
                &mut bytes,
                id,
                Timestamp::from_micros(*micros),
                Timestamp::default(),
                ArrivalNumber::default(),
            );
            row::append_text(&mut bytes, service.as_bytes());
            row::append_text(&mut bytes, b"m");
            row::append_metadata(&mut bytes, None);
        }
        let counts = RowCounts::from_runs(&[&bytes, &bytes], StorePath::Copy);
        assert_eq!(counts.rows, 10);
        let mut counts: Vec<_> = counts.per_minute.into_iter().collect();
        counts.sort_unstable();
        let expected = [((b"a".as_slice(), -1), 2), ((b"a", 0), 4), ((b"a", 1), 2), ((b"b", 0), 2)];
        assert_eq!(counts, expected);
    }

    #[test]
    fn row_counts_list_each_day_once_on_both_paths() {
        const DAY: u64 = 86_400_000;
        let rows = |millis: &[u64]| {
            let mut bytes = Vec::new();
            for millis in millis {
                let time = Timestamp::default();
                row::append_header(
                    &mut bytes,
                    EventId::keyed(*millis, [0xff; 10]),
                    time,
                    time,
                    ArrivalNumber::default(),
                );
                row::append_text(&mut bytes, b"s");
                row::append_text(&mut bytes, b"m");
                row::append_metadata(&mut bytes, None);
            }
            bytes
        };
        let bytes = rows(&[0, DAY - 1, 9 * DAY, DAY, 2 * DAY - 1, 9 * DAY, 5, (1 << 48) - 1]);
        for path in [StorePath::Copy, StorePath::Staging] {
            let counts = RowCounts::from_runs(&[&bytes, &bytes], path);
            let days: Vec<_> = counts.days().iter().map(|day| day.number()).collect();
            assert_eq!(days, [0, 9, 1, Day::LAST.number()]);
        }
        let many: Vec<_> = (0..100).map(|day| day * DAY).collect();
        assert_eq!(RowCounts::from_runs(&[&rows(&many)], StorePath::Copy).days().len(), DaySet::DAYS_MAX);
    }

    #[test]
    fn row_counts_skip_the_staging_path() {
        let counts = RowCounts::from_runs(&[], StorePath::Staging);
        assert_eq!((counts.rows, counts.per_minute.len()), (0, 0));
    }
}
