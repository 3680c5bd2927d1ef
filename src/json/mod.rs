//! The JSON scanner: one pass over the bytes, no recursion, no allocation, linear time on any
//! input.
//!
//! It reports the positions of strings and values, and builds no tree. A syntax error
//! ([`ParseJsonError`]) ends the scan. A construct that is valid JSON but that PostgreSQL refuses
//! (a [`JsonViolation`]) is recorded and the scan continues, so that one invalid event does not
//! reject its batch. The caller must have validated the bytes as UTF-8.
//!
//! It must not depend on the meaning of the fields of an event.

mod number;
pub(crate) mod scan;
pub mod text;

use crate::event::METADATA_DEPTH_MAX;
use scan::find_special;
use text::Escape;

/// The bytes are not valid JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub(crate) struct ParseJsonError {
    pub(crate) at: usize,
    pub(crate) what: &'static str,
}

/// Valid JSON that PostgreSQL refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JsonViolation {
    #[error("contains the character U+0000 (\\u0000), which PostgreSQL cannot store")]
    Nul,
    #[error("contains an unpaired surrogate (\\ud800 to \\udfff)")]
    LoneSurrogate,
    #[error(
        "contains a number out of range: at most {} digits before the decimal point and {} after it",
        number::DIGITS_BEFORE_POINT_MAX,
        number::DIGITS_AFTER_POINT_MAX
    )]
    NumberRange,
    #[error(
        "contains numbers whose exponents expand to more than {} digits in total",
        number::EXPANSION_DIGITS_MAX
    )]
    NumberExpansion,
    #[error("is nested deeper than {METADATA_DEPTH_MAX} levels")]
    Depth,
}

/// The position of a string, without its quotes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct JsonString {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Bytes after unescaping. Without escapes this is `end - start`.
    pub(crate) bytes: usize,
    pub(crate) violation: Option<JsonViolation>,
}

impl JsonString {
    #[inline]
    pub(crate) fn has_escapes(&self) -> bool {
        self.bytes != self.end - self.start
    }
}

/// The position of a value of any type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JsonValue {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) violation: Option<JsonViolation>,
}

/// A scan of `bytes`; `at` is the next byte.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Represents the end of the bytes. Wherever a raw NUL could be mistaken for it, both are errors.
const END: u8 = 0;

