//! Bodies of delimited `io.prometheus.client.MetricFamily` messages, as Prometheus' client libraries send them. Only
//! the dozen fields that the text format can show are read; others are stepped over, as the format wants it.
//!
//! Own code, since it is less than the build step a generator needs. No recursion: the messages nest three deep.

use std::borrow::Cow;

use super::metric::{Family, Histogram, Kind, Parsed, Sample, Summary, Value, count_of};

/// The body is cut off or is no such messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the protobuf body is not valid: {0}")]
pub struct Malformed(&'static str);

const CUT_OFF: Malformed = Malformed("it ends within a message");

/// One field of a message.
enum Field<'a> {
    Integer(u64),
    Double(f64),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Field<'a> {
    fn bytes(self) -> Result<&'a [u8], Malformed> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(Malformed("a field is not of its type")) }
    }

    fn double(self) -> Result<f64, Malformed> {
        if let Self::Double(value) = self { Ok(value) } else { Err(Malformed("a field is not of its type")) }
    }

    fn integer(self) -> Result<u64, Malformed> {
        if let Self::Integer(value) = self { Ok(value) } else { Err(Malformed("a field is not of its type")) }
    }

    /// A name, which is judged by its grammar, or a help text, which is for people.
    fn text(self) -> Result<Cow<'a, str>, Malformed> {
        Ok(String::from_utf8_lossy(self.bytes()?))
    }

    fn strict_text(self) -> Result<Cow<'a, str>, Malformed> {
        str::from_utf8(self.bytes()?)
            .map(Cow::Borrowed)
            .map_err(|_not_utf8| Malformed("a label is not UTF-8"))
    }
}

/// A message's fields one by one.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(CUT_OFF)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number is longer than 10 bytes"))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Malformed> {
        let count = usize::try_from(count).map_err(|_too_long| CUT_OFF)?;
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(CUT_OFF)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Integer(self.varint()?),
            1 => {
                let bytes = self.take(8)?.try_into().expect("as many were asked for");
                Field::Double(f64::from_le_bytes(bytes))
            }
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Field::Other
            }
            _ => return Err(Malformed("a field has a wire type that is not known")),
        };
        Ok(Some((tag >> 3, field)))
    }

    /// Calls `each` with every field and its number.
    fn fields(
        mut self,
        mut each: impl FnMut(u64, Field<'a>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        while let Some((number, field)) = self.next()? {
            each(number, field)?;
        }
        Ok(())
    }
}

/// Reads all families of a body. Of two with one name the last counts, as it does for Pushgateway.
pub fn parse(body: &[u8]) -> Result<Parsed<'_>, Malformed> {
    let mut parsed = Parsed::default();
    let mut body = Message(body);
    while !body.0.is_empty() {
        let length = body.varint()?;
        let family = family(body.take(length)?, &mut parsed)?;
        parsed.families.retain(|known| known.name != family.name);
        parsed.families.push(family);
    }
    parsed.families.retain(|family| !family.samples.is_empty());
    Ok(parsed)
}

fn family<'a>(bytes: &'a [u8], parsed: &mut Parsed<'a>) -> Result<Family<'a>, Malformed> {
    let mut family = Family { name: "".into(), help: "".into(), kind: Kind::Counter, samples: Vec::new() };
    let mut metrics = Vec::new();
    let mut kind = 0;
    Message(bytes).fields(|number, field| {
        match number {
            1 => family.name = field.text()?,
            2 => family.help = field.text()?,
            3 => kind = field.integer()?,
            4 => metrics.push(field.bytes()?),
            _ => {}
        }
        Ok(())
    })?;
    let known = usize::try_from(kind).ok().and_then(|kind| Kind::ALL.get(kind));
    let Some(known) = known else {
        parsed
            .flaw
            .get_or_insert_with(|| format!("metric family {:?} has a type that is not known", family.name));
        return Ok(family);
    };
    family.kind = *known;
    for bytes in metrics {
        let (sample, timestamp) = metric(bytes, family.kind)?;
        parsed.timestamps |= timestamp;
        if let Some(sample) = sample {
            family.samples.push(sample);
        } else {
            let what = || format!("a metric of family {:?} is not a {}", family.name, family.kind.name());
            parsed.flaw.get_or_insert_with(what);
        }
    }
    Ok(family)
}

