//! Queries for stored events: parses query parameters, runs queries on reader threads that may wait
//! for the database (acceptors must not), and encodes the results.
//!
//! A tail reads admitted events instead of stored ones.
//!
//! Depends on storage through `EventRepository`; must not depend on sockets or SQL.

mod breaker_guard;
pub mod cursor;
mod database;
pub mod export;
pub mod openapi;
pub mod page;
pub(crate) mod parameters;
pub mod params;
pub mod readers;
pub mod receipt;
mod request;
pub mod stats;
pub mod tail;

mod encode;
mod metadata_filter;
mod page_and_total;

pub use breaker_guard::RunQueryError;
pub use database::QueryDatabase;
pub use encode::ExportFormat;
pub use export::{ExportOptions, Exporters, Exports};
pub use params::{Count, Query};
pub use readers::{QueryQueue, ReaderLimits, Readers, query_queue};
pub use request::QueryRequest;
pub use tail::{EventTap, TailThread, Tails};

/// Submits queries and exports, and opens tails. Shared by all acceptors.
#[derive(Clone, Debug)]
pub struct QueryService {
    pub queue: QueryQueue,
    pub exports: Exports,
    pub tails: Tails,
}
