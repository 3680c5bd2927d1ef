//! Parses the header section of a request and determines the framing of its body (RFC 9112). Pure
//! functions; must not depend on sockets or time.
//!
//! **Invariant:** the outcome depends only on the bytes of the request, never on how reads split
//! them. `httparse` parses from left to right, so that it refuses the whole input if it refuses a
//! prefix; all further checks run on a complete header.

use std::mem::MaybeUninit;

use super::chunked::is_token;
use super::limits::HttpLimits;
use super::refusal::Refusal;
use super::{Headers, Method, target};

/// Empty lines before a request that are skipped (RFC 9112, 2.2 asks for one).
const EMPTY_LINES_MAX: usize = 4;

/// The first byte of a TLS handshake record, which begins no HTTP request.
const TLS_HANDSHAKE: u8 = 22;

/// Storage for the header fields of one request.
pub(super) type HeaderSlots<'b> = [MaybeUninit<httparse::Header<'b>>; HttpLimits::HEADER_SLOTS];

/// Returns uninitialized storage, at no cost.
pub(super) fn header_slots<'b>() -> HeaderSlots<'b> {
    [const { MaybeUninit::uninit() }; HttpLimits::HEADER_SLOTS]
}

/// The outcome of parsing the input so far.
#[derive(Debug)]
pub(super) enum ParseOutcome<'b, 'h> {
    /// The header section is incomplete.
    NeedMore,
    /// The request is refused. The bytes after it must not be parsed as another request.
    Refuse(Refusal),
    /// The header section is complete and valid.
    Head(RequestHead<'b, 'h>),
}

/// The header of a valid request.
#[derive(Debug)]
pub(super) struct RequestHead<'b, 'h>
where
    'b: 'h,
{
    pub(super) method: Method,
    pub(super) path: &'b str,
    pub(super) query: &'b str,
    pub(super) headers: Headers<'h>,
    /// Bytes before the body, including empty lines before the request.
    pub(super) bytes: usize,
    pub(super) body: BodyFraming,
    /// The request is HTTP/1.0.
    pub(super) is_http_1_0: bool,
    /// The connection is persistent (RFC 9112, 9.3).
    pub(super) keep_alive: bool,
    /// The client waits for a 100 before it sends the body.
    pub(super) expects_continue: bool,
}

/// Returns the `Origin` of a header that may be incomplete or invalid, so that CORS can be applied
/// to a refusal and the script that sent the request can read the reason.
#[cold]
pub(super) fn origin_header(bytes: &[u8]) -> Option<&[u8]> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').skip(1);
    let lines = lines.map_while(|line| line.strip_suffix(b"\r\n").filter(|line| !line.is_empty()));
    lines
        .filter_map(|line| line.split_first_chunk::<7>())
        .find_map(|(name, value)| name.eq_ignore_ascii_case(b"Origin:").then(|| value.trim_ascii()))
}

/// How the length of the body is determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFraming {
    /// By `Content-Length`; 0 without it.
    Length(usize),
    Chunked,
}

/// Parses the header at the start of `buffer`.
pub(super) fn parse_head<'b, 'h>(
    buffer: &'b [u8],
    slots: &'h mut HeaderSlots<'b>,
    limits: &HttpLimits,
) -> ParseOutcome<'b, 'h>
where
    'b: 'h,
{
    match try_parse_head(buffer, slots, limits) {
        Ok(Some(head)) => ParseOutcome::Head(head),
        Ok(None) => ParseOutcome::NeedMore,
        Err(refusal) => ParseOutcome::Refuse(refusal),
    }
}

