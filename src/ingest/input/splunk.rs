//! Splunk's HTTP Event Collector: JSON objects one after the other on `/services/collector/event`,
//! lines of text on `/services/collector/raw`. Acknowledgements of indexers are not offered.
//!
//! | member | becomes |
//! |---|---|
//! | `time` | the timestamp: seconds to nanoseconds since 1970; without it the time of the request |
//! | `fields.service.name`, `fields.service`, `source`, `sourcetype`, `host` | the service: the first of them |
//! | `event` | the message: a text, the text in an object's `message`, `msg`, `log` or `line`, or else its JSON text |
//! | all others, the members of `fields` | metadata |

use std::borrow::Cow;

use super::InvalidBodyError;
use super::json_records::{JsonObject, JsonRecords, ObjectMember, RecordLayout, TextBuffer, ValueText};
use super::parameters::Parameters;
use super::service_name::shorten;
use crate::event::timestamp;
use crate::http::Response;
use crate::http::problem::append_fmt;
use crate::ingest::fields::{EventFields, EventIdentity, RecordSink, UNKNOWN_SERVICE};
use crate::ingest::metadata::MetadataWriter;
use crate::ingest::{BodyShape, DecodedRequest, ParseIngestHeadersError};
use crate::json::{scan, text};
use crate::lifecycle::LifecyclePhase;

/// The members of an object in `event` that are its message, the first that it has.
const MESSAGE_NAMES: [&str; 4] = ["message", "msg", "log", "line"];
/// The members that name the service, in `fields` and in the event.
const SERVICE_FIELDS: [&str; 2] = ["service.name", "service"];
const SERVICE_MEMBERS: [&str; 3] = ["source", "sourcetype", "host"];
/// The parameters of `/raw` that become metadata.
const RAW_PARAMETERS: [&str; 4] = ["host", "source", "sourcetype", "index"];
/// The fixed cost of a line, in bytes.
const LINE_COST_BYTES: usize = 128;

const EVENT_REQUIRED: &str = "is required";
const EVENT_BLANK: &str = "must not be blank";

/// The codes of the protocol that this server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HecCode {
    Success = 0,
    TokenRequired = 2,
    InvalidToken = 4,
    NoData = 5,
    InvalidData = 6,
    InternalError = 8,
    Busy = 9,
    EventRequired = 12,
    EventBlank = 13,
    Healthy = 17,
    Unhealthy = 18,
    ShuttingDown = 23,
}

impl HecCode {
    /// The text of the protocol.
    fn text(self) -> &'static str {
        match self {
            Self::Success => "Success",
            Self::TokenRequired => "Token is required",
            Self::InvalidToken => "Invalid token",
            Self::NoData => "No data",
            Self::InvalidData => "Invalid data format",
            Self::InternalError => "Internal server error",
            Self::Busy => "Server is busy",
            Self::EventRequired => "Event field is required",
            Self::EventBlank => "Event field cannot be blank",
            Self::Healthy => "HEC is healthy",
            Self::Unhealthy => "HEC is unhealthy, queues are full",
            Self::ShuttingDown => "Server is shutting down",
        }
    }
}

#[derive(Debug)]
pub(super) struct SplunkEventReader {
    json: JsonRecords,
    decoder: EventDecoder,
}

/// Reused from event to event.
#[derive(Debug, Default)]
struct EventDecoder {
    texts: TextBuffer,
    metadata: MetadataWriter,
    nested: Vec<ObjectMember>,
}

impl Default for SplunkEventReader {
    fn default() -> Self {
        Self { json: JsonRecords::new(RecordLayout::Values), decoder: EventDecoder::default() }
    }
}

impl SplunkEventReader {
    pub(super) fn read_slice(
        &mut self,
        body: &[u8],
        records: &mut RecordSink<'_>,
        budget: usize,
    ) -> Result<Option<BodyShape>, InvalidBodyError> {
        let Self { json, decoder } = self;
        let read = json.read_slice(body, records, budget, |object, records| decoder.decode(&object, records));
        Ok(read?.map(|_| BodyShape::Batch))
    }
}

