//! Parses the headers of `POST /events`: content type, content coding, idempotency key, durability.

use super::idempotency::HeaderKey;
use crate::http::problem::{self, ECHO_BYTES_MAX, FieldError, FieldErrors, ProblemKind};
use crate::http::{ContentCoding, Headers, Response};
use crate::journal::Durability;
use crate::json::text;
use crate::metrics::EventInput;

/// The format of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    /// One event object, or an array of event objects.
    Json,
    /// One event object per line.
    Ndjson,
    /// As `Json`. A web page can send this type when it is closed (`navigator.sendBeacon` with a
    /// string); a body that is not JSON is refused as an unsupported type.
    Text,
    /// Records of another format.
    Records(EventInput),
}

/// The header that requests a durability level; the response states the effective level in it.
const DURABILITY: &str = "Durability";
/// The content types of NDJSON, also in `Accept`. The first one is the preferred.
pub const NDJSON_TYPES: [&str; 3] = ["application/x-ndjson", "application/ndjson", "application/jsonl"];
const TYPES: &str =
    "application/json, application/x-ndjson, application/ndjson, application/jsonl, text/plain";
/// The query parameter that makes events keep the ids of an export, and its only value.
const IDS: (&str, &str) = ("ids", "keep");
/// The supported codings of `Content-Encoding`.
pub const ENCODINGS: &str = "gzip, zstd, identity";

/// The parsed headers of an ingest request.
#[derive(Clone, Copy, Debug)]
pub struct IngestHeaders<'a> {
    pub format: BodyFormat,
    pub coding: ContentCoding,
    pub key: Option<HeaderKey<'a>>,
    /// The level that the header `Durability` requests.
    pub durability: Option<Durability>,
    /// The services that the token may write, sorted by bytes. None: all.
    pub services: Option<&'a [Box<str>]>,
    /// Whether an event keeps the id that it has in the body, as in an export.
    pub keeps_ids: bool,
}

/// The headers are invalid or request something unsupported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseIngestHeadersError {
    #[error("the header Content-Type is missing; it must be one of {TYPES}")]
    MissingContentType,
    #[error("the content type {0:?} is not supported; it must be one of {TYPES}, in UTF-8")]
    UnsupportedContentType(String),
    #[error(
        "a body of the content type text/plain must be JSON in UTF-8, one event or an array of events; the types \
         are {TYPES}"
    )]
    TextIsNotJson,
    #[error("the content encoding {0:?} is not supported; it must be one of {ENCODINGS}")]
    UnsupportedEncoding(String),
    #[error("the content encoding lists more than one coding; a body may be compressed at most once")]
    MultipleEncodings,
    #[error("must occur once and be 1 to {} visible ASCII characters", crate::event::KEY_BYTES_MAX)]
    InvalidKey,
    #[error("{0:?} is not keep, the only value of the parameter ids")]
    InvalidIds(String),
    #[error("{name} {detail}")]
    InvalidParameter { name: &'static str, detail: String },
    /// A header of the request in another format.
    #[error("{name} {detail}")]
    InvalidHeader { name: &'static str, detail: String },
    #[error("the content type {actual:?} is not supported here; it must be one of {expected}")]
    UnsupportedInputType { actual: String, expected: &'static str },
    #[error("{0:?} is not one of memory, written, synced")]
    InvalidDurability(String),
}

impl<'a> IngestHeaders<'a> {
    pub fn parse(headers: Headers<'a>) -> Result<Self, ParseIngestHeadersError> {
        let coding = ContentCoding::from_headers(headers)?;
        Self::parse_with(coding, BodyFormat::from_headers(headers)?, headers)
    }

    /// Parses the headers of a request with a body in another format, which may imply the coding.
    pub(super) fn parse_as(
        format: BodyFormat,
        implied: Option<ContentCoding>,
        headers: Headers<'a>,
    ) -> Result<Self, ParseIngestHeadersError> {
        let coding = implied.map_or_else(|| ContentCoding::from_headers(headers), Ok)?;
        Self::parse_with(coding, format, headers)
    }

    #[inline]
    fn parse_with(
        coding: ContentCoding,
        format: BodyFormat,
        headers: Headers<'a>,
    ) -> Result<Self, ParseIngestHeadersError> {
        let key = HeaderKey::from_headers(headers).map_err(|_bad_key| ParseIngestHeadersError::InvalidKey)?;
        let durability = match headers.get(DURABILITY) {
            Some(value) => Some(
                Durability::parse(value)
                    .ok_or_else(|| ParseIngestHeadersError::InvalidDurability(truncated_echo(value)))?,
            ),
            None => None,
        };
        Ok(Self { format, coding, key, durability, services: None, keeps_ids: false })
    }
}

impl IngestHeaders<'_> {
    /// The format of the body, for the metrics.
    pub fn input(&self) -> EventInput {
        match self.format {
            BodyFormat::Json | BodyFormat::Ndjson | BodyFormat::Text => EventInput::Events,
            BodyFormat::Records(input) => input,
        }
    }
}

/// Parses the query of `POST /events`: whether events keep the ids of an export. Other parameters
/// are ignored.
pub fn keeps_ids(query: &str) -> Result<bool, ParseIngestHeadersError> {
    let mut keeps = false;
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name == IDS.0 {
            if value != IDS.1 {
                return Err(ParseIngestHeadersError::InvalidIds(truncated_echo(value.as_bytes())));
            }
            keeps = true;
        }
    }
    Ok(keeps)
}

