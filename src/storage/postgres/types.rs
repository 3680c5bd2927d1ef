//! `EventId` and `Timestamp` in PostgreSQL's binary format.

use postgres::types::private::BytesMut;
use postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::event::{EventId, Timestamp};

pub(super) type BoxError = Box<dyn std::error::Error + Sync + Send>;

/// The range of `timestamptz`, in microseconds since 2000: 4713 BC to AD 294276.
const POSTGRES_TIME_MIN: i64 = -211_813_488_000_000_000;
const POSTGRES_TIME_END: i64 = 9_223_371_331_200_000_000;

#[derive(Clone, Copy, Debug)]
pub(super) struct PgUuid(pub(super) EventId);

impl ToSql for PgUuid {
    fn to_sql(&self, _ty: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.extend_from_slice(self.0.bytes());
        Ok(IsNull::No)
    }

    accepts!(UUID);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for PgUuid {
    fn from_sql(_ty: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        Ok(Self(EventId::from_bytes(raw.try_into()?)))
    }

    accepts!(UUID);
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PgTimestamp(pub(super) Timestamp);

impl PgTimestamp {
    /// Encodes the time; a time outside PostgreSQL's range becomes `infinity` or `-infinity`.
    fn clamped_micros(self) -> i64 {
        match self.0.to_postgres() {
            micros if micros < POSTGRES_TIME_MIN => i64::MIN,
            micros if micros >= POSTGRES_TIME_END => i64::MAX,
            micros => micros,
        }
    }
}

impl ToSql for PgTimestamp {
    fn to_sql(&self, _ty: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.extend_from_slice(&self.clamped_micros().to_be_bytes());
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for PgTimestamp {
    fn from_sql(_ty: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        Ok(Self(Timestamp::from_postgres(i64::from_be_bytes(raw.try_into()?))))
    }

    accepts!(TIMESTAMPTZ);
}
