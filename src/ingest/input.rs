//! Bodies in other formats than the server's own. A format has a reader, which decodes the records
//! of a body and passes them to a [`RecordSink`]; this module selects the reader of a request, runs
//! it in slices, and lets it write the response.
//!
//! A new format is a variant of [`InputReader`] and, if it has a path of its own, of [`InputPath`].

mod cloudevents;
mod json_records;
mod loki;
mod loki_protobuf;
mod mapping;
mod otlp;
mod parameters;
mod refusal;
pub(super) mod service_name;
mod splunk;

use std::borrow::Cow;

pub(super) use mapping::FIELD_NAME_BYTES_MAX;
pub use refusal::RefusalFormat;
pub use splunk::write_health as write_splunk_health;

use super::decode::DecodeContext;
use super::fields::RecordSink;
use super::row_sink::RowSink;
use super::{BodyFormat, BodyShape, DecodedRequest, IngestHeaders, IngestLimits, ParseIngestHeadersError};
use crate::event::{EventId, Timestamp};
use crate::http::problem::FieldError;
use crate::http::{ContentCoding, Headers, Response};
use crate::metrics::EventInput;
use cloudevents::CloudEventsReader;
use loki::LokiReader;
use mapping::MappingReader;
use otlp::{OtlpEncoding, OtlpInput};
use parameters::Parameters;
use splunk::{SplunkEventReader, SplunkRawReader};

/// Bytes that are hashed or validated as UTF-8 in the time of decoding one byte.
const PREPARE_BUDGET_FACTOR: usize = 4;

/// The time of decoding a byte of a record, relative to a byte of an event in the server's own format:
/// 1.6 (mapped JSON, Loki) to 3.2 (CloudEvents, with a hash per event), measured with records of 200
/// bytes.
pub const INPUT_COST_FACTOR: usize = 3;

/// A path that takes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputPath {
    /// `POST /events`: the server's own format, or one that the headers or the query select.
    Events,
    LokiPush,
    SplunkEvent,
    SplunkRaw,
    /// `POST /v1/logs`: OTLP logs.
    OtlpLogs,
}

/// The state of reading one body in another format.
#[derive(Debug)]
pub struct InputBody {
    reader: InputReader,
    stage: InputStage,
    /// Bytes before this are done in the current stage.
    at: usize,
    /// If equal bodies are one request.
    hash: Option<Box<blake3::Hasher>>,
    body_digest: Option<[u8; 32]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputStage {
    CheckUtf8,
    Hash,
    Records,
    Done(BodyShape),
}

/// The readers. Each is made from the headers and the query of a request.
#[derive(Debug)]
enum InputReader {
    Mapping(MappingReader),
    CloudEvents(CloudEventsReader),
    Loki(LokiReader),
    SplunkEvents(SplunkEventReader),
    SplunkRaw(SplunkRawReader),
    Otlp(OtlpInput),
}

/// A body is invalid as a whole; none of its records is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct InvalidBodyError(pub(super) Cow<'static, str>);

impl InputReader {
    fn kind(&self) -> EventInput {
        match self {
            Self::Mapping(_) => EventInput::Mapped,
            Self::CloudEvents(_) => EventInput::CloudEvents,
            Self::Loki(_) => EventInput::Loki,
            Self::SplunkEvents(_) | Self::SplunkRaw(_) => EventInput::Splunk,
            Self::Otlp(_) => EventInput::Otlp,
        }
    }

    /// Whether a body that is not UTF-8 is invalid as a whole. Otherwise the reader checks each
    /// record.
    fn needs_utf8(&self) -> bool {
        match self {
            Self::Mapping(mapping) => !mapping.is_by_line(),
            Self::CloudEvents(events) => !events.is_binary(),
            Self::Loki(loki) => !loki.is_protobuf(),
            Self::SplunkEvents(_) => true,
            Self::SplunkRaw(_) => false,
            Self::Otlp(otlp) => otlp.encoding() == OtlpEncoding::Json,
        }
    }