/// Parsed headers that outlive the turn of their request, so that a body decoded in slices parses
/// them once.
#[derive(Clone, Debug)]
pub struct RetainedHeaders {
    format: BodyFormat,
    coding: ContentCoding,
    key: Option<Box<[u8]>>,
    durability: Option<Durability>,
    keeps_ids: bool,
}

impl RetainedHeaders {
    pub fn new(headers: &IngestHeaders<'_>) -> Self {
        let &IngestHeaders { format, coding, key, durability, services: _, keeps_ids } = headers;
        Self { format, coding, key: key.map(|key| key.bytes().into()), durability, keeps_ids }
    }

    pub fn borrow<'a>(&'a self, services: Option<&'a [Box<str>]>) -> IngestHeaders<'a> {
        let key = self.key.as_deref().map(HeaderKey::from_validated);
        let Self { format, coding, durability, keeps_ids, .. } = *self;
        IngestHeaders { format, coding, key, durability, services, keeps_ids }
    }
}

impl ParseIngestHeadersError {
    pub fn write_response(&self, response: &mut Response) {
        match self {
            Self::MissingContentType | Self::UnsupportedContentType(_) | Self::TextIsNotJson => {
                response.header("Accept", TYPES);
                response.header("Accept-Post", TYPES);
                problem::write(response, ProblemKind::UnsupportedType, &self.to_string());
            }
            Self::UnsupportedEncoding(_) | Self::MultipleEncodings => {
                response.header("Accept-Encoding", ENCODINGS);
                problem::write(response, ProblemKind::UnsupportedEncoding, &self.to_string());
            }
            Self::InvalidKey => self.write_invalid(HeaderKey::NAME, "a header is not valid", response),
            Self::InvalidDurability(_) => self.write_invalid(DURABILITY, "a header is not valid", response),
            Self::InvalidIds(_) => self.write_invalid(IDS.0, "a parameter is not valid", response),
            Self::InvalidParameter { name, .. } => {
                self.write_invalid(name, "a parameter is not valid", response);
            }
            Self::InvalidHeader { name, .. } => self.write_invalid(name, "a header is not valid", response),
            Self::UnsupportedInputType { expected, .. } => {
                response.header("Accept-Post", expected);
                problem::write(response, ProblemKind::UnsupportedType, &self.to_string());
            }
        }
    }

    fn write_invalid(&self, field: &'static str, detail: &str, response: &mut Response) {
        let mut errors = FieldErrors::default();
        errors.push(|| FieldError { index: None, field: field.into(), detail: self.to_string() });
        problem::write_invalid(response, detail, &errors);
    }
}

impl BodyFormat {
    fn from_headers(headers: Headers<'_>) -> Result<Self, ParseIngestHeadersError> {
        let value = headers.get("Content-Type").ok_or(ParseIngestHeadersError::MissingContentType)?;
        if value == b"application/json" {
            return Ok(Self::Json);
        }
        Self::parse_media_type(value)
            .ok_or_else(|| ParseIngestHeadersError::UnsupportedContentType(truncated_echo(value)))
    }

    /// Parses a media type. A `charset` parameter must be UTF-8, the only encoding of JSON
    /// (RFC 8259, 8.1); other parameters are ignored.
    fn parse_media_type(value: &[u8]) -> Option<Self> {
        let value = str::from_utf8(value).ok()?;
        let mut parts = value.split(';').map(str::trim);
        let name = parts.next()?;
        let is = |expected: &&str| name.eq_ignore_ascii_case(expected);
        let format = if is(&"application/json") {
            Self::Json
        } else if NDJSON_TYPES.iter().any(is) {
            Self::Ndjson
        } else if is(&"text/plain") {
            Self::Text
        } else {
            return None;
        };
        let utf8 = parts.filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
            !name.eq_ignore_ascii_case("charset") || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        });
        utf8.then_some(format)
    }
}

impl ContentCoding {
    /// Parses `Content-Encoding`: a list of codings in the order of their application. The header
    /// may occur more than once.
    pub fn from_headers(headers: Headers<'_>) -> Result<Self, ParseIngestHeadersError> {
        let mut coding = Self::Identity;
        for name in headers.all("Content-Encoding").flat_map(|value| value.split(|byte| *byte == b',')) {
            let name = name.trim_ascii();
            let is = |expected: &str| name.eq_ignore_ascii_case(expected.as_bytes());
            let found = match () {
                // Empty list elements are ignored (RFC 9110, 5.6.1.2).
                () if name.is_empty() || is("identity") => continue,
                () if is("gzip") || is("x-gzip") => Self::Gzip,
                () if is("zstd") => Self::Zstd,
                () => return Err(ParseIngestHeadersError::UnsupportedEncoding(truncated_echo(name))),
            };
            if coding != Self::Identity {
                return Err(ParseIngestHeadersError::MultipleEncodings);
            }
            coding = found;
        }
        Ok(coding)
    }
}

