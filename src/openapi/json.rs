//! Writes JSON without white space.

use crate::json::text;

#[derive(Debug, Default)]
pub(super) struct JsonWriter {
    out: Vec<u8>,
}

impl JsonWriter {
    pub(super) fn finish(self) -> String {
        String::from_utf8(self.out).expect("BUG: only text was written")
    }

    /// A comma, if a member or an element precedes.
    fn separate(&mut self) {
        if !matches!(self.out.last(), None | Some(b'{' | b'[' | b':')) {
            self.out.push(b',');
        }
    }

    /// Text that is JSON already.
    pub(super) fn raw(&mut self, json: &str) {
        self.separate();
        self.out.extend_from_slice(json.as_bytes());
    }

    pub(super) fn string(&mut self, value: &str) {
        self.separate();
        text::quote(&mut self.out, value);
    }

    pub(super) fn key(&mut self, name: &str) {
        self.string(name);
        self.out.push(b':');
    }

    pub(super) fn object(&mut self, members: impl FnOnce(&mut Self)) {
        self.separate();
        self.out.push(b'{');
        members(self);
        self.out.push(b'}');
    }

    pub(super) fn array(&mut self, elements: impl FnOnce(&mut Self)) {
        self.separate();
        self.out.push(b'[');
        elements(self);
        self.out.push(b']');
    }

    pub(super) fn strings<'a>(&mut self, name: &str, values: impl IntoIterator<Item = &'a str>) {
        self.key(name);
        self.array(|out| values.into_iter().for_each(|value| out.string(value)));
    }

    /// A member with a string, unless it is empty.
    pub(super) fn text_member(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.key(name);
            self.string(value);
        }
    }

    pub(super) fn raw_member(&mut self, name: &str, json: &str) {
        self.key(name);
        self.raw(json);
    }
}
