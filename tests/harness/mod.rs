//! The test harness, shared by `tests/it` and `tests/faults`: a private PostgreSQL that a test may
//! break, with a standby and a proxy for network faults, the real server, an HTTP client for arbitrary bytes, a producer that records the
//! acknowledgements, and the checker.

#![allow(dead_code, unused_imports, reason = "each of the two binaries uses a part of it")]

pub(crate) mod checker;
pub(crate) mod client;
pub(crate) mod events;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod producer;
pub(crate) mod program;
pub(crate) mod proxy;
pub(crate) mod server;
pub(crate) mod standby;
pub(crate) mod tail;
pub(crate) mod temp;
pub(crate) mod tokens;
pub(crate) mod unit;
pub(crate) mod wait;

pub(crate) use checker::{check_stored, wait_for_drain};
pub(crate) use client::{Client, Reply};
pub(crate) use events::{event, event_at, now};
pub(crate) use postgres::Postgres;
pub(crate) use producer::Producer;
pub(crate) use proxy::Proxy;
pub(crate) use server::{Server, TestServer};
pub(crate) use standby::ReplicatedPostgres;
pub(crate) use tokens::create_token;
pub(crate) use wait::until;
