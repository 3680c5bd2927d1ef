//! Transcodes Loki's `PushRequest` from protobuf to the JSON of the same push, so that both have one
//! mapping. No recursion; it works in slices.
//!
//! U+FFFD replaces NUL and invalid UTF-8. The labels of a stream must stand before its entries, as
//! every encoder writes them.

use super::InvalidBodyError;
use crate::event::MESSAGE_BYTES_MAX;
use crate::http::problem::append_fmt;
use crate::json::text;
use crate::protobuf::{FieldRange, MessageReader, ParseProtobufError, read_field_at};

/// A longer line is rejected in any case; this much of it is transcoded.
const LINE_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;
/// The fixed cost of an entry, in bytes.
const ENTRY_COST_BYTES: usize = 64;

/// The body is no `PushRequest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum TranscodePushError {
    #[error("{0}")]
    Protobuf(#[from] ParseProtobufError),
    #[error("the labels of a stream are not of the form {{name=\"value\"}}")]
    Labels,
    #[error("the labels of a stream must stand before its entries")]
    LateLabels,
}

/// The state of transcoding one body.
///
/// Invariant: everything before `at` is in `out`.
#[derive(Debug)]
pub(super) struct PushTranscoder {
    out: Vec<u8>,
    at: usize,
    stream: Option<OpenStream>,
}

#[derive(Debug)]
struct OpenStream {
    at: usize,
    end: usize,
    /// Whether the labels are written, and with them the begin of the entries.
    has_entries: bool,
    labels: Option<(usize, usize)>,
}

impl Default for PushTranscoder {
    fn default() -> Self {
        Self { out: b"{\"streams\":[".to_vec(), at: 0, stream: None }
    }
}

impl PushTranscoder {
    /// The push in JSON.
    pub(super) fn transcoded(&self) -> &[u8] {
        &self.out
    }

    /// Transcodes the next slice. Returns whether the whole body is transcoded.
    pub(super) fn transcode_slice(&mut self, body: &[u8], budget: usize) -> Result<bool, InvalidBodyError> {
        let mut left = budget;
        while left > 0 {
            let before = self.out.len();
            let ended = self
                .step(body)
                .map_err(|error| InvalidBodyError(format!("not a PushRequest of Loki: {error}").into()))?;
            if ended {
                return Ok(true);
            }
            left = left.saturating_sub(self.out.len() - before + ENTRY_COST_BYTES);
        }
        Ok(false)
    }

    /// Transcodes one field of the push or of the open stream. Returns whether the body has ended.
    fn step(&mut self, body: &[u8]) -> Result<bool, TranscodePushError> {
        let Self { out, at, stream } = self;
        let Some(open) = stream else {
            match read_field_at(body, at, body.len())? {
                None => {
                    out.extend_from_slice(b"]}");
                    return Ok(true);
                }
                Some((1, FieldRange::Bytes(range))) => {
                    *stream = Some(OpenStream {
                        at: range.start,
                        end: range.end,
                        has_entries: false,
                        labels: None,
                    });
                }
                Some((1, FieldRange::Other)) => return Err(ParseProtobufError::WrongType.into()),
                Some(_) => {}
            }
            return Ok(false);
        };
        match read_field_at(body, &mut open.at, open.end)? {
            None => {
                if open.has_entries {
                    out.extend_from_slice(b"]}");
                }
                *stream = None;
            }
            Some((1, FieldRange::Bytes(_))) if open.has_entries => {
                return Err(TranscodePushError::LateLabels);
            }
            Some((1, FieldRange::Bytes(range))) => open.labels = Some((range.start, range.end)),
            Some((2, FieldRange::Bytes(range))) => {
                if open.has_entries {
                    out.push(b',');
                } else {
                    separate(out);
                    out.extend_from_slice(b"{\"stream\":{");
                    let labels = open.labels.map_or(&b""[..], |(start, end)| &body[start..end]);
                    write_labels(out, labels).ok_or(TranscodePushError::Labels)?;
                    out.extend_from_slice(b"},\"values\":[");
                    open.has_entries = true;
                }
                write_entry(out, &body[range])?;
            }
            Some((1 | 2, FieldRange::Other)) => return Err(ParseProtobufError::WrongType.into()),
            Some(_) => {}
        }
        Ok(false)
    }
}

