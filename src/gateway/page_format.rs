//! The format of a scraped page and the form of its names, negotiated with `Accept`.

use super::names::NameEscaping;
use crate::http::Headers;
use crate::http::content_negotiation::negotiate;
use crate::metrics::text_format::ExpositionFormat;

/// The format of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFormat {
    pub format: ExpositionFormat,
    /// The form of the names if the client asked for one; [`NameEscaping::Values`] if not, which is the
    /// only one by which two names never become one.
    pub escaping: Option<NameEscaping>,
}

const TEXT: &str = "text/plain";
const OPENMETRICS: &str = "application/openmetrics-text";

/// A content type with the parameter `escaping`.
macro_rules! content_type {
    ($base:literal, $escaping:expr) => {
        match $escaping {
            None => $base,
            Some(NameEscaping::AllowUtf8) => concat!($base, "; escaping=allow-utf-8"),
            Some(NameEscaping::Underscores) => concat!($base, "; escaping=underscores"),
            Some(NameEscaping::Dots) => concat!($base, "; escaping=dots"),
            Some(NameEscaping::Values) => concat!($base, "; escaping=values"),
        }
    };
}

impl PageFormat {
    /// Text if the client accepts it, as Prometheus does. `OpenMetrics` writes bucket bounds differently
    /// (`1.0` for `1`), so all histogram series would get other labels than with Pushgateway.
    pub fn negotiated(headers: Headers<'_>) -> Self {
        const OFFERS: [&str; 2] = [TEXT, OPENMETRICS];
        let names_text =
            |accept: &[u8]| accept.to_ascii_lowercase().windows(10).any(|part| part == b"text/plain");
        let takes_text = headers.all("Accept").any(names_text) && negotiate(headers, &OFFERS[..1]).is_some();
        if !takes_text && negotiate(headers, &OFFERS) == Some(1) {
            Self { format: ExpositionFormat::OpenMetrics, escaping: asked_escaping(headers, OPENMETRICS) }
        } else {
            Self { format: ExpositionFormat::Text, escaping: asked_escaping(headers, TEXT) }
        }
    }

    pub fn content_type(self) -> &'static str {
        match (self.format, self.escaping) {
            // Version 1.0.0 is version 0.0.4 with names in quotes.
            (ExpositionFormat::Text, Some(NameEscaping::AllowUtf8)) => {
                "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8"
            }
            (ExpositionFormat::Text, escaping) => {
                content_type!("text/plain; version=0.0.4; charset=utf-8", escaping)
            }
            (ExpositionFormat::OpenMetrics, escaping) => {
                content_type!("application/openmetrics-text; version=1.0.0; charset=utf-8", escaping)
            }
        }
    }
}

/// The first known value of the parameter `escaping` of a range of `Accept` with this media type.
fn asked_escaping(headers: Headers<'_>, media_type: &str) -> Option<NameEscaping> {
    let accepts = headers.all("Accept").filter_map(|value| str::from_utf8(value).ok());
    let ranges = accepts.flat_map(|accept| accept.split(','));
    let of_range = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        parts.next().filter(|name| name.eq_ignore_ascii_case(media_type))?;
        parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            let is_escaping = name.trim().eq_ignore_ascii_case("escaping");
            NameEscaping::parse(value.trim().trim_matches('"')).filter(|_| is_escaping)
        })
    };
    ranges.map(of_range).find_map(|escaping| escaping)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, content_type: &str) {
        let field = httparse::Header { name: "Accept", value: accept.as_bytes() };
        assert_eq!(PageFormat::negotiated(Headers(&[field])).content_type(), content_type, "{accept}");
    }

    #[test]
    fn format_and_form_of_names_follow_the_accept_header() {
        const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";
        const UTF8: &str = "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8";
        check("", PLAIN);
        check("*/*", PLAIN);
        // Prometheus 2.
        check(
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            PLAIN,
        );
        // Prometheus 3, by default and with legacy validation of names.
        check(
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            UTF8,
        );
        check(
            "text/plain;version=1.0.0;escaping=underscores;q=0.4,text/plain;version=0.0.4;q=0.3",
            "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
        );
        check("text/plain; Escaping=\"dots\"", "text/plain; version=0.0.4; charset=utf-8; escaping=dots");
        check("text/plain;escaping=other", PLAIN);
        check("text/plain;q=0.5, image/png;escaping=dots", PLAIN);
        check(
            "application/openmetrics-text;escaping=values",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=values",
        );
    }
}
