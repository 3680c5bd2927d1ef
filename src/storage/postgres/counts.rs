//! Check and repair of `event_counts` against `events`.
//!
//! Each transaction that stores or deletes events also updates the counts. So one statement, which
//! reads both in one snapshot, detects exactly the wrong counts, even while writers are active. The
//! repair adds the difference instead of setting the sum, so that rows committed between the
//! snapshot and the repair stay counted.

use postgres::Client;
use postgres::types::{ToSql, Type};
use std::collections::BTreeSet;
use std::time::Duration;

use super::advisory_lock::SWEEP;
use super::connect::TxnOptions;
use super::types::{PgTimestamp, PgUuid};
use super::{PostgresRepository, error, partition};
use crate::event::{EventId, HOUR_MICROS, Timestamp};
use crate::storage::{Day, StoreError};

/// Statement timeout of the comparison of one hour.
const HOUR_TIMEOUT: Duration = Duration::from_mins(2);

/// A service and hour whose count differs from the number of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountMismatch {
    pub hour: Timestamp,
    pub service: String,
    pub events: i64,
    pub counted: i64,
}

/// Compares one hour: its ids `$1` to `$2`, its times `$3` to `$4`.
const MISMATCHES: &str = "\
    stored AS (\
        SELECT service, count(*) AS events FROM events \
        WHERE event_id >= $1 AND event_id < $2 AND timestamp >= $3 AND timestamp < $4 GROUP BY service), \
    counted AS (SELECT service, sum(count)::bigint AS count FROM event_counts \
        WHERE hour >= $3 AND hour < $4 GROUP BY service), \
    mismatches AS (\
        SELECT service, coalesce(events, 0) AS events, coalesce(count, 0) AS count \
        FROM stored FULL JOIN counted USING (service) WHERE coalesce(events, 0) <> coalesce(count, 0))";

const SELECT_MISMATCHES: &str = "SELECT service, events, count FROM mismatches ORDER BY service";

/// Locks the counts by service and hour, the order of all writers, so that they cannot deadlock.
const REPAIR: &str = "\
    repaired AS (\
        INSERT INTO event_counts AS c (service, hour, count) \
        SELECT service, $3, events - count FROM mismatches ORDER BY service \
        ON CONFLICT (service, hour) DO UPDATE SET count = c.count + excluded.count)";

impl PostgresRepository {
    /// Lists all hours of the days that have a partition, events or counts, oldest first.
    pub fn counted_hours(&self) -> Result<Vec<Timestamp>, StoreError> {
        let days = self.connections.transaction(&self.query_options, |client| {
            let mut days: BTreeSet<i64> = partition::days(client)?.into_iter().map(Day::number).collect();
            let to_error = |error| error::from_postgres("listing counted days", &error);
            let counted = client
                .query_typed("SELECT DISTINCT date_trunc('day', hour, 'UTC') FROM event_counts", &[])
                .map_err(to_error)?;
            days.extend(
                counted.iter().map(|row| Day::from_timestamp(row.get::<_, PgTimestamp>(0).0).number()),
            );
            days.extend(days_in_default(client)?);
            Ok(days)
        })?;
        let hours = |day: i64| (0..24).map(move |hour| plus_hours(Day::from_number(day).start(), hour));
        Ok(days.into_iter().flat_map(hours).collect())
    }

    /// Compares the hour that begins at `hour`.
    pub fn check_counts(&self, hour: Timestamp) -> Result<Vec<CountMismatch>, StoreError> {
        let begin_sql = format!("BEGIN READ ONLY; {}", set_local_timeouts());
        self.connections.transaction(&txn_options(begin_sql), |client| compare_hour(client, hour, ""))
    }

    /// Repairs the hour that begins at `hour` and returns the mismatches found. An advisory lock
    /// excludes other repairs and sweeps.
    pub fn repair_counts(&self, hour: Timestamp) -> Result<Vec<CountMismatch>, StoreError> {
        let begin_sql = format!("BEGIN; {}; SET LOCAL lock_timeout = '5s'", set_local_timeouts());
        let to_error = |error| error::from_postgres("acquiring the sweep lock", &error);
        self.connections.transaction(&txn_options(begin_sql), |client| {
            client.batch_execute(&format!("SELECT pg_advisory_xact_lock({SWEEP})")).map_err(to_error)?;
            compare_hour(client, hour, REPAIR)
        })
    }
}

fn set_local_timeouts() -> String {
    // JIT compilation takes longer than the query. The idle timeout releases the lock of a server
    // that died.
    format!(
        "SET LOCAL statement_timeout = {0}; SET LOCAL idle_in_transaction_session_timeout = {0}; SET LOCAL jit = off",
        HOUR_TIMEOUT.as_millis()
    )
}

fn txn_options(begin_sql: String) -> TxnOptions {
    TxnOptions { begin_sql, io_timeout: HOUR_TIMEOUT + Duration::from_secs(10) }
}

fn compare_hour(
    client: &mut Client,
    hour: Timestamp,
    repair: &str,
) -> Result<Vec<CountMismatch>, StoreError> {
    let end = plus_hours(hour, 1);
    let floor = |time: Timestamp| PgUuid(EventId::floor(u64::try_from(time.millis()).unwrap_or(0)));
    let (low, high, from, to) = (floor(hour), floor(end), PgTimestamp(hour), PgTimestamp(end));
    let params: [(&(dyn ToSql + Sync), Type); 4] =
        [(&low, Type::UUID), (&high, Type::UUID), (&from, Type::TIMESTAMPTZ), (&to, Type::TIMESTAMPTZ)];
    let separator = if repair.is_empty() { "" } else { ", " };
    let rows = client
        .query_typed(&format!("WITH {MISMATCHES}{separator}{repair} {SELECT_MISMATCHES}"), &params)
        .map_err(|error| error::from_postgres("comparing event_counts with events", &error))?;
    let mismatch = |row: &postgres::Row| CountMismatch {
        hour,
        service: row.get(0),
        events: row.get(1),
        counted: row.get(2),
    };
    Ok(rows.iter().map(mismatch).collect())
}

/// Lists the days in the default partition with one index lookup per day.
fn days_in_default(client: &mut Client) -> Result<Vec<i64>, StoreError> {
    let (mut days, mut from) = (Vec::new(), EventId::floor(0));
    loop {
        let rows = client
            .query_typed(
                "SELECT event_id FROM events_default WHERE event_id >= $1 ORDER BY event_id LIMIT 1",
                &[(&PgUuid(from), Type::UUID)],
            )
            .map_err(|error| error::from_postgres("reading the default partition", &error))?;
        let Some(row) = rows.first() else { return Ok(days) };
        let day = Day::from_id(row.get::<_, PgUuid>(0).0);
        days.push(day.number());
        if day == Day::LAST {
            return Ok(days);
        }
        from = Day::from_number(day.number() + 1).first_id();
    }
}

fn plus_hours(time: Timestamp, hours: i64) -> Timestamp {
    Timestamp::from_micros(time.micros() + hours * HOUR_MICROS)
}
