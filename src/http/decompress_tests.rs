//! Tests of decompression: complete, truncated, concatenated, corrupt and oversized streams.

use std::io::Write;

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use proptest::prelude::*;
use rand::Rng;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;
use crate::clock::Clock;
use crate::event::Timestamp;

const MAX: usize = 1 << 20;

fn decompressor() -> Decompressor {
    Decompressor::new(DecompressLimits::new(MAX))
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    compress_to_vec(plain, CompressionLevel::Fastest)
}

/// A frame of `blocks` times 128 KiB of zeros, four bytes each, with a window of 2^`window_log`.
fn zstd_bomb(window_log: u8, blocks: usize) -> Vec<u8> {
    const ZEROS: u32 = 128 * 1024;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3];
    for nth in 1..=blocks {
        let header = ZEROS << 3 | 1 << 1 | u32::from(nth == blocks);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

fn noise() -> Vec<u8> {
    let mut noise = vec![0; MAX];
    Clock::manual(Timestamp::from_millis(0), 1).rng().fill_bytes(&mut noise);
    noise
}

#[track_caller]
fn check(coding: ContentCoding, body: &[u8], expected: Result<&[u8], DecompressBodyError>) {
    assert_eq!(decompressor().decode(coding, body), expected);
    for budget in [1, 100_000] {
        assert!(sliced(coding, body, budget).as_deref().map_err(|error| *error) == expected, "{budget}");
    }
}

/// Decompresses in slices of about `budget` bytes.
fn sliced(coding: ContentCoding, body: &[u8], budget: usize) -> Result<Vec<u8>, DecompressBodyError> {
    const STEP_MAX: usize = 2 * ZSTD_STEP_BYTES;
    let mut decompressor = decompressor();
    decompressor.begin();
    loop {
        let before = decompressor.decompressed.len();
        let all = decompressor.decode_slice(coding, body, budget)?;
        // The end of a frame also flushes its window.
        assert!(all || decompressor.decompressed.len() - before <= budget + STEP_MAX, "a slice is bounded");
        if all {
            return Ok(decompressor.decompressed(coding, body).to_vec());
        }
    }
}

const PLAIN: &[u8] = b"{\"an\":\"event\"}";

#[test]
fn decompressor_restores_the_body() {
    check(ContentCoding::Identity, PLAIN, Ok(PLAIN));
    check(ContentCoding::Gzip, &gzip(PLAIN), Ok(PLAIN));
    check(ContentCoding::Zstd, &zstd(PLAIN), Ok(PLAIN));
    check(ContentCoding::Gzip, &gzip(b""), Ok(b""));
    let noise = noise();
    check(ContentCoding::Gzip, &gzip(&noise), Ok(&noise));
    check(ContentCoding::Zstd, &zstd(&noise), Ok(&noise));
}

#[test]
fn decompressor_accepts_concatenated_streams_and_rejects_trailing_garbage() {
    for (coding, name, one) in
        [(ContentCoding::Gzip, GZIP, gzip(b"one")), (ContentCoding::Zstd, ZSTD, zstd(b"one"))]
    {
        check(coding, &one.repeat(3), Ok(b"oneoneone"));
        for garbage in [&b"\0x"[..], b"\0\0\0\0\0\0\x1f", b"garbage behind it", b"\x1f\x8c\x08"] {
            let error = decompressor().decode(coding, &[&one[..], garbage].concat()).unwrap_err();
            assert!(
                matches!(error, DecompressBodyError::Corrupt(_, _) | DecompressBodyError::Truncated(_)),
                "{name}: {error}"
            );
        }
        check(coding, &one.repeat(1024), Ok(&b"one".repeat(1024)));
        check(coding, &one.repeat(1025), Err(DecompressBodyError::TooManyMembers(1024)));
    }
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7][..], &zstd(PLAIN)].concat();
    check(ContentCoding::Zstd, &skipped, Ok(PLAIN));
    check(ContentCoding::Zstd, &skipped[..9], Err(DecompressBodyError::Truncated(ZSTD)));
}

#[test]
fn zeros_after_the_last_gzip_member_are_padding() {
    let zeros = vec![0; PADDING_BYTES_MAX + 1];
    let one = gzip(b"one");
    let padded = |zeros: &[u8]| [&one[..], zeros].concat();
    for count in [1, 511, PADDING_BYTES_MAX] {
        check(ContentCoding::Gzip, &padded(&zeros[..count]), Ok(b"one"));
    }
    let corrupt = DecompressBodyError::Corrupt(GZIP, "its magic number is wrong");
    check(ContentCoding::Gzip, &padded(&zeros), Err(corrupt));
    check(ContentCoding::Gzip, &[&padded(b"\0")[..], &one].concat(), Err(corrupt));
    check(ContentCoding::Gzip, b"\0\0", Err(corrupt));
    assert!(decompressor().decode(ContentCoding::Zstd, &[&zstd(b"one")[..], b"\0"].concat()).is_err());
}

