//! What the promises are tried with: a database that can be broken, the real server, a client that sends any
//! bytes, a producer that remembers what was acknowledged, and the judge. Shared by `tests/it` and `tests/faults`.

#![allow(dead_code, unused_imports, reason = "each of the two binaries uses a part of it")]

pub(crate) mod client;
pub(crate) mod events;
pub(crate) mod judge;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod producer;
pub(crate) mod server;
pub(crate) mod temp;
pub(crate) mod wait;

pub(crate) use client::{Client, Reply};
pub(crate) use events::{event, event_at, now};
pub(crate) use judge::{judge, settle};
pub(crate) use postgres::Postgres;
pub(crate) use producer::Producer;
pub(crate) use server::{Server, World};
pub(crate) use wait::until;
