//! Tests of the text parser: what it accepts, and where it reports an error.

use super::*;

fn sample(labels: &[(&'static str, &'static str)], value: SeriesValue) -> ParsedSample<'static> {
    ParsedSample {
        labels: labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        value,
    }
}

#[track_caller]
fn refused(body: &str, line: usize, reason: &str) {
    assert_eq!(
        parse(body.as_bytes(), ParseLimits::NONE),
        Err(ParseTextError { line, reason: reason.to_owned() }),
        "{body:?}"
    );
}

#[test]
fn samples_are_grouped_into_families_by_name() {
    let body = "# HELP a Said of\\na \\\\\n# TYPE a counter\na{x=\"1\",} 3\n\n  a { y = \"\\\"q\\\\\\n\" }\t+4e0\n# a remark\nb -Inf\n";
    let parsed = parse(body.as_bytes(), ParseLimits::NONE).unwrap();
    assert!(!parsed.has_timestamps);
    let [a, b] = &parsed.families[..] else { panic!("{parsed:?}") };
    assert_eq!((&*a.name, &*a.help, a.kind), ("a", "Said of\na \\", MetricKind::Counter));
    assert_eq!(
        a.samples,
        [
            sample(&[("x", "1")], SeriesValue::Number(3.0)),
            sample(&[("y", "\"q\\\n")], SeriesValue::Number(4.0))
        ]
    );
    assert_eq!((b.kind, &b.samples[0].value), (MetricKind::Untyped, &SeriesValue::Number(f64::NEG_INFINITY)));
}

#[test]
fn histogram_and_summary_lines_form_one_sample() {
    let body = "# TYPE h histogram\nh_bucket{le=\"0.5\",x=\"1\"} 2\nh_bucket{x=\"1\",le=\"+Inf\"} 3\nh_sum{x=\"1\"} 1.5\nh_count{x=\"1\"} 3\n\
                # TYPE s summary\ns{quantile=\"0.9\"} 7\ns_sum 9\ns_count 2\n# TYPE u gauge\nu_count 1\n";
    let parsed = parse(body.as_bytes(), ParseLimits::NONE).unwrap();
    let [h, s, u] = &parsed.families[..] else { panic!("{parsed:?}") };
    let histogram =
        Histogram { buckets: vec![(0.5, 2), (f64::INFINITY, 3)], sum: 1.5, count: 3, native: None };
    assert_eq!(h.samples, [sample(&[("x", "1")], SeriesValue::Histogram(Box::new(histogram)))]);
    let summary = Summary { quantiles: vec![(0.9, 7.0)], sum: 9.0, count: 2 };
    assert_eq!(s.samples, [sample(&[], SeriesValue::Summary(Box::new(summary)))]);
    assert_eq!((&*u.name, u.kind), ("u_count", MetricKind::Untyped));
}

#[test]
fn syntax_errors_are_reported_with_their_line() {
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
    refused("# TYPE h histogram\nh{le=\"x\"} 1\n", 2, "expected float as value for 'le' label, got \"x\"");
    assert!(parse(b"a{x=\"\xff\"} 1\n", ParseLimits::NONE).is_err());
}

#[test]
fn parser_accepts_what_prometheus_accepts() {
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
        assert!(parse(body.as_bytes(), ParseLimits::NONE).is_ok(), "{body:?}");
    }
    assert!(parse(b"a 1 5\n", ParseLimits::NONE).unwrap().has_timestamps);
    assert!(parse(b"# TYPE a counter\n", ParseLimits::NONE).unwrap().families.is_empty());
}

#[test]
fn names_in_quotes_are_read_wherever_a_name_may_stand() {
    let body = "# HELP \"a.b\" h\n# TYPE \"a.b\" counter\n# UNIT \"a.b\" s\n{\"a.b\", \"l.m\"=\"1\",n=\"2\",} 3\n\
                { \"a.b\" } 4\n{c,x=\"1\"} 5\n\"d e\"{\"q\\\"\\\\\\n\"=\"1\"} 6\n{\"plain\"} 7\n";
    let parsed = parse(body.as_bytes(), ParseLimits::NONE).unwrap();
    let names: Vec<_> = parsed.families.iter().map(|family| &*family.name).collect();
    assert_eq!(names, ["a.b", "c", "d e", "plain"]);
    assert_eq!((&*parsed.families[0].help, parsed.families[0].kind), ("h", MetricKind::Counter));
    assert_eq!(
        parsed.families[0].samples,
        [
            sample(&[("l.m", "1"), ("n", "2")], SeriesValue::Number(3.0)),
            sample(&[], SeriesValue::Number(4.0))
        ]
    );
    assert_eq!(parsed.families[2].samples, [sample(&[("q\"\\\n", "1")], SeriesValue::Number(6.0))]);
    refused("{} 1\n", 1, "invalid metric name");
    refused("{\"a\"", 1, "unexpected end of input stream");
    refused("{\"a\"=\"b\"} 1\n", 1, "unexpected end of metric name \"a\"");
    refused("{\"a\",\"b\"} 1\n", 1, "expected '=' after label name, found '}'");
    refused("{\"a\n\"} 1\n", 1, "name \"a\" contains unescaped new-line");
    refused("{\"a\",\"__name__\"=\"b\"} 1\n", 1, "label name \"__name__\" is reserved");
    assert!(parse(b"{\"\xff\"} 1\n", ParseLimits::NONE).is_err());
}
