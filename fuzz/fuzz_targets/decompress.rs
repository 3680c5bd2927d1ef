//! Compressed bodies: no bytes panic, nothing grows past its bounds, and a decoder that was used before answers as a
//! fresh one does.
#![no_main]

use aurore_events::ingest::{Coding, DecompressLimits, Decompressor};

const BYTES_MAX: usize = 1 << 20;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let mut used = Decompressor::new(DecompressLimits::new(BYTES_MAX));
    for (coding, magic) in [(Coding::Gzip, &[0x1f, 0x8b, 8, 0][..]), (Coding::Zstd, &[0x28, 0xb5, 0x2f, 0xfd])] {
        for body in [body, &[magic, body].concat()] {
            let first = used.decode(coding, body).map(<[u8]>::to_vec);
            used.release();
            let mut fresh = Decompressor::new(DecompressLimits::new(BYTES_MAX));
            assert_eq!(fresh.decode(coding, body).map(<[u8]>::to_vec), first);
            assert!(first.map_or(0, |plain| plain.len()) <= BYTES_MAX);
        }
    }
});
