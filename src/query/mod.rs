//! Questions about stored events: parameters to a query, a page or a receipt to JSON, and the threads between that
//! may wait for the database, so that no acceptor does.
//!
//! Knows storage only as its trait, and nothing of sockets or SQL.

mod asking;
pub mod cursor;
pub mod export;
pub mod page;
pub mod params;
pub mod readers;
pub mod receipt;
pub mod stats;

mod encode;
mod join;
mod member;

pub use encode::Format;
pub use export::{Exporters, Exports, How};
pub use params::{Count, Query};
pub use readers::{Line, ReaderLimits, Readers, line};

/// Where queries come in: shared by all acceptors.
#[derive(Clone, Debug)]
pub struct Entrance {
    pub line: Line,
    pub exports: Exports,
}
