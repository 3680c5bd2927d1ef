//! Compressed bodies: the decompressor never panics, its output stays within the bounds, a reused
//! decompressor agrees with a new one and with flate2, and compressed data is restored.
#![no_main]

use std::io::{Read, Write};

use aurore_events::http::{ContentCoding, DecompressBodyError, DecompressLimits, Decompressor};
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

const BYTES_MAX: usize = 1 << 20;

fn fresh(coding: ContentCoding, body: &[u8]) -> Result<Vec<u8>, DecompressBodyError> {
    Decompressor::new(DecompressLimits::new(BYTES_MAX)).decode(coding, body).map(<[u8]>::to_vec)
}

/// Decompresses in slices.
fn sliced(coding: ContentCoding, body: &[u8]) -> Result<Vec<u8>, DecompressBodyError> {
    let mut decompressor = Decompressor::new(DecompressLimits::new(BYTES_MAX));
    decompressor.begin();
    while !decompressor.decode_slice(coding, body, 1 + body.len() * 16)? {}
    Ok(decompressor.decompressed(coding, body).to_vec())
}

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let mut used = Decompressor::new(DecompressLimits::new(BYTES_MAX));
    for (coding, magic) in
        [(ContentCoding::Gzip, &[0x1f, 0x8b, 8, 0][..]), (ContentCoding::Zstd, &[0x28, 0xb5, 0x2f, 0xfd])]
    {
        for body in [body, &[magic, body].concat()] {
            let first = used.decode(coding, body).map(<[u8]>::to_vec);
            used.release();
            assert_eq!(fresh(coding, body), first);
            assert_eq!(sliced(coding, body), first);
            let Ok(plain) = first else { continue };
            assert!(plain.len() <= BYTES_MAX);
            if coding == ContentCoding::Gzip {
                let mut reference = Vec::new();
                flate2::read::MultiGzDecoder::new(body)
                    .read_to_end(&mut reference)
                    .expect("flate2 rejects a body that the decompressor accepts");
                assert!(reference == plain, "flate2 decompresses the body differently");
            }
        }
    }
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(body).unwrap();
    assert_eq!(fresh(ContentCoding::Gzip, &gzip.finish().unwrap()).as_deref(), Ok(body));
    assert_eq!(
        fresh(ContentCoding::Zstd, &compress_to_vec(body, CompressionLevel::Fastest)).as_deref(),
        Ok(body)
    );
});
