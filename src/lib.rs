//! Takes in events over HTTP, answers at once, and gets every event it acknowledged into PostgreSQL exactly once.
//!
//! It is one process with one dependency, PostgreSQL. It is not a broker: nobody subscribes, and what is stored is read
//! by query. The modules stand in the order of an event's way from socket to table.

pub mod settings;

pub mod clock;
pub mod lifecycle;
pub mod logging;
pub mod server;

pub mod event;
pub mod json;

pub mod http;

pub mod access;

pub mod api;

pub mod ingest;

pub mod buffer;

pub mod journal;

pub mod writer;

pub mod commands;

pub mod storage;

pub mod query;

pub mod retention;

pub mod metrics;

pub mod gateway;

pub mod health;

pub mod console;
