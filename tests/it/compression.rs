//! Compressed request bodies.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use sonic_rs::JsonValueTrait;

use crate::harness::client::{JSON, NDJSON, request};
use crate::harness::events::ids_of;
use crate::harness::{Client, Reply, TestServer, event, wait_for_drain};

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).expect("a vector takes all");
    encoder.finish().expect("a vector takes all")
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    compress_to_vec(plain, CompressionLevel::Fastest)
}

#[track_caller]
fn post(client: &mut Client, form: &str, coding: &str, body: &[u8]) -> Reply {
    client.exchange(&request(
        "POST",
        "/events",
        &[("Content-Type", form), ("Content-Encoding", coding)],
        body,
    ))
}

#[test]
fn compressed_batches_are_stored_like_uncompressed_ones() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "20")]);
    let mut client = test.server.client();
    let lines: Vec<String> = (0..500).map(|nth| event("s", &format!("line {nth}"))).collect();
    let lines = lines.join("\n");
    let one = event("s", "m");
    assert_eq!(ids_of(&post(&mut client, NDJSON, "gzip", &gzip(lines.as_bytes()))).len(), 500);
    assert_eq!(ids_of(&post(&mut client, NDJSON, "zstd", &zstd(lines.as_bytes()))).len(), 500);
    let halves = [gzip(one.as_bytes()), gzip(b"\n"), gzip(one.as_bytes())].concat();
    assert_eq!(ids_of(&post(&mut client, NDJSON, "gzip, identity", &halves)).len(), 2);
    assert_eq!(post(&mut client, JSON, "identity", one.as_bytes()).status, 202);
    // Also chunked, one byte per chunk.
    let mut chunked = format!(
        "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for byte in gzip(one.as_bytes()) {
        chunked.extend_from_slice(b"1\r\n");
        chunked.push(byte);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(client.exchange(&chunked).status, 202);
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 1004);
}

#[test]
fn a_body_that_cannot_be_decompressed_is_rejected_and_the_connection_stays_usable() {
    let test = TestServer::start(&[("MAX_DECOMPRESSED_BYTES", "1000000")]);
    let mut client = test.server.client();
    let one = event("s", "m");
    let (gzipped, zstded) = (gzip(one.as_bytes()), zstd(one.as_bytes()));
    let garbage = [&gzipped[..], b"garbage"].concat();
    let large = vec![b' '; 1_000_001];
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    (0..10).for_each(|_| bomb.write_all(&vec![0; 1 << 20]).unwrap());
    let bomb = bomb.finish().unwrap();
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0, 31 << 3, 3, 0, 16, 0];
    for (coding, body, status) in [
        ("gzip", &gzipped[..gzipped.len() - 1], 400),
        ("gzip", &gzipped[..5], 400),
        ("gzip", b"", 400),
        ("gzip", &garbage, 400),
        ("gzip", one.as_bytes(), 400),
        ("zstd", &zstded[..zstded.len() - 1], 400),
        ("zstd", &gzipped, 400),
        ("zstd", &window, 400),
        ("gzip", &gzip(&large), 413),
        ("zstd", &zstd(&large), 413),
        ("gzip", &bomb, 413),
        ("br", &gzipped, 415),
        ("gzip, gzip", &gzipped, 415),
    ] {
        let reply = post(&mut client, JSON, coding, body);
        assert_eq!(reply.status, status, "{coding}: {}", reply.text());
        assert_eq!(reply.json()["status"].as_u64(), Some(status.into()));
        if status == 415 {
            assert_eq!(reply.header("Accept-Encoding"), Some("gzip, zstd, identity"));
        }
    }
    assert_eq!(post(&mut client, JSON, "gzip", &gzipped).status, 202);
}
