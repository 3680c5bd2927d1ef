//! Reads the fields of protobuf messages from a slice. No recursion, no allocation: a nested message
//! is a slice that another reader reads. Every length is checked against the bytes that are there.
//!
//! It must not depend on the messages of any protocol.

use std::ops::Range;

/// The bytes are not a protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseProtobufError {
    #[error("it is truncated within a message")]
    Truncated,
    #[error("a number is longer than 10 bytes")]
    VarintTooLong,
    #[error("a field has an invalid number")]
    FieldNumber,
    /// Groups are deprecated; no supported protocol has one.
    #[error("a field has an unknown wire type")]
    WireType,
    #[error("a field has the wrong type")]
    WrongType,
}

/// The value of one field, by wire type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireValue<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    /// A string, bytes, or a nested message.
    Bytes(&'a [u8]),
}

impl<'a> WireValue<'a> {
    #[inline]
    pub(crate) fn bytes(self) -> Result<&'a [u8], ParseProtobufError> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(ParseProtobufError::WrongType) }
    }

    #[inline]
    pub(crate) fn varint(self) -> Result<u64, ParseProtobufError> {
        if let Self::Varint(value) = self { Ok(value) } else { Err(ParseProtobufError::WrongType) }
    }

    #[inline]
    pub(crate) fn fixed64(self) -> Result<u64, ParseProtobufError> {
        if let Self::Fixed64(value) = self { Ok(value) } else { Err(ParseProtobufError::WrongType) }
    }

    #[inline]
    pub(crate) fn fixed32(self) -> Result<u32, ParseProtobufError> {
        if let Self::Fixed32(value) = self { Ok(value) } else { Err(ParseProtobufError::WrongType) }
    }
}

/// Reads the fields of one message in their order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MessageReader<'a> {
    rest: &'a [u8],
}

impl<'a> MessageReader<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The number of bytes that are not read yet.
    #[inline]
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The number and the value of the next field; none at the end of the message.
    #[inline]
    pub(crate) fn next_field(&mut self) -> Result<Option<(u32, WireValue<'a>)>, ParseProtobufError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let number = number.ok_or(ParseProtobufError::FieldNumber)?;
        let value = match tag & 7 {
            0 => WireValue::Varint(self.varint()?),
            1 => WireValue::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => WireValue::Bytes(self.length_delimited()?),
            5 => WireValue::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(ParseProtobufError::WireType),
        };
        Ok(Some((number, value)))
    }

    /// The bytes after a length: of a field, or of a message in a delimited stream.
    #[inline]
    pub(crate) fn length_delimited(&mut self) -> Result<&'a [u8], ParseProtobufError> {
        let length = self.varint()?;
        let length = usize::try_from(length).map_err(|_too_long| ParseProtobufError::Truncated)?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(ParseProtobufError::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, ParseProtobufError> {
        // Most tags and lengths are one byte.
        if let [byte @ ..0x80, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(u64::from(*byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, ParseProtobufError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(ParseProtobufError::Truncated)?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ParseProtobufError::VarintTooLong)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseProtobufError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(ParseProtobufError::Truncated)?;
        self.rest = rest;
        Ok(*array)
    }
}

/// A field by its position in the bytes of the outermost message, for a reader that continues later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FieldRange {
    /// A string, bytes, or a nested message.
    Bytes(Range<usize>),
    Other,
}

/// Reads the field at `at` of the message that ends at `end` in `bytes`, and moves `at` behind it.
#[inline]
pub(crate) fn read_field_at(
    bytes: &[u8],
    at: &mut usize,
    end: usize,
) -> Result<Option<(u32, FieldRange)>, ParseProtobufError> {
    let mut reader = MessageReader::new(&bytes[*at..end]);
    let field = reader.next_field()?;
    *at = end - reader.remaining();
    Ok(field.map(|(number, value)| match value {
        WireValue::Bytes(bytes) => (number, FieldRange::Bytes(*at - bytes.len()..*at)),
        WireValue::Varint(_) | WireValue::Fixed64(_) | WireValue::Fixed32(_) => (number, FieldRange::Other),
    }))
}

/// Writes messages: responses, and bodies of tests.
pub(crate) mod encode {
    pub(crate) fn varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        out.push(value.to_le_bytes()[0]);
    }

    pub(crate) fn varint_field(out: &mut Vec<u8>, number: u32, value: u64) {
        varint(out, u64::from(number) << 3);
        varint(out, value);
    }

    pub(crate) fn bytes_field(out: &mut Vec<u8>, number: u32, value: &[u8]) {
        varint(out, u64::from(number) << 3 | 2);
        varint(out, value.len() as u64);
        out.extend_from_slice(value);
    }

    pub(crate) fn fixed64_field(out: &mut Vec<u8>, number: u32, value: u64) {
        varint(out, u64::from(number) << 3 | 1);
        out.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn fixed32_field(out: &mut Vec<u8>, number: u32, value: u32) {
        varint(out, u64::from(number) << 3 | 5);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(message: &[u8]) -> Result<Vec<(u32, WireValue<'_>)>, ParseProtobufError> {
        let mut reader = MessageReader::new(message);
        let mut fields = Vec::new();
        while let Some(field) = reader.next_field()? {
            fields.push(field);
        }
        Ok(fields)
    }

    #[test]
    fn reader_refuses_malformed_messages() {
        use ParseProtobufError as E;
        #[track_caller]
        fn check(message: &[u8], expected: ParseProtobufError) {
            assert_eq!(read_all(message), Err(expected), "{message:?}");
        }
        check(&[0x0a, 5, 1], E::Truncated);
        check(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], E::Truncated);
        check(&[0x09, 1, 2, 3], E::Truncated);
        check(&[0x0d, 1, 2, 3], E::Truncated);
        check(&[0x08], E::Truncated);
        check(&[0x80], E::Truncated);
        check(&[0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1], E::VarintTooLong);
        check(&[0x00, 0], E::FieldNumber);
        check(&[0x80, 0x80, 0x80, 0x80, 0x10, 0], E::FieldNumber);
        check(&[0x0b], E::WireType);
        check(&[0x0c], E::WireType);
        check(&[0x0f], E::WireType);
    }

    proptest! {
        #[test]
        fn reader_reads_what_the_encoder_writes(
            number in 1_u32..1 << 29, varint in any::<u64>(), double in any::<u64>(), float in any::<u32>(),
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut message = Vec::new();
            encode::varint_field(&mut message, number, varint);
            encode::fixed64_field(&mut message, number, double);
            encode::bytes_field(&mut message, number, &bytes);
            encode::fixed32_field(&mut message, number, float);
            let expected = [
                (number, WireValue::Varint(varint)), (number, WireValue::Fixed64(double)),
                (number, WireValue::Bytes(&bytes)), (number, WireValue::Fixed32(float)),
            ];
            prop_assert_eq!(read_all(&message).unwrap(), expected);
            for end in 0..message.len() {
                if let Ok(fields) = read_all(&message[..end]) {
                    prop_assert_eq!(&fields[..], &expected[..fields.len()]);
                }
            }
        }

        #[test]
        fn reader_ends_on_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(fields) = read_all(&bytes) {
                prop_assert!(fields.len() <= bytes.len() / 2);
            }
        }
    }
}
