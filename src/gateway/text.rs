//! The text exposition format 0.0.4, read as strictly and as leniently as Prometheus' own parser reads it, so that what
//! its clients send today means the same here. One pass, no recursion.

use std::borrow::Cow;
use std::collections::HashMap;

use super::metric::{Family, Histogram, Kind, Label, Parsed, Sample, Summary, Value, count_of, parse_float};
use crate::http::problem::ECHO_BYTES_MAX;
use crate::json::text::shorten;

/// Why a body is not of the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("text format parsing error in line {line}: {what}")]
pub struct Mistake {
    pub line: usize,
    pub what: String,
}

/// A family while it is read. None until a line says what it is.
#[derive(Debug)]
struct Draft<'a> {
    name: &'a str,
    help: Option<Cow<'a, str>>,
    kind: Option<Kind>,
    samples: Vec<Sample<'a>>,
}

struct Parser<'a> {
    rest: &'a [u8],
    line: usize,
    drafts: Vec<Draft<'a>>,
    by_name: HashMap<&'a str, usize>,
    /// Where the sample of a histogram or summary is, by family and the labels that are its own.
    parts: HashMap<(usize, String), usize>,
    timestamps: bool,
}

/// What a sample's name says besides its family's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Own,
    Count,
    Sum,
}

pub fn parse(body: &[u8]) -> Result<Parsed<'_>, Mistake> {
    let mut parser = Parser {
        rest: body,
        line: 0,
        drafts: Vec::new(),
        by_name: HashMap::new(),
        parts: HashMap::new(),
        timestamps: false,
    };
    while !parser.rest.is_empty() {
        parser.line += 1;
        parser.line()?;
    }
    let timestamps = parser.timestamps;
    let families = parser.drafts.into_iter().filter(|draft| !draft.samples.is_empty());
    let families = families.map(|draft| Family {
        name: draft.name.into(),
        help: draft.help.unwrap_or_default(),
        kind: draft.kind.unwrap_or(Kind::Untyped),
        samples: draft.samples,
    });
    Ok(Parsed { families: families.collect(), timestamps, flaw: None })
}

impl<'a> Parser<'a> {
    fn line(&mut self) -> Result<(), Mistake> {
        self.blanks();
        match self.peek() {
            None => Ok(()),
            Some(b'\n') => {
                self.step();
                Ok(())
            }
            Some(b'#') => {
                self.step();
                self.comment()
            }
            Some(_) => self.sample(),
        }
    }

    fn comment(&mut self) -> Result<(), Mistake> {
        self.blanks();
        let keyword = self.token();
        if !matches!(keyword, b"HELP" | b"TYPE") {
            self.rest_of_line()?;
            return Ok(());
        }
        self.blanks();
        let name = self.name(true);
        match self.peek() {
            None => return Err(self.cut_off()),
            Some(b'\n') => {
                self.step();
                return Ok(());
            }
            Some(b' ' | b'\t') if !name.is_empty() => {}
            Some(_) => return Err(self.mistake("invalid metric name in comment")),
        }
        let (at, _) = self.family(name);
        self.blanks();
        if self.peek() == Some(b'\n') {
            self.step();
            return Ok(());
        }
        let line = self.rest_of_line()?;
        let draft = &mut self.drafts[at];
        if keyword == b"HELP" {
            if draft.help.is_some() {
                return Err(self.mistake(format!("second HELP line for metric name {name:?}")));
            }
            let help = unescape_help(line).map_err(|byte| self.bad_escape(byte))?;
            self.drafts[at].help = Some(help);
        } else {
            if draft.kind.is_some() {
                let what =
                    format!("second TYPE line for metric name {name:?}, or TYPE reported after samples");
                return Err(self.mistake(what));
            }
            let kind = Kind::ALL.into_iter().find(|kind| line.eq_ignore_ascii_case(kind.name().as_bytes()));
            let Some(kind) = kind else {
                return Err(self.mistake(format!("unknown metric type {}", echo(line))));
            };
            draft.kind = Some(kind);
        }
        Ok(())
    }

    fn sample(&mut self) -> Result<(), Mistake> {
        let name = self.name(true);
        if name.is_empty() {
            return Err(self.mistake("invalid metric name"));
        }
        let (at, part) = self.family(name);
        let kind = *self.drafts[at].kind.get_or_insert(Kind::Untyped);
        self.blanks();
        // The label that tells the parts of a summary or histogram apart is not one of its own.
        let own = match kind {
            Kind::Summary => "quantile",
            Kind::Histogram => "le",
            Kind::Counter | Kind::Gauge | Kind::Untyped => "",
        };
        let mut labels = Vec::new();
        let mut place = None;
        if self.peek() == Some(b'{') {
            self.step();
            self.labels(name, own, &mut labels, &mut place)?;
            self.blanks();
        }
        let word = self.token();
        // Whatever ends the line must be there.
        if self.peek().is_none() {
            return Err(self.cut_off());
        }
        let Some(value) = str::from_utf8(word).ok().and_then(parse_float) else {
            return Err(self.mistake(format!("expected float as value, got {}", echo(word))));
        };
        self.keep(at, kind, part, labels, place, value);
        self.end_of_sample()
    }