impl EventDecoder {
    fn decode(&mut self, object: &JsonObject<'_>, records: &mut RecordSink<'_>) {
        let Self { texts, metadata, nested } = self;
        texts.clear();
        metadata.clear();
        let mut text = |member: &ObjectMember| match texts.value(object.source, member.value) {
            ValueText::Text(range) => Ok(Some(range)),
            ValueText::Null => Ok(None),
            ValueText::Invalid(violation) => Err(violation),
        };
        let (mut time, mut event) = (None, None);
        let mut services = [None; SERVICE_FIELDS.len() + SERVICE_MEMBERS.len()];
        for member in object.members {
            if object.is_named(member, "time") {
                time = Some(member);
                continue;
            }
            if object.is_named(member, "event") {
                event = Some(member);
                continue;
            }
            if object.is_named(member, "fields")
                && let Some(fields) = object.nested(member, nested)
            {
                fields.write_members(metadata);
                for (nth, name) in SERVICE_FIELDS.iter().enumerate() {
                    services[nth] = fields.member(name).and_then(|member| text(member).ok().flatten());
                }
                continue;
            }
            if let Some(nth) = SERVICE_MEMBERS.iter().position(|name| object.is_named(member, name)) {
                services[SERVICE_FIELDS.len() + nth] = text(member).ok().flatten();
            }
            object.write_member(member, metadata);
        }
        let timestamp = match time.map(text) {
            None | Some(Ok(None)) => records.now(),
            Some(Ok(Some(range))) => match timestamp::parse_any(texts.get(object.source, range).as_bytes()) {
                Ok(time) => time,
                Err(error) => return records.reject("time", &error),
            },
            Some(Err(violation)) => return records.reject("time", &violation),
        };
        let message = match event {
            None => return records.reject("event", &EVENT_REQUIRED),
            Some(event) => match message_of(object, event, texts, metadata, nested) {
                ValueText::Text(range) => texts.get(object.source, range),
                ValueText::Null => return records.reject("event", &EVENT_REQUIRED),
                ValueText::Invalid(violation) => return records.reject("event", &violation),
            },
        };
        if message.is_empty() {
            return records.reject("event", &EVENT_BLANK);
        }
        let mut named = services.iter().flatten().map(|range| texts.get(object.source, *range));
        let service = named.find(|name| !name.is_empty()).unwrap_or(UNKNOWN_SERVICE);
        records.push(&EventFields {
            timestamp,
            service: &shorten(service),
            message,
            metadata: metadata.finish(),
            identity: EventIdentity::Request,
        });
    }
}

/// The message of an event. The other members of an object become the member `event` of the metadata.
fn message_of(
    object: &JsonObject<'_>,
    event: &ObjectMember,
    texts: &mut TextBuffer,
    metadata: &mut MetadataWriter,
    nested: &mut Vec<ObjectMember>,
) -> ValueText {
    let Some(inner) = object.nested(event, nested) else {
        return texts.value(object.source, event.value);
    };
    let is_text = |member: &&ObjectMember| inner.value(member).starts_with(b"\"");
    let found = MESSAGE_NAMES.iter().find_map(|name| inner.member(name).filter(is_text));
    let Some(message) = found else { return texts.value(object.source, event.value) };
    if inner.members.len() > 1 {
        metadata.key("event");
        metadata.begin_object();
        for member in inner.members.iter().filter(|member| !std::ptr::eq(*member, message)) {
            inner.write_member(member, metadata);
        }
        metadata.end_object();
    }
    texts.value(object.source, message.value)
}

/// Reads lines; their source is in the parameters of the request.
#[derive(Debug)]
pub(super) struct SplunkRawReader {
    parameters: Vec<(&'static str, String)>,
    metadata: MetadataWriter,
    at: usize,
}

impl SplunkRawReader {
    pub(super) fn new(parameters: &Parameters<'_>) -> Result<Self, ParseIngestHeadersError> {
        let mut kept = Vec::new();
        for name in RAW_PARAMETERS {
            if let Some(value) = parameters.get(name)?.filter(|value| !value.is_empty()) {
                kept.push((name, value.to_owned()));
            }
        }
        Ok(Self { parameters: kept, metadata: MetadataWriter::default(), at: 0 })
    }

