//! Decodes one OTLP log record, with the resource and the scope that it belongs to, into the fields of
//! an event. The JSON text of resource and scope is made once for all their records.

use std::borrow::Cow;

use super::any_value::{AnyValue, JsonWriter, KeyValue, RecordError};
use crate::event::{MESSAGE_BYTES_MAX, METADATA_BYTES_MAX, SERVICE_BYTES_MAX, Timestamp};
use crate::ingest::fields::UNKNOWN_SERVICE;
use crate::ingest::input::service_name::shorten;
use crate::json::text;
use crate::protobuf::MessageReader;

/// The message of a record that has neither a body nor an event name nor a severity text.
const EMPTY_MESSAGE: &str = "(empty log record)";
/// The attribute that identifies a record.
const RECORD_UID: &[u8] = b"log.record.uid";
const SERVICE_NAME: &[u8] = b"service.name";

/// The members of the metadata that are not attributes. An attribute of such a name is a member of
/// `attributes` instead.
const RESERVED_NAMES: [&[u8]; 10] = [
    b"attributes",
    b"dropped_attributes_count",
    b"event_name",
    b"resource",
    b"scope",
    b"severity",
    b"severity_number",
    b"span_id",
    b"trace_flags",
    b"trace_id",
];

/// An event as a log record states it.
#[derive(Debug)]
pub(in crate::ingest) struct LogRecord<'a> {
    /// The time of the record, else that of its observation.
    pub(in crate::ingest) timestamp: Option<Timestamp>,
    pub(in crate::ingest) service: &'a str,
    pub(in crate::ingest) message: Cow<'a, str>,
    /// A JSON object; none if it has no members.
    pub(in crate::ingest) metadata: Option<&'a [u8]>,
    /// The value of the attribute `log.record.uid`.
    pub(in crate::ingest) uid: Option<&'a [u8]>,
}

/// Decodes records. Reuses its allocations.
#[derive(Debug)]
pub(super) struct RecordDecoder {
    service: String,
    /// The member `resource`, if the resource has attributes.
    resource: JsonWriter,
    /// The members `scope` and `resource`.
    common: JsonWriter,
    /// The current resource, or the current scope, is invalid, and with it each of its records.
    resource_error: Option<RecordError>,
    scope_error: Option<RecordError>,
    metadata: JsonWriter,
    /// The text of a body that is not a string.
    body: JsonWriter,
}

/// The fields of a record that are not attributes.
#[derive(Debug, Default)]
struct RecordFields<'a> {
    time_nanos: u64,
    observed_nanos: u64,
    severity_number: u64,
    severity_text: &'a [u8],
    body: &'a [u8],
    dropped_attributes: u64,
    flags: u32,
    trace_id: &'a [u8],
    span_id: &'a [u8],
    event_name: &'a [u8],
    uid: Option<&'a [u8]>,
    has_reserved_attributes: bool,
}

impl Default for RecordDecoder {
    fn default() -> Self {
        let metadata = || JsonWriter::new(METADATA_BYTES_MAX);
        Self {
            service: UNKNOWN_SERVICE.to_owned(),
            resource: metadata(),
            common: metadata(),
            resource_error: None,
            scope_error: None,
            metadata: metadata(),
            body: JsonWriter::new(MESSAGE_BYTES_MAX),
        }
    }
}

