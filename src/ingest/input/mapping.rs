//! JSON records of any fields, mapped to events by the parameters of `POST /events`:
//!
//! | parameter | meaning |
//! |---|---|
//! | `time_field`, `message_field`, `service_field` | the field with the time, the message, the service |
//! | `service` | the service of records without that field |
//! | `extra=metadata` | the other fields become metadata; without it they are refused |
//!
//! A field `a.b` is the member of that name, or the member `b` of the object `a`. With
//! `extra=metadata` a field that is not named has the usual names ([`TIME_NAMES`] and the like).

use super::InvalidBodyError;
use super::json_records::{JsonObject, JsonRecords, ObjectMember, RecordLayout, TextBuffer, ValueText};
use super::parameters::{Parameters, invalid};
use crate::event::timestamp::{self, ParseTimestampError};
use crate::event::{KEY_BYTES_MAX, Timestamp};
use crate::http::Headers;
use crate::ingest::fields::{EventFields, EventIdentity, RecordSink};
use crate::ingest::headers::truncated_echo;
use crate::ingest::metadata::MetadataWriter;
use crate::ingest::{BodyShape, ParseIngestHeadersError};

/// The names of the fields in the server's own format, before the usual names in other formats.
const TIME_NAMES: &[&str] = &["timestamp", "@timestamp", "time", "ts", "date"];
const MESSAGE_NAMES: &[&str] = &["message", "msg", "log"];
const SERVICE_NAMES: &[&str] = &["service", "service.name"];
/// Bytes and segments of a field's name.
pub(in crate::ingest) const FIELD_NAME_BYTES_MAX: usize = 256;
const FIELD_SEGMENTS_MAX: usize = 8;
/// Errors of one record: the others are counted.
const UNKNOWN_FIELDS_LISTED_MAX: usize = 16;

const JSON_TYPE: &str = "application/json";
const LINE_TYPES: [&str; 5] = [
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/json-lines",
    "text/plain",
];
/// Values one after the other, with or without line feeds.
const STREAM_TYPE: &str = "application/stream+json";
const TYPES: &str = "application/json, application/x-ndjson, application/ndjson, application/jsonl, \
                     application/json-lines, application/stream+json, text/plain";

/// Where the events' fields are.
#[derive(Debug)]
struct FieldMapping {
    time: FieldNames,
    message: FieldNames,
    service: FieldNames,
    service_default: Option<Box<str>>,
    extra_is_metadata: bool,
}

/// The names of a field, the first that a record has counts.
#[derive(Debug)]
enum FieldNames {
    /// The parameter names the field.
    Given(Box<str>),
    Usual(&'static [&'static str]),
}

#[derive(Debug)]
pub(super) struct MappingReader {
    mapping: FieldMapping,
    json: JsonRecords,
    decoder: MappingDecoder,
}

/// Reused from record to record.
#[derive(Debug, Default)]
struct MappingDecoder {
    texts: TextBuffer,
    metadata: MetadataWriter,
    nested: Vec<ObjectMember>,
}

/// A field of a record: a member of the record, or of an object in it.
#[derive(Clone, Copy, Debug)]
struct FoundField {
    /// The member itself is the field, so that it does not belong to the metadata.
    index: Option<usize>,
    value: ObjectMember,
}

impl MappingReader {
    /// The reader for a request, if its parameters ask for a mapping.
    pub(super) fn select(
        headers: Headers<'_>,
        parameters: &Parameters<'_>,
    ) -> Result<Option<Self>, ParseIngestHeadersError> {
        let Some(mapping) = FieldMapping::parse(parameters)? else { return Ok(None) };
        let layout = record_layout(headers)?;
        Ok(Some(Self { mapping, json: JsonRecords::new(layout), decoder: MappingDecoder::default() }))
    }

    pub(super) fn is_by_line(&self) -> bool {
        self.json.layout() == RecordLayout::Lines
    }

    pub(super) fn read_slice(
        &mut self,
        body: &[u8],
        records: &mut RecordSink<'_>,
        budget: usize,
    ) -> Result<Option<BodyShape>, InvalidBodyError> {
        let Self { mapping, json, decoder } = self;
        json.read_slice(body, records, budget, |object, records| decoder.decode(mapping, &object, records))
    }
}

