//! CORS (Fetch standard): the origins whose pages may read responses.
//! `Access-Control-Allow-Credentials` is never sent: tokens travel in `Authorization`, which a page
//! sets itself, and not in cookies.

use std::str::FromStr;

use crate::http::{Headers, Response};

/// Request headers that pages may send beside the safelisted ones.
const ALLOWED_HEADERS: &str =
    "Authorization, Content-Type, Content-Encoding, Accept, Durability, Idempotency-Key";
/// Response headers that pages may read beside the safelisted ones.
const EXPOSED_HEADERS: &str = "Accept-Encoding, Accept-Post, Allow, Date, Idempotency-Key, RateLimit, \
                               RateLimit-Policy, Retry-After, WWW-Authenticate";
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
    pub fn preflight(is_allowed: bool, headers: Headers<'_>, allow: &'static str, response: &mut Response) {
        if is_allowed && headers.get("Access-Control-Request-Method").is_some() {
            response.header("Access-Control-Allow-Methods", allow);
            response.header("Access-Control-Allow-Headers", ALLOWED_HEADERS);
            response.header("Access-Control-Max-Age", PREFLIGHT_MAX_AGE_S);
        }
    }
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
