//! The push API of Loki on `POST /loki/api/v1/push`, as JSON or as protobuf in Snappy, which is
//! transcoded to JSON. The JSON is
//! `{"streams":[{"stream":{LABELS},"values":[["NANOSECONDS","LINE",{STRUCTURED METADATA}]]}]}`.
//!
//! | part | becomes |
//! |---|---|
//! | the time | the timestamp, in microseconds |
//! | the first of the labels in [`SERVICE_LABELS`] | the service |
//! | the line | the message |
//! | the labels, the structured metadata | metadata |
//!
//! As in Loki, a line that is sent again with the same time and labels is the same event. Equal lines
//! of one request are counted, so that none of them is lost.

use super::InvalidBodyError;
use super::json_records::{
    JsonObject, ObjectMember, TextBuffer, ValueText, not_json, scan_members, too_long,
};
use super::loki_protobuf::PushTranscoder;
use super::service_name::shorten;
use crate::event::{EVENT_BYTES_MAX, Timestamp};
use crate::http::{Headers, Response, problem};
use crate::ingest::fields::{EventFields, EventIdentity, RecordSink, UNKNOWN_SERVICE};
use crate::ingest::headers::truncated_echo;
use crate::ingest::metadata::MetadataWriter;
use crate::ingest::{BodyShape, DecodedRequest, ParseIngestHeadersError};
use crate::json::{JsonValue, ParseJsonError, Scanner};

/// The labels that name the service: its own name, then those from which Loki takes it.
pub(super) const SERVICE_LABELS: [&str; 12] = [
    "service_name",
    "service",
    "app",
    "application",
    "name",
    "app_kubernetes_io_name",
    "container",
    "container_name",
    "compose_service",
    "component",
    "workload",
    "job",
];
/// The fixed cost of an entry, in bytes of ordinary entries.
const ENTRY_COST_BYTES: usize = 128;

#[derive(Debug)]
pub(super) struct LokiReader {
    /// For a push in protobuf.
    transcoder: Option<PushTranscoder>,
    is_transcoded: bool,
    json: LokiJsonReader,
}

/// Reads a push in JSON.
#[derive(Debug)]
struct LokiJsonReader {
    stage: ReadStage,
    at: usize,
    stream: StreamState,
    /// Lines without text, which are rejected silently.
    blank: u32,
    texts: TextBuffer,
    metadata: MetadataWriter,
    nested: Vec<ObjectMember>,
}

/// The position in the document: the next token is that of the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadStage {
    Document,
    DocumentKey,
    /// An element of `streams`.
    Stream,
    StreamKey,
    /// An element of `values`. Entries before the labels are skipped, and read after them.
    Entry {
        is_skipped: bool,
    },
    /// After a stream.
    StreamEnd,
    End,
}

/// The stream that is being read.
#[derive(Debug, Default)]
struct StreamState {
    /// The labels as JSON text, and their members in it.
    labels: Option<Vec<u8>>,
    members: Vec<ObjectMember>,
    service: String,
    /// The first entry that was skipped.
    skipped_at: Option<usize>,
    /// The end of the stream, while its skipped entries are read.
    end: Option<usize>,
}

impl StreamState {
    fn labels(&self) -> JsonObject<'_> {
        let source = self.labels.as_deref().unwrap_or_default();
        JsonObject::new(source, (0, source.len()), &self.members)
    }
}

impl LokiReader {
    pub(super) fn select(headers: Headers<'_>) -> Result<Self, ParseIngestHeadersError> {
        const PROTOBUF_TYPE: &str = "application/x-protobuf";
        const JSON_TYPE: &str = "application/json";
        let value = headers.get("Content-Type").unwrap_or_default();
        let is_protobuf = str::from_utf8(value).ok().and_then(|value| {
            let mut parts = value.split(';').map(str::trim);
            let name = parts.next()?;
            let is_protobuf = name.eq_ignore_ascii_case(PROTOBUF_TYPE);
            let is_json = name.eq_ignore_ascii_case(JSON_TYPE) && super::is_utf8(parts);
            (is_protobuf || is_json).then_some(is_protobuf)
        });
        let is_protobuf = is_protobuf.ok_or_else(|| ParseIngestHeadersError::UnsupportedInputType {
            actual: truncated_echo(value),
            expected: "application/x-protobuf, application/json",
        })?;
        let transcoder = is_protobuf.then(PushTranscoder::default);
        Ok(Self { transcoder, is_transcoded: false, json: LokiJsonReader::new() })
    }