/// The layout of the body by its content type.
fn record_layout(headers: Headers<'_>) -> Result<RecordLayout, ParseIngestHeadersError> {
    let value = headers.get("Content-Type").ok_or(ParseIngestHeadersError::MissingContentType)?;
    let layout = str::from_utf8(value).ok().and_then(|value| {
        let mut parts = value.split(';').map(str::trim);
        let name = parts.next()?;
        let is = |expected: &&str| name.eq_ignore_ascii_case(expected);
        let layout = if is(&JSON_TYPE) || is(&STREAM_TYPE) {
            RecordLayout::Values
        } else if LINE_TYPES.iter().any(is) {
            RecordLayout::Lines
        } else {
            return None;
        };
        super::is_utf8(parts).then_some(layout)
    });
    layout.ok_or_else(|| ParseIngestHeadersError::UnsupportedInputType {
        actual: truncated_echo(value),
        expected: TYPES,
    })
}

impl FieldMapping {
    fn parse(parameters: &Parameters<'_>) -> Result<Option<Self>, ParseIngestHeadersError> {
        let extra = parameters.get("extra")?;
        let names = ["time_field", "message_field", "service_field"].map(|name| parameters.get(name));
        let [time, message, service] = names;
        let (time, message, service) = (time?, message?, service?);
        let service_default = parameters.get("service")?;
        if [extra, time, message, service, service_default].iter().all(Option::is_none) {
            return Ok(None);
        }
        let extra_is_metadata = match extra {
            None => false,
            Some("metadata") => true,
            Some(other) => {
                let other = truncated_echo(other.as_bytes());
                return Err(invalid("extra", format!("is {other:?}, and its only value is metadata")));
            }
        };
        if service_default.is_some_and(str::is_empty) {
            return Err(invalid("service", "must not be empty".to_owned()));
        }
        let names = |parameter: &'static str, given: Option<&str>, usual: &'static [&'static str]| match given
        {
            Some(name) => check_field_name(parameter, name).map(|()| FieldNames::Given(name.into())),
            None if extra_is_metadata => Ok(FieldNames::Usual(usual)),
            None => Ok(FieldNames::Usual(&usual[..1])),
        };
        Ok(Some(Self {
            time: names("time_field", time, TIME_NAMES)?,
            message: names("message_field", message, MESSAGE_NAMES)?,
            service: names("service_field", service, SERVICE_NAMES)?,
            service_default: service_default.map(Into::into),
            extra_is_metadata,
        }))
    }
}

fn check_field_name(parameter: &'static str, name: &str) -> Result<(), ParseIngestHeadersError> {
    let detail = if name.is_empty() {
        "must not be empty".to_owned()
    } else if name.len() > FIELD_NAME_BYTES_MAX {
        format!("must be at most {FIELD_NAME_BYTES_MAX} bytes")
    } else if name.split('.').count() > FIELD_SEGMENTS_MAX {
        format!("must have at most {FIELD_SEGMENTS_MAX} names")
    } else {
        return Ok(());
    };
    Err(invalid(parameter, detail))
}

impl FieldNames {
    /// The name for errors.
    fn name(&self) -> &str {
        match self {
            Self::Given(name) => name,
            Self::Usual(names) => names[0],
        }
    }

    fn find(&self, object: &JsonObject<'_>, nested: &mut Vec<ObjectMember>) -> Option<FoundField> {
        let mut find = |name: &str| find_field(object, name, nested);
        match self {
            Self::Given(name) => find(name),
            Self::Usual(names) => names.iter().find_map(|name| find(name)),
        }
    }

