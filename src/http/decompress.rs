//! Compressed bodies, made plain piece by piece into one allocation that is used again. A body that grows past
//! its bounds is given up as soon as it does, so that a bomb costs what those bounds allow and no more.
//!
//! Knows no HTTP but the names of codings. Both decoders are Rust alone: what reads strangers' bytes on the thread that
//! all connections share must not have C's ways to fail. zlib-ng and zstd's own library would be faster.

use std::fmt;

use flate2::{Crc, Decompress, FlushDecompress, Status};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
    Zstd,
}

#[derive(Clone, Copy, Debug)]
pub struct DecompressLimits {
    /// Bytes of a body once it is plain.
    pub bytes_max: usize,
    /// How many times its size a body may grow...
    pub ratio_max: usize,
    /// ...past so many bytes: short bodies of like events may well compress to nothing, and are soon read.
    pub ratio_free_bytes: usize,
    /// Members of gzip or frames of zstd in a body. An empty one is 20 bytes and still costs a decoder's reset.
    pub members_max: usize,
}

impl DecompressLimits {
    /// NDJSON of real logs shrinks ten- to thirtyfold.
    pub const RATIO_MAX: usize = 200;
    pub const RATIO_FREE_BYTES: usize = 256 * 1024;
    /// Programs that compress block by block make one of 64 KiB: 512 of them are 32 MiB.
    pub const MEMBERS_MAX: usize = 1024;

    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            ratio_max: Self::RATIO_MAX,
            ratio_free_bytes: Self::RATIO_FREE_BYTES,
            members_max: Self::MEMBERS_MAX,
        }
    }

    /// Whether `read` bytes may have become `made`.
    fn check(&self, read: usize, made: usize) -> Result<(), Undecodable> {
        if made > self.bytes_max {
            return Err(Undecodable::TooLarge(self.bytes_max));
        }
        if made > self.ratio_free_bytes && made / self.ratio_max > read {
            return Err(Undecodable::Bomb(self.ratio_max));
        }
        Ok(())
    }
}

/// Why a body cannot be made plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    #[error("the body is not valid {0}: {1}")]
    Broken(&'static str, &'static str),
    #[error("the body is cut off: the {0} stream does not end")]
    Cut(&'static str),
    #[error("the body is more than {0} bytes once it is decompressed")]
    TooLarge(usize),
    #[error("the body grows more than {0}-fold when it is decompressed")]
    Bomb(usize),
    #[error("the body consists of more than {0} compressed streams")]
    Members(usize),
    #[error("the zstd frame wants a window of more than {WINDOW_BYTES_MAX} bytes")]
    Window,
}

impl Undecodable {
    /// Whether less of it could be taken: a 413. The others are a 400.
    pub fn is_too_large(self) -> bool {
        match self {
            Self::TooLarge(_) | Self::Bomb(_) | Self::Members(_) => true,
            Self::Broken(..) | Self::Cut(_) | Self::Window => false,
        }
    }
}

const GZIP: &str = "gzip";
const ZSTD: &str = "zstd";
/// What is kept from one body to the next; what a large one took beyond is given back.
const KEPT_BYTES: usize = 512 * 1024;
/// The window that RFC 9659 allows a zstd body of HTTP, and that a server must therefore have.
const WINDOW_BYTES_MAX: u64 = 8 << 20;
/// A window up to this size is kept with its decoder: what zstd's default level wants.
const WINDOW_BYTES_KEPT: u64 = 2 << 20;
/// The first bytes of a gzip member: its magic number and the only method there is.
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
/// CRC-32 and length.
const GZIP_TRAILER_BYTES: usize = 8;
/// How much is inflated between two looks at the bounds.
const STEP_BYTES: usize = 64 * 1024;
/// The same for zstd, whose blocks are no larger: a step makes at least as much and less than twice.
const ZSTD_STEP_BYTES: usize = 128 * 1024;

/// What a member or frame costs to begin, in bytes made.
const MEMBER_COST: usize = 8 * 1024;

/// Decoders and the body they make. They come into being with the first body that needs them.
///
/// Invariant: everything before `at` in the compressed body is in `plain`, or in the decoder that is in use.
pub struct Decompressor {
    limits: DecompressLimits,
    plain: Vec<u8>,
    inflate: Option<Decompress>,
    zstd: Option<FrameDecoder>,
    at: usize,
    members: usize,
    member: Option<Member>,
    /// The largest window that a frame wanted.
    window_max: u64,
}

