//! `event_counts` against the events themselves: where they differ, and the counts put right.
//!
//! Whoever stores or deletes events changes the counts in the same transaction. So one statement, which sees one
//! moment of both, tells exactly what is wrong, however busy the writers are; and since it is the difference that is
//! added, and not the sum that is set, what they commit between the look and the correction is not lost.

use postgres::Client;
use postgres::types::{ToSql, Type};
use std::collections::BTreeSet;
use std::time::Duration;

use super::connect::Terms;
use super::sweep::LOCK;
use super::types::{Time, Uuid};
use super::{PostgresRepository, error, partition};
use crate::event::{EventId, Timestamp};
use crate::storage::{Day, StoreError};

const HOUR_MICROS: i64 = 3_600_000_000;
/// Longest that the comparison of an hour may take.
const HOUR_TIMEOUT: Duration = Duration::from_mins(2);

/// An hour of a service for which the counts say something else than the events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub hour: Timestamp,
    pub service: String,
    pub events: i64,
    pub counted: i64,
}

/// Of one hour: its ids `$1` to `$2`, its times `$3` to `$4`.
const DIFFERENT: &str = "\
    stored AS (\
        SELECT service, count(*) AS events FROM events \
        WHERE event_id >= $1 AND event_id < $2 AND timestamp >= $3 AND timestamp < $4 GROUP BY service), \
    counted AS (SELECT service, sum(count)::bigint AS count FROM event_counts \
        WHERE hour >= $3 AND hour < $4 GROUP BY service), \
    different AS (\
        SELECT service, coalesce(events, 0) AS events, coalesce(count, 0) AS count \
        FROM stored FULL JOIN counted USING (service) WHERE coalesce(events, 0) <> coalesce(count, 0))";

const TELL: &str = "SELECT service, events, count FROM different ORDER BY service";

/// In the order in which all lock the counts.
const MEND: &str = "\
    mended AS (\
        INSERT INTO event_counts AS c (service, hour, count) \
        SELECT service, $3, events - count FROM different ORDER BY service \
        ON CONFLICT (service, hour) DO UPDATE SET count = c.count + excluded.count)";

impl PostgresRepository {
    /// The hours that have events or counts, oldest first; those of a day together, since a day has a partition.
    pub fn counted_hours(&self) -> Result<Vec<Timestamp>, StoreError> {
        let days = self.connections.transaction(&self.query_terms, |client| {
            let mut days: BTreeSet<i64> = partition::days(client)?.into_iter().map(Day::number).collect();
            let told = |error| error::of("looking for counted days", &error);
            let counted = client
                .query_typed("SELECT DISTINCT date_trunc('day', hour, 'UTC') FROM event_counts", &[])
                .map_err(told)?;
            days.extend(counted.iter().map(|row| Day::of(row.get::<_, Time>(0).0).number()));
            days.extend(days_of_default(client)?);
            Ok(days)
        })?;
        let hours = |day: i64| (0..24).map(move |hour| plus_hours(Day::numbered(day).begin(), hour));
        Ok(days.into_iter().flat_map(hours).collect())
    }

    /// What differs in the hour that begins at `hour`.
    pub fn counts_check(&self, hour: Timestamp) -> Result<Vec<Difference>, StoreError> {
        let begin = format!("BEGIN READ ONLY; {}", settings());
        self.connections.transaction(&terms(begin), |client| differences(client, hour, ""))
    }

    /// Puts right what differs in the hour that begins at `hour`, and says what it was. One at a time does this, and
    /// none while a sweep takes events and counts away.
    pub fn counts_repair(&self, hour: Timestamp) -> Result<Vec<Difference>, StoreError> {
        let begin = format!("BEGIN; {}; SET LOCAL lock_timeout = '5s'", settings());
        let told = |error| error::of("waiting for the lock of sweep and repair", &error);
        self.connections.transaction(&terms(begin), |client| {
            client.batch_execute(&format!("SELECT pg_advisory_xact_lock({LOCK})")).map_err(told)?;
            differences(client, hour, MEND)
        })
    }
}

fn settings() -> String {
    // Compiling a query takes longer than it does. A server that dies must not hold the lock for ever.
    format!(
        "SET LOCAL statement_timeout = {0}; SET LOCAL idle_in_transaction_session_timeout = {0}; SET LOCAL jit = off",
        HOUR_TIMEOUT.as_millis()
    )
}

fn terms(begin: String) -> Terms {
    Terms { begin, patience: HOUR_TIMEOUT + Duration::from_secs(10) }
}

fn differences(client: &mut Client, hour: Timestamp, then: &str) -> Result<Vec<Difference>, StoreError> {
    let end = plus_hours(hour, 1);
    let floor = |time: Timestamp| Uuid(EventId::floor(u64::try_from(time.millis()).unwrap_or(0)));
    let (low, high, from, to) = (floor(hour), floor(end), Time(hour), Time(end));
    let params: [(&(dyn ToSql + Sync), Type); 4] =
        [(&low, Type::UUID), (&high, Type::UUID), (&from, Type::TIMESTAMPTZ), (&to, Type::TIMESTAMPTZ)];
    let separator = if then.is_empty() { "" } else { ", " };
    let rows = client
        .query_typed(&format!("WITH {DIFFERENT}{separator}{then} {TELL}"), &params)
        .map_err(|error| error::of("comparing event_counts with events", &error))?;
    let difference = |row: &postgres::Row| Difference {
        hour,
        service: row.get(0),
        events: row.get(1),
        counted: row.get(2),
    };
    Ok(rows.iter().map(difference).collect())
}

/// From each day's first event to the next day's: as many look-ups as there are days.
fn days_of_default(client: &mut Client) -> Result<Vec<i64>, StoreError> {
    let (mut days, mut from) = (Vec::new(), EventId::floor(0));
    loop {
        let rows = client
            .query_typed(
                "SELECT event_id FROM events_default WHERE event_id >= $1 ORDER BY event_id LIMIT 1",
                &[(&Uuid(from), Type::UUID)],
            )
            .map_err(|error| error::of("looking into the default partition", &error))?;
        let Some(row) = rows.first() else { return Ok(days) };
        let day = Day::of_id(row.get::<_, Uuid>(0).0);
        days.push(day.number());
        if day == Day::LAST {
            return Ok(days);
        }
        from = Day::numbered(day.number() + 1).floor();
    }
}

fn plus_hours(time: Timestamp, hours: i64) -> Timestamp {
    Timestamp::from_micros(time.micros() + hours * HOUR_MICROS)
}
