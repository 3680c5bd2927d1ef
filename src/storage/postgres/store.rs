//! Rows into tables: one transaction for a batch, its counts and its dead letters.
//!
//! The rows arrive in the form that COPY takes, so they are only gathered and sent. What an error means for the batch
//! is the writer's business.

use std::collections::HashMap;
use std::io::Write as _;

use postgres::Client;
use postgres::types::Type;

use super::connect::{Connections, Terms};
use super::error;
use super::types::{Time, Uuid};
use crate::event::Timestamp;
use crate::event::row::{self, COLUMNS, COPY_HEADER, COPY_TRAILER, Row};
use crate::storage::{DeadLetter, StoreError, StorePath, Stored};

/// Bytes of COPY handed to the connection at once. The crate copies and sends what it is given whole, and wakes its
/// connection once for each piece; 4 KiB pieces cost twice the CPU of these.
const PIECE_BYTES: usize = 64 * 1024;

const MINUTE_MICROS: i64 = 60_000_000;

/// A stage without indexes or WAL that ends with its transaction.
pub(super) const STAGE: &str = "CREATE TEMPORARY TABLE aurore_stage (event_id uuid, timestamp timestamptz, \
     ingested_at timestamptz, service text, message text, metadata jsonb) ON COMMIT DROP";

/// Adds `new`, a count a service and minute, to both tables of counts: sorted by the database and always in this order,
/// so that no two servers wait for each other.
macro_rules! count_new {
    () => {
        "counted AS (\
            INSERT INTO event_counts AS c (service, hour, count) \
            SELECT service, date_trunc('hour', minute, 'UTC') AS hour, sum(count)::bigint FROM new \
            GROUP BY 1, 2 ORDER BY 1, 2 \
            ON CONFLICT (service, hour) DO UPDATE SET count = c.count + excluded.count), \
        minutes AS (\
            INSERT INTO event_minutes AS m (service, minute, count) \
            SELECT coalesce(service, '') AS service, minute, sum(count)::bigint FROM new \
            GROUP BY GROUPING SETS ((service, minute), (minute)) ORDER BY 1, 2 \
            ON CONFLICT (service, minute) DO UPDATE SET count = m.count + excluded.count)"
    };
}

/// What is new goes into the table, in the order of its ids, so that servers that store the same events wait for each
/// other instead of blocking each other; it is counted by what was really stored.
const FROM_STAGE: &str = concat!(
    "WITH stored AS (\
        INSERT INTO events (event_id, timestamp, ingested_at, service, message, metadata) \
        SELECT event_id, timestamp, ingested_at, service, message, metadata FROM aurore_stage ORDER BY event_id \
        ON CONFLICT DO NOTHING RETURNING service, timestamp), \
    new AS (\
        SELECT service, date_trunc('minute', timestamp, 'UTC') AS minute, count(*) AS count FROM stored GROUP BY 1, 2), ",
    count_new!(),
    " SELECT count(*) FROM stored"
);

const COUNTS: &str = concat!(
    "WITH new AS (\
        SELECT service COLLATE \"C\" AS service, minute, count \
        FROM unnest($1::text[], $2::timestamptz[], $3::bigint[]) AS new (service, minute, count)), ",
    count_new!(),
    " SELECT 1"
);

const DEAD: &str = "\
    INSERT INTO dead_events (event_id, timestamp, service, row, sqlstate, reason) \
    SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::bytea[], $5::text[], $6::text[]) \
        AS new (event_id, timestamp, service, row, sqlstate, reason) ORDER BY 1 \
    ON CONFLICT (event_id) DO NOTHING RETURNING event_id";

