//! Parses bodies of delimited `io.prometheus.client.MetricFamily` messages, as sent by Prometheus'
//! client libraries. Fields that the text format cannot represent are skipped.
//!
//! Handwritten, since a dozen fields do not justify the build step of a code generator. No
//! recursion: the messages nest three levels deep.

use std::borrow::Cow;
use std::collections::HashMap;

use super::metric::{
    Histogram, MetricKind, ParsedBody, ParsedFamily, ParsedSample, SeriesValue, Summary, not_a_count,
    whole_count,
};
use super::native::NativeCounts;
use super::native_protobuf::NativeFields;
use super::steps;
use super::validate::{BUCKETS_MAX, LABELS_MAX, ParseLimits};
use crate::http::problem::ECHO_BYTES_MAX;
use crate::json::text::truncate;

/// The reason why a body cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseProtobufError {
    /// It is truncated or malformed.
    #[error("the protobuf body is not valid: {0}")]
    Invalid(&'static str),
    #[error("the field {0} occurs more than {1} times")]
    TooMany(&'static str, usize),
}

use ParseProtobufError::{Invalid, TooMany};

const TRUNCATED: ParseProtobufError = Invalid("it is truncated within a message");

/// The value of one field, by wire type.
pub(super) enum WireField<'a> {
    Integer(u64),
    Double(f64),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> WireField<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], ParseProtobufError> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(Invalid("a field has the wrong type")) }
    }

    pub(super) fn double(self) -> Result<f64, ParseProtobufError> {
        if let Self::Double(value) = self { Ok(value) } else { Err(Invalid("a field has the wrong type")) }
    }

    pub(super) fn integer(self) -> Result<u64, ParseProtobufError> {
        if let Self::Integer(value) = self { Ok(value) } else { Err(Invalid("a field has the wrong type")) }
    }

    /// Lossy: help texts are informational.
    fn text(self) -> Result<Cow<'a, str>, ParseProtobufError> {
        Ok(String::from_utf8_lossy(self.bytes()?))
    }

    fn strict_text(self) -> Result<Cow<'a, str>, ParseProtobufError> {
        str::from_utf8(self.bytes()?)
            .map(Cow::Borrowed)
            .map_err(|_not_utf8| Invalid("a name or a label is not UTF-8"))
    }
}

/// Reads the fields of a message.
pub(super) struct MessageReader<'a>(&'a [u8]);

impl<'a> MessageReader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn varint(&mut self) -> Result<u64, ParseProtobufError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(TRUNCATED)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Invalid("a number is longer than 10 bytes"))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], ParseProtobufError> {
        let count = usize::try_from(count).map_err(|_too_long| TRUNCATED)?;
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn double(&mut self) -> Result<f64, ParseProtobufError> {
        let bytes = self.take(8)?.try_into().expect("take returns this many bytes");
        Ok(f64::from_le_bytes(bytes))
    }

    fn next(&mut self) -> Result<Option<(u64, WireField<'a>)>, ParseProtobufError> {
        steps::add(1);
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => WireField::Integer(self.varint()?),
            1 => WireField::Double(self.double()?),
            2 => {
                let length = self.varint()?;
                WireField::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                WireField::Other
            }
            _ => return Err(Invalid("a field has an unknown wire type")),
        };
        Ok(Some((tag >> 3, field)))
    }

    /// Calls `each` with the number and value of every field.
    pub(super) fn fields(
        mut self,
        mut each: impl FnMut(u64, WireField<'a>) -> Result<(), ParseProtobufError>,
    ) -> Result<(), ParseProtobufError> {
        while let Some((number, field)) = self.next()? {
            each(number, field)?;
        }
        Ok(())
    }
}

/// Parses all families of a body. A repeated family replaces the earlier one, as in Pushgateway.
pub fn parse(body: &[u8], limits: ParseLimits) -> Result<ParsedBody<'_>, ParseProtobufError> {
    let mut parsed = ParsedBody::default();
    let mut by_name: HashMap<Cow<'_, str>, usize> = HashMap::new();
    let mut metrics = 0;
    let mut body = MessageReader(body);
    while !body.0.is_empty() {
        steps::add(1);
        let length = body.varint()?;
        let family = parse_family(body.take(length)?, &mut parsed, (&mut metrics, limits.samples_max))?;
        if let Some(at) = by_name.get(&family.name) {
            parsed.families[*at] = family;
        } else if by_name.len() == limits.families_max {
            return Err(TooMany("MetricFamily", limits.families_max));
        } else {
            by_name.insert(family.name.clone(), parsed.families.len());
            parsed.families.push(family);
        }
    }
    parsed.families.retain(|family| !family.samples.is_empty());
    Ok(parsed)
}

