//! Streams whole, cut, joined, broken and grown.

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
fn check(coding: Coding, body: &[u8], wanted: Result<&[u8], Undecodable>) {
    assert_eq!(decompressor().decode(coding, body), wanted);
    for budget in [1, 100_000] {
        assert!(sliced(coding, body, budget).as_deref().map_err(|error| *error) == wanted, "{budget}");
    }
}

/// The same slice by slice, each of about `budget` bytes.
fn sliced(coding: Coding, body: &[u8], budget: usize) -> Result<Vec<u8>, Undecodable> {
    const STEP_MAX: usize = 2 * ZSTD_STEP_BYTES;
    let mut decompressor = decompressor();
    decompressor.begin();
    loop {
        let before = decompressor.plain.len();
        let all = decompressor.go_on(coding, body, budget)?;
        // The end of a frame brings its window with it.
        assert!(all || decompressor.plain.len() - before <= budget + STEP_MAX, "a slice is bounded");
        if all {
            return Ok(decompressor.plain(coding, body).to_vec());
        }
    }
}

const PLAIN: &[u8] = b"{\"an\":\"event\"}";

#[test]
fn a_body_comes_out_as_it_went_in() {
    check(Coding::Identity, PLAIN, Ok(PLAIN));
    check(Coding::Gzip, &gzip(PLAIN), Ok(PLAIN));
    check(Coding::Zstd, &zstd(PLAIN), Ok(PLAIN));
    check(Coding::Gzip, &gzip(b""), Ok(b""));
    let noise = noise();
    check(Coding::Gzip, &gzip(&noise), Ok(&noise));
    check(Coding::Zstd, &zstd(&noise), Ok(&noise));
}

#[test]
fn streams_may_follow_each_other_and_nothing_else_may() {
    for (coding, name, one) in [(Coding::Gzip, GZIP, gzip(b"one")), (Coding::Zstd, ZSTD, zstd(b"one"))] {
        check(coding, &one.repeat(3), Ok(b"oneoneone"));
        for garbage in [&b"\0"[..], b"\0\0\0\0\0\0", b"garbage behind it", b"\x1f\x8c\x08"] {
            let refused = decompressor().decode(coding, &[&one[..], garbage].concat()).unwrap_err();
            assert!(matches!(refused, Undecodable::Broken(_, _) | Undecodable::Cut(_)), "{name}: {refused}");
        }
        check(coding, &one.repeat(1024), Ok(&b"one".repeat(1024)));
        check(coding, &one.repeat(1025), Err(Undecodable::Members(1024)));
    }
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7][..], &zstd(PLAIN)].concat();
    check(Coding::Zstd, &skipped, Ok(PLAIN));
    check(Coding::Zstd, &skipped[..9], Err(Undecodable::Cut(ZSTD)));
}

#[test]
fn a_cut_stream_is_refused_wherever_it_is_cut() {
    let header = GzBuilder::new().filename("f").comment("c").extra(vec![1, 2, 3]);
    let mut encoder = header.write(Vec::new(), Compression::fast());
    encoder.write_all(PLAIN).unwrap();
    let gzip = encoder.finish().unwrap();
    check(Coding::Gzip, &gzip, Ok(PLAIN));
    for cut in 0..gzip.len() {
        check(Coding::Gzip, &gzip[..cut], Err(Undecodable::Cut(GZIP)));
    }
    let zstd = zstd(PLAIN);
    for cut in 0..zstd.len() {
        check(Coding::Zstd, &zstd[..cut], Err(Undecodable::Cut(ZSTD)));
    }
}

#[test]
fn what_is_no_stream_or_has_a_wrong_sum_is_refused() {
    for coding in [Coding::Gzip, Coding::Zstd] {
        let refused = decompressor().decode(coding, b"{\"timestamp\":1}").unwrap_err();
        assert!(matches!(refused, Undecodable::Broken(_, _)), "{refused}");
        assert!(!refused.is_too_large());
    }
    for from_end in [1, 5] {
        let mut wrong = gzip(PLAIN);
        let at = wrong.len() - from_end;
        wrong[at] ^= 1;
        check(Coding::Gzip, &wrong, Err(Undecodable::Broken(GZIP, "its checksum is wrong")));
    }
    let mut wrong = zstd(PLAIN);
    *wrong.last_mut().unwrap() ^= 1;
    check(Coding::Zstd, &wrong, Err(Undecodable::Broken(ZSTD, "its checksum is wrong")));
    let mut unknown_flag = gzip(PLAIN);
    unknown_flag[3] |= 0x80;
    check(
        Coding::Gzip,
        &unknown_flag,
        Err(Undecodable::Broken(GZIP, "its header has flags that nobody knows")),
    );
}

#[test]
fn the_bound_on_size_is_inclusive() {
    let limits = DecompressLimits { bytes_max: 100, ratio_free_bytes: MAX, ..DecompressLimits::new(0) };
    for (bytes, good) in [(0, true), (99, true), (100, true), (101, false), (100_000, false)] {
        let plain = vec![b'x'; bytes];
        for (coding, body) in [(Coding::Gzip, gzip(&plain)), (Coding::Zstd, zstd(&plain))] {
            let mut decompressor = Decompressor::new(limits);
            let got = decompressor.decode(coding, &body);
            assert_eq!(got.is_ok(), good, "{coding:?} {bytes}");
            assert!(good || got.is_err_and(Undecodable::is_too_large));
        }
    }
}

