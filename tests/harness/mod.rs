//! The test harness, shared by `tests/it` and `tests/faults`: a private PostgreSQL that a test may
//! break, the real server, an HTTP client for arbitrary bytes, a producer that records the
//! acknowledgements, and the checker.

#![allow(dead_code, unused_imports, reason = "each of the two binaries uses a part of it")]

pub(crate) mod checker;
pub(crate) mod client;
pub(crate) mod events;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod producer;
pub(crate) mod server;
pub(crate) mod temp;
pub(crate) mod wait;

pub(crate) use checker::{check_stored, wait_for_drain};
pub(crate) use client::{Client, Reply};
pub(crate) use events::{event, event_at, now};
pub(crate) use postgres::Postgres;
pub(crate) use producer::Producer;
pub(crate) use server::{Server, TestServer};
pub(crate) use wait::until;
