//! Whether PostgreSQL's `numeric` takes a number, which is what `jsonb` keeps numbers as. Decided from the digits
//! alone, in linear time, as its `set_var_from_str` and `make_result` decide it (measured against PostgreSQL 15).

/// Digits of a number that are beyond doubt: it needs no measuring.
pub(super) const DIGITS_PLAIN_MAX: usize = 16_383;
/// 4 x 32,768 digits: the weight of a `numeric` is 16 bits of base 10,000.
pub(super) const DIGITS_BEFORE_POINT_MAX: i64 = 131_072;
/// The scale of a `numeric` is 14 bits.
pub(super) const DIGITS_AFTER_POINT_MAX: i64 = 16_383;
/// PostgreSQL refuses an exponent of this size whatever the digits are, even on zero.
const EXPONENT_END: i64 = i32::MAX as i64 / 2;

/// Digits that exponents may add to the numbers of one value. `1e131071` takes 8 bytes and reads back as 131,072;
/// unbounded, 64 KiB of them would come back as a gigabyte. Two of the largest pass.
pub(super) const EXPANSION_DIGITS_MAX: u64 = 2 * (131_072 + 16_383);

/// A number by its parts, all digits, the sign left out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Number<'a> {
    pub(super) whole: &'a [u8],
    pub(super) fraction: &'a [u8],
    pub(super) exponent: &'a [u8],
    pub(super) exponent_negative: bool,
}

impl Number<'_> {
    /// The digits it has in full beyond those written. None when it is out of range.
    pub(super) fn expansion(&self) -> Option<u64> {
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

    /// Saturates far above what is in range.
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