#[test]
fn zstd_windows_of_up_to_8_mib_are_accepted() {
    // An empty frame: the window as exponent and mantissa, up to the largest but one of the format.
    for window in 0..u8::MAX {
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, window, 1, 0, 0];
        let expected = if window_bytes(&frame) <= 8 << 20 {
            Ok(&b""[..])
        } else {
            Err(DecompressBodyError::WindowTooLarge)
        };
        assert_eq!(decompressor().decode(ContentCoding::Zstd, &frame), expected, "{window:#x}");
    }
    assert_eq!(window_bytes(&[0x28, 0xb5, 0x2f, 0xfd, 0, 13 << 3, 1, 0, 0]), 8 << 20);
    // A frame without a window, whose content has this size: it is the window.
    let single = |bytes: u32| {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
        frame.extend_from_slice(&bytes.to_le_bytes());
        let mut left = bytes;
        while left > 0 {
            let block = left.min(128 * 1024);
            left -= block;
            frame.extend_from_slice(&(block << 3 | 1 << 1 | u32::from(left == 0)).to_le_bytes()[..3]);
            frame.push(b'x');
        }
        frame
    };
    let limits = DecompressLimits { ratio_max: usize::MAX, ..DecompressLimits::new(16 << 20) };
    let length =
        |bytes| Decompressor::new(limits).decode(ContentCoding::Zstd, &single(bytes)).map(<[u8]>::len);
    assert_eq!(length(8 << 20), Ok(8 << 20));
    assert_eq!(length((8 << 20) + 1), Err(DecompressBodyError::WindowTooLarge));
}

#[test]
fn decompressor_rejects_a_stream_truncated_at_any_byte() {
    let header = GzBuilder::new().filename("f").comment("c").extra(vec![1, 2, 3]);
    let mut encoder = header.write(Vec::new(), Compression::fast());
    encoder.write_all(PLAIN).unwrap();
    let gzip = encoder.finish().unwrap();
    check(ContentCoding::Gzip, &gzip, Ok(PLAIN));
    for cut in 0..gzip.len() {
        check(ContentCoding::Gzip, &gzip[..cut], Err(DecompressBodyError::Truncated(GZIP)));
    }
    let zstd = zstd(PLAIN);
    for cut in 0..zstd.len() {
        check(ContentCoding::Zstd, &zstd[..cut], Err(DecompressBodyError::Truncated(ZSTD)));
    }
}

#[test]
fn decompressor_rejects_bad_magic_and_bad_checksums() {
    for coding in [ContentCoding::Gzip, ContentCoding::Zstd] {
        let error = decompressor().decode(coding, b"{\"timestamp\":1}").unwrap_err();
        assert!(matches!(error, DecompressBodyError::Corrupt(_, _)), "{error}");
        assert!(!error.is_too_large());
    }
    for from_end in [1, 5] {
        let mut wrong = gzip(PLAIN);
        let at = wrong.len() - from_end;
        wrong[at] ^= 1;
        check(ContentCoding::Gzip, &wrong, Err(DecompressBodyError::Corrupt(GZIP, "its checksum is wrong")));
    }
    let mut wrong = zstd(PLAIN);
    *wrong.last_mut().unwrap() ^= 1;
    check(ContentCoding::Zstd, &wrong, Err(DecompressBodyError::Corrupt(ZSTD, "its checksum is wrong")));
    let mut unknown_flag = gzip(PLAIN);
    unknown_flag[3] |= 0x80;
    check(
        ContentCoding::Gzip,
        &unknown_flag,
        Err(DecompressBodyError::Corrupt(GZIP, "its header has reserved flags")),
    );
}

#[test]
fn decompressed_size_bound_is_inclusive() {
    let limits = DecompressLimits { bytes_max: 100, ratio_free_bytes: MAX, ..DecompressLimits::new(0) };
    for (bytes, valid) in [(0, true), (99, true), (100, true), (101, false), (100_000, false)] {
        let plain = vec![b'x'; bytes];
        for (coding, body) in [(ContentCoding::Gzip, gzip(&plain)), (ContentCoding::Zstd, zstd(&plain))] {
            let mut decompressor = Decompressor::new(limits);
            let actual = decompressor.decode(coding, &body);
            assert_eq!(actual.is_ok(), valid, "{coding:?} {bytes}");
            assert!(valid || actual.is_err_and(DecompressBodyError::is_too_large));
        }
    }
}

#[test]
fn ratio_bound_applies_past_the_free_bytes() {
    let limits = DecompressLimits { ratio_max: 10, ratio_free_bytes: 1000, ..DecompressLimits::new(MAX) };
    assert_eq!(limits.check(1, 1000), Ok(()));
    assert_eq!(limits.check(1, 1001), Err(DecompressBodyError::RatioExceeded(10)));
    assert_eq!(limits.check(1000, 10_000), Ok(()));
    assert_eq!(limits.check(1000, 10_010), Err(DecompressBodyError::RatioExceeded(10)));
    assert_eq!(limits.check(1 << 20, MAX + 1), Err(DecompressBodyError::TooLarge(MAX)));
}

