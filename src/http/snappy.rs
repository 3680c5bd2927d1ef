//! Decompresses Snappy's block format step by step. Every length and offset is checked, and no byte
//! is produced beyond the length that the block declares.

/// The block is corrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SnappyError {
    Truncated,
    Corrupt(&'static str),
}

/// The cost of an element, in decompressed bytes.
const ELEMENT_COST_BYTES: usize = 8;

/// The length of the decompressed bytes, and the number of bytes that declare it.
pub(super) fn declared_length(block: &[u8]) -> Result<(usize, usize), SnappyError> {
    let mut length = 0;
    for (at, byte) in block.iter().take(5).enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let length =
                u32::try_from(length).map_err(|_too_long| SnappyError::Corrupt("its length is wrong"))?;
            return Ok((length as usize, at + 1));
        }
    }
    Err(if block.len() < 5 { SnappyError::Truncated } else { SnappyError::Corrupt("its length is wrong") })
}

/// Decompresses elements of `block` from `at` on and appends to `out`, which may have `length` bytes
/// in the end, up to about `budget` bytes. Returns whether all are decompressed.
pub(super) fn decompress_slice(
    block: &[u8],
    at: &mut usize,
    out: &mut Vec<u8>,
    length: usize,
    budget: usize,
) -> Result<bool, SnappyError> {
    let mut left = budget;
    while left > 0 {
        let Some(&tag) = block.get(*at) else {
            return if out.len() == length { Ok(true) } else { Err(SnappyError::Truncated) };
        };
        *at += 1;
        let before = out.len();
        match tag & 3 {
            0 => literal(block, at, tag >> 2, out, length)?,
            1 => {
                let low = little_endian(block, at, 1)?;
                copy(out, (tag as usize >> 5) << 8 | low, 4 + (tag as usize >> 2 & 7), length)?;
            }
            2 => {
                let offset = little_endian(block, at, 2)?;
                copy(out, offset, 1 + (tag as usize >> 2), length)?;
            }
            _ => {
                let offset = little_endian(block, at, 4)?;
                copy(out, offset, 1 + (tag as usize >> 2), length)?;
            }
        }
        left = left.saturating_sub(out.len() - before + ELEMENT_COST_BYTES);
    }
    Ok(false)
}