pub(super) fn truncated_echo(value: &[u8]) -> String {
    text::truncate(&String::from_utf8_lossy(value), ECHO_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[(&str, &str)], expected: Result<(BodyFormat, Option<&str>), u16>) {
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        let actual = IngestHeaders::parse(Headers(&headers)).map_err(|error| {
            let mut response = Response::default();
            error.write_response(&mut response);
            assert_eq!(response.content_type, problem::CONTENT_TYPE);
            assert!(response.body.len() < 600, "echoed values are truncated");
            response.status
        });
        let actual = actual
            .map(|headers| (headers.format, headers.key.map(|key| str::from_utf8(key.bytes()).unwrap())));
        assert_eq!(actual, expected);
    }

    #[test]
    fn content_type_selects_the_body_format() {
        for json in [
            "application/json",
            "APPLICATION/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            "application/json; profile=x",
        ] {
            check(&[("content-type", json)], Ok((BodyFormat::Json, None)));
        }
        for lines in ["application/x-ndjson", "application/ndjson", "application/jsonl; charset=utf-8"] {
            check(&[("Content-Type", lines)], Ok((BodyFormat::Ndjson, None)));
        }
        for text in ["text/plain", "text/plain;charset=UTF-8", "TEXT/plain; charset=utf-8; format=flowed"] {
            check(&[("Content-Type", text)], Ok((BodyFormat::Text, None)));
        }
        let long = "x".repeat(5000);
        for other in [
            "",
            "text/html",
            "text/plain; charset=latin1",
            "application/json; charset=latin1",
            "application/jsonp",
            &long,
            "\u{ff}",
        ] {
            check(&[("Content-Type", other)], Err(415));
        }
        check(&[], Err(415));
    }

    #[test]
    fn content_encoding_names_at_most_one_coding() {
        #[track_caller]
        fn check(values: &[&str], expected: Option<ContentCoding>) {
            let headers: Vec<_> = values
                .iter()
                .map(|value| httparse::Header { name: "content-encoding", value: value.as_bytes() })
                .collect();
            let actual = ContentCoding::from_headers(Headers(&headers));
            assert_eq!(actual.as_ref().ok(), expected.as_ref(), "{values:?}");
            if let Err(error) = actual {
                let mut response = Response::default();
                error.write_response(&mut response);
                assert_eq!(response.status, 415);
                assert_eq!(response.headers, b"Accept-Encoding: gzip, zstd, identity\r\n");
            }
        }
        for nothing in [&[][..], &[""], &["identity"], &["Identity, identity,"], &[",", ""]] {
            check(nothing, Some(ContentCoding::Identity));
        }
        check(&["gzip"], Some(ContentCoding::Gzip));
        check(&["x-GZIP"], Some(ContentCoding::Gzip));
        check(&["gzip, identity"], Some(ContentCoding::Gzip));
        check(&["identity", "zstd"], Some(ContentCoding::Zstd));
        for other in
            [&["br"][..], &["deflate"], &["gzip;q=1"], &["gzip, gzip"], &["zstd", "gzip"], &["\u{ff}"]]
        {
            check(other, None);
        }
    }

    #[test]
    fn durability_header_is_parsed_and_validated() {
        let read = |level: &str| {
            let headers = [("Content-Type", "application/json"), ("durability", level)];
            let headers = headers.map(|(name, value)| httparse::Header { name, value: value.as_bytes() });
            IngestHeaders::parse(Headers(&headers)).map(|headers| headers.durability)
        };
        assert_eq!(read("Synced"), Ok(Some(Durability::Synced)));
        assert_eq!(read("fsync"), Err(ParseIngestHeadersError::InvalidDurability("fsync".into())));
        check(&[("Content-Type", "application/json"), ("Durability", "")], Err(400));
    }

    #[test]
    fn idempotency_key_header_is_short_visible_ascii() {
        let json = ("Content-Type", "application/json");
        let longest = "k".repeat(128);
        for key in ["k", "a b", "\"8e03978e\"", &longest] {
            check(&[json, ("idempotency-key", key)], Ok((BodyFormat::Json, Some(key))));
        }
        for key in ["", " ", "\u{e9}", "a\u{7f}", "a\tb", &"k".repeat(129)] {
            check(&[json, ("Idempotency-Key", key)], Err(400));
        }
        check(&[json, ("Idempotency-Key", "a"), ("Idempotency-Key", "a")], Err(400));
    }
}
