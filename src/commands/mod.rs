//! One-shot commands on stored data, and clients of a server. Each prints its result and exits.

pub mod counts;
pub mod dead;
pub mod documentation;
pub mod healthcheck;
pub mod journal;
pub mod send;
mod server_answer;
mod stop_signal;
pub mod tail;
mod terminal;
pub mod top;

pub use stop_signal::stop_signal;
