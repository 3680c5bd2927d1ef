//! Names of metrics and labels: any UTF-8 text, as in Prometheus 3, and the escaped forms for readers
//! that know the older grammar only. The forms are those of Prometheus' client libraries.
//!
//! Only [`NameEscaping::Values`] maps different names to different ones, because a pushed name must
//! not have the form of an escaped one ([`is_valid_name`]).

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::metrics::text_format::escape;

/// How names outside of the older grammar are written, as in `escaping=` of `Accept`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameEscaping {
    /// As they are, in quotes.
    AllowUtf8,
    /// Each character that is not allowed becomes `_`.
    Underscores,
    /// A dot becomes `_dot_`, `_` becomes `__`, and so does any other character.
    Dots,
    /// `U__` and the name, in which `_` becomes `__` and other characters `_HEX_`.
    #[default]
    Values,
}

impl NameEscaping {
    /// The value of the parameter `escaping` of a media type.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllowUtf8 => "allow-utf-8",
            Self::Underscores => "underscores",
            Self::Dots => "dots",
            Self::Values => "values",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Self::AllowUtf8, Self::Underscores, Self::Dots, Self::Values]
            .into_iter()
            .find(|known| known.name() == name)
    }

    /// Whether two names may have the same escaped form.
    pub fn is_lossy(self) -> bool {
        matches!(self, Self::Underscores | Self::Dots)
    }
}

/// The beginning of a name that is escaped by [`NameEscaping::Values`].
const ESCAPED_PREFIX: &str = "U__";

/// What a name is for. Labels may not contain a colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    Metric,
    Label,
}

/// `[a-zA-Z_:][a-zA-Z0-9_:]*` for metrics, the same without colons for labels.
pub fn is_legacy_name(name: &str, kind: NameKind) -> bool {
    let good = |byte: u8| is_legacy_byte(byte, kind);
    name.bytes().next().is_some_and(|first| !first.is_ascii_digit()) && name.bytes().all(good)
}

/// Whether a byte may occur in a name, after its first one.
#[inline]
pub fn is_legacy_byte(byte: u8, kind: NameKind) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || (byte == b':' && kind == NameKind::Metric)
}

/// Whether a name may be pushed: any but the empty one and those that look like an escaped name, which
/// would be the same series as the name itself in an escaped page.
pub fn is_valid_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(ESCAPED_PREFIX)
}

/// The escaped form. Names of the older grammar do not change.
pub fn escape_name(name: &str, kind: NameKind, escaping: NameEscaping) -> Cow<'_, str> {
    if escaping == NameEscaping::AllowUtf8 || is_legacy_name(name, kind) {
        return Cow::Borrowed(name);
    }
    let mut out = String::with_capacity(name.len() + 16);
    if escaping == NameEscaping::Values {
        out.push_str(ESCAPED_PREFIX);
    }
    for (at, char) in name.char_indices() {
        let is_legacy = u8::try_from(char)
            .is_ok_and(|byte| is_legacy_byte(byte, kind) && (at > 0 || !byte.is_ascii_digit()));
        match (escaping, char) {
            (NameEscaping::Values | NameEscaping::Dots, '_') => out.push_str("__"),
            (_, char) if is_legacy => out.push(char),
            (NameEscaping::Values, char) => {
                write!(out, "_{:x}_", u32::from(char)).expect("writing to a string cannot fail");
            }
            (NameEscaping::Dots, '.') => out.push_str("_dot_"),
            (NameEscaping::Dots, _) => out.push_str("__"),
            (NameEscaping::Underscores | NameEscaping::AllowUtf8, _) => out.push('_'),
        }
    }
    Cow::Owned(out)
}

/// The name that [`NameEscaping::Values`] writes as `text`; `text` itself if it is no such form.
pub fn unescape_name(text: &str) -> Cow<'_, str> {
    text.strip_prefix(ESCAPED_PREFIX).and_then(unescape_values).map_or(Cow::Borrowed(text), Cow::Owned)
}