/// Writes the comma before a further member or element.
fn separate(out: &mut Vec<u8>) {
    if !matches!(out.last(), Some(b'{' | b'[')) {
        out.push(b',');
    }
}

/// Writes an entry as `["NANOSECONDS","LINE",{STRUCTURED METADATA}]`.
fn write_entry(out: &mut Vec<u8>, entry: &[u8]) -> Result<(), ParseProtobufError> {
    let (mut time, mut line) = (&b""[..], &b""[..]);
    let mut reader = MessageReader::new(entry);
    while let Some((number, value)) = reader.next_field()? {
        match number {
            1 => time = value.bytes()?,
            2 => line = value.bytes()?,
            _ => {}
        }
    }
    let (mut seconds, mut nanos) = (0_i64, 0_i64);
    let mut reader = MessageReader::new(time);
    while let Some((number, value)) = reader.next_field()? {
        match number {
            1 => seconds = value.varint()?.cast_signed(),
            2 => nanos = value.varint()?.cast_signed(),
            _ => {}
        }
    }
    // The reader of the JSON rejects an entry whose time is out of range.
    let time = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    append_fmt(out, format_args!("[\"{time}\","));
    text::quote_lossy(out, &line[..line.len().min(LINE_BYTES_MAX)]);
    out.extend_from_slice(b",{");
    let mut reader = MessageReader::new(entry);
    while let Some((number, value)) = reader.next_field()? {
        if number != 3 {
            continue;
        }
        let (mut name, mut text) = (&b""[..], &b""[..]);
        let mut pair = MessageReader::new(value.bytes()?);
        while let Some((number, value)) = pair.next_field()? {
            match number {
                1 => name = value.bytes()?,
                2 => text = value.bytes()?,
                _ => {}
            }
        }
        separate(out);
        text::quote_lossy(out, name);
        out.push(b':');
        text::quote_lossy(out, text);
    }
    out.extend_from_slice(b"}]");
    Ok(())
}

/// Writes labels of the form `{name="value", ...}` as members. None if they have another form.
fn write_labels(out: &mut Vec<u8>, labels: &[u8]) -> Option<()> {
    let mut rest = labels.trim_ascii();
    if rest.is_empty() {
        return Some(());
    }
    rest = rest.strip_prefix(b"{")?.strip_suffix(b"}")?.trim_ascii();
    let mut value = Vec::new();
    while !rest.is_empty() {
        let equals = rest.iter().position(|byte| *byte == b'=')?;
        separate(out);
        text::quote_lossy(out, rest[..equals].trim_ascii());
        out.push(b':');
        value.clear();
        rest = unquote(&mut value, rest[equals + 1..].trim_ascii_start())?.trim_ascii_start();
        text::quote_lossy(out, &value);
        if !rest.is_empty() {
            rest = rest.strip_prefix(b",")?.trim_ascii_start();
        }
    }
    Some(())
}

/// Appends the string literal of Go at the start of `text`. Returns the text after it.
fn unquote<'a>(out: &mut Vec<u8>, text: &'a [u8]) -> Option<&'a [u8]> {
    if let Some(raw) = text.strip_prefix(b"`") {
        let end = raw.iter().position(|byte| *byte == b'`')?;
        out.extend_from_slice(&raw[..end]);
        return raw.get(end + 1..);
    }
    let mut rest = text.strip_prefix(b"\"")?;
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b'"' => return Some(rest),
            b'\\' => rest = unescape(out, rest)?,
            _ => out.push(byte),
        }
    }
}