/// The member of gzip or frame of zstd at hand.
struct Member {
    /// Where its plain bytes begin.
    start: usize,
    crc: Crc,
    /// The decoder of zstd keeps the last window to itself, so what it has made is counted and not measured.
    made_at_least: usize,
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
            plain: Vec::new(),
            inflate: None,
            zstd: None,
            at: 0,
            members: 0,
            member: None,
            window_max: 0,
        }
    }

    /// Another one with the same limits.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::new(self.limits)
    }

    /// The plain bytes of `body`. [`Decompressor::release`] gives them back.
    pub fn decode<'a>(&'a mut self, coding: Coding, body: &'a [u8]) -> Result<&'a [u8], Undecodable> {
        self.begin();
        let all = self.go_on(coding, body, usize::MAX)?;
        debug_assert!(all, "BUG: a body is finite");
        Ok(self.plain(coding, body))
    }

    /// Makes ready for a body that [`Self::go_on`] makes plain slice by slice.
    pub fn begin(&mut self) {
        self.plain.clear();
        self.at = 0;
        self.members = 0;
        self.member = None;
        self.window_max = 0;
    }

    /// Makes about `budget` bytes more of `body` plain. Says whether all of it is. Each call of one body must be given the
    /// same but for the budget.
    pub fn go_on(&mut self, coding: Coding, body: &[u8], budget: usize) -> Result<bool, Undecodable> {
        match coding {
            Coding::Identity => Ok(true),
            Coding::Gzip => self.gunzip(body, budget),
            Coding::Zstd => {
                let mut decoder = self.zstd.take().unwrap_or_else(|| {
                    let mut decoder = FrameDecoder::new();
                    decoder.set_max_window_size(WINDOW_BYTES_MAX);
                    decoder
                });
                // After an error the decoder is in a state nobody has thought of; after a large window it is large.
                let all = self.unzstd(&mut decoder, body, budget)?;
                if !all || self.window_max <= WINDOW_BYTES_KEPT {
                    self.zstd = Some(decoder);
                }
                Ok(all)
            }
        }
    }

    /// The plain bytes of `body`, all of them once [`Self::go_on`] has said so.
    pub fn plain<'a>(&'a self, coding: Coding, body: &'a [u8]) -> &'a [u8] {
        if coding == Coding::Identity { body } else { &self.plain }
    }

    /// Gives back what a large body took, once it has been read or refused.
    pub fn release(&mut self) {
        self.plain.clear();
        self.plain.shrink_to(KEPT_BYTES);
    }

    /// Counts a member that begins here.
    fn count(&mut self) -> Result<(), Undecodable> {
        if self.members == self.limits.members_max {
            return Err(Undecodable::Members(self.limits.members_max));
        }
        self.members += 1;
        Ok(())
    }

    fn gunzip(&mut self, body: &[u8], budget: usize) -> Result<bool, Undecodable> {
        let mut left = budget;
        while left > 0 {
            let mut member = if let Some(member) = self.member.take() {
                member
            } else {
                self.count()?;
                left = left.saturating_sub(MEMBER_COST);
                self.at = body.len() - gzip_header(&body[self.at..])?.len();
                self.inflate.get_or_insert_with(|| Decompress::new(false)).reset(false);
                Member { start: self.plain.len(), crc: Crc::new(), made_at_least: 0 }
            };
            let before = self.plain.len();
            if self.inflate(&mut member, body)? {
                self.at = body.len() - self.trailer(&member, &body[self.at..])?.len();
                if self.at == body.len() {
                    return Ok(true);
                }
            } else {
                self.member = Some(member);
            }
            left = left.saturating_sub((self.plain.len() - before).max(1));
        }
        Ok(false)
    }

    /// Inflates a step of the member at hand. Says whether that was its last.
    fn inflate(&mut self, member: &mut Member, body: &[u8]) -> Result<bool, Undecodable> {
        let inflate = self.inflate.as_mut().expect("BUG: a member was begun");
        let rest = &body[self.at..];
        let before = self.plain.len();
        // One byte past the bound, so that what ends there exactly is not taken for more.
        let room = STEP_BYTES.min(self.limits.bytes_max + 1 - before);
        self.plain.reserve(room);
        let read = inflate.total_in();
        let ended = inflate
            .decompress_vec(rest, &mut self.plain, FlushDecompress::None)
            .map_err(|_no_more_is_known| Undecodable::Broken(GZIP, "its data is corrupt"))?;
        let used = usize::try_from(inflate.total_in() - read).expect("no more than there was");
        self.at += used;
        member.crc.update(&self.plain[before..]);
        self.limits.check(self.at, self.plain.len())?;
        if ended == Status::StreamEnd {
            return Ok(true);
        }
        if used == 0 && self.plain.len() == before {
            return Err(if rest.is_empty() {
                Undecodable::Cut(GZIP)
            } else {
                Undecodable::Broken(GZIP, "its data is corrupt")
            });
        }
        Ok(false)
    }

    /// Takes the trailer off a member, and says what follows.
    fn trailer<'a>(&self, member: &Member, rest: &'a [u8]) -> Result<&'a [u8], Undecodable> {
        let Some((trailer, rest)) = rest.split_at_checked(GZIP_TRAILER_BYTES) else {
            return Err(Undecodable::Cut(GZIP));
        };
        let length = u32::try_from(self.plain.len() - member.start).ok();
        if trailer[..4] != member.crc.sum().to_le_bytes()
            || Some(&trailer[4..]) != length.map(u32::to_le_bytes).as_ref().map(<[u8; 4]>::as_slice)
        {
            return Err(Undecodable::Broken(GZIP, "its checksum is wrong"));
        }
        Ok(rest)
    }

    fn unzstd(
        &mut self,
        decoder: &mut FrameDecoder,
        body: &[u8],
        budget: usize,
    ) -> Result<bool, Undecodable> {
        let mut left = budget;
        while left > 0 {
            let mut rest = &body[self.at..];
            if self.member.is_none() {
                self.count()?;
                left = left.saturating_sub(MEMBER_COST);
                self.window_max = self.window_max.max(window_bytes(rest));
                match decoder.reset(&mut rest) {
                    Ok(()) => {
                        self.member =
                            Some(Member { start: self.plain.len(), crc: Crc::new(), made_at_least: 0 });
                    }
                    Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                        length,
                        ..
                    })) => {
                        let length = usize::try_from(length).unwrap_or(usize::MAX);
                        rest = rest.get(length..).ok_or(Undecodable::Cut(ZSTD))?;
                    }
                    Err(error) => return Err(refusal(&error, "it has no zstd header")),
                }
            }
            if let Some(mut member) = self.member.take() {
                let before = self.plain.len();
                let ended = self.step(decoder, &mut member, &mut rest, body)?;
                left = left.saturating_sub((self.plain.len() - before).max(ZSTD_STEP_BYTES / 2));
                self.member = (!ended).then_some(member);
            }
            self.at = body.len() - rest.len();
            if self.member.is_none() && rest.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Decodes a step of the frame at hand. Says whether that was its last.
    fn step(
        &mut self,
        decoder: &mut FrameDecoder,
        member: &mut Member,
        rest: &mut &[u8],
        body: &[u8],
    ) -> Result<bool, Undecodable> {
        let plain = &mut self.plain;
        if !decoder.is_finished() {
            let more = BlockDecodingStrategy::UptoBytes(ZSTD_STEP_BYTES);
            let ended = decoder
                .decode_blocks(&mut *rest, more)
                .map_err(|error| refusal(&error, "its data is corrupt"))?;
            if !ended {
                member.made_at_least += ZSTD_STEP_BYTES;
            }
            let made =
                member.start + member.made_at_least.max(plain.len() - member.start + decoder.can_collect());
            self.limits.check(body.len() - rest.len(), made)?;
            decoder.collect_to_writer(&mut *plain).expect("a vector takes all that is written");
            if !decoder.is_finished() {
                return Ok(false);
            }
        }
        decoder.collect_to_writer(&mut *plain).expect("a vector takes all that is written");
        let frame_bytes = plain.len() - member.start;
        if decoder.get_checksum_from_data().is_some_and(|sum| Some(sum) != decoder.get_calculated_checksum())
        {
            return Err(Undecodable::Broken(ZSTD, "its checksum is wrong"));
        }
        // 0 where the header does not say.
        let said = decoder.content_size();
        if said != 0 && said != frame_bytes as u64 {
            return Err(Undecodable::Broken(ZSTD, "its length is not what its header says"));
        }
        Ok(true)
    }
}

