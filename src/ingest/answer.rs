//! The answer to `POST /events`.

use super::{Decoded, Shape};
use crate::event::EventId;
use crate::http::Response;
use crate::http::problem::{self, put};

pub(super) fn write(decoded: &Decoded<'_>, response: &mut Response) {
    match (decoded.ids(), decoded.shape) {
        ([], Shape::One | Shape::Batch) if decoded.is_forbidden() => {
            problem::answer_forbidden(response, "the token may not write these services", decoded.errors());
        }
        ([], Shape::One) => problem::answer_invalid(response, "the event is not valid", decoded.errors()),
        ([], Shape::Unreadable) => {
            let detail = decoded.errors().listed().first().map_or("", |error| &error.detail);
            problem::answer_invalid(response, &format!("the body is refused: {detail}"), decoded.errors());
        }
        ([], Shape::Batch) => {
            let detail = format!("none of the {} events is valid", decoded.rejected());
            problem::answer_invalid(response, &detail, decoded.errors());
        }
        ([id], Shape::One) => one(*id, accepted(response)),
        (ids, Shape::One | Shape::Batch | Shape::Unreadable) => batch(decoded, ids, accepted(response)),
    }
}

fn accepted(response: &mut Response) -> &mut Vec<u8> {
    response.status = 202;
    response.content_type = "application/json";
    response.body.clear();
    &mut response.body
}

fn one(id: EventId, out: &mut Vec<u8>) {
    const BEFORE: &[u8; 13] = b"{\"event_id\":\"";
    const AFTER: &[u8; 22] = b"\",\"status\":\"accepted\"}";
    out.reserve(BEFORE.len() + EventId::TEXT_BYTES + AFTER.len());
    out.extend_from_slice(BEFORE);
    out.extend_from_slice(&id.text());
    out.extend_from_slice(AFTER);
}

fn batch(decoded: &Decoded<'_>, ids: &[EventId], out: &mut Vec<u8>) {
    out.reserve(80 + ids.len() * (EventId::TEXT_BYTES + 3));
    put(
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