/// Appends the character of an escape of Go, whose backslash is read.
fn unescape<'a>(out: &mut Vec<u8>, text: &'a [u8]) -> Option<&'a [u8]> {
    let (&kind, rest) = text.split_first()?;
    let number = |digits: &[u8], radix| {
        str::from_utf8(digits).ok().and_then(|digits| u32::from_str_radix(digits, radix).ok())
    };
    let plain = match kind {
        b'a' => 7,
        b'b' => 8,
        b't' => b'\t',
        b'n' => b'\n',
        b'v' => 11,
        b'f' => 12,
        b'r' => b'\r',
        b'\\' | b'"' | b'\'' => kind,
        b'x' => u8::try_from(number(rest.get(..2)?, 16)?).ok()?,
        b'0'..=b'7' => u8::try_from(number(text.get(..3)?, 8)?).ok()?,
        b'u' | b'U' => {
            let digits = if kind == b'u' { 4 } else { 8 };
            let char = char::from_u32(number(rest.get(..digits)?, 16)?)?;
            out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            return rest.get(digits..);
        }
        _ => return None,
    };
    out.push(plain);
    match kind {
        b'x' | b'0'..=b'7' => rest.get(2..),
        _ => Some(rest),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::protobuf::encode;

    fn message(fields: &[(u32, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, bytes) in fields {
            encode::bytes_field(&mut out, *number, bytes);
        }
        out
    }

    fn time(seconds: i64, nanos: i64) -> Vec<u8> {
        let mut out = Vec::new();
        encode::varint_field(&mut out, 1, seconds.cast_unsigned());
        encode::varint_field(&mut out, 2, nanos.cast_unsigned());
        out
    }

    fn transcode(body: &[u8], budget: usize) -> Result<Value, String> {
        let mut transcoder = PushTranscoder::default();
        while !transcoder.transcode_slice(body, budget).map_err(|error| error.to_string())? {}
        Ok(serde_json::from_slice(transcoder.transcoded()).unwrap())
    }

    #[test]
    fn push_becomes_the_same_push_in_json() {
        let pair = message(&[(1, b"trace"), (2, b"\xff\"")]);
        let first = message(&[(1, &time(1_795_435_200, 5)), (2, b"line \0\n"), (3, &pair), (3, &pair)]);
        let second = message(&[(2, b"two")]);
        let stream = message(&[(1, br#"{job="a", path="C:\\x\n\u00e9"}"#), (2, &first), (2, &second)]);
        let empty = message(&[(1, b"{}")]);
        let bare = message(&[(2, &second)]);
        let body = message(&[(1, &stream), (9, b"unknown"), (1, &empty), (1, &bare)]);
        let expected = json!({"streams": [
            {"stream": {"job": "a", "path": "C:\\x\n\u{e9}"}, "values": [
                ["1795435200000000005", "line \u{fffd}\n", {"trace": "\u{fffd}\""}],
                ["0", "two", {}],
            ]},
            {"stream": {}, "values": [["0", "two", {}]]},
        ]});
        for budget in [1, usize::MAX] {
            assert_eq!(transcode(&body, budget), Ok(expected.clone()));
        }
        assert_eq!(transcode(b"", 1), Ok(json!({"streams": []})));
    }

    #[test]
    fn labels_are_string_literals_of_go() {
        #[track_caller]
        fn check(labels: &str, expected: Option<&str>) {
            let mut out = b"{".to_vec();
            let written = write_labels(&mut out, labels.as_bytes());
            out.push(b'}');
            assert_eq!(written.map(|()| str::from_utf8(&out).unwrap()), expected, "{labels}");
        }
        check("", Some("{}"));
        check("{}", Some("{}"));
        check("{ a = \"b\" , }", Some(r#"{"a":"b"}"#));
        check("{a=`\\n`}", Some(r#"{"a":"\\n"}"#));
        check(r#"{a="\x41\101\a\U0001f600\'"}"#, Some("{\"a\":\"AA\\u0007\u{1f600}'\"}"));
        check(r#"{a="=,}"}"#, Some(r#"{"a":"=,}"}"#));
        for wrong in [
            "a=\"b\"",
            "{a}",
            "{a=b}",
            "{a=\"b}",
            "{a=\"\\q\"}",
            "{a=\"\\u12\"}",
            "{a=\"b\" c=\"d\"}",
            "{a=`b}",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn body_that_is_no_push_is_refused() {
        #[track_caller]
        fn check(body: &[u8], part: &str) {
            let error = transcode(body, usize::MAX).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        check(b"{}", "unknown wire type");
        check(&[0x0a, 9], "truncated");
        check(&[0x08, 9], "wrong type");
        check(&message(&[(1, &message(&[(1, b"job"), (2, b"")]))]), "form {name=");
        check(&message(&[(1, &message(&[(2, b""), (1, b"{}")]))]), "before its entries");
    }
}
