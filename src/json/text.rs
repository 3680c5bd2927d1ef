//! JSON strings to text and back. Knows nothing of what the text means.

use super::Fault;
use super::scan::find_special;

/// Appends what stands between the quotes of a JSON string that the scanner has accepted, unescaped.
pub fn unescape(out: &mut Vec<u8>, mut raw: &[u8]) {
    loop {
        let at = find_special(raw, 0);
        out.extend_from_slice(&raw[..at]);
        raw = &raw[at..];
        let Some(escape) = Escape::read(raw) else {
            debug_assert!(raw.is_empty(), "BUG: the scanner accepted a bad escape");
            return;
        };
        out.extend_from_slice(escape.char.encode_utf8(&mut [0; 4]).as_bytes());
        raw = &raw[escape.length..];
    }
}

/// Appends `text` as a JSON string, quotes and all.
pub fn quote(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut rest = text.as_bytes();
    out.push(b'"');
    loop {
        let at = find_special(rest, 0);
        out.extend_from_slice(&rest[..at]);
        let Some(&byte) = rest.get(at) else { break };
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.push(b'"');
}

/// The beginning of `text`, for an echo that never holds a whole value of any size.
pub fn shorten(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = (0..=bytes_max).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("{}...", &text[..end])
}

/// One escape sequence.
pub(super) struct Escape {
    /// Bytes it takes, backslash and all; twelve for a surrogate pair.
    pub(super) length: usize,
    pub(super) char: char,
    pub(super) fault: Option<Fault>,
}

impl Escape {
    /// The escape that `bytes` begin with. None when it is none that JSON knows.
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
        Some(Self { length: 2, char, fault: None })
    }

    fn unicode(bytes: &[u8]) -> Option<Self> {
        let unit = unit(bytes)?;
        if let Some(char) = char::from_u32(unit) {
            return Some(Self { length: 6, char, fault: (unit == 0).then_some(Fault::Nul) });
        }
        let low =
            if unit < 0xdc00 { self::unit(&bytes[6..]).filter(|low| low & 0xfc00 == 0xdc00) } else { None };
        Some(match low.and_then(|low| char::from_u32(0x1_0000 + ((unit & 0x3ff) << 10 | (low & 0x3ff)))) {
            Some(char) => Self { length: 12, char, fault: None },
            None => Self { length: 6, char: char::REPLACEMENT_CHARACTER, fault: Some(Fault::LoneSurrogate) },
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
    fn an_echo_is_cut_between_characters() {
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("abcd", 3), "abc...");
        assert_eq!(shorten("ab\u{e9}", 3), "ab...");
        assert_eq!(shorten("\u{1f600}", 3), "...");
        assert_eq!(shorten("", 0), "");
    }

    proptest! {
        #[test]
        fn any_text_is_quoted_and_reads_back(text in any::<String>()) {
            let mut quoted = Vec::new();
            quote(&mut quoted, &text);
            prop_assert_eq!(sonic_rs::from_slice::<String>(&quoted).unwrap(), text.clone());
            let mut back = Vec::new();
            unescape(&mut back, &quoted[1..quoted.len() - 1]);
            prop_assert_eq!(back, text.into_bytes());
        }
    }
}
