//! Bytes to requests and back. Knows nothing of events, SQL or the buffer: it calls a [`Handler`].
//!
//! Two engines serve the same handlers: `engine_guarded`, our own, fit to face a network, and
//! `engine_minihttp`, a thin adapter on `may_minihttp`.

pub mod accept;
mod accepting;
#[cfg(test)]
mod acceptor_tests;
mod addresses;
mod chunked;
mod connection;
mod encode;
pub mod engine_guarded;
pub mod engine_minihttp;
#[cfg(test)]
mod engines_tests;
mod framing;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod gzip;
pub mod limits;
pub mod listener;
pub mod refusal;
#[cfg(any(test, feature = "fuzzing"))]
mod rehearsal;
pub mod remote;
pub mod request;
pub mod response;
pub mod router;
mod session;
#[cfg(test)]
mod session_tests;
mod target;
pub mod tls;
#[cfg(test)]
mod tls_tests;
mod wheel;
mod wire;

pub use engine_guarded::{Acceptor, Turn, pin_to_core};
pub use limits::Limits;
pub use refusal::{Refusal, problem};
pub use remote::{Remote, Shared};
pub use request::{Headers, Method, Request};
pub use response::{Promise, Response};

/// What a handler says of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Answer {
    /// It stands in the response.
    Ready,
    /// Another thread will give it through the promise that [`Request::promise`] made. The connection's later
    /// requests wait for it; other connections do not.
    Later,
}

/// Answers the requests of one acceptor. Each acceptor has its own, so it may keep state without locks.
pub trait Handler: Send {
    /// Runs on an acceptor and must not block. `response` is fresh: 200, no headers, an empty body.
    fn handle(&mut self, request: &Request<'_>, response: &mut Response) -> Answer;

    /// The engine itself refused a request that it could not read, with this status.
    fn refused(&mut self, _status: u16) {}

    /// A batch of readiness is worked off and the acceptor is about to sleep: the time for what is cheaper once
    /// than for each request. Runs after every [`Remote::wake`] too.
    fn turn_ended(&mut self) {}
}
