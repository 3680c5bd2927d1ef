//! Questions about stored events: parameters to a query, a page or a receipt to JSON, and the threads between that
//! may wait for the database, so that no acceptor does.
//!
//! Knows storage only as its trait, and nothing of sockets or SQL.

pub mod cursor;
pub mod page;
pub mod params;
pub mod readers;
pub mod receipt;
pub mod stats;

mod join;
mod member;

pub use params::{Count, Query};
pub use readers::{Line, ReaderLimits, Readers, line};