fn try_parse_head<'b, 'h>(
    buffer: &'b [u8],
    slots: &'h mut HeaderSlots<'b>,
    limits: &HttpLimits,
) -> Result<Option<RequestHead<'b, 'h>>, Refusal>
where
    'b: 'h,
{
    // Limited to the window, so that the outcome for a header that is too long does not depend on
    // the reads.
    let window = &buffer[..buffer.len().min(limits.header_bytes_max)];
    let Some(skipped) = skip_empty_lines(window)? else { return Ok(None) };
    let window = &window[skipped..];
    let full = skipped + window.len() >= limits.header_bytes_max;

    let mut request = httparse::Request::new(&mut []);
    let room = limits.headers_max.min(HttpLimits::HEADER_SLOTS);
    let bytes = match request.parse_with_uninit_headers(window, &mut slots[..room]) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if full => return Err(header_too_long(window)),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::Version) if !full && is_partial_version(window) => return Ok(None),
        Err(error) => return Err(parse_refusal(error, window)),
    };
    // httparse accepts a bare LF as a line end, but a CR only before LF: if there are fewer CRs
    // than lines, an LF is bare.
    let lines = request.headers.len() + 2;
    if count_cr(&window[..bytes]) != lines {
        return Err(Refusal::new(400, "a line ends with LF alone; CR LF is required"));
    }
    let (Some(method), Some(path), Some(minor)) = (request.method, request.path, request.version) else {
        unreachable!("BUG: a complete request has all three");
    };
    let is_http_1_0 = minor == 0;
    let fields = FramingFields::collect(request.headers, is_http_1_0)?;
    if method == "CONNECT" {
        return Err(Refusal::new(501, "this is not a proxy: CONNECT is not implemented"));
    }
    let method = Method::parse(method);
    let (path, query) = target::parse(method, path)?;
    let body = fields.body_framing(is_http_1_0, limits)?;
    let expects_continue = fields.expects_continue(is_http_1_0)?;
    Ok(Some(RequestHead {
        method,
        path,
        query,
        headers: Headers(request.headers),
        bytes: skipped + bytes,
        body,
        is_http_1_0,
        keep_alive: !fields.close && (!is_http_1_0 || fields.keep_alive),
        expects_continue,
    }))
}

#[expect(
    clippy::naive_bytecount,
    reason = "a header is a few hundred bytes, which the compiler counts by 16"
)]
fn count_cr(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\r').count()
}

/// Returns the bytes of empty lines before the request, or `None` if nothing else has arrived.
fn skip_empty_lines(window: &[u8]) -> Result<Option<usize>, Refusal> {
    let mut at = 0;
    loop {
        match window[at..] {
            [] | [b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] if at < 2 * EMPTY_LINES_MAX => at += 2,
            [TLS_HANDSHAKE, ..] => {
                return Err(Refusal::new(400, "this port accepts HTTP without TLS: use http://"));
            }
            [b'\r' | b'\n', ..] => {
                return Err(Refusal::new(400, "the request does not begin with a request line"));
            }
            [..] => return Ok(Some(at)),
        }
    }
}

fn header_too_long(window: &[u8]) -> Refusal {
    if window.contains(&b'\n') {
        Refusal::new(431, "the header is too long")
    } else {
        Refusal::new(414, "the request line is too long")
    }
}

/// The bytes at the position of the version, after the second space.
fn version_bytes(window: &[u8]) -> &[u8] {
    let mut parts = window.splitn(3, |byte| *byte == b' ');
    parts.nth(2).unwrap_or_default()
}

/// Whether `found` is a prefix of `HTTP/` DIGIT `.` DIGIT, or begins with it.
fn is_version_prefix(found: &[u8]) -> bool {
    found.iter().zip(b"HTTP/0.0").all(|(found, wanted)| match wanted {
        b'0' => found.is_ascii_digit(),
        other => found == other,
    })
}

/// Whether the version is incomplete. httparse fails at its first unexpected byte, but the choice
/// between 400 and 505 needs all eight bytes.
fn is_partial_version(window: &[u8]) -> bool {
    let found = version_bytes(window);
    found.len() < 8 && is_version_prefix(found)
}

/// Whether the request line is valid up to the end of its target but for bytes above 0x7f, which
/// httparse accepts in UTF-8 only.
fn has_high_byte_in_target(window: &[u8]) -> bool {
    let mut parts = window.splitn(3, |byte| *byte == b' ');
    let (Some(method), Some(target), Some(_)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let is_method = !method.is_empty() && method.iter().all(|byte| is_token(*byte));
    let is_target = target.iter().all(|byte| matches!(byte, b'!'..=b'~' | 0x80..));
    is_method && is_target && !target.is_ascii()
}

fn parse_refusal(error: httparse::Error, window: &[u8]) -> Refusal {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => Refusal::new(431, "there are too many header fields"),
        Error::Version if is_version_prefix(version_bytes(window)) => {
            Refusal::new(505, "only HTTP/1.0 and HTTP/1.1 are supported")
        }
        Error::Version | Error::Status => Refusal::new(400, "the version in the request line is not valid"),
        Error::Token if has_high_byte_in_target(window) => target::NOT_ASCII,
        Error::Token => Refusal::new(400, "the request line is not valid"),
        Error::NewLine => Refusal::new(400, "a line does not end with CR LF"),
        Error::HeaderName => Refusal::new(
            400,
            "a header name is not valid (no whitespace before the colon, no folded lines, no control characters)",
        ),
        Error::HeaderValue => Refusal::new(400, "a header value contains a control character"),
    }
}

