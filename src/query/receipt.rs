//! `GET /events/{event_id}`: what became of an event.
//!
//! A stored event is its fields and `"status":"stored"`; one that waits to be stored the same and `"buffered"`; a dead
//! one its `reason` and `sqlstate`.

use super::page::{write_id, write_members};
use crate::event::EventId;
use crate::http::Response;
use crate::http::problem::{self, Kind};
use crate::json::text::quote;
use crate::storage::Found;

pub fn answer(response: &mut Response, id: EventId, found: Option<&Found>) {
    let Some(found) = found else {
        problem::answer(response, Kind::NotFound, "there is no event of this id");
        return;
    };
    response.status = 200;
    response.content_type = "application/json";
    let out = &mut response.body;
    out.clear();
    out.push(b'{');
    write_id(out, id);
    match found {
        Found::Stored(event) => {
            out.extend_from_slice(b",\"status\":\"stored\"");
            write_members(out, event);
        }
        Found::Buffered(event) => {
            out.extend_from_slice(b",\"status\":\"buffered\"");
            write_members(out, event);
        }
        Found::Dead { sqlstate, reason } => {
            out.extend_from_slice(b",\"status\":\"dead\",\"reason\":");
            quote(out, reason);
            out.extend_from_slice(b",\"sqlstate\":");
            quote(out, sqlstate);
        }
    }
    out.push(b'}');
}