/// The metric, if it holds a value of that kind, and whether it has a timestamp.
fn metric(bytes: &[u8], kind: Kind) -> Result<(Option<Sample<'_>>, bool), Malformed> {
    let (mut labels, mut value, mut timestamp) = (Vec::new(), None, false);
    Message(bytes).fields(|number, field| {
        match (number, kind) {
            (1, _) => labels.push(label(field.bytes()?)?),
            (2, Kind::Gauge) | (3, Kind::Counter) | (5, Kind::Untyped) => {
                value = Some(Value::Number(number_of(field.bytes()?)?));
            }
            (4, Kind::Summary) => value = Some(Value::Summary(Box::new(summary(field.bytes()?)?))),
            (7, Kind::Histogram) => value = Some(Value::Histogram(Box::new(histogram(field.bytes()?)?))),
            (6, _) => timestamp = true,
            _ => {}
        }
        Ok(())
    })?;
    Ok((value.map(|value| Sample { labels, value }), timestamp))
}

fn label(bytes: &[u8]) -> Result<super::metric::Label<'_>, Malformed> {
    let mut label = (Cow::default(), Cow::default());
    Message(bytes).fields(|number, field| {
        match number {
            1 => label.0 = field.strict_text()?,
            2 => label.1 = field.strict_text()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(label)
}

fn number_of(bytes: &[u8]) -> Result<f64, Malformed> {
    let mut value = 0.0;
    Message(bytes).fields(|number, field| {
        if number == 1 {
            value = field.double()?;
        }
        Ok(())
    })?;
    Ok(value)
}

fn summary(bytes: &[u8]) -> Result<Summary, Malformed> {
    let mut summary = Summary::default();
    Message(bytes).fields(|number, field| {
        match number {
            1 => summary.count = field.integer()?,
            2 => summary.sum = field.double()?,
            3 => {
                let mut quantile = (0.0, 0.0);
                Message(field.bytes()?).fields(|number, field| {
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

/// The classic buckets. Native ones cannot be shown in text and are left out.
fn histogram(bytes: &[u8]) -> Result<Histogram, Malformed> {
    let mut histogram = Histogram::default();
    Message(bytes).fields(|number, field| {
        match number {
            1 => histogram.count = field.integer()?,
            2 => histogram.sum = field.double()?,
            // The count of a histogram of floats.
            4 => histogram.count = count_of(field.double()?),
            3 => {
                let (mut bound, mut count) = (0.0, 0);
                Message(field.bytes()?).fields(|number, field| {
                    match number {
                        1 => count = field.integer()?,
                        2 => bound = field.double()?,
                        4 => count = count_of(field.double()?),
                        _ => {}
                    }
                    Ok(())
                })?;
                histogram.buckets.push((bound, count));
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(histogram)
}

/// Writes messages as clients do.
#[cfg(test)]
pub(super) mod encode {
    use super::*;

    fn varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        out.push(u8::try_from(value).unwrap());
    }

    fn bytes(out: &mut Vec<u8>, number: u64, value: &[u8]) {
        varint(out, number << 3 | 2);
        varint(out, value.len() as u64);
        out.extend_from_slice(value);
    }

    fn double(out: &mut Vec<u8>, number: u64, value: f64) {
        varint(out, number << 3 | 1);
        out.extend_from_slice(&value.to_le_bytes());
    }

    fn integer(out: &mut Vec<u8>, number: u64, value: u64) {
        varint(out, number << 3);
        varint(out, value);
    }

    pub(in crate::gateway) fn family(out: &mut Vec<u8>, family: &Family<'_>, timestamp: Option<u64>) {
        let mut message = Vec::new();
        bytes(&mut message, 1, family.name.as_bytes());
        bytes(&mut message, 2, family.help.as_bytes());
        integer(&mut message, 3, family.kind as u64);
        // A unit, which nobody shows.
        bytes(&mut message, 5, b"s");
        for sample in &family.samples {
            let mut metric = Vec::new();
            for (name, value) in &sample.labels {
                let mut label = Vec::new();
                bytes(&mut label, 1, name.as_bytes());
                bytes(&mut label, 2, value.as_bytes());
                bytes(&mut metric, 1, &label);
            }
            let mut inner = Vec::new();
            let number = match &sample.value {
                Value::Number(value) => {
                    double(&mut inner, 1, *value);
                    match family.kind {
                        Kind::Gauge => 2,
                        Kind::Counter => 3,
                        Kind::Untyped | Kind::Summary | Kind::Histogram => 5,
                    }
                }
                Value::Summary(summary) => {
                    integer(&mut inner, 1, summary.count);
                    double(&mut inner, 2, summary.sum);
                    for (quantile, value) in &summary.quantiles {
                        let mut pair = Vec::new();
                        double(&mut pair, 1, *quantile);
                        double(&mut pair, 2, *value);
                        bytes(&mut inner, 3, &pair);
                    }
                    4
                }
                Value::Histogram(histogram) => {
                    integer(&mut inner, 1, histogram.count);
                    double(&mut inner, 2, histogram.sum);
                    for (bound, count) in &histogram.buckets {
                        let mut pair = Vec::new();
                        integer(&mut pair, 1, *count);
                        double(&mut pair, 2, *bound);
                        bytes(&mut inner, 3, &pair);
                    }
                    7
                }
            };
            bytes(&mut metric, number, &inner);
            if let Some(timestamp) = timestamp {
                integer(&mut metric, 6, timestamp);
            }
            bytes(&mut message, 4, &metric);
        }
        varint(out, message.len() as u64);
        out.extend_from_slice(&message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families() -> Vec<Family<'static>> {
        let sample = |value| Sample { labels: vec![("l".into(), "v".into())], value };
        let family = |name: &'static str, kind, value| Family {
            name: name.into(),
            help: "h".into(),
            kind,
            samples: vec![sample(value)],
        };
        vec![
            family("c", Kind::Counter, Value::Number(3.0)),
            family("g", Kind::Gauge, Value::Number(-1.5)),
            family("u", Kind::Untyped, Value::Number(f64::INFINITY)),
            family(
                "h",
                Kind::Histogram,
                Value::Histogram(Box::new(Histogram {
                    buckets: vec![(0.5, 2), (1.0, 3)],
                    sum: 9.0,
                    count: 4,
                })),
            ),
            family(
                "s",
                Kind::Summary,
                Value::Summary(Box::new(Summary { quantiles: vec![(0.5, 2.0)], sum: 9.0, count: 4 })),
            ),
        ]
    }

    #[test]
    fn messages_are_read_as_they_were_written_and_cut_ones_are_refused() {
        let mut body = Vec::new();
        for family in &families() {
            encode::family(&mut body, family, None);
        }
        let parsed = parse(&body).unwrap();
        assert_eq!(parsed.families, families());
        assert!(!parsed.timestamps && parsed.flaw.is_none());
        let mut whole = 0;
        for end in 0..body.len() {
            whole += usize::from(parse(&body[..end]).is_ok());
        }
        assert_eq!(whole, families().len(), "only at the ends of messages");
    }

    #[test]
    fn of_two_families_with_a_name_the_last_counts_and_timestamps_are_noticed() {
        let mut body = Vec::new();
        let mut family = families().remove(0);
        encode::family(&mut body, &family, None);
        family.samples[0].value = Value::Number(8.0);
        encode::family(&mut body, &family, Some(7));
        let parsed = parse(&body).unwrap();
        assert_eq!(parsed.families, [family]);
        assert!(parsed.timestamps);
    }

    #[test]
    fn a_metric_without_a_value_of_its_family_s_type_is_a_flaw() {
        let mut family = families().remove(0);
        let mut body = Vec::new();
        encode::family(&mut body, &family, None);
        // The type becomes a gauge's, the value stays a counter's.
        let at = body.windows(2).position(|pair| pair == [3 << 3, 0]).unwrap();
        body[at + 1] = 1;
        assert!(parse(&body).unwrap().flaw.unwrap().contains("is not a gauge"));
        body[at + 1] = 9;
        assert!(parse(&body).unwrap().flaw.unwrap().contains("not known"));
        family.samples.clear();
        body.clear();
        encode::family(&mut body, &family, None);
        assert_eq!(parse(&body).unwrap().families, []);
    }

    #[test]
    fn bytes_that_are_no_messages_are_refused() {
        for bad in [&[5][..], &[2, 0xff, 0xff], &[1, 0x0b], &[2, 0x08, 1], &[0x80; 11]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
