//! Request headers: the parsers never panic, header names are case-insensitive, an unknown header
//! changes nothing, and parsed values are within their bounds. Each line of the input is a header.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use aurore_events::access::Proxies;
use aurore_events::http::content_negotiation::negotiate;
use aurore_events::http::{Headers, Response, gzip};
use aurore_events::ingest::IngestHeaders;
use httparse::Header;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const OFFERS: [&str; 3] = ["application/json", "text/plain", "application/openmetrics-text"];

/// All values parsed from these headers, as text.
fn summarize(proxies: &Proxies, headers: Headers<'_>) -> String {
    let chosen = negotiate(headers, &OFFERS);
    assert!(chosen.is_none_or(|chosen| chosen < OFFERS.len()));
    let parsed = IngestHeaders::parse(headers);
    if let Err(error) = &parsed {
        let mut response = Response::default();
        error.write_response(&mut response);
        assert!(matches!(response.status, 400 | 415));
        serde_json::from_slice::<serde_json::Value>(&response.body).expect("a problem document is JSON");
        assert!(response.headers.iter().filter(|byte| **byte == b'\r').count() <= 2);
    }
    let client = proxies.client(PEER, headers);
    assert_eq!(client, client.to_canonical());
    format!("{chosen:?} {parsed:?} {client} {}", gzip::is_accepted(headers))
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let fields: Vec<(String, &[u8])> = data
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = str::from_utf8(&line[..colon]).ok().filter(|name| name.is_ascii())?;
            Some((name.to_owned(), &line[colon + 1..]))
        })
        .take(100)
        .collect();
    let headers: Vec<Header<'_>> =
        fields.iter().map(|(name, value)| Header { name: name.as_str(), value }).collect();
    for trusted in ["127.0.0.1", "0.0.0.0/0, ::/0"] {
        let proxies: Proxies = trusted.parse().unwrap();
        let expected = summarize(&proxies, Headers(&headers));
        let uppercase: Vec<(String, &[u8])> =
            fields.iter().map(|(name, value)| (name.to_ascii_uppercase(), *value)).collect();
        let mut uppercase: Vec<Header<'_>> =
            uppercase.iter().map(|(name, value)| Header { name: name.as_str(), value }).collect();
        uppercase.insert(uppercase.len() / 2, Header { name: "X-Unknown", value: b"1" });
        assert_eq!(summarize(&proxies, Headers(&uppercase)), expected);
    }
});