#[test]
fn decompression_bombs_cost_bounded_time_and_memory() {
    let limits = DecompressLimits::new(32 << 20);
    let gzip_bomb = {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let zeros = vec![0; 1 << 20];
        for _ in 0..64 {
            encoder.write_all(&zeros).unwrap();
        }
        encoder.finish().unwrap()
    };
    let clock = Clock::system();
    for (coding, bomb) in [
        (ContentCoding::Gzip, gzip_bomb),
        (ContentCoding::Zstd, zstd_bomb(10, 1)),
        (ContentCoding::Zstd, zstd_bomb(17, 100_000)),
        (ContentCoding::Zstd, zstd_bomb(23, 100_000)),
        (ContentCoding::Zstd, zstd_bomb(24, 100_000)),
        (ContentCoding::Zstd, zstd_bomb(41, 100_000)),
    ] {
        let mut decompressor = Decompressor::new(limits);
        let start = clock.now();
        let error = decompressor.decode(coding, &bomb).unwrap_err();
        let took = clock.now().since(start);
        println!("{coding:?} of {} bytes: {error} after {took:?}", bomb.len());
        assert!(decompressor.decompressed.capacity() <= 1 << 20, "{}", decompressor.decompressed.capacity());
        // It takes milliseconds; the bound allows for a busy machine and a debug build.
        assert!(took.as_millis() < 1000, "{took:?}");
    }
    check(ContentCoding::Zstd, &zstd_bomb(24, 9), Err(DecompressBodyError::WindowTooLarge));
    check(ContentCoding::Zstd, &zstd_bomb(23, 9), Err(DecompressBodyError::RatioExceeded(200)));
}

#[test]
fn release_frees_the_memory_of_a_large_body() {
    let noise = noise();
    for (coding, body) in [(ContentCoding::Gzip, gzip(&noise)), (ContentCoding::Zstd, zstd(&noise))] {
        let mut decompressor = decompressor();
        assert!(decompressor.decode(coding, &body).is_ok());
        decompressor.release();
        assert!(decompressor.decompressed.capacity() <= RETAINED_BYTES);
        assert_eq!(decompressor.decode(coding, &body), Ok(&noise[..]));
    }
    // An empty frame that requires a window of 2 MiB, or of more.
    for (window, kept) in [(21 - 10, true), (22 - 10, false)] {
        let mut decompressor = decompressor();
        assert_eq!(
            decompressor.decode(ContentCoding::Zstd, &[0x28, 0xb5, 0x2f, 0xfd, 0, window << 3, 1, 0, 0]),
            Ok(&b""[..])
        );
        assert_eq!(decompressor.zstd.is_some(), kept);
    }
}

proptest! {
    #[test]
    fn decompressor_never_panics_on_arbitrary_bytes(body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut decompressor = decompressor();
        for (coding, magic) in [(ContentCoding::Gzip, &[0x1f, 0x8b, 8][..]), (ContentCoding::Zstd, &[0x28, 0xb5, 0x2f, 0xfd])] {
            prop_assert!(decompressor.decode(coding, &body).is_err() || !body.is_empty());
            let begun = [magic, &body].concat();
            prop_assert!(decompressor.decode(coding, &begun).map_or(0, <[u8]>::len) <= MAX);
        }
    }

    #[test]
    fn decompressor_detects_a_flipped_bit(
        plain in proptest::collection::vec(0..4_u8, 1..3000), at in any::<usize>(), bit in 0..8_u32,
    ) {
        for (coding, mut body) in [(ContentCoding::Gzip, gzip(&plain)), (ContentCoding::Zstd, zstd(&plain))] {
            let at = at % body.len();
            body[at] ^= 1 << bit;
            let mut decompressor = decompressor();
            if let Ok(actual) = decompressor.decode(coding, &body) {
                // The bit may be in a time, a name or a reserved field.
                prop_assert_eq!(actual, &plain[..], "byte {}", at);
            }
        }
    }

    #[test]
    fn splitting_into_streams_does_not_change_the_decompressed_body(
        plain in proptest::collection::vec(any::<u8>(), 0..2000), cuts in proptest::collection::vec(0..2000_usize, 0..6),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut <= plain.len()).collect();
        cuts.extend([0, plain.len()]);
        cuts.sort_unstable();
        let mut decompressor = decompressor();
        for (coding, pack) in [(ContentCoding::Gzip, gzip as fn(&[u8]) -> Vec<u8>), (ContentCoding::Zstd, zstd)] {
            let body: Vec<u8> = cuts.windows(2).flat_map(|cut| pack(&plain[cut[0]..cut[1]])).collect();
            let actual = decompressor.decode(coding, &body);
            prop_assert_eq!(actual, Ok(&plain[..]));
        }
    }
}
