//! Percent-decoding of path segments (RFC 3986, section 2.1).

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::Refusal;

/// Decodes the escapes of unreserved characters in a path, which mean the same as the characters
/// (RFC 3986, 2.3). All others are left as they are, because an escaped `/` is no separator; so is a
/// path with a malformed escape.
pub fn normalize(path: &str) -> Cow<'_, str> {
    if !path.contains('%') || !has_valid_escapes(path) {
        return path.into();
    }
    let mut parts = path.split('%');
    let mut normalized = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, plain) = part.split_at(2);
        let byte = u8::from_str_radix(digits, 16).expect("BUG: the escape is valid");
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            normalized.push(char::from(byte));
        } else {
            normalized.push('%');
            normalized += digits;
        }
        normalized += plain;
    }
    normalized.into()
}

/// Decodes one segment of a path.
///
/// # Errors
/// 400 if a `%` is not followed by two hexadecimal digits, or if the decoded bytes are not UTF-8.
/// The library itself leaves a malformed escape as it is.
pub fn decode(segment: &str) -> Result<Cow<'_, str>, Refusal> {
    const INVALID: Refusal = Refusal::new(400, "the percent-encoding of the path is not valid");
    if !has_valid_escapes(segment) {
        return Err(INVALID);
    }
    percent_decode_str(segment).decode_utf8().map_err(|_not_utf8| INVALID)
}

/// Whether every `%` is followed by two hexadecimal digits.
fn has_valid_escapes(text: &str) -> bool {
    let mut escapes = text.split('%').skip(1);
    escapes.all(|escape| escape.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_escapes_of_unreserved_characters_are_normalized() {
        for (path, normalized) in [
            ("/events", "/events"),
            ("/%65vent%73", "/events"),
            ("/%2D%2e%5F%7e%41%7a%30", "/-._~Az0"),
            ("/a%2fb%2Fc%25%20%3f", "/a%2fb%2Fc%25%20%3f"),
            ("/%C3%A4", "/%C3%A4"),
            // An escape that results from another one is none.
            ("/%2565vents", "/%2565vents"),
            ("/%%365", "/%%365"),
            ("/%41/%+4", "/%41/%+4"),
            ("/%41/%6", "/%41/%6"),
            ("/%\u{e4}", "/%\u{e4}"),
        ] {
            assert_eq!(normalize(path), normalized, "{path}");
        }
    }
}
