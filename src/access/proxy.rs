//! Whose request it is: the peer's, or that of the client which a trusted proxy names. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::http::Headers;

/// Hops that are looked at from the nearest on. Real chains have two or three.
const HOPS_MAX: usize = 32;

/// A range of addresses. IPv4 is held as IPv6 maps it, so that an address of either kind is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u128,
    mask: u128,
}

/// The proxies that are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<Range>);

/// What is wrong with a list of proxies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a list of addresses and networks, such as 10.0.0.0/8, ::1: {0:?} is neither")]
pub struct NotProxies(String);

impl FromStr for Proxies {
    type Err = NotProxies;

    fn from_str(list: &str) -> Result<Self, NotProxies> {
        let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
        words
            .map(|word| Range::parse(word).ok_or_else(|| NotProxies(word.to_owned())))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Range {
    fn parse(word: &str) -> Option<Self> {
        let (address, bits) = match word.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (word, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        // Digits alone: `parse` would take a sign.
        let bits = match bits {
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => bits.parse().ok()?,
            Some(_) => return None,
            None => width,
        };
        if bits > width {
            return None;
        }
        let mask = u128::MAX.checked_shl(width - bits).unwrap_or(0);
        Some(Self { first: wide(address) & mask, mask })
    }
}

fn wide(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Proxies {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn trusts(&self, address: IpAddr) -> bool {
        let address = wide(address);
        self.0.iter().any(|range| address & range.mask == range.first)
    }

    /// The client's address: the nearest that is not a trusted proxy's.
    ///
    /// Both `X-Forwarded-For` and `Forwarded` are read. A proxy writes one of them and hands the other on as the client
    /// sent it, so where they disagree neither is believed. What is malformed says nothing: then it is the nearest
    /// proxy's address that stands for its clients.
    pub fn client(&self, peer: IpAddr, headers: Headers<'_>) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.trusts(peer) {
            return peer;
        }
        let listed = headers.get("X-Forwarded-For").map(|_| self.listed(peer, headers));
        let forwarded = headers.get("Forwarded").map(|_| self.forwarded(peer, headers));
        match (listed, forwarded) {
            (Some(one), Some(other)) if one != other => peer,
            (Some(client), _) | (None, Some(client)) => client,
            (None, None) => peer,
        }
    }

    /// Goes from hop to hop, the nearest first, until one is not trusted or cannot be read.
    fn walk(&self, peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut client = peer;
        for hop in hops.take(HOPS_MAX) {
            let Some(hop) = hop else { return client };
            client = hop;
            if !self.trusts(hop) {
                return client;
            }
        }
        client
    }

    fn listed(&self, peer: IpAddr, headers: Headers<'_>) -> IpAddr {
        let fields: Vec<&[u8]> = headers.all("X-Forwarded-For").collect();
        let hops = fields.iter().rev().flat_map(|field| field.rsplit(|byte| *byte == b','));
        self.walk(peer, hops.map(|hop| node(hop.trim_ascii())))
    }

    fn forwarded(&self, peer: IpAddr, headers: Headers<'_>) -> IpAddr {
        let mut hops = Vec::new();
        for field in headers.all("Forwarded") {
            // A field that cannot be read hides where its elements begin: all of it is for nothing.
            if read_forwarded(field, &mut hops).is_none() {
                return peer;
            }
        }
        self.walk(peer, hops.into_iter().rev())
    }
}

/// An address with or without a port, and in brackets where RFC 7239 wants them.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text).ok()?;
    let is_port =
        |port: &str| port.len() <= 5 && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let address = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
            return None;
        }
        IpAddr::V6(address.parse::<Ipv6Addr>().ok()?)
    } else if let Some((address, _)) = text.split_once(':').filter(|(_, port)| is_port(port)) {
        IpAddr::V4(address.parse::<Ipv4Addr>().ok()?)
    } else {
        text.parse().ok()?
    };
    Some(address.to_canonical())
}