/// `metrics_read` is the number of metrics in the families before this one.
fn parse_family<'a>(
    bytes: &'a [u8],
    parsed: &mut ParsedBody<'a>,
    (metrics_read, metrics_max): (&mut usize, usize),
) -> Result<ParsedFamily<'a>, ParseProtobufError> {
    let mut family =
        ParsedFamily { name: "".into(), help: "".into(), kind: MetricKind::Counter, samples: Vec::new() };
    let mut metrics = Vec::new();
    let mut kind = 0;
    MessageReader(bytes).fields(|number, field| {
        match number {
            1 => family.name = field.strict_text()?,
            2 => family.help = field.text()?,
            3 => kind = field.integer()?,
            4 => {
                *metrics_read += 1;
                if *metrics_read > metrics_max {
                    return Err(TooMany("metric", metrics_max));
                }
                metrics.push(field.bytes()?);
            }
            _ => {}
        }
        Ok(())
    })?;
    let known = usize::try_from(kind).ok().and_then(|kind| MetricKind::ALL.get(kind));
    let Some(known) = known else {
        parsed
            .inconsistency
            .get_or_insert_with(|| format!("metric family {} has an unknown type", echo(&family.name)));
        return Ok(family);
    };
    family.kind = *known;
    let mut fraction = None;
    for bytes in metrics {
        let (sample, timestamp) = parse_metric(bytes, family.kind, &mut fraction)?;
        parsed.has_timestamps |= timestamp;
        if let Some(sample) = sample {
            family.samples.push(sample);
        } else {
            let what =
                || format!("a metric of family {} is not a {}", echo(&family.name), family.kind.name());
            parsed.inconsistency.get_or_insert_with(what);
        }
    }
    if let Some(value) = fraction {
        let name = truncate(&family.name, ECHO_BYTES_MAX);
        parsed.inconsistency.get_or_insert_with(|| not_a_count(&name, family.kind, value));
    }
    Ok(family)
}

fn echo(name: &str) -> String {
    format!("{:?}", truncate(name, ECHO_BYTES_MAX))
}

/// The metric, if it has a value of this kind, and whether it has a timestamp.
fn parse_metric<'a>(
    bytes: &'a [u8],
    kind: MetricKind,
    fraction: &mut Option<f64>,
) -> Result<(Option<ParsedSample<'a>>, bool), ParseProtobufError> {
    let (mut labels, mut value, mut timestamp) = (Vec::new(), None, false);
    MessageReader(bytes).fields(|number, field| {
        match (number, kind) {
            (1, _) if labels.len() == LABELS_MAX => return Err(TooMany("label", LABELS_MAX)),
            (1, _) => labels.push(parse_label(field.bytes()?)?),
            (2, MetricKind::Gauge) | (3, MetricKind::Counter) | (5, MetricKind::Untyped) => {
                value = Some(SeriesValue::Number(parse_number(field.bytes()?)?));
            }
            (4, MetricKind::Summary) => {
                value = Some(SeriesValue::Summary(Box::new(parse_summary(field.bytes()?)?)));
            }
            (7, MetricKind::Histogram) => {
                let histogram = parse_histogram(field.bytes()?, fraction)?;
                value = Some(SeriesValue::Histogram(Box::new(histogram)));
            }
            (6, _) => timestamp = true,
            _ => {}
        }
        Ok(())
    })?;
    Ok((value.map(|value| ParsedSample { labels, value }), timestamp))
}

