//! Removal of passwords from settings that are shown.

use crate::storage::postgres::connection_pairs;

/// Removes the passwords from a connection URL or a list of `key=value`, for logging.
pub fn redact_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        let Ok(pairs) = connection_pairs(text) else { return "(malformed)".to_owned() };
        let shown =
            pairs.iter().filter(|(key, _)| !is_secret(key)).map(|(key, value)| format!("{key}={value}"));
        return shown.collect::<Vec<_>>().join(" ");
    };
    // A password with a question mark that is not percent-encoded has its `@` after it.
    let base = rest.find('?').filter(|end| rest[..*end].contains('@')).unwrap_or(rest.len());
    let rest = match rest[..base].rfind('@') {
        Some(at) => format!("{}{}", rest[..at].split(':').next().unwrap_or_default(), &rest[at..]),
        None => rest.to_owned(),
    };
    let Some((base, query)) = rest.split_once('?') else { return format!("{scheme}://{rest}") };
    let shown = query.split('&').filter(|pair| !is_secret(pair.split('=').next().unwrap_or_default()));
    let query = shown.collect::<Vec<_>>().join("&");
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{scheme}://{base}{mark}{query}")
}

/// Whether the value of a parameter is secret. A key with an escape may be the name of one.
fn is_secret(key: &str) -> bool {
    key.contains("password") || key.contains("secret") || key.contains('%') || key.starts_with("scram_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redact_password_removes_passwords_from_urls_and_key_values() {
        for (text, shown) in [
            ("postgres://a:s3cret@db:5432/x?sslmode=require", "postgres://a@db:5432/x?sslmode=require"),
            ("postgres://a:p@ss@db/x", "postgres://a@db/x"),
            ("postgres://a:s3/cr?et@db/x?port=1", "postgres://a@db/x?port=1"),
            ("postgres://a:s3cret@db/x?application_name=b@c", "postgres://a@db/x?application_name=b@c"),
            ("postgres://db/x", "postgres://db/x"),
            ("postgres://db/x?password=s3cret", "postgres://db/x"),
            ("postgres://db?user=a&p%61ssword=s3cret&port=1", "postgres://db?user=a&port=1"),
            ("host=db password=s3cret user=a", "host=db user=a"),
            ("host=db password = 's3cret 2' user=a", "host=db user=a"),
            ("s3cret", "(malformed)"),
            ("", ""),
        ] {
            assert_eq!(redact_password(text), shown);
        }
    }
}
