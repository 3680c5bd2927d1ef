//! How the names of the state are written on a page: as they are, in quotes, or escaped, so that no
//! two series of the state become one.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::metric::{escaped_labels, has_quoted_name, rendered_labels};
use super::names::{NameEscaping, NameKind, escape_name, is_legacy_name, write_quoted};
use super::state::{FAILURE_TIME, Name, PUSH_TIME, Snapshot};
use crate::metrics::text_format::{write_float, write_label, write_sample};

/// The names of a page.
#[derive(Debug)]
pub(super) struct PageNames {
    escaping: NameEscaping,
    /// The names whose form would be that of another name, which have the form of
    /// [`NameEscaping::Values`].
    ambiguous: HashSet<Name>,
}

/// The name of a family on a page.
#[derive(Debug)]
pub(super) struct FamilyName {
    /// Without quotes.
    pub(super) text: String,
    is_quoted: bool,
}

impl PageNames {
    pub(super) fn new(snapshot: &Snapshot, escaping: NameEscaping) -> Self {
        let ambiguous = if escaping.is_lossy() { ambiguous(snapshot, escaping) } else { HashSet::new() };
        Self { escaping, ambiguous }
    }

    pub(super) fn family(&self, name: &str) -> FamilyName {
        if is_legacy_name(name, NameKind::Metric) {
            return FamilyName { text: name.to_owned(), is_quoted: false };
        }
        let escaping = if self.ambiguous.contains(name) { NameEscaping::Values } else { self.escaping };
        let text = escape_name(name, NameKind::Metric, escaping).into_owned();
        FamilyName { text, is_quoted: escaping == NameEscaping::AllowUtf8 }
    }

    /// Rendered labels as they are written.
    pub(super) fn labels<'a>(&self, labels: &'a str) -> Cow<'a, str> {
        if self.escaping == NameEscaping::AllowUtf8 || !has_quoted_name(labels) {
            return Cow::Borrowed(labels);
        }
        let names: Vec<_> = rendered_labels(labels).map(|(name, _)| name).collect();
        let escaped = |name: &str, escaping| escape_name(name, NameKind::Label, escaping).into_owned();
        let mut out = String::with_capacity(labels.len() + 32);
        for (nth, (name, (_, value))) in names.iter().zip(escaped_labels(labels)).enumerate() {
            let mut form = escaped(name, self.escaping);
            let is_same = |(other, another): (usize, &Cow<'_, str>)| {
                other != nth && escaped(another, self.escaping) == form
            };
            if self.escaping.is_lossy() && form != **name && names.iter().enumerate().any(is_same) {
                form = escaped(name, NameEscaping::Values);
            }
            if nth > 0 {
                out.push(',');
            }
            // The value is escaped already.
            for part in [&form, "=\"", value, "\""] {
                out.push_str(part);
            }
        }
        Cow::Owned(out)
    }
}

/// The names that a lossy escaping would write like another name of the page.
fn ambiguous(snapshot: &Snapshot, escaping: NameEscaping) -> HashSet<Name> {
    let mut last: Option<&Name> = None;
    let mut families = Vec::new();
    for ((name, _), block) in &snapshot.blocks {
        if last != Some(name) {
            families.push((name, block.kind));
        }
        last = Some(name);
    }
    let forms = |name: &str, suffixes: &[&str]| -> Vec<String> {
        let form = escape_name(name, NameKind::Metric, escaping);
        [""].iter().chain(suffixes).map(|suffix| format!("{form}{suffix}")).collect()
    };
    let mut uses: HashMap<String, usize> = HashMap::new();
    for name in [PUSH_TIME, FAILURE_TIME] {
        uses.insert(name.to_owned(), 1);
    }
    for (name, kind) in &families {
        for form in forms(name, kind.suffixes()) {
            *uses.entry(form).or_default() += 1;
        }
    }
    let is_ambiguous = |(name, kind): &(&Name, super::metric::MetricKind)| {
        !is_legacy_name(name, NameKind::Metric)
            && forms(name, kind.suffixes()).iter().any(|form| uses.get(form).is_some_and(|uses| *uses > 1))
    };
    families.into_iter().filter(is_ambiguous).map(|(name, _)| name.clone()).collect()
}

impl FamilyName {
    pub(super) fn unescaped(name: &str) -> Self {
        Self { text: name.to_owned(), is_quoted: !is_legacy_name(name, NameKind::Metric) }
    }

    /// The name for `# HELP` and `# TYPE`, without `removed` at its end.
    pub(super) fn header(&self, removed: &str) -> Cow<'_, str> {
        let text = self.text.strip_suffix(removed).unwrap_or(&self.text);
        self.quoted_if_needed(text, "")
    }

    /// The name of the part with this suffix, for `# HELP` and `# TYPE`.
    pub(super) fn part_header(&self, suffix: &str) -> Cow<'_, str> {
        self.quoted_if_needed(&self.text, suffix)
    }

    fn quoted_if_needed<'a>(&self, text: &'a str, suffix: &str) -> Cow<'a, str> {
        if self.is_quoted {
            let mut out = String::with_capacity(text.len() + suffix.len() + 2);
            write_quoted(&mut out, &[text, suffix]);
            Cow::Owned(out)
        } else if suffix.is_empty() {
            Cow::Borrowed(text)
        } else {
            Cow::Owned(format!("{text}{suffix}"))
        }
    }

    /// Writes the line of a sample.
    pub(super) fn write_sample(
        &self,
        out: &mut String,
        suffix: &str,
        labels: &str,
        extra: Option<(&str, &str)>,
        value: f64,
    ) {
        if !self.is_quoted {
            write_sample(out, (&self.text, suffix), labels, extra, value);
            return;
        }
        out.push('{');
        write_quoted(out, &[&self.text, suffix]);
        if !labels.is_empty() {
            out.push(',');
            out.push_str(labels);
        }
        if let Some((name, value)) = extra {
            out.push(',');
            write_label(out, name, value);
        }
        out.push_str("} ");
        write_float(out, value);
        out.push('\n');
    }
}
