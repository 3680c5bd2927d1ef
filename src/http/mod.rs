//! Bytes to requests and back. Knows nothing of events, SQL or the buffer: it calls a [`Handler`].
//!
//! Two engines serve the same handlers: `engine_guarded`, our own, fit to face a network, and
//! `engine_minihttp`, a thin adapter on `may_minihttp`.

use std::any::Any;

pub mod accept;
mod accepting;
#[cfg(test)]
mod acceptor_tests;
mod addresses;
#[cfg(test)]
mod bounds_tests;
mod chunked;
mod connection;
pub mod decompress;
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
pub mod percent;
pub mod problem;
pub mod refusal;
#[cfg(any(test, feature = "fuzzing"))]
mod rehearsal;
pub mod remote;
pub mod request;
pub mod response;
mod session;
#[cfg(test)]
mod session_tests;
pub mod stream;
#[cfg(test)]
mod stream_tests;
mod target;
pub mod tls;
#[cfg(test)]
mod tls_tests;
mod wheel;
mod wire;

pub use decompress::{Coding, DecompressLimits, Decompressor, Undecodable};
pub use engine_guarded::{Acceptor, Turn, pin_to_core};
pub use limits::Limits;
pub use refusal::Refusal;
pub use remote::{Remote, Shared};
pub use request::{Headers, Method, Request};
pub use response::{Promise, Response};
pub use stream::{Feed, Stream, stream};

/// A request as far as its handler has come with it. What is in it only the handler knows; it goes with the connection.
pub type Unfinished = Box<dyn Any + Send>;

/// What a handler says of the answer.
#[derive(Debug)]
#[must_use]
pub enum Answer {
    /// It stands in the response.
    Ready,
    /// Another thread will give it through the promise that [`Request::promise`] made. The connection's later
    /// requests wait for it; other connections do not.
    Later,
    /// It takes more work than one turn should: [`Handler::go_on`] does it, a slice a turn, so that other connections
    /// have theirs in between. One such request of an acceptor is worked on at a time, the others wait in line.
    More(Unfinished),
}

/// Answers the requests of one acceptor. Each acceptor has its own, so it may keep state without locks.
pub trait Handler: Send {
    /// Runs on an acceptor and must not block. `response` is fresh: 200, no headers, an empty body.
    fn handle(&mut self, request: &Request<'_>, response: &mut Response) -> Answer;

    /// Does the next slice of a request that was answered [`Answer::More`]. `response` is fresh once more.
    fn go_on(&mut self, _unfinished: Unfinished, _request: &Request<'_>, _response: &mut Response) -> Answer {
        unreachable!("BUG: this handler does all of its work at once")
    }

    /// The engine itself refuses a request that it could not read, with this answer. Of its headers there is no more
    /// than could be read, and may be nothing.
    fn refused(&mut self, _headers: Headers<'_>, _response: &mut Response) {}

    /// A batch of readiness is worked off and the acceptor is about to sleep: the time for what is cheaper once
    /// than for each request. Runs after every [`Remote::wake`] too.
    fn turn_ended(&mut self) {}
}
