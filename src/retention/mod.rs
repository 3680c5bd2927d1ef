//! Retention: deletes expired events. `schedule` parses the cron expression, `plan` selects
//! partitions and rows, `sweep` deletes them.
//!
//! Depends on storage through `EventRepository` and the breaker; must not depend on SQL.

pub mod plan;
pub mod schedule;
pub mod sweep;

pub use plan::Plan;
pub use schedule::Schedule;
pub use sweep::{RetentionSweeper, SweepCounts, SweepError, SweepOutcome};
