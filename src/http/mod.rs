//! The HTTP/1.1 server: parses requests, calls a [`Handler`] and writes responses. Must not depend
//! on events, SQL or the buffer.
//!
//! Two engines run the same handlers: `engine_guarded`, the event loop of this crate, for untrusted
//! networks, and `engine_minihttp`, a thin adapter on `may_minihttp`.

use std::any::Any;
use std::sync::atomic;

mod accept_queue;
mod acceptor_context;
pub mod acceptor_handle;
#[cfg(test)]
mod acceptor_tests;
#[cfg(test)]
mod bounds_tests;
mod chunked;
mod connection;
pub mod content_negotiation;
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
pub mod openapi;
mod per_address_limit;
pub mod percent;
pub mod problem;
pub mod refusal;
pub mod request;
pub mod response;
#[cfg(any(test, feature = "fuzzing"))]
mod sans_io_harness;
mod session;
#[cfg(test)]
mod session_tests;
mod snappy;
pub mod streaming_body;
#[cfg(test)]
mod streaming_body_tests;
mod target;
mod timer_wheel;
pub mod tls;
#[cfg(test)]
mod tls_tests;
mod transport;
mod wake_flag;

pub use acceptor_handle::{AcceptorHandle, ConnectionStats};
pub use decompress::{ContentCoding, DecompressBodyError, DecompressLimits, Decompressor};
pub use engine_guarded::{Acceptor, TurnResult, pin_to_core};
pub use limits::HttpLimits;
pub use refusal::Refusal;
pub use request::{Headers, Method, Request};
pub use response::{Promise, Response};
pub use streaming_body::{BodySender, BodyStream, body_channel};

/// The handler's state of a request that yielded, opaque to the engine. Dropped with the
/// connection.
pub type Continuation = Box<dyn Any + Send>;

/// The outcome of one call of a handler.
#[derive(Debug)]
#[must_use]
pub enum HandlerResult {
    /// The response is complete.
    Done,
    /// Another thread fulfils the promise of [`Request::promise`]. Later requests on this
    /// connection wait for the response; other connections do not.
    Pending,
    /// The request needs more work than fits one turn. The engine calls [`Handler::resume`] once a
    /// turn and serves other connections in between. An acceptor resumes one such request at a
    /// time; the others queue.
    Yield(Continuation),
}

/// The decision on a request whose header has arrived and whose body has not.
#[derive(Debug)]
#[must_use]
pub enum HeadResult {
    /// The body is received. Then the engine calls [`Handler::resume`] with the continuation, or
    /// [`Handler::handle`] if there is none.
    Proceed(Option<Continuation>),
    /// The response is complete. The engine sends it at once and discards the body.
    Refused,
}

/// Handles the requests of one acceptor. Each acceptor owns its handler, which needs no locks for
/// its state.
pub trait Handler: Send {
    /// Decides on a request by its header, before `100 Continue` is sent or the body is kept. The
    /// body of `request` is empty, and its promise must not be used. Not called for a request that
    /// arrived whole, so [`Handler::handle`] must refuse the same requests with the same responses.
    fn check_head(&mut self, _request: &Request<'_>, _response: &mut Response) -> HeadResult {
        HeadResult::Proceed(None)
    }

    /// Runs on the acceptor thread and must not block. `response` starts as 200 without headers or
    /// body.
    fn handle(&mut self, request: &Request<'_>, response: &mut Response) -> HandlerResult;

    /// Runs the next slice of a request that returned [`HandlerResult::Yield`], or the first one of a
    /// request that [`Handler::check_head`] accepted with a continuation. `response` is empty again.
    fn resume(
        &mut self,
        _unfinished: Continuation,
        _request: &Request<'_>,
        _response: &mut Response,
    ) -> HandlerResult {
        unreachable!("BUG: this handler never yields")
    }

    /// Called before the engine writes `response` for a request that it refuses itself. `headers`
    /// holds the fields that could be parsed, possibly none.
    fn on_refused(&mut self, _headers: Headers<'_>, _response: &mut Response) {}

    /// Called at the end of each turn of the event loop: the place for work that is cheaper per
    /// batch than per request.
    fn on_turn_end(&mut self) {}
}
