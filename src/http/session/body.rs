//! Bodies that do not arrive whole: a chunked body that is collected, and the body of a refused
//! request, which is discarded.

use crate::http::Continuation;
use crate::http::chunked::ChunkedDecoder;
use crate::http::framing::BodyFraming;
use crate::http::limits::HttpLimits;
use crate::http::refusal::Refusal;

#[derive(Debug)]
pub(super) struct ChunkedRequest {
    pub(super) head: Vec<u8>,
    /// The handler's state from [`Handler::check_head`](crate::http::Handler::check_head).
    pub(super) checked: Option<Continuation>,
    pub(super) decoder: ChunkedDecoder,
    pub(super) body: Vec<u8>,
    /// Encoded bytes received, for the minimum rate.
    pub(super) received: usize,
}

impl ChunkedRequest {
    pub(super) fn new(header: &[u8], checked: Option<Continuation>, limits: &HttpLimits) -> Self {
        Self {
            head: header.to_vec(),
            checked,
            decoder: ChunkedDecoder::new(limits.body_bytes_max),
            body: Vec::new(),
            received: 0,
        }
    }

    pub(super) fn buffered_bytes(&self) -> usize {
        self.head.capacity() + self.body.capacity()
    }
}

/// The rest of a body that is received and not kept, so that the connection can serve the request
/// behind it. `MAX_BODY_BYTES` and the timeouts of a body bound it as they bound any other.
#[derive(Debug)]
pub(super) struct DiscardedBody {
    rest: RemainingBody,
    received: usize,
}

#[derive(Debug)]
enum RemainingBody {
    /// The number of missing bytes.
    Length(usize),
    Chunked {
        decoder: ChunkedDecoder,
        /// Decoded bytes so far.
        decoded: usize,
    },
}

impl DiscardedBody {
    pub(super) fn new(framing: BodyFraming, limits: &HttpLimits) -> Self {
        let rest = match framing {
            BodyFraming::Length(length) => RemainingBody::Length(length),
            BodyFraming::Chunked => {
                RemainingBody::Chunked { decoder: ChunkedDecoder::new(limits.body_bytes_max), decoded: 0 }
            }
        };
        Self { rest, received: 0 }
    }

    /// Bytes received, for the minimum rate.
    pub(super) fn received(&self) -> usize {
        self.received
    }

    /// Whether the end of the body has been received.
    pub(super) fn is_done(&self) -> bool {
        match &self.rest {
            RemainingBody::Length(missing) => *missing == 0,
            RemainingBody::Chunked { decoder, .. } => decoder.is_done(),
        }
    }

    /// Consumes `input` up to the end of the body. Returns the number of bytes consumed.
    pub(super) fn discard(&mut self, input: &[u8]) -> Result<usize, Refusal> {
        let used = match &mut self.rest {
            RemainingBody::Length(missing) => {
                let used = input.len().min(*missing);
                *missing -= used;
                used
            }
            RemainingBody::Chunked { decoder, decoded } => decoder.discard(input, decoded)?,
        };
        self.received += used;
        Ok(used)
    }
}
