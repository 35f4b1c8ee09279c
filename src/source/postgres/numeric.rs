//! `numeric` values: the binary form, text and decimals of at most 38 digits. Pure.
//!
//! Binary: `i16 groups | i16 weight | u16 sign | i16 scale | groups × i16`, big-endian; a group is
//! four decimal digits, the first stands for 10000^weight, `scale` digits are shown after the point.
//! <https://github.com/postgres/postgres/blob/REL_15_STABLE/src/backend/utils/adt/numeric.c>

use std::fmt::Write;

/// A `numeric` as it was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numeric<'a> {
    sign: Sign,
    weight: i32,
    scale: i32,
    /// Big-endian, two bytes each.
    groups: &'a [u8],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sign {
    Positive,
    Negative,
    /// NaN or an infinity, as it is printed.
    Special(&'static str),
}

impl<'a> Numeric<'a> {
    /// Reads the binary form; `None` if it is none.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (head, groups) = bytes.split_at_checked(8)?;
        let field = |at: usize| i16::from_be_bytes([head[at], head[at + 1]]);
        let sign = match u16::from_be_bytes([head[4], head[5]]) {
            0x0000 => Sign::Positive,
            0x4000 => Sign::Negative,
            0xC000 => Sign::Special("NaN"),
            0xD000 => Sign::Special("Infinity"),
            0xF000 => Sign::Special("-Infinity"),
            _ => return None,
        };
        let count = usize::try_from(field(0)).ok()?;
        let scale = i32::from(field(6));
        let read = Self { sign, weight: i32::from(field(2)), scale, groups };
        let plain = (0..count).all(|index| (0..10_000).contains(&read.stored(index)));
        let read = (groups.len() == 2 * count && plain).then_some(read)?.stripped();
        (0..=16_383).contains(&scale).then_some(read)
    }

    /// Without zeros in front, as a server keeps its numbers: else one of a few bytes could be long.
    fn stripped(mut self) -> Self {
        while let Some(([0, 0], rest)) = self.groups.split_first_chunk::<2>() {
            (self.groups, self.weight) = (rest, self.weight - 1);
        }
        if self.groups.is_empty() {
            self.weight = 0;
        }
        self
    }

    /// Appends the number as PostgreSQL prints it.
    pub(super) fn print(&self, into: &mut String) {
        match self.sign {
            Sign::Special(text) => return into.push_str(text),
            Sign::Negative => into.push('-'),
            Sign::Positive => {}
        }
        write!(into, "{}", self.group(self.weight.max(0))).expect("a String takes all");
        for power in (0..self.weight).rev() {
            write!(into, "{:04}", self.group(power)).expect("a String takes all");
        }
        if self.scale > 0 {
            into.push('.');
            let end = into.len() + usize::try_from(self.scale).expect("checked when read");
            let mut power = -1;
            while into.len() < end {
                write!(into, "{:04}", self.group(power)).expect("a String takes all");
                power -= 1;
            }
            into.truncate(end);
        }
    }

    /// The number × 10^scale, if it is shown with exactly `scale` digits after the point and has at most `precision` in all.
    pub(super) fn unscaled(&self, precision: u8, scale: u8) -> Option<i128> {
        if matches!(self.sign, Sign::Special(_)) || self.scale != i32::from(scale) {
            return None;
        }
        if self.weight > 9 {
            return None;
        }
        let mut unscaled: i128 = 0;
        for power in (0..=self.weight.max(0)).rev() {
            unscaled = unscaled.checked_mul(10_000)?.checked_add(self.group(power).into())?;
        }
        let mut left = self.scale;
        let mut power = -1;
        while left > 0 {
            let digits = u32::try_from(left.min(4)).expect("between 1 and 4");
            let group = self.group(power) / 10i32.pow(4 - digits);
            unscaled = unscaled.checked_mul(10i128.pow(digits))?.checked_add(group.into())?;
            left -= 4;
            power -= 1;
        }
        let bound = 10i128.pow(u32::from(precision));
        (unscaled < bound).then_some(if self.sign == Sign::Negative { -unscaled } else { unscaled })
    }

    /// Whether any column that is declared with a precision could hold it (1,000 digits): else a few bytes may stand for
    /// 131,072 of them.
    pub(super) fn is_short(&self) -> bool {
        self.weight < 250 && self.scale <= 1000
    }

    /// The group that stands for 10000^power.
    fn group(&self, power: i32) -> i32 {
        usize::try_from(self.weight - power).map_or(0, |index| self.stored(index))
    }

    fn stored(&self, index: usize) -> i32 {
        let pair = self.groups.get(2 * index..2 * index + 2);
        pair.map_or(0, |pair| i32::from(i16::from_be_bytes([pair[0], pair[1]])))
    }
}

/// As [`Numeric::unscaled`], from text. `None` too if the text is no plain number.
pub(super) fn unscaled_of_text(text: &str, precision: u8, scale: u8) -> Option<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || fraction.len() != usize::from(scale) {
        return None;
    }
    let mut unscaled: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        unscaled = unscaled.checked_mul(10)?.checked_add(digit.into())?;
    }
    let bound = 10i128.pow(u32::from(precision));
    (unscaled < bound).then_some(if negative { -unscaled } else { unscaled })
}

