//! Takes in events over HTTP, answers at once, and gets every event it acknowledged into PostgreSQL exactly once.
//!
//! The modules stand in the order of an event's way from socket to table.

pub mod clock;
pub mod event;
pub mod http;
pub mod ingest;
pub mod query;
pub mod row;
pub mod storage;
