//! `POST /v1/logs`: OTLP logs over HTTP, in protobuf or JSON. It selects the encoding by the content
//! type, passes each log record to the [`RecordSink`], and writes the response of the protocol in the
//! request's encoding.

use std::borrow::Cow;

use super::InvalidBodyError;
use crate::http::problem::append_fmt;
use crate::http::{Headers, Response};
use crate::ingest::fields::{EventFields, EventIdentity, Metadata, RecordSink};
use crate::ingest::headers::truncated_echo;
use crate::ingest::otlp::{JsonTranscoder, OtlpReader, ReadStep, RecordError};
use crate::ingest::{BodyShape, DecodedRequest, ParseIngestHeadersError};
use crate::json::text;
use crate::protobuf::encode;

pub(super) const PROTOBUF_TYPE: &str = "application/x-protobuf";
pub(super) const JSON_TYPE: &str = "application/json";
const TYPES: &str = "application/x-protobuf, application/json";
/// Rejected records of which the response gives the reasons.
const REASONS_MAX: usize = 3;

/// The encoding of a request and its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpEncoding {
    Protobuf,
    Json,
}

/// The state of reading one request.
#[derive(Debug)]
pub(super) struct OtlpInput {
    reader: OtlpReader,
    /// For a request in JSON.
    transcoder: Option<JsonTranscoder>,
    is_transcoded: bool,
}

impl OtlpEncoding {
    /// The encoding that the content type names.
    pub(super) fn from_headers(headers: Headers<'_>) -> Result<Self, ParseIngestHeadersError> {
        let value = headers.get("Content-Type").unwrap_or_default();
        let encoding = str::from_utf8(value).ok().and_then(|value| {
            let mut parts = value.split(';').map(str::trim);
            let name = parts.next()?;
            if name.eq_ignore_ascii_case(PROTOBUF_TYPE) {
                return Some(Self::Protobuf);
            }
            (name.eq_ignore_ascii_case(JSON_TYPE) && super::is_utf8(parts)).then_some(Self::Json)
        });
        encoding.ok_or_else(|| ParseIngestHeadersError::UnsupportedInputType {
            actual: truncated_echo(value),
            expected: TYPES,
        })
    }
}

impl OtlpInput {
    pub(super) fn new(encoding: OtlpEncoding) -> Self {
        let transcoder = (encoding == OtlpEncoding::Json).then(JsonTranscoder::default);
        Self { reader: OtlpReader::default(), transcoder, is_transcoded: false }
    }

    pub(super) fn encoding(&self) -> OtlpEncoding {
        if self.transcoder.is_some() { OtlpEncoding::Json } else { OtlpEncoding::Protobuf }
    }

    /// Reads records up to the budget. Returns the shape of the body once the whole body is read.
    pub(super) fn read_slice(
        &mut self,
        body: &[u8],
        records: &mut RecordSink<'_>,
        budget: usize,
    ) -> Result<Option<BodyShape>, InvalidBodyError> {
        let encoding = self.encoding();
        if let Some(transcoder) = self.transcoder.as_mut().filter(|_| !self.is_transcoded) {
            let transcoded = transcoder.transcode_slice(body, budget);
            self.is_transcoded = transcoded.map_err(|error| InvalidBodyError(error.to_string().into()))?;
            if !self.is_transcoded || body.len() > budget {
                return Ok(None);
            }
        }
        let request = self.transcoder.as_ref().map_or(body, JsonTranscoder::transcoded);
        let mut left = budget;
        loop {
            let step = self.reader.read_next(request, &mut left).map_err(|error| {
                InvalidBodyError(format!("not an ExportLogsServiceRequest: {error}").into())
            })?;
            match step {
                ReadStep::End => return Ok(Some(BodyShape::Batch)),
                ReadStep::Paused => return Ok(None),
                ReadStep::Record(Err(RecordError::Malformed(_))) if encoding == OtlpEncoding::Json => {
                    records.reject(
                        "record",
                        &"or its resource or scope has a field whose value has the wrong type",
                    );
                }
                ReadStep::Record(Err(error)) => records.reject("record", &error),
                ReadStep::Record(Ok(record)) => records.push(&EventFields {
                    timestamp: record.timestamp.unwrap_or(records.now()),
                    service: record.service,
                    message: &record.message,
                    metadata: record.metadata.map_or(Metadata::None, Metadata::Checked),
                    identity: record.uid.map_or(EventIdentity::Position, EventIdentity::Key),
                }),
            }
        }
    }

    /// Writes the response to a request whose events were all admitted, or that has none.
    pub(super) fn write_response(&self, decoded: &DecodedRequest<'_>, response: &mut Response) {
        if decoded.accepted() == 0 && (decoded.rejected() > 0 || decoded.shape() == BodyShape::Malformed) {
            return crate::ingest::response::write(decoded, &[], response);
        }
        response.status = 200;
        let out = &mut response.body;
        out.clear();
        let rejected = decoded.rejected();
        let message = (rejected > 0).then(|| rejection_message(decoded));
        match self.encoding() {
            OtlpEncoding::Protobuf => {
                response.content_type = PROTOBUF_TYPE;
                if let Some(message) = message {
                    let mut partial = Vec::new();
                    encode::varint_field(&mut partial, 1, u64::from(rejected));
                    encode::bytes_field(&mut partial, 2, message.as_bytes());
                    encode::bytes_field(out, 1, &partial);
                }
            }
            OtlpEncoding::Json => {
                response.content_type = JSON_TYPE;
                out.push(b'{');
                if let Some(message) = message {
                    append_fmt(
                        out,
                        format_args!(
                            "\"partialSuccess\":{{\"rejectedLogRecords\":\"{rejected}\",\"errorMessage\":"
                        ),
                    );
                    text::quote(out, &message);
                    out.push(b'}');
                }
                out.push(b'}');
            }
        }
    }
}

/// The reasons of the first rejected records.
fn rejection_message(decoded: &DecodedRequest<'_>) -> String {
    let errors = decoded.errors().listed().iter().take(REASONS_MAX);
    let reasons: Vec<_> = errors
        .map(|error| match error.index {
            Some(index) => Cow::Owned(format!("log record {index}: {}", error.detail)),
            None => Cow::Borrowed(&*error.detail),
        })
        .collect();
    let more = if decoded.rejected() as usize > reasons.len() { "; ..." } else { "" };
    format!("{}{more}", reasons.join("; "))
}

/// Writes a `google.rpc.Status` in place of a problem document.
pub(super) fn write_status(encoding: OtlpEncoding, message: &str, response: &mut Response) {
    let code: u32 = match response.status {
        401 => 16,
        403 => 7,
        404 => 5,
        413 | 429 => 8,
        408 | 503 | 504 => 14,
        500 => 13,
        _ => 3,
    };
    let out = &mut response.body;
    out.clear();
    match encoding {
        OtlpEncoding::Protobuf => {
            response.content_type = PROTOBUF_TYPE;
            encode::varint_field(out, 1, u64::from(code));
            encode::bytes_field(out, 2, message.as_bytes());
        }
        OtlpEncoding::Json => {
            response.content_type = JSON_TYPE;
            append_fmt(out, format_args!("{{\"code\":{code},\"message\":"));
            text::quote(out, message);
            out.push(b'}');
        }
    }
}