/// Reads the elements of a `Forwarded` field (RFC 7239, 4), each to the address of its `for`, or to none. None when
/// the field is not of that grammar.
fn read_forwarded(field: &[u8], hops: &mut Vec<Option<IpAddr>>) -> Option<()> {
    let mut rest = field;
    loop {
        let mut hop = None;
        loop {
            rest = rest.trim_ascii_start();
            let (name, after) = token(rest);
            if !name.is_empty() {
                rest = after.strip_prefix(b"=")?;
                let value = if let Some(quoted) = rest.strip_prefix(b"\"") {
                    let end = quoted.iter().position(|byte| *byte == b'"')?;
                    rest = &quoted[end + 1..];
                    // No address has a character that would have to be escaped.
                    Some(&quoted[..end]).filter(|text| !text.contains(&b'\\'))
                } else {
                    let (value, after) = token(rest);
                    rest = after;
                    Some(value)
                };
                let value = value?;
                if name.eq_ignore_ascii_case(b"for") {
                    hop = node(value);
                }
            }
            rest = rest.trim_ascii_start();
            match rest.split_first() {
                Some((b';', after)) => rest = after,
                Some((b',', after)) => {
                    rest = after;
                    break;
                }
                None => {
                    hops.push(hop);
                    return Some(());
                }
                Some(_) => return None,
            }
        }
        hops.push(hop);
    }
}

