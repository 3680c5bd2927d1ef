//! Writes the metadata of a record as JSON text. It keeps its allocation from record to record.
//!
//! The text is JSON that PostgreSQL accepts, or [`MetadataWriter::finish`] says that it must be
//! validated or why it is invalid. It must not depend on any format.

use super::fields::Metadata;
use crate::event::METADATA_DEPTH_MAX;
use crate::json::{JsonViolation, text};

/// Capacity that is kept from one record to the next.
const RETAINED_BYTES: usize = 256 * 1024;
/// A number of at most this many characters and without an exponent needs no further check.
const NUMBER_UNCHECKED_BYTES_MAX: usize = 100;

/// One JSON object. Between [`Self::clear`] and [`Self::finish`] each member is a key and one value,
/// and each container that is begun is ended.
#[derive(Debug, Default)]
pub(super) struct MetadataWriter {
    json: Vec<u8>,
    /// Open containers within the object.
    depth: u32,
    violation: Option<JsonViolation>,
    /// Whether the text has values that keep a rule only together, or were not checked.
    is_unchecked: bool,
}

impl MetadataWriter {
    /// Begins another object.
    pub(super) fn clear(&mut self) {
        self.json.clear();
        if self.json.capacity() > RETAINED_BYTES {
            self.json.shrink_to(RETAINED_BYTES);
        }
        self.json.push(b'{');
        self.depth = 0;
        self.violation = None;
        self.is_unchecked = false;
    }

    /// Ends the object.
    pub(super) fn finish(&mut self) -> Metadata<'_> {
        debug_assert_eq!(self.depth, 0, "BUG: a container was not ended");
        if self.json.len() <= 1 {
            return Metadata::None;
        }
        self.json.push(b'}');
        match self.violation {
            Some(violation) => Metadata::Invalid(violation),
            None if self.is_unchecked => Metadata::Text(&self.json),
            None => Metadata::Checked(&self.json),
        }
    }

    /// Begins a member of the innermost object.
    pub(super) fn key(&mut self, name: &str) {
        self.string(name);
        self.json.push(b':');
    }

    /// Begins a member whose name is a JSON string with its quotes, as the scanner has accepted it.
    pub(super) fn raw_key(&mut self, name: &[u8], violation: Option<JsonViolation>) {
        self.raw(name, violation);
        self.json.push(b':');
    }

    pub(super) fn string(&mut self, value: &str) {
        self.separate();
        if memchr::memchr(0, value.as_bytes()).is_some() {
            self.violation = self.violation.or(Some(JsonViolation::Nul));
        }
        text::quote(&mut self.json, value);
    }

    /// A member whose value is a text.
    pub(super) fn member(&mut self, name: &str, value: &str) {
        self.key(name);
        self.string(value);
    }

    /// A value that the scanner has accepted.
    pub(super) fn raw(&mut self, json: &[u8], violation: Option<JsonViolation>) {
        self.separate();
        self.json.extend_from_slice(json);
        self.violation = self.violation.or(violation);
        self.is_unchecked |= match json.first() {
            Some(b'"' | b't' | b'f' | b'n') => false,
            Some(b'{' | b'[') | None => true,
            Some(_) => {
                json.len() > NUMBER_UNCHECKED_BYTES_MAX || json.iter().any(|byte| matches!(byte, b'e' | b'E'))
            }
        };
    }

    pub(super) fn begin_object(&mut self) {
        self.begin(b'{');
    }

    pub(super) fn end_object(&mut self) {
        self.end(b'}');
    }

    fn begin(&mut self, bracket: u8) {
        self.separate();
        self.json.push(bracket);
        self.depth += 1;
        // The object itself counts.
        if self.depth >= METADATA_DEPTH_MAX {
            self.violation = self.violation.or(Some(JsonViolation::Depth));
        }
    }

    fn end(&mut self, bracket: u8) {
        debug_assert!(self.depth > 0, "BUG: no container is open");
        self.json.push(bracket);
        self.depth -= 1;
    }

    /// Writes the comma before a further member or element.
    fn separate(&mut self) {
        if !matches!(self.json.last(), Some(b'{' | b'[' | b':')) {
            self.json.push(b',');
        }
    }
}
