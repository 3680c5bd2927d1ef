//! The service of a record whose format has names of any length.

use std::borrow::Cow;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::event::SERVICE_BYTES_MAX;

/// Bytes of the hash in a shortened name, as hexadecimal digits.
const HASH_BYTES: usize = 8;
/// Bytes of a long name that are kept.
const KEPT_BYTES_MAX: usize = SERVICE_BYTES_MAX - 1 - 2 * HASH_BYTES;

/// A name of at most [`SERVICE_BYTES_MAX`] bytes for any name. A longer one is its first bytes, at
/// most 83 and whole characters, `~`, and the first 8 bytes of its SHA-256 in hexadecimal digits:
/// equal names stay equal, and different ones different, on every server.
pub(in crate::ingest) fn shorten(name: &str) -> Cow<'_, str> {
    if name.len() <= SERVICE_BYTES_MAX {
        return name.into();
    }
    let kept = (0..=KEPT_BYTES_MAX).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
    let mut short = format!("{}~", &name[..kept]);
    for byte in &Sha256::digest(name)[..HASH_BYTES] {
        write!(short, "{byte:02x}").expect("a string takes all");
    }
    short.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_name_is_shortened_to_the_bound_by_its_hash() {
        let long = "a".repeat(SERVICE_BYTES_MAX);
        assert_eq!(shorten(&long), long);
        let longer = shorten(&format!("{long}b")).into_owned();
        assert_eq!(longer.len(), SERVICE_BYTES_MAX);
        assert_eq!(longer, format!("{}~d89d25f6b6989ae4", "a".repeat(KEPT_BYTES_MAX)));
        assert_ne!(longer, shorten(&format!("{long}c")));
        let wide = "\u{20ac}".repeat(40);
        assert!(shorten(&wide).len() <= SERVICE_BYTES_MAX && shorten(&wide).starts_with('\u{20ac}'));
    }
}
