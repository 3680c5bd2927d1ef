//! CORS (Fetch standard): the origins whose pages may read responses.
//! `Access-Control-Allow-Credentials` is never sent: tokens travel in `Authorization`, which a page
//! sets itself, and not in cookies.

use std::str::FromStr;

use crate::http::{Headers, Response};

/// Request headers that pages may send beside the safelisted ones, also if a preflight does not ask.
const ALLOWED_HEADERS: &str =
    "Authorization, Content-Type, Content-Encoding, Accept, Durability, Idempotency-Key";
/// Response headers that pages may read beside the safelisted ones.
const EXPOSED_HEADERS: &str = "Accept, Accept-Encoding, Accept-Post, Allow, Content-Encoding, Date, Durability, \
                               ETag, RateLimit, RateLimit-Policy, Retry-After, Vary, WWW-Authenticate";
/// Bytes of `Access-Control-Request-Headers` up to which it is read, and names that are read.
const REQUESTED_BYTES_MAX: usize = 2048;
const REQUESTED_NAMES_MAX: usize = 64;
/// Request headers that a page may not send, beside those that begin with one of
/// [`DENIED_PREFIXES`]. Browsers refuse most of them (Fetch standard, "forbidden request-header").
/// They belong to the connection, carry a browser's credentials, or name another client, method or
/// path than the request's own. `*` is a valid name, but would allow all others.
const DENIED_HEADERS: [&str; 33] = [
    "*",
    "accept-charset",
    "accept-encoding",
    "alt-used",
    "client-ip",
    "connection",
    "content-length",
    "cookie",
    "cookie2",
    "date",
    "dnt",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "origin",
    "referer",
    "set-cookie",
    "set-cookie2",
    "te",
    "trailer",
    "transfer-encoding",
    "true-client-ip",
    "upgrade",
    "via",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-real-ip",
];
const DENIED_PREFIXES: [&str; 4] = ["access-control-", "proxy-", "sec-", "x-forwarded-"];
/// `Access-Control-Max-Age`; the maximum that Chromium accepts.
const PREFLIGHT_MAX_AGE_S: u32 = 7200;

