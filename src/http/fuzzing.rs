//! What the fuzzers drive: the parts that read strangers' bytes, without a socket. Each panics when a promise is broken.

use super::chunked::Decoder;
use super::rehearsal::speak;

/// No split of `bytes` changes an answer. The first byte says where it is cut.
pub fn framing(data: &[u8]) {
    let [cuts, bytes @ ..] = data else { return };
    let whole = speak([bytes]);
    assert_eq!(speak(bytes.chunks(1)), whole, "byte by byte");
    assert_eq!(speak(bytes.chunks(usize::from(*cuts) + 2)), whole, "in pieces of {}", usize::from(*cuts) + 2);
    let (head, tail) = bytes.split_at(usize::from(*cuts).min(bytes.len()));
    assert_eq!(speak([head, tail]), whole, "cut at {cuts}");
}

/// A body comes out of its chunks in the same way however it is cut, and never larger than allowed.
pub fn chunks(data: &[u8]) {
    const MOST: usize = 4096;
    let [cut, bytes @ ..] = data else { return };
    let run = |size: usize| {
        let mut decoder = Decoder::new(MOST);
        let (mut body, mut used) = (Vec::new(), 0);
        for piece in bytes.chunks(size) {
            match decoder.feed(piece, &mut body) {
                Ok(count) => used += count,
                Err(refusal) => return Err(refusal.status),
            }
            assert!(body.len() <= MOST, "a body of {} bytes", body.len());
            if decoder.is_done() {
                break;
            }
        }
        Ok((body, used, decoder.is_done()))
    };
    let whole = run(bytes.len().max(1));
    assert_eq!(run(1), whole, "byte by byte");
    assert_eq!(run(usize::from(*cut) + 2), whole, "in pieces");
}