    /// What may follow the value: the end of the line, or a timestamp.
    fn end_of_sample(&mut self) -> Result<(), Mistake> {
        if self.peek() == Some(b'\n') {
            self.step();
            return Ok(());
        }
        self.blanks();
        let word = self.token();
        if self.peek().is_none() {
            return Err(self.cut_off());
        }
        if !str::from_utf8(word).is_ok_and(|word| word.parse::<i64>().is_ok()) {
            return Err(self.mistake(format!("expected integer as timestamp, got {}", echo(word))));
        }
        self.timestamps = true;
        let line = self.rest_of_line()?;
        if line.is_empty() {
            Ok(())
        } else {
            Err(self.mistake(format!("spurious string after timestamp: {}", echo(line))))
        }
    }

    fn keep(
        &mut self,
        at: usize,
        kind: Kind,
        part: Part,
        labels: Vec<Label<'a>>,
        place: Option<f64>,
        value: f64,
    ) {
        let draft = &mut self.drafts[at];
        if !matches!(kind, Kind::Summary | Kind::Histogram) {
            draft.samples.push(Sample { labels, value: Value::Number(value) });
            return;
        }
        let key = super::metric::render(&mut labels.clone());
        let nth = *self.parts.entry((at, key)).or_insert_with(|| {
            let value = if kind == Kind::Summary {
                Value::Summary(Box::default())
            } else {
                Value::Histogram(Box::default())
            };
            draft.samples.push(Sample { labels, value });
            draft.samples.len() - 1
        });
        let place = place.filter(|place| !place.is_nan());
        match &mut draft.samples[nth].value {
            Value::Number(_) => unreachable!("BUG: a family has one kind"),
            Value::Summary(summary) => {
                let Summary { quantiles, sum, count } = &mut **summary;
                match part {
                    Part::Count => *count = count_of(value),
                    Part::Sum => *sum = value,
                    Part::Own => quantiles.extend(place.map(|quantile| (quantile, value))),
                }
            }
            Value::Histogram(histogram) => {
                let Histogram { buckets, sum, count } = &mut **histogram;
                match part {
                    Part::Count => *count = count_of(value),
                    Part::Sum => *sum = value,
                    Part::Own => buckets.extend(place.map(|bound| (bound, count_of(value)))),
                }
            }
        }
    }

    /// The family a name belongs to, made if there is none, and which part of it the name says.
    fn family(&mut self, name: &'a str) -> (usize, Part) {
        if let Some(at) = self.by_name.get(name) {
            return (*at, Part::Own);
        }
        for (suffix, part) in [("_count", Part::Count), ("_sum", Part::Sum), ("_bucket", Part::Own)] {
            let Some(base) = name.strip_suffix(suffix).filter(|base| !base.is_empty()) else { continue };
            let Some(at) = self.by_name.get(base) else { continue };
            let kind = self.drafts[*at].kind;
            if kind.is_some_and(|kind| kind.suffixes().contains(&suffix)) {
                return (*at, part);
            }
        }
        let at = self.drafts.len();
        self.drafts.push(Draft { name, help: None, kind: None, samples: Vec::new() });
        self.by_name.insert(name, at);
        (at, Part::Own)
    }

    /// The labels, from behind the opening brace to behind the closing one.
    fn labels(
        &mut self,
        metric: &str,
        own: &str,
        labels: &mut Vec<Label<'a>>,
        place: &mut Option<f64>,
    ) -> Result<(), Mistake> {
        loop {
            self.blanks();
            if self.peek() == Some(b'}') {
                self.step();
                return Ok(());
            }
            let name = self.name(false);
            if self.peek().is_none() {
                return Err(self.cut_off());
            }
            if name.is_empty() {
                return Err(self.mistake(format!("invalid label name for metric {metric:?}")));
            }
            if name == "__name__" {
                return Err(self.mistake("label name \"__name__\" is reserved"));
            }
            self.blanks();
            self.expect(b'=', "'=' after label name")?;
            if name != own && labels.iter().any(|(known, _)| known == name) {
                return Err(self.mistake(format!("duplicate label names for metric {metric:?}")));
            }
            self.blanks();
            self.expect(b'"', "'\"' at start of label value")?;
            let value = self.label_value()?;
            if name == own {
                let Some(bound) = parse_float(&value) else {
                    let what =
                        format!("expected float as value for '{own}' label, got {}", echo(value.as_bytes()));
                    return Err(self.mistake(what));
                };
                *place = Some(bound);
            } else {
                labels.push((name.into(), value));
            }
            self.blanks();
            match self.peek() {
                Some(b',') => self.step(),
                Some(b'}') => {}
                None => return Err(self.cut_off()),
                Some(_) => return Err(self.mistake(format!("unexpected end of label value of {name:?}"))),
            }
        }
    }

