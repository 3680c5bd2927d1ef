//! The bounds on everything a client may make this server hold or wait for. Knows nothing of settings.

use std::time::Duration;

/// What one acceptor grants its clients. Each bound has a test at it and one past it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request line and its header fields, both empty lines counted.
    pub header_bytes_max: usize,
    /// Header fields of a request; never more than [`Limits::HEADERS_CAP`].
    pub headers_max: usize,
    /// Bytes of a body once its chunks are joined.
    pub body_bytes_max: usize,
    /// Connections over all acceptors that share a [`super::Shared`].
    pub connections_max: usize,
    /// Connections of one client address, over the same acceptors; 0 for no bound but that on all.
    pub connections_per_address_max: u32,
    /// From the first byte of a request to the end of its header.
    pub header_timeout: Duration,
    /// From the end of the header to the end of the body, however quick it comes.
    pub body_timeout: Duration,
    /// How long a body may stay behind [`Limits::body_rate_min`].
    pub body_grace: Duration,
    /// Bytes per second that a body must bring, once its grace is over; 0 for none.
    pub body_rate_min: u32,
    /// Between two requests, and before the first.
    pub idle_timeout: Duration,
    /// How long a client may take no byte of an answer that waits for it.
    pub slow_reader_timeout: Duration,
    /// How long a request may wait for the answer that another thread promised.
    pub answer_timeout: Duration,
    /// Requests one connection may have answered in a turn before the others have theirs.
    pub pipelined_max: u32,
    /// Bytes of answers that wait for a client; no further request is taken up above it.
    pub output_bytes_max: usize,
    /// Bytes of unfinished requests and unread answers that one acceptor holds over all its connections. Beyond
    /// it a request of more than [`Limits::HELD_FREE`] is answered 503; beyond twice as much, whoever does not read
    /// is dropped.
    pub held_bytes_max: usize,
    /// How long a closing connection goes on reading, so that its client gets to read the last answer.
    pub linger_timeout: Duration,
    /// Bytes that a closing connection reads and discards at most.
    pub linger_bytes_max: usize,
}

impl Limits {
    /// The room for header fields on the stack.
    pub const HEADERS_CAP: usize = 256;
    /// Bytes that a connection may hold however much the others do: an ordinary request gets through.
    pub const HELD_FREE: usize = 16 * 1024;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes_max: 32 * 1024,
            headers_max: 100,
            body_bytes_max: 8 * 1024 * 1024,
            connections_max: 10_000,
            connections_per_address_max: 0,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            body_grace: Duration::from_secs(5),
            body_rate_min: 1024,
            idle_timeout: Duration::from_secs(75),
            slow_reader_timeout: Duration::from_secs(30),
            answer_timeout: Duration::from_mins(1),
            pipelined_max: 32,
            output_bytes_max: 256 * 1024,
            held_bytes_max: 256 * 1024 * 1024,
            linger_timeout: Duration::from_secs(2),
            linger_bytes_max: 16 * 1024 * 1024,
        }
    }
}
