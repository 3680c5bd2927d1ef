//! Compressed bodies: no bytes panic, nothing grows past its bounds, a decoder that was used before answers as a fresh
//! one does, others make the same of the same bytes, and what is compressed comes out as it went in.
#![no_main]

use std::io::{Read, Write};

use aurore_events::http::{Coding, DecompressLimits, Decompressor, Undecodable};
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

const BYTES_MAX: usize = 1 << 20;

fn fresh(coding: Coding, body: &[u8]) -> Result<Vec<u8>, Undecodable> {
    Decompressor::new(DecompressLimits::new(BYTES_MAX)).decode(coding, body).map(<[u8]>::to_vec)
}

/// The same in slices.
fn sliced(coding: Coding, body: &[u8]) -> Result<Vec<u8>, Undecodable> {
    let mut decompressor = Decompressor::new(DecompressLimits::new(BYTES_MAX));
    decompressor.begin();
    while !decompressor.go_on(coding, body, 1 + body.len() * 16)? {}
    Ok(decompressor.plain(coding, body).to_vec())
}

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let mut used = Decompressor::new(DecompressLimits::new(BYTES_MAX));
    for (coding, magic) in [(Coding::Gzip, &[0x1f, 0x8b, 8, 0][..]), (Coding::Zstd, &[0x28, 0xb5, 0x2f, 0xfd])] {
        for body in [body, &[magic, body].concat()] {
            let first = used.decode(coding, body).map(<[u8]>::to_vec);
            used.release();
            assert_eq!(fresh(coding, body), first);
            assert_eq!(sliced(coding, body), first);
            let Ok(plain) = first else { continue };
            assert!(plain.len() <= BYTES_MAX);
            if coding == Coding::Gzip {
                let mut theirs = Vec::new();
                flate2::read::MultiGzDecoder::new(body).read_to_end(&mut theirs).expect("taken here, refused there");
                assert!(theirs == plain, "read otherwise by others");
            }
        }
    }
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(body).unwrap();
    assert_eq!(fresh(Coding::Gzip, &gzip.finish().unwrap()).as_deref(), Ok(body));
    assert_eq!(fresh(Coding::Zstd, &compress_to_vec(body, CompressionLevel::Fastest)).as_deref(), Ok(body));
});
