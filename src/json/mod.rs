//! The JSON scanner: one pass over the bytes, no recursion, no allocation, linear time on any input.
//!
//! It tells where strings, numbers and containers lie and what PostgreSQL would refuse in them; it builds no
//! tree. Grammar errors ([`Syntax`]) end the scan. What the grammar allows and PostgreSQL does not (a [`Fault`])
//! is noted and the scan goes on, so that one bad event does not cost its batch.
//! The bytes must be UTF-8, which the caller has checked. Knows nothing of events.

mod number;
pub(crate) mod scan;
pub mod text;

use crate::event::METADATA_DEPTH_MAX;
use scan::find_special;
use text::Escape;

/// The bytes are not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub(crate) struct Syntax {
    pub(crate) at: usize,
    pub(crate) what: &'static str,
}

/// JSON that PostgreSQL would refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("holds the character U+0000 (\\u0000), which PostgreSQL cannot store")]
    Nul,
    #[error("holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")]
    LoneSurrogate,
    #[error(
        "holds a number out of range: at most {} digits before the decimal point and {} after it",
        number::DIGITS_BEFORE_POINT_MAX,
        number::DIGITS_AFTER_POINT_MAX
    )]
    NumberRange,
    #[error(
        "holds numbers whose exponents stand for more than {} digits together",
        number::EXPANSION_DIGITS_MAX
    )]
    NumberExpansion,
    #[error("is nested deeper than {METADATA_DEPTH_MAX} levels")]
    Depth,
}

/// A string, without its quotes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Bytes once unescaped. Without escapes this is `end - start`.
    pub(crate) bytes: usize,
    pub(crate) fault: Option<Fault>,
}

impl Text {
    #[inline]
    pub(crate) fn escaped(&self) -> bool {
        self.bytes != self.end - self.start
    }
}

/// A value of any kind, from its first byte to after its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) fault: Option<Fault>,
}

/// Where the scan stands.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Stands for the end of the bytes. Where it could be mistaken for a raw NUL, both are errors.
const END: u8 = 0;

