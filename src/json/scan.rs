//! Searches that look at many bytes at once, in safe code: words of eight for what is near, blocks of 32 that the
//! compiler turns into vector instructions for what is far.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Where, from `at` on, a quote, a backslash or a control character stands; the length when none does.
///
/// Two words of eight bytes first, since most strings are short; then blocks of 32 that the compiler turns into
/// vector instructions.
#[inline]
pub(crate) fn find_special(bytes: &[u8], mut at: usize) -> usize {
    for _ in 0..2 {
        let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk) else {
            return find_slowly(bytes, at);
        };
        let hits = specials(u64::from_le_bytes(*word));
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    find_special_far(bytes, at)
}

fn find_special_far(bytes: &[u8], mut at: usize) -> usize {
    while let Some(block) = bytes.get(at..).and_then(<[u8]>::first_chunk::<32>) {
        let hit = block.iter().fold(0, |hit, &byte| hit | special(byte));
        if hit != 0 {
            break;
        }
        at += 32;
    }
    while let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let hits = specials(u64::from_le_bytes(*word));
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    find_slowly(bytes, at)
}

fn find_slowly(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().position(|&byte| special(byte) != 0).unwrap_or(rest.len())
}

#[inline]
fn special(byte: u8) -> u8 {
    u8::from(byte < 0x20) | u8::from(byte == b'"') | u8::from(byte == b'\\')
}

/// The high bit of each byte that is special. A borrow may also mark bytes above a special one; the lowest mark
/// is always right, and only that is used.
#[inline]
fn specials(word: u64) -> u64 {
    let below_space = word.wrapping_sub(0x20 * ONES) & !word;
    let quote = word ^ (u64::from(b'"') * ONES);
    let backslash = word ^ (u64::from(b'\\') * ONES);
    let zero = |word: u64| word.wrapping_sub(ONES) & !word;
    (below_space | zero(quote) | zero(backslash)) & HIGHS
}

/// Where the next line feed stands; the length when there is none.
pub(crate) fn find_line_feed(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(block) = bytes[at..].first_chunk::<32>() {
        if block.iter().fold(0, |hit, &byte| hit | u8::from(byte == b'\n')) != 0 {
            break;
        }
        at += 32;
    }
    let rest = &bytes[at..];
    at + rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len())
}

/// The lines of `bytes` that are not blank, each with its number from 1.
pub(crate) fn lines(mut bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let all = std::iter::from_fn(move || {
        let (line, rest) = (!bytes.is_empty()).then(|| bytes.split_at(find_line_feed(bytes)))?;
        bytes = rest.get(1..).unwrap_or_default();
        Some(line)
    });
    (1..).zip(all).filter(|(_, line)| !line.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_byte_is_told_apart_at_every_place() {
        for byte in 0..=255 {
            for at in 0..100 {
                let mut bytes = [b'a'; 100];
                bytes[at] = byte;
                let wanted = if byte < 0x20 || byte == b'"' || byte == b'\\' { at } else { 100 };
                assert_eq!(find_special(&bytes, 0), wanted, "{byte} at {at}");
                assert_eq!(find_line_feed(&bytes), if byte == b'\n' { at } else { 100 });
            }
        }
        assert_eq!(find_special(&[], 0), 0);
    }

    proptest! {
        #[test]
        fn the_search_finds_what_a_plain_one_finds(
            bytes in prop::collection::vec(prop_oneof![5 => 0x20_u8.., 1 => any::<u8>()], 0..120),
            from in 0_usize..120,
        ) {
            let from = from.min(bytes.len());
            let plain = |wanted: fn(u8) -> bool, from: usize| {
                (from..bytes.len()).find(|&at| wanted(bytes[at])).unwrap_or(bytes.len())
            };
            prop_assert_eq!(find_special(&bytes, from), plain(|byte| byte < 0x20 || byte == b'"' || byte == b'\\', from));
            prop_assert_eq!(find_line_feed(&bytes), plain(|byte| byte == b'\n', 0));
        }
    }
}