/// A token of HTTP, and of an address without quotes that lazy proxies write; what follows it.
fn token(text: &[u8]) -> (&[u8], &[u8]) {
    let ends = |byte: &u8| !byte.is_ascii_graphic() || matches!(byte, b';' | b',' | b'=' | b'"');
    text.split_at(text.iter().position(ends).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(trusted: &str, peer: &str, fields: &[(&str, &str)]) -> IpAddr {
        let headers: Vec<_> =
            fields.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        trusted.parse::<Proxies>().unwrap().client(peer.parse().unwrap(), Headers(&headers))
    }

    #[track_caller]
    fn check(trusted: &str, peer: &str, fields: &[(&str, &str)], wanted: &str) {
        assert_eq!(client(trusted, peer, fields).to_string(), wanted, "{fields:?}");
    }

    const NETS: &str = "10.0.0.0/8, 127.0.0.1,fd00::/8";
    const X: &str = "X-Forwarded-For";
    const F: &str = "Forwarded";

    #[test]
    fn nobody_is_believed_but_a_trusted_proxy() {
        check("", "1.2.3.4", &[(X, "9.9.9.9")], "1.2.3.4");
        check("", "127.0.0.1", &[(X, "9.9.9.9")], "127.0.0.1");
        check(NETS, "1.2.3.4", &[(X, "9.9.9.9"), (F, "for=9.9.9.9")], "1.2.3.4");
        check(NETS, "10.1.1.1", &[], "10.1.1.1");
        check(NETS, "10.1.1.1", &[(X, "9.9.9.9")], "9.9.9.9");
        check(NETS, "fd12::1", &[("x-forwarded-for", "2001:db8::1")], "2001:db8::1");
        check(NETS, "::ffff:10.1.1.1", &[(X, "::ffff:9.9.9.9")], "9.9.9.9");
        check("::ffff:10.0.0.0/104", "10.1.1.1", &[(X, "9.9.9.9")], "9.9.9.9");
        check("0.0.0.0/0", "2001:db8::1", &[(X, "9.9.9.9")], "2001:db8::1");
        check("::/0", "9.9.9.9", &[(X, "8.8.8.8, 7.7.7.7")], "8.8.8.8");
    }

    #[test]
    fn the_nearest_address_that_is_not_a_proxy_is_the_client() {
        check(NETS, "10.1.1.1", &[(X, "6.6.6.6, 9.9.9.9, 10.2.2.2")], "9.9.9.9");
        check(NETS, "10.1.1.1", &[(X, "6.6.6.6"), (X, "9.9.9.9"), (X, "10.2.2.2,10.3.3.3")], "9.9.9.9");
        check(NETS, "10.1.1.1", &[(X, "10.4.4.4, 10.2.2.2")], "10.4.4.4");
        check(NETS, "10.1.1.1", &[(X, "9.9.9.9:1234")], "9.9.9.9");
        check(NETS, "10.1.1.1", &[(X, "[2001:db8::1]:443")], "2001:db8::1");
        check(
            NETS,
            "10.1.1.1",
            &[(F, "for=6.6.6.6, for=\"[2001:DB8::1]:4711\";proto=http;by=10.2.2.2")],
            "2001:db8::1",
        );
        check(NETS, "10.1.1.1", &[(F, "proto=https;For=\"9.9.9.9:80\" , for=10.2.2.2;")], "9.9.9.9");
        check(NETS, "10.1.1.1", &[(F, "for=6.6.6.6"), (F, "for=9.9.9.9")], "9.9.9.9");
        let long = "10.2.2.2,".repeat(40) + "10.3.3.3";
        check(NETS, "10.1.1.1", &[(X, &format!("9.9.9.9,{long}"))], "10.2.2.2");
    }

    #[test]
    fn what_is_malformed_says_nothing() {
        for bad in [
            "",
            ",",
            "unknown",
            "9.9.9",
            "9.9.9.9:",
            "9.9.9.9:x",
            "[::1",
            "[9.9.9.9]",
            "9.9.9.9 8.8.8.8",
            "9.9.9.9/8",
            "\u{e9}",
        ] {
            check(NETS, "10.1.1.1", &[(X, bad)], "10.1.1.1");
            check(NETS, "10.1.1.1", &[(X, &format!("6.6.6.6, {bad}, 10.2.2.2"))], "10.2.2.2");
        }
        for bad in [
            "",
            "for",
            "for=",
            "for=unknown",
            "for=_hidden",
            "for=\"9.9.9.9",
            "for=9.9.9.9\"",
            "for =9.9.9.9",
            "by=9.9.9.9",
            "for=\"x, for=\"9.9.9.9\"",
            "for=\"9.9.9\\.9\"",
            "for=9.9.9.9 x",
        ] {
            check(NETS, "10.1.1.1", &[(F, bad)], "10.1.1.1");
        }
        // What a client puts before cannot reach into what the proxy puts behind.
        check(NETS, "10.1.1.1", &[(F, "for=\"6.6.6.6, for=9.9.9.9")], "10.1.1.1");
    }

    #[test]
    fn where_the_two_disagree_neither_is_believed() {
        check(NETS, "10.1.1.1", &[(X, "9.9.9.9"), (F, "for=6.6.6.6")], "10.1.1.1");
        check(NETS, "10.1.1.1", &[(X, "9.9.9.9"), (F, "nonsense")], "10.1.1.1");
        check(NETS, "10.1.1.1", &[(X, "9.9.9.9"), (F, "for=9.9.9.9;proto=http")], "9.9.9.9");
    }

    #[test]
    fn a_list_of_proxies_is_addresses_and_networks() {
        for good in ["", " ", "::1", "10.0.0.0/8,", "10.0.0.1/8, ::/0", "0.0.0.0/0", "1.2.3.4/32", "::1/128"]
        {
            assert!(good.parse::<Proxies>().is_ok(), "{good}");
        }
        for bad in [
            "x",
            "10.0.0.0/33",
            "::1/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0/8",
            "a.example",
            "1.2.3.4 5.6.7.8",
        ] {
            assert!(bad.parse::<Proxies>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn headers_of_any_kind_never_panic_and_never_speak_for_a_stranger(value in "[ -~]{0,80}", other in "(for=|by=|[\";,:.=0-9a-f\\[\\]]){0,30}") {
            let fields = [(X, value.as_str()), (F, other.as_str())];
            prop_assert_eq!(client(NETS, "1.2.3.4", &fields).to_string(), "1.2.3.4");
            client(NETS, "10.1.1.1", &fields);
            client(NETS, "10.1.1.1", &fields[1..]);
        }

        #[test]
        fn whatever_a_client_sends_before_the_proxy_speaks_last(sent in "[ -~]{0,60}", real in any::<u32>()) {
            let real = Ipv4Addr::from(real | 0x8000_0000);
            let fields = [(X, format!("{sent}, {real}"))];
            let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            prop_assert_eq!(client(NETS, "10.1.1.1", &fields), IpAddr::V4(real));
            let spoken = format!("{sent}, for={real}");
            let got = client(NETS, "10.1.1.1", &[(F, &spoken)]);
            prop_assert!(got == IpAddr::V4(real) || got.to_string() == "10.1.1.1", "{}", got);
        }
    }
}
