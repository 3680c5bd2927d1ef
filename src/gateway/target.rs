//! The path of a group: `/metrics/job/JOB{/LABEL/VALUE}`, each name with `@base64` behind it where the value is written
//! so. What is refused, and with which words, is as Pushgateway has it.

use std::borrow::Cow;
use std::sync::Arc;

use super::metric::{Label, is_label_name, is_reserved_label, render};

/// The labels that name a group, and that all its series get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Sorted by name; `job` is among them.
    pub labels: Vec<(String, String)>,
    /// The same as text: the group's key.
    pub key: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    #[error("job name is required")]
    NoJob,
    #[error("invalid base64 encoding in job name {0:?}")]
    JobBase64(String),
    #[error("odd number of components in label string {0:?}")]
    Odd(String),
    #[error("improper label name {0:?}")]
    Name(String),
    #[error("invalid base64 encoding for label {0}={1:?}")]
    Base64(String, String),
    #[error("the value of label {0} is empty: write {0}@base64/= for an empty value")]
    Empty(String),
    #[error("the value of label {0} is not UTF-8")]
    NotText(String),
    #[error("more than {LABELS_MAX} labels")]
    TooMany,
}

/// Labels of a group.
pub const LABELS_MAX: usize = 32;
const BASE64: &str = "@base64";

impl Target {
    /// Reads what follows `/metrics/`, percent-encoding already taken off, which is why a slash in a value needs base64.
    pub fn parse(path: &str) -> Result<Self, BadTarget> {
        let (kind, rest) = path.split_once('/').unwrap_or((path, ""));
        let (job, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let job = if kind.ends_with(BASE64) {
            decode(job).ok_or_else(|| BadTarget::JobBase64(job.to_owned()))?
        } else {
            Cow::Borrowed(job.as_bytes())
        };
        let mut labels: Vec<(String, String)> = Vec::new();
        if !rest.is_empty() {
            let mut parts = rest.split('/');
            while let Some(name) = parts.next() {
                let Some(value) = parts.next() else { return Err(BadTarget::Odd(format!("/{rest}"))) };
                let plain = name.strip_suffix(BASE64);
                let trimmed = plain.unwrap_or(name);
                if !is_label_name(trimmed.as_bytes()) || is_reserved_label(trimmed) {
                    return Err(BadTarget::Name(trimmed.to_owned()));
                }
                let value = if plain.is_some() {
                    decode(value).ok_or_else(|| BadTarget::Base64(trimmed.to_owned(), value.to_owned()))?
                } else if value.is_empty() {
                    return Err(BadTarget::Empty(trimmed.to_owned()));
                } else {
                    Cow::Borrowed(value.as_bytes())
                };
                put(&mut labels, trimmed, &value)?;
            }
        }
        if job.is_empty() {
            return Err(BadTarget::NoJob);
        }
        put(&mut labels, "job", &job)?;
        Ok(Self::of(labels))
    }

    /// A group of these labels, each name once.
    pub fn of(mut labels: Vec<(String, String)>) -> Self {
        labels.sort_unstable();
        let mut text: Vec<Label<'_>> =
            labels.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
        let key = render(&mut text).into();
        Self { labels, key }
    }

    pub fn job(&self) -> &str {
        self.labels.iter().find(|(name, _)| name == "job").map_or("", |(_, job)| job)
    }

    /// Gives a series the labels of the group, whatever it said itself, and an empty `instance` unless it has one, which
    /// keeps Prometheus from putting its own there.
    pub fn bind<'a>(&'a self, labels: &mut Vec<Label<'a>>) {
        for (name, value) in &self.labels {
            match labels.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => *known = value.as_str().into(),
                None => labels.push((name.as_str().into(), value.as_str().into())),
            }
        }
        if !labels.iter().any(|(name, _)| name == "instance") {
            labels.push(("instance".into(), "".into()));
        }
    }
}

/// Adds a label; of two with one name the last counts.
fn put(labels: &mut Vec<(String, String)>, name: &str, value: &[u8]) -> Result<(), BadTarget> {
    let value = str::from_utf8(value).map_err(|_not_utf8| BadTarget::NotText(name.to_owned()))?.to_owned();
    if let Some((_, known)) = labels.iter_mut().find(|(known, _)| known == name) {
        *known = value;
    } else if labels.len() == LABELS_MAX {
        return Err(BadTarget::TooMany);
    } else {
        labels.push((name.to_owned(), value));
    }
    Ok(())
}

/// Base64 of the alphabet that is safe in URLs, padding optional (RFC 4648, 5).
fn decode(text: &str) -> Option<Cow<'static, [u8]>> {
    let digits = text.trim_end_matches('=').as_bytes();
    if digits.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    for chunk in digits.chunks(4) {
        let mut bits = 0_u32;
        for byte in chunk {
            bits = bits << 6 | digit(*byte)?;
        }
        bits <<= 6 * (4 - chunk.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..chunk.len()]);
    }
    Some(Cow::Owned(out))
}

fn digit(byte: u8) -> Option<u32> {
    Some(u32::from(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'-' => 62,
        b'_' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: Result<&str, &str>) {
        let parsed = Target::parse(path);
        let got = parsed.as_ref().map(|target| &*target.key).map_err(ToString::to_string);
        assert_eq!(got, expected.map_err(str::to_owned), "{path}");
    }

    #[test]
    fn a_path_names_a_group_or_says_what_is_wrong() {
        check("job/a", Ok(r#"job="a""#));
        check("job/a/", Ok(r#"job="a""#));
        check("job/a/z/1/b/2", Ok(r#"b="2",job="a",z="1""#));
        check("job@base64/YS9i", Ok(r#"job="a/b""#));
        check("job@base64/YS9i/p@base64/L3Zhci90bXA=", Ok(r#"job="a/b",p="/var/tmp""#));
        check("job/example/first@base64/=/second/foobar", Ok(r#"first="",job="example",second="foobar""#));
        check("job/titan/name@base64/zqDPgc6_zrzOt864zrXPjc-C", Ok("job=\"titan\",name=\"Προμηθεύς\""));
        check("job/a/job/b", Ok(r#"job="a""#));
        check("job/a/x/1/x/2", Ok(r#"job="a",x="2""#));
        check("job/a/x", Err(r#"odd number of components in label string "/x""#));
        check("job/a/x-y/1", Err(r#"improper label name "x-y""#));
        check("job/a/__x/1", Err(r#"improper label name "__x""#));
        check("job/a/x/1//", Err(r#"improper label name """#));
        check("job/a/x/", Err("the value of label x is empty: write x@base64/= for an empty value"));
        check("job/", Err("job name is required"));
        check("job@base64/=", Err("job name is required"));
        check("job@base64/@", Err(r#"invalid base64 encoding in job name "@""#));
        check("job/a/x@base64/Y", Err(r#"invalid base64 encoding for label x="Y""#));
        check("job/a/x@base64/_w", Err("the value of label x is not UTF-8"));
        let many = (0..32).fold("job/a".to_owned(), |path, nth| format!("{path}/l{nth}/v"));
        check(&many, Err("more than 32 labels"));
    }

    #[test]
    fn a_series_gets_the_labels_of_its_group() {
        let target = Target::parse("job/a/x/1").unwrap();
        let mut labels = vec![("job".into(), "own".into()), ("y".into(), "2".into())];
        target.bind(&mut labels);
        assert_eq!(render(&mut labels), r#"instance="",job="a",x="1",y="2""#);
        let mut labels = vec![("instance".into(), "own".into())];
        target.bind(&mut labels);
        assert_eq!(render(&mut labels), r#"instance="own",job="a",x="1""#);
    }
}
