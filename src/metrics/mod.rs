//! The server's metrics. The hot path only does a few uncontended additions; rates, sums and
//! encodings are computed by the sampler thread or the scrape.

mod business;
mod disk;
mod exposition;
mod failover;
pub(crate) mod family;
pub mod gateway;
pub mod history;
mod http;
pub mod journal;
mod json;
mod ledger;
pub mod openapi;
mod openmetrics;
mod partitions;
mod process;
pub(crate) mod rates;
mod retention;
mod stall;
mod standby;
mod tail;
pub mod text_format;
mod writer;

pub use business::{BusinessCache, BusinessCollector, BusinessMetrics};
pub use disk::DiskSpace;
pub use exposition::{MetricsSnapshot, SpillMetrics};
pub use failover::{FailoverMetrics, FailoverReport, LostWindow};
pub use history::History;
pub use http::HttpMetrics;
pub use ledger::{Balance, DropReason, EventInput, Ledger};
pub use partitions::PartitionMetrics;
pub use process::Process;
pub use rates::{Sampler, WindowRates, retry_after};
pub use retention::RetentionMetrics;
pub use stall::StallDetector;
pub use tail::TailMetrics;
pub use writer::{BatchTimes, WriterMetrics};
