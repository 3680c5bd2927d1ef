//! A request turned away, and the problem document that says why. Knows nothing of why a handler refuses.

use super::Response;
use super::problem::{self, Kind};

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
        problem::answer(response, Kind::of_status(self.status), self.detail);
        if !self.allow.is_empty() {
            response.header("Allow", self.allow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_problem_document() {
        let mut response = Response::default();
        Refusal { status: 405, detail: "no \"such\" thing", allow: "GET" }.write(&mut response);
        assert_eq!(
            String::from_utf8(response.body).unwrap(),
            r#"{"type":"urn:aurore-events:problem:method-not-allowed","title":"The method is not allowed here","status":405,"detail":"no \"such\" thing"}"#
        );
        assert_eq!(response.headers, b"Allow: GET\r\n");
        assert_eq!(response.content_type, "application/problem+json");
    }
}
