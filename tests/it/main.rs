//! The promises of the server, a file each, tried on the real binary and a private PostgreSQL.
//!
//! Every test has its own cluster, server and data directory, so they may all run at once. They wait for
//! conditions, never for a time, and end on their own: a killed test takes its processes with it.

#[path = "../harness/mod.rs"]
mod harness;

mod access;
mod answers;
mod backpressure;
mod compression;
mod counts;
mod dead;
mod durability;
mod edge;
mod engines;
mod export;
mod gateway;
mod health;
mod ids;
mod instances;
mod logs;
mod metrics;
mod observe;
mod outage;
mod pushgateway;
mod queries;
mod retention;
mod shutdown;
mod spill;
mod start;
mod validation;
mod verdicts;
