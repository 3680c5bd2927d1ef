//! Lists, replays and purges dead letters: the rules that the command `aurore-events dead` and the
//! routes of `/dead` share, and the routes.
//!
//! The routes run on the query threads, since each call may block on the database. It must not depend
//! on SQL or sockets.

mod list;
pub mod openapi;
mod params;
mod replay;
pub mod routes;

use std::time::Duration;

pub use replay::{ReplaySummary, replay};

use crate::event::Timestamp;

/// Dead letters listed or replayed in one transaction.
pub const CHUNK: u32 = 500;
/// Maximum of the filter by age.
pub const DAYS_MAX: u32 = 36_500;

/// The time before which a dead letter must have died that is at least `days` old.
pub fn died_before(now: Timestamp, days: u32) -> Timestamp {
    let age = Duration::from_hours(24 * u64::from(days));
    let micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.micros().saturating_sub(micros))
}