pub(super) fn store(
    connections: &Connections,
    terms: &Terms,
    runs: &[&[u8]],
    dead: &[DeadLetter<'_>],
    path: StorePath,
) -> Result<Stored, StoreError> {
    let tally = Tally::of(runs, path);
    let begin = match path {
        StorePath::Copy => terms.begin.clone(),
        StorePath::Stage => format!("{}; {STAGE}", terms.begin),
    };
    connections.transaction(&Terms { begin, ..*terms }, |client| {
        let stored = if tally.rows == 0 {
            0
        } else {
            match path {
                StorePath::Copy => {
                    copy(client, "events", runs, tally.rows)?;
                    add_counts(client, &tally)?;
                    tally.rows
                }
                StorePath::Stage => {
                    copy(client, "aurore_stage", runs, tally.rows)?;
                    from_stage(client, tally.rows)?
                }
            }
        };
        let dead = if dead.is_empty() { 0 } else { bury(client, dead)? };
        Ok(Stored { stored, duplicate: tally.rows - stored, dead })
    })
}

/// Sends all rows. Fails unless the database counts as many as were given.
pub(super) fn copy(client: &mut Client, table: &str, runs: &[&[u8]], rows: u64) -> Result<(), StoreError> {
    const DOING: &str = "COPY";
    let statement = format!("COPY {table} ({COLUMNS}) FROM STDIN BINARY");
    let mut writer = client.copy_in(&statement).map_err(|error| error::of(DOING, &error))?;
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    piece.extend_from_slice(COPY_HEADER);
    for run in runs {
        if piece.len() + run.len() > PIECE_BYTES {
            // The crate takes any piece whole, and adds what follows to it only below 4 KiB.
            writer.write_all(&piece).map_err(|error| error::of_io(DOING, &error))?;
            piece.clear();
        }
        if run.len() >= PIECE_BYTES {
            for part in run.chunks(PIECE_BYTES) {
                writer.write_all(part).map_err(|error| error::of_io(DOING, &error))?;
            }
        } else {
            piece.extend_from_slice(run);
        }
    }
    piece.extend_from_slice(COPY_TRAILER);
    writer.write_all(&piece).map_err(|error| error::of_io(DOING, &error))?;
    let copied = writer.finish().map_err(|error| error::of(DOING, &error))?;
    if copied == rows {
        Ok(())
    } else {
        Err(StoreError::unreachable(format!("BUG: COPY took {copied} of {rows} rows")))
    }
}

pub(super) fn from_stage(client: &mut Client, rows: u64) -> Result<u64, StoreError> {
    let row = client
        .query_typed_one(FROM_STAGE, &[])
        .map_err(|error| error::of("INSERT from the stage", &error))?;
    let stored = u64::try_from(row.get::<_, i64>(0)).unwrap_or(u64::MAX);
    if stored <= rows {
        Ok(stored)
    } else {
        Err(StoreError::unreachable(format!("BUG: {stored} of {rows} rows were stored")))
    }
}

fn add_counts(client: &mut Client, tally: &Tally<'_>) -> Result<(), StoreError> {
    let mut services = Vec::with_capacity(tally.counts.len());
    let mut minutes = Vec::with_capacity(tally.counts.len());
    let mut counts = Vec::with_capacity(tally.counts.len());
    for ((service, minute), count) in &tally.counts {
        // PostgreSQL took these bytes for text a moment ago.
        services.push(String::from_utf8_lossy(service));
        minutes.push(Time(Timestamp::from_micros(minute.saturating_mul(MINUTE_MICROS))));
        counts.push(*count);
    }
    let params: [(&(dyn postgres::types::ToSql + Sync), Type); 3] =
        [(&services, Type::TEXT_ARRAY), (&minutes, Type::TIMESTAMPTZ_ARRAY), (&counts, Type::INT8_ARRAY)];
    client.execute_typed(COUNTS, &params).map_err(|error| error::of("adding to event_counts", &error))?;
    Ok(())
}

fn bury(client: &mut Client, dead: &[DeadLetter<'_>]) -> Result<u64, StoreError> {
    let ids: Vec<_> = dead.iter().map(|letter| Uuid(letter.row.event_id())).collect();
    let times: Vec<_> = dead.iter().map(|letter| Time(letter.row.timestamp())).collect();
    // The row may be dead because of its text. The bytes are kept as they are, in `row`.
    let services: Vec<_> =
        dead.iter().map(|letter| readable(&String::from_utf8_lossy(letter.row.service()))).collect();
    let rows: Vec<_> = dead.iter().map(|letter| letter.row.bytes()).collect();
    let states: Vec<_> = dead.iter().map(|letter| readable(&letter.sqlstate)).collect();
    let reasons: Vec<_> = dead.iter().map(|letter| readable(&letter.reason)).collect();
    let params: [(&(dyn postgres::types::ToSql + Sync), Type); 6] = [
        (&ids, Type::UUID_ARRAY),
        (&times, Type::TIMESTAMPTZ_ARRAY),
        (&services, Type::TEXT_ARRAY),
        (&rows, Type::BYTEA_ARRAY),
        (&states, Type::TEXT_ARRAY),
        (&reasons, Type::TEXT_ARRAY),
    ];
    // Counted by what comes back: Citus tells of a row that was there already as of a new one.
    let buried = client.query_typed(DEAD, &params);
    buried.map(|rows| rows.len() as u64).map_err(|error| error::of("INSERT into dead_events", &error))
}

/// Text without the one character that PostgreSQL has no place for.
fn readable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// How many rows, and how many of each service and minute.
struct Tally<'a> {
    rows: u64,
    /// By the bytes of the service and the minutes since 1970.
    counts: HashMap<(&'a [u8], i64), i64>,
}

impl<'a> Tally<'a> {
    fn of(runs: &[&'a [u8]], path: StorePath) -> Self {
        let mut tally = Self { rows: 0, counts: HashMap::new() };
        // Events of one service mostly come together: those are added up here and looked up once.
        let mut current: Option<((&[u8], i64), i64)> = None;
        for row in runs.iter().flat_map(|run| row::rows(run)) {
            tally.rows += 1;
            // The stage counts for itself: only there it shows what is new.
            if path == StorePath::Stage {
                continue;
            }
            let key = (row.service(), minute(&row));
            match &mut current {
                Some((of, count)) if *of == key => *count += 1,
                _ => {
                    if let Some((of, count)) = current.replace((key, 1)) {
                        *tally.counts.entry(of).or_default() += count;
                    }
                }
            }
        }
        if let Some((of, count)) = current {
            *tally.counts.entry(of).or_default() += count;
        }
        tally
    }
}

fn minute(row: &Row<'_>) -> i64 {
    row.timestamp().micros().div_euclid(MINUTE_MICROS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;

    #[test]
    fn rows_are_counted_by_service_and_minute_over_all_runs() {
        let mut bytes = Vec::new();
        for (index, (service, micros)) in
            [("a", 0), ("a", MINUTE_MICROS - 1), ("b", 0), ("a", MINUTE_MICROS), ("a", -1)].iter().enumerate()
        {
            let id = EventId::floor(index as u64);
            row::begin(&mut bytes, id, Timestamp::from_micros(*micros), Timestamp::default());
            row::text(&mut bytes, service.as_bytes());
            row::text(&mut bytes, b"m");
            row::metadata(&mut bytes, None);
        }
        let tally = Tally::of(&[&bytes, &bytes], StorePath::Copy);
        assert_eq!(tally.rows, 10);
        let mut counts: Vec<_> = tally.counts.into_iter().collect();
        counts.sort_unstable();
        let expected = [((b"a".as_slice(), -1), 2), ((b"a", 0), 4), ((b"a", 1), 2), ((b"b", 0), 2)];
        assert_eq!(counts, expected);
    }

    #[test]
    fn the_stage_is_not_counted_ahead() {
        let tally = Tally::of(&[], StorePath::Stage);
        assert_eq!((tally.rows, tally.counts.len()), (0, 0));
    }
}