impl<'a> Scanner<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Goes on where another scan of the same bytes stood.
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

    /// The byte here; 0 at the end.
    #[inline]
    pub(crate) fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(END)
    }

    /// Skips white space and gives the byte after it; 0 at the end.
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

    /// Steps over the byte that [`Self::peek`] or [`Self::next_token`] gave, which was not the end.
    #[inline]
    pub(crate) fn step(&mut self) {
        debug_assert!(self.at < self.bytes.len(), "BUG: a step past the end");
        self.at += 1;
    }

    #[inline]
    pub(crate) fn done(&self) -> bool {
        self.at >= self.bytes.len()
    }

    #[cold]
    pub(crate) fn error(&self, what: &'static str) -> Syntax {
        Syntax { at: self.at, what: if self.done() { "the JSON ends too early," } else { what } }
    }

    /// Steps over white space and `wanted`.
    #[inline]
    pub(crate) fn expect(&mut self, wanted: u8, what: &'static str) -> Result<(), Syntax> {
        if self.next_token() == wanted && wanted != END {
            self.at += 1;
            Ok(())
        } else {
            Err(self.error(what))
        }
    }

    /// The string whose opening quote is here.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<Text, Syntax> {
        debug_assert_eq!(self.peek(), b'"', "BUG: no string here");
        let start = self.at + 1;
        self.at = find_special(self.bytes, start);
        if self.peek() == b'"' {
            let end = self.at;
            self.at += 1;
            return Ok(Text { start, end, bytes: end - start, fault: None });
        }
        self.string_with_escapes(start)
    }

    #[cold]
    fn string_with_escapes(&mut self, start: usize) -> Result<Text, Syntax> {
        let mut saved = 0;
        let mut fault = None;
        loop {
            match self.peek() {
                b'"' => {
                    let end = self.at;
                    self.at += 1;
                    return Ok(Text { start, end, bytes: end - start - saved, fault });
                }
                b'\\' => {
                    let escape = Escape::read(&self.bytes[self.at..])
                        .ok_or_else(|| self.error("a bad escape in a string"))?;
                    fault = fault.or(escape.fault);
                    saved += escape.length - escape.char.len_utf8();
                    self.at += escape.length;
                }
                _ if self.done() => return Err(self.error("")),
                _ => return Err(self.error("a control character in a string, which must be escaped,")),
            }
            self.at = find_special(self.bytes, self.at);
        }
    }

    /// The value that begins here, of any kind and depth.
    #[inline]
    pub(crate) fn value(&mut self) -> Result<Value, Syntax> {
        let start = self.at;
        let mut findings = Findings::default();
        let mut open = Open::default();
        'value: loop {
            match self.peek() {
                b'"' => findings.note(self.string()?.fault),
                b'-' | b'0'..=b'9' => self.number(&mut findings)?,
                b'{' => {
                    open.push(true, &mut findings);
                    self.at += 1;
                    if self.next_token() != b'}' {
                        self.key(&mut findings)?;
                        continue 'value;
                    }
                    open.pop();
                    self.at += 1;
                }
                b'[' => {
                    open.push(false, &mut findings);
                    self.at += 1;
                    if self.next_token() != b']' {
                        continue 'value;
                    }
                    open.pop();
                    self.at += 1;
                }
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                _ => return Err(self.error("a value was expected")),
            }
            // After a value: close what ends here, until another value must follow.
            while open.depth > 0 {
                let token = self.next_token();
                if token == b',' {
                    self.at += 1;
                    self.next_token();
                    if open.in_object() {
                        self.key(&mut findings)?;
                    }
                    continue 'value;
                }
                if token != if open.in_object() { b'}' } else { b']' } {
                    let what =
                        if open.in_object() { "',' or '}' was expected" } else { "',' or ']' was expected" };
                    return Err(self.error(what));
                }
                open.pop();
                self.at += 1;
            }
            return Ok(Value { start, end: self.at, fault: findings.fault });
        }
    }

    /// A key with its colon, up to the value.
    #[inline]
    fn key(&mut self, findings: &mut Findings) -> Result<(), Syntax> {
        if self.peek() != b'"' {
            return Err(self.error("a key in double quotes was expected"));
        }
        findings.note(self.string()?.fault);
        self.expect(b':', "':' was expected")?;
        self.next_token();
        Ok(())
    }

    #[inline]
    fn word(&mut self, word: &'static [u8]) -> Result<(), Syntax> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            return Ok(());
        }
        Err(self.error("a value was expected"))
    }

    #[inline]
    fn number(&mut self, findings: &mut Findings) -> Result<(), Syntax> {
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
        // Plain integers of sane size are done; the rest is measured.
        if !matches!(self.peek(), b'.' | b'e' | b'E') && self.at - start <= number::DIGITS_PLAIN_MAX {
            return Ok(());
        }
        self.number_measured(whole, findings)
    }

    #[cold]
    fn number_measured(&mut self, whole: (usize, usize), findings: &mut Findings) -> Result<(), Syntax> {
        let mut number = number::Number { whole: self.slice(whole.0, whole.1), ..Default::default() };
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
        match number.expansion() {
            None => findings.note(Some(Fault::NumberRange)),
            Some(digits) => {
                findings.expansion = findings.expansion.saturating_add(digits);
                if findings.expansion > number::EXPANSION_DIGITS_MAX {
                    findings.note(Some(Fault::NumberExpansion));
                }
            }
        }
        Ok(())
    }

    /// One digit or more: from where to where.
    #[inline]
    fn digits(&mut self) -> Result<(usize, usize), Syntax> {
        let start = self.at;
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start { Err(self.error("a digit was expected")) } else { Ok((start, self.at)) }
    }
}

/// What was found in a value so far: the first fault counts.
#[derive(Default)]
struct Findings {
    fault: Option<Fault>,
    expansion: u64,
}

impl Findings {
    #[inline]
    fn note(&mut self, fault: Option<Fault>) {
        if fault.is_some() && self.fault.is_none() {
            self.fault = fault;
        }
    }
}

/// The containers that are open, a bit each, objects 1: the innermost 64 in a word, those further out in a
/// vector, which only documents that will be refused ever fill.
#[derive(Default)]
struct Open {
    kinds: u64,
    depth: u32,
    outer: Vec<u64>,
}

impl Open {
    #[inline]
    fn push(&mut self, object: bool, findings: &mut Findings) {
        if self.depth >= METADATA_DEPTH_MAX {
            findings.note(Some(Fault::Depth));
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
            self.kinds = self.outer.pop().expect("BUG: a word was put aside at this depth");
        }
    }

    #[inline]
    fn in_object(&self) -> bool {
        self.kinds & 1 == 1
    }
}

// The words of `Open` are put aside at multiples of 64 from the bound on.
const _: () = assert!(METADATA_DEPTH_MAX == u64::BITS);
