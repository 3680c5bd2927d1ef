//! The fault tests: a named test for each fault of `docs/faults.md`, and one checker for all.
//!
//! Each test injects a fault under load, repairs it, and compares the acknowledged events with the
//! tables. `scripts/test` runs all modules but `slow`; `scripts/faults` runs all of them at length
//! and prints the table of verdicts.

#[path = "../harness/mod.rs"]
mod harness;

mod fixture;

mod checker;
mod clock;
mod database;
mod disk;
mod failover;
mod gateway;
mod in_flight;
mod model;
mod overload;
mod process;
mod slow;
mod standby;