    /// Whether the body is protobuf, which is in Snappy's block format.
    pub(super) fn is_protobuf(&self) -> bool {
        self.transcoder.is_some()
    }

    pub(super) fn read_slice(
        &mut self,
        body: &[u8],
        records: &mut RecordSink<'_>,
        budget: usize,
    ) -> Result<Option<BodyShape>, InvalidBodyError> {
        let Some(transcoder) = &mut self.transcoder else {
            return self.json.read_slice(body, records, budget);
        };
        if !self.is_transcoded {
            self.is_transcoded = transcoder.transcode_slice(body, budget)?;
            if !self.is_transcoded || body.len() > budget {
                return Ok(None);
            }
        }
        self.json.read_slice(transcoder.transcoded(), records, budget)
    }

    /// Loki answers 204 without content, and 400 with a text if it has not taken some lines.
    pub(super) fn write_response(&self, decoded: &DecodedRequest<'_>, response: &mut Response) {
        write_response(self.json.blank, decoded, response);
    }
}

impl LokiJsonReader {
    fn new() -> Self {
        Self {
            stage: ReadStage::Document,
            at: 0,
            stream: StreamState::default(),
            blank: 0,
            texts: TextBuffer::default(),
            metadata: MetadataWriter::default(),
            nested: Vec::new(),
        }
    }

    fn read_slice(
        &mut self,
        body: &[u8],
        records: &mut RecordSink<'_>,
        budget: usize,
    ) -> Result<Option<BodyShape>, InvalidBodyError> {
        let mut left = budget;
        while left > 0 {
            let begin = self.at;
            let source = &body[..body.len().min(begin.saturating_add(EVENT_BYTES_MAX + 1))];
            let mut scanner = Scanner::resume(source, begin);
            scanner.next_token();
            if self.stage == ReadStage::End {
                self.at = scanner.at();
                if self.at == body.len() {
                    return Ok(Some(BodyShape::Batch));
                }
                if !scanner.is_at_end() {
                    return Err(not_json(&scanner.error("unexpected data after the JSON value")));
                }
            } else {
                let step = self.step(&mut scanner, records);
                let is_cut = scanner.is_at_end() && source.len() < body.len();
                match step {
                    Ok(Some(at)) => self.at = at,
                    Ok(None) => self.at = scanner.at(),
                    Err(_) if is_cut => return Err(too_long()),
                    Err(error) => return Err(not_json(&error)),
                }
            }
            // After the labels the position may be an earlier one.
            left = left.saturating_sub(self.at.saturating_sub(begin) + ENTRY_COST_BYTES);
        }
        Ok(None)
    }

    /// Reads one token of the structure, one entry, or one value that is not used. Returns the next
    /// position if that is not the scanner's.
    fn step(
        &mut self,
        scanner: &mut Scanner<'_>,
        records: &mut RecordSink<'_>,
    ) -> Result<Option<usize>, ParseJsonError> {
        match self.stage {
            ReadStage::Document => {
                scanner.expect(b'{', "an object with streams was expected")?;
                self.stage = if skip_empty(scanner, b'}') { ReadStage::End } else { ReadStage::DocumentKey };
            }
            ReadStage::DocumentKey => {
                let is_streams = read_key(scanner)? == b"streams" && scanner.peek() == b'[';
                if is_streams {
                    scanner.advance();
                    if !skip_empty(scanner, b']') {
                        self.stage = ReadStage::Stream;
                        return Ok(None);
                    }
                } else {
                    scanner.value()?;
                }
                self.end_document_member(scanner)?;
            }
            ReadStage::Stream => {
                scanner.expect(b'{', "a stream was expected")?;
                self.stream = StreamState::default();
                self.stage =
                    if skip_empty(scanner, b'}') { ReadStage::StreamEnd } else { ReadStage::StreamKey };
            }
            ReadStage::StreamKey => return self.read_stream_member(scanner),
            ReadStage::Entry { is_skipped } => {
                if is_skipped {
                    scanner.value()?;
                } else {
                    self.read_entry(scanner, records)?;
                }
                if !has_more(scanner, b']')? {
                    return match self.stream.end {
                        // The stream has ended before its skipped entries were read.
                        Some(end) => {
                            self.stage = ReadStage::StreamEnd;
                            Ok(Some(end))
                        }
                        None => self.end_stream_member(scanner),
                    };
                }
            }
            ReadStage::StreamEnd => {
                if has_more(scanner, b']')? {
                    self.stage = ReadStage::Stream;
                } else {
                    self.end_document_member(scanner)?;
                }
            }
            ReadStage::End => {}
        }
        Ok(None)
    }

