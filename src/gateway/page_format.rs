//! The format of a scraped page and the form of its names, negotiated with `Accept`.

use super::names::NameEscaping;
use crate::http::Headers;
use crate::http::content_negotiation::negotiate;
use crate::metrics::text_format::ExpositionFormat;

/// How a page is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageEncoding {
    Lines(ExpositionFormat),
    /// Delimited messages. The only encoding that has native histograms.
    Protobuf,
}

/// The format of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFormat {
    pub encoding: PageEncoding,
    /// The form of the names if the client asked for one; [`NameEscaping::Values`] if not, which is the
    /// only one by which two names never become one.
    pub escaping: Option<NameEscaping>,
}

const TEXT: &str = "text/plain";
const OPENMETRICS: &str = "application/openmetrics-text";
const PROTOBUF: &str = "application/vnd.google.protobuf";

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
    /// Protobuf if the client prefers it, as Prometheus with native histograms does, else text if the
    /// client accepts it, as Prometheus does. `OpenMetrics` writes bucket bounds differently
    /// (`1.0` for `1`), so all histogram series would get other labels than with Pushgateway.
    pub fn negotiated(headers: Headers<'_>) -> Self {
        const OFFERS: [&str; 3] = [TEXT, OPENMETRICS, PROTOBUF];
        if names_protobuf(headers) && negotiate(headers, &OFFERS) == Some(2) {
            return Self { encoding: PageEncoding::Protobuf, escaping: asked_escaping(headers, PROTOBUF) };
        }
        let names_text =
            |accept: &[u8]| accept.to_ascii_lowercase().windows(10).any(|part| part == b"text/plain");
        let takes_text = headers.all("Accept").any(names_text) && negotiate(headers, &OFFERS[..1]).is_some();
        if !takes_text && negotiate(headers, &OFFERS[..2]) == Some(1) {
            Self {
                encoding: PageEncoding::Lines(ExpositionFormat::OpenMetrics),
                escaping: asked_escaping(headers, OPENMETRICS),
            }
        } else {
            Self {
                encoding: PageEncoding::Lines(ExpositionFormat::Text),
                escaping: asked_escaping(headers, TEXT),
            }
        }
    }

    pub fn content_type(self) -> &'static str {
        let format = match self.encoding {
            PageEncoding::Lines(format) => format,
            PageEncoding::Protobuf => {
                return content_type!(
                    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
                    self.escaping
                );
            }
        };
        match (format, self.escaping) {
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

/// Whether `Accept` has the delimited messages, not only a range that covers them.
fn names_protobuf(headers: Headers<'_>) -> bool {
    let accepts = headers.all("Accept").filter_map(|value| str::from_utf8(value).ok());
    accepts.flat_map(|accept| accept.split(',')).any(is_delimited_family)
}

/// Whether a media type with its parameters is that of delimited `MetricFamily` messages.
pub(super) fn is_delimited_family(media_type: &str) -> bool {
    let mut parts = media_type.split(';').map(str::trim);
    if !parts.next().is_some_and(|name| name.eq_ignore_ascii_case(PROTOBUF)) {
        return false;
    }
    let has = |wanted: &str, value: &str| {
        parts.clone().filter_map(|part| part.split_once('=')).any(|(name, found)| {
            name.trim().eq_ignore_ascii_case(wanted) && found.trim().trim_matches('"') == value
        })
    };
    has("encoding", "delimited") && has("proto", "io.prometheus.client.MetricFamily")
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
        const FAMILIES: &str =
            "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
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
        // Prometheus with native histograms, 2 and 3.
        check(
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            FAMILIES,
        );
        check(
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;escaping=allow-utf-8;q=0.7,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.2",
            &format!("{FAMILIES}; escaping=allow-utf-8"),
        );
        check("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", PLAIN);
        check(
            "text/plain, application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.9",
            PLAIN,
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