impl RecordDecoder {
    /// Begins the records of a resource. Several parts of one are merged.
    pub(super) fn begin_resource<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) {
        self.service.clear();
        self.service.push_str(UNKNOWN_SERVICE);
        self.resource.clear();
        self.resource_error = self.write_resource(parts).err();
        self.begin_scope(std::iter::empty());
    }

    fn write_resource<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) -> Result<(), RecordError> {
        self.resource.raw(b"\"resource\":{");
        let begin = self.resource.bytes().len();
        for part in parts {
            let mut reader = MessageReader::new(part);
            while let Some((number, value)) = reader.next_field()? {
                if number != 1 {
                    continue;
                }
                let attribute = KeyValue::read(value.bytes()?)?;
                if attribute.key == SERVICE_NAME
                    && let AnyValue::Text(name @ [_, ..]) = AnyValue::read(attribute.value)?
                {
                    let name = text::lossy(name);
                    self.service.clear();
                    self.service.push_str(&shorten(&name));
                    if name.len() <= SERVICE_BYTES_MAX {
                        // The event's service has it.
                        continue;
                    }
                }
                self.resource.member(attribute, 2)?;
            }
        }
        if self.resource.bytes().len() == begin {
            self.resource.clear();
        } else {
            self.resource.raw(b"}");
        }
        Ok(())
    }

    /// Begins the records of a scope of the current resource. Several parts of one are merged.
    pub(super) fn begin_scope<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) {
        self.common.clear();
        self.scope_error = self.write_scope(parts).err();
    }

    fn write_scope<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) -> Result<(), RecordError> {
        let (mut name, mut version) = (&b""[..], &b""[..]);
        let common = &mut self.common;
        common.raw(b"\"scope\":{");
        let begin = common.bytes().len();
        for part in parts {
            let mut reader = MessageReader::new(part);
            while let Some((number, value)) = reader.next_field()? {
                match number {
                    1 => name = value.bytes()?,
                    2 => version = value.bytes()?,
                    3 => {
                        let attribute = KeyValue::read(value.bytes()?)?;
                        if common.bytes().len() == begin {
                            common.raw(b"\"attributes\":{");
                        }
                        common.member(attribute, 3)?;
                    }
                    _ => {}
                }
            }
        }
        if common.bytes().len() > begin {
            common.raw(b"}");
        }
        for (member, value) in [("name", name), ("version", version)] {
            if !value.is_empty() {
                common.name(member);
                common.text(value)?;
            }
        }
        if common.bytes().len() == begin {
            common.clear();
        } else {
            common.raw(b"}");
        }
        if !self.resource.bytes().is_empty() {
            common.separate();
            common.append(&self.resource)?;
        }
        Ok(())
    }

    /// Decodes one record.
    #[inline]
    pub(super) fn decode<'a>(&'a mut self, record: &'a [u8]) -> Result<LogRecord<'a>, RecordError> {
        if let Some(error) = self.resource_error.or(self.scope_error) {
            return Err(error);
        }
        let fields = self.read_fields(record)?;
        if fields.has_reserved_attributes {
            self.write_reserved_attributes(record)?;
        }
        self.write_members(&fields)?;
        let body = AnyValue::read(fields.body)?;
        let fallback = [fields.event_name, fields.severity_text, EMPTY_MESSAGE.as_bytes()];
        let message = match body {
            AnyValue::Text(text @ [_, ..]) => text::lossy(text),
            AnyValue::Empty | AnyValue::Text([]) => {
                let text = fallback.into_iter().find(|text| !text.is_empty());
                text::lossy(text.unwrap_or_default())
            }
            AnyValue::Bool(_)
            | AnyValue::Integer(_)
            | AnyValue::Double(_)
            | AnyValue::Array(_)
            | AnyValue::Map(_)
            | AnyValue::Bytes(_) => {
                self.body.clear();
                self.body.value(body, 0)?;
                String::from_utf8_lossy(self.body.bytes())
            }
        };
        Ok(LogRecord {
            timestamp: [fields.time_nanos, fields.observed_nanos]
                .into_iter()
                .find(|nanos| *nanos != 0)
                .map(|nanos| Timestamp::from_micros((nanos / 1000).cast_signed())),
            service: &self.service,
            message,
            metadata: Some(self.metadata.bytes()).filter(|json| json.len() > 2),
            uid: fields.uid,
        })
    }

    /// Reads the fields, and writes the attributes to the metadata as they come.
    #[inline]
    fn read_fields<'a>(&mut self, record: &'a [u8]) -> Result<RecordFields<'a>, RecordError> {
        let mut fields = RecordFields::default();
        self.metadata.clear();
        self.metadata.raw(b"{");
        let mut reader = MessageReader::new(record);
        while let Some((number, value)) = reader.next_field()? {
            match number {
                1 => fields.time_nanos = value.fixed64()?,
                2 => fields.severity_number = value.varint()?,
                3 => fields.severity_text = value.bytes()?,
                5 => fields.body = value.bytes()?,
                6 => {
                    let attribute = KeyValue::read(value.bytes()?)?;
                    if is_reserved(attribute.key) {
                        fields.has_reserved_attributes = true;
                        continue;
                    }
                    if attribute.key == RECORD_UID
                        && let AnyValue::Text(uid @ [_, ..]) = AnyValue::read(attribute.value)?
                    {
                        fields.uid = Some(uid);
                    }
                    self.metadata.member(attribute, 1)?;
                }
                7 => fields.dropped_attributes = value.varint()?,
                8 => fields.flags = value.fixed32()?,
                9 => fields.trace_id = value.bytes()?,
                10 => fields.span_id = value.bytes()?,
                11 => fields.observed_nanos = value.fixed64()?,
                12 => fields.event_name = value.bytes()?,
                _ => {}
            }
        }
        Ok(fields)
    }

    /// Writes the members of the metadata that are not attributes, and ends it.
    #[inline]
    fn write_members(&mut self, fields: &RecordFields<'_>) -> Result<(), RecordError> {
        let Self { metadata, common, .. } = self;
        for (name, value) in [("severity", fields.severity_text), ("event_name", fields.event_name)] {
            if !value.is_empty() {
                metadata.name(name);
                metadata.text(value)?;
            }
        }
        let numbers = [
            ("severity_number", fields.severity_number),
            // The other bits are reserved.
            ("trace_flags", u64::from(fields.flags & 0xff)),
            ("dropped_attributes_count", fields.dropped_attributes),
        ];
        for (name, value) in numbers {
            if value != 0 {
                metadata.name(name);
                metadata.integer(value.cast_signed());
            }
        }
        for (name, id) in [("trace_id", fields.trace_id), ("span_id", fields.span_id)] {
            // Zeros are no id.
            if id.iter().any(|byte| *byte != 0) {
                metadata.name(name);
                metadata.hex(id)?;
            }
        }
        if !common.bytes().is_empty() {
            metadata.separate();
            metadata.append(common)?;
        }
        metadata.raw(b"}");
        if metadata.bytes().len() > METADATA_BYTES_MAX {
            return Err(RecordError::TooLong(METADATA_BYTES_MAX));
        }
        Ok(())
    }

    #[cold]
    fn write_reserved_attributes(&mut self, record: &[u8]) -> Result<(), RecordError> {
        self.metadata.name("attributes");
        self.metadata.raw(b"{");
        let mut reader = MessageReader::new(record);
        while let Some((number, value)) = reader.next_field()? {
            if number == 6 {
                let attribute = KeyValue::read(value.bytes()?)?;
                if is_reserved(attribute.key) {
                    self.metadata.member(attribute, 2)?;
                }
            }
        }
        self.metadata.raw(b"}");
        Ok(())
    }
}

fn is_reserved(key: &[u8]) -> bool {
    // Most attributes have a dot in their name, and no reserved name has one.
    matches!(key.first(), Some(b'a' | b'd' | b'e' | b'r' | b's' | b't')) && RESERVED_NAMES.contains(&key)
}
