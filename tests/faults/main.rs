//! The fault bench: what this server survives, a named test for each fault, and one judge for all.
//!
//! Each test breaks something under load, heals it, and compares what was acknowledged with what lies in the tables.
//! docs/faults.md lists them. `scripts/test` runs all but the module `slow`; `scripts/faults` runs all of it, at
//! length, and prints the table of verdicts.

#[path = "../harness/mod.rs"]
mod harness;

mod bench;
mod proxy;

mod clock;
mod database;
mod disk;
mod edge;
mod judge;
mod model;
mod process;
mod slow;
