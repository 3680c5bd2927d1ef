//! What the fuzzers drive: the parts that read strangers' bytes, without a socket. Each panics when a promise is broken.

use super::Limits;
use super::chunked::Decoder;
use super::rehearsal::speak_within;

/// So narrow that a short input reaches each of them.
fn narrow() -> Limits {
    Limits {
        header_bytes_max: 600,
        headers_max: 12,
        body_bytes_max: 200,
        pipelined_max: 3,
        output_bytes_max: 500,
        ..Limits::default()
    }
}

/// No split of `bytes` changes an answer or what a handler sees. What is answered leaves nothing behind: said again, it
/// is answered again, and a refused request keeps what follows from being read. The first byte says where it is cut.
pub fn framing(data: &[u8]) {
    let [cuts, bytes @ ..] = data else { return };
    let (cut, size) = (usize::from(*cuts).min(bytes.len()), usize::from(*cuts) + 2);
    for limits in [Limits::default(), narrow()] {
        let whole = speak_within(limits, [bytes]);
        assert_eq!(speak_within(limits, bytes.chunks(1)), whole, "byte by byte");
        assert_eq!(speak_within(limits, bytes.chunks(size)), whole, "in pieces of {size}");
        let (head, tail) = bytes.split_at(cut);
        assert_eq!(speak_within(limits, [head, tail]), whole, "cut at {cut}");
        if whole.done {
            let twice = speak_within(limits, [bytes, bytes]);
            assert_eq!(twice.statuses, whole.statuses.repeat(2), "said twice");
        }
        if whole.over {
            let hidden = b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n";
            assert_eq!(speak_within(limits, [bytes, hidden]), whole, "read on after the end");
        }
    }
}

/// A body comes out of its chunks in the same way however it is cut, and never larger than allowed; put into chunks
/// again, it comes out again.
pub fn chunks(data: &[u8]) {
    const MOST: usize = 256;
    let [cut, bytes @ ..] = data else { return };
    let run = |bytes: &[u8], size: usize| {
        let mut decoder = Decoder::new(MOST);
        let (mut body, mut used) = (Vec::new(), 0);
        for piece in bytes.chunks(size) {
            match decoder.feed(piece, &mut body) {
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
