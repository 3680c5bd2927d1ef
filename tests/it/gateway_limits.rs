//! A push of one client costs the others little: long ones occupy no acceptor.

use std::fmt::Write as _;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::harness::TestServer;
use crate::harness::client::{JSON, request};

/// 3 MB of text that compresses about as well as real pages.
fn long_text() -> Vec<u8> {
    let mut text = String::new();
    for nth in 0_u64..10_000 {
        let noise = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        writeln!(text, "long_family{{nth=\"{nth}\",noise=\"{noise:016x}\",pad=\"{:0240}\"}} {nth}", 0)
            .expect("it fits");
    }
    text.into_bytes()
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).expect("a vector takes all");
    encoder.finish().expect("a vector takes all")
}

#[test]
fn a_long_push_delays_no_other_request_and_is_durable() {
    let mut test = TestServer::start(&[("ACCEPTORS", "1")]);
    let body = long_text();
    assert!(body.len() > 2_900_000);
    let headers = [("Content-Encoding", "gzip"), ("Durability", "synced")];
    let body = gzip(&body);
    let (mut long, mut short) = (test.server.client(), test.server.client());
    for method in ["PUT", "PUT", "POST"] {
        long.send(&request(method, "/metrics/job/long", &headers, &body));
        // All bytes are sent, so that the only acceptor has the request, or gets it together with
        // this one.
        assert_eq!(short.get("/live").status, 200);
        let metric = r#"{"metrics":[{"name":"short_total","type":"counter","value":1}]}"#;
        let push = request("POST", "/metrics/push", &[("Content-Type", JSON)], metric.as_bytes());
        assert_eq!(short.get("/live").status, 200);
        assert!(!long.has_answered(), "the long push was handled before the short requests");
        let reply = long.reply();
        assert_eq!((reply.status, reply.header("Durability")), (200, Some("synced")), "{}", reply.text());
        assert_eq!(short.exchange(&push).status, 202);
    }
    test.server.kill();
    test.server.restart();
    let page = test.server.client().get("/metrics/pushed").text();
    assert_eq!(page.lines().filter(|line| line.starts_with("long_family{")).count(), 10_000);
    // Errors of long pushes are those of short ones.
    let mut client = test.server.client();
    let refused = client.exchange(&request("PUT", "/metrics/job/long", &headers, &gzip(b"a x\n")));
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("expected float as value"), "{}", refused.text());
    let labels = (0..40_000).fold(String::new(), |labels, nth| labels + &format!("l{nth}=\"\","));
    let refused =
        client.exchange(&request("PUT", "/metrics/job/a", &[], format!("a{{{labels}}} 1\n").as_bytes()));
    assert!(refused.text().contains("more than 64 labels of metric \"a\""), "{}", refused.text());
    let unknown = (0..40_000).fold(String::new(), |fields, nth| fields + &format!("\"u{nth}\":1,"));
    let push = format!("{{\"metrics\":[{{{unknown}\"name\":\"a\"}}]}}");
    let refused =
        client.exchange(&request("POST", "/metrics/push", &[("Content-Type", JSON)], push.as_bytes()));
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains(r#""field":"u0","detail":"is not a field of a metric""#));
    test.server.stop();
}
