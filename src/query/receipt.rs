//! The response of `GET /events/{event_id}`: the status of an event.
//!
//! `"status":"stored"` and `"status":"buffered"` come with the event's fields, `"status":"dead"`
//! with `reason` and `sqlstate`.

use super::page::{write_id, write_members};
use crate::access::allows_service;
use crate::event::EventId;
use crate::http::Response;
use crate::http::problem::{self, ProblemKind};
use crate::json::text::quote;
use crate::storage::EventStatus;

/// Whether a token restricted to `services` may read the event; None is unrestricted. The status of
/// a dead letter contains no service to check, so a restricted token may not read it.
pub fn is_readable(status: &EventStatus, services: Option<&[Box<str>]>) -> bool {
    let Some(services) = services else { return true };
    match status {
        EventStatus::Stored(event) | EventStatus::Buffered(event) => allows_service(services, &event.service),
        EventStatus::Dead { .. } => false,
    }
}

pub fn write_receipt(response: &mut Response, id: EventId, found: Option<&EventStatus>) {
    let Some(found) = found else {
        problem::write(response, ProblemKind::NotFound, "there is no event with this id");
        return;
    };
    response.status = 200;
    response.content_type = "application/json";
    let out = &mut response.body;
    out.clear();
    out.push(b'{');
    write_id(out, id);
    match found {
        EventStatus::Stored(event) => {
            out.extend_from_slice(b",\"status\":\"stored\"");
            write_members(out, event);
        }
        EventStatus::Buffered(event) => {
            out.extend_from_slice(b",\"status\":\"buffered\"");
            write_members(out, event);
        }
        EventStatus::Dead { sqlstate, reason } => {
            out.extend_from_slice(b",\"status\":\"dead\",\"reason\":");
            quote(out, reason);
            out.extend_from_slice(b",\"sqlstate\":");
            quote(out, sqlstate);
        }
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ArrivalNumber, Event, Timestamp};

    #[test]
    fn receipt_of_another_service_is_not_readable() {
        let event = || Event {
            event_id: EventId::floor(1),
            timestamp: Timestamp::from_millis(1),
            ingested_at: Timestamp::from_millis(2),
            arrival: ArrivalNumber::default(),
            service: "billing".to_owned(),
            message: "m".to_owned(),
            metadata: None,
        };
        let dead = EventStatus::Dead { sqlstate: "23514".to_owned(), reason: "r".to_owned() };
        let services = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect::<Vec<_>>();
        for status in [EventStatus::Stored(event()), EventStatus::Buffered(event())] {
            assert!(is_readable(&status, None));
            assert!(is_readable(&status, Some(&services(&["audit", "billing"]))));
            assert!(!is_readable(&status, Some(&services(&["audit"]))));
            assert!(!is_readable(&status, Some(&[])));
        }
        assert!(is_readable(&dead, None) && !is_readable(&dead, Some(&services(&["billing"]))));
    }
}