/// The window that a frame wants (RFC 8878, 3.1.1.1.2), or its maximum where it is as long as the frame.
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

fn refusal(error: &FrameDecoderError, otherwise: &'static str) -> Undecodable {
    if let FrameDecoderError::WindowSizeTooBig { .. } = error {
        return Undecodable::Window;
    }
    // Where it ended early, some read did; which of a dozen is told by the chain of sources.
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::UnexpectedEof)
        {
            return Undecodable::Cut(ZSTD);
        }
        source = cause.source();
    }
    Undecodable::Broken(ZSTD, otherwise)
}

/// Takes the header off a member (RFC 1952, 2.3).
fn gzip_header(member: &[u8]) -> Result<&[u8], Undecodable> {
    const CUT: Undecodable = Undecodable::Cut(GZIP);
    const HEADER_BYTES: usize = 10;
    let known = member.len().min(GZIP_MAGIC.len());
    if member[..known] != GZIP_MAGIC[..known] {
        return Err(Undecodable::Broken(GZIP, "what stands where a stream should begin is none"));
    }
    let (header, mut rest) = member.split_at_checked(HEADER_BYTES).ok_or(CUT)?;
    let flags = header[3];
    if flags & 0b1110_0000 != 0 {
        return Err(Undecodable::Broken(GZIP, "its header has flags that nobody knows"));
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
            return Err(Undecodable::Broken(GZIP, "the checksum of its header is wrong"));
        }
        rest = after;
    }
    Ok(rest)
}

#[cfg(test)]
#[path = "decompress_tests.rs"]
mod tests;
