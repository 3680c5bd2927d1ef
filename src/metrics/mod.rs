//! What the server knows of itself in numbers. Counting costs the hot path a few uncontended additions; everything
//! else is worked out by whoever asks.

mod exposition;
mod http;
mod ledger;
mod process;
mod rates;
mod retention;
mod writer;

pub use exposition::View;
pub use http::HttpFigures;
pub use ledger::{Balance, Ledger, Reason};
pub use process::Process;
pub use rates::{Rates, Sampler, retry_after};
pub use retention::RetentionFigures;
pub use writer::{BatchTimes, WriterFigures};
