//! A server that accepts events over HTTP, acknowledges them at once, and stores every acknowledged
//! event in PostgreSQL exactly once.
//!
//! The server is one process with one dependency, PostgreSQL. It is not a message broker: there are
//! no subscriptions, and stored events are read by query. The modules are listed in the order of
//! the data path from socket to table.

pub mod settings;

pub mod allocator;
pub mod clock;
pub mod lifecycle;
pub mod logging;
pub mod server;
pub mod service_manager;

pub mod dead_letters;
pub mod event;
pub mod failover;
pub mod json;
pub mod openapi;
mod protobuf;
pub mod recordlog;

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

pub mod partitions;

pub mod retention;

pub mod metrics;

pub mod gateway;

pub mod health;

pub mod console;
