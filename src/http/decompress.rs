//! Decompresses request bodies step by step into one reused allocation. Decompression stops as soon
//! as a body exceeds its bounds, so that a decompression bomb costs no more than the bounds allow.
//!
//! It must not depend on HTTP beyond the names of content codings. Both decoders are pure Rust,
//! because they parse untrusted bytes on a thread that many connections share. Rejected: zlib-ng
//! and the C library of zstd, which are faster but not memory-safe.

use std::fmt;

use flate2::{Crc, Decompress, FlushDecompress, Status};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::snappy::{self, SnappyError};

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentCoding {
    Identity,
    Gzip,
    Zstd,
    /// Snappy's block format. No name of `Content-Encoding`: a format of events implies it.
    Snappy,
}

#[derive(Clone, Copy, Debug)]
pub struct DecompressLimits {
    /// Maximum bytes of a decompressed body.
    pub bytes_max: usize,
    /// Maximum ratio of decompressed to compressed bytes.
    pub ratio_max: usize,
    /// Decompressed bytes up to which the ratio is not checked: a short body of similar events may
    /// compress extremely well, and costs little.
    pub ratio_free_bytes: usize,
    /// Maximum gzip members or zstd frames in a body. An empty one has 20 bytes but costs a decoder
    /// reset.
    pub members_max: usize,
}

impl DecompressLimits {
    /// NDJSON of real logs compresses 10 to 30 times.
    pub const RATIO_MAX: usize = 200;
    pub const RATIO_FREE_BYTES: usize = 256 * 1024;
    /// Block compressors write a member per 64 KiB: 512 of them are 32 MiB.
    pub const MEMBERS_MAX: usize = 1024;

    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            ratio_max: Self::RATIO_MAX,
            ratio_free_bytes: Self::RATIO_FREE_BYTES,
            members_max: Self::MEMBERS_MAX,
        }
    }

    /// Checks the bounds after `read` compressed bytes became `produced` bytes.
    fn check(&self, read: usize, produced: usize) -> Result<(), DecompressBodyError> {
        if produced > self.bytes_max {
            return Err(DecompressBodyError::TooLarge(self.bytes_max));
        }
        if produced > self.ratio_free_bytes && produced / self.ratio_max > read {
            return Err(DecompressBodyError::RatioExceeded(self.ratio_max));
        }
        Ok(())
    }
}

/// A body is corrupt or exceeds a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecompressBodyError {
    #[error("the body is not valid {0}: {1}")]
    Corrupt(&'static str, &'static str),
    #[error("the body is truncated: the {0} stream is incomplete")]
    Truncated(&'static str),
    #[error("the decompressed body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the decompressed body is more than {0} times as large as the compressed body")]
    RatioExceeded(usize),
    #[error("the body consists of more than {0} compressed streams")]
    TooManyMembers(usize),
    #[error("the zstd frame requires a window of more than {WINDOW_BYTES_MAX} bytes")]
    WindowTooLarge,
}

impl DecompressBodyError {
    /// Whether a smaller body would be accepted: 413. The other errors are 400.
    pub fn is_too_large(self) -> bool {
        match self {
            Self::TooLarge(_) | Self::RatioExceeded(_) | Self::TooManyMembers(_) => true,
            Self::Corrupt(..) | Self::Truncated(_) | Self::WindowTooLarge => false,
        }
    }
}

const GZIP: &str = "gzip";
const ZSTD: &str = "zstd";
const SNAPPY: &str = "snappy";
/// Capacity that is kept from one body to the next. [`Decompressor::release`] frees the rest.
const RETAINED_BYTES: usize = 512 * 1024;
/// The maximum window of a zstd body in HTTP (RFC 9659).
const WINDOW_BYTES_MAX: u64 = 8 << 20;
/// A decoder with a window up to this size is kept: the window of zstd's default level.
const WINDOW_BYTES_RETAINED: u64 = 2 << 20;
/// The first bytes of a gzip member: the magic number and the only compression method.
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
/// CRC-32 and length of a gzip member.
const GZIP_TRAILER_BYTES: usize = 8;
/// Zeros that may follow the last gzip member: a block of any usual size.
const PADDING_BYTES_MAX: usize = 64 * 1024;
/// Bytes that are inflated between two checks of the bounds.
const STEP_BYTES: usize = 64 * 1024;
/// The same for zstd. A block is at most this large, so a step produces at least this many bytes
/// and less than twice as many.
const ZSTD_STEP_BYTES: usize = 128 * 1024;

/// The cost of beginning a member or frame, in decompressed bytes.
const MEMBER_COST_BYTES: usize = 8 * 1024;

