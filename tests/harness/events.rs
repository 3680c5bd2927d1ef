//! JSON events, as a producer sends them.

use aurore_events::clock::Clock;
use aurore_events::event::Timestamp;
use sonic_rs::{JsonContainerTrait, JsonValueTrait, Value};

/// The time of day.
pub(crate) fn now() -> Timestamp {
    Clock::system().wall()
}

/// An event with the current time. Service and message must need no escaping.
pub(crate) fn event(service: &str, message: &str) -> String {
    event_at(now(), service, message)
}

pub(crate) fn event_at(time: Timestamp, service: &str, message: &str) -> String {
    format!(r#"{{"timestamp":"{time}","service":"{service}","message":"{message}"}}"#)
}

/// The fields of an event but its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventFields {
    pub(crate) time: Timestamp,
    pub(crate) service: String,
    /// As PostgreSQL prints it.
    pub(crate) metadata: Option<String>,
}

impl EventFields {
    /// The event with this message, which must need no escaping.
    pub(crate) fn with_message(&self, message: &str) -> String {
        let event = event_at(self.time, &self.service, message);
        match &self.metadata {
            None => event,
            Some(metadata) => format!("{},\"metadata\":{metadata}}}", event.trim_end_matches('}')),
        }
    }
}

/// An event with an idempotency key.
pub(crate) fn keyed(time: Timestamp, service: &str, key: &str) -> String {
    format!(r#"{{"timestamp":"{time}","service":"{service}","message":"m","idempotency_key":"{key}"}}"#)
}

/// The id in the response to a single event.
#[track_caller]
pub(crate) fn id_of(reply: &super::Reply) -> String {
    assert_eq!(reply.status, 202, "{}", reply.text());
    let json = reply.json();
    assert!(matches!(json["status"].as_str(), Some("accepted" | "duplicate")), "{}", reply.text());
    text(&json["event_id"])
}

/// The ids in the response to a batch.
#[track_caller]
pub(crate) fn ids_of(reply: &super::Reply) -> Vec<String> {
    assert_eq!(reply.status, 202, "{}", reply.text());
    list(&reply.json()["event_ids"]).iter().map(text).collect()
}

/// The value as a string; panics if it is none.
#[track_caller]
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}

/// The value as an array; panics if it is none.
#[track_caller]
pub(crate) fn list(value: &Value) -> Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{value} is not an array")).iter().cloned().collect()
}