    /// What stands between here and the closing quote.
    fn label_value(&mut self) -> Result<Cow<'a, str>, Mistake> {
        let bytes = self.rest;
        let special = |byte: &u8| matches!(byte, b'"' | b'\\' | b'\n');
        let plain = bytes.iter().position(special).ok_or_else(|| self.cut_off())?;
        let invalid = |parser: &Self| parser.mistake("invalid label value: it is not UTF-8");
        if bytes[plain] == b'"' {
            self.rest = &bytes[plain + 1..];
            return str::from_utf8(&bytes[..plain]).map(Cow::Borrowed).map_err(|_not_utf8| invalid(self));
        }
        let mut value = Vec::with_capacity(plain + 16);
        loop {
            let at = self.rest.iter().position(special).ok_or_else(|| self.cut_off())?;
            value.extend_from_slice(&self.rest[..at]);
            let byte = self.rest[at];
            self.rest = &self.rest[at + 1..];
            match byte {
                b'"' => break,
                b'\n' => {
                    let what = format!("label value {} contains unescaped new-line", echo(&value));
                    return Err(self.mistake(what));
                }
                _ => {
                    let escaped = self.peek().ok_or_else(|| self.cut_off())?;
                    self.step();
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

    /// The bytes from here on that make a name; empty when there are none.
    fn name(&mut self, colons: bool) -> &'a str {
        let good = |(at, byte): (usize, &u8)| {
            byte.is_ascii_alphabetic()
                || *byte == b'_'
                || (at > 0 && byte.is_ascii_digit())
                || (colons && *byte == b':')
        };
        let end = self.rest.iter().enumerate().position(|at| !good(at)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        str::from_utf8(name).expect("names are ASCII")
    }

    /// The bytes up to white space.
    fn token(&mut self) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| matches!(byte, b' ' | b'\t' | b'\n'));
        let (token, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        token
    }

    /// The rest of the line; its end is taken too, and must be there.
    fn rest_of_line(&mut self) -> Result<&'a [u8], Mistake> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| self.cut_off())?;
        let (line, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Ok(line)
    }

    fn blanks(&mut self) {
        let end = self.rest.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(self.rest.len());
        self.rest = &self.rest[end..];
    }

    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    fn step(&mut self) {
        self.rest = &self.rest[1..];
    }

    fn expect(&mut self, wanted: u8, what: &str) -> Result<(), Mistake> {
        match self.peek() {
            None => Err(self.cut_off()),
            Some(byte) if byte == wanted => {
                self.step();
                Ok(())
            }
            Some(byte) => Err(self.mistake(format!("expected {what}, found '{}'", byte.escape_ascii()))),
        }
    }

    #[cold]
    fn mistake(&self, what: impl Into<String>) -> Mistake {
        Mistake { line: self.line, what: what.into() }
    }

    #[cold]
    fn cut_off(&self) -> Mistake {
        self.mistake("unexpected end of input stream")
    }

    #[cold]
    fn bad_escape(&self, byte: u8) -> Mistake {
        self.mistake(format!("invalid escape sequence '\\{}'", byte.escape_ascii()))
    }
}

/// In the text of `# HELP` only the backslash and the end of a line are escaped. What is not UTF-8 is replaced: it is
/// for people, and must not make the whole page unreadable.
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
    format!("{:?}", shorten(&String::from_utf8_lossy(bytes), ECHO_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(labels: &[(&'static str, &'static str)], value: Value) -> Sample<'static> {
        Sample {
            labels: labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            value,
        }
    }

    #[track_caller]
    fn refused(body: &str, line: usize, what: &str) {
        assert_eq!(parse(body.as_bytes()), Err(Mistake { line, what: what.to_owned() }), "{body:?}");
    }

    #[test]
    fn families_are_gathered_by_name() {
        let body = "# HELP a Said of\\na \\\\\n# TYPE a counter\na{x=\"1\",} 3\n\n  a { y = \"\\\"q\\\\\\n\" }\t+4e0\n# a remark\nb -Inf\n";
        let parsed = parse(body.as_bytes()).unwrap();
        assert!(!parsed.timestamps);
        let [a, b] = &parsed.families[..] else { panic!("{parsed:?}") };
        assert_eq!((&*a.name, &*a.help, a.kind), ("a", "Said of\na \\", Kind::Counter));
        assert_eq!(
            a.samples,
            [sample(&[("x", "1")], Value::Number(3.0)), sample(&[("y", "\"q\\\n")], Value::Number(4.0))]
        );
        assert_eq!((b.kind, &b.samples[0].value), (Kind::Untyped, &Value::Number(f64::NEG_INFINITY)));
    }

    #[test]
    fn the_parts_of_histograms_and_summaries_find_each_other() {
        let body = "# TYPE h histogram\nh_bucket{le=\"0.5\",x=\"1\"} 2\nh_bucket{x=\"1\",le=\"+Inf\"} 3\nh_sum{x=\"1\"} 1.5\nh_count{x=\"1\"} 3\n\
                    # TYPE s summary\ns{quantile=\"0.9\"} 7\ns_sum 9\ns_count 2\n# TYPE u gauge\nu_count 1\n";
        let parsed = parse(body.as_bytes()).unwrap();
        let [h, s, u] = &parsed.families[..] else { panic!("{parsed:?}") };
        let histogram = Histogram { buckets: vec![(0.5, 2), (f64::INFINITY, 3)], sum: 1.5, count: 3 };
        assert_eq!(h.samples, [sample(&[("x", "1")], Value::Histogram(Box::new(histogram)))]);
        let summary = Summary { quantiles: vec![(0.9, 7.0)], sum: 9.0, count: 2 };
        assert_eq!(s.samples, [sample(&[], Value::Summary(Box::new(summary)))]);
        assert_eq!((&*u.name, u.kind), ("u_count", Kind::Untyped));
    }

    #[test]
    fn what_is_not_of_the_format_is_refused_with_its_line() {
        refused("a 1", 1, "unexpected end of input stream");
        refused("a 1\nb", 2, "unexpected end of input stream");
        refused("# no end", 1, "unexpected end of input stream");
        refused("9a 1\n", 1, "invalid metric name");
        refused("a x\n", 1, "expected float as value, got \"x\"");
        refused("a 1 \n", 1, "expected integer as timestamp, got \"\"");
        refused("a 1 2 3\n", 1, "spurious string after timestamp: \" 3\"");
        refused("a\r\n", 1, "expected float as value, got \"\\r\"");
        refused("a{x=\"1\" 1\n", 1, "unexpected end of label value of \"x\"");
        refused("a{x=\"1\",x=\"2\"} 1\n", 1, "duplicate label names for metric \"a\"");
        refused("a{__name__=\"b\"} 1\n", 1, "label name \"__name__\" is reserved");
        refused("a{9=\"b\"} 1\n", 1, "invalid label name for metric \"a\"");
        refused("a{x=1} 1\n", 1, "expected '\"' at start of label value, found '1'");
        refused("a{x 1\n", 1, "expected '=' after label name, found '1'");
        refused("a{x=\"\\t\"} 1\n", 1, "invalid escape sequence '\\t'");
        refused("a{x=\"1\n\"} 1\n", 1, "label value \"1\" contains unescaped new-line");
        refused(
            "# TYPE a counter\n# TYPE a counter\n",
            2,
            "second TYPE line for metric name \"a\", or TYPE reported after samples",
        );
        refused(
            "a 1\n# TYPE a counter\n",
            2,
            "second TYPE line for metric name \"a\", or TYPE reported after samples",
        );
        refused("# TYPE a thing\n", 1, "unknown metric type \"thing\"");
        refused("# HELP a b\n# HELP a b\n", 2, "second HELP line for metric name \"a\"");
        refused("# HELP a-b c\n", 1, "invalid metric name in comment");
        refused(
            "# TYPE h histogram\nh{le=\"x\"} 1\n",
            2,
            "expected float as value for 'le' label, got \"x\"",
        );
        assert!(parse(b"a{x=\"\xff\"} 1\n").is_err());
    }

    #[test]
    fn what_prometheus_lets_pass_passes() {
        for body in [
            "",
            "\n \n",
            "#\n",
            "# \n",
            "# HELP\n",
            "# TYPE a\n",
            "# HELP a\n",
            "# TYPE a COUNTER\na 1\n",
            "a 1 5\n",
            "a{} 1\n",
        ] {
            assert!(parse(body.as_bytes()).is_ok(), "{body:?}");
        }
        assert!(parse(b"a 1 5\n").unwrap().timestamps);
        assert!(parse(b"# TYPE a counter\n").unwrap().families.is_empty());
    }
}
