//! Removal of passwords from settings that are shown.

/// Removes the password from a connection URL, for logging.
pub fn redact_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // The key=value form: keep every word but the password.
        let words = url.split_whitespace().filter(|word| !word.starts_with("password"));
        return words.collect::<Vec<_>>().join(" ");
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split_once(':').map_or(user, |(name, _password)| name);
            format!("{scheme}://{user}@{host}{path}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redact_password_removes_passwords_from_urls_and_key_values() {
        assert_eq!(
            redact_password("postgres://a:s3cret@db:5432/x?sslmode=require"),
            "postgres://a@db:5432/x?sslmode=require"
        );
        assert_eq!(redact_password("postgres://a:p@ss@db/x"), "postgres://a@db/x");
        assert_eq!(redact_password("host=db password=s3cret user=a"), "host=db user=a");
        assert_eq!(redact_password("postgres://db/x"), "postgres://db/x");
    }
}
