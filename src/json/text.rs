//! Escapes and unescapes JSON strings.

use std::borrow::Cow;

use super::JsonViolation;
use super::scan::{find_special, is_plain_ascii};

/// U+FEFF in UTF-8, which some programs write in front of a text.
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Takes the place of characters that cannot be stored.
const REPLACEMENT: &str = "\u{fffd}";

/// Unescapes `raw`, the bytes between the quotes of a JSON string, and appends them. The scanner
/// must have accepted the string.
pub fn unescape(out: &mut Vec<u8>, mut raw: &[u8]) {
    loop {
        let at = find_special(raw, 0);
        out.extend_from_slice(&raw[..at]);
        raw = &raw[at..];
        let Some(escape) = Escape::read(raw) else {
            debug_assert!(raw.is_empty(), "BUG: the scanner accepted an invalid escape");
            return;
        };
        out.extend_from_slice(escape.char.encode_utf8(&mut [0; 4]).as_bytes());
        raw = &raw[escape.length..];
    }
}

/// Appends `text` as a JSON string with quotes.
pub fn quote(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escape(out, text, "\\u0000");
    out.push(b'"');
}

/// Appends `bytes` as a JSON string with quotes that PostgreSQL accepts: U+FFFD replaces NUL and
/// invalid UTF-8.
#[inline]
pub(crate) fn quote_lossy(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    if is_plain_ascii(bytes) {
        out.extend_from_slice(bytes);
    } else {
        escape_lossy(out, bytes);
    }
    out.push(b'"');
}

/// Appends `bytes` escaped, without quotes.
fn escape_lossy(out: &mut Vec<u8>, bytes: &[u8]) {
    match str::from_utf8(bytes) {
        Ok(text) => escape(out, text, REPLACEMENT),
        Err(_invalid) => {
            for chunk in bytes.utf8_chunks() {
                escape(out, chunk.valid(), REPLACEMENT);
                if !chunk.invalid().is_empty() {
                    out.extend_from_slice(REPLACEMENT.as_bytes());
                }
            }
        }
    }
}

/// `bytes` as text that PostgreSQL accepts: U+FFFD replaces NUL and invalid UTF-8.
pub(crate) fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    // `from_utf8_lossy` looks at each byte, this at many at once.
    let text = str::from_utf8(bytes).map_or_else(|_invalid| String::from_utf8_lossy(bytes), Cow::Borrowed);
    if memchr::memchr(0, bytes).is_some() { Cow::Owned(text.replace('\0', REPLACEMENT)) } else { text }
}

/// Appends `text` escaped, without quotes; `nul` in place of NUL.
#[inline]
fn escape(out: &mut Vec<u8>, text: &str, nul: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut rest = text.as_bytes();
    loop {
        let at = find_special(rest, 0);
        out.extend_from_slice(&rest[..at]);
        let Some(&byte) = rest.get(at) else { break };
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0 => out.extend_from_slice(nul.as_bytes()),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
        rest = &rest[at + 1..];
    }
}

/// `text`, truncated to `bytes_max` bytes at a character boundary and marked with `...`. Bounds the
/// size of values echoed in error messages.
pub fn truncate(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = (0..=bytes_max).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("{}...", &text[..end])
}

/// One escape sequence.
pub(super) struct Escape {
    /// Bytes of the sequence, including the backslash; twelve for a surrogate pair.
    pub(super) length: usize,
    pub(super) char: char,
    pub(super) violation: Option<JsonViolation>,
}

impl Escape {
    /// Parses the escape sequence at the start of `bytes`. None if it is not valid JSON.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let char = match bytes.get(1)? {
            b'u' => return Self::unicode(bytes),
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            byte @ (b'"' | b'\\' | b'/') => char::from(*byte),
            _ => return None,
        };
        Some(Self { length: 2, char, violation: None })
    }

    fn unicode(bytes: &[u8]) -> Option<Self> {
        let unit = unit(bytes)?;
        if let Some(char) = char::from_u32(unit) {
            return Some(Self { length: 6, char, violation: (unit == 0).then_some(JsonViolation::Nul) });
        }
        let low =
            if unit < 0xdc00 { self::unit(&bytes[6..]).filter(|low| low & 0xfc00 == 0xdc00) } else { None };
        Some(match low.and_then(|low| char::from_u32(0x1_0000 + ((unit & 0x3ff) << 10 | (low & 0x3ff)))) {
            Some(char) => Self { length: 12, char, violation: None },
            None => Self {
                length: 6,
                char: char::REPLACEMENT_CHARACTER,
                violation: Some(JsonViolation::LoneSurrogate),
            },
        })
    }
}

/// The code unit of `\uXXXX`.
fn unit(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.get(..6)?.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn truncate_cuts_at_a_character_boundary() {
        assert_eq!(truncate("abc", 3), "abc");
        assert_eq!(truncate("abcd", 3), "abc...");
        assert_eq!(truncate("ab\u{e9}", 3), "ab...");
        assert_eq!(truncate("\u{1f600}", 3), "...");
        assert_eq!(truncate("", 0), "");
    }

    #[test]
    fn lossy_text_replaces_nul_and_invalid_utf8() {
        #[track_caller]
        fn check(bytes: &[u8], expected: &str) {
            let mut quoted = Vec::new();
            quote_lossy(&mut quoted, bytes);
            assert_eq!(sonic_rs::from_slice::<String>(&quoted).unwrap(), expected);
            assert_eq!(lossy(bytes), expected);
        }
        check(b"", "");
        check("a\"\\\n\u{e9}".as_bytes(), "a\"\\\n\u{e9}");
        check(b"a\0b", "a\u{fffd}b");
        check(b"\0\xff\xc3", "\u{fffd}\u{fffd}\u{fffd}");
    }

    proptest! {
        #[test]
        fn lossy_text_of_any_bytes_is_as_the_standard_library_has_it(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let expected = String::from_utf8_lossy(&bytes).replace('\0', "\u{fffd}");
            let mut quoted = Vec::new();
            quote_lossy(&mut quoted, &bytes);
            prop_assert_eq!(sonic_rs::from_slice::<String>(&quoted).unwrap(), expected.clone());
            prop_assert_eq!(lossy(&bytes), expected);
        }

        #[test]
        fn quoted_text_unescapes_to_the_original(text in any::<String>()) {
            let mut quoted = Vec::new();
            quote(&mut quoted, &text);
            prop_assert_eq!(sonic_rs::from_slice::<String>(&quoted).unwrap(), text.clone());
            let mut back = Vec::new();
            unescape(&mut back, &quoted[1..quoted.len() - 1]);
            prop_assert_eq!(back, text.into_bytes());
        }
    }
}
