//! The headers that something is read from: no bytes panic, names are known in any case, a header that nobody knows
//! changes nothing, and what is read keeps its bounds. A line of the input is a header.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use aurore_events::access::Proxies;
use aurore_events::http::accept::preferred;
use aurore_events::http::{Headers, Response, gzip};
use aurore_events::ingest::Call;
use httparse::Header;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const OFFERS: [&str; 3] = ["application/json", "text/plain", "application/openmetrics-text"];

/// All that is read from these headers, in words.
fn read(proxies: &Proxies, headers: Headers<'_>) -> String {
    let accept = headers.get("Accept").and_then(|accept| str::from_utf8(accept).ok());
    let chosen = accept.and_then(|accept| preferred(accept, &OFFERS));
    assert!(chosen.is_none_or(|chosen| chosen < OFFERS.len()));
    let call = Call::read(headers);
    if let Err(refused) = &call {
        let mut response = Response::default();
        refused.answer(&mut response);
        assert!(matches!(response.status, 400 | 415));
        serde_json::from_slice::<serde_json::Value>(&response.body).expect("a problem is JSON");
        assert!(response.headers.iter().filter(|byte| **byte == b'\r').count() <= 1);
    }
    let client = proxies.client(PEER, headers);
    assert_eq!(client, client.to_canonical());
    format!("{chosen:?} {call:?} {client} {}", gzip::is_accepted(headers))
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
        let found = read(&proxies, Headers(&headers));
        let shouted: Vec<(String, &[u8])> =
            fields.iter().map(|(name, value)| (name.to_ascii_uppercase(), *value)).collect();
        let mut shouted: Vec<Header<'_>> =
            shouted.iter().map(|(name, value)| Header { name: name.as_str(), value }).collect();
        shouted.insert(shouted.len() / 2, Header { name: "X-Nobody-Knows", value: b"1" });
        assert_eq!(read(&proxies, Headers(&shouted)), found);
    }
});