/// The decoders and the decompressed body. Each decoder is allocated for the first body that needs
/// it.
///
/// Invariant: the bytes before `at` in the compressed body are decoded into `decompressed` or
/// consumed by the current decoder.
pub struct Decompressor {
    limits: DecompressLimits,
    decompressed: Vec<u8>,
    inflate: Option<Decompress>,
    zstd: Option<FrameDecoder>,
    at: usize,
    members: usize,
    member: Option<CompressedMember>,
    /// The length that a Snappy block declares.
    snappy_bytes: Option<usize>,
    /// The largest window that a frame of the body required.
    window_max: u64,
}

/// The current gzip member or zstd frame.
struct CompressedMember {
    /// Offset of the member's first byte in `decompressed`.
    start: usize,
    crc: Crc,
    /// A lower bound on the bytes that the zstd decoder has produced. It withholds the last window,
    /// so they cannot be measured.
    produced_min: usize,
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Decompressor {
    pub fn new(limits: DecompressLimits) -> Self {
        Self {
            limits,
            decompressed: Vec::new(),
            inflate: None,
            zstd: None,
            at: 0,
            members: 0,
            member: None,
            snappy_bytes: None,
            window_max: 0,
        }
    }

    /// A new decompressor with the same limits.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::new(self.limits)
    }

