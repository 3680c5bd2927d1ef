//! Limits on the memory and the time that a client can consume. Must not depend on settings.

use std::time::Duration;

/// Limits of one acceptor. Tests cover each limit at its value and one past it.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Bytes of the request line and the header fields, including leading empty lines and the final
    /// one.
    pub header_bytes_max: usize,
    /// Header fields of a request; never more than [`HttpLimits::HEADER_SLOTS`].
    pub headers_max: usize,
    /// Bytes of a body after the chunked coding is removed.
    pub body_bytes_max: usize,
    /// Open connections of all acceptors that share a [`super::ConnectionStats`].
    pub connections_max: usize,
    /// Open connections of one client address over the same acceptors; 0 disables the limit.
    pub connections_per_address_max: u32,
    /// From the first byte of a request to the end of its header section.
    pub header_timeout: Duration,
    /// From the end of the header section to the end of the body, at any rate.
    pub body_timeout: Duration,
    /// Time before [`HttpLimits::body_rate_min`] is enforced.
    pub body_rate_grace: Duration,
    /// Minimum bytes per second of a body after the grace period; 0 disables the check.
    pub body_rate_min: u32,
    /// Between two requests, and before the first.
    pub idle_timeout: Duration,
    /// How long the socket may accept no byte of a buffered response.
    pub write_timeout: Duration,
    /// Minimum bytes per second of buffered output that the socket must accept, in addition to
    /// [`HttpLimits::write_timeout`]; 0 disables the check.
    pub response_rate_min: u32,
    /// How long a request may wait for a promised response.
    pub response_timeout: Duration,
    /// Pipelined requests that one connection is served per turn.
    pub pipelined_max: u32,
    /// Buffered response bytes of a connection above which no further request is parsed in a turn.
    pub response_buffer_bytes_max: usize,
    /// Bytes of incomplete requests and unsent responses that one acceptor buffers over all
    /// connections. Above the limit, a request of more than [`HttpLimits::EXEMPT_BYTES`] gets a
    /// 503; above twice the limit, or within a TLS handshake, a connection that buffers more than that
    /// is dropped.
    pub connection_memory_bytes_max: usize,
    /// How long a closing connection discards input, so that the client can read the last response.
    pub linger_timeout: Duration,
    /// Bytes that a closing connection discards at most.
    pub linger_bytes_max: usize,
}

impl HttpLimits {
    /// Header fields that the parser has stack space for.
    pub const HEADER_SLOTS: usize = 256;
    /// Bytes that a connection may buffer even above the acceptor's limit, so that small requests
    /// are served.
    pub const EXEMPT_BYTES: usize = 16 * 1024;

    /// The time that a client has for `bytes` of output at the minimum rate.
    pub(super) fn output_time(&self, bytes: usize) -> Duration {
        let rate = u64::from(self.response_rate_min.max(1));
        Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / rate)
    }
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            header_bytes_max: 32 * 1024,
            headers_max: 100,
            body_bytes_max: 8 * 1024 * 1024,
            connections_max: 10_000,
            connections_per_address_max: 0,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            body_rate_grace: Duration::from_secs(5),
            body_rate_min: 1024,
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            response_rate_min: 1024,
            response_timeout: Duration::from_mins(1),
            pipelined_max: 32,
            response_buffer_bytes_max: 256 * 1024,
            connection_memory_bytes_max: 256 * 1024 * 1024,
            linger_timeout: Duration::from_secs(2),
            linger_bytes_max: 16 * 1024 * 1024,
        }
    }
}
