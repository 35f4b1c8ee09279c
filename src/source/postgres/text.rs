//! Typed values as the text that PostgreSQL prints and reads. Pure.
//!
//! The settings are those that every connection of ours pins: `DateStyle = ISO`, `TimeZone = UTC`,
//! `bytea_output = hex`, `extra_float_digits` ≥ 1.

use std::fmt::Write;

use super::{
    super::{LakeType, Value},
    calendar, float,
};

impl Value<'_> {
    /// A text that is not UTF-8.
    pub fn not_utf8(bytes: &[u8]) -> Self {
        let mut exact = String::new();
        print_bytea(bytes, &mut exact);
        Self::Exact(exact.into())
    }

    /// What stands in `_exact` of a text that is not UTF-8, as text: U+FFFD is in the place of what is not. Any other
    /// text as it is.
    pub fn repaired(exact: &str) -> String {
        let bytes = exact.strip_prefix("\\x").and_then(|digits| hex::decode(digits).ok());
        match bytes.filter(|bytes| std::str::from_utf8(bytes).is_err()) {
            Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            None => exact.to_owned(),
        }
    }

    /// Appends the value, which a column of type `lake` holds, as PostgreSQL prints it.
    /// SQL NULL has no text: nothing is appended.
    pub fn print(&self, lake: LakeType, into: &mut String) {
        match self {
            Value::Null => {}
            Value::Boolean(value) => into.push(if *value { 't' } else { 'f' }),
            Value::Int(value) => write!(into, "{value}").expect("a String takes all"),
            Value::Float32(value) => float::print_f32(*value, into),
            Value::Float64(value) => float::print_f64(*value, into),
            Value::Date(days) => calendar::print_date(i64::from(*days), into),
            Value::Micros(micros) => {
                let days = micros.div_euclid(calendar::DAY_US);
                let within = micros.rem_euclid(calendar::DAY_US);
                calendar::print_timestamp(days, within, lake == LakeType::TimestampUtc, into);
            }
            Value::Decimal(unscaled) => {
                let scale = if let LakeType::Decimal { scale, .. } = lake { scale } else { 0 };
                print_decimal(*unscaled, scale, into);
            }
            Value::Bytes(bytes) => match <&[u8; 16]>::try_from(&**bytes) {
                Ok(uuid) if lake == LakeType::Uuid => print_uuid(uuid, into),
                _ => print_bytea(bytes, into),
            },
            Value::Text(text) | Value::Exact(text) => into.push_str(text),
        }
    }
}

/// Appends an unscaled decimal with `scale` digits after the point.
pub fn print_decimal(unscaled: i128, scale: u8, into: &mut String) {
    if unscaled < 0 {
        into.push('-');
    }
    let start = into.len();
    let places = usize::from(scale);
    write!(into, "{:0width$}", unscaled.unsigned_abs(), width = places + 1)
        .expect("a String takes all");
    if places > 0 {
        into.insert(start.max(into.len() - places), '.');
    }
}

/// Appends bytes as `\x…`.
pub fn print_bytea(bytes: &[u8], into: &mut String) {
    into.reserve(2 + 2 * bytes.len());
    into.push_str("\\x");
    print_hex(bytes, into);
}

/// Appends 16 bytes as `8-4-4-4-12` hex digits.
pub fn print_uuid(bytes: &[u8; 16], into: &mut String) {
    into.reserve(36);
    let (first, rest) = bytes.split_at(4);
    print_hex(first, into);
    let (middle, last) = rest.split_at(6);
    for group in middle.chunks(2).chain([last]) {
        into.push('-');
        print_hex(group, into);
    }
}

/// Appends lowercase hex digits.
pub fn print_hex(bytes: &[u8], into: &mut String) {
    let mut digits = [[0; 2]; TOGETHER];
    for some in bytes.chunks(TOGETHER) {
        for (byte, digits) in some.iter().zip(&mut digits) {
            *digits = DIGITS[usize::from(*byte)];
        }
        let digits = digits[..some.len()].as_flattened();
        into.push_str(str::from_utf8(digits).expect("digits are ASCII"));
    }
}

/// Of each byte its two hex digits.
const DIGITS: [[u8; 2]; 256] = {
    let (mut all, mut byte) = ([[0; 2]; 256], 0);
    while byte < 256 {
        let each = b"0123456789abcdef";
        all[byte] = [each[byte >> 4], each[byte & 15]];
        byte += 1;
    }
    all
};
/// Bytes whose digits are appended at once.
const TOGETHER: usize = 64;

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn text(value: &Value<'_>, lake: LakeType) -> String {
        let mut into = String::new();
        value.print(lake, &mut into);
        into
    }

    #[test]
    fn decimals_keep_their_scale() {
        let scaled = |unscaled, scale| {
            text(&Value::Decimal(unscaled), LakeType::Decimal { precision: 38, scale })
        };
        assert_eq!(scaled(-5, 2), "-0.05");
        assert_eq!(scaled(0, 3), "0.000");
        assert_eq!(scaled(12_345, 0), "12345");
        assert_eq!(scaled(-12_345, 2), "-123.45");
        assert_eq!(scaled(10i128.pow(38) - 1, 38), format!("0.{}", "9".repeat(38)));
    }

    #[test]
    fn bytes_are_hex_or_a_uuid() {
        let bytes = Value::Bytes(Cow::Owned((0u8..16).collect()));
        assert_eq!(text(&bytes, LakeType::Binary), "\\x000102030405060708090a0b0c0d0e0f");
        assert_eq!(text(&bytes, LakeType::Uuid), "00010203-0405-0607-0809-0a0b0c0d0e0f");
        assert_eq!(text(&Value::Bytes(Cow::Borrowed(b"")), LakeType::Binary), "\\x");
    }

    #[test]
    fn the_zone_follows_the_column() {
        assert_eq!(text(&Value::Micros(0), LakeType::Timestamp), "1970-01-01 00:00:00");
        assert_eq!(text(&Value::Micros(0), LakeType::TimestampUtc), "1970-01-01 00:00:00+00");
        assert_eq!(text(&Value::Boolean(false), LakeType::Boolean), "f");
    }
}
