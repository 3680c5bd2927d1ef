//! What a request's headers say of its body: its form, its coding and the key it carries.

use super::idempotency::HeaderKey;
use crate::http::problem::{self, ECHO_BYTES_MAX, Errors, FieldError, Kind};
use crate::http::{Coding, Headers, Response};
use crate::journal::Level;
use crate::json::text;

/// How a body holds its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One event object, or an array of them.
    Json,
    /// An event object a line.
    Ndjson,
}

/// The header that asks for a level of durability, and that says which one holds.
const DURABILITY: &str = "Durability";
const TYPES: &str = "application/json, application/x-ndjson";
/// The codings of `Content-Encoding` that are decoded.
const ENCODINGS: &str = "gzip, zstd, identity";

/// A request for ingestion, its headers read.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub form: Form,
    pub coding: Coding,
    pub key: Option<HeaderKey<'a>>,
    /// What the header `Durability` asks for.
    pub durability: Option<Level>,
    /// The services that its sender may write, in the order of their bytes. None: all.
    pub services: Option<&'a [Box<str>]>,
}

/// Why the headers already refuse the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallRefused {
    #[error("the header Content-Type is missing; it must be one of {TYPES}")]
    NoType,
    #[error("the content type {0:?} is not supported; it must be one of {TYPES}, in UTF-8")]
    Type(String),
    #[error("the content encoding {0:?} is not supported; it must be one of {ENCODINGS}")]
    Encoding(String),
    #[error(
        "the content encoding is a list of more than one coding; a body is compressed once, or not at all"
    )]
    Encodings,
    #[error("must stand once and be 1 to {} visible ASCII characters", crate::event::KEY_BYTES_MAX)]
    Key,
    #[error("{0:?} is not one of memory, written, synced")]
    Durability(String),
}

impl<'a> Call<'a> {
    pub fn read(headers: Headers<'a>) -> Result<Self, CallRefused> {
        let coding = Coding::read(headers)?;
        let form = Form::read(headers)?;
        let key = HeaderKey::read(headers).map_err(|_bad_key| CallRefused::Key)?;
        let durability = match headers.get(DURABILITY) {
            Some(value) => Some(Level::parse(value).ok_or_else(|| CallRefused::Durability(echo(value)))?),
            None => None,
        };
        Ok(Self { form, coding, key, durability, services: None })
    }
}

impl CallRefused {
    pub fn answer(&self, response: &mut Response) {
        match self {
            Self::NoType | Self::Type(_) => {
                response.header("Accept-Post", TYPES);
                problem::answer(response, Kind::UnsupportedType, &self.to_string());
            }
            Self::Encoding(_) | Self::Encodings => {
                response.header("Accept-Encoding", ENCODINGS);
                problem::answer(response, Kind::UnsupportedEncoding, &self.to_string());
            }
            Self::Key | Self::Durability(_) => {
                let field = if *self == Self::Key { HeaderKey::NAME } else { DURABILITY };
                let mut errors = Errors::default();
                errors.push(|| FieldError { index: None, field: field.into(), detail: self.to_string() });
                problem::answer_invalid(response, "a header is not valid", &errors);
            }
        }
    }
}

impl Form {
    fn read(headers: Headers<'_>) -> Result<Self, CallRefused> {
        let value = headers.get("Content-Type").ok_or(CallRefused::NoType)?;
        if value == b"application/json" {
            return Ok(Self::Json);
        }
        Self::parse(value).ok_or_else(|| CallRefused::Type(echo(value)))
    }

    /// A media type with its parameters, of which only `charset=utf-8` matters: JSON has no other (RFC 8259, 8.1).
    fn parse(value: &[u8]) -> Option<Self> {
        let value = str::from_utf8(value).ok()?;
        let mut parts = value.split(';').map(str::trim);
        let name = parts.next()?;
        let is = |wanted: &&str| name.eq_ignore_ascii_case(wanted);
        let form = if is(&"application/json") {
            Self::Json
        } else if ["application/x-ndjson", "application/ndjson", "application/jsonl"].iter().any(is) {
            Self::Ndjson
        } else {
            return None;
        };
        let utf8 = parts.filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
            !name.eq_ignore_ascii_case("charset") || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        });
        utf8.then_some(form)
    }
}

