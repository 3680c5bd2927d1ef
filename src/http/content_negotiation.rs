//! Proactive content negotiation with the `Accept` header field (RFC 9110, 12.5.1).

use std::borrow::Cow;

use super::Headers;

/// [`preferred_media_type`] for the `Accept` fields of a request, which form one list (RFC 9110, 5.3).
pub fn negotiate(headers: Headers<'_>, offers: &[&str]) -> Option<usize> {
    let mut values = headers.all("Accept").filter_map(|value| str::from_utf8(value).ok());
    let mut list = Cow::Borrowed(values.next()?);
    for value in values {
        list += ",";
        list += value;
    }
    preferred_media_type(&list, offers)
}

/// Returns the index in `offers` of the media type that `accept` prefers: the highest quality, then
/// the earliest range in `accept`, then the earliest offer. `None` if no offer is acceptable.
pub fn preferred_media_type(accept: &str, offers: &[&str]) -> Option<usize> {
    let ranges: Vec<_> = accept.split(',').filter_map(MediaRange::parse).collect();
    let rank = |(nth, offer): (usize, &&str)| {
        let matched = ranges.iter().enumerate().filter(|(_, range)| range.covers(offer));
        // The most specific range that matches an offer takes precedence.
        let (at, range) = matched.max_by_key(|(at, range)| (range.specificity(), usize::MAX - at))?;
        (range.permille > 0).then_some((range.permille, usize::MAX - at, usize::MAX - nth, nth))
    };
    offers.iter().enumerate().filter_map(rank).max().map(|(.., nth)| nth)
}

struct MediaRange<'a> {
    name: &'a str,
    /// The quality in thousandths: a quality has at most three decimals.
    permille: u16,
}

impl<'a> MediaRange<'a> {
    /// Returns `None` for an invalid media range, which negotiation skips.
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().filter(|name| name.contains('/'))?;
        let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let quality =
            quality.map_or(Some(1.0), |q| q.parse::<f32>().ok()).filter(|q| (0.0..=1.0).contains(q))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
        let permille = (quality * 1000.0) as u16;
        Some(Self { name, permille })
    }

    fn specificity(&self) -> u8 {
        match self.name.split_once('/') {
            Some(("*", _)) | None => 0,
            Some((_, "*")) => 1,
            Some(_) => 2,
        }
    }

    fn covers(&self, offer: &str) -> bool {
        self.name == "*/*"
            || self.name.eq_ignore_ascii_case(offer)
            || self.name.strip_suffix("/*").is_some_and(|kind| {
                offer.split_once('/').is_some_and(|(offered, _)| offered.eq_ignore_ascii_case(kind))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, wanted: Option<usize>) {
        assert_eq!(preferred_media_type(accept, &["application/json", "text/plain"]), wanted, "{accept}");
    }

    #[test]
    fn negotiation_ranks_by_quality_then_by_range_order_then_by_offer_order() {
        check("*/*", Some(0));
        check("text/plain", Some(1));
        check("text/*", Some(1));
        check("Text/Plain, application/json", Some(1));
        check("application/json, text/plain", Some(0));
        check("application/json;q=0.5, text/plain;version=0.0.4;q=0.9", Some(1));
        check("text/plain;q=0.2, */*", Some(0));
        check("application/json;q=0, */*;q=0.1", Some(1));
        check("text/html, application/xhtml+xml, */*;q=0.8", Some(0));
    }

    #[test]
    fn repeated_accept_fields_form_one_list() {
        let field = |value| httparse::Header { name: "accept", value };
        let offers = ["application/json", "text/plain"];
        let check = |fields: &[httparse::Header<'_>], wanted| {
            assert_eq!(negotiate(Headers(fields), &offers), wanted);
        };
        check(&[], None);
        check(&[field(b"image/png"), field(b"text/plain")], Some(1));
        check(&[field(b"text/plain;q=0.5"), field(b"application/json;q=0.4")], Some(1));
        check(&[field(b"\xff"), field(b"text/plain")], Some(1));
    }

    #[test]
    fn negotiation_skips_unoffered_types_and_invalid_ranges() {
        check("image/png", None);
        check("text/plain;q=0", None);
        check("text/plain;q=2", None);
        check("", None);
        check("json, text/plain", Some(1));
    }
}
