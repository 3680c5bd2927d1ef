//! The query parameter `metadata.KEY=VALUE` as JSON objects for a containment test (`@>`).

use crate::json::text::quote;

/// The metadata must contain one of the returned objects: `{key: value}` with the value as a
/// string, and as the number, boolean or null with the same spelling.
pub(super) fn containment_objects(key: &str, value: &str) -> Vec<String> {
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

/// Whether `text` is a JSON number whose exponent PostgreSQL accepts.
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
    fn filter_value_matches_strings_and_scalars_with_the_same_spelling() {
        #[track_caller]
        fn check(value: &str, expected: &[&str]) {
            assert_eq!(containment_objects("k\"", value), expected, "{value}");
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
