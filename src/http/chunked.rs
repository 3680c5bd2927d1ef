//! The chunked coding (RFC 9112, 7.1), byte by byte as it arrives. Pure; knows nothing of sockets or time.
//!
//! Strict where leniency has let requests be smuggled: every line ends with CR LF, a size is hexadecimal digits
//! and nothing else, and extensions and trailers are read over but bounded.

use super::framing::TOO_LARGE;
use super::refusal::Refusal;

/// Bytes of chunk extensions in one body. Nobody sends any; without a bound they would be free ballast.
const EXTENSION_BYTES_MAX: usize = 16 * 1024;
/// Digits of a chunk size: leading zeros must not make a line of any length.
const DIGITS_MAX: u8 = 16;
/// Bytes of the trailer section, which is discarded.
const TRAILER_BYTES_MAX: usize = 8 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the first digit of a size.
    SizeStart,
    Size,
    /// White space between the size and the semicolon of an extension.
    Blank,
    Extension,
    /// After the CR of the size line.
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    /// At the first byte of a trailer line, or of the empty line at the end.
    TrailerStart,
    TrailerName,
    TrailerValue,
    /// After the CR of a trailer line.
    TrailerEnd,
    /// After the CR of the empty line at the end.
    LastLf,
    Done,
}

/// Invariant: `left` is what is still to come of the current chunk; the body never grows past `bytes_max`.
#[derive(Debug)]
pub(super) struct Decoder {
    state: State,
    left: usize,
    digits: u8,
    extension_bytes: usize,
    trailer_bytes: usize,
    bytes_max: usize,
}

impl Decoder {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { state: State::SizeStart, left: 0, digits: 0, extension_bytes: 0, trailer_bytes: 0, bytes_max }
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes bytes up to the end of the body and says how many. What they hold of the body goes to `body`.
    pub(super) fn feed(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<usize, Refusal> {
        let mut at = 0;
        while at < input.len() && self.state != State::Done {
            if self.state == State::Data {
                let take = self.left.min(input.len() - at);
                body.extend_from_slice(&input[at..at + take]);
                at += take;
                self.left -= take;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
            } else {
                self.state = self.step(input[at], body.len())?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8, body_bytes: usize) -> Result<State, Refusal> {
        const BAD: Refusal = Refusal::new(400, "the chunked body is not valid");
        match self.state {
            State::SizeStart => {
                self.left = 0;
                self.digits = 0;
                self.digit(byte, body_bytes).map(|()| State::Size)
            }
            State::Size => match byte {
                b'\r' => Ok(State::SizeEnd),
                b';' => Ok(State::Extension),
                b' ' | b'\t' => self.extension(State::Blank),
                _ => self.digit(byte, body_bytes).map(|()| State::Size),
            },
            State::Blank => match byte {
                b' ' | b'\t' => self.extension(State::Blank),
                b';' => Ok(State::Extension),
                _ => Err(BAD),
            },
            State::Extension => match byte {
                b'\r' => Ok(State::SizeEnd),
                b'\t' | b' '..=b'~' | 0x80.. => self.extension(State::Extension),
                0..=0x1f | 0x7f => Err(BAD),
            },
            State::SizeEnd => match (byte, self.left) {
                (b'\n', 0) => Ok(State::TrailerStart),
                (b'\n', _) => Ok(State::Data),
                (_, _) => Err(BAD),
            },
            State::DataCr => expect(byte, b'\r', State::DataLf),
            State::DataLf => expect(byte, b'\n', State::SizeStart),
            State::TrailerStart => match byte {
                b'\r' => Ok(State::LastLf),
                _ if is_token(byte) => self.trailer(State::TrailerName),
                _ => Err(BAD),
            },
            State::TrailerName => match byte {
                b':' => self.trailer(State::TrailerValue),
                _ if is_token(byte) => self.trailer(State::TrailerName),
                _ => Err(BAD),
            },
            State::TrailerValue => match byte {
                b'\r' => Ok(State::TrailerEnd),
                b'\t' | b' '..=b'~' | 0x80.. => self.trailer(State::TrailerValue),
                0..=0x1f | 0x7f => Err(BAD),
            },
            State::TrailerEnd => expect(byte, b'\n', State::TrailerStart),
            State::LastLf => expect(byte, b'\n', State::Done),
            State::Data | State::Done => unreachable!("BUG: feed handles both"),
        }
    }

    fn digit(&mut self, byte: u8, body_bytes: usize) -> Result<(), Refusal> {
        const BAD: Refusal = Refusal::new(400, "a chunk size is not a number");
        let digit = char::from(byte).to_digit(16).ok_or(BAD)?;
        self.digits += 1;
        if self.digits > DIGITS_MAX {
            return Err(BAD);
        }
        let size = self.left.checked_mul(16).and_then(|size| size.checked_add(digit as usize));
        match size {
            Some(size) if body_bytes.saturating_add(size) <= self.bytes_max => {
                self.left = size;
                Ok(())
            }
            Some(_) | None => Err(TOO_LARGE),
        }
    }

    fn extension(&mut self, next: State) -> Result<State, Refusal> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err(Refusal::new(400, "the chunk extensions are too long"));
        }
        Ok(next)
    }

    fn trailer(&mut self, next: State) -> Result<State, Refusal> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(Refusal::new(431, "the trailer is too long"));
        }
        Ok(next)
    }
}

fn expect(byte: u8, wanted: u8, next: State) -> Result<State, Refusal> {
    if byte == wanted { Ok(next) } else { Err(Refusal::new(400, "the chunked body is not valid")) }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