impl<'a> Scanner<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Continues another scan of the same bytes at its position.
    pub(super) fn resume(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    #[inline]
    pub(crate) fn slice(&self, start: usize, end: usize) -> &'a [u8] {
        &self.bytes[start..end]
    }

    #[inline]
    pub(crate) fn source(&self) -> &'a [u8] {
        self.bytes
    }

    /// The next byte; 0 at the end.
    #[inline]
    pub(crate) fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(END)
    }

    /// Skips white space and returns the byte after it; 0 at the end.
    #[inline]
    pub(crate) fn next_token(&mut self) -> u8 {
        loop {
            let byte = self.peek();
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return byte;
            }
            self.at += 1;
        }
    }

    /// Skips the byte that [`Self::peek`] or [`Self::next_token`] returned. Must not be called at
    /// the end.
    #[inline]
    pub(crate) fn advance(&mut self) {
        debug_assert!(self.at < self.bytes.len(), "BUG: advanced past the end");
        self.at += 1;
    }

    #[inline]
    pub(crate) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    #[cold]
    pub(crate) fn error(&self, what: &'static str) -> ParseJsonError {
        ParseJsonError { at: self.at, what: if self.is_at_end() { "unexpected end of JSON" } else { what } }
    }

    /// Skips white space and `expected`.
    #[inline]
    pub(crate) fn expect(&mut self, expected: u8, what: &'static str) -> Result<(), ParseJsonError> {
        if self.next_token() == expected && expected != END {
            self.at += 1;
            Ok(())
        } else {
            Err(self.error(what))
        }
    }

    /// Scans the name of a member, its colon and the white space before its value. `expected` is the
    /// error without a name.
    #[inline]
    pub(crate) fn name(&mut self, expected: &'static str) -> Result<JsonString, ParseJsonError> {
        if self.peek() != b'"' {
            return Err(self.error(expected));
        }
        let name = self.string()?;
        self.expect(b':', "':' was expected")?;
        self.next_token();
        Ok(name)
    }

    /// Scans the object whose opening brace is the next byte. Calls `each` with the name of each member,
    /// at its value, which `each` must scan. `expected` is the error without a name.
    #[inline]
    pub(crate) fn members<E: From<ParseJsonError>>(
        &mut self,
        expected: &'static str,
        mut each: impl FnMut(&mut Self, JsonString) -> Result<(), E>,
    ) -> Result<(), E> {
        self.advance();
        if self.next_token() != b'}' {
            loop {
                let name = self.name(expected)?;
                each(self, name)?;
                match self.next_token() {
                    b',' => self.advance(),
                    b'}' => break,
                    _ => return Err(self.error("',' or '}' was expected").into()),
                }
                self.next_token();
            }
        }
        self.advance();
        Ok(())
    }

    /// Scans the string whose opening quote is the next byte.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<JsonString, ParseJsonError> {
        debug_assert_eq!(self.peek(), b'"', "BUG: the next byte is not a quote");
        let start = self.at + 1;
        self.at = find_special(self.bytes, start);
        if self.peek() == b'"' {
            let end = self.at;
            self.at += 1;
            return Ok(JsonString { start, end, bytes: end - start, violation: None });
        }
        self.string_with_escapes(start)
    }

    #[cold]
    fn string_with_escapes(&mut self, start: usize) -> Result<JsonString, ParseJsonError> {
        let mut saved = 0;
        let mut violation = None;
        loop {
            match self.peek() {
                b'"' => {
                    let end = self.at;
                    self.at += 1;
                    return Ok(JsonString { start, end, bytes: end - start - saved, violation });
                }
                b'\\' => {
                    let escape = Escape::read(&self.bytes[self.at..])
                        .ok_or_else(|| self.error("invalid escape in a string"))?;
                    violation = violation.or(escape.violation);
                    saved += escape.length - escape.char.len_utf8();
                    self.at += escape.length;
                }
                _ if self.is_at_end() => return Err(self.error("")),
                _ => return Err(self.error("unescaped control character in a string")),
            }
            self.at = find_special(self.bytes, self.at);
        }
    }

    /// Scans a value of any type and depth that begins with the next byte.
    #[inline]
    pub(crate) fn value(&mut self) -> Result<JsonValue, ParseJsonError> {
        let start = self.at;
        let mut findings = ValueFindings::default();
        let mut containers = ContainerStack::default();
        'value: loop {
            match self.peek() {
                b'"' => findings.record(self.string()?.violation),
                b'-' | b'0'..=b'9' => self.number(&mut findings)?,
                b'{' => {
                    containers.push(true, &mut findings);
                    self.at += 1;
                    if self.next_token() != b'}' {
                        self.key(&mut findings)?;
                        continue 'value;
                    }
                    containers.pop();
                    self.at += 1;
                }
                b'[' => {
                    containers.push(false, &mut findings);
                    self.at += 1;
                    if self.next_token() != b']' {
                        continue 'value;
                    }
                    containers.pop();
                    self.at += 1;
                }
                b't' => self.literal(b"true")?,
                b'f' => self.literal(b"false")?,
                b'n' => self.literal(b"null")?,
                _ => return Err(self.error("a value was expected")),
            }
            // After a value: close containers until another value must follow.
            while containers.depth > 0 {
                let token = self.next_token();
                if token == b',' {
                    self.at += 1;
                    self.next_token();
                    if containers.in_object() {
                        self.key(&mut findings)?;
                    }
                    continue 'value;
                }
                if token != if containers.in_object() { b'}' } else { b']' } {
                    let what = if containers.in_object() {
                        "',' or '}' was expected"
                    } else {
                        "',' or ']' was expected"
                    };
                    return Err(self.error(what));
                }
                containers.pop();
                self.at += 1;
            }
            return Ok(JsonValue { start, end: self.at, violation: findings.violation });
        }
    }

    /// Scans a key, its colon and the white space before the value. Written out: by [`Scanner::name`] a
    /// batch takes 6 % more instructions.
    #[inline]
    fn key(&mut self, findings: &mut ValueFindings) -> Result<(), ParseJsonError> {
        if self.peek() != b'"' {
            return Err(self.error("a key in double quotes was expected"));
        }
        findings.record(self.string()?.violation);
        self.expect(b':', "':' was expected")?;
        self.next_token();
        Ok(())
    }

    #[inline]
    fn literal(&mut self, word: &'static [u8]) -> Result<(), ParseJsonError> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            return Ok(());
        }
        Err(self.error("a value was expected"))
    }

    #[inline]
    fn number(&mut self, findings: &mut ValueFindings) -> Result<(), ParseJsonError> {
        let start = self.at;
        if self.peek() == b'-' {
            self.at += 1;
        }
        let first = self.peek();
        let whole = self.digits()?;
        if first == b'0' && whole.1 - whole.0 > 1 {
            self.at = whole.0;
            return Err(self.error("a number with a leading zero"));
        }
        // An integer without exponent and of at most this length is in range.
        if !matches!(self.peek(), b'.' | b'e' | b'E') && self.at - start <= number::DIGITS_UNCHECKED_MAX {
            return Ok(());
        }
        self.number_checked(whole, findings)
    }

    #[cold]
    fn number_checked(
        &mut self,
        whole: (usize, usize),
        findings: &mut ValueFindings,
    ) -> Result<(), ParseJsonError> {
        let mut number = number::JsonNumber { whole: self.slice(whole.0, whole.1), ..Default::default() };
        if self.peek() == b'.' {
            self.at += 1;
            let (from, to) = self.digits()?;
            number.fraction = self.slice(from, to);
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            number.exponent_negative = self.peek() == b'-';
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            let (from, to) = self.digits()?;
            number.exponent = self.slice(from, to);
        }
        match number.expansion_digits() {
            None => findings.record(Some(JsonViolation::NumberRange)),
            Some(digits) => {
                findings.expansion = findings.expansion.saturating_add(digits);
                if findings.expansion > number::EXPANSION_DIGITS_MAX {
                    findings.record(Some(JsonViolation::NumberExpansion));
                }
            }
        }
        Ok(())
    }

    /// Scans one or more digits; returns their start and end.
    #[inline]
    fn digits(&mut self) -> Result<(usize, usize), ParseJsonError> {
        let start = self.at;
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start { Err(self.error("a digit was expected")) } else { Ok((start, self.at)) }
    }
}

