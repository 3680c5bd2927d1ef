//! Percent-decoding of path segments (RFC 3986, section 2.1).

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::Refusal;

/// Decodes one segment of a path.
///
/// # Errors
/// 400 if a `%` is not followed by two hexadecimal digits, or if the decoded bytes are not UTF-8.
/// The library itself leaves a malformed escape as it is.
pub fn decode(segment: &str) -> Result<Cow<'_, str>, Refusal> {
    const INVALID: Refusal = Refusal::new(400, "the percent-encoding of the path is not valid");
    let mut escapes = segment.split('%').skip(1);
    let is_escape =
        |text: &str| text.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
    if !escapes.all(is_escape) {
        return Err(INVALID);
    }
    percent_decode_str(segment).decode_utf8().map_err(|_not_utf8| INVALID)
}
