//! The client's address: that of the peer, or the one that a trusted proxy forwards in
//! `X-Forwarded-For` or `Forwarded`. A pure function of the peer and the headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::http::Headers;

/// Hops that are examined, the nearest first. Real chains have two or three.
const HOPS_MAX: usize = 32;

/// A network (CIDR). IPv4 is stored as IPv4-mapped IPv6, so that one comparison serves both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AddressRange {
    first: u128,
    mask: u128,
}

/// The trusted proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<AddressRange>);

/// The entry of a list of proxies that is neither an address nor a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an address nor a network; expected a list such as 10.0.0.0/8, ::1")]
pub struct ParseProxiesError(String);

impl FromStr for Proxies {
    type Err = ParseProxiesError;

    fn from_str(list: &str) -> Result<Self, ParseProxiesError> {
        let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
        words
            .map(|word| AddressRange::parse(word).ok_or_else(|| ParseProxiesError(word.to_owned())))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl AddressRange {
    fn parse(word: &str) -> Option<Self> {
        let (address, bits) = match word.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (word, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        // Digits only: `parse` accepts a sign.
        let bits = match bits {
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => bits.parse().ok()?,
            Some(_) => return None,
            None => width,
        };
        if bits > width {
            return None;
        }
        let mask = u128::MAX.checked_shl(width - bits).unwrap_or(0);
        Some(Self { first: to_v6_bits(address) & mask, mask })
    }
}

fn to_v6_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Proxies {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the address, in canonical form, is that of a trusted proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = to_v6_bits(address);
        self.0.iter().any(|range| address & range.mask == range.first)
    }

    /// The client's address: the nearest hop that is not a trusted proxy.
    ///
    /// Both `X-Forwarded-For` and `Forwarded` are read. A proxy writes one of them and forwards the
    /// other as the client sent it, so both are ignored if they disagree. A malformed hop ends the
    /// walk: the address of the proxy before it is used.
    pub fn client(&self, peer: IpAddr, headers: Headers<'_>) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.trusts(peer) {
            return peer;
        }
        let listed = headers.get("X-Forwarded-For").map(|_| self.client_by_x_forwarded_for(peer, headers));
        let forwarded = headers.get("Forwarded").map(|_| self.client_by_forwarded(peer, headers));
        match (listed, forwarded) {
            (Some(one), Some(other)) if one != other => peer,
            (Some(client), _) | (None, Some(client)) => client,
            (None, None) => peer,
        }
    }

    /// Walks the hops, the nearest first, until one is not trusted or is malformed.
    fn nearest_untrusted(&self, peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
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

    fn client_by_x_forwarded_for(&self, peer: IpAddr, headers: Headers<'_>) -> IpAddr {
        let fields: Vec<&[u8]> = headers.all("X-Forwarded-For").collect();
        let hops = fields.iter().rev().flat_map(|field| field.rsplit(|byte| *byte == b','));
        self.nearest_untrusted(peer, hops.map(|hop| parse_node(hop.trim_ascii())))
    }

    fn client_by_forwarded(&self, peer: IpAddr, headers: Headers<'_>) -> IpAddr {
        let mut hops = Vec::new();
        for field in headers.all("Forwarded") {
            // Element boundaries in a malformed field are unknown, so the whole header is ignored.
            if parse_forwarded(field, &mut hops).is_none() {
                return peer;
            }
        }
        self.nearest_untrusted(peer, hops.into_iter().rev())
    }
}

/// Parses an address with an optional port; IPv6 with a port is in brackets (RFC 7239, 6).
fn parse_node(text: &[u8]) -> Option<IpAddr> {
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

/// Parses a `Forwarded` field (RFC 7239, 4). Pushes for each element the address of its `for`, or
/// none. Returns none if the field does not match the grammar.
fn parse_forwarded(field: &[u8], hops: &mut Vec<Option<IpAddr>>) -> Option<()> {
    let mut rest = field;
    loop {
        let mut hop = None;
        loop {
            rest = rest.trim_ascii_start();
            let (name, after) = split_token(rest);
            if !name.is_empty() {
                rest = after.strip_prefix(b"=")?;
                let value = if let Some(quoted) = rest.strip_prefix(b"\"") {
                    let end = quoted.iter().position(|byte| *byte == b'"')?;
                    rest = &quoted[end + 1..];
                    // An address has no character that needs escaping.
                    Some(&quoted[..end]).filter(|text| !text.contains(&b'\\'))
                } else {
                    let (value, after) = split_token(rest);
                    rest = after;
                    Some(value)
                };
                let value = value?;
                if name.eq_ignore_ascii_case(b"for") {
                    hop = parse_node(value);
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

/// Splits off an HTTP token, or an unquoted address, which some proxies write against RFC 7239.
fn split_token(text: &[u8]) -> (&[u8], &[u8]) {
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
    fn forwarding_headers_are_used_only_from_a_trusted_proxy() {
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
    fn client_is_the_nearest_untrusted_address() {
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
    fn malformed_hops_are_ignored() {
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
        // A client's unterminated quote must not absorb the element that the proxy appends.
        check(NETS, "10.1.1.1", &[(F, "for=\"6.6.6.6, for=9.9.9.9")], "10.1.1.1");
    }

    #[test]
    fn disagreeing_headers_are_both_ignored() {
        check(NETS, "10.1.1.1", &[(X, "9.9.9.9"), (F, "for=6.6.6.6")], "10.1.1.1");
        check(NETS, "10.1.1.1", &[(X, "9.9.9.9"), (F, "nonsense")], "10.1.1.1");
        check(NETS, "10.1.1.1", &[(X, "9.9.9.9"), (F, "for=9.9.9.9;proto=http")], "9.9.9.9");
    }

    #[test]
    fn proxy_list_accepts_addresses_and_networks() {
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
        fn arbitrary_headers_never_panic_and_are_ignored_from_an_untrusted_peer(value in "[ -~]{0,80}", other in "(for=|by=|[\";,:.=0-9a-f\\[\\]]){0,30}") {
            let fields = [(X, value.as_str()), (F, other.as_str())];
            prop_assert_eq!(client(NETS, "1.2.3.4", &fields).to_string(), "1.2.3.4");
            client(NETS, "10.1.1.1", &fields);
            client(NETS, "10.1.1.1", &fields[1..]);
        }

        #[test]
        fn address_that_the_proxy_appends_wins_over_those_the_client_sends(sent in "[ -~]{0,60}", real in any::<u32>()) {
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