fn unescape_values(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, after)) = rest.split_once('_') {
        out.push_str(plain);
        let (code, after) = after.split_once('_')?;
        if code.is_empty() {
            out.push('_');
        } else {
            // `from_str_radix` takes a sign too.
            let is_hex = code.len() <= 6 && code.bytes().all(|byte| byte.is_ascii_hexdigit());
            let char = u32::from_str_radix(code, 16).ok().filter(|_| is_hex).and_then(char::from_u32)?;
            out.push(char);
        }
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

/// Writes a name in quotes.
pub fn write_quoted(out: &mut String, parts: &[&str]) {
    out.push('"');
    for part in parts {
        escape(out, part, true);
    }
    out.push('"');
}

/// Writes the name of a label: in quotes unless it is of the older grammar.
pub fn write_label_name(out: &mut String, name: &str) {
    if is_legacy_name(name, NameKind::Label) {
        out.push_str(name);
    } else {
        write_quoted(out, &[name]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_escaped_as_by_prometheus() {
        let of = |name, escaping| escape_name(name, NameKind::Metric, escaping).into_owned();
        for (name, underscores, dots, values) in [
            ("no:escaping_required", "no:escaping_required", "no:escaping_required", "no:escaping_required"),
            (
                "mysystem.prod.west.cpu.load",
                "mysystem_prod_west_cpu_load",
                "mysystem_dot_prod_dot_west_dot_cpu_dot_load",
                "U__mysystem_2e_prod_2e_west_2e_cpu_2e_load",
            ),
            ("http.status:sum", "http_status:sum", "http_dot_status:sum", "U__http_2e_status:sum"),
            ("label with 😱", "label_with__", "label__with____", "U__label_20_with_20__1f631_"),
            ("a.b_c", "a_b_c", "a_dot_b__c", "U__a_2e_b__c"),
            ("1st", "_st", "__st", "U___31_st"),
        ] {
            assert_eq!(of(name, NameEscaping::AllowUtf8), name);
            assert_eq!(of(name, NameEscaping::Underscores), underscores);
            assert_eq!(of(name, NameEscaping::Dots), dots);
            assert_eq!(of(name, NameEscaping::Values), values);
            assert_eq!(unescape_name(values), name);
        }
        assert_eq!(escape_name("a:b", NameKind::Label, NameEscaping::Values), "U__a_3a_b");
    }

    #[test]
    fn text_that_is_no_escaped_name_stays_as_it_is() {
        for text in ["U__a_", "U__a_xx_", "U__a_d800_", "U__a_1234567_", "U__a_+1_", "U_a_2e_b", "a_2e_b"] {
            assert_eq!(unescape_name(text), text);
        }
        assert_eq!(unescape_name("U__job"), "job");
        assert_eq!(unescape_name("U__"), "");
    }

    proptest! {
        #[test]
        fn escaped_names_are_distinct_legacy_names_and_are_unescaped_to_the_name(
            one in "[a_.:é1 ]{1,6}|U__[a_2e]{0,6}|\\PC{1,8}",
            other in "[a_.:é1 ]{1,6}|U__[a_2e]{0,6}|\\PC{1,8}",
        ) {
            for kind in [NameKind::Metric, NameKind::Label] {
                for escaping in [NameEscaping::Underscores, NameEscaping::Dots, NameEscaping::Values] {
                    prop_assert!(is_legacy_name(&escape_name(&one, kind, escaping), kind));
                }
                let values = |name: &'_ str| escape_name(name, kind, NameEscaping::Values).into_owned();
                if is_valid_name(&one) {
                    let form = values(&one);
                    prop_assert_eq!(unescape_name(&form), one.as_str());
                    prop_assert!(!is_valid_name(&other) || one == other || values(&one) != values(&other));
                }
            }
        }
    }
}