    fn end_document_member(&mut self, scanner: &mut Scanner<'_>) -> Result<(), ParseJsonError> {
        self.stage = if has_more(scanner, b'}')? { ReadStage::DocumentKey } else { ReadStage::End };
        Ok(())
    }

    fn read_stream_member(&mut self, scanner: &mut Scanner<'_>) -> Result<Option<usize>, ParseJsonError> {
        let name = read_key(scanner)?;
        match (name, scanner.peek()) {
            (b"stream", b'{') => self.read_labels(scanner)?,
            (b"values", b'[') => {
                scanner.advance();
                if !skip_empty(scanner, b']') {
                    let is_skipped = self.stream.labels.is_none();
                    if is_skipped && self.stream.skipped_at.replace(scanner.at()).is_some() {
                        return Err(scanner.error("the values of a stream are present more than once"));
                    }
                    self.stage = ReadStage::Entry { is_skipped };
                    return Ok(None);
                }
            }
            _ => {
                scanner.value()?;
            }
        }
        self.end_stream_member(scanner)
    }

    fn read_labels(&mut self, scanner: &mut Scanner<'_>) -> Result<(), ParseJsonError> {
        let Self { stream, texts, .. } = self;
        let start = scanner.at();
        let value = scanner.value()?;
        // A copy, since skipped entries are read with another source.
        let labels = scanner.slice(start, value.end).to_vec();
        stream.members.clear();
        scan_members(&mut Scanner::new(&labels), &mut stream.members)?;
        stream.labels = Some(labels);
        texts.clear();
        let labels = stream.labels();
        let found = SERVICE_LABELS.iter().find_map(|name| {
            let member = labels.member(name)?;
            match texts.value(labels.source, member.value) {
                ValueText::Text(range) => Some(shorten(texts.get(labels.source, range)).into_owned()),
                ValueText::Null | ValueText::Invalid(_) => None,
            }
            .filter(|name| !name.is_empty())
        });
        stream.service = found.unwrap_or_default();
        Ok(())
    }

    /// Reads the token after a member of a stream. At the end of a stream whose entries were
    /// skipped, reading continues with them.
    fn end_stream_member(&mut self, scanner: &mut Scanner<'_>) -> Result<Option<usize>, ParseJsonError> {
        if has_more(scanner, b'}')? {
            self.stage = ReadStage::StreamKey;
            return Ok(None);
        }
        let skipped_at = self.stream.skipped_at.take();
        if skipped_at.is_some() {
            self.stream.end = Some(scanner.at());
            self.stage = ReadStage::Entry { is_skipped: false };
        } else {
            self.stage = ReadStage::StreamEnd;
        }
        Ok(skipped_at)
    }

