//! Events past their time: when to look (`schedule`), what goes and how (`plan`), and the doing of it (`sweep`).
//!
//! Knows storage as its trait and the breaker before it, and nothing of SQL.

pub mod plan;
pub mod schedule;
pub mod sweep;

pub use plan::Plan;
pub use schedule::Schedule;
pub use sweep::{Retention, SweepEnd, Swept};
