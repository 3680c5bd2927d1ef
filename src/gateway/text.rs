//! Parses the text exposition format 0.0.4. Accepts and rejects the same inputs as Prometheus' Go
//! parser, so that existing clients behave the same. One pass, no recursion.

use std::borrow::Cow;
use std::collections::HashMap;

use super::metric::{
    Histogram, Label, MetricKind, ParsedBody, ParsedFamily, ParsedSample, SeriesValue, Summary, not_a_count,
    parse_float, whole_count,
};
use super::names::{NameKind, is_legacy_byte};
use super::steps;
use super::validate::{LABELS_MAX, NAME_BYTES_MAX, ParseLimits};
use crate::http::problem::ECHO_BYTES_MAX;
use crate::json::text::truncate;

/// A syntax error with its line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("text format parsing error in line {line}: {reason}")]
pub struct ParseTextError {
    pub line: usize,
    pub reason: String,
}

/// A family while it is parsed. Help and kind are `None` until a line sets them.
#[derive(Debug)]
struct FamilyBuilder<'a> {
    name: Cow<'a, str>,
    help: Option<Cow<'a, str>>,
    kind: Option<MetricKind>,
    samples: Vec<ParsedSample<'a>>,
}

struct Parser<'a> {
    limits: ParseLimits,
    rest: &'a [u8],
    line: usize,
    families: Vec<FamilyBuilder<'a>>,
    by_name: HashMap<Cow<'a, str>, usize>,
    /// The index of the sample of a histogram or summary, by family index and rendered labels
    /// without `le` or `quantile`.
    samples: HashMap<(usize, String), usize>,
    /// Lines with a value.
    lines: usize,
    has_timestamps: bool,
    inconsistency: Option<String>,
}

/// The component of a histogram or summary that a line belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SamplePart {
    Value,
    Count,
    Sum,
}

pub fn parse(body: &[u8], limits: ParseLimits) -> Result<ParsedBody<'_>, ParseTextError> {
    let mut parser = Parser {
        limits,
        rest: body,
        line: 0,
        families: Vec::new(),
        by_name: HashMap::new(),
        samples: HashMap::new(),
        lines: 0,
        has_timestamps: false,
        inconsistency: None,
    };
    while !parser.rest.is_empty() {
        parser.line += 1;
        parser.parse_line()?;
    }
    let (has_timestamps, inconsistency) = (parser.has_timestamps, parser.inconsistency);
    let families = parser.families.into_iter().filter(|family| !family.samples.is_empty());
    let families = families.map(|family| ParsedFamily {
        name: family.name,
        help: family.help.unwrap_or_default(),
        kind: family.kind.unwrap_or(MetricKind::Untyped),
        samples: family.samples,
    });
    Ok(ParsedBody { families: families.collect(), has_timestamps, inconsistency })
}

impl<'a> Parser<'a> {
    fn parse_line(&mut self) -> Result<(), ParseTextError> {
        steps::add(1);
        self.skip_blanks();
        match self.peek() {
            None => Ok(()),
            Some(b'\n') => {
                self.advance();
                Ok(())
            }
            Some(b'#') => {
                self.advance();
                self.parse_comment()
            }
            Some(_) => self.parse_sample(),
        }
    }

    fn parse_comment(&mut self) -> Result<(), ParseTextError> {
        self.skip_blanks();
        let keyword = self.take_token();
        if !matches!(keyword, b"HELP" | b"TYPE") {
            self.take_line()?;
            return Ok(());
        }
        self.skip_blanks();
        let name = self.take_any_name(NameKind::Metric)?;
        match self.peek() {
            None => return Err(self.unexpected_end()),
            Some(b'\n') => {
                self.advance();
                return Ok(());
            }
            Some(b' ' | b'\t') if !name.is_empty() => {}
            Some(_) => return Err(self.error("invalid metric name in comment")),
        }
        let (at, _) = self.family_index(&name)?;
        self.skip_blanks();
        if self.peek() == Some(b'\n') {
            self.advance();
            return Ok(());
        }
        let line = self.take_line()?;
        let family = &mut self.families[at];
        if keyword == b"HELP" {
            if family.help.is_some() {
                return Err(self.error(format!("second HELP line for metric name {name:?}")));
            }
            let help = unescape_help(line).map_err(|byte| self.bad_escape(byte))?;
            self.families[at].help = Some(help);
        } else {
            if family.kind.is_some() {
                let reason =
                    format!("second TYPE line for metric name {name:?}, or TYPE reported after samples");
                return Err(self.error(reason));
            }
            let kind =
                MetricKind::ALL.into_iter().find(|kind| line.eq_ignore_ascii_case(kind.name().as_bytes()));
            let Some(kind) = kind else {
                return Err(self.error(format!("unknown metric type {}", echo(line))));
            };
            family.kind = Some(kind);
        }
        Ok(())
    }

