//! CloudEvents 1.0 on `POST /events`, in the three modes of the HTTP protocol binding: binary
//! (attributes in `ce-` headers), structured (`application/cloudevents+json`) and batch
//! (`application/cloudevents-batch+json`).
//!
//! | attribute | becomes |
//! |---|---|
//! | `time` | the timestamp; without it the time of the request |
//! | `source` | the service, shortened to its bound |
//! | `type` | the message |
//! | `source` and `id` | the key: the same event of the same time is stored once |
//! | all others, the data | metadata |

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode;

use super::InvalidBodyError;
use super::json_records::{JsonObject, JsonRecords, RecordLayout, TextBuffer, TextRange, ValueText};
use super::service_name::shorten;
use crate::event::{METADATA_BYTES_MAX, timestamp};
use crate::http::Headers;
use crate::ingest::fields::{EventFields, EventIdentity, RecordSink};
use crate::ingest::headers::truncated_echo;
use crate::ingest::metadata::MetadataWriter;
use crate::ingest::{BodyShape, ParseIngestHeadersError};
use crate::json::Scanner;

const VERSION_HEADER: &str = "ce-specversion";
const PREFIX: &str = "ce-";
const VERSION: &str = "1.0";
const STRUCTURED_TYPE: &str = "application/cloudevents+json";
const BATCH_TYPE: &str = "application/cloudevents-batch+json";
/// All media types of CloudEvents, also those of other formats than JSON.
const TYPE_PREFIX: &[u8] = b"application/cloudevents";

#[derive(Debug)]
pub(super) struct CloudEventsReader {
    mode: ContentMode,
    texts: TextBuffer,
    metadata: MetadataWriter,
}

#[derive(Debug)]
enum ContentMode {
    /// The body is the data of one event.
    Binary(BinaryEvent),
    /// The body has one event or an array.
    Json(JsonRecords),
}

/// The attributes in the headers of a request.
#[derive(Debug, Default)]
struct BinaryEvent {
    attributes: Vec<(String, String)>,
    content_type: String,
}

/// The attributes of an event that become fields.
#[derive(Clone, Copy, Debug)]
struct RequiredAttributes<'a> {
    id: &'a str,
    source: &'a str,
    kind: &'a str,
    time: Option<&'a str>,
}

/// Whether the headers are those of a CloudEvent.
#[inline]
pub(super) fn has_cloudevents_headers(headers: Headers<'_>) -> bool {
    headers.0.iter().any(|header| match header.name.len() {
        14 => header.name.eq_ignore_ascii_case(VERSION_HEADER),
        12 => has_cloudevents_type(header.value) && header.name.eq_ignore_ascii_case("Content-Type"),
        _ => false,
    })
}

fn has_cloudevents_type(value: &[u8]) -> bool {
    value.get(..TYPE_PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(TYPE_PREFIX))
}

impl CloudEventsReader {
    /// The reader for a request, if it has the headers of CloudEvents.
    pub(super) fn select(headers: Headers<'_>) -> Result<Option<Self>, ParseIngestHeadersError> {
        let content_type = headers.get("Content-Type").unwrap_or_default();
        let mode = if has_cloudevents_type(content_type) {
            if !is_json_mode(content_type) {
                return Err(ParseIngestHeadersError::UnsupportedInputType {
                    actual: truncated_echo(content_type),
                    expected: "application/cloudevents+json, application/cloudevents-batch+json",
                });
            }
            ContentMode::Json(JsonRecords::new(RecordLayout::Values))
        } else if headers.get(VERSION_HEADER).is_some() {
            ContentMode::Binary(BinaryEvent::parse(headers)?)
        } else {
            return Ok(None);
        };
        Ok(Some(Self { mode, texts: TextBuffer::default(), metadata: MetadataWriter::default() }))
    }

    pub(super) fn is_binary(&self) -> bool {
        matches!(self.mode, ContentMode::Binary(_))
    }

