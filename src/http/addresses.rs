//! How many connections each client address has open. Knows no connection.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

/// Invariant: an entry for each address that has a connection open, and none else, so that connections bound it. The
/// lock is held for a look-up, and only acceptors take it, when a connection begins or ends.
#[derive(Debug, Default)]
pub(super) struct Addresses(Mutex<HashMap<IpAddr, u32>>);

impl Addresses {
    /// Counts a connection, unless its address has `most` of them.
    pub(super) fn enter(&self, peer: IpAddr, most: u32) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.entry(client(peer)) {
            Entry::Occupied(count) if *count.get() >= most => false,
            Entry::Occupied(mut count) => {
                *count.get_mut() += 1;
                true
            }
            Entry::Vacant(_) if most == 0 => false,
            Entry::Vacant(count) => {
                count.insert(1);
                true
            }
        }
    }

    pub(super) fn leave(&self, peer: IpAddr) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut count) = counts.entry(client(peer)) else {
            unreachable!("BUG: a connection ends that never began");
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

/// Who is counted together: one IPv4 address, or the 64 bits of an IPv6 address that a provider gives to one client.
fn client(peer: IpAddr) -> IpAddr {
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
    fn an_address_has_its_share_and_gives_it_back() {
        let addresses = Addresses::default();
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        assert!(addresses.enter(one, 2) && addresses.enter(one, 2));
        assert!(!addresses.enter(one, 2));
        assert!(addresses.enter(other, 2));
        addresses.leave(one);
        assert!(addresses.enter(one, 2));
        for address in [one, one, other] {
            addresses.leave(address);
        }
        assert!(addresses.0.lock().unwrap().is_empty());
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one_client() {
        let addresses = Addresses::default();
        assert!(addresses.enter("2001:db8::1".parse().unwrap(), 1));
        assert!(!addresses.enter("2001:db8::2".parse().unwrap(), 1));
        assert!(addresses.enter("2001:db8:0:1::1".parse().unwrap(), 1));
    }
}
