//! Answers made smaller for those who ask for it (RFC 9110, 8.4 and 12.5.3). Whoever built the answer does it, on its
//! own thread.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{Headers, Response};

/// Below this an answer fits into a packet anyway.
const WORTH_BYTES: usize = 1024;
/// The most that an acceptor compresses itself: a good half of a millisecond, in which its other connections wait.
pub const ON_ACCEPTOR_MAX: usize = 64 * 1024;

/// Whether the client takes gzip: it names it, or `*`, and not with a quality of zero.
pub fn is_accepted(headers: Headers<'_>) -> bool {
    let (mut named, mut any) = (None, None);
    for value in headers.all("Accept-Encoding") {
        for part in value.split(|byte| *byte == b',') {
            let mut parameters = part.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let coding = parameters.next().unwrap_or_default();
            let wanted = parameters.all(|parameter| !is_zero(parameter));
            if coding.eq_ignore_ascii_case(b"gzip") || coding.eq_ignore_ascii_case(b"x-gzip") {
                named = Some(wanted);
            } else if coding == b"*" {
                any = Some(wanted);
            }
        }
    }
    named.or(any).unwrap_or(false)
}

/// Whether it is `q=0`, with whatever decimals of zero.
fn is_zero(parameter: &[u8]) -> bool {
    matches!(parameter, [b'q' | b'Q', b'=', b'0', rest @ ..] if rest.iter().all(|byte| matches!(byte, b'.' | b'0')))
}

/// Compresses the body if that pays, it has no more than `most` bytes and is not encoded yet.
pub fn compress(response: &mut Response, most: usize) {
    const FIELD: &[u8] = b"Content-Encoding:";
    let done = response.headers.windows(FIELD.len()).any(|field| field == FIELD);
    if response.body.len() < WORTH_BYTES || response.body.len() > most || done {
        return;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(response.body.len() / 4), Compression::fast());
    // A vector takes all that is written.
    let Ok(small) = encoder.write_all(&response.body).and_then(|()| encoder.finish()) else { return };
    if small.len() < response.body.len() {
        response.body = small;
        response.header("Content-Encoding", "gzip");
        response.header("Vary", "Accept-Encoding");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[track_caller]
    fn check(values: &[&str], wanted: bool) {
        let fields: Vec<_> = values
            .iter()
            .map(|value| httparse::Header { name: "accept-encoding", value: value.as_bytes() })
            .collect();
        assert_eq!(is_accepted(Headers(&fields)), wanted, "{values:?}");
    }

    #[test]
    fn gzip_is_used_where_it_is_asked_for() {
        check(&[], false);
        check(&[""], false);
        check(&["gzip"], true);
        check(&["br, GZIP;q=0.5"], true);
        check(&["gzip;q=0"], false);
        check(&["gzip; q=0.000, *"], false);
        check(&["gzip;q=0.001"], true);
        check(&["*"], true);
        check(&["*;q=0"], false);
        check(&["identity", "gzip"], true);
        check(&["gzipped, deflate"], false);
    }

    #[test]
    fn only_what_is_large_enough_and_not_too_large_is_compressed() {
        for (bytes, compressed) in [(0, false), (1023, false), (1024, true), (4096, true), (4097, false)] {
            let body: Vec<u8> = b"abcdefgh".iter().copied().cycle().take(bytes).collect();
            let mut response = Response { body: body.clone(), ..Response::default() };
            compress(&mut response, 4096);
            assert_eq!(response.headers.starts_with(b"Content-Encoding: gzip\r\n"), compressed, "{bytes}");
            if compressed {
                let mut back = Vec::new();
                flate2::read::GzDecoder::new(response.body.as_slice()).read_to_end(&mut back).unwrap();
                response.body = back;
            }
            assert_eq!(response.body, body);
        }
    }
}
