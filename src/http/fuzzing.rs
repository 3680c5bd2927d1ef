//! Entry points of the fuzz targets for the parsers of untrusted input. They panic if an invariant
//! is violated.

use super::HttpLimits;
use super::chunked::ChunkedDecoder;
use super::sans_io_harness::run_with_limits;

/// Limits that a short input can reach.
fn narrow() -> HttpLimits {
    HttpLimits {
        header_bytes_max: 600,
        headers_max: 12,
        body_bytes_max: 200,
        pipelined_max: 3,
        response_buffer_bytes_max: 500,
        ..HttpLimits::default()
    }
}

/// Checks that no split of the input changes a response or the requests that the handler receives,
/// that a repeated input gets repeated responses, and that no input after a close is parsed. The
/// first byte selects the split.
pub fn framing(data: &[u8]) {
    let [cuts, bytes @ ..] = data else { return };
    let (cut, size) = (usize::from(*cuts).min(bytes.len()), usize::from(*cuts) + 2);
    for limits in [HttpLimits::default(), narrow()] {
        let whole = run_with_limits(limits, [bytes]);
        assert_eq!(run_with_limits(limits, bytes.chunks(1)), whole, "byte by byte");
        assert_eq!(run_with_limits(limits, bytes.chunks(size)), whole, "in pieces of {size}");
        let (head, tail) = bytes.split_at(cut);
        assert_eq!(run_with_limits(limits, [head, tail]), whole, "cut at {cut}");
        if whole.idle {
            let twice = run_with_limits(limits, [bytes, bytes]);
            assert_eq!(twice.statuses, whole.statuses.repeat(2), "sent twice");
        }
        if whole.closed {
            let hidden = b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n";
            assert_eq!(run_with_limits(limits, [bytes, hidden]), whole, "input parsed after the close");
        }
    }
}

/// Checks that the decoded body does not depend on the split of the input and never exceeds the
/// limit, and that it survives encoding and decoding again. The first byte selects the split.
pub fn chunks(data: &[u8]) {
    const MOST: usize = 256;
    let [cut, bytes @ ..] = data else { return };
    let run = |bytes: &[u8], size: usize| {
        let mut decoder = ChunkedDecoder::new(MOST);
        let (mut body, mut used) = (Vec::new(), 0);
        for piece in bytes.chunks(size) {
            match decoder.decode(piece, &mut body) {
                Ok(count) => {
                    assert!(
                        count == piece.len() || decoder.is_done(),
                        "{count} of {} bytes read",
                        piece.len()
                    );
                    used += count;
                }
                Err(refusal) => return Err(refusal.status),
            }
            assert!(body.len() <= MOST, "a body of {} bytes", body.len());
            if decoder.is_done() {
                break;
            }
        }
        Ok((body, used, decoder.is_done()))
    };
    let (size, whole) = (usize::from(*cut) + 2, run(bytes, bytes.len().max(1)));
    assert_eq!(run(bytes, 1), whole, "byte by byte");
    assert_eq!(run(bytes, size), whole, "in pieces of {size}");
    if let Ok((body, _, true)) = whole {
        let mut again = Vec::new();
        for piece in body.chunks(size) {
            again.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            again.extend_from_slice(piece);
            again.extend_from_slice(b"\r\n");
        }
        again.extend_from_slice(b"0\r\n\r\n");
        assert_eq!(run(&again, size), Ok((body, again.len(), true)), "in other chunks");
    }
}