    pub(super) fn read_slice(
        &mut self,
        body: &[u8],
        records: &mut RecordSink<'_>,
        budget: usize,
    ) -> Result<Option<BodyShape>, InvalidBodyError> {
        let Self { mode, texts, metadata } = self;
        match mode {
            // The data is bounded by the bound of metadata.
            ContentMode::Binary(event) => {
                event.decode(body, metadata, records);
                Ok(Some(BodyShape::Single))
            }
            ContentMode::Json(json) => json.read_slice(body, records, budget, |object, records| {
                decode_object(&object, texts, metadata, records);
            }),
        }
    }
}

fn is_json_mode(content_type: &[u8]) -> bool {
    let Ok(value) = str::from_utf8(content_type) else { return false };
    let mut parts = value.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    [STRUCTURED_TYPE, BATCH_TYPE].iter().any(|expected| name.eq_ignore_ascii_case(expected))
        && super::is_utf8(parts)
}

impl BinaryEvent {
    fn parse(headers: Headers<'_>) -> Result<Self, ParseIngestHeadersError> {
        let mut event = Self::default();
        for header in headers.0 {
            let Some(prefix) = header.name.get(..PREFIX.len()) else { continue };
            if prefix.eq_ignore_ascii_case(PREFIX) {
                let value = decode_header(header.value.trim_ascii()).ok_or(
                    ParseIngestHeadersError::InvalidHeader {
                        name: "ce-*",
                        detail: format!("{} is not UTF-8", truncated_echo(header.name.as_bytes())),
                    },
                )?;
                event.attributes.push((header.name[PREFIX.len()..].to_ascii_lowercase(), value));
            }
        }
        let content_type = headers.get("Content-Type").unwrap_or_default();
        event.content_type = String::from_utf8_lossy(content_type).into_owned();
        Ok(event)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(found, _)| found == name).map(|(_, value)| &**value)
    }

    fn decode(&self, data: &[u8], metadata: &mut MetadataWriter, records: &mut RecordSink<'_>) {
        let attributes = RequiredAttributes::check(|name| Ok(self.get(name)));
        let attributes = match attributes {
            Ok(attributes) => attributes,
            Err((name, detail)) => return records.reject(name, &detail),
        };
        metadata.clear();
        for (name, value) in &self.attributes {
            if !matches!(name.as_str(), "specversion" | "time" | "type") {
                metadata.member(name, value);
            }
        }
        if !self.content_type.is_empty() {
            metadata.member("datacontenttype", &self.content_type);
        }
        if let Err(detail) = self.write_data(data, metadata) {
            return records.reject("data", &detail);
        }
        push_event(attributes, metadata, records);
    }

    fn write_data(&self, data: &[u8], metadata: &mut MetadataWriter) -> Result<(), String> {
        if data.len() > METADATA_BYTES_MAX {
            return Err(format!("must be at most {METADATA_BYTES_MAX} bytes, not {}", data.len()));
        }
        if data.is_empty() {
            return Ok(());
        }
        let text = str::from_utf8(data).ok().filter(|text| !text.contains('\0'));
        match text {
            Some(text) if is_json_type(&self.content_type) => {
                let mut scanner = Scanner::new(text.as_bytes());
                scanner.next_token();
                let value = scanner.value().map_err(|error| format!("is not JSON: {error}"))?;
                scanner.next_token();
                if !scanner.is_at_end() {
                    return Err("is not JSON: unexpected data after the JSON value".to_owned());
                }
                metadata.key("data");
                metadata.raw(scanner.slice(value.start, value.end), value.violation);
            }
            Some(text) => metadata.member("data", text),
            None => metadata.member("data_base64", &STANDARD.encode(data)),
        }
        Ok(())
    }
}

