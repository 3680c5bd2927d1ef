//! The refusal of a request by the engine or the router, written as a problem document. Must not
//! depend on handlers.

use super::Response;
use super::problem::{self, ProblemKind};

/// Why the engine or the router refuses a request. After a refusal by the engine the connection is
/// closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    /// The `detail` of the problem document.
    pub detail: &'static str,
    /// The `Allow` field of a 405; empty otherwise.
    pub allow: &'static str,
}

impl Refusal {
    pub const fn new(status: u16, detail: &'static str) -> Self {
        Self { status, detail, allow: "" }
    }

    pub fn write(&self, response: &mut Response) {
        problem::write(response, ProblemKind::from_status(self.status), self.detail);
        if !self.allow.is_empty() {
            response.header("Allow", self.allow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_is_written_as_a_problem_document() {
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