/// A number of at most four bytes.
fn little_endian(block: &[u8], at: &mut usize, bytes: usize) -> Result<usize, SnappyError> {
    let number = block.get(*at..*at + bytes).ok_or(SnappyError::Truncated)?;
    *at += bytes;
    Ok(number.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

fn literal(
    block: &[u8],
    at: &mut usize,
    code: u8,
    out: &mut Vec<u8>,
    length: usize,
) -> Result<(), SnappyError> {
    // From 60 on the length follows, in 1 to 4 bytes.
    let count = match code {
        0..60 => usize::from(code),
        _ => little_endian(block, at, usize::from(code) - 59)?,
    } + 1;
    if count > length - out.len() {
        return Err(SnappyError::Corrupt("it is longer than it declares"));
    }
    let bytes = block.get(*at..).and_then(|rest| rest.get(..count)).ok_or(SnappyError::Truncated)?;
    out.extend_from_slice(bytes);
    *at += count;
    Ok(())
}

/// Appends `count` bytes from `offset` bytes before the end, which may overlap what is appended.
fn copy(out: &mut Vec<u8>, offset: usize, count: usize, length: usize) -> Result<(), SnappyError> {
    if offset == 0 || offset > out.len() {
        return Err(SnappyError::Corrupt("it refers to bytes before its begin"));
    }
    if count > length - out.len() {
        return Err(SnappyError::Corrupt("it is longer than it declares"));
    }
    let (start, mut left) = (out.len() - offset, count);
    while left > 0 {
        let step = left.min(out.len() - start);
        out.extend_from_within(start..start + step);
        left -= step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decompress(block: &[u8], budget: usize) -> Result<Vec<u8>, SnappyError> {
        let (length, mut at) = declared_length(block)?;
        let mut out = Vec::new();
        while !decompress_slice(block, &mut at, &mut out, length, budget)? {}
        Ok(out)
    }

    #[test]
    fn decoder_refuses_blocks_that_are_not_what_they_declare() {
        #[track_caller]
        fn check(block: &[u8], expected: Result<&[u8], SnappyError>) {
            assert_eq!(decompress(block, usize::MAX), expected.map(<[u8]>::to_vec), "{block:?}");
        }
        let (before, longer) = ("it refers to bytes before its begin", "it is longer than it declares");
        check(&[0], Ok(b""));
        check(&[1, 0, b'a'], Ok(b"a"));
        check(&[6, 0, b'a', 1 << 2 | 1, 1], Ok(b"aaaaaa"));
        check(&[4, 0, b'a', 2 << 2 | 2, 1, 0], Ok(b"aaaa"));
        check(&[4, 0, b'a', 2 << 2 | 3, 1, 0, 0, 0], Ok(b"aaaa"));
        check(&[2, 60 << 2, 1, b'a', b'b'], Ok(b"ab"));
        check(&[], Err(SnappyError::Truncated));
        check(&[0x80], Err(SnappyError::Truncated));
        check(&[0xff, 0xff, 0xff, 0xff, 0x1f], Err(SnappyError::Corrupt("its length is wrong")));
        check(&[0xff, 0xff, 0xff, 0xff, 0xff], Err(SnappyError::Corrupt("its length is wrong")));
        check(&[2, 0, b'a'], Err(SnappyError::Truncated));
        check(&[2, 4, b'a'], Err(SnappyError::Truncated));
        check(&[2, 63 << 2, 1, 0], Err(SnappyError::Truncated));
        check(&[1, 4, b'a', b'b'], Err(SnappyError::Corrupt(longer)));
        check(&[9, 63 << 2, 0xff, 0xff, 0xff, 0xff], Err(SnappyError::Corrupt(longer)));
        check(&[5, 1, 1], Err(SnappyError::Corrupt(before)));
        check(&[5, 0, b'a', 1, 2], Err(SnappyError::Corrupt(before)));
        check(&[5, 0, b'a', 1, 0], Err(SnappyError::Corrupt(before)));
        check(&[2, 0, b'a', 1, 1], Err(SnappyError::Corrupt(longer)));
        check(&[5, 0, b'a', 2, 1], Err(SnappyError::Truncated));
    }

    proptest! {
        #[test]
        fn decoder_restores_what_the_reference_compresses(
            parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..40), 1_usize..200), 0..20),
            budget in prop_oneof![Just(usize::MAX), 1_usize..1000],
        ) {
            let plain: Vec<u8> = parts.iter().flat_map(|(part, times)| part.repeat(*times)).collect();
            let block = snap::raw::Encoder::new().compress_vec(&plain).unwrap();
            prop_assert_eq!(decompress(&block, budget), Ok(plain));
        }

        #[test]
        fn decoder_agrees_with_the_reference_on_any_block(
            plain in "[ab]{0,200}", changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(), noise in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut block = snap::raw::Encoder::new().compress_vec(plain.as_bytes()).unwrap();
            for (at, byte) in changes {
                let at = at.index(block.len());
                block[at] = byte;
            }
            block.truncate(cut.index(block.len() * 2) + 1);
            block.extend_from_slice(&noise);
            let (declared, _) = declared_length(&block).unwrap_or((usize::MAX, 0));
            prop_assume!(declared < 1 << 20);
            let reference = snap::raw::Decoder::new().decompress_vec(&block).ok();
            let decoded = decompress(&block, usize::MAX);
            prop_assert_eq!(&decompress(&block, 1), &decoded);
            // The reference accepts no empty block after the length of nothing.
            prop_assert_eq!(decoded.ok(), reference);
        }
    }
}
