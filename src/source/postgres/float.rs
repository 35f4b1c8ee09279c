//! Floating-point numbers as PostgreSQL prints them with `extra_float_digits` ≥ 1. Pure.
//!
//! The shortest digits that read back as the same number *from strictly inside* its rounding
//! interval. Rust's shortest digits may also lie on the interval's bound, which PostgreSQL does not
//! accept (`STRICTLY_SHORTEST` is 0 in its Ryū): such digits are replaced by longer ones. Where two
//! are equally near, PostgreSQL takes the even one.
//! Source: <https://github.com/postgres/postgres/blob/REL_15_STABLE/src/common/d2s.c>.

use std::fmt::Write;

/// Appends a `float8`.
pub fn print_f64(value: f64, into: &mut String) {
    if print_special(value, into) {
        return;
    }
    let bits = value.to_bits();
    let number = Binary::new(bits & ((1 << 52) - 1), (bits >> 52) & 0x7FF, 52, 1_075);
    let start = into.len();
    write!(into, "{value:e}").expect("a String takes all");
    correct(into, start, &number, &|text| text.parse() == Ok(value), &|digits| {
        format!("{value:.digits$e}")
    });
    lay_out(into, start, 15);
}

/// Appends a `float4`.
pub fn print_f32(value: f32, into: &mut String) {
    if print_special(f64::from(value), into) {
        return;
    }
    let bits = u64::from(value.to_bits());
    let number = Binary::new(bits & ((1 << 23) - 1), (bits >> 23) & 0xFF, 23, 150);
    let start = into.len();
    write!(into, "{value:e}").expect("a String takes all");
    correct(into, start, &number, &|text| text.parse() == Ok(value), &|digits| {
        format!("{value:.digits$e}")
    });
    lay_out(into, start, 6);
}

/// Replaces Rust's shortest digits, from `start` on, where PostgreSQL chooses others: where they lie
/// on the bound of the interval, and, of two that are equally near, the odd ones.
fn correct(
    into: &mut String,
    start: usize,
    number: &Binary,
    reads_back: &dyn Fn(&str) -> bool,
    rounded: &dyn Fn(usize) -> String,
) {
    let Some(decimal) = Decimal::parse(&into[start..]) else { return };
    let inside = |text: &str| {
        let parsed = Decimal::parse(text);
        parsed.is_some_and(|decimal| !number.bounded_by(&decimal)) && reads_back(text)
    };
    let sign = if into[start..].starts_with('-') { "-" } else { "" };
    let chosen = if number.bounded_by(&decimal) {
        (0..17).map(rounded).find(|text| inside(text))
    } else if decimal.digits % 2 == 1 {
        let even = number.as_near_as(&decimal);
        even.map(|even| format!("{sign}{}", even.text())).filter(|text| inside(text))
    } else {
        None
    };
    if let Some(chosen) = chosen {
        into.truncate(start);
        into.push_str(&chosen);
    }
}

/// NaN, the infinities and the zeros.
fn print_special(value: f64, into: &mut String) -> bool {
    let text = if value.is_nan() {
        "NaN"
    } else if value == f64::INFINITY {
        "Infinity"
    } else if value == f64::NEG_INFINITY {
        "-Infinity"
    } else if value == 0.0 {
        if value.is_sign_negative() { "-0" } else { "0" }
    } else {
        return false;
    };
    into.push_str(text);
    true
}

/// The ends of the interval of numbers that round to one floating-point number, as `n × 2^exponent`.
struct Binary {
    below: u128,
    value: u128,
    above: u128,
    exponent: i32,
}

/// `digits × 10^exponent`.
struct Decimal {
    digits: u128,
    exponent: i32,
}

impl Binary {
    /// From the fields of an IEEE number; `bias` counts from the last bit of the fraction.
    fn new(fraction: u64, field: u64, width: u32, bias: i32) -> Self {
        let field = i32::try_from(field).expect("at most 11 bits");
        let implicit = if field == 0 { 0 } else { 1u128 << width };
        let mantissa = u128::from(fraction) + implicit;
        let power_of_two = fraction == 0 && field > 1;
        let below = if power_of_two { 4 * mantissa - 1 } else { 4 * mantissa - 2 };
        Self {
            below,
            value: 4 * mantissa,
            above: 4 * mantissa + 2,
            exponent: field.max(1) - bias - 2,
        }
    }

    /// Whether the decimal is one of the ends.
    fn bounded_by(&self, decimal: &Decimal) -> bool {
        [self.below, self.above].into_iter().any(|end| equal(end, self.exponent, decimal))
    }

    /// The other decimal of as many digits that is equally near to the number, if there is one.
    fn as_near_as(&self, decimal: &Decimal) -> Option<Decimal> {
        let halfway = |digits| Decimal { digits, exponent: decimal.exponent - 1 };
        let tie = |digits| equal(self.value, self.exponent, &halfway(digits));
        let step = |digits| Some(Decimal { digits, exponent: decimal.exponent });
        if tie(10 * decimal.digits - 5) {
            step(decimal.digits - 1)
        } else if tie(10 * decimal.digits + 5) {
            step(decimal.digits + 1)
        } else {
            None
        }
    }
}

