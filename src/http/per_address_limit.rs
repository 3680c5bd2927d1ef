//! Counts the open connections of each client address and enforces a limit on them. Must not depend
//! on connection state.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

/// Invariant: the map has exactly one entry per address with an open connection, so the number of
/// connections bounds it. Only acceptors take the lock, for one look-up when a connection opens or
/// closes.
#[derive(Debug, Default)]
pub(super) struct PerAddressLimit(Mutex<HashMap<IpAddr, u32>>);

impl PerAddressLimit {
    /// Counts a connection of `peer`. Returns `false`, without counting, if the address has
    /// `connections_max` already.
    pub(super) fn acquire(&self, peer: IpAddr, connections_max: u32) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.entry(address_key(peer)) {
            Entry::Occupied(count) if *count.get() >= connections_max => false,
            Entry::Occupied(mut count) => {
                *count.get_mut() += 1;
                true
            }
            Entry::Vacant(_) if connections_max == 0 => false,
            Entry::Vacant(count) => {
                count.insert(1);
                true
            }
        }
    }

    pub(super) fn release(&self, peer: IpAddr) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut count) = counts.entry(address_key(peer)) else {
            unreachable!("BUG: the address has no counted connection");
        };
        if *count.get() > 1 {
            *count.get_mut() -= 1;
            return;
        }
        count.remove();
        if counts.is_empty() {
            counts.shrink_to_fit();
        }
    }
}

/// The address that a connection counts for: the IPv4 address, or the /64 prefix of an IPv6
/// address, which a provider assigns to one client.
fn address_key(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_per_address_and_release_frees_a_slot() {
        let limit = PerAddressLimit::default();
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        assert!(limit.acquire(one, 2) && limit.acquire(one, 2));
        assert!(!limit.acquire(one, 2));
        assert!(limit.acquire(other, 2));
        limit.release(one);
        assert!(limit.acquire(one, 2));
        for address in [one, one, other] {
            limit.release(address);
        }
        assert!(limit.0.lock().unwrap().is_empty());
    }

    #[test]
    fn limit_counts_an_ipv6_64_prefix_as_one_client() {
        let limit = PerAddressLimit::default();
        assert!(limit.acquire("2001:db8::1".parse().unwrap(), 1));
        assert!(!limit.acquire("2001:db8::2".parse().unwrap(), 1));
        assert!(limit.acquire("2001:db8:0:1::1".parse().unwrap(), 1));
    }
}
