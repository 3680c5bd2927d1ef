//! Queries for stored events: parses query parameters, runs queries on reader threads that may wait
//! for the database (acceptors must not), and encodes the results.
//!
//! Depends on storage through `EventRepository`; must not depend on sockets or SQL.

mod breaker_guard;
pub mod cursor;
mod database;
pub mod export;
pub mod page;
pub mod params;
pub mod readers;
pub mod receipt;
mod request;
pub mod stats;

mod encode;
mod metadata_filter;
mod page_and_total;

pub use database::QueryDatabase;
pub use encode::ExportFormat;
pub use export::{ExportOptions, Exporters, Exports};
pub use params::{Count, Query};
pub use readers::{QueryQueue, ReaderLimits, Readers, query_queue};
pub use request::QueryRequest;

/// Submits queries and exports. Shared by all acceptors.
#[derive(Clone, Debug)]
pub struct QueryService {
    pub queue: QueryQueue,
    pub exports: Exports,
}