impl Decimal {
    /// Reads what `{:e}` wrote: `-1.25e-7`.
    fn parse(text: &str) -> Option<Self> {
        let (mantissa, exponent) = text.trim_start_matches('-').split_once('e')?;
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let fraction = fraction.trim_end_matches('0');
        let places = i32::try_from(fraction.len()).ok()?;
        let digits = format!("{whole}{fraction}").parse().ok()?;
        Some(Self { digits, exponent: exponent.parse::<i32>().ok()? - places })
    }

    /// As `{:e}` writes it.
    fn text(&self) -> String {
        let digits = self.digits.to_string();
        let (first, rest) = digits.split_at(1);
        let exponent = self.exponent + i32::try_from(rest.len()).unwrap_or(0);
        format!("{first}.{rest}0e{exponent}")
    }
}

/// Whether `n × 2^exponent` is the decimal. Both sides are brought to an odd number and a power of
/// two; a power of five above 27 cannot divide either side's digits.
fn equal(n: u128, exponent: i32, decimal: &Decimal) -> bool {
    let Some(fives) = 5u128.checked_pow(decimal.exponent.unsigned_abs()) else { return false };
    if decimal.exponent.unsigned_abs() > 27 {
        return false;
    }
    let (left, right) = if decimal.exponent >= 0 {
        (n, decimal.digits * fives)
    } else {
        (n * fives, decimal.digits)
    };
    let zeros = |number: u128| i32::try_from(number.trailing_zeros()).unwrap_or(i32::MAX);
    left >> left.trailing_zeros() == right >> right.trailing_zeros()
        && exponent + zeros(left) == decimal.exponent + zeros(right)
}

/// Rewrites `-1.25e-7` from `start` on as `%g` would: plain from 10^-4 to below `10^plain_max`.
fn lay_out(into: &mut String, start: usize, plain_max: i32) {
    let mut digits = [0u8; 40];
    let mut count = 0;
    let written = &into.as_bytes()[start..];
    let negative = written.first() == Some(&b'-');
    let split = written.iter().position(|byte| *byte == b'e').unwrap_or(written.len());
    for byte in written[..split].iter().filter(|byte| byte.is_ascii_digit()) {
        digits[count] = *byte;
        count += 1;
    }
    let exponent: i32 = into[start..].get(split + 1..).and_then(|e| e.parse().ok()).unwrap_or(0);
    while count > 1 && digits[count - 1] == b'0' {
        count -= 1;
    }
    let digits = std::str::from_utf8(&digits[..count]).expect("ASCII digits");
    into.truncate(start);
    if negative {
        into.push('-');
    }
    if (-4..0).contains(&exponent) {
        into.push_str("0.");
        into.extend((1..-exponent).map(|_| '0'));
        into.push_str(digits);
    } else if (0..plain_max).contains(&exponent) {
        let whole = usize::try_from(exponent + 1).expect("not negative");
        if count <= whole {
            into.push_str(digits);
            into.extend((count..whole).map(|_| '0'));
        } else {
            into.push_str(&digits[..whole]);
            into.push('.');
            into.push_str(&digits[whole..]);
        }
    } else {
        into.push_str(&digits[..1]);
        if count > 1 {
            into.push('.');
            into.push_str(&digits[1..]);
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(into, "e{sign}{:02}", exponent.unsigned_abs()).expect("a String takes all");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn f64_text(value: f64) -> String {
        let mut text = String::new();
        print_f64(value, &mut text);
        text
    }

    fn f32_text(value: f32) -> String {
        let mut text = String::new();
        print_f32(value, &mut text);
        text
    }

    /// The right side is PostgreSQL 15's answer to `select '…'::float8`.
    #[test]
    fn doubles_print_as_postgresql_prints_them() {
        for (value, text) in [
            (0.1 + 0.2, "0.30000000000000004"),
            (1e15, "1e+15"),
            (123_456_789_012_345.0, "123456789012345"),
            (-0.0001, "-0.0001"),
            (0.000_01, "1e-05"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NEG_INFINITY, "-Infinity"),
            (f64::NAN, "NaN"),
            (-0.0, "-0"),
            (100.0, "100"),
            (768_420_363_056_932.0 + 0.25, "768420363056932.2"),
            (2f64.powi(-25), "2.9802322387695312e-08"),
        ] {
            assert_eq!(f64_text(value), text);
        }
    }

    #[test]
    fn singles_print_as_postgresql_prints_them() {
        for (value, text) in [
            (1e6_f32, "1e+06"),
            (123_456.0, "123456"),
            (0.1, "0.1"),
            (1e-45, "1e-45"),
            (f32::MAX, "3.4028235e+38"),
            (16_777_216.0, "1.6777216e+07"),
        ] {
            assert_eq!(f32_text(value), text);
        }
    }

    proptest! {
        #[test]
        fn every_number_reads_back(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assert!(value.is_nan() || f64_text(value).parse() == Ok(value));
            let single = f32::from_bits(u32::try_from(bits >> 32).unwrap());
            prop_assert!(single.is_nan() || f32_text(single).parse() == Ok(single));
        }
    }
}
