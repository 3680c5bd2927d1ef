//! Decides whether an admitted row matches the filter of a tail, as PostgreSQL decides it for a
//! stored event. Must not depend on time, queues or HTTP.

use sonic_rs::{JsonContainerTrait, JsonType, JsonValueTrait};

use crate::event::row::Row;
use crate::storage::Filter;

/// A filter without its time range, prepared for many rows.
#[derive(Debug, Default)]
pub(super) struct RowMatcher {
    service: Option<String>,
    /// In lower case.
    text: Option<String>,
    metadata: Vec<MemberMatcher>,
}

/// `metadata.KEY=VALUE`.
#[derive(Debug)]
struct MemberMatcher {
    key: String,
    value: String,
    /// Whether the value is also the spelling of a number, a boolean or null.
    is_literal: bool,
}

impl RowMatcher {
    pub(super) fn new(filter: &Filter) -> Self {
        Self {
            service: filter.service.clone(),
            text: filter.text.as_deref().map(str::to_lowercase),
            metadata: filter.metadata.iter().filter_map(|objects| MemberMatcher::new(objects)).collect(),
        }
    }

    pub(super) fn matches(&self, row: &Row<'_>) -> bool {
        self.service.as_deref().is_none_or(|service| service.as_bytes() == row.service())
            && self.text.as_deref().is_none_or(|text| contains_ignoring_case(row.message(), text))
            && (self.metadata.is_empty()
                || row.metadata().is_some_and(|json| self.metadata.iter().all(|member| member.matches(json))))
    }
}

/// `text` is in lower case.
fn contains_ignoring_case(message: &[u8], text: &str) -> bool {
    let lower = match str::from_utf8(message) {
        Ok(message) => message.to_lowercase(),
        Err(_) => return false,
    };
    lower.contains(text)
}

impl MemberMatcher {
    /// Reads the objects of `containment_objects`: the value as a string, then as a literal.
    fn new(objects: &[String]) -> Option<Self> {
        let object: sonic_rs::Value = sonic_rs::from_str(objects.first()?).ok()?;
        let (key, value) = object.as_object()?.iter().next()?;
        Some(Self { key: key.to_owned(), value: value.as_str()?.to_owned(), is_literal: objects.len() > 1 })
    }

    fn matches(&self, json: &[u8]) -> bool {
        // Values of other members are skipped, not parsed.
        let Ok(member) = sonic_rs::get(json, [self.key.as_str()]) else { return false };
        match member.get_type() {
            JsonType::String => member.as_str() == Some(self.value.as_str()),
            JsonType::Object | JsonType::Array => false,
            JsonType::Null | JsonType::Boolean | JsonType::Number => {
                self.is_literal && is_same_literal(member.as_raw_str(), &self.value)
            }
        }
    }
}

/// Numbers are equal if their values are, as in `jsonb`.
fn is_same_literal(one: &str, other: &str) -> bool {
    one == other || decimal(one).is_some_and(|number| Some(number) == decimal(other))
}

/// Sign, significant digits and exponent of a number. The digits neither begin nor end with 0.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let (is_negative, number) = text.strip_prefix('-').map_or((false, text), |number| (true, number));
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (number, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let significant = digits.trim_end_matches('0');
    let scale = i64::try_from(digits.len() - significant.len()).ok()? - i64::try_from(fraction.len()).ok()?;
    let significant = significant.trim_start_matches('0');
    if significant.is_empty() {
        return Some((false, String::new(), 0));
    }
    Some((is_negative, significant.to_owned(), exponent.saturating_add(scale)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ArrivalNumber, EventId, Timestamp, row};
    use crate::query::Query;

    fn matches(query: &str, service: &str, message: &str, metadata: Option<&str>) -> bool {
        let filter = Query::parse_tail(query, Timestamp::from_millis(90_000_000)).unwrap().filter;
        let (mut bytes, time) = (Vec::new(), Timestamp::from_millis(1));
        row::append_header(&mut bytes, EventId::floor(1), time, time, ArrivalNumber::default());
        row::append_text(&mut bytes, service.as_bytes());
        row::append_text(&mut bytes, message.as_bytes());
        row::append_metadata(&mut bytes, metadata.map(str::as_bytes));
        let row = row::rows(&bytes).next().unwrap();
        RowMatcher::new(&filter).matches(&row)
    }

    #[test]
    fn service_is_equal_and_text_is_contained_in_any_case() {
        for (query, expected) in [
            ("", true),
            ("service=shop", true),
            ("service=sho", false),
            ("service=Shop", false),
            ("q=PAID", true),
            ("q=%C3%89T%C3%89", true),
            ("q=paid+no", false),
            ("service=shop&q=paid", true),
            ("service=shop&q=lost", false),
            ("q=%25", false),
        ] {
            assert_eq!(matches(query, "shop", "order paid in \u{e9}t\u{e9}", None), expected, "{query}");
        }
    }

    #[test]
    fn metadata_member_is_equal_as_text_or_as_a_scalar() {
        let metadata =
            r#"{ "o":{"k":"in"}, "k":"v", "n": 1.50, "b":true, "z":null, "q\u00e9":"x\n", "a":["v"] }"#;
        for (query, expected) in [
            ("metadata.k=v", true),
            ("metadata.k=in", false),
            ("metadata.k=V", false),
            ("metadata.n=1.5", true),
            ("metadata.n=1.50", true),
            ("metadata.n=2", false),
            ("metadata.b=true", true),
            ("metadata.b=false", false),
            ("metadata.z=null", true),
            ("metadata.q%C3%A9=x%0A", true),
            ("metadata.a=v", false),
            ("metadata.o=v", false),
            ("metadata.none=v", false),
            ("metadata.k=v&metadata.b=true", true),
            ("metadata.k=v&metadata.b=false", false),
        ] {
            assert_eq!(matches(query, "s", "m", Some(metadata)), expected, "{query}");
        }
        assert!(!matches("metadata.k=v", "s", "m", None));
    }

    #[test]
    fn numbers_are_equal_by_value_and_exactly() {
        for (one, other, expected) in [
            ("1", "1.0", true),
            ("1.50", "15e-1", true),
            ("100", "1E+2", true),
            ("0", "-0.0", true),
            ("-1", "1", false),
            ("10", "1", false),
            ("9007199254740993", "9007199254740992", false),
            ("true", "1", false),
            ("null", "null", true),
        ] {
            assert_eq!(is_same_literal(one, other), expected, "{one} {other}");
        }
    }
}
