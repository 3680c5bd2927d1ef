//! An incremental decoder of the chunked transfer coding (RFC 9112, 7.1). Must not depend on
//! sockets or time.
//!
//! Strict where leniency enables request smuggling: every line ends with CR LF and a chunk size is
//! hexadecimal digits only. Extensions and trailers are skipped, up to a limit.

use super::framing::TOO_LARGE;
use super::refusal::Refusal;

/// Limit on the bytes of chunk extensions in one body.
const EXTENSION_BYTES_MAX: usize = 16 * 1024;
/// Digits of a chunk size, which bounds leading zeros.
const DIGITS_MAX: u8 = 16;
/// Limit on the bytes of the trailer section, which is discarded.
const TRAILER_BYTES_MAX: usize = 8 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkedState {
    /// Before the first digit of a chunk size.
    SizeStart,
    Size,
    /// Whitespace between the size and the semicolon of an extension.
    Blank,
    Extension,
    /// After the CR of the size line.
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    /// Before a trailer line or the final empty line.
    TrailerStart,
    TrailerName,
    TrailerValue,
    /// After the CR of a trailer line.
    TrailerEnd,
    /// After the CR of the final empty line.
    LastLf,
    Done,
}

/// Invariant: `left` is the number of missing bytes of the current chunk; the body never exceeds
/// `bytes_max`.
#[derive(Debug)]
pub(super) struct ChunkedDecoder {
    state: ChunkedState,
    left: usize,
    digits: u8,
    extension_bytes: usize,
    trailer_bytes: usize,
    bytes_max: usize,
}

impl ChunkedDecoder {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            state: ChunkedState::SizeStart,
            left: 0,
            digits: 0,
            extension_bytes: 0,
            trailer_bytes: 0,
            bytes_max,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == ChunkedState::Done
    }

    /// Consumes `input` up to the end of the body and appends the decoded bytes to `body`. Returns
    /// the number of bytes consumed.
    pub(super) fn decode(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<usize, Refusal> {
        let mut body_bytes = body.len();
        self.consume(input, &mut body_bytes, |piece| body.extend_from_slice(piece))
    }

    /// Consumes `input` up to the end of the body and adds the number of decoded bytes to
    /// `body_bytes`. Returns the number of bytes consumed.
    pub(super) fn discard(&mut self, input: &[u8], body_bytes: &mut usize) -> Result<usize, Refusal> {
        self.consume(input, body_bytes, |_piece| {})
    }

    fn consume(
        &mut self,
        input: &[u8],
        body_bytes: &mut usize,
        mut keep: impl FnMut(&[u8]),
    ) -> Result<usize, Refusal> {
        let mut at = 0;
        while at < input.len() && self.state != ChunkedState::Done {
            if self.state == ChunkedState::Data {
                let take = self.left.min(input.len() - at);
                keep(&input[at..at + take]);
                *body_bytes += take;
                at += take;
                self.left -= take;
                if self.left == 0 {
                    self.state = ChunkedState::DataCr;
                }
            } else {
                self.state = self.step(input[at], *body_bytes)?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8, body_bytes: usize) -> Result<ChunkedState, Refusal> {
        const BAD: Refusal = Refusal::new(400, "the chunked body is not valid");
        match self.state {
            ChunkedState::SizeStart => {
                self.left = 0;
                self.digits = 0;
                self.digit(byte, body_bytes).map(|()| ChunkedState::Size)
            }
            ChunkedState::Size => match byte {
                b'\r' => Ok(ChunkedState::SizeEnd),
                b';' => Ok(ChunkedState::Extension),
                b' ' | b'\t' => self.extension(ChunkedState::Blank),
                _ => self.digit(byte, body_bytes).map(|()| ChunkedState::Size),
            },
            ChunkedState::Blank => match byte {
                b' ' | b'\t' => self.extension(ChunkedState::Blank),
                b';' => Ok(ChunkedState::Extension),
                _ => Err(BAD),
            },
            ChunkedState::Extension => match byte {
                b'\r' => Ok(ChunkedState::SizeEnd),
                b'\t' | b' '..=b'~' | 0x80.. => self.extension(ChunkedState::Extension),
                0..=0x1f | 0x7f => Err(BAD),
            },
            ChunkedState::SizeEnd => match (byte, self.left) {
                (b'\n', 0) => Ok(ChunkedState::TrailerStart),
                (b'\n', _) => Ok(ChunkedState::Data),
                (_, _) => Err(BAD),
            },
            ChunkedState::DataCr => expect(byte, b'\r', ChunkedState::DataLf),
            ChunkedState::DataLf => expect(byte, b'\n', ChunkedState::SizeStart),
            ChunkedState::TrailerStart => match byte {
                b'\r' => Ok(ChunkedState::LastLf),
                _ if is_token(byte) => self.trailer(ChunkedState::TrailerName),
                _ => Err(BAD),
            },
            ChunkedState::TrailerName => match byte {
                b':' => self.trailer(ChunkedState::TrailerValue),
                _ if is_token(byte) => self.trailer(ChunkedState::TrailerName),
                _ => Err(BAD),
            },
            ChunkedState::TrailerValue => match byte {
                b'\r' => Ok(ChunkedState::TrailerEnd),
                b'\t' | b' '..=b'~' | 0x80.. => self.trailer(ChunkedState::TrailerValue),
                0..=0x1f | 0x7f => Err(BAD),
            },
            ChunkedState::TrailerEnd => expect(byte, b'\n', ChunkedState::TrailerStart),
            ChunkedState::LastLf => expect(byte, b'\n', ChunkedState::Done),
            ChunkedState::Data | ChunkedState::Done => unreachable!("BUG: decode handles both"),
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

    fn extension(&mut self, next: ChunkedState) -> Result<ChunkedState, Refusal> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err(Refusal::new(400, "the chunk extensions are too long"));
        }
        Ok(next)
    }

    fn trailer(&mut self, next: ChunkedState) -> Result<ChunkedState, Refusal> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(Refusal::new(431, "the trailer is too long"));
        }
        Ok(next)
    }
}

fn expect(byte: u8, wanted: u8, next: ChunkedState) -> Result<ChunkedState, Refusal> {
    if byte == wanted { Ok(next) } else { Err(Refusal::new(400, "the chunked body is not valid")) }
}

pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