/// Whether text is what PostgreSQL prints for some `numeric`.
pub(super) fn is_numeric(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    matches!(text, "NaN" | "Infinity" | "-Infinity") || plain(whole) && plain(fraction)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::Plain;

    /// The binary form of a decimal, as `numeric_send` would give it.
    fn send(unscaled: i128, scale: u8) -> Vec<u8> {
        let padding = (4 - scale % 4) % 4;
        let mut rest = unscaled.unsigned_abs() * 10u128.pow(padding.into());
        let mut groups = vec![];
        while rest > 0 {
            groups.insert(0, i16::try_from(rest % 10_000).unwrap());
            rest /= 10_000;
        }
        let below = i16::from((scale + padding) / 4);
        let count = i16::try_from(groups.len()).unwrap();
        let sign: u16 = if unscaled < 0 { 0x4000 } else { 0 };
        let mut bytes = vec![];
        bytes.extend(count.to_be_bytes());
        bytes.extend((count - below - 1).to_be_bytes());
        bytes.extend(sign.to_be_bytes());
        bytes.extend(i16::from(scale).to_be_bytes());
        bytes.extend(groups.into_iter().flat_map(i16::to_be_bytes));
        bytes
    }

    fn print(bytes: &[u8]) -> String {
        let mut text = String::new();
        Numeric::read(bytes).unwrap().print(&mut text);
        text
    }

    #[test]
    fn specials_print_and_are_no_decimal() {
        for (sign, text) in [(0xC000u16, "NaN"), (0xD000, "Infinity"), (0xF000, "-Infinity")] {
            let mut bytes = vec![0; 8];
            bytes[4..6].copy_from_slice(&sign.to_be_bytes());
            assert_eq!(print(&bytes), text);
            assert_eq!(Numeric::read(&bytes).unwrap().unscaled(38, 0), None);
            assert!(is_numeric(text));
        }
    }

    #[test]
    fn what_does_not_fit_is_no_decimal() {
        let bytes = send(12_345, 2);
        assert_eq!(print(&bytes), "123.45");
        let read = Numeric::read(&bytes).unwrap();
        assert_eq!(read.unscaled(5, 2), Some(12_345));
        assert_eq!(read.unscaled(4, 2), None);
        assert_eq!(read.unscaled(5, 1), None);
        assert!(Numeric::read(&bytes[..9]).is_none());
    }

    #[test]
    fn zeros_in_front_are_no_digits() {
        for (bytes, expected) in [
            (&[0, 0, 0x5B, 0, 0, 0, 0, 2][..], "0.00"),
            (&[0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7], "7"),
        ] {
            let mut text = String::new();
            Numeric::read(bytes).unwrap().print(&mut text);
            assert_eq!(text, expected);
        }
    }

    proptest! {
        #[test]
        fn binary_text_and_decimal_agree(digits in -(10i128.pow(35))..10i128.pow(35), shift in 0u32..35, scale in 0u8..=36) {
            let unscaled = digits / 10i128.pow(shift);
            let bytes = send(unscaled, scale);
            let mut expected = String::new();
            super::super::text::print_decimal(unscaled, scale, &mut expected);
            prop_assert_eq!(print(&bytes), expected.clone());
            prop_assert_eq!(Numeric::read(&bytes).unwrap().unscaled(38, scale), Some(unscaled));
            prop_assert_eq!(unscaled_of_text(&expected, 38, scale), Some(unscaled));
            if let Some(small) = Plain::decimal(&bytes, 38, scale) {
                prop_assert_eq!(i128::from(small), unscaled);
            }
            prop_assert!(unscaled.abs() >= 10_000_000_000_000 || Plain::decimal(&bytes, 38, scale).is_some());
            prop_assert!(is_numeric(&expected));
        }

        #[test]
        fn what_is_read_of_a_few_digits_is_what_is_read_of_many(
            fields in [0_i16..5, -6_i16..6, 0_i16..2, 0_i16..9], groups: [i16; 4], scale in 0_u8..9,
            precision in 1_u8..38, room in 1_i16..10_001,
        ) {
            let [count, weight, sign, digits] = fields;
            let groups = groups.iter().map(|group| group.rem_euclid(room)).take(usize::try_from(count).unwrap());
            let head = [count, weight, sign * 0x4000, digits];
            let bytes: Vec<u8> = head.into_iter().chain(groups).flat_map(i16::to_be_bytes).collect();
            if let Some(small) = Plain::decimal(&bytes, precision, scale) {
                let whole = Numeric::read(&bytes).and_then(|whole| whole.unscaled(precision, scale));
                prop_assert_eq!(whole, Some(small.into()));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Plain::decimal(&bytes, 38, 0);
            if let Some(read) = Numeric::read(&bytes) {
                let mut text = String::new();
                read.print(&mut text);
                prop_assert!(is_numeric(&text));
                let _ = read.unscaled(38, 10);
            }
        }
    }
}