    /// Decompresses `body`. [`Decompressor::release`] frees the result.
    pub fn decode<'a>(
        &'a mut self,
        coding: ContentCoding,
        body: &'a [u8],
    ) -> Result<&'a [u8], DecompressBodyError> {
        self.begin();
        let all = self.decode_slice(coding, body, usize::MAX)?;
        debug_assert!(all, "BUG: a body is finite");
        Ok(self.decompressed(coding, body))
    }

    /// Prepares for a body that [`Self::decode_slice`] decompresses slice by slice.
    pub fn begin(&mut self) {
        self.decompressed.clear();
        self.at = 0;
        self.members = 0;
        self.member = None;
        self.snappy_bytes = None;
        self.window_max = 0;
    }

    /// Decompresses about `budget` more bytes of `body`. Returns whether the whole body is
    /// decompressed. All calls for one body must pass the same arguments, except for the budget.
    pub fn decode_slice(
        &mut self,
        coding: ContentCoding,
        body: &[u8],
        budget: usize,
    ) -> Result<bool, DecompressBodyError> {
        match coding {
            ContentCoding::Identity => Ok(true),
            ContentCoding::Gzip => self.gunzip(body, budget),
            ContentCoding::Snappy => self.unsnappy(body, budget),
            ContentCoding::Zstd => {
                let mut decoder = self.zstd.take().unwrap_or_else(|| {
                    let mut decoder = FrameDecoder::new();
                    decoder.set_max_window_size(WINDOW_BYTES_MAX);
                    decoder
                });
                // The decoder is dropped after an error, when its state is undefined, and after a
                // large window, to free the memory.
                let all = self.unzstd(&mut decoder, body, budget)?;
                if !all || self.window_max <= WINDOW_BYTES_RETAINED {
                    self.zstd = Some(decoder);
                }
                Ok(all)
            }
        }
    }

    /// The decompressed bytes of `body` so far. They are complete once [`Self::decode_slice`] has
    /// returned true.
    pub fn decompressed<'a>(&'a self, coding: ContentCoding, body: &'a [u8]) -> &'a [u8] {
        if coding == ContentCoding::Identity { body } else { &self.decompressed }
    }

    /// Frees the memory that a large body allocated.
    pub fn release(&mut self) {
        self.decompressed.clear();
        self.decompressed.shrink_to(RETAINED_BYTES);
    }

    /// Counts a further member.
    fn begin_member(&mut self) -> Result<(), DecompressBodyError> {
        if self.members == self.limits.members_max {
            return Err(DecompressBodyError::TooManyMembers(self.limits.members_max));
        }
        self.members += 1;
        Ok(())
    }

    fn unsnappy(&mut self, block: &[u8], budget: usize) -> Result<bool, DecompressBodyError> {
        let failed = |error| match error {
            SnappyError::Truncated => DecompressBodyError::Truncated(SNAPPY),
            SnappyError::Corrupt(what) => DecompressBodyError::Corrupt(SNAPPY, what),
        };
        let length = if let Some(length) = self.snappy_bytes {
            length
        } else {
            let (length, at) = snappy::declared_length(block).map_err(failed)?;
            // A block of `n` bytes becomes at most about 22 n bytes.
            self.limits.check(block.len(), length)?;
            (self.snappy_bytes, self.at) = (Some(length), at);
            length
        };
        snappy::decompress_slice(block, &mut self.at, &mut self.decompressed, length, budget).map_err(failed)
    }

    fn gunzip(&mut self, body: &[u8], budget: usize) -> Result<bool, DecompressBodyError> {
        let mut left = budget;
        while left > 0 {
            let mut member = if let Some(member) = self.member.take() {
                member
            } else {
                self.begin_member()?;
                left = left.saturating_sub(MEMBER_COST_BYTES);
                self.at = body.len() - gzip_header(&body[self.at..])?.len();
                self.inflate.get_or_insert_with(|| Decompress::new(false)).reset(false);
                CompressedMember { start: self.decompressed.len(), crc: Crc::new(), produced_min: 0 }
            };
            let before = self.decompressed.len();
            if self.inflate(&mut member, body)? {
                self.at = body.len() - self.check_trailer(&member, &body[self.at..])?.len();
                if is_padding(&body[self.at..]) {
                    return Ok(true);
                }
            } else {
                self.member = Some(member);
            }
            left = left.saturating_sub((self.decompressed.len() - before).max(1));
        }
        Ok(false)
    }

    /// Inflates a step of the current member. Returns whether the member has ended.
    fn inflate(&mut self, member: &mut CompressedMember, body: &[u8]) -> Result<bool, DecompressBodyError> {
        let inflate = self.inflate.as_mut().expect("BUG: no member was begun");
        let rest = &body[self.at..];
        let before = self.decompressed.len();
        // One byte more than the bound, to distinguish a body of exactly that size from a longer
        // one.
        let room = STEP_BYTES.min(self.limits.bytes_max + 1 - before);
        self.decompressed.reserve(room);
        let read = inflate.total_in();
        let ended = inflate
            .decompress_vec(rest, &mut self.decompressed, FlushDecompress::None)
            .map_err(|_without_detail| DecompressBodyError::Corrupt(GZIP, "its data is corrupt"))?;
        let used = usize::try_from(inflate.total_in() - read).expect("at most the length of the input");
        self.at += used;
        member.crc.update(&self.decompressed[before..]);
        self.limits.check(self.at, self.decompressed.len())?;
        if ended == Status::StreamEnd {
            return Ok(true);
        }
        if used == 0 && self.decompressed.len() == before {
            return Err(if rest.is_empty() {
                DecompressBodyError::Truncated(GZIP)
            } else {
                DecompressBodyError::Corrupt(GZIP, "its data is corrupt")
            });
        }
        Ok(false)
    }

    /// Checks the trailer of a member. Returns the bytes after it.
    fn check_trailer<'a>(
        &self,
        member: &CompressedMember,
        rest: &'a [u8],
    ) -> Result<&'a [u8], DecompressBodyError> {
        let Some((trailer, rest)) = rest.split_at_checked(GZIP_TRAILER_BYTES) else {
            return Err(DecompressBodyError::Truncated(GZIP));
        };
        let length = u32::try_from(self.decompressed.len() - member.start).ok();
        if trailer[..4] != member.crc.sum().to_le_bytes()
            || Some(&trailer[4..]) != length.map(u32::to_le_bytes).as_ref().map(<[u8; 4]>::as_slice)
        {
            return Err(DecompressBodyError::Corrupt(GZIP, "its checksum is wrong"));
        }
        Ok(rest)
    }

    fn unzstd(
        &mut self,
        decoder: &mut FrameDecoder,
        body: &[u8],
        budget: usize,
    ) -> Result<bool, DecompressBodyError> {
        let mut left = budget;
        while left > 0 {
            let mut rest = &body[self.at..];
            if self.member.is_none() {
                self.begin_member()?;
                left = left.saturating_sub(MEMBER_COST_BYTES);
                self.window_max = self.window_max.max(window_bytes(rest));
                match decoder.reset(&mut rest) {
                    Ok(()) => {
                        self.member = Some(CompressedMember {
                            start: self.decompressed.len(),
                            crc: Crc::new(),
                            produced_min: 0,
                        });
                    }
                    Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                        length,
                        ..
                    })) => {
                        let length = usize::try_from(length).unwrap_or(usize::MAX);
                        rest = rest.get(length..).ok_or(DecompressBodyError::Truncated(ZSTD))?;
                    }
                    Err(error) => return Err(zstd_error(&error, "its frame header is wrong")),
                }
            }
            if let Some(mut member) = self.member.take() {
                let before = self.decompressed.len();
                let ended = self.step(decoder, &mut member, &mut rest, body)?;
                left = left.saturating_sub((self.decompressed.len() - before).max(ZSTD_STEP_BYTES / 2));
                self.member = (!ended).then_some(member);
            }
            self.at = body.len() - rest.len();
            if self.member.is_none() && rest.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Decodes a step of the current frame. Returns whether the frame has ended.
    fn step(
        &mut self,
        decoder: &mut FrameDecoder,
        member: &mut CompressedMember,
        rest: &mut &[u8],
        body: &[u8],
    ) -> Result<bool, DecompressBodyError> {
        let out = &mut self.decompressed;
        if !decoder.is_finished() {
            let more = BlockDecodingStrategy::UptoBytes(ZSTD_STEP_BYTES);
            let ended = decoder
                .decode_blocks(&mut *rest, more)
                .map_err(|error| zstd_error(&error, "its data is corrupt"))?;
            if !ended {
                member.produced_min += ZSTD_STEP_BYTES;
            }
            let produced =
                member.start + member.produced_min.max(out.len() - member.start + decoder.can_collect());
            self.limits.check(body.len() - rest.len(), produced)?;
            decoder.collect_to_writer(&mut *out).expect("writing to a vector cannot fail");
            if !decoder.is_finished() {
                return Ok(false);
            }
        }
        decoder.collect_to_writer(&mut *out).expect("writing to a vector cannot fail");
        let frame_bytes = out.len() - member.start;
        if decoder.get_checksum_from_data().is_some_and(|sum| Some(sum) != decoder.get_calculated_checksum())
        {
            return Err(DecompressBodyError::Corrupt(ZSTD, "its checksum is wrong"));
        }
        // 0 if the header does not declare the size.
        let declared = decoder.content_size();
        if declared != 0 && declared != frame_bytes as u64 {
            return Err(DecompressBodyError::Corrupt(
                ZSTD,
                "its length differs from the length in its header",
            ));
        }
        Ok(true)
    }
}

