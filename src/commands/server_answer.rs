//! What a command that is a client reads of a server's answer, beside the body that it asked for.

use std::time::Duration;

use serde::Deserialize;
use ureq::http::Response;

/// The members of a problem document that are used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    detail: String,
}

/// Status and detail of an answer with this body; without the detail if the body is no problem document.
pub(super) fn reason(status: u16, body: &[u8]) -> String {
    let Problem { detail } = sonic_rs::from_slice(body).unwrap_or_default();
    format!("{status}: {detail}")
}

/// The wait that the answer asks for, up to `max_s` seconds.
pub(super) fn retry_after(response: &Response<ureq::Body>, max_s: u64) -> Option<Duration> {
    let value = response.headers().get("Retry-After")?.to_str().ok()?.parse::<u64>().ok()?;
    Some(Duration::from_secs(value.min(max_s)))
}

/// The value of `Authorization` for a token.
pub(super) fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}