/// The header fields that determine the framing and the persistence of the connection.
#[derive(Debug, Default)]
pub(super) struct FramingFields<'b> {
    content_length: Option<&'b [u8]>,
    codings: TransferCodings,
    expect: Option<&'b [u8]>,
    close: bool,
    keep_alive: bool,
}

/// The combined value of all `Transfer-Encoding` fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TransferCodings {
    #[default]
    Absent,
    Chunked,
    /// Anything but `chunked` alone.
    Invalid(Refusal),
}

impl<'b> FramingFields<'b> {
    pub(super) fn collect(headers: &[httparse::Header<'b>], is_http_1_0: bool) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        let (mut hosts, mut lengths) = (0_u32, 0_u32);
        for header in headers {
            // Matching the length first avoids most comparisons.
            match header.name.len() {
                4 if header.name.eq_ignore_ascii_case("host") => {
                    hosts += 1;
                    if !target::is_authority(header.value) {
                        return Err(Refusal::new(400, "Host is not valid"));
                    }
                }
                6 if header.name.eq_ignore_ascii_case("expect") => {
                    // Two Expect fields cannot be met.
                    fields.expect = Some(if fields.expect.is_none() { header.value } else { b"twice" });
                }
                10 if header.name.eq_ignore_ascii_case("connection") => {
                    for option in header.value.split(|byte| *byte == b',') {
                        fields.close |= option.trim_ascii().eq_ignore_ascii_case(b"close");
                        fields.keep_alive |= option.trim_ascii().eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    lengths += 1;
                    fields.content_length = Some(header.value);
                }
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                    fields.codings = fields.codings.and(header.value);
                }
                _ => {}
            }
        }
        if lengths > 1 {
            return Err(Refusal::new(400, "Content-Length is given more than once"));
        }
        match hosts {
            0 if !is_http_1_0 => Err(Refusal::new(400, "Host is missing")),
            0 | 1 => Ok(fields),
            2.. => Err(Refusal::new(400, "Host is given more than once")),
        }
    }

    pub(super) fn body_framing(
        &self,
        is_http_1_0: bool,
        limits: &HttpLimits,
    ) -> Result<BodyFraming, Refusal> {
        let Some(length) = self.content_length else {
            return match self.codings {
                TransferCodings::Absent => Ok(BodyFraming::Length(0)),
                // An intermediary without support for the chunked coding may have forwarded it (RFC
                // 9112, 6.1).
                TransferCodings::Chunked | TransferCodings::Invalid(_) if is_http_1_0 => {
                    Err(Refusal::new(400, "HTTP/1.0 has no Transfer-Encoding"))
                }
                TransferCodings::Chunked => Ok(BodyFraming::Chunked),
                TransferCodings::Invalid(refusal) => Err(refusal),
            };
        };
        if self.codings != TransferCodings::Absent {
            return Err(Refusal::new(400, "Content-Length and Transfer-Encoding exclude each other"));
        }
        let length = decimal(length).ok_or(Refusal::new(400, "Content-Length is not a number"))?;
        match usize::try_from(length) {
            Ok(length) if length <= limits.body_bytes_max => Ok(BodyFraming::Length(length)),
            Ok(_) | Err(_) => Err(TOO_LARGE),
        }
    }

    fn expects_continue(&self, is_http_1_0: bool) -> Result<bool, Refusal> {
        match self.expect {
            None => Ok(false),
            // RFC 9110, 10.1.1: from HTTP/1.0 it is ignored.
            Some(_) if is_http_1_0 => Ok(false),
            Some(value) if value.eq_ignore_ascii_case(b"100-continue") => Ok(true),
            Some(_) => Err(Refusal::new(417, "100-continue is the only supported expectation")),
        }
    }
}

pub(super) const TOO_LARGE: Refusal = Refusal::new(413, "the body is too large");

impl TransferCodings {
    fn and(self, value: &[u8]) -> Self {
        let mut all = self;
        for coding in value.split(|byte| *byte == b',') {
            let chunked = coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
            all = match all {
                Self::Absent if chunked => Self::Chunked,
                Self::Absent if coding.trim_ascii().is_empty() => {
                    Self::Invalid(Refusal::new(400, "Transfer-Encoding is empty"))
                }
                Self::Absent => {
                    Self::Invalid(Refusal::new(501, "chunked is the only supported transfer coding"))
                }
                Self::Chunked => Self::Invalid(Refusal::new(400, "chunked must be the last transfer coding")),
                Self::Invalid(refusal) => Self::Invalid(refusal),
            };
        }
        all
    }
}

/// Parses digits only: no sign, list or whitespace. `None` also for 2^64 and above.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}