/// The window size that a frame header declares (RFC 8878, 3.1.1.1.2), or an upper bound if the
/// window is the size of the content.
fn window_bytes(frame: &[u8]) -> u64 {
    const SINGLE_SEGMENT: u8 = 1 << 5;
    match frame {
        [_, _, _, _, flags, window, ..] if flags & SINGLE_SEGMENT == 0 => {
            let base = 1_u64 << (10 + (window >> 3));
            base + base / 8 * u64::from(window & 7)
        }
        _ => WINDOW_BYTES_MAX.min(frame.len() as u64 * DecompressLimits::RATIO_MAX as u64),
    }
}

fn zstd_error(error: &FrameDecoderError, otherwise: &'static str) -> DecompressBodyError {
    if let FrameDecoderError::WindowSizeTooBig { .. } = error {
        return DecompressBodyError::WindowTooLarge;
    }
    // A truncated frame is one of about a dozen read errors; all have `UnexpectedEof` in their
    // source chain.
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::UnexpectedEof)
        {
            return DecompressBodyError::Truncated(ZSTD);
        }
        source = cause.source();
    }
    DecompressBodyError::Corrupt(ZSTD, otherwise)
}

/// Whether nothing but zeros follows the last member. `gzip` ignores them, since tools that write
/// whole blocks append them.
fn is_padding(rest: &[u8]) -> bool {
    rest.len() <= PADDING_BYTES_MAX && rest.iter().all(|byte| *byte == 0)
}

/// Parses the header of a member (RFC 1952, 2.3). Returns the bytes after it.
fn gzip_header(member: &[u8]) -> Result<&[u8], DecompressBodyError> {
    const CUT: DecompressBodyError = DecompressBodyError::Truncated(GZIP);
    const HEADER_BYTES: usize = 10;
    let known = member.len().min(GZIP_MAGIC.len());
    if member[..known] != GZIP_MAGIC[..known] {
        return Err(DecompressBodyError::Corrupt(GZIP, "its magic number is wrong"));
    }
    let (header, mut rest) = member.split_at_checked(HEADER_BYTES).ok_or(CUT)?;
    let flags = header[3];
    if flags & 0b1110_0000 != 0 {
        return Err(DecompressBodyError::Corrupt(GZIP, "its header has reserved flags"));
    }
    if flags & 4 != 0 {
        let (length, after) = rest.split_first_chunk::<2>().ok_or(CUT)?;
        rest = after.get(usize::from(u16::from_le_bytes(*length))..).ok_or(CUT)?;
    }
    for name_or_comment in [8, 16] {
        if flags & name_or_comment != 0 {
            let end = rest.iter().position(|byte| *byte == 0).ok_or(CUT)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & 2 != 0 {
        let (sum, after) = rest.split_first_chunk::<2>().ok_or(CUT)?;
        let mut crc = Crc::new();
        crc.update(&member[..member.len() - rest.len()]);
        if crc.sum().to_le_bytes()[..2] != *sum {
            return Err(DecompressBodyError::Corrupt(GZIP, "the checksum of its header is wrong"));
        }
        rest = after;
    }
    Ok(rest)
}

#[cfg(test)]
#[path = "decompress_tests.rs"]
mod tests;
