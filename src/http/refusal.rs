//! A request turned away, and the problem document that says why. Knows nothing of why a handler refuses.

use super::Response;
use super::response::reason;

/// Why a request is not answered as asked: by the engine, which then closes the connection, or by the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    /// One sentence for the client.
    pub detail: &'static str,
    /// The methods of the path, for a 405.
    pub allow: &'static str,
}

impl Refusal {
    pub const fn new(status: u16, detail: &'static str) -> Self {
        Self { status, detail, allow: "" }
    }

    pub fn write(&self, response: &mut Response) {
        problem(response, self.status, self.detail);
        if !self.allow.is_empty() {
            response.header("Allow", self.allow);
        }
    }
}

/// Fills `response` with a problem document (RFC 9457) that says no more than the status and `detail`.
pub fn problem(response: &mut Response, status: u16, detail: &str) {
    response.status = status;
    response.content_type = "application/problem+json";
    let body = &mut response.body;
    body.clear();
    body.extend_from_slice(b"{\"type\":\"about:blank\",\"title\":\"");
    body.extend_from_slice(reason(status).as_bytes());
    body.extend_from_slice(b"\",\"status\":");
    super::encode::number(body, usize::from(status));
    body.extend_from_slice(b",\"detail\":\"");
    for byte in detail.bytes() {
        match byte {
            b'"' | b'\\' => body.extend_from_slice(&[b'\\', byte]),
            0..0x20 => body.push(b' '),
            0x20.. => body.push(byte),
        }
    }
    body.extend_from_slice(b"\"}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_problem_document() {
        let mut response = Response::default();
        Refusal { status: 405, detail: "no \"such\"\nthing", allow: "GET" }.write(&mut response);
        assert_eq!(
            String::from_utf8(response.body).unwrap(),
            r#"{"type":"about:blank","title":"Method Not Allowed","status":405,"detail":"no \"such\" thing"}"#
        );
        assert_eq!(response.headers, b"Allow: GET\r\n");
        assert_eq!(response.content_type, "application/problem+json");
    }
}
