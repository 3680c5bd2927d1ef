//! The lines of Prometheus' text format 0.0.4 and of `OpenMetrics` 1.0, which differ in the names of
//! counter families, in the escapes of a help text, in bucket bounds and in the end of the page.
//! Shared by the server's own metrics and by the pushed ones; it must not know what a series is.

use std::fmt::Write as _;

/// The format of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpositionFormat {
    /// Prometheus' text format 0.0.4.
    Text,
    OpenMetrics,
}

/// The last line of an `OpenMetrics` page.
pub(crate) const OPENMETRICS_EOF: &str = "# EOF\n";

impl ExpositionFormat {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Writes `# HELP`, unless the help is empty, and `# TYPE`.
    pub(crate) fn write_header(self, out: &mut String, family: &str, kind: &str, help: &str) {
        if !help.is_empty() {
            out.push_str("# HELP ");
            out.push_str(family);
            out.push(' ');
            escape(out, help, self == Self::OpenMetrics);
            out.push('\n');
        }
        for part in ["# TYPE ", family, " ", kind, "\n"] {
            out.push_str(part);
        }
    }

    /// The bound of a bucket or a quantile as a label value. `OpenMetrics` requires a decimal point
    /// in whole numbers.
    pub(crate) fn format_bound(self, value: f64) -> String {
        let mut text = format_float(value);
        if self == Self::OpenMetrics && value.is_finite() && !text.contains(['.', 'e']) {
            text.push_str(".0");
        }
        text
    }
}

/// Writes one sample. The name is given as family and suffix, the labels as [`write_label`] renders
/// them, separated by commas.
pub(crate) fn write_sample(
    out: &mut String,
    name: (&str, &str),
    labels: &str,
    extra: Option<(&str, &str)>,
    value: f64,
) {
    out.push_str(name.0);
    out.push_str(name.1);
    if extra.is_some() || !labels.is_empty() {
        out.push('{');
        out.push_str(labels);
        if let Some((name, value)) = extra {
            if !labels.is_empty() {
                out.push(',');
            }
            write_label(out, name, value);
        }
        out.push('}');
    }
    out.push(' ');
    write_float(out, value);
    out.push('\n');
}

pub(crate) fn write_label(out: &mut String, name: &str, value: &str) {
    out.push_str(name);
    write_label_value(out, value);
}

/// Writes what follows the name of a label.
pub(crate) fn write_label_value(out: &mut String, value: &str) {
    out.push_str("=\"");
    escape(out, value, true);
    out.push('"');
}

/// Escapes a label value, or the text of `# HELP` if `quotes` is false.
pub fn escape(out: &mut String, text: &str, quotes: bool) {
    let special = |byte: u8| byte == b'\\' || byte == b'\n' || (quotes && byte == b'"');
    let mut from = 0;
    for (at, byte) in text.bytes().enumerate() {
        if special(byte) {
            out.push_str(&text[from..at]);
            out.push('\\');
            out.push(if byte == b'\n' { 'n' } else { char::from(byte) });
            from = at + 1;
        }
    }
    out.push_str(&text[from..]);
}

/// Appends a number in Go's shortest `%g` form, as Prometheus and its client libraries write it.
pub fn write_float(out: &mut String, value: f64) {
    let text = |out: &mut String, arguments: std::fmt::Arguments<'_>| {
        out.write_fmt(arguments).expect("writing to a string cannot fail");
    };
    if value.is_nan() {
        out.push_str("NaN");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    } else if value == 0.0 {
        // -0 is written without its sign.
        out.push('0');
    } else if (1e-4..1e6).contains(&value.abs()) {
        // For integers, `%g` would switch to the shorter exponent form at 21 digits, which is above
        // this range.
        text(out, format_args!("{value}"));
    } else {
        // Rust writes 1e-7, Go writes 1e-07.
        let start = out.len();
        text(out, format_args!("{value:e}"));
        let exponent = start + out[start..].find('e').expect("{:e} writes an exponent") + 1;
        let digits = exponent + usize::from(out[exponent..].starts_with('-'));
        if out.len() - digits < 2 {
            out.insert(digits, '0');
        }
        if digits == exponent {
            out.insert(exponent, '+');
        }
    }
}

/// [`write_float`] into a new string.
pub fn format_float(value: f64) -> String {
    let mut out = String::new();
    write_float(&mut out, value);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_in_go_format() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-2.5, "-2.5"),
            (123_456.0, "123456"),
            (999_999.5, "999999.5"),
            (1_000_000.0, "1e+06"),
            (1_234_567.0, "1.234567e+06"),
            (1_583_872_347.716_605_7, "1.5838723477166057e+09"),
            (1e300, "1e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-1.5e-7, "-1.5e-07"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(format_float(value), text);
        }
    }
}