    fn parse_sample(&mut self) -> Result<(), ParseTextError> {
        // With braces the name is the first item of the list of labels.
        let is_braced = self.peek() == Some(b'{');
        if is_braced {
            self.advance();
            self.skip_blanks();
        }
        let name = self.take_any_name(NameKind::Metric)?;
        if name.is_empty() {
            return Err(self.error("invalid metric name"));
        }
        self.lines += 1;
        if self.lines > self.limits.samples_max {
            let reason = format!("more than {} series; see PUSHED_SERIES_MAX", self.limits.samples_max);
            return Err(self.error(reason));
        }
        let (at, part) = self.family_index(&name)?;
        let kind = *self.families[at].kind.get_or_insert(MetricKind::Untyped);
        self.skip_blanks();
        // `le` or `quantile` distinguishes the lines of one sample and is not a label of it.
        let part_label = match kind {
            MetricKind::Summary => "quantile",
            MetricKind::Histogram => "le",
            MetricKind::Counter | MetricKind::Gauge | MetricKind::Untyped => "",
        };
        let mut labels = Vec::new();
        let mut bound = None;
        if is_braced {
            match self.peek() {
                Some(b',') => self.advance(),
                Some(b'}') => {}
                None => return Err(self.unexpected_end()),
                Some(_) => return Err(self.error(format!("unexpected end of metric name {name:?}"))),
            }
        }
        if is_braced || self.peek() == Some(b'{') {
            if !is_braced {
                self.advance();
            }
            self.parse_labels(&name, part_label, &mut labels, &mut bound)?;
            self.skip_blanks();
        }
        let word = self.take_token();
        // The line must be terminated.
        if self.peek().is_none() {
            return Err(self.unexpected_end());
        }
        let Some(value) = str::from_utf8(word).ok().and_then(parse_float) else {
            return Err(self.error(format!("expected float as value, got {}", echo(word))));
        };
        self.store_sample(at, kind, part, labels, bound, value);
        self.parse_end_of_sample()
    }

    /// Parses the end of the line or a timestamp.
    fn parse_end_of_sample(&mut self) -> Result<(), ParseTextError> {
        if self.peek() == Some(b'\n') {
            self.advance();
            return Ok(());
        }
        self.skip_blanks();
        let word = self.take_token();
        if self.peek().is_none() {
            return Err(self.unexpected_end());
        }
        if !str::from_utf8(word).is_ok_and(|word| word.parse::<i64>().is_ok()) {
            return Err(self.error(format!("expected integer as timestamp, got {}", echo(word))));
        }
        self.has_timestamps = true;
        let line = self.take_line()?;
        if line.is_empty() {
            Ok(())
        } else {
            Err(self.error(format!("spurious string after timestamp: {}", echo(line))))
        }
    }

    fn store_sample(
        &mut self,
        at: usize,
        kind: MetricKind,
        part: SamplePart,
        labels: Vec<Label<'a>>,
        bound: Option<f64>,
        value: f64,
    ) {
        let family = &mut self.families[at];
        if !matches!(kind, MetricKind::Summary | MetricKind::Histogram) {
            family.samples.push(ParsedSample { labels, value: SeriesValue::Number(value) });
            return;
        }
        let key = super::metric::render_labels(&mut labels.clone());
        let nth = *self.samples.entry((at, key)).or_insert_with(|| {
            let value = if kind == MetricKind::Summary {
                SeriesValue::Summary(Box::default())
            } else {
                SeriesValue::Histogram(Box::default())
            };
            family.samples.push(ParsedSample { labels, value });
            family.samples.len() - 1
        });
        let bound = bound.filter(|bound| !bound.is_nan());
        if part == SamplePart::Value && bound.is_none() {
            let (name, kind) = (&family.name, kind.name());
            let reason = || format!("a line of the {kind} {name:?} has no number as its bucket or quantile");
            self.inconsistency.get_or_insert_with(reason);
        }
        let is_count =
            part == SamplePart::Count || (part == SamplePart::Value && kind == MetricKind::Histogram);
        let counted = whole_count(value).unwrap_or(0);
        if is_count && whole_count(value).is_none() {
            let name = &family.name;
            self.inconsistency.get_or_insert_with(|| not_a_count(name, kind, value));
        }
        match &mut family.samples[nth].value {
            SeriesValue::Number(_) => unreachable!("BUG: a family has one kind"),
            SeriesValue::Summary(summary) => {
                let Summary { quantiles, sum, count } = &mut **summary;
                match part {
                    SamplePart::Count => *count = counted,
                    SamplePart::Sum => *sum = value,
                    SamplePart::Value => quantiles.extend(bound.map(|quantile| (quantile, value))),
                }
            }
            SeriesValue::Histogram(histogram) => {
                let Histogram { buckets, sum, count, native: _ } = &mut **histogram;
                match part {
                    SamplePart::Count => *count = counted,
                    SamplePart::Sum => *sum = value,
                    SamplePart::Value => buckets.extend(bound.map(|bound| (bound, counted))),
                }
            }
        }
    }

