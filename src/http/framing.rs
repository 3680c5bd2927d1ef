//! Where a request's header ends, what its body is, and whether it may be answered at all (RFC 9112).
//! Pure: bytes in, a verdict out. Knows nothing of sockets or time.
//!
//! **Invariant:** the verdict on a request depends on its bytes alone, never on how they were split on the way.
//! `httparse` reads from left to right, so that what it refuses in a part it refuses in the whole; all that is
//! checked here beyond its grammar is checked once the header is complete.

use std::mem::MaybeUninit;

use super::limits::Limits;
use super::refusal::Refusal;
use super::{Headers, Method, target};

/// Empty lines before a request that are skipped (RFC 9112, 2.2 asks for one).
const EMPTY_LINES_MAX: usize = 4;

/// How every TLS conversation begins, and no request.
const TLS_HANDSHAKE: u8 = 22;

/// Room for the header fields of one request.
pub(super) type Slots<'b> = [MaybeUninit<httparse::Header<'b>>; Limits::HEADERS_CAP];

/// Empty room, which costs nothing to make.
pub(super) fn slots<'b>() -> Slots<'b> {
    [const { MaybeUninit::uninit() }; Limits::HEADERS_CAP]
}

/// What is to be said of the bytes so far.
#[derive(Debug)]
pub(super) enum Verdict<'b, 'h> {
    /// They are the beginning of a request.
    NeedMore,
    /// They begin with a request that is not answered. Nothing after it may be read as another.
    Refuse(Refusal),
    /// They begin with a whole header.
    Head(Head<'b, 'h>),
}

/// The header of a request that may be answered.
#[derive(Debug)]
pub(super) struct Head<'b, 'h>
where
    'b: 'h,
{
    pub(super) method: Method,
    pub(super) path: &'b str,
    pub(super) query: &'b str,
    pub(super) headers: Headers<'h>,
    /// Bytes up to the body, empty lines before the request counted.
    pub(super) bytes: usize,
    pub(super) body: Body,
    /// HTTP/1.0.
    pub(super) old: bool,
    /// The client asks for the connection to stay open, or does not ask for its end.
    pub(super) keep_alive: bool,
    /// The client waits for a word before it sends the body.
    pub(super) expects_continue: bool,
}

/// What `Origin` says in a header that need be neither whole nor good: who is refused is to be able to read why.
#[cold]
pub(super) fn origin(bytes: &[u8]) -> Option<&[u8]> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').skip(1);
    let lines = lines.map_while(|line| line.strip_suffix(b"\r\n").filter(|line| !line.is_empty()));
    lines
        .filter_map(|line| line.split_first_chunk::<7>())
        .find_map(|(name, value)| name.eq_ignore_ascii_case(b"Origin:").then(|| value.trim_ascii()))
}

/// How the end of the body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// After so many bytes; 0 without a word about a body.
    Bytes(usize),
    Chunked,
}

