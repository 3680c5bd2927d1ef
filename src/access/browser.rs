//! Refuses requests that a web page of another site makes a browser send. Some of them need no CORS
//! preflight, so that CORS alone does not prevent them.
//!
//! A server that is reachable from this machine only, without tokens, also checks `Host`: after DNS
//! rebinding a page's own host name leads to this server, and the browser takes both for the same
//! origin.

use std::net::IpAddr;

use super::Origins;
use crate::http::{Headers, Method};

/// The fields that a browser sets and a page cannot.
#[derive(Clone, Copy, Debug, Default)]
pub struct BrowserFields<'a> {
    host: Option<&'a [u8]>,
    origin: Option<&'a [u8]>,
    sec_fetch_site: Option<&'a [u8]>,
}

impl<'a> BrowserFields<'a> {
    /// Reads the fields in one pass. The first of several counts.
    pub fn read(headers: Headers<'a>) -> Self {
        let mut fields = Self::default();
        for header in headers.0 {
            let (field, name) = match header.name.len() {
                4 => (&mut fields.host, "host"),
                6 => (&mut fields.origin, "origin"),
                14 => (&mut fields.sec_fetch_site, "sec-fetch-site"),
                _ => continue,
            };
            if field.is_none() && header.name.eq_ignore_ascii_case(name) {
                *field = Some(header.value.trim_ascii());
            }
        }
        fields
    }

    pub fn host(&self) -> Option<&'a [u8]> {
        self.host
    }

    /// Whether a page of another origin, which is not one of `origins`, makes the browser change
    /// something. A request without these fields is not a browser's.
    pub fn is_cross_origin_change(&self, method: Method, origins: &Origins) -> bool {
        if matches!(method, Method::Get | Method::Head | Method::Options) {
            return false;
        }
        if self.origin.is_some_and(|origin| origins.allows(origin)) || origins.allows_any() {
            return false;
        }
        // The host name of this server may differ from `Host` behind a proxy, so the browser's own
        // comparison takes precedence.
        match (self.sec_fetch_site, self.origin) {
            (Some(site), _) => !matches!(site, b"same-origin" | b"none"),
            (None, Some(origin)) => !is_same_authority(origin, self.host),
            (None, None) => false,
        }
    }
}

/// Whether an origin has the host and port of `Host`. Its scheme is unknown behind a proxy, so the
/// default port of either scheme may be omitted.
fn is_same_authority(origin: &[u8], host: Option<&[u8]>) -> bool {
    let (Ok(origin), Some(Ok(host))) = (str::from_utf8(origin), host.map(str::from_utf8)) else {
        return false;
    };
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let name = |text: &str| text.strip_suffix(default_port).unwrap_or(text).to_ascii_lowercase();
    name(authority) == name(host)
}

/// Whether `Host` names this machine: a loopback address, `localhost` or a name below it, with any
/// port.
pub fn is_loopback_host(host: &[u8]) -> bool {
    let Ok(host) = str::from_utf8(host) else { return false };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') && (!name.contains(':') || name.ends_with(']')) => {
            (name, port)
        }
        Some(_) | None => (host, ""),
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let name = name.to_ascii_lowercase();
    // A name that ends with a dot is absolute.
    let name = name.strip_suffix('.').unwrap_or(&name);
    if name == "localhost" || name.ends_with(".localhost") {
        return true;
    }
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(origins: &str, fields: &[(&str, &str)], is_refused: bool) {
        let headers: Vec<_> =
            fields.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        let origins: Origins = origins.parse().unwrap();
        let fields = BrowserFields::read(Headers(&headers));
        for method in [Method::Post, Method::Put, Method::Delete, Method::Patch, Method::Other] {
            assert_eq!(fields.is_cross_origin_change(method, &origins), is_refused, "{headers:?}");
        }
        for method in [Method::Get, Method::Head, Method::Options] {
            assert!(!fields.is_cross_origin_change(method, &origins));
        }
    }

    #[test]
    fn a_change_by_a_page_of_another_origin_is_recognized() {
        const HOST: (&str, &str) = ("Host", "events.example");
        check("", &[HOST], false);
        check("", &[HOST, ("Origin", "https://events.example")], false);
        check("", &[HOST, ("ORIGIN", "http://Events.example:80")], false);
        check("", &[("Host", "events.example:443"), ("Origin", "https://events.example")], false);
        check("", &[("Host", "127.0.0.1:3000"), ("Origin", "http://127.0.0.1:3000")], false);
        for other in [
            "https://evil.example",
            "https://events.example.evil",
            "https://events.example:8443",
            "http://localhost:3000",
            "null",
            "",
            "\u{ff}",
            "ftp://events.example",
        ] {
            check("", &[HOST, ("Origin", other)], true);
            check("https://app.example", &[HOST, ("Origin", other)], true);
            check("*", &[HOST, ("Origin", other)], false);
        }
        check("https://app.example", &[HOST, ("Origin", "https://app.example")], false);
        check("", &[("Origin", "https://events.example")], true);
        // A proxy has changed `Host`; the browser knows the origin.
        check("", &[("Host", "backend"), ("Origin", "https://events.example")], true);
        check(
            "",
            &[("Host", "backend"), ("Origin", "https://events.example"), ("Sec-Fetch-Site", "same-origin")],
            false,
        );
        check("", &[HOST, ("Sec-Fetch-Site", "none")], false);
        check("", &[HOST, ("Sec-Fetch-Site", "cross-site")], true);
        check("", &[HOST, ("Sec-Fetch-Site", "same-site"), ("Origin", "https://events.example")], true);
        check(
            "https://app.example",
            &[HOST, ("Sec-Fetch-Site", "cross-site"), ("Origin", "https://app.example")],
            false,
        );
        check("*", &[HOST, ("Sec-Fetch-Site", "cross-site")], false);
    }

    #[test]
    fn hosts_of_this_machine_are_recognized() {
        for own in [
            "localhost",
            "LOCALHOST:3000",
            "localhost.",
            "a.localhost:80",
            "127.0.0.1",
            "127.0.0.1:3000",
            "127.8.9.1:1",
            "[::1]",
            "[::1]:3000",
            "::1",
            "[::ffff:127.0.0.1]:5",
        ] {
            assert!(is_loopback_host(own.as_bytes()), "{own}");
        }
        for other in [
            "",
            ":3000",
            "evil.example",
            "localhost.evil.example:3000",
            "evillocalhost",
            "127.0.0.1.evil.example",
            "192.168.1.2:3000",
            "0.0.0.0:3000",
            "[::2]:3000",
            "localhost:evil",
            "localhost:80:80",
            "127.1",
            "\u{ff}",
        ] {
            assert!(!is_loopback_host(other.as_bytes()), "{other}");
        }
    }
}