    /// Returns the index of the family of a name, created if needed, and the component for the
    /// suffix of the name.
    #[expect(clippy::ptr_arg, reason = "a name that is borrowed from the body is kept as such")]
    fn family_index(&mut self, name: &Cow<'a, str>) -> Result<(usize, SamplePart), ParseTextError> {
        steps::add(1);
        if let Some(at) = self.by_name.get(&**name) {
            return Ok((*at, SamplePart::Value));
        }
        for (suffix, part) in
            [("_count", SamplePart::Count), ("_sum", SamplePart::Sum), ("_bucket", SamplePart::Value)]
        {
            let Some(base) = name.strip_suffix(suffix).filter(|base| !base.is_empty()) else { continue };
            let Some(at) = self.by_name.get(base) else { continue };
            let kind = self.families[*at].kind;
            if kind.is_some_and(|kind| kind.suffixes().contains(&suffix)) {
                return Ok((*at, part));
            }
        }
        let at = self.families.len();
        if at == self.limits.families_max {
            return Err(self.error(format!("more than {at} metric names in one push")));
        }
        self.families.push(FamilyBuilder { name: name.clone(), help: None, kind: None, samples: Vec::new() });
        self.by_name.insert(name.clone(), at);
        Ok((at, SamplePart::Value))
    }

    /// Parses labels, from after the opening brace to after the closing one.
    fn parse_labels(
        &mut self,
        metric: &str,
        part_label: &str,
        labels: &mut Vec<Label<'a>>,
        bound: &mut Option<f64>,
    ) -> Result<(), ParseTextError> {
        loop {
            self.skip_blanks();
            if self.peek() == Some(b'}') {
                self.advance();
                return Ok(());
            }
            let name = self.take_any_name(NameKind::Label)?;
            if self.peek().is_none() {
                return Err(self.unexpected_end());
            }
            if name.is_empty() {
                return Err(self.error(format!("invalid label name for metric {metric:?}")));
            }
            if name == "__name__" {
                return Err(self.error("label name \"__name__\" is reserved"));
            }
            self.skip_blanks();
            self.expect(b'=', "'=' after label name")?;
            steps::add(1 + labels.len());
            if name != part_label && labels.iter().any(|(known, _)| *known == name) {
                return Err(self.error(format!("duplicate label names for metric {metric:?}")));
            }
            if labels.len() == LABELS_MAX {
                return Err(self.error(format!("more than {LABELS_MAX} labels of metric {metric:?}")));
            }
            self.skip_blanks();
            self.expect(b'"', "'\"' at start of label value")?;
            let value = self.parse_quoted("label value")?;
            if name == part_label {
                let Some(parsed) = parse_float(&value) else {
                    let reason = format!(
                        "expected float as value for '{part_label}' label, got {}",
                        echo(value.as_bytes())
                    );
                    return Err(self.error(reason));
                };
                *bound = Some(parsed);
            } else {
                labels.push((name.clone(), value));
            }
            self.skip_blanks();
            match self.peek() {
                Some(b',') => self.advance(),
                Some(b'}') => {}
                None => return Err(self.unexpected_end()),
                Some(_) => return Err(self.error(format!("unexpected end of label value of {name:?}"))),
            }
        }
    }