    fn read_entry(
        &mut self,
        scanner: &mut Scanner<'_>,
        records: &mut RecordSink<'_>,
    ) -> Result<(), ParseJsonError> {
        let entry = scan_entry(scanner)?;
        let source = scanner.source();
        let Self { stream, texts, metadata, nested, blank, .. } = self;
        texts.clear();
        let Some((time, line, extra)) =
            entry.filter(|(time, line, _)| source[time.start] == b'"' && source[line.start] == b'"')
        else {
            records.reject("values", &"must be [\"NANOSECONDS\", \"LINE\"]");
            return Ok(());
        };
        let time = &source[time.start + 1..time.end - 1];
        let nanos = str::from_utf8(time).ok().and_then(|time| time.parse::<i64>().ok());
        let Some(nanos) = nanos else {
            records.reject("timestamp", &"must be nanoseconds since 1970");
            return Ok(());
        };
        let message = match texts.value(source, line) {
            ValueText::Text(range) => texts.get(source, range),
            ValueText::Null => "",
            ValueText::Invalid(violation) => {
                records.reject("line", &violation);
                return Ok(());
            }
        };
        if message.is_empty() {
            *blank += 1;
            records.reject("line", &"must not be empty");
            return Ok(());
        }
        metadata.clear();
        stream.labels().write_members(metadata);
        if let Some(extra) = extra {
            let Some(extra) = JsonObject::scan(source, extra, nested) else {
                records.reject("values", &"must have an object as structured metadata");
                return Ok(());
            };
            extra.write_members(metadata);
        }
        records.push(&EventFields {
            timestamp: Timestamp::from_micros(nanos.div_euclid(1000)),
            service: if stream.service.is_empty() { UNKNOWN_SERVICE } else { &stream.service },
            message,
            metadata: metadata.finish(),
            identity: EventIdentity::Content(time),
        });
        Ok(())
    }
}

/// The time, the line and the structured metadata of an entry.
type EntryParts = (JsonValue, JsonValue, Option<JsonValue>);

/// Scans an entry. Returns none if it is not an array of two or three elements.
fn scan_entry(scanner: &mut Scanner<'_>) -> Result<Option<EntryParts>, ParseJsonError> {
    let mut parts = [None; 3];
    let mut count = 0;
    if scanner.peek() != b'[' {
        scanner.value()?;
        return Ok(None);
    }
    scanner.advance();
    if !skip_empty(scanner, b']') {
        loop {
            let value = scanner.value()?;
            if let Some(part) = parts.get_mut(count) {
                *part = Some(value);
            }
            count += 1;
            if !has_more(scanner, b']')? {
                break;
            }
        }
    }
    Ok(match parts {
        [Some(time), Some(line), extra] if count <= parts.len() => Some((time, line, extra)),
        _ => None,
    })
}

/// Reads a key and its colon. Returns the key as it is written.
fn read_key<'a>(scanner: &mut Scanner<'a>) -> Result<&'a [u8], ParseJsonError> {
    let name = scanner.name("a key in double quotes was expected")?;
    Ok(scanner.slice(name.start, name.end))
}

/// Whether the container that has just begun ends at once. Skips the bracket then.
fn skip_empty(scanner: &mut Scanner<'_>, bracket: u8) -> bool {
    let is_empty = scanner.next_token() == bracket;
    if is_empty {
        scanner.advance();
    }
    is_empty
}

/// Reads the token after an element. Returns whether a further one must follow.
fn has_more(scanner: &mut Scanner<'_>, bracket: u8) -> Result<bool, ParseJsonError> {
    let more = match scanner.next_token() {
        b',' => true,
        token if token == bracket => false,
        _ => return Err(scanner.error("',' or a closing bracket was expected")),
    };
    scanner.advance();
    scanner.next_token();
    Ok(more)
}

/// Writes the response to a push, of which `blank` lines without text were not stored.
pub(super) fn write_response(blank: u32, decoded: &DecodedRequest<'_>, response: &mut Response) {
    let errors = decoded.errors();
    if decoded.rejected() == blank && decoded.shape() != BodyShape::Malformed {
        response.status = 204;
        response.content_type = "";
        response.body.clear();
    } else if decoded.is_forbidden() {
        problem::write_forbidden(response, "the token may not write these services", errors);
    } else {
        let (accepted, rejected) = (decoded.accepted(), decoded.rejected());
        let first = errors.listed().first().map_or("", |error| &error.detail);
        let detail = match decoded.shape() {
            BodyShape::Malformed => format!("the body is invalid: {first}"),
            BodyShape::Single | BodyShape::Batch | BodyShape::Text => {
                format!("{rejected} entries are invalid and {accepted} are stored; the first error: {first}")
            }
        };
        problem::write_invalid(response, &detail, errors);
    }
}