    /// As [`Self::find`], but an object under a usual name is not the field: `service` may be the object
    /// that has `service.name`, as in the Elastic Common Schema.
    fn find_text(&self, object: &JsonObject<'_>, nested: &mut Vec<ObjectMember>) -> Option<FoundField> {
        let is_object = |found: &FoundField| object.value(&found.value).starts_with(b"{");
        match self {
            Self::Given(_) => self.find(object, nested),
            Self::Usual(names) => names
                .iter()
                .find_map(|name| find_field(object, name, nested).filter(|found| !is_object(found))),
        }
    }
}

/// The field of this name that is not null.
fn find_field(object: &JsonObject<'_>, name: &str, nested: &mut Vec<ObjectMember>) -> Option<FoundField> {
    let is_present = |member: &&ObjectMember| object.value(member) != b"null";
    let index = object.members.iter().position(|member| object.is_named(member, name));
    if let Some(index) = index {
        let value = Some(object.members[index]).filter(|member| is_present(&member))?;
        return Some(FoundField { index: Some(index), value });
    }
    let (outer, rest) = name.split_once('.')?;
    let outer = object.member(outer)?;
    find_nested(object, outer, rest, nested)
        .filter(|member| is_present(&member))
        .map(|value| FoundField { index: None, value })
}

/// The member `name` of the object that is the value of `outer`.
fn find_nested(
    object: &JsonObject<'_>,
    outer: &ObjectMember,
    mut name: &str,
    nested: &mut Vec<ObjectMember>,
) -> Option<ObjectMember> {
    let mut outer = *outer;
    // As many rounds as the name has segments.
    loop {
        let inner = object.nested(&outer, nested)?;
        if let Some(member) = inner.member(name) {
            return Some(*member);
        }
        let (first, rest) = name.split_once('.')?;
        outer = *inner.member(first)?;
        name = rest;
    }
}

impl MappingDecoder {
    fn decode(&mut self, mapping: &FieldMapping, object: &JsonObject<'_>, records: &mut RecordSink<'_>) {
        self.texts.clear();
        let Self { texts, metadata, nested } = self;
        let time = mapping.time.find(object, nested);
        let message = mapping.message.find(object, nested);
        let service = mapping.service.find_text(object, nested);
        let used = [time, message, service].map(|field| field.and_then(|field| field.index));
        let mut key = None;
        metadata.clear();
        let mut unknown = 0;
        for (index, member) in object.members.iter().enumerate() {
            if used.contains(&Some(index)) {
                continue;
            }
            if object.is_named(member, "idempotency_key") {
                key = Some(*member);
            } else if object.is_named(member, "metadata") {
                match object.nested(member, nested) {
                    Some(inner) => inner.write_members(metadata),
                    None if object.value(member) == b"null" => {}
                    None => return records.reject("metadata", &"must be an object"),
                }
            } else if mapping.extra_is_metadata {
                object.write_member(member, metadata);
            } else if object.value(member) != b"null" {
                unknown += 1;
                if unknown <= UNKNOWN_FIELDS_LISTED_MAX {
                    records.note_error(
                        &object.name(member),
                        &"is not a field of the mapping; extra=metadata keeps it",
                    );
                }
            }
        }
        if unknown > 0 {
            return records.reject_noted();
        }
        let timestamp = match time {
            None => records.now(),
            Some(field) => match parse_time(object, &field.value, texts) {
                Ok(time) => time,
                Err(error) => return records.reject(mapping.time.name(), &error),
            },
        };
        let mut text = |field: Option<FoundField>| {
            field.map_or(ValueText::Null, |field| texts.value(object.source, field.value.value))
        };
        let (message, service) = (text(message), text(service));
        let key = text(key.map(|value| FoundField { index: None, value }));
        let message = match message {
            ValueText::Text(range) => texts.get(object.source, range),
            ValueText::Invalid(violation) => return records.reject(mapping.message.name(), &violation),
            // A record without a message is one message as a whole.
            ValueText::Null
                if mapping.extra_is_metadata && matches!(mapping.message, FieldNames::Usual(_)) =>
            {
                str::from_utf8(object.text()).expect("BUG: the source of a record is UTF-8")
            }
            ValueText::Null => return records.reject(mapping.message.name(), &"is required"),
        };
        let service = match (service, &mapping.service_default) {
            (ValueText::Text(range), _) => texts.get(object.source, range),
            (ValueText::Invalid(violation), _) => return records.reject(mapping.service.name(), &violation),
            (ValueText::Null, Some(default)) => default,
            (ValueText::Null, None) => return records.reject(mapping.service.name(), &"is required"),
        };
        let identity = match key {
            ValueText::Null => EventIdentity::Request,
            ValueText::Text(range) => match texts.get(object.source, range) {
                key if (1..=KEY_BYTES_MAX).contains(&key.len()) => EventIdentity::Key(key.as_bytes()),
                _ => {
                    return records
                        .reject("idempotency_key", &format_args!("must be 1 to {KEY_BYTES_MAX} bytes"));
                }
            },
            ValueText::Invalid(violation) => return records.reject("idempotency_key", &violation),
        };
        records.push(&EventFields { timestamp, service, message, metadata: metadata.finish(), identity });
    }
}

/// An RFC 3339 time, or seconds to nanoseconds since 1970 as a number or a text.
fn parse_time(
    object: &JsonObject<'_>,
    member: &ObjectMember,
    texts: &mut TextBuffer,
) -> Result<Timestamp, ParseTimestampError> {
    match texts.value(object.source, member.value) {
        ValueText::Text(range) => timestamp::parse_any(texts.get(object.source, range).as_bytes()),
        ValueText::Null | ValueText::Invalid(_) => Err(ParseTimestampError::InvalidTime),
    }
}
