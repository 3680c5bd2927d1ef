//! A member that an event's metadata must have, as a client writes it: `metadata.KEY=VALUE`.

use crate::json::text::quote;

/// The JSON objects that it may mean, of which the metadata has to contain one: with the value as a string, and as the
/// number, boolean or null that is written the same.
pub(super) fn objects(key: &str, value: &str) -> Vec<String> {
    let object = |value: &[u8]| {
        let mut json = b"{".to_vec();
        quote(&mut json, key);
        json.push(b':');
        json.extend_from_slice(value);
        json.push(b'}');
        String::from_utf8_lossy(&json).into_owned()
    };
    let mut string = Vec::new();
    quote(&mut string, value);
    let mut objects = vec![object(&string)];
    if matches!(value, "true" | "false" | "null") || is_number(value) {
        objects.push(object(value.as_bytes()));
    }
    objects
}

/// A number of JSON, with an exponent that PostgreSQL takes.
fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let whole = whole.strip_prefix('-').unwrap_or(whole);
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|exponent| {
            let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            digits(exponent) && exponent.len() <= 3
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_a_string_and_whatever_else_is_written_so() {
        #[track_caller]
        fn check(value: &str, expected: &[&str]) {
            assert_eq!(objects("k\"", value), expected, "{value}");
        }
        check("a\"b", &[r#"{"k\"":"a\"b"}"#]);
        for value in ["1", "-0.5", "0", "1e9", "1.5E-300", "true", "null"] {
            check(value, &[&format!(r#"{{"k\"":"{value}"}}"#), &format!(r#"{{"k\"":{value}}}"#)]);
        }
        for value in ["", "01", "1.", ".5", "+1", "1e", "1e1000", "--1", "True", "1 ", "0x1", "-", "1e+-1"] {
            check(value, &[&format!(r#"{{"k\"":"{value}"}}"#)]);
        }
    }
}
