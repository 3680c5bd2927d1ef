//! The query parameters of a request with events. Their values are form-decoded.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::http::problem::ECHO_BYTES_MAX;
use crate::ingest::ParseIngestHeadersError;
use crate::json::text;

/// More parameters are refused.
const PARAMETERS_MAX: usize = 64;
/// The parameter that says whether the body is the key of the request.
const DEDUP: &str = "dedup";
/// Its name that is clear beside the parameters of other systems, for OTLP only.
const OTLP_DEDUP: &str = "otlp_dedup";

/// The parameters in the order received.
#[derive(Debug, Default)]
pub(super) struct Parameters<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Parameters<'a> {
    pub(super) fn parse(query: &'a str) -> Result<Self, ParseIngestHeadersError> {
        let mut parameters = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if parameters.len() == PARAMETERS_MAX {
                return Err(invalid("query", format!("has more than {PARAMETERS_MAX} parameters")));
            }
            parameters.push((decode(name)?, decode(value)?));
        }
        Ok(Self(parameters))
    }

    /// The value of a parameter that may occur once.
    pub(super) fn get(&self, name: &'static str) -> Result<Option<&str>, ParseIngestHeadersError> {
        let mut values = self.0.iter().filter(|(found, _)| found == name).map(|(_, value)| &**value);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            (_, Some(_)) => Err(invalid(name, "is present more than once".to_owned())),
        }
    }

    /// Whether equal bodies are one request; by default so for OTLP.
    pub(super) fn dedups_by_body(&self, is_otlp: bool) -> Result<bool, ParseIngestHeadersError> {
        let own = if is_otlp { self.get_dedup(OTLP_DEDUP)? } else { None };
        match (own, self.get_dedup(DEDUP)?) {
            (Some(_), Some(_)) => Err(invalid(OTLP_DEDUP, format!("is present beside {DEDUP}"))),
            (Some(dedups), None) | (None, Some(dedups)) => Ok(dedups),
            (None, None) => Ok(is_otlp),
        }
    }

    fn get_dedup(&self, name: &'static str) -> Result<Option<bool>, ParseIngestHeadersError> {
        match self.get(name)? {
            None => Ok(None),
            Some("body") => Ok(Some(true)),
            Some("none") => Ok(Some(false)),
            Some(value) => Err(invalid(
                name,
                format!("is {:?}, and must be body or none", text::truncate(value, ECHO_BYTES_MAX)),
            )),
        }
    }
}

pub(super) fn invalid(name: &'static str, detail: String) -> ParseIngestHeadersError {
    ParseIngestHeadersError::InvalidParameter { name, detail }
}

/// Decodes a name or value: `+` is a space.
fn decode(text: &str) -> Result<Cow<'_, str>, ParseIngestHeadersError> {
    if !text.contains(['%', '+']) {
        return Ok(text.into());
    }
    let spaced = text.replace('+', " ");
    match percent_decode_str(&spaced).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned().into()),
        Err(_not_utf8) => Err(invalid("query", "is not UTF-8".to_owned())),
    }
}
