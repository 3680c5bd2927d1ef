//! Parses the path of a group: `/metrics/job/JOB{/LABEL/VALUE}`, with `@base64` after each name
//! whose value is encoded. Checks and error texts are Pushgateway's.

use std::borrow::Cow;
use std::sync::Arc;

use base64::alphabet;
use base64::engine::{DecodePaddingMode, Engine, GeneralPurpose, GeneralPurposeConfig};

use super::metric::{Label, is_reserved_label, render_labels};
use super::names::{NameKind, is_legacy_name, is_valid_name, unescape_name};
use super::validate::NAME_BYTES_MAX;

/// The labels that identify a group and that are added to all its series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupingKey {
    /// Sorted by name; `job` is among them.
    pub labels: Vec<(String, String)>,
    /// The rendered labels, which are the key of the group.
    pub rendered: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseGroupingKeyError {
    #[error("job name is required")]
    MissingJob,
    #[error("invalid base64 encoding in job name {0:?}")]
    JobBase64(String),
    #[error("odd number of components in label string {0:?}")]
    OddComponents(String),
    #[error("improper label name {0:?}")]
    LabelName(String),
    #[error("invalid base64 encoding for label {0}={1:?}")]
    LabelBase64(String, String),
    #[error("the value of label {0} is empty: write {0}@base64/= for an empty value")]
    EmptyValue(String),
    #[error("the value of label {0} is not UTF-8")]
    NotUtf8(String),
    #[error("more than {LABELS_MAX} labels")]
    TooManyLabels,
}

/// Labels of a grouping key.
pub const LABELS_MAX: usize = 32;
const BASE64: &str = "@base64";

impl GroupingKey {
    /// Parses the percent-decoded path after `/metrics/`. A slash in a value needs base64, since
    /// `%2F` is decoded already.
    pub fn parse(path: &str) -> Result<Self, ParseGroupingKeyError> {
        let (kind, rest) = path.split_once('/').unwrap_or((path, ""));
        let (job, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let job = if kind.ends_with(BASE64) {
            decode_base64(job).ok_or_else(|| ParseGroupingKeyError::JobBase64(job.to_owned()))?
        } else {
            Cow::Borrowed(job.as_bytes())
        };
        let mut labels: Vec<(String, String)> = Vec::new();
        if !rest.is_empty() {
            let mut parts = rest.split('/');
            while let Some(name) = parts.next() {
                let Some(value) = parts.next() else {
                    return Err(ParseGroupingKeyError::OddComponents(format!("/{rest}")));
                };
                let plain = name.strip_suffix(BASE64);
                let trimmed = plain.unwrap_or(name);
                // Other names have the escaped form in a path, as in Pushgateway.
                let label = unescape_name(trimmed);
                if !is_legacy_name(trimmed, NameKind::Label)
                    || !is_valid_name(&label)
                    || is_reserved_label(&label)
                    || label.len() > NAME_BYTES_MAX
                {
                    return Err(ParseGroupingKeyError::LabelName(trimmed.to_owned()));
                }
                let value = if plain.is_some() {
                    decode_base64(value).ok_or_else(|| {
                        ParseGroupingKeyError::LabelBase64(trimmed.to_owned(), value.to_owned())
                    })?
                } else if value.is_empty() {
                    return Err(ParseGroupingKeyError::EmptyValue(trimmed.to_owned()));
                } else {
                    Cow::Borrowed(value.as_bytes())
                };
                insert_label(&mut labels, &label, &value)?;
            }
        }
        if job.is_empty() {
            return Err(ParseGroupingKeyError::MissingJob);
        }
        insert_label(&mut labels, "job", &job)?;
        Ok(Self::from_labels(labels))
    }

    /// A grouping key of these labels, whose names must be unique.
    pub fn from_labels(mut labels: Vec<(String, String)>) -> Self {
        labels.sort_unstable();
        let mut text: Vec<Label<'_>> =
            labels.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
        let key = render_labels(&mut text).into();
        Self { labels, rendered: key }
    }

    pub fn job(&self) -> &str {
        self.labels.iter().find(|(name, _)| name == "job").map_or("", |(_, job)| job)
    }

    /// Adds the labels to those of a series and overrides labels of the same name. Adds an empty
    /// `instance` if there is none, so that Prometheus does not add its own.
    pub fn apply_to<'a>(&'a self, labels: &mut Vec<Label<'a>>) {
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

/// Adds a label; a repeated name overrides the earlier value.
fn insert_label(
    labels: &mut Vec<(String, String)>,
    name: &str,
    value: &[u8],
) -> Result<(), ParseGroupingKeyError> {
    let value = str::from_utf8(value)
        .map_err(|_not_utf8| ParseGroupingKeyError::NotUtf8(name.to_owned()))?
        .to_owned();
    if let Some((_, known)) = labels.iter_mut().find(|(known, _)| known == name) {
        *known = value;
    } else if labels.len() == LABELS_MAX {
        return Err(ParseGroupingKeyError::TooManyLabels);
    } else {
        labels.push((name.to_owned(), value));
    }
    Ok(())
}

/// Base64 with the URL-safe alphabet, padding optional (RFC 4648, section 5).
fn decode_base64(text: &str) -> Option<Cow<'static, [u8]>> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::URL_SAFE,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::RequireNone),
    );
    LENIENT.decode(text.trim_end_matches('=')).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: Result<&str, &str>) {
        let parsed = GroupingKey::parse(path);
        let got = parsed.as_ref().map(|grouping_key| &*grouping_key.rendered).map_err(ToString::to_string);
        assert_eq!(got, expected.map_err(str::to_owned), "{path}");
    }

    #[test]
    fn path_is_parsed_to_a_grouping_key_or_an_error() {
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
        check("job/a/U__x_2e_y__z/1/U__p@base64/YQ", Ok(r#"job="a",p="a","x.y_z"="1""#));
        for reserved in ["U__", "U_____x", "U__a_2e", "U__U____x", "x.y"] {
            check(&format!("job/a/{reserved}/1"), Err(&format!("improper label name {reserved:?}")));
        }
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
    fn grouping_key_labels_override_those_of_the_series() {
        let grouping_key = GroupingKey::parse("job/a/x/1").unwrap();
        let mut labels = vec![("job".into(), "own".into()), ("y".into(), "2".into())];
        grouping_key.apply_to(&mut labels);
        assert_eq!(render_labels(&mut labels), r#"instance="",job="a",x="1",y="2""#);
        let mut labels = vec![("instance".into(), "own".into())];
        grouping_key.apply_to(&mut labels);
        assert_eq!(render_labels(&mut labels), r#"instance="own",job="a",x="1""#);
    }
}
