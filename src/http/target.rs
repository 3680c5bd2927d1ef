//! Parses request targets and validates `Host` (RFC 9112, 3.2; RFC 3986, 3.2). Must not depend on
//! routes.

use super::Method;
use super::refusal::Refusal;

/// The refusal of a target that is not ASCII. It could be UTF-8 or any other encoding.
pub(super) const NOT_ASCII: Refusal = Refusal::new(
    400,
    "the request target contains a byte above 0x7f; percent-encode it, as in %C3%A4 for the letter \u{e4} in UTF-8",
);

/// Splits a request target into path and query. The authority of an absolute target is validated
/// and dropped, because the server has no virtual hosts.
pub(super) fn parse(method: Method, target: &str) -> Result<(&str, &str), Refusal> {
    const BAD: Refusal = Refusal::new(400, "the request target is not valid");
    // The grammar is ASCII, and a request target has no fragment.
    if !target.is_ascii() {
        return Err(NOT_ASCII);
    }
    if target.contains('#') {
        return Err(BAD);
    }
    if target.starts_with('/') {
        return Ok(split(target));
    }
    if target == "*" {
        return if method == Method::Options { Ok((target, "")) } else { Err(BAD) };
    }
    let rest = scheme(target, "http://").or_else(|| scheme(target, "https://")).ok_or(BAD)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || !is_authority(authority.as_bytes()) {
        return Err(BAD);
    }
    let (path, query) = split(path);
    Ok((if path.is_empty() { "/" } else { path }, query))
}

fn split(target: &str) -> (&str, &str) {
    target.split_once('?').unwrap_or((target, ""))
}

fn scheme<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let (head, rest) = target.split_at_checked(name.len())?;
    head.eq_ignore_ascii_case(name).then_some(rest)
}

/// Whether the bytes are a valid `Host` value: a name or address with an optional port, without
/// user information, or empty.
pub(super) fn is_authority(bytes: &[u8]) -> bool {
    let literal = bytes.first() == Some(&b'[');
    let end = bytes.iter().position(|byte| *byte == if literal { b']' } else { b':' });
    let (host, port) = match end {
        Some(end) if literal => (&bytes[1..end], &bytes[end + 1..]),
        None if literal => return false,
        Some(end) => bytes.split_at(end),
        None => (bytes, [].as_slice()),
    };
    let name_ok = host.iter().all(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => true,
        b':' => literal,
        other => b"-._~%!$&'()*+,;=".contains(other),
    });
    let port_ok = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        [..] => false,
    };
    name_ok && port_ok && (!literal || !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: Method, target: &str, expected: Option<(&str, &str)>) {
        assert_eq!(parse(method, target).ok(), expected, "{target}");
    }

    #[test]
    fn parse_splits_or_refuses_targets() {
        use Method::{Get, Options};
        check(Get, "/", Some(("/", "")));
        check(Get, "/a?b=c?d", Some(("/a", "b=c?d")));
        check(Get, "//a", Some(("//a", "")));
        check(Get, "http://host/a?b", Some(("/a", "b")));
        check(Get, "HTTPS://host:1", Some(("/", "")));
        check(Get, "http://host?b", Some(("/", "b")));
        check(Get, "http:///a", None);
        check(Get, "http://user@host/a", None);
        check(Get, "ftp://host/a", None);
        check(Get, "host:80", None);
        check(Get, "a", None);
        check(Get, "*", None);
        check(Options, "*", Some(("*", "")));
        check(Get, "/a#b", None);
        check(Get, "/ä", None);
    }

    #[test]
    fn authority_is_a_name_or_address_with_an_optional_port() {
        for good in ["", "a", "a.b-c_d:80", "127.0.0.1", "127.0.0.1:", "[::1]:3000", "[::1]", "x%20y"] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "a b", "a/b", "a@b", "a:b", "a:123456", "[::1", "[]", "[::1]x", "a,b c", "a?", "a\\b", "ä", "::1",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }
}
