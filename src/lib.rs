//! Takes in events over HTTP, answers at once, and gets every event it acknowledged into PostgreSQL exactly once.
//!
//! It is one process with one dependency, PostgreSQL. It is not a broker: nobody subscribes, and what is stored is read
//! by query. The modules stand in the order of an event's way from socket to table.

pub mod clock;
pub mod event;
pub mod http;
pub mod ingest;
pub mod lifecycle;
pub mod logging;
pub mod row;
pub mod settings;
pub mod storage;
