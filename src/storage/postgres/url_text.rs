//! Splits the text of `DATABASE_URL` into its parameters, as libpq does. It does not depend on
//! their meaning. No error contains a part of the text, since one part is the password.

use std::iter::Peekable;
use std::str::Chars;

use tokio_postgres::Config;

use super::error::error_chain;
use super::target::ParseDatabaseUrlError;

/// The parameters `key=value` of a connection, in order.
pub(super) type Pairs = Vec<(String, String)>;

/// Returns what the part of a URL before the question mark configures, and the pairs.
pub(super) fn split(text: &str) -> Result<(Config, Pairs), ParseDatabaseUrlError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(ParseDatabaseUrlError::Malformed);
    }
    if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
        return Ok((Config::new(), connection_pairs(text)?));
    }
    let (base, query) = text.split_once('?').unwrap_or((text, ""));
    let config = base
        .parse()
        .map_err(|error: tokio_postgres::Error| ParseDatabaseUrlError::Invalid(error_chain(&error)))?;
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').ok_or(ParseDatabaseUrlError::Malformed)?;
        Ok((percent_decoded(key)?, percent_decoded(value)?))
    });
    Ok((config, pairs.collect::<Result<_, _>>()?))
}

fn percent_decoded(text: &str) -> Result<String, ParseDatabaseUrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            rest.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or(ParseDatabaseUrlError::Malformed)
        };
        let value = digit()? << 4 | digit()?;
        bytes.push(u8::try_from(value).expect("two hexadecimal digits fit a byte"));
    }
    String::from_utf8(bytes).map_err(|_invalid| ParseDatabaseUrlError::Malformed)
}

/// Parses `key=value key='a value with \' in it'`.
pub fn connection_pairs(text: &str) -> Result<Vec<(String, String)>, ParseDatabaseUrlError> {
    let mut pairs = Pairs::new();
    let mut chars = text.chars().peekable();
    loop {
        skip_spaces(&mut chars);
        if chars.peek().is_none() {
            return Ok(pairs);
        }
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_whitespace() && *c != '=') {
            key.push(c);
        }
        skip_spaces(&mut chars);
        if chars.next() != Some('=') {
            return Err(ParseDatabaseUrlError::Malformed);
        }
        skip_spaces(&mut chars);
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.peek() {
                None if quoted => return Err(ParseDatabaseUrlError::Malformed),
                Some('\'') if quoted => break,
                None => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(_) => {}
            }
            match chars.next() {
                Some('\\') => value.extend(chars.next()),
                other => value.extend(other),
            }
        }
        if quoted {
            chars.next();
        }
        pairs.push((key, value));
    }
}

fn skip_spaces(chars: &mut Peekable<Chars<'_>>) {
    while chars.next_if(|c| c.is_whitespace()).is_some() {}
}
