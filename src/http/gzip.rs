//! Compresses responses for clients that accept gzip (RFC 9110, 8.4 and 12.5.3). The thread that
//! builds the response compresses it.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{Headers, Response};

/// Smaller bodies fit into one packet without compression.
const GZIP_BYTES_MIN: usize = 1024;
/// Largest body that an acceptor compresses itself: slightly more than half a millisecond, during
/// which its other connections wait.
pub const ACCEPTOR_GZIP_BYTES_MAX: usize = 64 * 1024;

/// Whether `Accept-Encoding` lists gzip, or else `*`, with a non-zero quality.
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

/// Whether `parameter` is a quality of zero, with any number of decimals.
fn is_zero(parameter: &[u8]) -> bool {
    matches!(parameter, [b'q' | b'Q', b'=', b'0', rest @ ..] if rest.iter().all(|byte| matches!(byte, b'.' | b'0')))
}

/// Compresses the body if the client accepts that, if it makes the body smaller, and if the body has at
/// most `bytes_max` bytes and is not encoded yet. `Vary` says that the client decides.
pub fn negotiate(is_accepted: bool, response: &mut Response, bytes_max: usize) {
    const FIELD: &[u8] = b"Content-Encoding:";
    let is_encoded = response.headers.windows(FIELD.len()).any(|field| field == FIELD);
    if response.body.len() < GZIP_BYTES_MIN || response.body.len() > bytes_max || is_encoded {
        return;
    }
    response.vary("Accept-Encoding");
    if !is_accepted {
        return;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(response.body.len() / 4), Compression::fast());
    // Writing to a vector cannot fail.
    let Ok(compressed) = encoder.write_all(&response.body).and_then(|()| encoder.finish()) else { return };
    if compressed.len() < response.body.len() {
        response.body = compressed;
        response.header("Content-Encoding", "gzip");
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
    fn gzip_is_accepted_by_name_or_wildcard_with_non_zero_quality() {
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
    fn bodies_outside_the_size_limits_are_not_negotiated() {
        for (bytes, negotiated) in [(0, false), (1023, false), (1024, true), (4096, true), (4097, false)] {
            let body: Vec<u8> = b"abcdefgh".iter().copied().cycle().take(bytes).collect();
            let mut response = Response { body: body.clone(), ..Response::default() };
            negotiate(false, &mut response, 4096);
            // The response to a client that does not accept gzip says so too.
            let vary = if negotiated { "Vary: Accept-Encoding\r\n" } else { "" };
            assert_eq!(
                (str::from_utf8(&response.headers).unwrap(), &response.body),
                (vary, &body),
                "{bytes}"
            );
            negotiate(true, &mut response, 4096);
            let coding = if negotiated { "Content-Encoding: gzip\r\n" } else { "" };
            assert_eq!(str::from_utf8(&response.headers).unwrap(), format!("{vary}{coding}"), "{bytes}");
            if negotiated {
                let mut back = Vec::new();
                flate2::read::GzDecoder::new(response.body.as_slice()).read_to_end(&mut back).unwrap();
                response.body = back;
            }
            assert_eq!(response.body, body);
        }
    }
}
