//! Writes the response to `POST /events`.

use super::{BodyShape, DecodedRequest};
use crate::event::EventId;
use crate::http::Response;
use crate::http::problem::{self, append_fmt};

pub(super) fn write(decoded: &DecodedRequest<'_>, response: &mut Response) {
    match (decoded.ids(), decoded.shape) {
        ([], BodyShape::Single | BodyShape::Batch) if decoded.is_forbidden() => {
            problem::write_forbidden(response, "the token may not write these services", decoded.errors());
        }
        ([], BodyShape::Single) => {
            problem::write_invalid(response, "the event is not valid", decoded.errors());
        }
        ([], BodyShape::Malformed) => {
            let detail = decoded.errors().listed().first().map_or("", |error| &error.detail);
            problem::write_invalid(response, &format!("the body is invalid: {detail}"), decoded.errors());
        }
        ([], BodyShape::Batch) => {
            let detail = format!("none of the {} events is valid", decoded.rejected());
            problem::write_invalid(response, &detail, decoded.errors());
        }
        ([id], BodyShape::Single) => write_single(*id, begin_accepted(response)),
        (ids, BodyShape::Single | BodyShape::Batch | BodyShape::Malformed) => {
            write_batch(decoded, ids, begin_accepted(response));
        }
    }
}

fn begin_accepted(response: &mut Response) -> &mut Vec<u8> {
    response.status = 202;
    response.content_type = "application/json";
    response.body.clear();
    &mut response.body
}

fn write_single(id: EventId, out: &mut Vec<u8>) {
    const BEFORE: &[u8; 13] = b"{\"event_id\":\"";
    const AFTER: &[u8; 22] = b"\",\"status\":\"accepted\"}";
    out.reserve(BEFORE.len() + EventId::TEXT_BYTES + AFTER.len());
    out.extend_from_slice(BEFORE);
    out.extend_from_slice(&id.text());
    out.extend_from_slice(AFTER);
}

fn write_batch(decoded: &DecodedRequest<'_>, ids: &[EventId], out: &mut Vec<u8>) {
    out.reserve(80 + ids.len() * (EventId::TEXT_BYTES + 3));
    append_fmt(
        out,
        format_args!("{{\"accepted\":{},\"rejected\":{},\"event_ids\":[", ids.len(), decoded.rejected()),
    );
    for (nth, id) in ids.iter().enumerate() {
        out.extend_from_slice(if nth == 0 { b"\"" } else { b",\"" });
        out.extend_from_slice(&id.text());
        out.push(b'"');
    }
    out.extend_from_slice(b"],");
    decoded.errors().write_members(out);
    out.push(b'}');
}