/// Data without a content type is JSON in the JSON format; here it is what its bytes are.
fn is_json_type(content_type: &str) -> bool {
    let name = content_type.split(';').next().unwrap_or_default().trim();
    let (_, subtype) = name.split_once('/').unwrap_or_default();
    subtype.eq_ignore_ascii_case("json") || subtype.to_ascii_lowercase().ends_with("+json")
}

/// The value of an attribute in a header: percent-encoded, and quoted by some senders.
fn decode_header(value: &[u8]) -> Option<String> {
    let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    let unquoted: Vec<u8> = match quoted {
        None => value.to_vec(),
        Some(quoted) => {
            let mut escaped = false;
            let is_kept = |byte: &u8| {
                escaped = *byte == b'\\' && !escaped;
                !escaped
            };
            quoted.iter().copied().filter(is_kept).collect()
        }
    };
    String::from_utf8(percent_decode(&unquoted).collect()).ok()
}

/// The name of an attribute, and why it is invalid.
type AttributeError = (&'static str, String);

impl<'a> RequiredAttributes<'a> {
    fn check(
        mut get: impl FnMut(&'static str) -> Result<Option<&'a str>, AttributeError>,
    ) -> Result<Self, AttributeError> {
        let mut required = |name| match get(name)? {
            None => Err((name, "is required".to_owned())),
            Some("") => Err((name, "must not be empty".to_owned())),
            Some(value) => Ok(value),
        };
        let version = required("specversion")?;
        if version != VERSION {
            let version = truncated_echo(version.as_bytes());
            return Err(("specversion", format!("must be {VERSION}, not {version:?}")));
        }
        let (id, source, kind) = (required("id")?, required("source")?, required("type")?);
        Ok(Self { id, source, kind, time: get("time")? })
    }
}

fn decode_object(
    object: &JsonObject<'_>,
    texts: &mut TextBuffer,
    metadata: &mut MetadataWriter,
    records: &mut RecordSink<'_>,
) {
    const FIELDS: [&str; 5] = ["specversion", "id", "source", "type", "time"];
    texts.clear();
    metadata.clear();
    let mut found: [Option<TextRange>; FIELDS.len()] = [None; FIELDS.len()];
    for member in object.members {
        if object.value(member) == b"null" {
            continue;
        }
        let Some(field) = FIELDS.iter().position(|name| object.is_named(member, name)) else {
            object.write_member(member, metadata);
            continue;
        };
        if object.value(member)[0] != b'"' {
            return records.reject(FIELDS[field], &"must be a string");
        }
        match texts.value(object.source, member.value) {
            ValueText::Text(range) => found[field] = Some(range),
            ValueText::Invalid(violation) => return records.reject(FIELDS[field], &violation),
            ValueText::Null => {}
        }
        // The service may be shortened.
        if matches!(FIELDS[field], "id" | "source") {
            object.write_member(member, metadata);
        }
    }
    let get = |name: &'static str| {
        let field = FIELDS.iter().position(|field| *field == name);
        Ok(field.and_then(|field| found[field]).map(|range| texts.get(object.source, range)))
    };
    match RequiredAttributes::check(get) {
        Ok(attributes) => push_event(attributes, metadata, records),
        Err((name, detail)) => records.reject(name, &detail),
    }
}

fn push_event(
    attributes: RequiredAttributes<'_>,
    metadata: &mut MetadataWriter,
    records: &mut RecordSink<'_>,
) {
    let RequiredAttributes { id, source, kind, time } = attributes;
    let timestamp = match time.map(|time| timestamp::parse_rfc3339(time.as_bytes())) {
        None => records.now(),
        Some(Ok(time)) => time,
        Some(Err(_)) => {
            return records.reject("time", &"must be an RFC 3339 time with an offset");
        }
    };
    // The length keeps the parts apart.
    let key = format!("{}:{source}{id}", source.len());
    records.push(&EventFields {
        timestamp,
        service: &shorten(source),
        message: kind,
        metadata: metadata.finish(),
        identity: EventIdentity::Key(key.as_bytes()),
    });
}