    /// Reads records: about as much work as `budget` bytes of ordinary events. Returns the shape of
    /// the body once all of it is read.
    fn read_slice(
        &mut self,
        body: &[u8],
        records: &mut RecordSink<'_>,
        budget: usize,
    ) -> Result<Option<BodyShape>, InvalidBodyError> {
        match self {
            Self::Mapping(mapping) => mapping.read_slice(body, records, budget),
            Self::CloudEvents(events) => events.read_slice(body, records, budget),
            Self::Loki(loki) => loki.read_slice(body, records, budget),
            Self::SplunkEvents(events) => events.read_slice(body, records, budget),
            Self::SplunkRaw(lines) => lines.read_slice(body, records, budget),
            Self::Otlp(otlp) => otlp.read_slice(body, records, budget),
        }
    }
}

/// Parses the headers and the query of a request. Returns also the state of reading its body, unless
/// it is in the server's own format.
#[inline]
pub fn parse_request<'a>(
    path: InputPath,
    headers: Headers<'a>,
    query: &str,
) -> Result<(IngestHeaders<'a>, Option<Box<InputBody>>), ParseIngestHeadersError> {
    if path == InputPath::Events && query.is_empty() && !cloudevents::has_cloudevents_headers(headers) {
        return Ok((IngestHeaders::parse(headers)?, None));
    }
    parse_other_request(path, headers, query)
}

fn parse_other_request<'a>(
    path: InputPath,
    headers: Headers<'a>,
    query: &str,
) -> Result<(IngestHeaders<'a>, Option<Box<InputBody>>), ParseIngestHeadersError> {
    let parameters = Parameters::parse(query)?;
    let reader = match path {
        InputPath::Events => match CloudEventsReader::select(headers)? {
            Some(events) => Some(InputReader::CloudEvents(events)),
            None => MappingReader::select(headers, &parameters)?.map(InputReader::Mapping),
        },
        InputPath::LokiPush => Some(InputReader::Loki(LokiReader::select(headers)?)),
        InputPath::SplunkEvent => Some(InputReader::SplunkEvents(SplunkEventReader::default())),
        InputPath::SplunkRaw => Some(InputReader::SplunkRaw(SplunkRawReader::new(&parameters)?)),
        InputPath::OtlpLogs => Some(InputReader::Otlp(OtlpInput::new(OtlpEncoding::from_headers(headers)?))),
    };
    let Some(reader) = reader else {
        let keeps_ids = super::keeps_ids(query)?;
        return Ok((IngestHeaders { keeps_ids, ..IngestHeaders::parse(headers)? }, None));
    };
    let is_snappy = matches!(&reader, InputReader::Loki(loki) if loki.is_protobuf());
    let implied = is_snappy.then_some(ContentCoding::Snappy);
    let headers = IngestHeaders::parse_as(BodyFormat::Records(reader.kind()), implied, headers)?;
    // Exporters of OTLP retry with the same body and send no key.
    let dedups = parameters.dedups_by_body(path == InputPath::OtlpLogs)?;
    let hash = dedups.then(|| Box::new(blake3::Hasher::new()));
    Ok((headers, Some(Box::new(InputBody::new(reader, hash)))))
}

impl InputBody {
    fn new(reader: InputReader, hash: Option<Box<blake3::Hasher>>) -> Self {
        let stage = if reader.needs_utf8() { InputStage::CheckUtf8 } else { InputStage::Hash };
        Self { reader, stage, at: 0, hash, body_digest: None }
    }

    /// The structure of the body. Valid once the whole body is read.
    pub(super) fn shape(&self) -> BodyShape {
        match self.stage {
            InputStage::Done(shape) => shape,
            InputStage::CheckUtf8 | InputStage::Hash | InputStage::Records => BodyShape::Malformed,
        }
    }