/// The origins that may read responses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    #[default]
    None,
    Any,
    Listed(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an origin; expected * or a list such as https://app.example, http://localhost:8080")]
pub struct ParseOriginsError(String);

impl FromStr for Origins {
    type Err = ParseOriginsError;

    fn from_str(list: &str) -> Result<Self, ParseOriginsError> {
        let words: Vec<&str> = list.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
        if words.is_empty() {
            return Ok(Self::None);
        }
        if words == ["*"] {
            return Ok(Self::Any);
        }
        match words.iter().find(|word| !is_origin(word)) {
            Some(other) => Err(ParseOriginsError((*other).to_owned())),
            None => Ok(Self::Listed(words.iter().map(|word| word.to_ascii_lowercase()).collect())),
        }
    }
}

/// Whether `word` is a scheme, a host and an optional port, without a path. `Origin` is compared
/// byte by byte.
fn is_origin(word: &str) -> bool {
    let Some((scheme, host)) = word.split_once("://") else { return false };
    let scheme_ok = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let host_ok = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    !scheme.is_empty() && scheme_ok && !host.is_empty() && host.bytes().all(host_ok)
}

impl Origins {
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    pub fn allows_any(&self) -> bool {
        *self == Self::Any
    }

    /// Whether the origin is allowed.
    pub fn allows(&self, origin: &[u8]) -> bool {
        match self {
            Self::None => false,
            Self::Any => true,
            Self::Listed(origins) => origins.iter().any(|known| known.as_bytes() == origin),
        }
    }

    /// Adds the CORS headers to a response. Returns whether the origin may read it.
    pub fn apply_cors(&self, headers: Headers<'_>, response: &mut Response) -> bool {
        match self {
            Self::None => false,
            Self::Any => {
                response.vary("Origin");
                if headers.get("Origin").is_none() {
                    return false;
                }
                response.header("Access-Control-Allow-Origin", "*");
                response.header("Access-Control-Expose-Headers", EXPOSED_HEADERS);
                true
            }
            Self::Listed(origins) => {
                // Also without `Origin`: a cache must not serve that response to a page.
                response.vary("Origin");
                let origin = headers.get("Origin").and_then(|origin| str::from_utf8(origin).ok());
                let Some(origin) = origin.filter(|origin| origins.iter().any(|known| known == origin)) else {
                    return false;
                };
                response.header("Access-Control-Allow-Origin", origin);
                response.header("Access-Control-Expose-Headers", EXPOSED_HEADERS);
                true
            }
        }
    }

    /// Adds the headers of a preflight response. `is_allowed` is the result of
    /// [`Origins::apply_cors`]; `allow` lists the path's methods.
    ///
    /// A traced page sends `traceparent`, `baggage` and others by itself, so every header that the
    /// preflight asks for is allowed unless it is denied: an allowed origin is trusted to send any
    /// request that this server understands.
    pub fn preflight(is_allowed: bool, headers: Headers<'_>, allow: &'static str, response: &mut Response) {
        if !is_allowed {
            return;
        }
        response.vary("Access-Control-Request-Method");
        response.vary("Access-Control-Request-Headers");
        if headers.get("Access-Control-Request-Method").is_some() {
            response.header("Access-Control-Allow-Methods", allow);
            response.header("Access-Control-Allow-Headers", allowed_headers(headers));
            response.header("Access-Control-Max-Age", PREFLIGHT_MAX_AGE_S);
        }
    }
}

/// [`ALLOWED_HEADERS`] and those that the preflight asks for and that are not denied. The bounds limit
/// the work on an acceptor; a longer list is ignored.
fn allowed_headers(headers: Headers<'_>) -> String {
    let mut allowed = ALLOWED_HEADERS.to_owned();
    let requested = || headers.all("Access-Control-Request-Headers");
    if requested().map(<[u8]>::len).sum::<usize>() > REQUESTED_BYTES_MAX {
        return allowed;
    }
    let names = requested().flat_map(|list| list.split(|byte| *byte == b','));
    for name in names.take(REQUESTED_NAMES_MAX) {
        let Ok(name) = str::from_utf8(name.trim_ascii()) else { continue };
        let is_listed = |allowed: &str| allowed.split(", ").any(|listed| listed.eq_ignore_ascii_case(name));
        if is_token(name) && !is_denied(name) && !is_listed(&allowed) {
            allowed += ", ";
            allowed += name;
        }
    }
    allowed
}

/// Whether `name` is a header name (RFC 9110, 5.6.2).
fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

fn is_denied(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    DENIED_HEADERS.contains(&name.as_str()) || DENIED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(origins: &str, origin: Option<&str>, wanted: &str) {
        let headers: Vec<_> = origin
            .iter()
            .map(|origin| httparse::Header { name: "origin", value: origin.as_bytes() })
            .collect();
        let mut response = Response::default();
        let is_allowed = origins.parse::<Origins>().unwrap().apply_cors(Headers(&headers), &mut response);
        let lines = String::from_utf8(response.headers).unwrap();
        let lines: Vec<&str> =
            lines.lines().filter(|line| !line.starts_with("Access-Control-Expose")).collect();
        assert_eq!(lines.join("|"), wanted);
        assert_eq!(is_allowed, wanted.contains("Allow-Origin"));
    }

    #[test]
    fn cors_allows_only_listed_origins() {
        const LIST: &str = "https://a.example, http://localhost:8080";
        check("", Some("https://a.example"), "");
        check("*", Some("https://a.example"), "Vary: Origin|Access-Control-Allow-Origin: *");
        check("*", None, "Vary: Origin");
        check(LIST, None, "Vary: Origin");
        check(LIST, Some("https://a.example"), "Vary: Origin|Access-Control-Allow-Origin: https://a.example");
        check(
            LIST,
            Some("http://localhost:8080"),
            "Vary: Origin|Access-Control-Allow-Origin: http://localhost:8080",
        );
        for other in
            ["https://a.example.evil", "http://a.example", "https://a.example:443", "null", "", "\u{ff}"]
        {
            check(LIST, Some(other), "Vary: Origin");
        }
        check(
            "HTTPS://A.example",
            Some("https://a.example"),
            "Vary: Origin|Access-Control-Allow-Origin: https://a.example",
        );
    }

    #[track_caller]
    fn check_requested(requested: &[&str], allowed: &[&str]) {
        let mut fields = vec![httparse::Header { name: "Access-Control-Request-Method", value: b"POST" }];
        fields.extend(
            requested.iter().map(|list| httparse::Header {
                name: "access-control-request-headers",
                value: list.as_bytes(),
            }),
        );
        let mut response = Response::default();
        Origins::preflight(true, Headers(&fields), "POST", &mut response);
        let lines = String::from_utf8(response.headers).unwrap();
        let line = lines.lines().find_map(|line| line.strip_prefix("Access-Control-Allow-Headers: "));
        let added = line.and_then(|line| line.strip_prefix(ALLOWED_HEADERS)).unwrap();
        assert_eq!(added.split(", ").skip(1).collect::<Vec<_>>(), allowed, "{requested:?}");
        assert!(
            lines.contains("Vary: Access-Control-Request-Method, Access-Control-Request-Headers\r\n"),
            "{lines}"
        );
    }

    #[test]
    fn preflight_allows_requested_headers_that_are_not_denied() {
        check_requested(&[], &[]);
        check_requested(
            &["traceparent,tracestate,baggage,sentry-trace"],
            &["traceparent", "tracestate", "baggage", "sentry-trace"],
        );
        check_requested(
            &["X-B3-TraceId, x-datadog-origin", "b3"],
            &["X-B3-TraceId", "x-datadog-origin", "b3"],
        );
        check_requested(&["content-type, IDEMPOTENCY-KEY, a, A, a"], &["a"]);
        for denied in DENIED_HEADERS {
            check_requested(&[&denied.to_uppercase(), "b"], &["b"]);
        }
        check_requested(&["Sec-Fetch-Mode, proxy-authorization, x-forwarded-for, access-control-x"], &[]);
        check_requested(&["x-forwarded, second, proxyx"], &["x-forwarded", "second", "proxyx"]);
        // Not header names.
        check_requested(&["a b, \"c\", d\u{e4}, e:, , f/g,h"], &["h"]);
        let longest = "x".repeat(REQUESTED_BYTES_MAX);
        check_requested(&[&longest], &[&longest]);
        check_requested(&[&longest, "y"], &[]);
        let names: Vec<String> = (0..=REQUESTED_NAMES_MAX).map(|nth| format!("n{nth}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        check_requested(&[&names.join(",")], &names[..REQUESTED_NAMES_MAX]);
    }

    /// Header lines that no page needs to read: those that browsers read themselves, and safelisted
    /// ones (Fetch standard, "CORS-safelisted response-header").
    const UNEXPOSED: [&str; 13] = [
        // For proxies.
        "X-Accel-Buffering",
        // For senders of CloudEvents.
        "WebHook-Allowed-Origin",
        "WebHook-Allowed-Rate",
        "Access-Control-Allow-Headers",
        "Access-Control-Allow-Methods",
        "Access-Control-Allow-Origin",
        "Access-Control-Expose-Headers",
        "Access-Control-Max-Age",
        "Cache-Control",
        "Content-Security-Policy",
        "Content-Type",
        "Referrer-Policy",
        "X-Content-Type-Options",
    ];

    /// The names in `response.header("NAME", …)` below `directory`.
    fn written_headers(directory: &std::path::Path, names: &mut std::collections::BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                written_headers(&path, names);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                let shipped = source.split("#[cfg(test)]").next().unwrap();
                for call in shipped.split("response.header(").skip(1) {
                    if let Some((name, _)) =
                        call.trim_start().strip_prefix('"').and_then(|call| call.split_once('"'))
                    {
                        names.insert(name.to_owned());
                    }
                }
            }
        }
    }

    #[test]
    fn pages_can_read_every_header_that_the_server_writes() {
        let mut names = std::collections::BTreeSet::from(["Vary".to_owned(), "Date".to_owned()]);
        written_headers(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
        assert!(names.contains("Durability") && names.contains("Retry-After"), "{names:?}");
        let exposed: Vec<&str> = EXPOSED_HEADERS.split(", ").collect();
        for name in &names {
            let is_exposed = exposed.contains(&name.as_str());
            assert_ne!(is_exposed, UNEXPOSED.contains(&name.as_str()), "{name}");
        }
        for name in exposed {
            assert!(names.contains(name), "no response has {name}");
        }
    }

    #[test]
    fn origin_list_accepts_scheme_host_and_port_only() {
        for good in ["", " ,", "*", " * ", "https://a", "http://[::1]:80", "chrome-extension://abc"] {
            assert!(good.parse::<Origins>().is_ok(), "{good}");
        }
        for bad in [
            "a.example",
            "https://",
            "https://a/",
            "https://a/b",
            "*,https://a",
            "https://*.a",
            "https://a b",
            "null",
        ] {
            assert!(bad.parse::<Origins>().is_err(), "{bad}");
        }
    }
}