impl Coding {
    /// `Content-Encoding` is a list, in the order in which the codings were put on, and may stand more than once.
    pub fn read(headers: Headers<'_>) -> Result<Self, CallRefused> {
        let mut coding = Self::Identity;
        for name in headers.all("Content-Encoding").flat_map(|value| value.split(|byte| *byte == b',')) {
            let name = name.trim_ascii();
            let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
            let found = match () {
                // An empty element of a list stands for nothing (RFC 9110, 5.6.1.2).
                () if name.is_empty() || is("identity") => continue,
                () if is("gzip") || is("x-gzip") => Self::Gzip,
                () if is("zstd") => Self::Zstd,
                () => return Err(CallRefused::Encoding(echo(name))),
            };
            if coding != Self::Identity {
                return Err(CallRefused::Encodings);
            }
            coding = found;
        }
        Ok(coding)
    }
}

fn echo(value: &[u8]) -> String {
    text::shorten(&String::from_utf8_lossy(value), ECHO_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[(&str, &str)], wanted: Result<(Form, Option<&str>), u16>) {
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        let got = Call::read(Headers(&headers)).map_err(|refused| {
            let mut response = Response::default();
            refused.answer(&mut response);
            assert_eq!(response.content_type, problem::CONTENT_TYPE);
            assert!(response.body.len() < 600, "an echo is short");
            response.status
        });
        let got = got.map(|call| (call.form, call.key.map(|key| str::from_utf8(key.bytes()).unwrap())));
        assert_eq!(got, wanted);
    }

    #[test]
    fn the_content_type_says_the_form() {
        for json in [
            "application/json",
            "APPLICATION/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            "application/json; profile=x",
        ] {
            check(&[("content-type", json)], Ok((Form::Json, None)));
        }
        for lines in ["application/x-ndjson", "application/ndjson", "application/jsonl; charset=utf-8"] {
            check(&[("Content-Type", lines)], Ok((Form::Ndjson, None)));
        }
        let long = "x".repeat(5000);
        for other in
            ["", "text/plain", "application/json; charset=latin1", "application/jsonp", &long, "\u{ff}"]
        {
            check(&[("Content-Type", other)], Err(415));
        }
        check(&[], Err(415));
    }

    #[test]
    fn a_body_is_compressed_once_or_not_at_all() {
        #[track_caller]
        fn check(values: &[&str], wanted: Option<Coding>) {
            let headers: Vec<_> = values
                .iter()
                .map(|value| httparse::Header { name: "content-encoding", value: value.as_bytes() })
                .collect();
            let got = Coding::read(Headers(&headers));
            assert_eq!(got.as_ref().ok(), wanted.as_ref(), "{values:?}");
            if let Err(refused) = got {
                let mut response = Response::default();
                refused.answer(&mut response);
                assert_eq!(response.status, 415);
                assert_eq!(response.headers, b"Accept-Encoding: gzip, zstd, identity\r\n");
            }
        }
        for nothing in [&[][..], &[""], &["identity"], &["Identity, identity,"], &[",", ""]] {
            check(nothing, Some(Coding::Identity));
        }
        check(&["gzip"], Some(Coding::Gzip));
        check(&["x-GZIP"], Some(Coding::Gzip));
        check(&["gzip, identity"], Some(Coding::Gzip));
        check(&["identity", "zstd"], Some(Coding::Zstd));
        for other in
            [&["br"][..], &["deflate"], &["gzip;q=1"], &["gzip, gzip"], &["zstd", "gzip"], &["\u{ff}"]]
        {
            check(other, None);
        }
    }

    #[test]
    fn a_level_of_durability_is_one_of_three() {
        let read = |level: &str| {
            let headers = [("Content-Type", "application/json"), ("durability", level)];
            let headers = headers.map(|(name, value)| httparse::Header { name, value: value.as_bytes() });
            Call::read(Headers(&headers)).map(|call| call.durability)
        };
        assert_eq!(read("Synced"), Ok(Some(Level::Synced)));
        assert_eq!(read("fsync"), Err(CallRefused::Durability("fsync".into())));
        check(&[("Content-Type", "application/json"), ("Durability", "")], Err(400));
    }

    #[test]
    fn a_header_key_is_short_visible_text() {
        let json = ("Content-Type", "application/json");
        let longest = "k".repeat(128);
        for key in ["k", "a b", "\"8e03978e\"", &longest] {
            check(&[json, ("idempotency-key", key)], Ok((Form::Json, Some(key))));
        }
        for key in ["", " ", "\u{e9}", "a\u{7f}", "a\tb", &"k".repeat(129)] {
            check(&[json, ("Idempotency-Key", key)], Err(400));
        }
        check(&[json, ("Idempotency-Key", "a"), ("Idempotency-Key", "a")], Err(400));
    }
}
