//! What the server knows of itself in numbers. Counting costs the hot path a few uncontended additions; everything
//! else is worked out by whoever asks.

mod business;
mod disk;
mod exposition;
pub(crate) mod family;
pub mod history;
mod http;
mod ledger;
mod openmetrics;
mod process;
pub(crate) mod rates;
mod retention;
mod writer;

pub use business::{Business, BusinessFigures, Counting};
pub use disk::DiskRoom;
pub use exposition::{Form, Spilled, View};
pub use history::History;
pub use http::HttpFigures;
pub use ledger::{Balance, Ledger, Reason};
pub use process::Process;
pub use rates::{Rates, Sampler, retry_after};
pub use retention::RetentionFigures;
pub use writer::{BatchTimes, WriterFigures};
