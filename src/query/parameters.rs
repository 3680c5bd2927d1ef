//! Reads the parameters of a query string, with the errors of all of them: an unknown, repeated or
//! wrongly encoded parameter is one, since ignoring a filter would select the wrong events.
//!
//! It must not know what the parameters mean.

use crate::event::SERVICE_BYTES_MAX;
use crate::http::problem::{ECHO_BYTES_MAX, FieldError, FieldErrors};
use crate::json::text;

/// The parameters seen so far, and the errors.
#[derive(Default)]
pub(crate) struct ParameterReader {
    pub(crate) errors: FieldErrors,
    seen: Vec<&'static str>,
}

/// The pairs of a query string.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter(|pair| !pair.is_empty())
}

impl ParameterReader {
    /// Passes the name and the decoded value of `pair` to `set`, if it is one of `names` and its first
    /// one. Notes an error otherwise, and that of `set`.
    pub(crate) fn read(
        &mut self,
        pair: &str,
        names: &[&'static str],
        set: impl FnOnce(&'static str, String) -> Result<(), String>,
    ) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = percent_decode(name);
        let Some(&name) = names.iter().find(|known| decoded.as_deref() == Some(**known)) else {
            let shown = text::truncate(decoded.as_deref().unwrap_or(name), ECHO_BYTES_MAX);
            let detail = format!("{shown} is not a parameter; the parameters are {}", names.join(", "));
            self.errors.push(|| FieldError { index: None, field: shown.into(), detail });
            return;
        };
        if self.seen.contains(&name) {
            self.push_error(name, "is given more than once");
            return;
        }
        self.seen.push(name);
        let Some(value) = percent_decode(value) else {
            self.push_error(name, "is not percent-encoded UTF-8");
            return;
        };
        if let Err(detail) = set(name, value) {
            self.push_error(name, &detail);
        }
    }

    pub(crate) fn push_error(&mut self, name: &'static str, detail: &str) {
        let detail = format!("{name} {detail}");
        self.errors.push(|| FieldError { index: None, field: name.into(), detail });
    }

    pub(crate) fn has_error(&self, name: &str) -> bool {
        self.errors.listed().iter().any(|error| error.field == name)
    }
}

pub(crate) fn parse_service(value: String) -> Result<String, String> {
    if value.is_empty() || value.len() > SERVICE_BYTES_MAX || value.contains('\0') {
        return Err(format!("must be 1 to {SERVICE_BYTES_MAX} bytes without NUL"));
    }
    Ok(value)
}

pub(crate) fn parse_number(value: &str, least: u64, most: u64) -> Result<u64, String> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value
        .parse()
        .ok()
        .filter(|number| digits && (least..=most).contains(number))
        .ok_or_else(|| format!("must be a whole number from {least} to {most}"))
}

/// Decodes `%XX` and `+`. None if an escape is truncated or invalid, or the bytes are not UTF-8.
pub(crate) fn percent_decode(value: &str) -> Option<String> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high << 4 | low).ok()?
            }
            _ => byte,
        });
    }
    String::from_utf8(out).ok()
}
