//! Writes the responses of the gateway that are more than a status.

use super::Aggregated;
use crate::http::Response;
use crate::http::problem::{self, FieldErrors, ProblemKind};

/// `Retry-After` while the log cannot be written.
pub(super) const LOG_RETRY_S: u64 = 5;

/// The response to a deletion of series that the token may not delete.
pub(super) fn refuse_service(response: &mut Response) {
    let detail =
        "the token is restricted to services: it may delete series of one of them only, named by job=SERVICE";
    problem::write_forbidden(response, detail, &FieldErrors::default());
}

/// The response to a push that could not be made durable at the requested level.
pub fn durability_not_reached() -> Response {
    let mut response = Response::default();
    problem::write_retryable(
        &mut response,
        ProblemKind::JournalUnavailable,
        "the requested durability could not be reached; the push may have taken effect nevertheless, so only a push \
         with an idempotency key, or one that replaces metrics, can be retried without being counted twice",
        LOG_RETRY_S,
    );
    response
}

pub(super) fn write_push_response(aggregated: &Aggregated, response: &mut Response) {
    let counts = aggregated.counts;
    response.status = 202;
    response.content_type = "application/json";
    let out = &mut response.body;
    out.extend_from_slice(
        format!("{{\"accepted\":{},\"rejected\":{},", counts.accepted, counts.rejected).as_bytes(),
    );
    if aggregated.is_duplicate {
        out.extend_from_slice(b"\"repeated\":true,");
    }
    aggregated.errors.write_members(out);
    out.push(b'}');
}

/// An error response as written by Go's `http.Error`.
pub(super) fn write_plain_text(response: &mut Response, text: &str) {
    response.content_type = "text/plain; charset=utf-8";
    response.body.extend_from_slice(text.as_bytes());
    response.body.push(b'\n');
}

/// The readiness for Pushgateway's clients while the log cannot be written.
pub fn write_log_unavailable(response: &mut Response) {
    response.status = 503;
    response.header("Retry-After", LOG_RETRY_S);
    write_plain_text(response, "the log cannot be written at the moment: pushes are refused");
}