fn parse_label(bytes: &[u8]) -> Result<super::metric::Label<'_>, ParseProtobufError> {
    let mut label = (Cow::default(), Cow::default());
    MessageReader(bytes).fields(|number, field| {
        match number {
            1 => label.0 = field.strict_text()?,
            2 => label.1 = field.strict_text()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(label)
}

fn parse_number(bytes: &[u8]) -> Result<f64, ParseProtobufError> {
    let mut value = 0.0;
    MessageReader(bytes).fields(|number, field| {
        if number == 1 {
            value = field.double()?;
        }
        Ok(())
    })?;
    Ok(value)
}

fn parse_summary(bytes: &[u8]) -> Result<Summary, ParseProtobufError> {
    let mut summary = Summary::default();
    MessageReader(bytes).fields(|number, field| {
        match number {
            1 => summary.count = field.integer()?,
            2 => summary.sum = field.double()?,
            3 if summary.quantiles.len() == BUCKETS_MAX => return Err(TooMany("quantile", BUCKETS_MAX)),
            3 => {
                let mut quantile = (0.0, 0.0);
                MessageReader(field.bytes()?).fields(|number, field| {
                    match number {
                        1 => quantile.0 = field.double()?,
                        2 => quantile.1 = field.double()?,
                        _ => {}
                    }
                    Ok(())
                })?;
                summary.quantiles.push(quantile);
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(summary)
}

/// The counts of classic buckets must be whole numbers, and so must be the count of a float histogram
/// that is not native: `fraction` becomes one that is not.
fn parse_histogram(bytes: &[u8], fraction: &mut Option<f64>) -> Result<Histogram, ParseProtobufError> {
    let (mut histogram, mut native, mut float_count) = (Histogram::default(), NativeFields::default(), None);
    let mut count = |value: f64| {
        whole_count(value).unwrap_or_else(|| {
            *fraction = Some(value);
            0
        })
    };
    MessageReader(bytes).fields(|number, field| {
        match number {
            1 => histogram.count = field.integer()?,
            2 => histogram.sum = field.double()?,
            4 => float_count = Some(field.double()?),
            3 if histogram.buckets.len() == BUCKETS_MAX => return Err(TooMany("bucket", BUCKETS_MAX)),
            3 => {
                let (mut bound, mut below) = (0.0, 0);
                MessageReader(field.bytes()?).fields(|number, field| {
                    match number {
                        1 => below = field.integer()?,
                        2 => bound = field.double()?,
                        4 => below = count(field.double()?),
                        _ => {}
                    }
                    Ok(())
                })?;
                histogram.buckets.push((bound, below));
            }
            _ => native.set(number, field)?,
        }
        Ok(())
    })?;
    let native = native.finish(float_count);
    match (native.as_ref().map(|native| &native.counts), float_count) {
        (Some(NativeCounts::Float { count, .. }), _) => {
            histogram.count = whole_count(count.trunc()).unwrap_or_default();
        }
        (_, Some(float_count)) => histogram.count = count(float_count),
        (Some(NativeCounts::Integer { .. }) | None, None) => {}
    }
    histogram.native = native.map(Box::new);
    Ok(histogram)
}

/// Encodes messages, for tests.
#[cfg(test)]
pub(super) mod encode {
    use super::*;
    use crate::gateway::protobuf_writer as write;

    pub(in crate::gateway) fn family(out: &mut Vec<u8>, family: &ParsedFamily<'_>, timestamp: Option<u64>) {
        let mut message = Vec::new();
        write::family_head(&mut message, &family.name, &family.help, family.kind);
        // The unit, which is ignored.
        write::bytes(&mut message, 5, b"s");
        for sample in &family.samples {
            let mut metric = Vec::new();
            write::metric(&mut metric, sample.labels.iter().cloned(), family.kind, &sample.value);
            if let Some(timestamp) = timestamp {
                write::integer(&mut metric, 6, timestamp);
            }
            write::bytes(&mut message, 4, &metric);
        }
        write::varint(out, message.len() as u64);
        out.extend_from_slice(&message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::native::NativeHistogram;
    use crate::gateway::native::tests::{float, integer};

    fn native(native: NativeHistogram, count: u64) -> SeriesValue {
        let native = Some(Box::new(native));
        SeriesValue::Histogram(Box::new(Histogram { buckets: Vec::new(), sum: 2.5, count, native }))
    }

    fn families() -> Vec<ParsedFamily<'static>> {
        let sample = |value| ParsedSample { labels: vec![("l".into(), "v".into())], value };
        let family = |name: &'static str, kind, value| ParsedFamily {
            name: name.into(),
            help: "h".into(),
            kind,
            samples: vec![sample(value)],
        };
        vec![
            family("c", MetricKind::Counter, SeriesValue::Number(3.0)),
            family("g", MetricKind::Gauge, SeriesValue::Number(-1.5)),
            family("u", MetricKind::Untyped, SeriesValue::Number(f64::INFINITY)),
            family(
                "h",
                MetricKind::Histogram,
                SeriesValue::Histogram(Box::new(Histogram {
                    buckets: vec![(0.5, 2), (1.0, 3)],
                    sum: 9.0,
                    count: 4,
                    native: None,
                })),
            ),
            family("ni", MetricKind::Histogram, native(integer(), 7)),
            family("nf", MetricKind::Histogram, native(float(), 4)),
            family(
                "s",
                MetricKind::Summary,
                SeriesValue::Summary(Box::new(Summary { quantiles: vec![(0.5, 2.0)], sum: 9.0, count: 4 })),
            ),
        ]
    }

    #[test]
    fn parser_reads_encoded_messages_and_refuses_truncated_ones() {
        let mut body = Vec::new();
        for family in &families() {
            encode::family(&mut body, family, None);
        }
        let parsed = parse(&body, ParseLimits::NONE).unwrap();
        assert_eq!(parsed.families, families());
        assert!(!parsed.has_timestamps && parsed.inconsistency.is_none());
        let mut whole = 0;
        for end in 0..body.len() {
            whole += usize::from(parse(&body[..end], ParseLimits::NONE).is_ok());
        }
        assert_eq!(whole, families().len(), "only at message boundaries");
    }

    #[test]
    fn repeated_family_replaces_the_earlier_one_and_timestamps_are_reported() {
        let mut body = Vec::new();
        let mut family = families().remove(0);
        encode::family(&mut body, &family, None);
        family.samples[0].value = SeriesValue::Number(8.0);
        encode::family(&mut body, &family, Some(7));
        let parsed = parse(&body, ParseLimits::NONE).unwrap();
        assert_eq!(parsed.families, [family]);
        assert!(parsed.has_timestamps);
    }

    #[test]
    fn metric_without_a_value_of_its_type_is_an_inconsistency() {
        let mut family = families().remove(0);
        let mut body = Vec::new();
        encode::family(&mut body, &family, None);
        // The type becomes that of a gauge, the value stays that of a counter.
        let at = body.windows(2).position(|pair| pair == [3 << 3, 0]).unwrap();
        body[at + 1] = 1;
        assert!(parse(&body, ParseLimits::NONE).unwrap().inconsistency.unwrap().contains("is not a gauge"));
        body[at + 1] = 9;
        assert!(parse(&body, ParseLimits::NONE).unwrap().inconsistency.unwrap().contains("unknown type"));
        family.samples.clear();
        body.clear();
        encode::family(&mut body, &family, None);
        assert_eq!(parse(&body, ParseLimits::NONE).unwrap().families, []);
    }

    #[test]
    fn parser_refuses_malformed_messages() {
        for bad in [&[5][..], &[2, 0xff, 0xff], &[1, 0x0b], &[2, 0x08, 1], &[0x80; 11]] {
            assert!(parse(bad, ParseLimits::NONE).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn native_fields_may_be_unpacked_and_are_bounded() {
        use crate::gateway::protobuf_writer as write;
        let histogram = |deltas: usize| {
            let mut message = Vec::new();
            write::integer(&mut message, 1, 1);
            let mut span = Vec::new();
            write::integer(&mut span, 2, deltas as u64);
            write::bytes(&mut message, 12, &span);
            for nth in 0..deltas {
                // 1, then -1, then zeros.
                write::integer(&mut message, 13, [2, 1].get(nth).copied().unwrap_or(0));
            }
            parse_histogram(&message, &mut None)
        };
        let native = histogram(3).unwrap().native.unwrap();
        assert_eq!(native.check(1, 1.0), Ok(()));
        assert_eq!(
            native.counts,
            NativeCounts::Integer { zero: 0, positive: vec![1, -1, 0], negative: vec![] }
        );
        assert!(histogram(1000).is_ok());
        assert_eq!(histogram(1001), Err(TooMany("bucket of a native histogram", 1000)));
    }
}
