//! Byte searches that test many bytes at once, in safe code.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// The position of the first quote, backslash or control character at or after `at`; the length if
/// there is none.
///
/// It tests two words of eight bytes first, since most strings are short; then blocks of 32 bytes,
/// which the compiler vectorizes.
#[inline]
pub(crate) fn find_special(bytes: &[u8], mut at: usize) -> usize {
    for _ in 0..2 {
        let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk) else {
            return find_special_scalar(bytes, at);
        };
        let hits = special_mask(u64::from_le_bytes(*word));
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    find_special_blocks(bytes, at)
}

/// Whether all bytes are ASCII characters that a JSON string has as they are.
#[inline]
pub(crate) fn is_plain_ascii(bytes: &[u8]) -> bool {
    let is_plain = |word: [u8; 8]| {
        let word = u64::from_le_bytes(word);
        (special_mask(word) | word & HIGHS) == 0
    };
    if bytes.len() < 8 {
        return bytes.iter().all(|&byte| byte < 0x80 && is_special(byte) == 0);
    }
    let (words, rest) = bytes.as_chunks();
    // The last word overlaps the one before it.
    words.iter().all(|&word| is_plain(word))
        && (rest.is_empty() || bytes.last_chunk().is_some_and(|&word| is_plain(word)))
}

fn find_special_blocks(bytes: &[u8], mut at: usize) -> usize {
    while let Some(block) = bytes.get(at..).and_then(<[u8]>::first_chunk::<32>) {
        let hit = block.iter().fold(0, |hit, &byte| hit | is_special(byte));
        if hit != 0 {
            break;
        }
        at += 32;
    }
    while let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let hits = special_mask(u64::from_le_bytes(*word));
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    find_special_scalar(bytes, at)
}

fn find_special_scalar(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().position(|&byte| is_special(byte) != 0).unwrap_or(rest.len())
}

#[inline]
fn is_special(byte: u8) -> u8 {
    u8::from(byte < 0x20) | u8::from(byte == b'"') | u8::from(byte == b'\\')
}

/// Sets the high bit of each special byte. A borrow may also mark bytes above a special one, so
/// only the lowest mark is valid.
#[inline]
fn special_mask(word: u64) -> u64 {
    let below_space = word.wrapping_sub(0x20 * ONES) & !word;
    let quote = word ^ (u64::from(b'"') * ONES);
    let backslash = word ^ (u64::from(b'\\') * ONES);
    let zero = |word: u64| word.wrapping_sub(ONES) & !word;
    (below_space | zero(quote) | zero(backslash)) & HIGHS
}

/// The position of the first line feed; the length if there is none.
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

/// The line that begins at `at`, without its line feed; none at the end. Moves `at` behind the line feed,
/// which the last line need not have.
#[inline]
pub(crate) fn next_line<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let rest = bytes.get(*at..).filter(|rest| !rest.is_empty())?;
    let line = &rest[..find_line_feed(rest)];
    *at += line.len() + 1;
    Some(line)
}

/// The non-blank lines of `bytes`, each with its line number, from 1.
pub(crate) fn lines(bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut at = 0;
    let all = std::iter::from_fn(move || next_line(bytes, &mut at));
    (1..).zip(all).filter(|(_, line)| !line.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn find_special_finds_each_special_byte_at_each_offset() {
        for byte in 0..=255 {
            for at in 0..100 {
                let mut bytes = [b'a'; 100];
                bytes[at] = byte;
                let expected = if byte < 0x20 || byte == b'"' || byte == b'\\' { at } else { 100 };
                assert_eq!(find_special(&bytes, 0), expected, "{byte} at {at}");
                assert_eq!(find_line_feed(&bytes), if byte == b'\n' { at } else { 100 });
            }
        }
        assert_eq!(find_special(&[], 0), 0);
    }

    proptest! {
        #[test]
        fn find_special_agrees_with_a_bytewise_search(
            bytes in prop::collection::vec(prop_oneof![5 => 0x20_u8.., 1 => any::<u8>()], 0..120),
            from in 0_usize..120,
        ) {
            let from = from.min(bytes.len());
            let plain = |expected: fn(u8) -> bool, from: usize| {
                (from..bytes.len()).find(|&at| expected(bytes[at])).unwrap_or(bytes.len())
            };
            let is_plain = bytes.iter().all(|byte| matches!(byte, 0x20..0x80 if !b"\"\\".contains(byte)));
            prop_assert_eq!(is_plain_ascii(&bytes), is_plain);
            prop_assert_eq!(find_special(&bytes, from), plain(|byte| byte < 0x20 || byte == b'"' || byte == b'\\', from));
            prop_assert_eq!(find_line_feed(&bytes), plain(|byte| byte == b'\n', 0));
        }
    }
}