/// Findings in a value so far. Only the first violation is kept.
#[derive(Default)]
struct ValueFindings {
    violation: Option<JsonViolation>,
    expansion: u64,
}

impl ValueFindings {
    #[inline]
    fn record(&mut self, violation: Option<JsonViolation>) {
        if violation.is_some() && self.violation.is_none() {
            self.violation = violation;
        }
    }
}

/// The stack of open containers, one bit each, 1 for an object. `kinds` holds the innermost 64;
/// `outer` holds the others, and only documents that exceed the depth bound use it.
#[derive(Default)]
struct ContainerStack {
    kinds: u64,
    depth: u32,
    outer: Vec<u64>,
}

impl ContainerStack {
    #[inline]
    fn push(&mut self, object: bool, findings: &mut ValueFindings) {
        if self.depth >= METADATA_DEPTH_MAX {
            findings.record(Some(JsonViolation::Depth));
            if self.depth.is_multiple_of(u64::BITS) {
                self.outer.push(self.kinds);
            }
        }
        self.kinds = self.kinds << 1 | u64::from(object);
        self.depth += 1;
    }

    #[inline]
    fn pop(&mut self) {
        self.depth -= 1;
        self.kinds >>= 1;
        if self.depth >= METADATA_DEPTH_MAX && self.depth.is_multiple_of(u64::BITS) {
            self.kinds = self.outer.pop().expect("BUG: push saved a word at this depth");
        }
    }

    #[inline]
    fn in_object(&self) -> bool {
        self.kinds & 1 == 1
    }
}

// `ContainerStack` moves words to `outer` at multiples of 64, beginning at the depth bound.
const _: () = assert!(METADATA_DEPTH_MAX == u64::BITS);