#[test]
fn a_body_may_grow_so_many_times_past_the_first_bytes() {
    let limits = DecompressLimits { ratio_max: 10, ratio_free_bytes: 1000, ..DecompressLimits::new(MAX) };
    assert_eq!(limits.check(1, 1000), Ok(()));
    assert_eq!(limits.check(1, 1001), Err(Undecodable::Bomb(10)));
    assert_eq!(limits.check(1000, 10_000), Ok(()));
    assert_eq!(limits.check(1000, 10_010), Err(Undecodable::Bomb(10)));
    assert_eq!(limits.check(1 << 20, MAX + 1), Err(Undecodable::TooLarge(MAX)));
}

#[test]
fn bombs_cost_little_time_and_memory() {
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
        (Coding::Gzip, gzip_bomb),
        (Coding::Zstd, zstd_bomb(10, 1)),
        (Coding::Zstd, zstd_bomb(17, 100_000)),
        (Coding::Zstd, zstd_bomb(23, 100_000)),
        (Coding::Zstd, zstd_bomb(24, 100_000)),
        (Coding::Zstd, zstd_bomb(41, 100_000)),
    ] {
        let mut decompressor = Decompressor::new(limits);
        let start = clock.now();
        let refused = decompressor.decode(coding, &bomb).unwrap_err();
        let took = clock.now().since(start);
        println!("{coding:?} of {} bytes: {refused} after {took:?}", bomb.len());
        assert!(decompressor.plain.capacity() <= 1 << 20, "{}", decompressor.plain.capacity());
        // Milliseconds; the bound is for a busy machine and a debug build.
        assert!(took.as_millis() < 1000, "{took:?}");
    }
    check(Coding::Zstd, &zstd_bomb(24, 9), Err(Undecodable::Window));
    check(Coding::Zstd, &zstd_bomb(23, 9), Err(Undecodable::Bomb(200)));
}

#[test]
fn what_a_large_body_took_is_given_back() {
    let noise = noise();
    for (coding, body) in [(Coding::Gzip, gzip(&noise)), (Coding::Zstd, zstd(&noise))] {
        let mut decompressor = decompressor();
        assert!(decompressor.decode(coding, &body).is_ok());
        decompressor.release();
        assert!(decompressor.plain.capacity() <= KEPT_BYTES);
        assert_eq!(decompressor.decode(coding, &body), Ok(&noise[..]));
    }
    // A frame without a byte in it, that wants a window of 2 MiB, or of more.
    for (window, kept) in [(21 - 10, true), (22 - 10, false)] {
        let mut decompressor = decompressor();
        assert_eq!(
            decompressor.decode(Coding::Zstd, &[0x28, 0xb5, 0x2f, 0xfd, 0, window << 3, 1, 0, 0]),
            Ok(&b""[..])
        );
        assert_eq!(decompressor.zstd.is_some(), kept);
    }
}

proptest! {
    #[test]
    fn bytes_of_any_kind_never_panic(body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut decompressor = decompressor();
        for (coding, magic) in [(Coding::Gzip, &[0x1f, 0x8b, 8][..]), (Coding::Zstd, &[0x28, 0xb5, 0x2f, 0xfd])] {
            prop_assert!(decompressor.decode(coding, &body).is_err() || !body.is_empty());
            let begun = [magic, &body].concat();
            prop_assert!(decompressor.decode(coding, &begun).map_or(0, <[u8]>::len) <= MAX);
        }
    }

    #[test]
    fn a_flipped_bit_never_panics_and_never_changes_what_comes_out_unseen(
        plain in proptest::collection::vec(0..4_u8, 1..3000), at in any::<usize>(), bit in 0..8_u32,
    ) {
        for (coding, mut body) in [(Coding::Gzip, gzip(&plain)), (Coding::Zstd, zstd(&plain))] {
            let at = at % body.len();
            body[at] ^= 1 << bit;
            let mut decompressor = decompressor();
            if let Ok(got) = decompressor.decode(coding, &body) {
                // Times, names and reserved bits do not matter.
                prop_assert_eq!(got, &plain[..], "byte {}", at);
            }
        }
    }

    #[test]
    fn however_it_is_split_into_streams_it_comes_out_the_same(
        plain in proptest::collection::vec(any::<u8>(), 0..2000), cuts in proptest::collection::vec(0..2000_usize, 0..6),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut <= plain.len()).collect();
        cuts.extend([0, plain.len()]);
        cuts.sort_unstable();
        let mut decompressor = decompressor();
        for (coding, pack) in [(Coding::Gzip, gzip as fn(&[u8]) -> Vec<u8>), (Coding::Zstd, zstd)] {
            let body: Vec<u8> = cuts.windows(2).flat_map(|cut| pack(&plain[cut[0]..cut[1]])).collect();
            let got = decompressor.decode(coding, &body);
            prop_assert_eq!(got, Ok(&plain[..]));
        }
    }
}