    /// Reads the next slice of the body. Returns whether the whole body is read.
    pub(super) fn read_slice(
        &mut self,
        sink: &mut RowSink,
        limits: IngestLimits,
        headers: IngestHeaders<'_>,
        body: &[u8],
        now: Timestamp,
        budget: usize,
    ) -> bool {
        let prepared = self.prepare(body, budget);
        let read = match prepared {
            Ok(false) => return false,
            Ok(true) => {
                let context = DecodeContext { keeps_ids: false, ..DecodeContext::new(headers, limits, now) };
                let mut records = RecordSink::new(sink, &context, self.body_digest.as_ref(), body.len());
                let read = self.reader.read_slice(body, &mut records, budget.div_ceil(INPUT_COST_FACTOR));
                if records.has_too_many_bytes() {
                    Err(InvalidBodyError(
                        "too large: its records repeat too much; send fewer at a time".into(),
                    ))
                } else {
                    read
                }
            }
            Err(error) => Err(error),
        };
        let shape = match read {
            Ok(None) => return false,
            Ok(Some(shape)) => shape,
            Err(error) => {
                sink.clear();
                let detail = error.to_string();
                sink.errors.push(|| FieldError { index: None, field: "body".into(), detail });
                BodyShape::Malformed
            }
        };
        self.stage = InputStage::Done(shape);
        sink.end_block();
        true
    }

    /// Validates and hashes the next slice, if the body needs that. Returns whether records may be
    /// read in this turn.
    fn prepare(&mut self, body: &[u8], budget: usize) -> Result<bool, InvalidBodyError> {
        let is_short = body.len() <= budget;
        loop {
            let end = body.len().min(self.at.saturating_add(budget.saturating_mul(PREPARE_BUDGET_FACTOR)));
            let slice = &body[self.at..end];
            let next = match self.stage {
                InputStage::CheckUtf8 => {
                    self.at += check_utf8(slice, self.at, end == body.len())?;
                    InputStage::Hash
                }
                InputStage::Hash => {
                    if let Some(hash) = &mut self.hash {
                        hash.update(slice);
                        self.at = end;
                    } else {
                        self.at = body.len();
                    }
                    InputStage::Records
                }
                InputStage::Records | InputStage::Done(_) => return Ok(true),
            };
            if self.at == body.len() {
                (self.stage, self.at) = (next, 0);
                if next == InputStage::Records {
                    self.body_digest = self.hash.take().map(|hash| *hash.finalize().as_bytes());
                }
            }
            if !is_short {
                return Ok(false);
            }
        }
    }

    /// Writes the response to a request whose events were all admitted, or that has none.
    pub(super) fn write_response(
        &self,
        decoded: &DecodedRequest<'_>,
        duplicates: &[EventId],
        response: &mut Response,
    ) {
        match &self.reader {
            InputReader::Mapping(_) | InputReader::CloudEvents(_) => {
                super::response::write(decoded, duplicates, response);
            }
            InputReader::Loki(loki) => loki.write_response(decoded, response),
            InputReader::SplunkEvents(_) | InputReader::SplunkRaw(_) => {
                splunk::write_response(decoded, response);
            }
            InputReader::Otlp(otlp) => otlp.write_response(decoded, response),
        }
    }
}

/// Whether the parameters of a media type name no encoding but UTF-8, the only one of JSON
/// (RFC 8259, 8.1).
fn is_utf8<'a>(parameters: impl Iterator<Item = &'a str>) -> bool {
    parameters.filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
        !name.trim().eq_ignore_ascii_case("charset")
            || value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
    })
}

/// Validates `slice`, which begins at `at` in the body. Returns how many bytes of it are whole
/// characters.
fn check_utf8(slice: &[u8], at: usize, is_last: bool) -> Result<usize, InvalidBodyError> {
    match str::from_utf8(slice) {
        Ok(_) => Ok(slice.len()),
        Err(error) if error.error_len().is_none() && !is_last => Ok(error.valid_up_to()),
        Err(error) => Err(InvalidBodyError(format!("not UTF-8 at byte {}", at + error.valid_up_to()).into())),
    }
}
