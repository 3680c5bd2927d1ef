//! Writes the response to `POST /events`.

use super::{BodyShape, DecodedRequest, ParseIngestHeadersError};
use crate::event::EventId;
use crate::http::Response;
use crate::http::problem::{self, append_fmt};

pub(super) fn write(decoded: &DecodedRequest<'_>, duplicates: &[EventId], response: &mut Response) {
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
        ([], BodyShape::Text) => ParseIngestHeadersError::TextIsNotJson.write_response(response),
        ([], BodyShape::Batch) => {
            let detail = format!("none of the {} events is valid", decoded.rejected());
            problem::write_invalid(response, &detail, decoded.errors());
        }
        ([id], BodyShape::Single) => write_single(*id, !duplicates.is_empty(), begin_accepted(response)),
        (ids, BodyShape::Single | BodyShape::Batch | BodyShape::Malformed | BodyShape::Text) => {
            write_batch(decoded, ids, duplicates, begin_accepted(response));
        }
    }
}

fn begin_accepted(response: &mut Response) -> &mut Vec<u8> {
    response.status = 202;
    response.content_type = "application/json";
    response.body.clear();
    &mut response.body
}

fn write_single(id: EventId, is_duplicate: bool, out: &mut Vec<u8>) {
    const BEFORE: &[u8; 13] = b"{\"event_id\":\"";
    const ACCEPTED: &[u8] = b"\",\"status\":\"accepted\"}";
    const DUPLICATE: &[u8] = b"\",\"status\":\"duplicate\"}";
    out.reserve(BEFORE.len() + EventId::TEXT_BYTES + DUPLICATE.len());
    out.extend_from_slice(BEFORE);
    out.extend_from_slice(&id.text());
    out.extend_from_slice(if is_duplicate { DUPLICATE } else { ACCEPTED });
}

fn write_batch(decoded: &DecodedRequest<'_>, ids: &[EventId], duplicates: &[EventId], out: &mut Vec<u8>) {
    out.reserve(80 + (ids.len() + duplicates.len()) * (EventId::TEXT_BYTES + 3));
    append_fmt(
        out,
        format_args!("{{\"accepted\":{},\"rejected\":{},\"event_ids\":[", ids.len(), decoded.rejected()),
    );
    write_ids(ids, out);
    out.extend_from_slice(b"],");
    if !duplicates.is_empty() {
        out.extend_from_slice(b"\"duplicates\":[");
        write_ids(duplicates, out);
        out.extend_from_slice(b"],");
    }
    decoded.errors().write_members(out);
    out.push(b'}');
}

fn write_ids(ids: &[EventId], out: &mut Vec<u8>) {
    for (nth, id) in ids.iter().enumerate() {
        out.extend_from_slice(if nth == 0 { b"\"" } else { b",\"" });
        out.extend_from_slice(&id.text());
        out.push(b'"');
    }
}