    fn service(&self) -> Cow<'_, str> {
        let value =
            |name: &&str| self.parameters.iter().find(|(found, _)| found == name).map(|(_, value)| value);
        shorten(SERVICE_MEMBERS.iter().find_map(value).map_or(UNKNOWN_SERVICE, |value| value))
    }

    pub(super) fn read_slice(
        &mut self,
        body: &[u8],
        records: &mut RecordSink<'_>,
        budget: usize,
    ) -> Result<Option<BodyShape>, InvalidBodyError> {
        let mut left = budget;
        let service = self.service().into_owned();
        while left > 0 {
            let Some(line) = scan::next_line(body, &mut self.at) else {
                if records.index() == 0 {
                    return Err(InvalidBodyError("no events".into()));
                }
                return Ok(Some(BodyShape::Batch));
            };
            left = left.saturating_sub(line.len() + LINE_COST_BYTES);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.trim_ascii().is_empty() {
                continue;
            }
            let Ok(message) = str::from_utf8(line) else {
                records.reject("event", &"is not UTF-8");
                continue;
            };
            self.metadata.clear();
            for (name, value) in &self.parameters {
                self.metadata.member(name, value);
            }
            records.push(&EventFields {
                timestamp: records.now(),
                service: &service,
                message,
                metadata: self.metadata.finish(),
                identity: EventIdentity::Request,
            });
        }
        Ok(None)
    }
}

/// Begins a response; the caller closes the object.
fn begin(status: u16, code: HecCode, response: &mut Response) {
    response.status = status;
    response.content_type = "application/json";
    response.body.clear();
    append_fmt(&mut response.body, format_args!("{{\"text\":\"{}\",\"code\":{}", code.text(), code as u8));
}

/// Writes the response of a code, with a text for people.
pub(super) fn write_code(status: u16, code: HecCode, detail: &str, response: &mut Response) {
    begin(status, code, response);
    if !detail.is_empty() {
        response.body.extend_from_slice(b",\"detail\":");
        text::quote(&mut response.body, detail);
    }
    response.body.push(b'}');
}

/// Writes the health of the collector: whether it takes events now.
pub fn write_health(phase: LifecyclePhase, is_full: bool, response: &mut Response) {
    let (status, code) = if phase > LifecyclePhase::Serving {
        (503, HecCode::ShuttingDown)
    } else if is_full {
        (503, HecCode::Unhealthy)
    } else {
        (200, HecCode::Healthy)
    };
    write_code(status, code, "", response);
}

pub(super) fn write_response(decoded: &DecodedRequest<'_>, response: &mut Response) {
    let errors = decoded.errors();
    let first = errors.listed().first();
    if decoded.accepted() > 0 || first.is_none() {
        begin(200, HecCode::Success, response);
        if decoded.rejected() > 0 {
            append_fmt(
                &mut response.body,
                format_args!(",\"accepted\":{},\"rejected\":{},", decoded.accepted(), decoded.rejected()),
            );
            errors.write_members(&mut response.body);
        }
        response.body.push(b'}');
        return;
    }
    let detail = first.map_or("", |error| error.detail.as_str());
    if decoded.is_forbidden() {
        return write_code(403, HecCode::InvalidToken, detail, response);
    }
    let code = match detail {
        "no events" => HecCode::NoData,
        _ if detail.ends_with(EVENT_REQUIRED) => HecCode::EventRequired,
        _ if detail.ends_with(EVENT_BLANK) => HecCode::EventBlank,
        _ => HecCode::InvalidData,
    };
    begin(400, code, response);
    if let Some(index) = first.and_then(|error| error.index) {
        append_fmt(&mut response.body, format_args!(",\"invalid-event-number\":{index}"));
    }
    response.body.push(b',');
    errors.write_members(&mut response.body);
    response.body.push(b'}');
}