/// Judges the beginning of `buffer`.
pub(super) fn judge<'b, 'h>(buffer: &'b [u8], slots: &'h mut Slots<'b>, limits: &Limits) -> Verdict<'b, 'h>
where
    'b: 'h,
{
    match try_judge(buffer, slots, limits) {
        Ok(Some(head)) => Verdict::Head(head),
        Ok(None) => Verdict::NeedMore,
        Err(refusal) => Verdict::Refuse(refusal),
    }
}

fn try_judge<'b, 'h>(
    buffer: &'b [u8],
    slots: &'h mut Slots<'b>,
    limits: &Limits,
) -> Result<Option<Head<'b, 'h>>, Refusal>
where
    'b: 'h,
{
    // The window, not the buffer, so that a header one byte too long is too long however it arrives.
    let window = &buffer[..buffer.len().min(limits.header_bytes_max)];
    let Some(skipped) = empty_lines(window)? else { return Ok(None) };
    let window = &window[skipped..];
    let full = skipped + window.len() >= limits.header_bytes_max;

    let mut request = httparse::Request::new(&mut []);
    let room = limits.headers_max.min(Limits::HEADERS_CAP);
    let bytes = match request.parse_with_uninit_headers(window, &mut slots[..room]) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if full => return Err(too_long(window)),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::Version) if !full && version_is_cut(window) => return Ok(None),
        Err(error) => return Err(refusal(error, window)),
    };
    // httparse takes a bare LF for a line's end. It takes CR only before LF: a CR for each line, or one is bare.
    let lines = request.headers.len() + 2;
    if count_cr(&window[..bytes]) != lines {
        return Err(Refusal::new(400, "a line ends with LF alone; CR LF is required"));
    }
    let (Some(method), Some(path), Some(minor)) = (request.method, request.path, request.version) else {
        unreachable!("BUG: a complete request has all three");
    };
    let old = minor == 0;
    let fields = Fields::gather(request.headers, old)?;
    if method == "CONNECT" {
        return Err(Refusal::new(501, "this is not a proxy: CONNECT is not implemented"));
    }
    let method = Method::parse(method);
    let (path, query) = target::parse(method, path)?;
    let body = fields.body(old, limits)?;
    let expects_continue = fields.expects_continue(old)?;
    Ok(Some(Head {
        method,
        path,
        query,
        headers: Headers(request.headers),
        bytes: skipped + bytes,
        body,
        old,
        keep_alive: !fields.close && (!old || fields.keep_alive),
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

/// How many bytes of empty lines stand before the request, or `None` while nothing else does.
fn empty_lines(window: &[u8]) -> Result<Option<usize>, Refusal> {
    let mut at = 0;
    loop {
        match window[at..] {
            [] | [b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] if at < 2 * EMPTY_LINES_MAX => at += 2,
            [TLS_HANDSHAKE, ..] => {
                return Err(Refusal::new(400, "this port speaks HTTP without TLS: use http://"));
            }
            [b'\r' | b'\n', ..] => {
                return Err(Refusal::new(400, "the request does not begin with a request line"));
            }
            [..] => return Ok(Some(at)),
        }
    }
}

fn too_long(window: &[u8]) -> Refusal {
    if window.contains(&b'\n') {
        Refusal::new(431, "the header is too long")
    } else {
        Refusal::new(414, "the request line is too long")
    }
}

/// Where the version should stand: after the second space.
fn version(window: &[u8]) -> &[u8] {
    let mut parts = window.splitn(3, |byte| *byte == b' ');
    parts.nth(2).unwrap_or_default()
}

/// Whether `found` agrees with `HTTP/` DIGIT `.` DIGIT as far as it goes.
fn is_version(found: &[u8]) -> bool {
    found.iter().zip(b"HTTP/0.0").all(|(found, wanted)| match wanted {
        b'0' => found.is_ascii_digit(),
        other => found == other,
    })
}

/// httparse refuses a version at its first odd byte; which refusal it is shows only in all eight.
fn version_is_cut(window: &[u8]) -> bool {
    let found = version(window);
    found.len() < 8 && is_version(found)
}

fn refusal(error: httparse::Error, window: &[u8]) -> Refusal {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => Refusal::new(431, "there are too many header fields"),
        Error::Version if is_version(version(window)) => {
            Refusal::new(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        }
        Error::Version | Error::Status => Refusal::new(400, "the version in the request line is not valid"),
        Error::Token => Refusal::new(400, "the request line is not valid"),
        Error::NewLine => Refusal::new(400, "a line does not end with CR LF"),
        Error::HeaderName => Refusal::new(
            400,
            "a header name is not valid (no white space before the colon, no folded lines, no control characters)",
        ),
        Error::HeaderValue => Refusal::new(400, "a header value holds a control character"),
    }
}

/// The header fields that decide about the framing.
#[derive(Debug, Default)]
pub(super) struct Fields<'b> {
    content_length: Option<&'b [u8]>,
    codings: Codings,
    expect: Option<&'b [u8]>,
    close: bool,
    keep_alive: bool,
}

/// What `Transfer-Encoding` says, over all its fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Codings {
    #[default]
    Absent,
    Chunked,
    /// Something else than `chunked` alone.
    Bad(Refusal),
}

impl<'b> Fields<'b> {
    pub(super) fn gather(headers: &[httparse::Header<'b>], old: bool) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        let (mut hosts, mut lengths) = (0_u32, 0_u32);
        for header in headers {
            // The length tells most names apart without a look at the letters.
            match header.name.len() {
                4 if header.name.eq_ignore_ascii_case("host") => {
                    hosts += 1;
                    if !target::is_authority(header.value) {
                        return Err(Refusal::new(400, "Host is not valid"));
                    }
                }
                6 if header.name.eq_ignore_ascii_case("expect") => {
                    // A second Expect can only be one that is not met.
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
            return Err(Refusal::new(400, "Content-Length stands there twice"));
        }
        match hosts {
            0 if !old => Err(Refusal::new(400, "Host is missing")),
            0 | 1 => Ok(fields),
            2.. => Err(Refusal::new(400, "Host stands there twice")),
        }
    }

    pub(super) fn body(&self, old: bool, limits: &Limits) -> Result<Body, Refusal> {
        let Some(length) = self.content_length else {
            return match self.codings {
                Codings::Absent => Ok(Body::Bytes(0)),
                // A hop that does not know chunks may have passed it on unread (RFC 9112, 6.1).
                Codings::Chunked | Codings::Bad(_) if old => {
                    Err(Refusal::new(400, "HTTP/1.0 has no Transfer-Encoding"))
                }
                Codings::Chunked => Ok(Body::Chunked),
                Codings::Bad(refusal) => Err(refusal),
            };
        };
        if self.codings != Codings::Absent {
            return Err(Refusal::new(400, "Content-Length and Transfer-Encoding exclude each other"));
        }
        let length = decimal(length).ok_or(Refusal::new(400, "Content-Length is not a number"))?;
        match usize::try_from(length) {
            Ok(length) if length <= limits.body_bytes_max => Ok(Body::Bytes(length)),
            Ok(_) | Err(_) => Err(TOO_LARGE),
        }
    }

    fn expects_continue(&self, old: bool) -> Result<bool, Refusal> {
        match self.expect {
            None => Ok(false),
            // RFC 9110, 10.1.1: from HTTP/1.0 it is ignored.
            Some(_) if old => Ok(false),
            Some(value) if value.eq_ignore_ascii_case(b"100-continue") => Ok(true),
            Some(_) => Err(Refusal::new(417, "only 100-continue can be expected")),
        }
    }
}

pub(super) const TOO_LARGE: Refusal = Refusal::new(413, "the body is too large");

impl Codings {
    fn and(self, value: &[u8]) -> Self {
        let mut all = self;
        for coding in value.split(|byte| *byte == b',') {
            let chunked = coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
            all = match all {
                Self::Absent if chunked => Self::Chunked,
                Self::Absent if coding.trim_ascii().is_empty() => {
                    Self::Bad(Refusal::new(400, "Transfer-Encoding is empty"))
                }
                Self::Absent => {
                    Self::Bad(Refusal::new(501, "the only transfer coding known here is chunked"))
                }
                Self::Chunked => Self::Bad(Refusal::new(400, "chunked must be the last transfer coding")),
                Self::Bad(refusal) => Self::Bad(refusal),
            };
        }
        all
    }
}

/// Digits only: no sign, no list, no white space; `None` also above 2^64.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}
