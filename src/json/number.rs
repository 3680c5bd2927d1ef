//! Checks whether a number is in the range of PostgreSQL's `numeric`, the type in which `jsonb`
//! stores numbers. The check uses only the digits, takes linear time and follows PostgreSQL's
//! `set_var_from_str` and `make_result` (verified against PostgreSQL 15).

/// An integer of at most this many digits is in range; it needs no further check.
pub(super) const DIGITS_UNCHECKED_MAX: usize = 16_383;
/// 4 x 32,768 digits: the weight of a `numeric` is 16 bits of base 10,000.
pub(super) const DIGITS_BEFORE_POINT_MAX: i64 = 131_072;
/// The scale of a `numeric` is 14 bits.
pub(super) const DIGITS_AFTER_POINT_MAX: i64 = 16_383;
/// PostgreSQL refuses an exponent of this size for any digits, even for zero.
const EXPONENT_END: i64 = i32::MAX as i64 / 2;

/// Maximum digits that exponents may add to the numbers of one value. `1e131071` takes 8 bytes, but
/// PostgreSQL returns it as 131,072 digits; without a bound, 64 KiB of such numbers would be read
/// back as a gigabyte. The largest number is allowed once, so that metadata takes at most about
/// four times [`crate::event::METADATA_BYTES_MAX`] as text.
pub(super) const EXPANSION_DIGITS_MAX: u64 = 131_072 + 16_383;

/// The parts of a number as digits, without the sign.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct JsonNumber<'a> {
    pub(super) whole: &'a [u8],
    pub(super) fraction: &'a [u8],
    pub(super) exponent: &'a [u8],
    pub(super) exponent_negative: bool,
}

impl JsonNumber<'_> {
    /// The number of digits that the exponent adds to those written. None if the number is out of
    /// range.
    pub(super) fn expansion_digits(&self) -> Option<u64> {
        let exponent = self.exponent();
        if exponent.abs() >= EXPONENT_END {
            return None;
        }
        let whole = length(self.whole);
        let fraction = length(self.fraction);
        let after = (fraction - exponent).max(0);
        let zeros = self.whole.iter().chain(self.fraction).take_while(|&&digit| digit == b'0').count();
        let zeros = i64::try_from(zeros).unwrap_or(i64::MAX);
        let before = if zeros == whole + fraction { 0 } else { whole - zeros + exponent };
        if before > DIGITS_BEFORE_POINT_MAX || after > DIGITS_AFTER_POINT_MAX {
            return None;
        }
        Some(u64::try_from(before.max(0) + after - whole - fraction).unwrap_or(0))
    }

    /// The exponent's value. Saturates far outside the range.
    fn exponent(&self) -> i64 {
        let size = self
            .exponent
            .iter()
            .fold(0_i64, |size, digit| size.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
        if self.exponent_negative { -size } else { size }
    }
}

fn length(digits: &[u8]) -> i64 {
    i64::try_from(digits.len()).unwrap_or(i64::MAX)
}