    /// Parses a label value or a name (`what`) up to the closing quote.
    fn parse_quoted(&mut self, what: &'static str) -> Result<Cow<'a, str>, ParseTextError> {
        let bytes = self.rest;
        let special = |byte: &u8| matches!(byte, b'"' | b'\\' | b'\n');
        let plain = bytes.iter().position(special).ok_or_else(|| self.unexpected_end())?;
        let invalid = |parser: &Self| parser.error(format!("invalid {what}: it is not UTF-8"));
        if bytes[plain] == b'"' {
            self.rest = &bytes[plain + 1..];
            return str::from_utf8(&bytes[..plain]).map(Cow::Borrowed).map_err(|_not_utf8| invalid(self));
        }
        let mut value = Vec::with_capacity(plain + 16);
        loop {
            let at = self.rest.iter().position(special).ok_or_else(|| self.unexpected_end())?;
            value.extend_from_slice(&self.rest[..at]);
            let byte = self.rest[at];
            self.rest = &self.rest[at + 1..];
            match byte {
                b'"' => break,
                b'\n' => {
                    let reason = format!("{what} {} contains unescaped new-line", echo(&value));
                    return Err(self.error(reason));
                }
                _ => {
                    let escaped = self.peek().ok_or_else(|| self.unexpected_end())?;
                    self.advance();
                    value.push(match escaped {
                        b'n' => b'\n',
                        b'"' | b'\\' => escaped,
                        other => return Err(self.bad_escape(other)),
                    });
                }
            }
        }
        String::from_utf8(value).map(Cow::Owned).map_err(|_not_utf8| invalid(self))
    }

    /// Takes a name, in quotes or without; empty if there is none.
    fn take_any_name(&mut self, kind: NameKind) -> Result<Cow<'a, str>, ParseTextError> {
        let name = if self.peek() == Some(b'"') {
            self.advance();
            self.parse_quoted("name")?
        } else {
            Cow::Borrowed(self.take_plain_name(kind))
        };
        if name.len() > NAME_BYTES_MAX {
            let start = echo(name.as_bytes());
            return Err(self.error(format!("the name {start} is longer than {NAME_BYTES_MAX} bytes")));
        }
        Ok(name)
    }

    /// Takes the bytes of a name without quotes; empty if there is none.
    fn take_plain_name(&mut self, kind: NameKind) -> &'a str {
        let good =
            |(at, byte): (usize, &u8)| is_legacy_byte(*byte, kind) && (at > 0 || !byte.is_ascii_digit());
        let end = self.rest.iter().enumerate().position(|at| !good(at)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        str::from_utf8(name).expect("names are ASCII")
    }

    /// Takes the bytes up to white space.
    fn take_token(&mut self) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| matches!(byte, b' ' | b'\t' | b'\n'));
        let (token, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        token
    }

    /// Takes the rest of the line and its terminator, which must exist.
    fn take_line(&mut self) -> Result<&'a [u8], ParseTextError> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| self.unexpected_end())?;
        let (line, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Ok(line)
    }

    fn skip_blanks(&mut self) {
        let end = self.rest.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(self.rest.len());
        self.rest = &self.rest[end..];
    }

    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    fn advance(&mut self) {
        self.rest = &self.rest[1..];
    }

    fn expect(&mut self, wanted: u8, reason: &str) -> Result<(), ParseTextError> {
        match self.peek() {
            None => Err(self.unexpected_end()),
            Some(byte) if byte == wanted => {
                self.advance();
                Ok(())
            }
            Some(byte) => Err(self.error(format!("expected {reason}, found '{}'", byte.escape_ascii()))),
        }
    }

    #[cold]
    fn error(&self, reason: impl Into<String>) -> ParseTextError {
        ParseTextError { line: self.line, reason: reason.into() }
    }

    #[cold]
    fn unexpected_end(&self) -> ParseTextError {
        self.error("unexpected end of input stream")
    }

    #[cold]
    fn bad_escape(&self, byte: u8) -> ParseTextError {
        self.error(format!("invalid escape sequence '\\{}'", byte.escape_ascii()))
    }
}

/// `# HELP` texts escape only backslash and line feed. Invalid UTF-8 is replaced: a help text is
/// informational and must not make the body invalid.
fn unescape_help(line: &[u8]) -> Result<Cow<'_, str>, u8> {
    if !line.contains(&b'\\') {
        return Ok(String::from_utf8_lossy(line));
    }
    let mut help = Vec::with_capacity(line.len());
    let mut bytes = line.iter();
    while let Some(byte) = bytes.next() {
        help.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'\\') => b'\\',
                other => return Err(*other.unwrap_or(&b'\n')),
            },
            byte => *byte,
        });
    }
    Ok(String::from_utf8_lossy(&help).into_owned().into())
}

fn echo(bytes: &[u8]) -> String {
    format!("{:?}", truncate(&String::from_utf8_lossy(bytes), ECHO_BYTES_MAX))
}

#[cfg(test)]
mod tests;
