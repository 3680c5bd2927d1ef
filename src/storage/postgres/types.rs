//! Our two fixed-size types in PostgreSQL's binary format. Knows nothing of statements.

use postgres::types::private::BytesMut;
use postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::event::{EventId, Timestamp};

type Fault = Box<dyn std::error::Error + Sync + Send>;

/// The ends of what PostgreSQL takes for a time, in microseconds since 2000: 4713 BC to AD 294276.
const POSTGRES_TIME_MIN: i64 = -211_813_488_000_000_000;
const POSTGRES_TIME_END: i64 = 9_223_371_331_200_000_000;

#[derive(Clone, Copy, Debug)]
pub(super) struct Uuid(pub(super) EventId);

impl ToSql for Uuid {
    fn to_sql(&self, _ty: &Type, out: &mut BytesMut) -> Result<IsNull, Fault> {
        out.extend_from_slice(self.0.bytes());
        Ok(IsNull::No)
    }

    accepts!(UUID);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Uuid {
    fn from_sql(_ty: &Type, raw: &'a [u8]) -> Result<Self, Fault> {
        Ok(Self(EventId::from_bytes(raw.try_into()?)))
    }

    accepts!(UUID);
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub(super) Timestamp);

impl Time {
    /// As PostgreSQL can hold it: what lies beyond its range becomes infinite, which is the nearest truth.
    fn encoded(self) -> i64 {
        match self.0.to_postgres() {
            micros if micros < POSTGRES_TIME_MIN => i64::MIN,
            micros if micros >= POSTGRES_TIME_END => i64::MAX,
            micros => micros,
        }
    }
}

impl ToSql for Time {
    fn to_sql(&self, _ty: &Type, out: &mut BytesMut) -> Result<IsNull, Fault> {
        out.extend_from_slice(&self.encoded().to_be_bytes());
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Time {
    fn from_sql(_ty: &Type, raw: &'a [u8]) -> Result<Self, Fault> {
        Ok(Self(Timestamp::from_postgres(i64::from_be_bytes(raw.try_into()?))))
    }

    accepts!(TIMESTAMPTZ);
}
